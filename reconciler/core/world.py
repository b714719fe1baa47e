"""The objects of one revision, grouped once so that every check is a look-up.

Rules:
- Tables are sorted by path, groups by what they are grouped by; none ever changes once built.
- A world is built from the one before: an object that is the same object (`is`) keeps its Entry, a
  table or group without any change is the same table or group. What is derived from them can be
  kept as long as they are the same, and a comparison costs nothing.
- A `Finding` is a Problem and the objects whose newest form may be what is wrong: acceptance puts
  those back to their last accepted form.
- A decommissioned instance takes no capacity and is checked by nobody: it can always be removed.
- An instance's further members stand among the instances, each an entry of its own
  (`core.members`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any, Generic, NamedTuple, TypeVar

from reconciler.core.desired import StateObject
from reconciler.core.kinds.allocation import AllocationSpec
from reconciler.core.kinds.app import AppSpec
from reconciler.core.kinds.app_instance import AppInstanceSpec
from reconciler.core.kinds.app_version import AppVersionSpec
from reconciler.core.kinds.artifact import ArtifactSpec
from reconciler.core.kinds.base import Part
from reconciler.core.kinds.entitlement import EntitlementSpec
from reconciler.core.kinds.environment import EnvironmentSpec
from reconciler.core.kinds.fleet_policy import FleetPolicySpec
from reconciler.core.kinds.identity import IdentitySpec
from reconciler.core.kinds.node import NodeSpec
from reconciler.core.kinds.platform_release import PlatformReleaseSpec
from reconciler.core.kinds.project import ProjectSpec
from reconciler.core.kinds.promotion import PromotionSpec
from reconciler.core.kinds.role_binding import RoleBindingSpec
from reconciler.core.kinds.service_account import ServiceAccountSpec
from reconciler.core.kinds.tenant import TenantSpec
from reconciler.core.kinds.trust_policy import TrustPolicySpec
from reconciler.core.members import KIND as INSTANCE
from reconciler.core.members import MemberSpec, further_members, member_path
from reconciler.core.names import InstanceKey, ObjectRef, nearest
from reconciler.core.problems import Problem

S = TypeVar("S", bound=Part)
S_co = TypeVar("S_co", bound=Part, covariant=True)
K = TypeVar("K")
Path = tuple[str, ...]
HINTS_MAX = 100
"""Words looked up for a did-you-mean hint: a look-up walks all known names."""


class Entry(NamedTuple, Generic[S_co]):
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
Group = tuple[Entry[S], ...]
Paths = Set[Path]


@dataclass(frozen=True)
class Finding:
    """A problem and every object involved; the first is the culprit that the problem names.

    `blocks`: what depends on the culprit can't go ahead. Nobody involved: it is told, no more.
    """

    problem: Problem
    involved: tuple[ObjectRef, ...]
    blocks: bool = True


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


_FIELDS: Mapping[str, str] = {
    "Environment": "environments",
    "Tenant": "tenants",
    "Project": "projects",
    "Node": "nodes",
    "App": "apps",
    "AppVersion": "versions",
    "Promotion": "promotions",
    "Entitlement": "entitlements",
    "Allocation": "allocations",
    "Artifact": "artifacts",
    "AppInstance": "instances",
    "TrustPolicy": "trust_policies",
    "Identity": "identities",
    "RoleBinding": "role_bindings",
    "FleetPolicy": "fleet_policies",
    "PlatformRelease": "releases",
    "ServiceAccount": "service_accounts",
}
"""Kind → the World's table of it."""


@dataclass(frozen=True)
class World:
    """Tables by scope path, and the groups that cross-checks walk.

    `members` are the instances of an allocation, `alike` those of one project, app, version and
    allocation (decommissioned ones included; further members of instances also of one role and of
    one allocation of the first), `linked` those that name another. `leases` are the
    active allocations of a node, `registered` the Artifacts of one `repository@digest` or
    `artifact_store://…@digest`, `offers` an app's active versions. `quarantined` objects exist in
    the repo but are not accepted. `objects` is what it was built from, `changed` what differs from
    the world before, by kind.
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
    trust_policies: Table[TrustPolicySpec]
    identities: Table[IdentitySpec]
    role_bindings: Table[RoleBindingSpec]
    fleet_policies: Table[FleetPolicySpec]
    releases: Table[PlatformReleaseSpec]
    service_accounts: Table[ServiceAccountSpec]
    quarantined: frozenset[ObjectRef] = frozenset()
    holding: Mapping[InstanceKey, tuple[str, ...]] = field(default_factory=dict)
    members: Mapping[Path, Group[AppInstanceSpec]] = field(default_factory=dict)
    alike: Mapping[Path, Group[AppInstanceSpec]] = field(default_factory=dict)
    linked: Table[AppInstanceSpec] = field(default_factory=dict)
    leases: Mapping[str, Group[AllocationSpec]] = field(default_factory=dict)
    registered: Mapping[str, Group[ArtifactSpec]] = field(default_factory=dict)
    offers: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    objects: Mapping[ObjectRef, StateObject] = field(default_factory=dict, repr=False)
    changed: Mapping[str, Paths] = field(default_factory=dict, repr=False)
    _near: dict[tuple[str, Path], str] = field(init=False, default_factory=dict)

    def table(self, kind: str) -> Mapping[Path, Entry[Part]]:
        found: Mapping[Path, Entry[Part]] = getattr(self, _FIELDS[kind])
        return found

    @property
    def tables(self) -> Mapping[str, Mapping[Path, Entry[Part]]]:
        return {kind: self.table(kind) for kind in _FIELDS}

    def only_changed(self) -> World:
        """What differs from the world before, for checks that look at each object by itself."""
        tables: dict[str, Any] = {}
        for kind, name in _FIELDS.items():
            table, paths = self.table(kind), self.changed.get(kind, frozenset())
            whole = len(paths) >= len(table)
            tables[name] = (
                table if whole else {path: table[path] for path in sorted(paths) if path in table}
            )
        return World(**tables, quarantined=self.quarantined)

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
    before: World | None = None,
) -> World:
    """The world of `objects`; what they share with those of `before` is taken over from there."""
    changed = _changes(objects, before.objects if before else {})
    further = _further(changed, objects, before)
    tables: dict[str, Any] = {
        kind: _updated(
            kind, before.table(kind) if before else {}, changed.get(kind), objects, further
        )
        for kind in _FIELDS
    }

    def grouped(field_name: str, kind: str, key_of: Callable[[Any], K | None]) -> Any:
        groups = getattr(before, field_name) if before else {}
        old = before.table(kind) if before else {}
        return _regrouped(groups, old, tables[kind], changed.get(kind), key_of)

    return World(
        **{name: tables[kind] for kind, name in _FIELDS.items()},
        quarantined=quarantined,
        holding=holding,
        members=grouped("members", "AppInstance", _allocation_of),
        alike=grouped("alike", "AppInstance", likeness_of),
        linked=_linked(before, tables["AppInstance"], changed.get("AppInstance")),
        leases=grouped("leases", "Allocation", _node_of),
        registered=grouped("registered", "Artifact", _image_of),
        offers=before.offers
        if before and "Promotion" not in changed
        else _offers(tables["Promotion"]),
        objects=dict(objects),
        changed=changed,
    )


def _changes(
    objects: Mapping[ObjectRef, StateObject], before: Mapping[ObjectRef, StateObject]
) -> dict[str, Paths]:
    """By kind, the paths whose object is another one, new or gone."""
    differing = [ref for ref, found in objects.items() if before.get(ref) is not found]
    differing += [ref for ref in before if ref not in objects]
    changed: dict[str, set[Path]] = defaultdict(set)
    for kind, path in differing:
        changed[kind].add(path)
    return {**changed}


def _further(
    changed: dict[str, Paths], objects: Mapping[ObjectRef, StateObject], before: World | None
) -> Mapping[ObjectRef, StateObject]:
    """The further members of the instances that changed; they and those that are gone changed."""
    known = before.instances if before else {}
    made: dict[ObjectRef, StateObject] = {}
    gone: set[Path] = set()
    for path in changed.get(INSTANCE, ()):
        old, found = known.get(path), objects.get(ObjectRef(INSTANCE, path))
        if old is not None and old.spec.members:
            gone.update(member_path(path, member.name) for member in old.spec.members)
        if found is not None:
            made.update((one.ref, one) for one in further_members(found))
    if made or gone:
        changed[INSTANCE] = {*changed[INSTANCE], *gone, *(ref.path for ref in made)}
    return made


def _updated(
    kind: str,
    before: Mapping[Path, Entry[Any]],
    paths: Paths | None,
    objects: Mapping[ObjectRef, StateObject],
    further: Mapping[ObjectRef, StateObject],
) -> Mapping[Path, Entry[Any]]:
    if not paths:
        return before
    table = dict(before)
    for path in paths:
        ref = ObjectRef(kind, path)
        found = objects.get(ref) or further.get(ref)
        if found is None:
            del table[path]
        else:
            table[path] = Entry(found, found.manifest.spec)
    return _sorted_like(before, table)


def _regrouped(
    groups: Mapping[K, Group[Any]],
    before: Mapping[Path, Entry[Any]],
    table: Mapping[Path, Entry[Any]],
    paths: Paths | None,
    key_of: Callable[[Any], K | None],
) -> Mapping[K, Group[Any]]:
    """The groups after a change of `paths`; those that it does not touch stay the same tuples."""
    if not paths:
        return groups
    joined: dict[K, list[Entry[Any]]] = defaultdict(list)
    for path in sorted(paths):
        left, found = before.get(path), table.get(path)
        if left is not None and (key := key_of(left)) is not None:
            joined[key] += ()
        if found is not None and (key := key_of(found)) is not None:
            joined[key].append(found)
    after = dict(groups)
    for key, fresh in joined.items():
        stayed = [entry for entry in groups.get(key, ()) if entry.path not in paths]
        after[key] = tuple(sorted([*stayed, *fresh], key=_path_of) if stayed else fresh)
        if not after[key]:
            del after[key]
    return _sorted_like(groups, after)


def _sorted_like(before: Mapping[K, Any], after: dict[K, Any]) -> dict[K, Any]:
    """In the order of its keys, which a change of values alone does not disturb."""
    if after.keys() <= before.keys():
        return after
    return dict(sorted(after.items(), key=itemgetter(0)))


def _path_of(entry: Entry[Any]) -> Path:
    return entry.object.ref.path


def _allocation_of(entry: Entry[AppInstanceSpec]) -> Path | None:
    if entry.spec.desired == "decommissioned":
        return None
    return (*entry.path[:2], entry.spec.placement_intent.allocation)


def likeness_of(entry: Entry[AppInstanceSpec]) -> Path:
    """(tenant, project, app, version, allocation), and of a further member (…, its role, the
    allocation of the first).
    """
    spec = entry.spec
    alike = (*entry.path[:2], spec.app, spec.version, spec.placement_intent.allocation)
    return (*alike, spec.role, spec.first_allocation) if isinstance(spec, MemberSpec) else alike


def _node_of(entry: Entry[AllocationSpec]) -> str | None:
    return entry.spec.node if entry.spec.state == "active" else None


def _image_of(entry: Entry[ArtifactSpec]) -> str | None:
    """What versions name it by: an image or a blob, which never look alike."""
    return f"{entry.spec.repository or entry.spec.source}@{entry.spec.digest}"


def _linked(
    before: World | None, instances: Table[AppInstanceSpec], paths: Paths | None
) -> Table[AppInstanceSpec]:
    known = before.linked if before else {}
    if not paths:
        return known
    linked = {path: entry for path, entry in known.items() if path not in paths}
    for path in paths:
        entry = instances.get(path)
        if entry is None or isinstance(entry.spec, MemberSpec):
            continue  # A further member depends on what its instance does, and says no more.
        if entry.spec.depends_on or entry.spec.moved_from:
            linked[path] = entry
    return dict(sorted(linked.items(), key=itemgetter(0)))


def _offers(promotions: Table[PromotionSpec]) -> Mapping[str, tuple[str, ...]]:
    groups: dict[str, list[str]] = defaultdict(list)
    for (app, version), entry in promotions.items():
        if entry.spec.state == "active":
            groups[app].append(version)
    return {app: tuple(versions) for app, versions in groups.items()}
