"""What the world looks like. Unknown is a value of its own: it is never taken for empty."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from node_agent.wire import BlobSeen, ConfigSeen, Inventory, Phase, Stray, WorkloadReport
from reconciler.core.names import ArtifactKey, InstanceKey, content_hash
from reconciler.core.services import serves
from reconciler.core.trust.evidence import Evidence

T = TypeVar("T")


@dataclass(frozen=True)
class Known(Generic[T]):
    value: T


@dataclass(frozen=True)
class Unknown:
    """The observer did not answer. `code` is stable, `reason` is for people."""

    code: str
    reason: str


@dataclass(frozen=True)
class NodeUnknown(Unknown):
    """A node that joined, and of which nobody knows how it is now. `silent_ms`: since it was last
    heard of, or joined; `config`: the NodeConfig in force there by its last word.
    """

    silent_ms: int = 0
    config: ConfigSeen | None = None


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
    config: ConfigSeen | None = None
    """The NodeConfig in force there; None: its agent knows of none."""
    blobs: tuple[BlobSeen, ...] = ()
    """What is in its cache of blobs, or on its way there."""
    heard_for_ms: int = 0
    """For how long its reports kept coming: so long at least, there was somebody to take them."""


@dataclass(frozen=True)
class Observed:
    """`secrets`: by path, whether there is one. `trust`: what is known of the signatures of what is
    in use, or may be launched, where a channel is asked for. `keys`: by name, the versions of
    signing keys that are not retired, oldest first. `key_ids`: those of the key of tasks, by the id
    that envelopes name them by.
    """

    artifacts: Mapping[ArtifactKey, Seen[ArtifactSeen]] = field(default_factory=dict)
    nodes: Mapping[str, Seen[NodeSeen]] = field(default_factory=dict)
    secrets: Mapping[str, Seen[bool]] = field(default_factory=dict)
    trust: Mapping[ArtifactKey, Seen[Evidence]] = field(default_factory=dict)
    keys: Mapping[str, Seen[tuple[int, ...]]] = field(default_factory=dict)
    key_ids: Mapping[str, int] = field(default_factory=dict)

    def artifact(self, key: ArtifactKey) -> Seen[ArtifactSeen]:
        found = self.artifacts.get(key)
        return Unknown("not_observed", f"{key} was not looked up") if found is None else found

    def secret(self, path: str) -> Seen[bool]:
        found = self.secrets.get(path)
        return Unknown("not_observed", "it was not looked for") if found is None else found

    def evidence(self, key: ArtifactKey) -> Seen[Evidence]:
        found = self.trust.get(key)
        why = "nobody looked at its signatures"
        return Unknown("not_observed", why) if found is None else found

    def node(self, name: str) -> Seen[NodeSeen]:
        found = self.nodes.get(name)
        return Unknown("node_never_joined", f"node {name} never joined") if found is None else found

    def workload(self, node: str, key: InstanceKey) -> Seen[WorkloadReport | None]:
        """Known(None) only when the node answered completely and has no such workload."""
        seen = self.node(node)
        if isinstance(seen, Unknown):
            return seen
        return Known(seen.value.workloads.get(key))

    def unnoted(self, node: str, name: str) -> Stray | None:
        """What runs there under that name, though the node's agent knows nothing of it any more."""
        seen = self.node(node)
        strays = seen.value.strays if isinstance(seen, Known) else ()
        return next((one for one in strays if one.instance == name and one.alive), None)

    @property
    def fingerprint(self) -> str:
        """Hash of everything a plan depends on; ages and counters are left out."""
        nodes = {
            name: seen.code
            if isinstance(seen, Unknown)
            else [
                [w.instance, w.target_hash, w.running_hash, _phase(w), w.reason, w.retained]
                for _, w in sorted(seen.value.workloads.items())
            ]
            for name, seen in sorted(self.nodes.items())
        }
        artifacts = {
            str(key): seen.code if isinstance(seen, Unknown) else seen.value.exists
            for key, seen in sorted(self.artifacts.items())
        }
        secrets = {
            path: seen.code if isinstance(seen, Unknown) else seen.value
            for path, seen in sorted(self.secrets.items())
        }
        trust = {
            str(key): seen.code if isinstance(seen, Unknown) else seen.value.gist
            for key, seen in sorted(self.trust.items())
        }
        # Where nothing is asked for, a plan is called what it always was.
        return content_hash("observed", nodes, artifacts, secrets, *([trust] if trust else []))


def _phase(report: WorkloadReport) -> str:
    """Degraded is two things where services are told apart."""
    word = report.phase.value
    return f"{word}, serves" if report.services and serves(report) else word


def is_there(seen: Seen[WorkloadReport | None]) -> bool:
    """Whether its node says that it has something of the instance, or is still removing it."""
    if isinstance(seen, Unknown) or seen.value is None:
        return False
    return seen.value.phase is not Phase.REMOVED
