"""Asks the store for the nodes' reports and the registry for artifacts. What fails becomes Unknown.

Rule: a pass that finds nothing to launch asks the registry nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

from pydantic import ValidationError

from node_agent.wire import LAYOUT_PREFIX, Report
from reconciler.core.desired import Desired, Target
from reconciler.core.names import ArtifactKey, InstanceKey
from reconciler.core.observed import ArtifactSeen, Known, NodeSeen, Observed, Seen, Unknown
from reconciler.core.records import EnrolledNode
from reconciler.errors import GpuaasError
from reconciler.ports import Ports, Registry, RegistryEndpoint
from reconciler.settings import Settings

_LOOKUPS_AT_ONCE = 8


def observe(ports: Ports, settings: Settings, desired: Desired, now_ms: int) -> Observed:
    """One look at the world. Raises only when our own store does not answer."""
    return with_artifacts(ports, desired, see_nodes(ports, settings, now_ms))


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


def with_artifacts(ports: Ports, desired: Desired, seen: Observed) -> Observed:
    """The same with the artifacts that a plan may need; `seen` is under our names here."""
    return replace(seen, artifacts=look_up(ports.registry, artifacts_to_launch(desired, seen)))


def artifacts_to_launch(desired: Desired, seen: Observed) -> Mapping[ArtifactKey, RegistryEndpoint]:
    """The artifacts that a plan may want to hand to a node, and where they should be."""
    return {
        target.instance.artifact: endpoint_of(
            target.instance.registry_endpoint, target.instance.registry_plain_http
        )
        for target in desired.targets.values()
        if _to_launch(target, seen)
    }


def node_seen(
    node: EnrolledNode, now_ms: int, offline_after_ms: int, memo: ReportMemo | None = None
) -> Seen[NodeSeen]:
    """A node's last report, unless it is too old, incomplete or of another format."""
    if node.report_json is None or node.reported_at_ms is None:
        return Unknown("node_never_reported", f"node {node.name} joined but has not reported yet")
    age_ms = now_ms - node.reported_at_ms
    if age_ms > offline_after_ms:
        return Unknown("node_offline", f"node {node.name} last reported {age_ms // 1000} s ago")
    try:
        report = (memo or ReportMemo()).report(node.name, node.report_json)
    except ValidationError:
        return Unknown("report_unreadable", f"node {node.name} runs an agent we cannot read")
    if not report.complete:
        why = "; ".join(f"{k}: {v}" for k, v in sorted(report.inventory.engine_errors.items()))
        return Unknown("engine_unavailable", f"node {node.name}: {why or 'an engine is silent'}")
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


def endpoint_of(endpoint: str, plain_http: bool) -> RegistryEndpoint:
    """From what an Instance says: host:port, or `layout:` and a folder."""
    if endpoint.startswith(LAYOUT_PREFIX):
        return RegistryEndpoint(endpoint, layout_path=endpoint.removeprefix(LAYOUT_PREFIX))
    return RegistryEndpoint(endpoint, plain_http)
