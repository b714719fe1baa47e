"""What the files of a revision alone decide, before anything is asked of other objects.

Rules: what is well-formed is taken. Nothing counts as deleted that may be in a file which can't be
read, or stands beside a document that is invalid. What signed commits say is believed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from reconciler.core.authority.facts import TRUST_KINDS
from reconciler.core.desired import Candidate
from reconciler.core.forms import Forms, folders_above, scope_of
from reconciler.core.names import ObjectRef
from reconciler.core.problems import Problem
from reconciler.core.records import AcceptedObject
from reconciler.core.validate import invalid_objects


def first_choice(candidate: Candidate, forms: Forms) -> Iterator[Problem]:
    """Takes what is well-formed, and keeps what the revision can't be believed to have deleted."""
    invalid = invalid_objects(candidate)
    forms.chosen.update(candidate.objects)
    for ref, why in sorted(invalid.items()):
        if not _is_decided(ref, candidate):
            forms.put_back(ref, why)
    for ref, found in candidate.objects.items() if candidate.broken_paths else ():
        broken = found.path in candidate.broken_paths and ref not in forms.settled
        if broken and not _is_decided(ref, candidate):
            forms.put_back(ref, f"{found.path} can't be read in full")
    empty = not candidate.objects and bool(forms.last)
    if empty:
        yield _empty_revision(len(forms.last))
    frozen = {scope_of(path) for path in (*candidate.broken_paths, *_paths(candidate, invalid))}
    forms.gone = tuple(sorted(forms.last.keys() - forms.chosen.keys() - forms.settled.keys()))
    for ref in forms.gone:
        if _is_decided(ref, candidate):
            continue
        stored = forms.last[ref]
        above = {*folders_above(stored.path)}
        if empty:
            forms.put_back(ref, "the revision holds no manifest")
        elif stored.path in candidate.broken_paths or above & candidate.broken_paths:
            forms.put_back(ref, f"{stored.path} can't be read")
        elif above & frozen and ref.kind not in TRUST_KINDS:
            forms.put_back(ref, f"{max(above & frozen, key=len) or 'the repo'} is in quarantine")
            yield _suspended(stored, max(above & frozen, key=len))


def _is_decided(ref: ObjectRef, candidate: Candidate) -> bool:
    """Whether signed commits say what it is, or that it is gone."""
    decided = candidate.decided
    return is_trust_decided(ref, candidate) or (decided is not None and ref in decided)


def is_trust_decided(ref: ObjectRef, candidate: Candidate) -> bool:
    """What trust refers to may be missing; what it no longer gives is not given again for that."""
    return candidate.decided is not None and ref.kind in TRUST_KINDS


def _paths(candidate: Candidate, invalid: Mapping[ObjectRef, str]) -> Iterator[str]:
    names = {str(ref) for ref in invalid}
    return (problem.path for problem in candidate.problems if problem.object in names)


def _suspended(stored: AcceptedObject, scope: str) -> Problem:
    message = f"{stored.ref} is not removed while a document in {scope or 'the repo'} is invalid"
    hint = "mend what is invalid there; the removal follows by itself"
    return Problem(stored.path, 0, 0, "removal_suspended", message, "", hint, stored.ref)


def _empty_revision(count: int) -> Problem:
    message = f"the revision holds no readable manifest, {count} were accepted before; all are kept"
    hint = "restore the files; to remove everything, decommission the instances first"
    return Problem(".", 0, 0, "empty_revision", message, "", hint)
