"""Which form of each object counts now: the newest one, or the last one that was accepted.

Rules:
- Acceptance is per object. One with a problem keeps its last accepted form, and so does what
  depends on it; a new one is not accepted. The rest of the revision goes ahead.
- An object in a file that can't be read is neither changed nor deleted, and nothing is removed in
  the scope (project, tenant, app) of a document that is invalid.
- Who a deletion takes rights from loses them, whatever is broken beside: its commit was signed.
- Where signed commits were walked, their word on trust is the last one: nothing that is broken, or
  points nowhere, brings back a form which they replaced.
- An instance that may only be misplaced or renamed is not taken for removed (`core.doubt`).
- An instance whose last accepted form doesn't resolve either is held: neither launched, nor
  changed, nor removed.
- A revision without one manifest, or without the Environment, changes nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from operator import itemgetter
from typing import Protocol, runtime_checkable

from node_agent.wire import Workload
from reconciler.core.checks.capacity import Holding
from reconciler.core.desired import (
    BlobWish,
    Candidate,
    Desired,
    Guards,
    Instance,
    Revoked,
    StateObject,
    Stepped,
    Target,
    Term,
)
from reconciler.core.doubt import former_of, keep_doubted
from reconciler.core.first_choice import first_choice, is_trust_decided
from reconciler.core.forms import (
    Forms,
    FormsMemo,
    ParseAccepted,
    parse_accepted,
    to_stored,
)
from reconciler.core.guarding import key_wishes, term_of
from reconciler.core.kinds.base import Part
from reconciler.core.kinds.environment import EnvironmentSpec
from reconciler.core.kinds.project import ProjectSpec
from reconciler.core.kinds.promotion import PromotionSpec
from reconciler.core.names import (
    InstanceKey,
    ObjectRef,
    Revision,
    instance_key,
    instance_of,
    manifest_ref,
    member_name,
)
from reconciler.core.problems import Problem
from reconciler.core.records import Accepted, AuditEntry, StepBack
from reconciler.core.resolve import Resolution, resolve
from reconciler.core.steps_taken import IN_USE, Bounds, keep_to_steps, with_versions
from reconciler.core.trust.rules import TrustRules

ROUNDS_MAX = 8
"""Rounds of putting back single objects; from then on a project goes back as a whole, so that a
long chain of changes that wait for each other can't stall a pass."""
_COMPETING = ("AppInstance", "Allocation")


@runtime_checkable
class CannotRender(Protocol):
    """A renderer's refusal, as a value."""

    @property
    def code(self) -> str: ...

    @property
    def message(self) -> str: ...


Render = Callable[[Instance], Workload | CannotRender]


@dataclass
class Rendered:
    """By instance, the last word of a renderer, with the instance and the name it was for."""

    render: Render | None = None
    made: dict[InstanceKey, tuple[Instance, InstanceKey, Target | CannotRender]] = field(
        default_factory=dict
    )


@dataclass(frozen=True)
class AcceptedState:
    """What counts now. `accepted` is to be stored; `held` says why an instance is left as it is."""

    revision: Revision
    accepted: Accepted
    instances: Mapping[InstanceKey, Instance]
    held: Mapping[InstanceKey, str]
    problems: tuple[Problem, ...]
    nodes: frozenset[str]
    guards: Guards
    environment: EnvironmentSpec | None
    suspended: Mapping[str, Term] = field(default_factory=dict)
    rendered: Rendered = field(default_factory=Rendered, compare=False, repr=False)
    """What was rendered of it already; see `to_desired`."""
    audit: tuple[AuditEntry, ...] = ()
    """What is to be told when it is stored, and then only."""
    unread: frozenset[str] = frozenset()
    """Names of objects that a file bears which could not be read, or is not read at all."""
    retiring: bool = False
    """Whether something waits until it is used no more, so that the revision is to be read again.
    """
    trust: TrustRules = field(default_factory=TrustRules)
    revoked: Revoked = field(default_factory=dict)
    prefetch: tuple[BlobWish, ...] = ()
    unverified: str = ""
    """These as in `Desired`."""
    rejected: str = ""
    """The newer revision that this one stands in for."""
    objects: Mapping[ObjectRef, StateObject] = field(
        default_factory=dict, compare=False, repr=False
    )
    """All that counts, in the form that counts."""
    canaries: tuple[StateObject, ...] = ()
    """The Promotions of versions in canary that go back by themselves when they fail."""
    step_backs: tuple[StepBack, ...] = ()
    stepped: Mapping[InstanceKey, Stepped] = field(default_factory=dict)
    """Both as in `Desired`; empty before `core.step_back` looked at records."""


@dataclass
class AcceptMemo:
    """Held by whoever accepts one revision after another, and passed in each time.

    Changed in place, for the reasons given in `core.resolve.ResolveMemo`.
    """

    forms: FormsMemo = field(default_factory=FormsMemo)
    rendered: Rendered = field(default_factory=Rendered)


def accept(
    candidate: Candidate,
    last: Accepted,
    parse: ParseAccepted,
    environment: str,
    holding: Holding | None = None,
    memo: AcceptMemo | None = None,
    *,
    storing: bool = True,
    bounds: Bounds | None = None,
) -> AcceptedState:
    """Merges a revision into what was accepted before, object by object, and resolves the result.

    `holding` are the GPUs of each instance by its record: pass it, or adding an instance may move
    the GPUs of another in the same allocation. Problems are all those of the revision, sorted. A
    `memo` makes it cheap where little changed, and changes nothing of what comes out. Who is not
    `storing` it spares the making of what to store: `accepted` stays the last one. Without `bounds`
    the states of versions and artifacts may go anywhere.
    """
    memo = memo or AcceptMemo()
    forms = Forms(memo.forms.last(last), parse, memo.forms)
    problems = {*candidate.problems, *first_choice(candidate, forms)}
    kept = [*keep_to_steps(forms, candidate, last.revision, bounds)] if bounds else []
    problems |= {*kept}
    resolution = _settle(forms, environment, candidate, holding or {}, problems)
    problems |= {*forms.unreadable.values()}
    if resolution.environment is None:
        return _nothing_changes(candidate, last, forms, resolution, problems, holding or {})
    return AcceptedState(
        revision=candidate.revision,
        accepted=forms.accepted(candidate.revision) if storing else last,
        instances=resolution.instances,
        held=_held(
            forms,
            resolution,
            dict(_back_unaccepted(forms, candidate, holding or {})),
            holding or {},
        ),
        problems=tuple(sorted(problems)),
        nodes=resolution.nodes,
        guards=_guards(forms, resolution, environment),
        environment=resolution.environment,
        suspended=_suspended_projects(forms),
        rendered=memo.rendered,
        unread=frozenset(candidate.unread),
        retiring=any(problem.code in IN_USE for problem in kept),
        objects=forms.chosen,
        canaries=_canaries(forms),
        trust=resolution.trust,
        revoked=resolution.revoked,
        prefetch=resolution.prefetch,
        unverified=_unverified(resolution, environment),
    )


def _canaries(forms: Forms) -> tuple[StateObject, ...]:
    found = sorted(item for item in forms.chosen.items() if item[0].kind == "Promotion")
    return tuple(one for _, one in found if _steps_back(one.manifest.spec))


def _steps_back(spec: Part) -> bool:
    if not isinstance(spec, PromotionSpec) or spec.state != "canary" or spec.canary is None:
        return False
    return spec.canary.step_back is not None


def _guards(forms: Forms, resolution: Resolution, environment: str) -> Guards:
    """While the Environment's newest form is not accepted, nobody knows what it would have held
    back: nothing is removed.
    """
    if ObjectRef("Environment", (environment,)) in forms.settled:
        return replace(resolution.guards, removals_max=0)
    return resolution.guards


def to_desired(
    state: AcceptedState, render: Render, names: Mapping[InstanceKey, InstanceKey] | None = None
) -> Desired:
    """The state with a workload for each instance; one that can't be rendered is held, and with it
    what it was called before.

    `names` are what nodes call instances that have another name with us (`plan.moves`). Only what
    changed since the last call is rendered.
    """
    targets: dict[InstanceKey, Target] = {}
    held = dict(state.held)
    for key, (instance, _, rendered) in _render(state, render, names or {}).items():
        if isinstance(rendered, Target):
            targets[key] = rendered
            continue
        held[key] = f"{rendered.code}: {rendered.message}"
        if instance.moved_from is not None:
            held.setdefault(instance.moved_from, f"{key} takes its place, and is held")
    return Desired(
        state.revision,
        targets,
        state.nodes,
        state.guards,
        dict(sorted(held.items())),
        state.suspended,
        key_wishes(state.environment) if state.environment is not None else {},
        trust=state.trust,
        revoked=state.revoked,
        prefetch=state.prefetch,
        unverified=state.unverified,
        step_backs=state.step_backs,
        stepped=state.stepped,
    )


def _unverified(resolution: Resolution, environment: str) -> str:
    """Who has no channels need not hear that none is asked for."""
    spec = resolution.environment
    asks = spec is None or spec.trust is not None
    return "" if asks or not resolution.trust.channels else environment


def _render(
    state: AcceptedState, render: Render, names: Mapping[InstanceKey, InstanceKey]
) -> Mapping[InstanceKey, tuple[Instance, InstanceKey, Target | CannotRender]]:
    before = state.rendered.made if state.rendered.render is render else {}
    made = {}
    for key, instance in sorted(state.instances.items(), key=itemgetter(0)):
        name, known = names.get(key, key), before.get(key)
        if known is None or known[0] is not instance or known[1] != name:
            found = render(replace(instance, key=name) if name != key else instance)
            target = Target(instance, found) if isinstance(found, Workload) else found
            known = (instance, name, target)
        made[key] = known
    state.rendered.render, state.rendered.made = render, made
    return made


# --- the rest: what the objects say of each other ------------------------------------------------


def _settle(
    forms: Forms,
    environment: str,
    candidate: Candidate,
    holding: Holding,
    problems: set[Problem],
) -> Resolution:
    """Puts back what has a problem until the rest resolves. Every round puts back one at least."""
    for number in itertools.count():
        found = resolve(
            forms.chosen,
            environment,
            candidate.revision,
            quarantined=forms.dropped,
            holding=holding,
            memo=forms.memo.resolved,
        )
        problems |= {*found.problems}
        if found.environment is None:
            return found
        blocked = {_instance_ref(key): why for key, why in found.blocked.items()}
        reasons = {**blocked, **found.blamed}
        back = {
            ref: why
            for ref, why in sorted(reasons.items())
            if forms.changed(ref) and not is_trust_decided(ref, candidate)
        }
        if not back:
            doubted = keep_doubted(forms, candidate, holding, forms.dropped)
            if not doubted:
                break
            problems |= {*doubted}
            continue
        back = with_versions(forms, back)
        if number >= ROUNDS_MAX:
            back = _widened(forms, back)
        named = {problem.object for problem in found.problems}
        for ref, why in back.items():
            if str(ref) not in named:
                problems.add(_waits(forms.chosen[ref], why))
            former = former_of(forms.chosen[ref])
            forms.put_back(ref, why)
            if former is not None and former in forms.last and former not in forms.chosen:
                # Half a rename is no removal: what was to be moved stays what it was.
                forms.put_back(former, f"{ref} was to take its place, and is not accepted")
    return found


def _widened(forms: Forms, back: Mapping[ObjectRef, str]) -> dict[ObjectRef, str]:
    """All that changed in the projects whose instances and allocations go back."""
    owners = {r.path[:2] for r in back if r.kind in _COMPETING}
    more = [r for r in forms.chosen if r.kind in _COMPETING and r.path[:2] in owners]
    why = "too many changes in its project wait for one that has a problem"
    return dict(sorted(({r: why for r in more if forms.changed(r)} | {**back}).items()))


def _instance_ref(key: InstanceKey) -> ObjectRef:
    return manifest_ref(key)


def _waits(found: StateObject, why: str) -> Problem:
    return Problem(found.path, found.line, 1, "not_accepted", why, object=str(found.ref))


def _back_unaccepted(
    forms: Forms, candidate: Candidate, holding: Holding
) -> Iterator[tuple[InstanceKey, str]]:
    """What was deleted before, runs still, and is back in a form that is not accepted, with why.

    Its teardown may have been held back until now; its manifest says that it is wanted.
    """
    for ref, why in forms.settled.items():
        if ref.kind == "AppInstance" and ref not in forms.last and instance_key(ref) in holding:
            yield instance_key(ref), f"not accepted: {why}"
        found = candidate.objects.get(ref)
        former = former_of(found) if found is not None else None
        if former is not None and former not in forms.last and former not in forms.chosen:
            yield instance_key(former), f"{ref} was to take its place, and is not accepted: {why}"
    for key in sorted(holding) if candidate.unread or not candidate.objects else ():
        ref = _instance_ref(key)
        if ref in forms.last or ref in forms.chosen:
            continue
        if not candidate.objects:
            yield key, "the revision holds no manifest"
        elif ref.name in candidate.unread:
            yield key, f"{candidate.unread[ref.name]}, which is not read, may hold it"


def _held(
    forms: Forms, resolution: Resolution, back: dict[InstanceKey, str], holding: Holding
) -> dict[InstanceKey, str]:
    blocked = resolution.blocked.items()
    held = back | {key: why for key, why in blocked if _instance_ref(key) in forms.last}
    for key in list(held):
        found = forms.chosen.get(_instance_ref(key))
        former = former_of(found) if found is not None else None
        if former is not None and former not in forms.chosen:
            held.setdefault(instance_key(former), f"{key} takes its place, and is held")
    for ref, problem in forms.unreadable.items():
        if ref.kind == "AppInstance":
            held[instance_key(ref)] = f"{problem.code}: {problem.message}"
    return dict(sorted({**_of_members(held, holding), **held}.items()))


def _of_members(held: Mapping[InstanceKey, str], holding: Holding) -> dict[InstanceKey, str]:
    """An instance is held with all its members, whatever its manifest says of them now."""
    return {
        key: held[instance_of(key)]
        for key in holding
        if member_name(key) and instance_of(key) in held
    }


def _suspended_projects(forms: Forms) -> dict[str, Term]:
    """By `tenant/project`, whether that is over or not."""
    return {
        "/".join(ref.path): term_of(spec.suspend)
        for ref, found in sorted(item for item in forms.chosen.items() if item[0].kind == "Project")
        if isinstance(spec := found.manifest.spec, ProjectSpec) and spec.suspend is not None
    }


def _nothing_changes(
    candidate: Candidate,
    last: Accepted,
    forms: Forms,
    resolution: Resolution,
    problems: set[Problem],
    holding: Holding,
) -> AcceptedState:
    """Without the Environment no instance resolves: all are held, and nothing is accepted.

    Nobody knows its guards either, so that removals which were waiting go on waiting.
    """
    why = next(f"{p.code}: {p.message}" for p in resolution.problems)
    known = {*forms.last, *candidate.objects}
    keys = sorted(instance_key(ref) for ref in known if ref.kind == "AppInstance")
    held = dict.fromkeys(keys, why)
    return AcceptedState(
        revision=candidate.revision,
        accepted=last,
        instances={},
        held=dict(sorted({**_of_members(held, holding), **held}.items())),
        problems=tuple(sorted(problems)),
        nodes=resolution.nodes | {ref.name for ref in forms.last if ref.kind == "Node"},
        guards=Guards(removals_max=0),
        environment=None,
        unread=frozenset(candidate.unread),
    )


__all__ = [
    "AcceptMemo",
    "AcceptedState",
    "CannotRender",
    "Render",
    "accept",
    "parse_accepted",
    "to_desired",
    "to_stored",
]
