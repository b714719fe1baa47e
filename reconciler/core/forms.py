"""An object's forms: the one a revision has, and the one that was accepted last and is stored.

Rule: the memo holds facts about values that never change, named by identity. A fact stays true, so
that nothing is compared twice, and the memo of a pass that failed is as good as any.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from pydantic import ValidationError

from reconciler.core.desired import StateObject
from reconciler.core.kinds import KINDS, TOP_FOLDERS
from reconciler.core.names import ObjectRef, Revision
from reconciler.core.problems import Problem
from reconciler.core.records import Accepted, AcceptedObject
from reconciler.core.resolve import ResolveMemo

ParseAccepted = Callable[[AcceptedObject], StateObject | Problem]
_UNREADABLE = "stored_form_unreadable"
_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def parse_accepted(stored: AcceptedObject) -> StateObject | Problem:
    """A stored document as the object it was; a Problem when the models no longer take it."""
    try:
        ref = ObjectRef.parse(stored.ref)
        document = json.loads(stored.document_json)
        manifest = KINDS[ref.kind].model.model_validate(document)
    except (ValueError, KeyError, ValidationError) as error:
        what = f"the last accepted form can't be read any more ({type(error).__name__})"
        hint = "mend the object in the repo: its newest valid form replaces the stored one"
        return Problem(stored.path, stored.line, 1, _UNREADABLE, what, "", hint, stored.ref)
    return StateObject(ref, stored.path, stored.line, manifest, document)


def to_stored(found: StateObject, revision: Revision) -> AcceptedObject:
    return AcceptedObject(str(found.ref), found.path, found.line, canonical(found), revision)


def canonical(found: StateObject) -> str:
    """The document as it is stored: the same text for the same content."""
    return canonical_json(found.document)


def canonical_json(document: Mapping[str, object]) -> str:
    return _CANONICAL.encode(document)


def folders_above(path: str) -> Iterator[str]:
    """Every folder above a file, the root ("") included."""
    while path:
        path = path.rpartition("/")[0]
        yield path


def scope_of(path: str) -> str:
    """The folder of the project, tenant, app or kind that a file belongs to.

    One in a misspelt top folder may belong anywhere.
    """
    parts = path.split("/")
    if parts[0] not in TOP_FOLDERS:
        return ""
    if parts[0] == "tenants" and len(parts) > 4 and parts[2] == "projects":
        return "/".join(parts[:4])
    if parts[0] in ("tenants", "catalog") and len(parts) > 2:
        return "/".join(parts[:2])
    return path.rpartition("/")[0]


@dataclass
class FormsMemo:
    """What one acceptance leaves for the next."""

    accepted: Accepted | None = None
    by_ref: dict[ObjectRef, AcceptedObject] = field(default_factory=dict)
    """The objects of `accepted`."""
    pairs: dict[ObjectRef, tuple[StateObject, AcceptedObject]] = field(default_factory=dict)
    """A form and how it is stored, with the same content at the same place."""
    parsed: dict[ObjectRef, tuple[AcceptedObject, StateObject | Problem]] = field(
        default_factory=dict
    )
    resolved: ResolveMemo = field(default_factory=ResolveMemo)

    def last(self, accepted: Accepted) -> Mapping[ObjectRef, AcceptedObject]:
        """What is stored, by ref; read again only when it is not what was accepted last."""
        if self.accepted is not accepted:
            found = ((ObjectRef.parse(ref), one) for ref, one in accepted.objects.items())
            self.accepted, self.by_ref = accepted, dict(found)
        return self.by_ref

    def replaced(self, accepted: Accepted) -> None:
        """`accepted` is stored in place of the last one: the same forms, with more said of some."""
        for ref, before in list(self.by_ref.items()):
            stored = accepted.objects[before.ref]
            if stored is not before:
                self.by_ref[ref] = stored
                self.pairs[ref] = (self.pairs[ref][0], stored)
        self.accepted = accepted


@dataclass
class Forms:
    """The forms chosen so far. Objects in `settled` are in their last accepted form, or dropped."""

    last: Mapping[ObjectRef, AcceptedObject]
    parse: ParseAccepted
    memo: FormsMemo
    chosen: dict[ObjectRef, StateObject] = field(default_factory=dict)
    settled: dict[ObjectRef, str] = field(default_factory=dict)
    unreadable: dict[ObjectRef, Problem] = field(default_factory=dict)
    gone: tuple[ObjectRef, ...] = ()
    """Accepted last, and nowhere in the revision."""

    def put_back(self, ref: ObjectRef, why: str) -> None:
        """Back to the last accepted form; out when there is none."""
        self.settled[ref] = why
        self.chosen.pop(ref, None)
        if ref not in self.last:
            return
        parsed = self._parsed(ref, self.last[ref])
        if isinstance(parsed, Problem):
            self.unreadable[ref] = parsed
        else:
            self.chosen[ref] = parsed

    def last_form(self, ref: ObjectRef) -> StateObject | None:
        """What was accepted last; None when that can't be read any more."""
        parsed = self._parsed(ref, self.last[ref])
        return parsed if isinstance(parsed, StateObject) else None

    def changed(self, ref: ObjectRef) -> bool:
        """Whether the form chosen now is a new one, so that it can be put back."""
        if ref in self.settled or ref not in self.chosen:
            return False
        if self._as_stored(ref, self.chosen[ref]):
            return False
        stored = self.last.get(ref)
        return stored is None or stored.document_json != canonical(self.chosen[ref])

    @property
    def dropped(self) -> frozenset[ObjectRef]:
        """In the repo, but without any accepted form."""
        return frozenset(ref for ref in self.settled if ref not in self.chosen)

    def accepted(self, revision: Revision) -> Accepted:
        """The forms to store. One that didn't change keeps the revision it was accepted in."""
        after = dict(self.last)
        for ref in self.last.keys() - self.chosen.keys() - self.unreadable.keys():
            del after[ref]
            self.memo.pairs.pop(ref, None)
        for ref, found in self.chosen.items():
            if not self._as_stored(ref, found):
                after[ref] = self._to_store(ref, found, revision)
                self.memo.pairs[ref] = (found, after[ref])
        if after.keys() - self.last.keys():
            after = dict(sorted(after.items()))
        accepted = Accepted(revision, {stored.ref: stored for stored in after.values()})
        self.memo.accepted, self.memo.by_ref = accepted, after
        self.memo.parsed = {r: one for r, one in self.memo.parsed.items() if r in self.settled}
        return accepted

    def _to_store(self, ref: ObjectRef, found: StateObject, revision: Revision) -> AcceptedObject:
        stored = self.last.get(ref)
        if stored is None or self.changed(ref):
            return to_stored(found, revision)
        if (stored.path, stored.line) == (found.path, found.line):
            return stored
        return replace(stored, path=found.path, line=found.line)

    def _as_stored(self, ref: ObjectRef, found: StateObject) -> bool:
        """Whether it is known to be what is stored, place included."""
        pair = self.memo.pairs.get(ref)
        return pair is not None and pair[0] is found and pair[1] is self.last.get(ref)

    def _parsed(self, ref: ObjectRef, stored: AcceptedObject) -> StateObject | Problem:
        known = self.memo.parsed.get(ref)
        if known is None or known[0] is not stored:
            known = self.memo.parsed[ref] = (stored, self.parse(stored))
        return known[1]
