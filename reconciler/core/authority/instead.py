"""A revision without the changes that were refused, as if they had not been made.

Rules:
- A refused change is nothing invalid. What counts instead is taken like any other form, and what is
  wrong with the refused one is told no more than that it is refused.
- A file that can't be read counts as what it held when it was read last, which may be less than
  what was accepted of it.
- It lets others remove nothing in its scope, unless it held nothing and all that is gone there was
  deleted by signed commits which did not touch it: then nobody has to guess.
- Of an object that trust is made of, no form comes back that a signed commit replaced. Where nobody
  can tell which form counts, none does.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace

from reconciler.core.authority.documents import as_object, digest_of
from reconciler.core.authority.facts import TRUST_KINDS, RefusedChange, Walked
from reconciler.core.desired import Candidate, StateObject
from reconciler.core.forms import parse_accepted, scope_of
from reconciler.core.misplaced import stem
from reconciler.core.names import ObjectRef, Revision
from reconciler.core.problems import Problem
from reconciler.core.records import Accepted
from reconciler.core.validate import invalid_objects

_Objects = dict[ObjectRef, StateObject]


def under_authority(candidate: Candidate, walked: Walked, last: Accepted) -> Candidate:
    """`candidate` with what counts instead of each refused change, and a problem for each."""
    refused = [one for _, one in sorted(walked.refused.items())]
    if not refused and not candidate.problems:
        return replace(candidate, decided=frozenset())
    objects = dict(candidate.objects)
    files = {one.path: one for one in refused if one.is_file}
    told = {one.subject for one in refused if not one.is_file}
    problems = {
        replace(problem, object="") if problem.path in files else problem
        for problem in candidate.problems
        if problem.object not in told
    }
    problems |= {_problem(one, candidate) for one in refused}
    decided: set[ObjectRef] = set()
    if files:
        problems |= {*_as_held(objects, files, last, decided, told)}
    for one in refused:
        if not one.is_file:
            problems |= {*_take_instead(objects, one, last)}
    judged = replace(candidate, problems=tuple(sorted(problems)), decided=frozenset(decided))
    _trust_before(objects, judged, walked, last)
    idle = {path for path, one in files.items() if _is_idle(one, judged, objects, walked, last)}
    if objects.keys() - candidate.objects:
        objects = dict(sorted(objects.items()))
    return replace(
        judged,
        objects=objects,
        broken_paths=candidate.broken_paths - idle,
        unread={name: path for name, path in candidate.unread.items() if path not in idle},
    )


def last_candidate(last: Accepted, problem: Problem) -> Candidate:
    """All that was accepted last, while the newest revision as a whole has a problem."""
    found = [parse_accepted(stored) for _, stored in sorted(last.objects.items())]
    unreadable = [one for one in found if isinstance(one, Problem)]
    objects = {one.ref: one for one in found if isinstance(one, StateObject)}
    return Candidate(
        revision=last.revision or Revision(""),
        objects=dict(sorted(objects.items())),
        problems=tuple(sorted((problem, *unreadable))),
    )


def _problem(refused: RefusedChange, candidate: Candidate) -> Problem:
    if refused.is_file:
        return Problem(refused.path, 0, 0, refused.code, refused.message, hint=refused.hint)
    found = candidate.objects.get(ObjectRef.parse(refused.subject))
    at = (found.path, found.line, 1) if found is not None else (refused.path, 0, 0)
    return Problem(*at, refused.code, refused.message, "", refused.hint, refused.subject)


def _take_instead(objects: _Objects, refused: RefusedChange, last: Accepted) -> Iterator[Problem]:
    ref = ObjectRef.parse(refused.subject)
    found, stored = objects.pop(ref, None), last.objects.get(refused.subject)
    if refused.form_json is None:
        return
    place = found or stored
    path, line = (place.path, place.line) if place is not None else (refused.path, 0)
    instead = _form(ref, path, line, refused.form_json, last)
    if isinstance(instead, Problem):
        yield instead
    else:
        objects[ref] = instead


def _form(ref: ObjectRef, path: str, line: int, text: str, last: Accepted) -> StateObject | Problem:
    stored = last.objects.get(str(ref))
    if stored is not None and stored.document_json == text:
        return parse_accepted(replace(stored, path=path, line=line))
    return as_object(ref, path, line, text)


# --- files that can't be read --------------------------------------------------------------------


def _as_held(
    objects: _Objects,
    files: dict[str, RefusedChange],
    last: Accepted,
    decided: set[ObjectRef],
    told: set[str],
) -> Iterator[Problem]:
    """What can still be read of these files does not count, but what they held before."""
    for ref in [ref for ref, found in objects.items() if found.path in files]:
        del objects[ref]
    for path, refused in sorted(files.items()):
        for subject, text in sorted(_held(refused).items()):
            ref, stored = ObjectRef.parse(subject), last.objects.get(subject)
            if ref in objects or subject in told:
                continue
            at = (path, 0)
            if stored is not None and (stored.path == path or stored.document_json == text):
                at = (stored.path, stored.line)
            found = _form(ref, *at, text, last)
            if isinstance(found, Problem):
                yield found
            else:
                objects[ref] = found
                decided.add(ref)


def _held(refused: RefusedChange) -> dict[str, str]:
    """By object, the canonical JSON that a file held when it was read last."""
    held: dict[str, str] = json.loads(refused.form_json or "{}")
    return held


def _is_idle(
    refused: RefusedChange,
    candidate: Candidate,
    objects: _Objects,
    walked: Walked,
    last: Accepted,
) -> bool:
    """Whether nothing that is gone may have been meant to be in this file."""
    if _held(refused):
        return False
    deleted = {str(c.ref): c.revision for c in walked.changes if not c.refusal and not c.after}
    if refused.revision in deleted.values():
        return False
    scope = scope_of(refused.path)
    names = {name for name, path in candidate.unread.items() if path == refused.path}
    there = {str(ref) for ref in objects}
    return not any(
        f"{stored.path}/".startswith(f"{scope}/" if scope else "")
        or not names.isdisjoint((ObjectRef.parse(subject).name, stem(stored.path)))
        for subject, stored in last.objects.items()
        if subject not in there and subject not in deleted and not _is_trust(subject)
    )


# --- trust ---------------------------------------------------------------------------------------


def _is_trust(subject: str) -> bool:
    return subject.partition("/")[0] in TRUST_KINDS


def _trust_before(objects: _Objects, candidate: Candidate, walked: Walked, last: Accepted) -> None:
    """Of trust in a form that is not valid, the form before counts, as the walk has it."""
    twice = {one.object for one in candidate.problems if one.code == "duplicate_object"}
    for ref in invalid_objects(candidate):
        if ref.kind not in TRUST_KINDS or ref in objects:
            continue
        found = _last_word(str(ref), walked, last, unseen=str(ref) in twice)
        if found is not None:
            objects[ref] = found


def _last_word(subject: str, walked: Walked, last: Accepted, *, unseen: bool) -> StateObject | None:
    """The form before the newest one: that accepted last, unless commits replaced it since.

    `unseen`: the newest form may be a valid one, that stands where nobody can tell it apart.
    """
    stored = last.objects.get(subject)
    if stored is None or not _still_counts(
        (one.after for one in walked.changes if str(one.ref) == subject and not one.refusal),
        digest_of(stored.document_json),
        unseen=unseen,
    ):
        return None
    found = parse_accepted(stored)
    return found if isinstance(found, StateObject) else None


def _still_counts(afters: Iterable[str], accepted: str, *, unseen: bool) -> bool:
    forms = [accepted, *afters]
    return (forms if unseen or len(forms) == 1 else forms[:-1])[-1] == accepted
