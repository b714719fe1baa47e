"""Which state of a version or an artifact may follow on which: two tables, and questions to them.

Rules:
- One commit makes one step. What stands in neither table nobody may do, whoever he is.
- Not to be there is a state: the tables say where something begins, and when it may go.
- What an artifact stands for changes while it is published, and never after: whoever agreed to its
  promotion has agreed to one digest.
- What a version runs changes while it is not offered yet, for the same reason. It goes when nobody
  is offered it any more.
- Pure, and about manifests that may be invalid: a state that can't be made out is no step.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

from reconciler.core.kinds import KINDS
from reconciler.core.names import ObjectRef, nearest

ILLEGAL_STEP: Final = "illegal_step"
CHANGED_IN_PLACE: Final = "version_changed_in_place"
ABSENT: Final = ""
"""The state of what is not there."""

Steps = Mapping[str, tuple[str, ...]]
"""State → the states that may follow on it."""

VERSION_STEPS: Steps = {
    ABSENT: ("draft", "staged"),
    "draft": ("staged", ABSENT),
    "staged": ("canary",),
    "canary": ("active", "staged"),
    "active": ("deprecated",),
    "deprecated": ("retired",),
    "retired": (ABSENT,),
}
"""Of a Promotion."""
ARTIFACT_STEPS: Steps = {
    ABSENT: ("published",),
    "published": ("promoted", "revoked", ABSENT),
    "promoted": ("deprecated", "revoked"),
    "deprecated": ("retired", "revoked"),
    "retired": (ABSENT,),
    "revoked": (),
}
"""Of an Artifact. A revoked one stays: whoever removed it could register its digest anew."""
STEPS: Mapping[str, Steps] = {"Artifact": ARTIFACT_STEPS, "Promotion": VERSION_STEPS}
"""By kind."""

COMMITS_MAX: Final = 16
"""Of more commits nobody needs to know: no way between two states is as long."""
_STANDS_FOR = ("kind", "repository", "source", "digest")
"""Fields of an Artifact's spec; a Promotion has none of them."""
_WHAT_RUNS = ("artifact_ref", "artifact_kind", "runtime_profile")
"""Fields of an AppVersion's spec."""
_MAY_CHANGE = (ABSENT, "draft", "staged")
_MAY_GO = (*_MAY_CHANGE, "retired")
"""States of its Promotion while a version may run something else, and while it may be removed."""
Manifest = Mapping[str, Any]


class Illegal(NamedTuple):
    """Why something may not become what it is to be."""

    message: str
    hint: str


def next_states(kind: str, state: str) -> tuple[str, ...]:
    """What may follow, without leaving it as it is."""
    return STEPS[kind][state]


def way(kind: str, before: str, after: str) -> tuple[str, ...] | None:
    """The states of the shortest way, both ends included; None where none leads there."""
    ways: list[tuple[str, ...]] = [(before,)]
    reached = {before}
    for found in ways:
        if found[-1] == after:
            return found
        for state in STEPS[kind][found[-1]]:
            if state not in reached:
                reached.add(state)
                ways.append((*found, state))
    return None


def illegal(
    ref: ObjectRef,
    before: Manifest | None,
    after: Manifest | None,
    steps_max: int | None = 1,
) -> Illegal | None:
    """Why `after` can't be made of `before` in that many commits; None where it can be.

    A document that is None is not there. `steps_max` None: in any number of them, of which none
    removed it.
    """
    if ref.kind not in STEPS or before == after:
        return None
    new = state_of(ref.kind, after)
    if new is None:
        return _no_state(ref, after)
    # What never was valid was never accepted.
    old = state_of(ref.kind, before) or ABSENT
    changed = _changed(before, after) if old and new else ""
    if changed and not _may_stand_for_another(old, new, steps_max):
        return _stands_for_another(ref, old, new, changed)
    found = way(ref.kind, old, new)
    if found is None or not (len(found) - 1 <= steps_max if steps_max else _stays(found)):
        return _told(ref, old, new, found, steps_max)
    return None


def state_of(kind: str, document: Manifest | None) -> str | None:
    """The state that a manifest asks for; None where nobody can tell."""
    if document is None:
        return ABSENT
    spec = document.get("spec")
    state = spec.get("state") if isinstance(spec, Mapping) else None
    return state if isinstance(state, str) and state and state in STEPS[kind] else None


def _changed(before: Manifest | None, after: Manifest | None) -> str:
    """The first of the fields that say what it stands for which is another; empty for none."""
    old, new = (before or {})["spec"], (after or {})["spec"]
    return next((name for name in _STANDS_FOR if old.get(name) != new.get(name)), "")


def _may_stand_for_another(old: str, new: str, steps_max: int | None) -> bool:
    """In a commit of its own while it is published; else once it was removed, and is back."""
    if old == "published":
        found = way("Artifact", old, new)
        return found is not None and (steps_max is None or len(found) <= steps_max)
    gone, back = way("Artifact", old, ABSENT), way("Artifact", ABSENT, new)
    if gone is None or back is None or steps_max is None:
        return False
    return len(gone) + len(back) - 2 <= steps_max


def _stays(states: tuple[str, ...]) -> bool:
    """Whether it is there all the way."""
    return ABSENT not in states[1:-1]


# --- what a version runs -------------------------------------------------------------------------


class InPlace(NamedTuple):
    """What of a version may not change now, and why. `field` is empty for all of it."""

    field: str
    message: str
    hint: str

    @property
    def pointer(self) -> str:
        return f"/spec/{self.field}" if self.field else ""


def promotion_of(version: ObjectRef) -> ObjectRef:
    """The Promotion of an AppVersion."""
    return ObjectRef("Promotion", version.path)


def changed_in_place(
    version: ObjectRef,
    forms: tuple[Manifest | None, Manifest | None],
    promotions: tuple[Manifest | None, Manifest | None],
    steps_max: int | None = 1,
) -> tuple[InPlace, ...]:
    """What may not become of an AppVersion in that many commits, by its Promotion before and after
    them; for one commit that is the one before it. `steps_max` None: nobody knows how many.
    """
    before, after = forms
    fields = _what_else_runs(before, after)
    allowed = _MAY_GO if after is None else _MAY_CHANGE
    if not fields or _comes_by(promotions, allowed, steps_max):
        return ()
    state = state_of("Promotion", promotions[0]) or ABSENT
    file = KINDS["AppVersion"].path_of((version.path[0], "<new version>"))
    hint = f"a version that is offered stays what was reviewed: add {file}"
    if after is None:
        hint = "retire it first: gpuaas retire"
        return (InPlace("", f"{version} can't be removed: it is {state}", hint),)
    if before is None:
        return (InPlace("", f"{version} comes when it is {state} already", hint),)
    changes = (f"{field} of {version} changes, which is {state} already" for field in fields)
    return tuple(map(InPlace, fields, changes, [hint] * len(fields)))


def _what_else_runs(before: Manifest | None, after: Manifest | None) -> tuple[str, ...]:
    if before is None or after is None:
        return () if before is after else _WHAT_RUNS
    old, new = _spec(before), _spec(after)
    return tuple(field for field in _WHAT_RUNS if old.get(field) != new.get(field))


def _comes_by(
    promotions: tuple[Manifest | None, Manifest | None],
    allowed: Iterable[str],
    steps_max: int | None,
) -> bool:
    """Whether a commit may have been made in one of these states. A Promotion that is as it was
    has made no step.
    """
    before, after = (state_of("Promotion", one) or ABSENT for one in promotions)
    if before in allowed:
        return True
    if steps_max is None or promotions[0] == promotions[1]:
        return False
    for state in allowed:
        there, on = way("Promotion", before, state), way("Promotion", state, after)
        # One commit more than steps led there, for the change; it may make the next step itself.
        if there and on and len(there) - 1 + max(1, len(on) - 1) <= steps_max:
            return True
    return False


def _spec(document: Manifest) -> Manifest:
    spec = document.get("spec")
    return spec if isinstance(spec, Mapping) else {}


# --- words ---------------------------------------------------------------------------------------


def _stands_for_another(ref: ObjectRef, old: str, new: str, field: str) -> Illegal:
    when = f"while it becomes {new}" if old == "published" else f"any more: it is {old}"
    hint = "register what is new as an Artifact of its own"
    return Illegal(f"{ref} has another {field}, which can't change {when}", hint)


def _no_state(ref: ObjectRef, document: Manifest | None) -> Illegal:
    states = [state for state in STEPS[ref.kind] if state]
    spec = (document or {}).get("spec")
    said = spec.get("state") if isinstance(spec, Mapping) else None
    near = nearest(said, states) if isinstance(said, str) else ""
    hint = f"did you mean {near}?" if near else f"states: {', '.join(states)}"
    return Illegal(f"nobody can tell the state of {ref}", hint)


def _told(
    ref: ObjectRef, old: str, new: str, found: tuple[str, ...] | None, steps_max: int | None
) -> Illegal:
    if found is not None and steps_max is not None and steps_max > 1:
        shown = arrows(found)
        message = f"{ref} takes {len(found) - 1} steps ({shown}), and there are {steps_max} commits"
        return Illegal(message, "one step a commit")
    if not old:
        message = f"{ref} can't begin as {new}: it begins as {_either(STEPS[ref.kind][ABSENT])}"
    elif not STEPS[ref.kind][old]:
        message = f"{ref} is {old}, and stays so"
    elif not new:
        message = f"{ref} is {old}, and can't be removed: {_follows(ref.kind, old)}"
    else:
        message = f"{ref} can't go from {old} to {new}: {_follows(ref.kind, old)}"
    return Illegal(message, _way_hint(ref, old, new, found))


def _follows(kind: str, state: str) -> str:
    return f"{_either(STEPS[kind][state])} may follow"


def _way_hint(ref: ObjectRef, old: str, new: str, found: tuple[str, ...] | None) -> str:
    if found is not None and _stays(found):
        return f"one step a commit: {arrows(found)}"
    if ref.kind == "Artifact":
        return "register what replaces it as an Artifact of its own"
    return "publish what replaces it as a version of its own" if old != new else ""


def arrows(states: tuple[str, ...]) -> str:
    """For people: `draft → staged → removed`."""
    ends = [state or ("removed" if place else "new") for place, state in enumerate(states)]
    return " → ".join(ends)


def _either(states: tuple[str, ...]) -> str:
    named = [state or "removal" for state in states]
    return " or ".join([", ".join(named[:-1]), named[-1]] if len(named) > 1 else named)
