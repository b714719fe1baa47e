"""What should be: the objects of one accepted revision and the instances they resolve to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from reconciler.core.names import ArtifactKey, InstanceKey, ObjectRef, Revision
from reconciler.core.problems import Problem
from reconciler.core.trust.rules import TrustRules

if TYPE_CHECKING:
    from node_agent.wire import BlobFile, SecretFile, Workload
    from reconciler.core.kinds import Manifest
    from reconciler.core.kinds.app_version import RuntimeProfile
    from reconciler.core.records import StepBack

Run = Literal["running", "stopped", "decommissioned"]
Revoked = Mapping[tuple[str, str, str], str]
"""(digest, app, `tenant/project`) → the Artifact that revokes what runs of the app there; empty in
the place of the project: in all of them."""


@dataclass(frozen=True)
class StateObject:
    """One manifest: where it stands and what it says. `document` is its plain JSON form."""

    ref: ObjectRef
    path: str
    line: int
    manifest: Manifest
    document: Mapping[str, object]


@dataclass(frozen=True)
class Candidate:
    """One revision as read: the objects that are well-formed, and every problem found on the way.

    `broken_paths` are files whose documents could not all be read: what they held is not known.
    `unread` are names that such a file bears, or one that is not read at all, with its path.
    `decided` are objects of such files in the form that signed commits gave them; None: nobody
    looked at commits. Where somebody did, whatever trust is made of is decided, deletions too.
    """

    revision: Revision
    objects: Mapping[ObjectRef, StateObject]
    problems: tuple[Problem, ...] = ()
    broken_paths: frozenset[str] = frozenset()
    unread: Mapping[str, str] = field(default_factory=dict)
    decided: frozenset[ObjectRef] | None = None


@dataclass(frozen=True)
class Policy:
    """Decided from environment and entitlement, not copied from the instance's hints."""

    operating_mode: str
    control_plane_scope: str
    runtime_backend: str
    tenant_boundary_mode: str


@dataclass(frozen=True)
class Term:
    """An exception with an end: who, why, until when."""

    by: str
    reason: str
    until_ms: int


@dataclass(frozen=True)
class Topology:
    """What a renderer makes services of. Its version's profile is as the manifest has it.

    `images`: service → the artifact that it runs on this node; of services without an image of
    their own the instance's. The service that a renderer makes itself is among them, too.
    """

    renderer: str
    profile: RuntimeProfile
    images: Mapping[str, ArtifactKey] = field(default_factory=dict)


@dataclass(frozen=True)
class Instance:
    """An app instance with every reference resolved; what a renderer needs and nothing else."""

    key: InstanceKey
    ref: ObjectRef
    org_id: str
    project_id: str
    app: str
    version: str
    artifact: ArtifactKey
    node: str
    run: Run
    policy: Policy
    registry_endpoint: str
    registry_plain_http: bool
    command: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    ports: tuple[tuple[str, int, int | None], ...] = ()
    """(name, container port, host port or None)"""
    readiness: Mapping[str, object] = field(default_factory=dict)
    """The manifest's `runtime_profile.health`, defaults filled in; see core.kinds.app_version."""
    stop_grace_s: int = 10
    cpu_millis: int | None = None
    memory_mib: int | None = None
    shm_mib: int = 64
    gpu_vendor: Literal["nvidia", "amd"] | None = None
    gpu_uuids: tuple[str, ...] = ()
    access: str = ""
    """The manifest's access instructions, a template for `gpuaas status`."""
    may_start: bool = True
    """False for a version that takes no new instances (deprecated): what runs goes on."""
    depends_on: tuple[InstanceKey, ...] = ()
    """Instances that must be ready before this one starts, and that go after it."""
    moved_from: InstanceKey | None = None
    """What it was called before: a record of that name becomes this one's."""
    suspend: Term | None = None
    """Its own or its project's; the one that ends last."""
    packages: tuple[str, ...] = ()
    """pip's requirement lines, put in at start from `package_index`."""
    package_index: str = ""
    registry_token_auth: bool = False
    channel: str = ""
    """The channel that its artifact has to be good for; empty: none is asked for."""
    promotion: str = ""
    """The state of its version, where a channel is asked for: with it, that is asked anew."""
    blobs: tuple[BlobFile, ...] = ()
    """Files from the artifact store that it reads."""
    secrets: tuple[SecretFile, ...] = ()
    """The secrets it reads, their references resolved; its machine identity left out."""
    member_of: InstanceKey | None = None
    """The instance this is a further member of; None for the first member, which bears its name."""
    role: str = ""
    port_addresses: Mapping[str, str] = field(default_factory=dict)
    """Port name → address of the node that it is published at, for other members."""
    topology: Topology | None = None
    """For docker_compose: what its services are made of; `ports` are its published endpoints."""

    @property
    def artifacts(self) -> tuple[ArtifactKey, ...]:
        """Of all images it runs, each once; its own first."""
        if self.topology is None:
            return (self.artifact,)
        return tuple(dict.fromkeys((self.artifact, *self.topology.images.values())))


@dataclass(frozen=True)
class Budget:
    """Removals under way at once, by count and by share of what there is; the lower counts."""

    removals_max: int = 5
    removals_max_percent: int = 30


@dataclass(frozen=True)
class Approval:
    """A set of removals over budget that a person agreed to, by its id."""

    removals: str
    reason: str
    until_ms: int


@dataclass(frozen=True)
class Window:
    """When changes may (allow) or may not (deny) be made. `days` are 0 (Monday) to 6 and name the
    day it starts on; minutes count from midnight, `end_minute` <= `start_minute` is the next day.
    """

    name: str
    kind: Literal["allow", "deny"]
    days: frozenset[int]
    start_minute: int
    end_minute: int
    time_zone: str
    projects: frozenset[str] = frozenset()
    """`tenant/project`; empty: all."""


@dataclass(frozen=True)
class IgnoreRule:
    """Findings, or drift, that are known and left alone until then. Patterns are globs."""

    objects: tuple[str, ...]
    codes: frozenset[str]
    term: Term


@dataclass(frozen=True)
class Guards(Budget):
    """What holds changes back, from the Environment; the inherited fields bound the whole pass."""

    per_node: Budget | None = None
    per_kind: Mapping[str, Budget] = field(default_factory=dict)
    tombstones: bool = False
    approvals: tuple[Approval, ...] = ()
    windows: tuple[Window, ...] = ()
    break_glass: Term | None = None
    suspend: Term | None = None
    ignore: tuple[IgnoreRule, ...] = ()
    manual: bool = False


@dataclass(frozen=True)
class KeyWish:
    """The version of a signing key that should sign; those below `min_version` are to go now."""

    version: int
    min_version: int = 1


@dataclass(frozen=True, order=True)
class BlobWish:
    """A blob that a node should have in its cache; `artifact` is the ref it was registered as."""

    node: str
    digest: str
    source: str
    artifact: str


@dataclass(frozen=True)
class Stepped:
    """An instance whose canary went back: the version that its manifest asks for, and the one that
    is wanted instead. Without one nothing is started, for the reason given.
    """

    asked: str
    instead: str
    why: str = ""


@dataclass(frozen=True)
class Target:
    """An instance and the workload its renderer wrote for it."""

    instance: Instance
    workload: Workload


@dataclass(frozen=True)
class Desired:
    """One accepted revision, resolved and rendered.

    `held` names instances nothing may happen to because what they need is quarantined, with why.
    """

    revision: Revision
    targets: Mapping[InstanceKey, Target] = field(default_factory=dict)
    nodes: frozenset[str] = frozenset()
    guards: Guards = Guards()
    held: Mapping[InstanceKey, str] = field(default_factory=dict)
    suspended: Mapping[str, Term] = field(default_factory=dict)
    """`tenant/project` → why nothing may happen there; also to what its files no longer name."""
    keys: Mapping[str, KeyWish] = field(default_factory=dict)
    """By the name of a signing key; one that is not in here is left as it is."""
    trust: TrustRules = field(default_factory=TrustRules)
    """What the channels ask of artifacts; see `Instance.channel`."""
    revoked: Revoked = field(default_factory=dict)
    unverified: str = ""
    """The Environment that names no channel, although there are some."""
    prefetch: tuple[BlobWish, ...] = ()
    """Blobs that nodes should have ahead, sorted."""
    step_backs: tuple[StepBack, ...] = ()
    """Canaries that went back by themselves, and count as staged."""
    stepped: Mapping[InstanceKey, Stepped] = field(default_factory=dict)
    """Instances that asked for those."""
