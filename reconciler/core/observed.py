"""What the world looks like. Unknown is a value of its own: it is never taken for empty."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from node_agent.wire import Inventory, Phase, Stray, WorkloadReport
from reconciler.core.names import ArtifactKey, InstanceKey, content_hash

T = TypeVar("T")


@dataclass(frozen=True)
class Known(Generic[T]):
    value: T


@dataclass(frozen=True)
class Unknown:
    """The observer did not answer. `code` is stable, `reason` is for people."""

    code: str
    reason: str


Seen = Known[T] | Unknown


@dataclass(frozen=True)
class ArtifactSeen:
    """An artifact as the registry serves it, hashed by us. `exists` is False when it said 404."""

    exists: bool
    media_type: str = ""
    size_bytes: int = 0
    platforms: tuple[str, ...] = ()


@dataclass(frozen=True)
class NodeSeen:
    """A node by its last report, taken `age_ms` before the observation."""

    name: str
    agent_version: str
    age_ms: int
    connected_at_ms: int
    inventory: Inventory
    workloads: Mapping[InstanceKey, WorkloadReport]
    strays: tuple[Stray, ...] = ()
    refusal: str = ""
    """Why it takes no task at all, code and message; empty when it does."""


@dataclass(frozen=True)
class Observed:
    artifacts: Mapping[ArtifactKey, Seen[ArtifactSeen]] = field(default_factory=dict)
    nodes: Mapping[str, Seen[NodeSeen]] = field(default_factory=dict)

    def artifact(self, key: ArtifactKey) -> Seen[ArtifactSeen]:
        found = self.artifacts.get(key)
        return Unknown("not_observed", f"{key} was not looked up") if found is None else found

    def node(self, name: str) -> Seen[NodeSeen]:
        found = self.nodes.get(name)
        return Unknown("node_never_joined", f"node {name} never joined") if found is None else found

    def workload(self, node: str, key: InstanceKey) -> Seen[WorkloadReport | None]:
        """Known(None) only when the node answered completely and has no such workload."""
        seen = self.node(node)
        if isinstance(seen, Unknown):
            return seen
        return Known(seen.value.workloads.get(key))

    @property
    def fingerprint(self) -> str:
        """Hash of everything a plan depends on; ages and counters are left out."""
        nodes = {
            name: seen.code
            if isinstance(seen, Unknown)
            else [
                [w.instance, w.target_hash, w.running_hash, w.phase.value, w.reason, w.retained]
                for _, w in sorted(seen.value.workloads.items())
            ]
            for name, seen in sorted(self.nodes.items())
        }
        artifacts = {
            str(key): seen.code if isinstance(seen, Unknown) else seen.value.exists
            for key, seen in sorted(self.artifacts.items())
        }
        return content_hash("observed", nodes, artifacts)


def is_there(seen: Seen[WorkloadReport | None]) -> bool:
    """Whether its node says that it has something of the instance, or is still removing it."""
    if isinstance(seen, Unknown) or seen.value is None:
        return False
    return seen.value.phase is not Phase.REMOVED
