"""What the commits of the state repo did to one object or file: values, and questions of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from reconciler.core.changes import ABSENT, FieldChange, field_changes
from reconciler.core.kinds import KINDS, kind_for_path, ref_for
from reconciler.core.names import ObjectRef, Revision
from reconciler.core.parse import ParseLimits, parse_file

End = Literal["root", "shallow", "limit"]
"""Why a history ends: there is no more, a shallow clone has no more, or no more was asked for."""


@dataclass(frozen=True)
class Commit:
    """A commit as it says of itself. `signed`: a signature is there; nobody checked it here."""

    revision: Revision
    parents: tuple[Revision, ...]
    author: str
    committed_at_ms: int
    subject: str
    signed: bool


@dataclass(frozen=True)
class Form:
    """An object, or a whole file, as one commit has it. `document` is None where it can't be read
    (or is a file, which is bytes).
    """

    path: str
    content_id: str
    document: Mapping[str, object] | None


@dataclass(frozen=True)
class Step:
    """A commit that changed the object; a form is None where the object was not there."""

    commit: Commit
    before: Form | None
    after: Form | None
    of: ObjectRef | None = None
    before_revision: Revision | None = None
    """The parent that has `before`."""

    @property
    def verb(self) -> str:
        if self.before is None:
            return "added"
        return "removed" if self.after is None else "changed"

    @property
    def path(self) -> str:
        """Where it stands after the commit, or stood before."""
        form = self.after or self.before
        return form.path if form else ""

    @property
    def fields(self) -> tuple[FieldChange, ...]:
        """Empty where one of the two forms is not there or can't be read."""
        if self.before is None or self.after is None:
            return ()
        if self.before.document is None or self.after.document is None:
            return ()
        return field_changes(self.before.document, self.after.document)


@dataclass(frozen=True)
class History:
    """Newest first. `end_revision` is where a shallow clone ends."""

    steps: tuple[Step, ...]
    end: End
    end_revision: Revision | None = None


def folder_of(ref: ObjectRef) -> str:
    """The one folder in which a file with the object can stand; ValueError for another's names."""
    kind = KINDS[ref.kind]
    if len(ref.path) != kind.path.count("{"):
        raise ValueError(f"{ref} has another number of names than {kind.path}")
    return kind.path_of(ref.path).rpartition("/")[0]


def document_in(
    ref: ObjectRef, path: str, content: bytes, limits: ParseLimits
) -> Mapping[str, object] | bool:
    """The object's document in a file; False when it is not in it, True when nobody can tell."""
    if not KINDS[ref.kind].pattern.fullmatch(path) or ref.name.encode() not in content:
        return False
    documents, problems = parse_file(path, content, limits)
    found = (document.value for document in documents if names(document.value, path) == ref)
    return next(found, bool(problems))


def names(document: Mapping[str, object], path: str) -> ObjectRef | None:
    """The object that a document at `path` speaks of; None when it can't be told."""
    kind = kind_for_path(path, document.get("kind"))
    metadata = document.get("metadata")
    name = metadata.get("name") if isinstance(metadata, Mapping) else None
    return ref_for(kind, path, name) if kind is not None and isinstance(name, str) else None


def former_name(step: Step) -> ObjectRef | None:
    """What the object was called before the commit that added it, by its `moved_from`."""
    if step.before is not None or step.after is None or step.of is None:
        return None
    spec = (step.after.document or {}).get("spec", ABSENT)
    former = spec.get("moved_from") if isinstance(spec, Mapping) else None
    if step.of.kind != "AppInstance" or not isinstance(former, str) or not former:
        return None
    return ObjectRef(step.of.kind, (*step.of.path[:-1], former))
