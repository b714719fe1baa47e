"""What a pull request changes, and which problems it brings: one checked revision against another.

Rules: pure. Problems are told apart by code, object (or file) and field, never by line, so that a
line added above moves nothing. An object whose document can't be read was not removed.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from reconciler.core.changes import unread
from reconciler.core.desired import Candidate, StateObject
from reconciler.core.kinds.app_instance import AppInstanceSpec
from reconciler.core.kinds.environment import EnvironmentSpec
from reconciler.core.names import ObjectRef
from reconciler.core.parse import ParseLimits
from reconciler.core.problems import Problem, identity
from reconciler.core.promotion_steps import (
    CHANGED_IN_PLACE,
    ILLEGAL_STEP,
    STEPS,
    changed_in_place,
    illegal,
    promotion_of,
)
from reconciler.core.validate import invalid_objects, located
from reconciler.use_cases.compare import on_top
from reconciler.use_cases.validation import Checked

Verb = Literal["added", "changed", "removed", "unreadable"]
Objects = Mapping[ObjectRef, StateObject]
_STEPS = (ILLEGAL_STEP, CHANGED_IN_PLACE)


@dataclass(frozen=True, order=True)
class Change:
    """One object that means something else than at the base; unreadable: nobody can tell."""

    object: str
    verb: Verb
    path: str


@dataclass(frozen=True)
class Review:
    """`problems` are those of the head, sorted; `introduced` those that the base did not have.

    `fixed` counts what the base had and the head has no more.
    """

    base: str
    problems: tuple[Problem, ...]
    introduced: frozenset[Problem]
    fixed: int
    changes: tuple[Change, ...]


def review(
    base: Checked,
    head: Checked,
    limits: ParseLimits,
    environment: str = "",
    authority: Sequence[Problem] = (),
    steps_max: int | None = None,
) -> Review:
    """Compares two checks; `environment` narrows whose guards count, empty: any.

    `authority`: what nobody who made it may do (`use_cases.authority_review`). `steps_max`: how far
    a version or artifact may have gone, one step a commit; None: as far as it likes.
    """
    found = [*_only_compared(base, head, environment)]
    told = {problem.object for problem in authority if problem.code in _STEPS}
    steps = (*_illegal_steps(base, head, steps_max), *_in_place(base, head, steps_max))
    found += [one for one in steps if one.object not in told]
    compared = located(found, head.snapshot, limits)
    only_here = {*compared, *authority}
    introduced = {*_introduced(base.problems, head.problems), *only_here}
    already = len(head.problems) - len(introduced.intersection(head.problems))
    return Review(
        base=base.revision,
        problems=tuple(sorted({*head.problems, *only_here})),
        introduced=frozenset(introduced),
        fixed=len(base.problems) - already,
        changes=tuple(sorted(_changes(base.candidate, head.candidate))),
    )


def _introduced(before: Sequence[Problem], now: Sequence[Problem]) -> Iterator[Problem]:
    """As many of each identity as there were are not new: those with the same words first."""
    known = Counter(map(identity, before))
    same_words = Counter((identity(problem), problem.message) for problem in before)
    others: dict[tuple[str, str, str], list[Problem]] = defaultdict(list)
    for problem in now:
        name = identity(problem)
        if same_words[name, problem.message] > 0:
            same_words[name, problem.message] -= 1
            known[name] -= 1
        else:
            others[name].append(problem)
    for name, problems in others.items():
        yield from problems[known[name] :]


def _changes(base: Candidate, head: Candidate) -> Iterator[Change]:
    before, now = base.objects, head.objects
    unreadable, was_unreadable = invalid_objects(head), invalid_objects(base)
    hidden, was_hidden = unread(head, before), unread(base, now)
    for ref, found in now.items():
        if ref in unreadable:
            continue
        if ref not in before:
            unknown = ref in was_unreadable or ref in was_hidden
            yield Change(str(ref), "changed" if unknown else "added", found.path)
        elif before[ref] is not found and before[ref].document != found.document:
            yield Change(str(ref), "changed", found.path)
    for ref, found in before.items():
        if ref in now and ref not in unreadable:
            continue
        unknown = ref in unreadable or ref in hidden
        yield Change(str(ref), "unreadable" if unknown else "removed", found.path)


def _only_compared(base: Checked, head: Checked, environment: str) -> Iterator[Problem]:
    """Problems that neither side has alone."""
    before, now = base.candidate.objects, head.candidate.objects
    known = {*before, *invalid_objects(base.candidate)}
    hidden = unread(head.candidate, before)
    gone = [found for ref, found in before.items() if ref not in now and ref not in hidden]
    if any(found.ref.kind == "AppInstance" for found in gone):
        found_on_top = on_top(base.candidate, head.candidate, environment)
        yield from (problem for problem in found_on_top if problem.code == "looks_renamed")
    if _tombstones(now, environment):
        yield from _without_tombstone(gone, before, now)
    for ref, found in now.items():
        if ref.kind == "AppInstance":
            yield from _moved_from_nowhere(before.get(ref), found, known)


def _illegal_steps(base: Checked, head: Checked, steps_max: int | None) -> Iterator[Problem]:
    """A base without anything is the beginning, where everything may stand anywhere."""
    before, now = base.candidate.objects, head.candidate.objects
    unclear = {*invalid_objects(base.candidate), *invalid_objects(head.candidate)}
    unclear |= {*unread(head.candidate, before), *unread(base.candidate, now)}
    moved = {ref for ref in (*before, *now) if ref.kind in STEPS} - unclear if before else set()
    for ref in sorted(moved):
        was, found = before.get(ref), now.get(ref)
        after = found.document if found else None
        wrong = illegal(ref, was.document if was else None, after, steps_max)
        if wrong is None:
            continue
        message, hint = wrong
        if found is not None:
            yield _at(found, ILLEGAL_STEP, message, "/spec/state", hint)
        elif was is not None:
            yield Problem(was.path, 0, 0, ILLEGAL_STEP, message, "", hint, str(ref))


def _in_place(base: Checked, head: Checked, steps_max: int | None) -> Iterator[Problem]:
    """What a version ran that was offered at the base. Nobody takes the unreadable for removed."""
    before, now = base.candidate.objects, head.candidate.objects
    unclear = {*invalid_objects(head.candidate), *unread(head.candidate, before)}
    for ref, was in before.items():
        if ref.kind != "AppVersion" or ref in unclear:
            continue
        found, promotion = now.get(ref), promotion_of(ref)
        forms = (was.document, found.document if found else None)
        promotions = (_document(before, promotion), _document(now, promotion))
        for wrong in changed_in_place(ref, forms, promotions, steps_max):
            if found is not None:
                yield _at(found, CHANGED_IN_PLACE, wrong.message, wrong.pointer, wrong.hint)
            else:
                words = (CHANGED_IN_PLACE, wrong.message, "", wrong.hint)
                yield Problem(was.path, 0, 0, *words, str(ref))


def _document(objects: Objects, ref: ObjectRef) -> Mapping[str, object] | None:
    found = objects.get(ref)
    return found.document if found is not None else None


def _tombstones(objects: Objects, environment: str) -> bool:
    return any(
        isinstance(spec := found.manifest.spec, EnvironmentSpec) and spec.guards.tombstones
        for ref, found in objects.items()
        if ref.kind == "Environment" and environment in ("", ref.name)
    )


def _without_tombstone(
    gone: Iterable[StateObject], before: Objects, now: Objects
) -> Iterator[Problem]:
    # What has a life of its own already, or ends its own, follows from nobody.
    moved = {
        (*ref.path[:2], spec.moved_from)
        for ref, found in now.items()
        if isinstance(spec := found.manifest.spec, AppInstanceSpec)
        and spec.desired != "decommissioned"
        and not _live(before.get(ref))
    }
    for found in gone:
        spec = found.manifest.spec
        if not isinstance(spec, AppInstanceSpec) or spec.desired == "decommissioned":
            continue
        if found.ref.path in moved:
            continue
        yield Problem(
            found.path,
            0,
            0,
            "tombstone_missing",
            f"{found.ref} is removed without having been decommissioned",
            hint="guards.tombstones is on: set desired: decommissioned, and remove the file later",
            object=str(found.ref),
        )


def _live(found: StateObject | None) -> bool:
    spec = found.manifest.spec if found is not None else None
    return isinstance(spec, AppInstanceSpec) and spec.desired != "decommissioned"


def _moved_from_nowhere(
    was: StateObject | None, found: StateObject, known: Collection[ObjectRef]
) -> Iterator[Problem]:
    """A new `moved_from` takes over what the base has; later it may stay in the file."""
    spec = found.manifest.spec
    former = spec.moved_from if isinstance(spec, AppInstanceSpec) else None
    if former is None or (was is not None and _spec(was).get("moved_from") == former):
        return
    origin = ObjectRef("AppInstance", (*found.ref.path[:2], former))
    if origin not in known:
        message = f"moved from {origin}, which the base does not have"
        hint = "name an instance that is there, or take moved_from out"
        yield _at(found, "moved_from_unknown", message, "/spec/moved_from", hint)


def _at(found: StateObject, code: str, message: str, pointer: str, hint: str) -> Problem:
    return Problem(found.path, found.line, 1, code, message, pointer, hint, str(found.ref))


def _spec(found: StateObject) -> Mapping[str, object]:
    spec = found.document.get("spec")
    return spec if isinstance(spec, Mapping) else {}
