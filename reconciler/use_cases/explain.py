"""Why an object is as it is: each field that matters, what decided it, and whose commit that was.

Rules: pure, but for the commits it asks. The value comes from what is accepted, not from the newest
file; what the node reports stands beside it. What nobody could look at is said to be unknown.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from reconciler.core.accept import AcceptedState
from reconciler.core.authority.facts import RefusedChange
from reconciler.core.changes import ABSENT, dotted, field_changes, value_at
from reconciler.core.checks.references import REFERENCES
from reconciler.core.desired import StateObject
from reconciler.core.kinds.app_instance import AppInstanceSpec
from reconciler.core.members import further_members
from reconciler.core.names import ObjectRef, Revision, instance_key, member_key, nearest
from reconciler.core.problems import Problem
from reconciler.core.records import AcceptedObject
from reconciler.core.world import Entry
from reconciler.errors import Refused
from reconciler.use_cases.explained_fields import Deciding, Fields, Row, Subject
from reconciler.use_cases.history import Commits, blame
from reconciler.views.changes import value_text


@dataclass(frozen=True)
class Explanation:
    """`accepted` is the revision whose form counts, `newest` whether that is the head's form."""

    ref: ObjectRef
    head: Revision
    path: str
    line: int
    accepted: Revision | None
    newest: bool
    problems: tuple[Problem, ...]
    says: tuple[str, ...]
    rows: tuple[Row, ...]
    dependents: tuple[ObjectRef, ...] = ()
    instances: tuple[ObjectRef, ...] = ()
    """Every instance that depends on it, by way of others too."""
    by: str = ""
    """Who signed the form that counts; empty where signatures are not asked for."""
    refused: RefusedChange | None = None
    """A newer change of it that counts as not made."""


def explain(ref: ObjectRef, subject: Subject, commits: Commits, head: Revision) -> Explanation:
    """Everything about one object of the accepted state; Refused for a member it has not."""
    if subject.member:
        _refuse_unknown_member(ref, subject)
    found = subject.objects.get(ref)
    stored = subject.state.accepted.objects.get(str(ref))
    newest = commits.form(ref, head)
    document = found.document if found else {}
    path = found.path if found else newest.path if newest else ""
    problems = tuple(
        # A file that can't be read names no object.
        problem
        for problem in subject.state.problems
        if (problem.object == str(ref) if problem.object else problem.path == path)
    )
    is_newest = newest is not None and newest.document is not None and found is not None
    is_newest = is_newest and not field_changes(document, newest.document if newest else None)
    is_instance = ref.kind == "AppInstance"
    rows = _instance_rows(ref, subject) if is_instance else _plain_rows(ref, document)
    users = _users(subject.objects)
    return Explanation(
        ref=ref,
        head=head,
        path=path,
        line=found.line if found else 0,
        accepted=stored.revision if stored and not subject.alone else None,
        newest=is_newest,
        problems=problems,
        says=subject.live.says,
        rows=_blamed(rows, subject, commits, head),
        dependents=tuple(sorted(users.get(ref, ()))),
        instances=_instances_above(ref, users),
        by=stored.by if stored and not subject.alone else "",
        refused=refused_change(ref, path, subject.state.accepted.refused),
    )


@dataclass(frozen=True)
class ExplainedObject:
    """`accepted` None: no form of it counts; `newest` whether the head's form does."""

    ref: ObjectRef
    accepted: AcceptedObject | None
    newest: bool
    refused: RefusedChange | None


@dataclass(frozen=True)
class ExplainedFile:
    """`refused` is of the file as a whole: it could not be read."""

    path: str
    head: Revision
    objects: tuple[ExplainedObject, ...]
    problems: tuple[Problem, ...]
    refused: RefusedChange | None


def explained_file(
    path: str, commits: Commits, head: Revision, state: AcceptedState
) -> ExplainedFile:
    """What counts of all that stands, or stood when it was accepted, in a file."""
    accepted, refused = state.accepted.objects, state.accepted.refused
    refs = {ObjectRef.parse(ref) for ref, stored in accepted.items() if stored.path == path}
    refs |= {
        ObjectRef.parse(one.subject)
        for one in refused.values()
        if one.path == path and one.subject != path
    }
    refs |= {
        ObjectRef.parse(problem.object)
        for problem in state.problems
        if problem.path == path and problem.object
    }
    found: list[ExplainedObject] = []
    for ref in sorted(refs):
        stored, form = accepted.get(str(ref)), commits.form(ref, head)
        now = form.document if form is not None else None
        was = json.loads(stored.document_json) if stored is not None else None
        newest = now is not None and was is not None and not field_changes(was, now)
        found.append(ExplainedObject(ref, stored, newest, refused.get(str(ref))))
    problems = tuple(problem for problem in state.problems if problem.path == path)
    return ExplainedFile(path, head, tuple(found), problems, refused.get(path))


def refused_change(
    ref: ObjectRef, path: str, refused: Mapping[str, RefusedChange]
) -> RefusedChange | None:
    """That of the object, or of its whole file where that could not be read."""
    return refused.get(str(ref)) or refused.get(path)


def _refuse_unknown_member(ref: ObjectRef, subject: Subject) -> None:
    """What is on its way out is still known by its record."""
    spec = subject.objects[ref].manifest.spec if ref in subject.objects else None
    names = [one.name for one in spec.members] if isinstance(spec, AppInstanceSpec) else []
    if subject.member in names or subject.live.record is not None:
        return
    near = nearest(subject.member, names)
    hint = f"did you mean {near}?" if near else f"its members: {', '.join(names) or 'none'}"
    raise Refused("no_such_object", f"{ref} has no member {subject.member}", hint=hint)


def chosen(found: Explanation, name: str, subject: Subject, commits: Commits) -> Explanation:
    """The same, of one field: a row by its name, or any field of the manifest by its path."""
    if any(row.field == name for row in found.rows):
        return replace(found, rows=tuple(row for row in found.rows if row.field == name))
    document = subject.objects[found.ref].document if found.ref in subject.objects else {}
    pointers = {dotted(pointer): pointer for pointer in _pointers(document, "")}
    pointer = name if name.startswith("/") else pointers.get(name, "")
    value = value_at(document, pointer) if pointer else ABSENT
    if value is ABSENT:
        known = [*(row.field for row in found.rows), *pointers]
        near = nearest(name, known)
        names = ", ".join(row.field for row in found.rows)
        hint = f"did you mean {near}?" if near else f"there are: {names}"
        raise Refused("no_such_field", f"{found.ref} has no field {name[:120]}", hint=hint)
    row = Row(
        dotted(pointer), value_text(value), None, Deciding("written here", found.ref, pointer)
    )
    return replace(found, rows=_blamed([row], subject, commits, found.head))


def _pointers(value: object, pointer: str) -> Iterator[str]:
    """Every field, mappings included; a list as a whole."""
    if pointer:
        yield pointer
    if isinstance(value, Mapping):
        for key, below in value.items():
            name = str(key).replace("~", "~0").replace("/", "~1")
            yield from _pointers(below, f"{pointer}/{name}")


# --- whose commit --------------------------------------------------------------------------------


def _blamed(
    rows: Iterable[Row], subject: Subject, commits: Commits, head: Revision
) -> tuple[Row, ...]:
    """Rows with the commit that last changed what decided them, in the form that counts."""
    rows = tuple(rows)
    wanted: dict[ObjectRef, set[str]] = defaultdict(set)
    for row in rows:
        if row.deciding.ref is not None:
            wanted[row.deciding.ref].add(row.deciding.pointer)
    known = {
        ref: blame(commits, ref, pointers, _start(ref, pointers, subject, commits, head))
        for ref, pointers in sorted(wanted.items())
    }
    return tuple(
        replace(row, commit=known[row.deciding.ref].get(row.deciding.pointer))
        if row.deciding.ref is not None
        else row
        for row in rows
    )


def _start(
    ref: ObjectRef, pointers: set[str], subject: Subject, commits: Commits, head: Revision
) -> Revision:
    """The head, or the revision in which the form that counts was accepted, if that is another."""
    stored = subject.state.accepted.objects.get(str(ref))
    newest = commits.form(ref, head)
    document = newest.document if newest else None
    same = document is not None and not any(
        field_changes(value_at(document, pointer), subject.value(ref, pointer))
        for pointer in pointers
    )
    if same or stored is None:
        return head
    try:
        return commits.resolve(stored.revision)
    except Refused:
        # A force-push may have taken that revision away.
        return head


# --- who depends on it ---------------------------------------------------------------------------

Users = Mapping[ObjectRef, frozenset[ObjectRef]]


def _users(objects: Mapping[ObjectRef, StateObject]) -> Users:
    """Object → the objects that name it."""
    users: dict[ObjectRef, set[ObjectRef]] = defaultdict(set)
    for ref, found in objects.items():
        for one in (found, *further_members(found)):
            entry = Entry(one, one.manifest.spec)
            for reference in REFERENCES.get(ref.kind, ()):
                users[ObjectRef(reference.kind, tuple(reference.path(entry)))].add(ref)
    return {ref: frozenset(those) for ref, those in users.items()}


def _instances_above(ref: ObjectRef, users: Users) -> tuple[ObjectRef, ...]:
    seen, left = {ref}, [ref]
    while left:
        more = users.get(left.pop(), frozenset()) - seen
        seen |= more
        left += more
    return tuple(sorted(one for one in seen - {ref} if one.kind == "AppInstance"))


# --- fields --------------------------------------------------------------------------------------


def _plain_rows(ref: ObjectRef, document: Mapping[str, object]) -> Iterator[Row]:
    """One a field of the spec, for kinds that decide nothing by themselves."""
    spec = document.get("spec")
    for key, value in (spec if isinstance(spec, Mapping) else {}).items():
        pointer = f"/spec/{key}"
        yield Row(dotted(pointer), value_text(value), None, Deciding("written here", ref, pointer))


def _instance_rows(ref: ObjectRef, subject: Subject) -> tuple[Row, ...]:
    key = instance_key(ref)
    key = member_key(key, subject.member) if subject.member else key
    instance = subject.state.instances.get(key)
    document = subject.objects[ref].document if ref in subject.objects else {}
    if instance is None:
        return () if subject.member else tuple(_plain_rows(ref, document))
    return tuple(Fields(ref, instance, subject).rows())
