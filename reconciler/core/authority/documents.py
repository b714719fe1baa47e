"""From the files that a commit touched to the objects in them.

Rules: a file is read in full or not at all, since nobody could say what the rest of it changes:
what validation can't tell the name of keeps it from being read here too. An object is its canonical
JSON; where it stands in its file is no part of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from reconciler.core.authority.facts import FileForm
from reconciler.core.check_document import allowed_at, beyond_schema, ref_of
from reconciler.core.desired import StateObject
from reconciler.core.forms import canonical_json, parse_accepted
from reconciler.core.names import Digest, ObjectRef, Revision
from reconciler.core.parse import ParseLimits, fast_reader, parse_file
from reconciler.core.parse_fast import FastReader
from reconciler.core.problems import Problem
from reconciler.core.records import AcceptedObject

_NOTHING: Mapping[ObjectRef, str] = {}


@dataclass(frozen=True)
class Unread:
    """A file whose objects can't all be told, and why."""

    why: str


Contents = Mapping[ObjectRef, str] | Unread
"""The objects of a file as canonical JSON."""


@dataclass
class Documents:
    """Reads files, each content at a path once."""

    limits: ParseLimits
    _known: dict[tuple[str, str], Contents] = field(default_factory=dict, repr=False)
    _fast: FastReader = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._fast = fast_reader(self.limits)

    def contents(self, path: str, form: FileForm | None) -> Contents:
        """The objects of a file; none where it is not there, or no kind lives at its path."""
        if form is None:
            return _NOTHING
        key = (path, form.blob_id)
        known = self._known.get(key) if form.blob_id else None
        if known is None:
            known = self._known[key] = self._read(path, form.content)
        return known

    def _read(self, path: str, content: bytes | None) -> Contents:
        allowed = allowed_at(path)
        if not allowed:
            return _NOTHING
        if content is None:
            return Unread("it is too large, or no file")
        documents, problems = parse_file(path, content, self.limits, self._fast)
        if problems:
            first = problems[0]
            return Unread(f"line {first.line}: {first.message}" if first.line else first.message)
        if not documents:
            return Unread("no manifest stands in it")
        found: dict[ObjectRef, str] = {}
        for document in documents:
            ref = ref_of(allowed, document.value, alone=len(documents) == 1)
            if ref is None:
                return Unread(f"line {document.line}: it does not say what it is, as its path asks")
            if ref in found:
                return Unread(f"line {document.line}: {ref} stands in it twice")
            found[ref] = canonical_json(document.value)
        return found


def digest_of(text: str | None) -> str:
    """Content digest of an object's canonical JSON; empty where there is no object."""
    if text is None:
        return ""
    return str(Digest.of(text.encode("utf-8", "surrogatepass")))


def as_object(ref: ObjectRef, path: str, line: int, text: str) -> StateObject | Problem:
    """A form as the object it is; a Problem when it is not valid, whoever authorised it."""
    found = parse_accepted(AcceptedObject(str(ref), path, line, text, Revision("")))
    if isinstance(found, Problem):
        return _unfit(ref, path, line, "its model does not take it")
    unfit: Any = beyond_schema(path, dict(found.document))
    return _unfit(ref, path, line, unfit[0].message) if unfit else found


def _unfit(ref: ObjectRef, path: str, line: int, why: str) -> Problem:
    message = f"the last form of {ref} that somebody could make is not valid: {why}"
    hint = "commit a valid form, signed by somebody who may"
    return Problem(path, line, 1, "authorised_form_invalid", message, "", hint, str(ref))
