"""What a revision may not do, or not yet, with the states of versions and artifacts.

Rules:
- Where signed commits were walked, they have been judged one by one. Elsewhere an object may have
  gone as many steps as there are commits since the form that was accepted last.
- Retired is nothing that still runs: until its last record is gone, the form before counts.
- What a version runs is judged with the commits, where those are walked. One whose Promotion is
  put back stays what that was of.
- What is accepted first of all begins anywhere, and revoking waits for nobody.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from reconciler.core.desired import Candidate
from reconciler.core.forms import Forms
from reconciler.core.names import InstanceKey, ObjectRef, Revision, manifest_ref
from reconciler.core.problems import Problem
from reconciler.core.promotion_steps import (
    CHANGED_IN_PLACE,
    ILLEGAL_STEP,
    STEPS,
    changed_in_place,
    illegal,
    promotion_of,
    state_of,
)
from reconciler.core.records import UNBEGUN, AcceptedObject, InstanceRecord, digests_of

IN_USE = frozenset(("artifact_in_use", "version_in_use"))
"""Problems that end by themselves once records say so."""
_NAMED_MAX = 3
CommitsSince = Callable[[Revision], int]


@dataclass(frozen=True)
class Use:
    """What an instance runs, or is on its way to or back from: versions of its app, and digests."""

    app: str
    versions: frozenset[str]
    digests: frozenset[str]


@dataclass(frozen=True)
class Bounds:
    """What bounds the steps that a revision may make. `commits_since` None: nobody knows how many
    commits there are, and any number of steps will do.
    """

    uses: Mapping[InstanceKey, Use] = field(default_factory=dict)
    commits_since: CommitsSince | None = None


def uses_of(records: Mapping[InstanceKey, InstanceRecord]) -> dict[InstanceKey, Use]:
    """Of all that a node has, or may have yet."""
    return {
        key: Use(
            record.app,
            frozenset((record.target_version, record.applied_version)) - {""},
            digests_of(record),
        )
        for key, record in records.items()
        if record.state not in UNBEGUN
    }


def keep_to_steps(
    forms: Forms, candidate: Candidate, accepted_at: Revision | None, bounds: Bounds
) -> Iterator[Problem]:
    """Puts back what went where it may not, with a problem for each; `accepted_at` is the revision
    that was accepted last.
    """
    if not forms.last:
        return
    changed = [ref for ref in forms.chosen if ref.kind in STEPS and forms.changed(ref)]
    gone = [ref for ref in forms.gone if ref.kind in STEPS and ref not in forms.settled]
    for ref in sorted((*changed, *gone)):
        found = forms.chosen.get(ref)
        stored = forms.last.get(ref)
        before = _document(stored)
        after = found.document if found is not None else None
        since = stored.revision if stored is not None else accepted_at
        walked = candidate.decided is not None
        wrong = None if walked else _step(ref, before, after, since, bounds)
        wrong = wrong or _in_use(ref, before, after, bounds.uses)
        if wrong is None:
            continue
        code, message, hint = wrong
        forms.put_back(ref, f"{code}: {message}")
        at = (found.path, found.line, 1) if found else (stored.path if stored else "", 0, 0)
        yield Problem(*at, code, message, "/spec/state" if found else "", hint, str(ref))
    yield from _keep_what_runs(forms)


def _keep_what_runs(forms: Forms) -> Iterator[Problem]:
    """Puts back versions that may not run something else below a Promotion that was put back."""
    changed = [ref for ref in forms.chosen if ref.kind == "AppVersion" and forms.changed(ref)]
    gone = [ref for ref in forms.gone if ref.kind == "AppVersion" and ref not in forms.settled]
    for ref in sorted((*changed, *gone)):
        stored, promotion = forms.last.get(ref), promotion_of(ref)
        if stored is None or promotion not in forms.settled:
            continue
        found = forms.chosen.get(ref)
        documents = (_document(stored), found.document if found else None)
        kept = _document(forms.last.get(promotion))
        for wrong in changed_in_place(ref, documents, (kept, kept))[:1]:
            forms.put_back(ref, f"{CHANGED_IN_PLACE}: {wrong.message}")
            at = (found.path, found.line, 1) if found else (stored.path, 0, 0)
            words = (CHANGED_IN_PLACE, wrong.message, wrong.pointer, wrong.hint)
            yield Problem(*at, *words, str(ref))


def with_versions(forms: Forms, back: Mapping[ObjectRef, str]) -> dict[ObjectRef, str]:
    """What goes back, and with each Promotion among it what that is of."""
    found = dict(back)
    for promotion, why in back.items():
        version = ObjectRef("AppVersion", promotion.path)
        if promotion.kind == "Promotion" and _is_swapped(forms, version, promotion):
            found.setdefault(version, f"{promotion} is not accepted: {why}")
    return dict(sorted(found.items()))


def _is_swapped(forms: Forms, ref: ObjectRef, promotion: ObjectRef) -> bool:
    if ref not in forms.last or not forms.changed(ref):
        return False
    documents = (_document(forms.last[ref]), forms.chosen[ref].document)
    before = _document(forms.last.get(promotion))
    return bool(changed_in_place(ref, documents, (before, before)))


def _commits(since: Revision | None, bounds: Bounds) -> int | None:
    count = bounds.commits_since
    return max(1, count(since)) if count is not None and since is not None else None


def _document(stored: AcceptedObject | None) -> Mapping[str, Any] | None:
    found: dict[str, Any] | None = json.loads(stored.document_json) if stored else None
    return found


_Wrong = tuple[str, str, str]
"""Code, message and hint."""


def _step(
    ref: ObjectRef,
    before: Mapping[str, Any] | None,
    after: Mapping[str, Any] | None,
    since: Revision | None,
    bounds: Bounds,
) -> _Wrong | None:
    wrong = illegal(ref, before, after)
    if wrong is not None:
        wrong = illegal(ref, before, after, _commits(since, bounds))
    return (ILLEGAL_STEP, *wrong) if wrong is not None else None


def _in_use(
    ref: ObjectRef,
    before: Mapping[str, Any] | None,
    after: Mapping[str, Any] | None,
    uses: Mapping[InstanceKey, Use],
) -> _Wrong | None:
    if state_of(ref.kind, after) != "retired" or state_of(ref.kind, before) in ("retired", ""):
        return None
    if ref.kind == "Promotion":
        app, version = ref.path
        users = [key for key, use in uses.items() if use.app == app and version in use.versions]
    else:
        digest = ((after or {}).get("spec") or {}).get("digest")
        users = [key for key, use in uses.items() if digest in use.digests]
    if not users:
        return None
    code = "version_in_use" if ref.kind == "Promotion" else "artifact_in_use"
    message = f"{ref} is not retired yet: it is still run by {names_of(users)}"
    return code, message, "it follows by itself, once they run something else or are taken down"


def names_of(keys: Iterable[InstanceKey]) -> str:
    """The first few instances, and how many there are beside."""
    named = [str(manifest_ref(key)) for key in sorted(keys)]
    more = len(named) - _NAMED_MAX
    return ", ".join(named[:_NAMED_MAX]) + (f" and {more} more" if more > 0 else "")
