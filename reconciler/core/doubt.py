"""What looks deleted but may only be misplaced or renamed: nothing is removed on a guess.

Rules, all for instances:
- One whose manifest is gone is believed gone, unless the same revision shows where it may have gone
  to: a file that bears its name, or its file's, and isn't read or can't be, or a new object of such
  a name or with the same spec that is not accepted. The name alone says nothing where another
  tenant's object can be read.
- One that is gone while a new one of its project says the very same is taken for renamed. Without
  `moved_from`, which would say so, neither does the old one go nor the new one come: not either
  when the old one is kept for another reason, lest both run.
- `desired: decommissioned` is never doubted.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping

from reconciler.core.checks.capacity import Holding
from reconciler.core.desired import Candidate, StateObject
from reconciler.core.forms import Forms
from reconciler.core.kinds.app_instance import AppInstance, AppInstanceSpec
from reconciler.core.misplaced import stem
from reconciler.core.names import ObjectRef, instance_key
from reconciler.core.problems import Problem

_KIND = "AppInstance"


def former_of(found: StateObject) -> ObjectRef | None:
    """What an instance was called before, by its manifest."""
    spec = found.manifest.spec
    if not isinstance(spec, AppInstanceSpec) or spec.moved_from is None:
        return None
    return ObjectRef(found.ref.kind, (*found.ref.path[:-1], spec.moved_from))


def keep_doubted(
    forms: Forms, candidate: Candidate, holding: Holding, dropped: Iterable[ObjectRef]
) -> tuple[Problem, ...]:
    """Puts back what may not be gone. No problem: nothing was put back."""
    gone = [ref for ref in forms.gone if ref.kind == _KIND]
    if not gone:
        return ()
    refused = {ref: candidate.objects.get(ref) for ref in sorted(dropped) if ref.kind == _KIND}
    said = {_said(one): ref for ref, one in reversed(refused.items()) if one is not None}
    twins = _likely_renames(forms, holding)
    problems: list[Problem] = []
    for ref in gone:
        last = forms.last_form(ref)
        if last is None or _ended(last):
            continue
        former = former_of(last)
        twin = twins.get((*ref.path[:2], _said(last)))
        if twin is not None and twin.ref in forms.chosen and twin.ref != former:
            problems += _taken_for_renamed(forms, last, twin)
        elif ref not in forms.settled:
            called = (ref.name, stem(last.path), former.name if former else ref.name)
            unread = next((candidate.unread[n] for n in called if n in candidate.unread), None)
            named = _named(ref, called, refused, forms)
            refusal = next(named, None) or said.get(_said(last))
            problems += _misplaced(forms, last, refusal, unread)
    return tuple(problems)


def _named(
    ref: ObjectRef,
    names: tuple[str, ...],
    refused: Mapping[ObjectRef, StateObject | None],
    forms: Forms,
) -> Iterator[ObjectRef]:
    """Refused objects that bear one of the names themselves, or whose file does."""
    for name in names:
        for other, found in refused.items():
            bears = other.name == name or (found is not None and stem(found.path) == name)
            if bears and _reaches(ref, other.path[0], forms):
                yield other


def _reaches(ref: ObjectRef, tenant: str, forms: Forms) -> bool:
    """Whether a slip may have put the object there. Another tenant that exists has names of its
    own, and must not be able to keep what is not its.
    """
    return tenant == ref.path[0] or ObjectRef("Tenant", (tenant,)) not in forms.last


def _likely_renames(forms: Forms, holding: Holding) -> dict[tuple[str, ...], StateObject]:
    """(tenant, project, what it says) → a new instance that does not say who it was."""
    new = (forms.chosen[ref] for ref in sorted(forms.chosen.keys() - forms.last.keys()))
    return {
        (*found.ref.path[:2], _said(found)): found
        for found in new
        if found.ref.kind == _KIND
        and former_of(found) is None
        and instance_key(found.ref) not in holding
    }


def _taken_for_renamed(forms: Forms, last: StateObject, twin: StateObject) -> Iterator[Problem]:
    name = last.ref.name
    hint = f"for a rename say moved_from: {name} there; else delete and add in two commits"
    why = f"{last.ref} is deleted, and this says the very same"
    forms.put_back(twin.ref, why)
    yield Problem(twin.path, twin.line, 1, "looks_renamed", why, "", hint, str(twin.ref))
    if last.ref not in forms.settled:
        yield _keep(forms, last, f"{twin.ref} is new and says the very same", hint)


def _misplaced(
    forms: Forms, last: StateObject, refusal: ObjectRef | None, unread: str | None
) -> Iterator[Problem]:
    if refusal is not None:
        hint = "mend that one first; what was really deleted goes then"
        yield _keep(forms, last, f"{refusal}, which may be meant to be it, is not accepted", hint)
    elif unread is not None:
        hint = f"put that file where it belongs, or delete it as well; it was {last.path}; "
        hint += "desired: decommissioned there is never doubted"
        yield _keep(forms, last, f"{unread}, which is not read, may hold it", hint)


def _keep(forms: Forms, last: StateObject, why: str, hint: str) -> Problem:
    forms.put_back(last.ref, why)
    message = f"{last.ref} is not removed: {why}"
    return Problem(last.path, 0, 0, "removal_suspended", message, "", hint, str(last.ref))


def _said(found: StateObject) -> str:
    """What it says of itself, whatever it is and was called."""
    spec = found.document.get("spec")
    rest = {k: v for k, v in spec.items() if k != "moved_from"} if isinstance(spec, dict) else spec
    return json.dumps(rest, sort_keys=True)


def _ended(found: StateObject) -> bool:
    return isinstance(found.manifest, AppInstance) and (
        found.manifest.spec.desired == "decommissioned"
    )
