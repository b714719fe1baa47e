"""The objects of one revision, grouped once so that every check is a look-up.

Rules:
- Built in one walk over the objects; tables and groups are sorted by path and never change.
- A `Finding` is a Problem and the objects whose newest form may be what is wrong: acceptance puts
  those back to their last accepted form.
- A decommissioned instance takes no capacity and is checked by nobody: it can always be removed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from reconciler.core.desired import StateObject
from reconciler.core.kinds.allocation import AllocationSpec
from reconciler.core.kinds.app import AppSpec
from reconciler.core.kinds.app_instance import AppInstanceSpec
from reconciler.core.kinds.app_version import AppVersionSpec
from reconciler.core.kinds.artifact import ArtifactSpec
from reconciler.core.kinds.base import Part
from reconciler.core.kinds.entitlement import EntitlementSpec
from reconciler.core.kinds.environment import EnvironmentSpec
from reconciler.core.kinds.node import NodeSpec
from reconciler.core.kinds.project import ProjectSpec
from reconciler.core.kinds.promotion import PromotionSpec
from reconciler.core.kinds.tenant import TenantSpec
from reconciler.core.names import InstanceKey, ObjectRef, nearest
from reconciler.core.problems import Problem

S = TypeVar("S", bound=Part)
S_co = TypeVar("S_co", bound=Part, covariant=True)
Path = tuple[str, ...]
HINTS_MAX = 100
"""Words looked up for a did-you-mean hint: a look-up walks all known names."""


@dataclass(frozen=True, slots=True)
class Entry(Generic[S_co]):
    """One object with its spec typed. `path` is the scope path of its ref, not a file."""

    object: StateObject
    spec: S_co

    @property
    def ref(self) -> ObjectRef:
        return self.object.ref

    @property
    def path(self) -> Path:
        return self.object.ref.path

    @property
    def name(self) -> str:
        return self.object.ref.path[-1]


Table = Mapping[Path, Entry[S]]


@dataclass(frozen=True)
class Finding:
    """A problem and every object involved; the first is the culprit that the problem names."""

    problem: Problem
    involved: tuple[ObjectRef, ...]


Findings = Iterator[Finding]


def finding(
    entry: Entry[Part],
    code: str,
    message: str,
    pointer: str = "",
    hint: str = "",
    involved: tuple[ObjectRef, ...] = (),
) -> Finding:
    """A finding on `entry`; `pointer` names the field, the line is the document's.

    `core.validate.located` finds the field's own line where the file is at hand.
    """
    where = entry.object
    problem = Problem(where.path, where.line, 1, code, message, pointer, hint, str(where.ref))
    return Finding(problem, (where.ref, *involved))


@dataclass(frozen=True)
class World:
    """Tables by scope path, and the groups that cross-checks walk.

    `members` are the instances of an allocation, `leases` the active allocations of a node,
    `registered` the Artifacts of one `repository@digest`, `offers` an app's active versions.
    `quarantined` objects exist in the
    repo but are not accepted.
    """

    environments: Table[EnvironmentSpec]
    tenants: Table[TenantSpec]
    projects: Table[ProjectSpec]
    nodes: Table[NodeSpec]
    apps: Table[AppSpec]
    versions: Table[AppVersionSpec]
    promotions: Table[PromotionSpec]
    entitlements: Table[EntitlementSpec]
    allocations: Table[AllocationSpec]
    artifacts: Table[ArtifactSpec]
    instances: Table[AppInstanceSpec]
    quarantined: frozenset[ObjectRef]
    holding: Mapping[InstanceKey, tuple[str, ...]]
    members: Mapping[Path, tuple[Entry[AppInstanceSpec], ...]] = field(init=False)
    leases: Mapping[str, tuple[Entry[AllocationSpec], ...]] = field(init=False)
    registered: Mapping[str, tuple[Entry[ArtifactSpec], ...]] = field(init=False)
    offers: Mapping[str, tuple[str, ...]] = field(init=False)
    _near: dict[tuple[str, Path], str] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "members", _members(self.instances))
        object.__setattr__(self, "leases", _leases(self.allocations))
        object.__setattr__(self, "registered", _registered(self.artifacts))
        object.__setattr__(self, "offers", _offers(self.promotions))

    def table(self, kind: str) -> Mapping[Path, Entry[Part]]:
        return self.tables[kind]

    @property
    def tables(self) -> Mapping[str, Mapping[Path, Entry[Part]]]:
        return {
            "Environment": self.environments,
            "Tenant": self.tenants,
            "Project": self.projects,
            "Node": self.nodes,
            "App": self.apps,
            "AppVersion": self.versions,
            "Promotion": self.promotions,
            "Entitlement": self.entitlements,
            "Allocation": self.allocations,
            "Artifact": self.artifacts,
            "AppInstance": self.instances,
        }

    def did_you_mean(self, kind: str, path: Path) -> str:
        """A hint naming the nearest object of that kind in the same scope; empty when none is."""
        cached = self._near.get((kind, path))
        if cached is not None or len(self._near) >= HINTS_MAX:
            return cached or ""
        scope = path[:-1]
        siblings = (known[-1] for known in self.table(kind) if known[:-1] == scope)
        near = nearest(path[-1], siblings)
        self._near[kind, path] = hint = f"did you mean {near}?" if near else ""
        return hint


def build_world(
    objects: Mapping[ObjectRef, StateObject],
    quarantined: frozenset[ObjectRef],
    holding: Mapping[InstanceKey, tuple[str, ...]],
) -> World:
    grouped: dict[str, list[StateObject]] = defaultdict(list)
    for ref in sorted(objects, key=lambda ref: ref.path):
        grouped[ref.kind].append(objects[ref])
    return World(
        environments=_table(grouped["Environment"], EnvironmentSpec),
        tenants=_table(grouped["Tenant"], TenantSpec),
        projects=_table(grouped["Project"], ProjectSpec),
        nodes=_table(grouped["Node"], NodeSpec),
        apps=_table(grouped["App"], AppSpec),
        versions=_table(grouped["AppVersion"], AppVersionSpec),
        promotions=_table(grouped["Promotion"], PromotionSpec),
        entitlements=_table(grouped["Entitlement"], EntitlementSpec),
        allocations=_table(grouped["Allocation"], AllocationSpec),
        artifacts=_table(grouped["Artifact"], ArtifactSpec),
        instances=_table(grouped["AppInstance"], AppInstanceSpec),
        quarantined=quarantined,
        holding=holding,
    )


def _table(objects: list[StateObject], spec_type: type[S]) -> Table[S]:
    return {
        found.ref.path: Entry(found, spec)
        for found in objects
        if isinstance(spec := found.manifest.spec, spec_type)
    }


def _members(
    instances: Table[AppInstanceSpec],
) -> Mapping[Path, tuple[Entry[AppInstanceSpec], ...]]:
    groups: dict[Path, list[Entry[AppInstanceSpec]]] = defaultdict(list)
    for path, entry in instances.items():
        if entry.spec.desired != "decommissioned":
            groups[*path[:2], entry.spec.placement_intent.allocation].append(entry)
    return {path: tuple(group) for path, group in groups.items()}


def _leases(allocations: Table[AllocationSpec]) -> Mapping[str, tuple[Entry[AllocationSpec], ...]]:
    groups: dict[str, list[Entry[AllocationSpec]]] = defaultdict(list)
    for entry in allocations.values():
        if entry.spec.state == "active":
            groups[entry.spec.node].append(entry)
    return {node: tuple(group) for node, group in groups.items()}


def _offers(promotions: Table[PromotionSpec]) -> Mapping[str, tuple[str, ...]]:
    groups: dict[str, list[str]] = defaultdict(list)
    for (app, version), entry in promotions.items():
        if entry.spec.state == "active":
            groups[app].append(version)
    return {app: tuple(versions) for app, versions in groups.items()}


def _registered(artifacts: Table[ArtifactSpec]) -> Mapping[str, tuple[Entry[ArtifactSpec], ...]]:
    groups: dict[str, list[Entry[ArtifactSpec]]] = defaultdict(list)
    for entry in artifacts.values():
        if entry.spec.repository is not None:
            groups[f"{entry.spec.repository}@{entry.spec.digest}"].append(entry)
    return {key: tuple(group) for key, group in groups.items()}
