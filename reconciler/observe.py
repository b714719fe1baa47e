"""Asks the store for the nodes' reports, and the registry for artifacts and their signatures and
the secret store for secrets that a launch needs. What fails becomes Unknown.

Rule: a pass that finds nothing to launch asks the registry and the secret store nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

from pydantic import ValidationError

from node_agent.wire import Report
from reconciler.artifacts.endpoints import endpoint_for
from reconciler.artifacts.looking import evidence_of, unexpected
from reconciler.core.custody.referred import referred_by
from reconciler.core.desired import Desired, Target
from reconciler.core.names import ArtifactKey, InstanceKey
from reconciler.core.observed import (
    ArtifactSeen,
    Known,
    NodeSeen,
    NodeUnknown,
    Observed,
    Seen,
    Unknown,
)
from reconciler.core.records import EnrolledNode, InstanceRecord
from reconciler.core.trust.standing import in_use
from reconciler.errors import GpuaasError, Transient
from reconciler.ports import TASK_KEY, Ports, Registry, RegistryEndpoint, SecretStore, Store
from reconciler.settings import Settings

_LOOKUPS_AT_ONCE = 8


def observe(ports: Ports, settings: Settings, desired: Desired, now_ms: int) -> Observed:
    """One look at the world. Raises only when our own store does not answer."""
    seen = with_supplies(ports, desired, see_nodes(ports, settings, now_ms))
    recheck_s = settings.trust_recheck_s
    store = ports.store
    return with_trust(store, ports.registry, desired, seen, store.records(), now_ms, recheck_s)


@dataclass
class ReportMemo:
    """Held by whoever looks again and again: a report that is the same is not read again."""

    read: dict[str, tuple[str, Report]] = field(default_factory=dict)
    """By node, the text of its last readable report, and what it says."""

    def report(self, node: str, text: str) -> Report:
        """Raises ValidationError for what is no report."""
        known = self.read.get(node)
        if known is None or known[0] != text:
            known = self.read[node] = (text, Report.model_validate_json(text))
        return known[1]


def see_nodes(
    ports: Ports, settings: Settings, now_ms: int, memo: ReportMemo | None = None
) -> Observed:
    """What the nodes report, under their names; of artifacts, nothing yet."""
    offline_after_ms = int(settings.node_offline_after_s * 1000)
    memo = memo or ReportMemo()
    found = ports.store.nodes()
    nodes = {node.name: node_seen(node, now_ms, offline_after_ms, memo) for node in found}
    return Observed(nodes=nodes)


def with_supplies(ports: Ports, desired: Desired, seen: Observed) -> Observed:
    """The same with what a launch may need; `seen` is under our names here."""
    return replace(
        seen,
        artifacts=look_up(ports.registry, artifacts_to_launch(desired, seen)),
        secrets=look_for(ports.secrets, secrets_to_launch(desired, seen)),
    )


def with_trust(
    store: Store,
    registry: Registry,
    desired: Desired,
    seen: Observed,
    records: Mapping[InstanceKey, InstanceRecord],
    now_ms: int,
    recheck_s: float,
) -> Observed:
    """The same with what is known of signatures, where any are asked for. What the registry has no
    more, or can't be asked of, is not looked at either.
    """
    asked = in_use(desired, records)
    if not asked:
        return seen
    there = {
        key: endpoint
        for key, endpoint in artifacts_to_launch(desired, seen).items()
        if isinstance(one := seen.artifact(key), Known) and one.value.exists
    }
    recheck_ms = int(recheck_s * 1000)
    found = evidence_of(store, registry, desired.trust, asked, there, now_ms, recheck_ms)
    return replace(seen, trust=found)


def with_keys(secrets: SecretStore, desired: Desired, seen: Observed) -> Observed:
    """The same with the signing keys that something is wanted of: on others nothing depends."""
    keys, key_ids = key_versions(secrets, desired.keys)
    return replace(seen, keys=keys, key_ids=key_ids)


def key_versions(
    secrets: SecretStore, names: Iterable[str]
) -> tuple[Mapping[str, Seen[tuple[int, ...]]], Mapping[str, int]]:
    """By name the versions that are not retired; by key id those of the key of tasks."""
    keys: dict[str, Seen[tuple[int, ...]]] = {}
    key_ids: dict[str, int] = {}
    for name in sorted(names):
        try:
            if name == TASK_KEY:
                key_ids = {key.key_id: key.version for key in secrets.verifier_keys(name)}
                keys[name] = Known(tuple(sorted(key_ids.values())))
            else:
                keys[name] = Known(tuple(key.version for key in secrets.public_keys(name)))
        except GpuaasError as error:
            keys[name] = Unknown(error.code, error.message)
    return keys, key_ids


def artifacts_to_launch(desired: Desired, seen: Observed) -> Mapping[ArtifactKey, RegistryEndpoint]:
    """The artifacts that a plan may want to hand to a node, and where they should be."""
    return {
        key: endpoint_for(target.instance)
        for target in desired.targets.values()
        if _to_launch(target, seen)
        for key in target.instance.artifacts
    }


def secrets_to_launch(desired: Desired, seen: Observed) -> tuple[str, ...]:
    """The paths of what a plan may want to launch refers to, sorted."""
    found: set[str] = set()
    for target in desired.targets.values():
        if target.instance.secrets and _to_launch(target, seen):
            found |= referred_by(target.instance).keys()
    return tuple(sorted(found))


def node_seen(
    node: EnrolledNode, now_ms: int, offline_after_ms: int, memo: ReportMemo | None = None
) -> Seen[NodeSeen]:
    """A node's last report, unless it is too old, incomplete, of another format or not to be
    believed any more.
    """
    if node.revoked_at_ms is not None:
        why = f": {node.revoked_reason}" if node.revoked_reason else ""
        return Unknown("node_revoked", f"node {node.name} was revoked{why}")
    if node.report_json is None or node.reported_at_ms is None:
        why = f"node {node.name} joined but has not reported yet"
        return NodeUnknown("node_never_reported", why, now_ms - node.joined_at_ms)
    age_ms = now_ms - node.reported_at_ms
    try:
        report = (memo or ReportMemo()).report(node.name, node.report_json)
    except ValidationError:
        report = None
    config = report.config if report is not None else None
    if age_ms > offline_after_ms:
        why = f"node {node.name} last reported {age_ms // 1000} s ago"
        return NodeUnknown("node_offline", why, age_ms, config)
    if report is None:
        why = f"node {node.name} runs an agent we cannot read"
        return NodeUnknown("report_unreadable", why, age_ms)
    if not report.complete:
        why = "; ".join(f"{k}: {v}" for k, v in sorted(report.inventory.engine_errors.items()))
        why = f"node {node.name}: {why or 'an engine is silent'}"
        return NodeUnknown("engine_unavailable", why, age_ms, config)
    return Known(
        NodeSeen(
            name=node.name,
            agent_version=report.agent_version,
            age_ms=age_ms,
            connected_at_ms=report.connected_at_ms,
            inventory=report.inventory,
            workloads={InstanceKey(w.instance): w for w in report.workloads},
            strays=report.strays,
            refusal=report.refusal,
            config=report.config,
            blobs=report.blobs,
            heard_for_ms=node.reported_at_ms - (node.heard_since_ms or node.reported_at_ms),
        )
    )


def _to_launch(target: Target, seen: Observed) -> bool:
    """Whether a plan may want to hand this target's artifact to a node."""
    if target.instance.run == "decommissioned":
        return False
    workload = seen.workload(target.instance.node, target.instance.key)
    if isinstance(workload, Unknown):
        return False
    report = workload.value
    if report is None or report.target_hash != target.workload.spec_hash:
        return True
    return report.phase.value in ("failed", "removed")


def look_up(
    registry: Registry, endpoints: Mapping[ArtifactKey, RegistryEndpoint]
) -> Mapping[ArtifactKey, Seen[ArtifactSeen]]:
    """Each artifact as its registry serves it, several asked at once. Nothing is raised."""
    if not endpoints:
        return {}
    with ThreadPoolExecutor(min(_LOOKUPS_AT_ONCE, len(endpoints))) as pool:
        seen = pool.map(lambda item: _artifact(registry, item[1], item[0]), endpoints.items())
        return dict(zip(endpoints, seen, strict=True))


def _artifact(
    registry: Registry, endpoint: RegistryEndpoint, key: ArtifactKey
) -> Seen[ArtifactSeen]:
    try:
        return Known(registry.look_up(endpoint, key))
    except GpuaasError as error:
        return Unknown(error.code, f"{endpoint.endpoint}: {error.message}")
    except Exception as error:
        return unexpected(key, error)


def look_for(secrets: SecretStore, paths: Sequence[str]) -> Mapping[str, Seen[bool]]:
    """Whether there is a secret at each path. Nothing is raised, and no value is read.

    One that is away answers for all: to wait for each would only take longer.
    """
    found: dict[str, Seen[bool]] = {}
    for path in paths:
        try:
            found[path] = Known(secrets.seen(path) is not None)
        except Transient as error:
            silent = Unknown(error.code, error.message)
            return {**found, **{late: silent for late in paths if late not in found}}
        except GpuaasError as error:
            found[path] = Unknown(error.code, error.message)
    return found
