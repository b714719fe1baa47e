"""Asks the store for the nodes' reports and the registry for artifacts. What fails becomes Unknown.

Rule: a pass that finds nothing to launch asks the registry nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor

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
    offline_after_ms = int(settings.node_offline_after_s * 1000)
    nodes = {node.name: node_seen(node, now_ms, offline_after_ms) for node in ports.store.nodes()}
    seen = Observed(nodes=nodes)
    wanted = [target for target in desired.targets.values() if _to_launch(target, seen)]
    return Observed(artifacts=_look_up(ports.registry, wanted), nodes=nodes)


def node_seen(node: EnrolledNode, now_ms: int, offline_after_ms: int) -> Seen[NodeSeen]:
    """A node's last report, unless it is too old, incomplete or of another format."""
    if node.report_json is None or node.reported_at_ms is None:
        return Unknown("node_never_reported", f"node {node.name} joined but has not reported yet")
    age_ms = now_ms - node.reported_at_ms
    if age_ms > offline_after_ms:
        return Unknown("node_offline", f"node {node.name} last reported {age_ms // 1000} s ago")
    try:
        report = Report.model_validate_json(node.report_json)
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


def _look_up(
    registry: Registry, targets: Iterable[Target]
) -> Mapping[ArtifactKey, Seen[ArtifactSeen]]:
    endpoints = {
        target.instance.artifact: _endpoint(
            target.instance.registry_endpoint, target.instance.registry_plain_http
        )
        for target in targets
    }
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


def _endpoint(endpoint: str, plain_http: bool) -> RegistryEndpoint:
    if endpoint.startswith(LAYOUT_PREFIX):
        return RegistryEndpoint(endpoint, layout_path=endpoint.removeprefix(LAYOUT_PREFIX))
    return RegistryEndpoint(endpoint, plain_http)
