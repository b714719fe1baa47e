"""Objects of one revision in, instances with every reference resolved out.

Rules:
- Nothing raises: all problems come at once, each naming its culprit.
- An instance is either in `instances` or in `blocked`, with the reason: a problem of its own or
  one of something it depends on. Only a decommissioned one whose references are gone is in neither.
- Same objects, same answer. The only memory is `holding`: which GPUs an instance has now, so that
  it keeps them (see `core.checks.capacity`).
- Who wants to know what is wrong and no more calls `problems_of`: then no instance is made.
- A `ResolveMemo` makes the next answer cheap and never another one: what it keeps is taken over
  where everything it was made from is the same object as before (`is`), and made anew elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from operator import is_, itemgetter

from reconciler.core.batches import (
    SHARED,
    Batch,
    batch_of,
    demand_in,
    launches_of,
    refers_of,
)
from reconciler.core.blobs import wishes_of
from reconciler.core.checks import capacity, catalog, references, secret_files, services
from reconciler.core.checks import members as member_checks
from reconciler.core.checks.capacity import Demand, Holding, PortClaim
from reconciler.core.checks.catalog import Launch
from reconciler.core.checks.instances import (
    OWN_CHECKS,
    Case,
)
from reconciler.core.checks.world_checks import Found, world_findings
from reconciler.core.desired import BlobWish, Guards, Instance, Revoked, StateObject
from reconciler.core.guarding import guards_of
from reconciler.core.kinds.allocation import AllocationSpec
from reconciler.core.kinds.app_instance import AppInstanceSpec
from reconciler.core.kinds.environment import EnvironmentSpec
from reconciler.core.members import members_of
from reconciler.core.names import (
    InstanceKey,
    ObjectRef,
    Revision,
    instance_key,
    nearest,
)
from reconciler.core.problems import Problem
from reconciler.core.trust.build import rules_of
from reconciler.core.trust.rules import TrustRules
from reconciler.core.world import Entry, Finding, Group, Path, World, build_world, likeness_of

Member = Entry[AppInstanceSpec]
_OWN = (*OWN_CHECKS, *member_checks.OWN_CHECKS, *secret_files.OWN_CHECKS, *services.OWN_CHECKS)


@dataclass(frozen=True)
class Resolution:
    """What one revision comes to; `trust` and `revoked` as in `Desired`.

    `blocked` are instances that don't resolve, with why. `blamed` are all objects involved in a
    problem, with the problem: the culprits, and what may have made them so.
    """

    revision: Revision
    instances: Mapping[InstanceKey, Instance]
    nodes: frozenset[str]
    guards: Guards
    environment: EnvironmentSpec | None
    problems: tuple[Problem, ...]
    blocked: Mapping[InstanceKey, str] = field(default_factory=dict)
    blamed: Mapping[ObjectRef, str] = field(default_factory=dict)
    trust: TrustRules = field(default_factory=TrustRules)
    revoked: Revoked = field(default_factory=dict)
    prefetch: tuple[BlobWish, ...] = ()


Stale = Mapping[Path, Batch]
"""Instances of which something is new, by path, with the batch they are in."""


@dataclass(frozen=True, slots=True)
class _Share:
    """An allocation and those in it: whether they fit, and the host ports they ask for."""

    lease: Entry[AllocationSpec]
    members: Group[AppInstanceSpec]
    findings: tuple[Finding, ...]
    ports: tuple[PortClaim, ...]


@dataclass
class _Kept:
    """Everything of the last resolution that the next may take over; tables by instance."""

    world: World | None = None
    launches: Mapping[Path, Launch] = field(default_factory=dict)
    found: Found = field(default_factory=dict)
    batches: dict[Path, Batch] = field(default_factory=dict)
    shares: dict[Path, _Share] = field(default_factory=dict)
    holders: Mapping[str, int] = field(default_factory=dict)
    demands: dict[Path, Demand] = field(default_factory=dict)
    faulty: set[Path] = field(default_factory=set)
    gpus: dict[InstanceKey, tuple[str, ...]] = field(default_factory=dict)
    built: dict[InstanceKey, Instance] = field(default_factory=dict)
    trust: TrustRules = field(default_factory=TrustRules)
    revoked: Revoked = field(default_factory=dict)
    prefetch: tuple[BlobWish, ...] = ()
    channels: tuple[tuple[object, ...], tuple[Finding, ...]] = ((), ())
    """What `catalog.check_channels` read last, and what it found."""
    unbuilt: set[Path] = field(default_factory=set)
    """Instances to be made anew by who wants them next, and in `unshared` the allocations whose
    GPUs are to be shared out before."""
    unshared: set[Path] = field(default_factory=set)

    def forget(self, path: Path) -> None:
        key = InstanceKey("/".join(path))
        self.demands.pop(path, None)
        self.faulty.discard(path)
        self.unbuilt.discard(path)
        self.gpus.pop(key, None)
        self.built.pop(key, None)


@dataclass
class ResolveMemo:
    """Held by whoever resolves one revision after another, and passed in each time.

    A cache that is changed in place, and belongs to its caller: handing out a new one each time
    would copy tables of a hundred thousand instances to replace one. It is taken out while it is
    worked on, so that after an exception nothing half-done is left.
    """

    _kept: _Kept | None = field(default=None, repr=False)

    def take(self) -> _Kept:
        kept, self._kept = self._kept or _Kept(), None
        return kept

    def put_back(self, kept: _Kept) -> None:
        self._kept = kept


def resolve(
    objects: Mapping[ObjectRef, StateObject],
    environment: str,
    revision: Revision,
    *,
    quarantined: frozenset[ObjectRef] = frozenset(),
    holding: Holding | None = None,
    memo: ResolveMemo | None = None,
) -> Resolution:
    """Resolves everything for the Environment called `environment`.

    `quarantined` objects are in the repo but not accepted: a reference to one says so.
    """
    memo = memo or ResolveMemo()
    kept = memo.take()
    world = build_world(objects, quarantined, holding or {}, kept.world)
    named = world.environments.get((environment,))
    if named is None:
        return _without_environment(world, environment, revision)
    findings = _findings(kept, world, named.spec)
    _build(kept, world)
    blocked = _blocked(kept, world, _culprits(findings))
    instances = {**kept.built}
    for key in blocked:
        instances.pop(key, None)
    memo.put_back(kept)
    return Resolution(
        revision=revision,
        instances=instances,
        nodes=frozenset(entry.name for entry in world.nodes.values()),
        guards=guards_of(named.spec),
        environment=named.spec,
        problems=_told(findings),
        blocked=blocked,
        blamed=_blamed(findings),
        trust=kept.trust,
        revoked=kept.revoked,
        prefetch=kept.prefetch,
    )


def problems_of(
    objects: Mapping[ObjectRef, StateObject],
    environment: str,
    revision: Revision,
    *,
    quarantined: frozenset[ObjectRef] = frozenset(),
    memo: ResolveMemo | None = None,
) -> tuple[Problem, ...]:
    """The problems that `resolve` finds where nothing is held, without what else it makes."""
    memo = memo or ResolveMemo()
    kept = memo.take()
    world = build_world(objects, quarantined, {}, kept.world)
    named = world.environments.get((environment,))
    if named is None:
        return _without_environment(world, environment, revision).problems
    findings = _findings(kept, world, named.spec)
    memo.put_back(kept)
    return _told(findings)


def _findings(kept: _Kept, world: World, environment: EnvironmentSpec) -> list[Finding]:
    """All that is wrong; brings `kept` up to `world`, apart from the instances to be made."""
    stale = _look_up(kept, world, environment)
    findings = [
        *_missing_references(kept, world),
        *world_findings(world, kept.world, kept.found),
        *catalog.check_launch_schema(world, kept.launches),
        *_channels(kept, world, environment),
    ]
    _ask_for_shares(kept, world, stale)
    shares = sorted(kept.shares.items())
    findings += [found for _, share in shares for found in share.findings]
    claims = (claim for _, share in shares for claim in share.ports)
    findings += [*capacity.check_host_ports(claims), *_instance_findings(kept, world, stale)]
    findings = member_checks.told_of_manifests(findings, world)
    kept.unbuilt |= stale.keys()
    _trusted(kept, world)
    if not {"Allocation", "Artifact", "Node"}.isdisjoint(world.changed):
        kept.prefetch = wishes_of(world)
    kept.world = world
    return findings


def _channels(kept: _Kept, world: World, environment: EnvironmentSpec) -> tuple[Finding, ...]:
    """What is wrong with the channels of what is offered; asked again once any of it changed."""
    read = (environment, world.promotions, world.versions, world.registered)
    before, found = kept.channels
    if len(before) != len(read) or not all(map(is_, before, read)):
        found = tuple(catalog.check_channels(world, environment))
        kept.channels = (read, found)
    return found


def _trusted(kept: _Kept, world: World) -> None:
    """Brings up to date what is trusted, and what is so no more."""
    before = kept.world
    if before is None or before.trust_policies is not world.trust_policies:
        policies = ((entry.name, entry.spec) for entry in world.trust_policies.values())
        kept.trust = rules_of(policies)
    if not {"Artifact", "AppVersion", "Project"}.isdisjoint(world.changed):
        kept.revoked = catalog.revocations(world)


def _told(findings: list[Finding]) -> tuple[Problem, ...]:
    return tuple(sorted({found.problem for found in findings}))


def _why_none(world: World, environment: str) -> tuple[str, str]:
    """What to say of an environment that there is not, and what to do."""
    known = sorted(entry.name for entry in world.environments.values())
    broken = sorted(ref.name for ref in world.quarantined if ref.kind == "Environment")
    if environment in broken or (broken and not environment and not known):
        name = environment or broken[0]
        why = f"Environment/{name} is invalid, so nothing can be checked against it"
        return why, "mend it first"
    near = nearest(environment, known)
    hint = f"did you mean {near}?" if near else f"known: {', '.join(known)}"
    if not known:
        name = environment or "<name>"
        hint = f"no Environment is there: add environments/{name}.yaml, or look in another folder"
    why = f"Environment/{environment} does not exist" if environment else "no environment is named"
    return why, hint


def _without_environment(world: World, environment: str, revision: Revision) -> Resolution:
    what, hint = _why_none(world, environment)
    path = f"environments/{environment}.yaml" if environment else "environments"
    ref = f"Environment/{environment}" if environment else ""
    problem = Problem(path, 0, 0, "unknown_environment", what, hint=hint, object=ref)
    keys = [instance_key(entry.ref) for entry in world.instances.values()]
    return Resolution(
        revision=revision,
        instances={},
        nodes=frozenset(entry.name for entry in world.nodes.values()),
        guards=Guards(),
        environment=None,
        problems=(problem,),
        blocked=dict.fromkeys(keys, str(problem)),
    )


# --- what instances refer to ---------------------------------------------------------------------


def _look_up(kept: _Kept, world: World, environment: EnvironmentSpec) -> Stale:
    """Looks up what instances refer to. Returns those of which anything at all is new."""
    kept.launches = launches_of(world, kept.world, kept.launches)
    for path in sorted(world.changed.get("AppInstance", ())):
        if path not in world.instances:
            kept.forget(path)
    for likeness in sorted(kept.batches.keys() - world.alike.keys()):
        del kept.batches[likeness]
    stale: dict[Path, Batch] = {}
    for likeness, entries in world.alike.items():
        refers = refers_of(kept.launches, world, environment, likeness)
        batch = kept.batches.get(likeness)
        known: frozenset[int] = frozenset()
        if batch is not None and all(map(is_, batch.refers, refers)):
            if batch.entries is entries:
                continue
            known = frozenset(map(id, batch.entries))
        kept.batches[likeness] = batch = batch_of(kept.launches, world, entries, refers)
        stale.update({entry.path: batch for entry in entries if id(entry) not in known})
    for path, batch in stale.items():
        entry = world.instances[path]
        kept.demands[path] = demand_in(kept.launches, batch, entry)
        kept.gpus.pop(instance_key(entry.ref), None)
    return stale


# --- what is wrong with them ---------------------------------------------------------------------


def _missing_references(kept: _Kept, world: World) -> Iterator[Finding]:
    partial = sorted(likeness for likeness, b in kept.batches.items() if b.setting is None)
    for likeness in partial:
        for entry in kept.batches[likeness].entries:
            yield from references.check_instance(world, entry)


def _ask_for_shares(kept: _Kept, world: World, stale: Stale) -> None:
    """Brings up to date what is asked of each allocation, and notes whose GPUs may be others."""
    touched = {(*path[:2], batch.allocation) for path, batch in stale.items()}
    touched |= _disturbed(kept, world)
    shares: dict[Path, _Share] = {}
    for path, members in world.members.items():
        lease, share = world.allocations.get(path), kept.shares.get(path)
        if lease is None:
            continue
        same = share is not None and share.lease is lease and share.members is members
        if share is not None and same and path not in touched:
            shares[path] = share
            continue
        shares[path] = _Share(
            lease,
            members,
            tuple(capacity.check_members_fit(lease, members, kept.demands)),
            capacity.ports_asked(lease, members, kept.demands),
        )
        kept.unshared.add(path)
    kept.shares = shares


def _disturbed(kept: _Kept, world: World) -> set[Path]:
    """Allocations with a GPU that is held by others than before."""
    before = kept.world.holding if kept.world else {}
    if before == world.holding:
        return set()
    kept.holders = capacity.holders_of(world.holding)
    others = {gpu for _, held in before.items() ^ world.holding.items() for gpu in held}
    return {path for path, s in kept.shares.items() if not others.isdisjoint(s.lease.spec.gpus)}


def _instance_findings(kept: _Kept, world: World, stale: Stale) -> Iterator[Finding]:
    """Of those that are new, and those that had something wrong before."""
    for path in sorted(stale.keys() | kept.faulty):
        entry = world.instances[path]
        batch = stale[path] if path in stale else kept.batches[likeness_of(entry)]
        found = list(_checked(kept, world, batch, entry))
        if found:
            kept.faulty.add(path)
        else:
            kept.faulty.discard(path)
        yield from found


def _checked(kept: _Kept, world: World, batch: Batch, entry: Member) -> Iterator[Finding]:
    if batch.setting is None or entry.spec.desired == "decommissioned":
        return
    case = Case(world, batch.setting, entry, kept.demands[entry.path])
    for check in (*SHARED, *_OWN) if batch.faulty else _OWN:
        yield from check(case)


def _culprits(findings: Iterable[Finding]) -> dict[ObjectRef, str]:
    """The first problem of each culprit that blocks, as a reason."""
    reasons: dict[ObjectRef, str] = {}
    for found in findings:
        if found.blocks:
            reason = f"{found.problem.code}: {found.problem.message}"
            reasons.setdefault(found.involved[0], reason)
    return reasons


def _blamed(findings: Iterable[Finding]) -> dict[ObjectRef, str]:
    reasons: dict[ObjectRef, str] = {}
    for found in findings:
        problem = found.problem
        for ref in found.involved:
            reasons.setdefault(ref, f"{problem.object}: {problem.code}: {problem.message}")
    return reasons


def _blocked(
    kept: _Kept, world: World, culprits: Mapping[ObjectRef, str]
) -> dict[InstanceKey, str]:
    """Instances with a problem of their own, or that depend on something with one."""
    reasons: dict[Path, str] = {}
    for batch in kept.batches.values() if culprits else ():
        about = ((e.ref, culprits[e.ref]) for e in batch.there if e.ref in culprits)
        why = next((f"{ref}: {reason}" for ref, reason in about), None)
        if why is not None:
            reasons.update({entry.path: why for entry in batch.entries})
    for ref, why in culprits.items():
        if ref.kind == "AppInstance":
            reasons[ref.path] = why
    for path, why in list(reasons.items()):
        for one in members_of(world.instances, path):
            reasons.setdefault(one, why)
    return {
        InstanceKey("/".join(path)): why
        for path, why in sorted(reasons.items())
        if world.instances[path].spec.desired != "decommissioned"
    }


# --- what comes out ------------------------------------------------------------------------------


def _share_out(kept: _Kept, world: World) -> None:
    """Shares out what is leased, and notes the instances whose GPUs are others than before."""
    for path in sorted(kept.unshared & kept.shares.keys()):
        lease, members = kept.shares[path].lease, kept.shares[path].members
        gpus = capacity.assign_gpus(lease.spec, members, kept.demands, world.holding, kept.holders)
        for member in members:
            key = instance_key(member.ref)
            uuids = gpus.get(key, ())
            if uuids != kept.gpus.get(key, ()):
                kept.gpus[key] = uuids
                kept.unbuilt.add(member.path)
    kept.unshared = set()


def _build(kept: _Kept, world: World) -> None:
    """Makes anew what has to be; `kept.built` stays in the order of its keys."""
    from reconciler.core.build import build_instance  # noqa: PLC0415 - not for `problems_of`

    _share_out(kept, world)
    more = False
    for path in sorted(kept.unbuilt):
        entry = world.instances[path]
        batch = kept.batches[likeness_of(entry)]
        key = instance_key(entry.ref)
        if batch.setting is None:
            kept.built.pop(key, None)
            continue
        more = more or key not in kept.built
        case = Case(world, batch.setting, entry, kept.demands[path])
        kept.built[key] = build_instance(case, kept.gpus.get(key, ()))
    kept.unbuilt = set()
    if more:
        kept.built = dict(sorted(kept.built.items(), key=itemgetter(0)))
