"""Two snapshots of a state repo compared: what differs, and what that means for what runs.

Rule: the newer one is taken as the control plane would take it after the older one, object by
object, so that a broken file keeps what it held. No store, registry or node is asked.
"""

from __future__ import annotations

from collections.abc import Iterator

from reconciler.core.accept import AcceptedState, accept, to_desired
from reconciler.core.changes import changes, unread
from reconciler.core.desired import Candidate
from reconciler.core.effects import Comparison, Effect, effects
from reconciler.core.forms import parse_accepted
from reconciler.core.kinds.app_instance import AppInstanceSpec
from reconciler.core.names import ObjectRef, instance_key, member_key
from reconciler.core.problems import Problem
from reconciler.core.records import Accepted
from reconciler.core.schema import SchemaSet
from reconciler.core.source import Snapshot
from reconciler.core.validate import located, validate
from reconciler.settings import Settings
from renderers import render


def compare(
    before: Snapshot, after: Snapshot, schemas: SchemaSet, settings: Settings
) -> Comparison:
    """In the environment of `settings`, or in each that either side declares."""
    old = validate(before, schemas, settings.parse_limits)
    new = validate(after, schemas, settings.parse_limits)
    found: dict[str, tuple[Effect, ...]] = {}
    problems_old, problems_new = {*old.problems}, {*new.problems}
    for name in [settings.environment] if settings.environment else _environments(old, new):
        first = accept(old, Accepted(), parse_accepted, name)
        second = _after(first, new, name)
        asked = effects(to_desired(first, render), to_desired(second, render))
        found[name] = (*asked, *_not_launched(old, new, second))
        problems_old |= {*first.problems}
        problems_new |= {*second.problems}
    return Comparison(
        before=before.revision,
        after=after.revision,
        changes=changes(
            old.objects,
            new.objects,
            unread_before=unread(old, new.objects),
            unread_after=unread(new, old.objects),
        ),
        effects=found,
        problems_before=_placed(problems_old, before, settings),
        problems_after=_placed(problems_new, after, settings),
    )


def on_top(old: Candidate, new: Candidate, environment: str) -> tuple[Problem, ...]:
    """What accepting the newer one after the older finds wrong, in every environment or in one."""
    names = [environment] if environment else _environments(old, new)
    return tuple(
        problem
        for name in names
        for problem in _after(accept(old, Accepted(), parse_accepted, name), new, name).problems
    )


def _after(first: AcceptedState, new: Candidate, environment: str) -> AcceptedState:
    # GPUs that are in use stay where they are, as they would in the fleet; under a new name too.
    holding = {key: instance.gpu_uuids for key, instance in first.instances.items()}
    for ref, found in new.objects.items():
        spec = found.manifest.spec
        if isinstance(spec, AppInstanceSpec) and spec.moved_from:
            former = ObjectRef(ref.kind, (*ref.path[:-1], spec.moved_from))
            renamed = former not in new.objects and instance_key(ref) not in holding
            for name in ("", *(one.name for one in spec.members)) if renamed else ():
                was, now = (
                    member_key(key, name) if name else key
                    for key in (instance_key(former), instance_key(ref))
                )
                if was in holding:
                    holding[now] = holding.pop(was)
    return accept(new, first.accepted, parse_accepted, environment, holding)


def _not_launched(old: Candidate, new: Candidate, state: AcceptedState) -> Iterator[Effect]:
    """New instances that have a problem: without an earlier form nothing is done about them."""
    reasons: dict[str, str] = {}
    for problem in state.problems:
        reasons.setdefault(problem.object, f"not launched, {problem.code}: {problem.message}")
    for ref in new.objects:
        if ref.kind != "AppInstance" or ref in old.objects or str(ref) not in reasons:
            continue
        key = instance_key(ref)
        if key not in state.instances and key not in state.held:
            yield Effect("held", key, "", reasons[str(ref)])


def _environments(old: Candidate, new: Candidate) -> list[str]:
    refs = {*old.objects, *new.objects}
    return sorted(ref.name for ref in refs if ref.kind == "Environment")


def _placed(problems: set[Problem], snapshot: Snapshot, settings: Settings) -> tuple[Problem, ...]:
    return tuple(sorted(located(problems, snapshot, settings.parse_limits)))
