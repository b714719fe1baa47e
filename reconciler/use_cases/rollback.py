"""What takes one object back to an earlier form, as files to commit. Reads only.

Rules: only the object's own document changes; every other byte of its file stays. The result is
checked before anything is written, and what it would break is said instead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from reconciler.core.changes import FieldChange, field_changes, value_at
from reconciler.core.history import Form, names
from reconciler.core.kinds import KINDS
from reconciler.core.names import ObjectRef, Revision
from reconciler.core.parse import ParseLimits, parse_file
from reconciler.core.printable import printable
from reconciler.core.problems import Problem
from reconciler.core.promotion_steps import (
    CHANGED_IN_PLACE,
    ILLEGAL_STEP,
    changed_in_place,
    illegal,
    promotion_of,
)
from reconciler.core.source import Snapshot, SourceFile
from reconciler.core.splice import appended, removed, replaced, spans, text_of
from reconciler.errors import Refused
from reconciler.use_cases.history import Commits, no_such
from reconciler.views.changes import field_line

Check = Callable[[Snapshot], Sequence[Problem]]
_FIELDS_SHOWN_MAX = 60


@dataclass(frozen=True)
class Rollback:
    """A commit to be made on top of `base`. `files`: path → new content, None to remove it.

    `in_the_way` are problems that the state repo would have then and has not now.
    """

    ref: ObjectRef
    base: Revision
    to: Revision
    what: str
    files: Mapping[str, bytes | None]
    before: Mapping[str, bytes | None]
    fields: tuple[FieldChange, ...]
    in_the_way: tuple[Problem, ...]

    @property
    def branch(self) -> str:
        """The name of the branch, when none is given."""
        kind = () if self.ref.kind == "AppInstance" else (self.ref.kind.lower(),)
        return f"rollback/{'-'.join((*kind, *self.ref.path))}-{self.to[:12]}"


def prepare(
    commits: Commits,
    ref: ObjectRef,
    base: Revision,
    to: Revision | None,
    check: Check,
    limits: ParseLimits,
) -> Rollback:
    """Takes `ref` back to its form of `to`, or else to the one before its last change.

    Refused when it never was there, is the same already, can't be read on either side, or is a
    version or artifact that doesn't go back there, or is offered as it is.
    """
    now = commits.form(ref, base)
    revision, then = (
        _earlier(commits, ref, base, now) if to is None else (to, commits.form(ref, to))
    )
    if now is None and then is None:
        message = f"{ref} is neither in {base[:12]} nor in {revision[:12]}"
        hint = no_such(ref, _known(commits, base, ref), base[:12]).hint
        raise Refused("no_such_object", message, hint=hint)
    _refuse(ref, revision, now, then)
    if ref.kind == "AppVersion":
        _refuse_in_place(commits, ref, base, (now, then))
    files = _files(commits, ref, base, revision, now, then, limits)
    before = {path: commits.content(base, path) for path in files}
    fields = _fields(now, then)
    return Rollback(
        ref=ref,
        base=base,
        to=revision,
        what=_what(now, then, revision),
        files=files,
        before=before,
        fields=fields,
        in_the_way=in_the_way(commits.snapshot(base), files, check),
    )


def message_of(rollback: Rollback, of: str, to: str) -> str:
    """The commit message; `of` and `to` are the subjects of the two commits."""
    ref = rollback.ref
    body = [
        f"From {rollback.base[:12]} ({printable(of)})",
        f"back to {rollback.to[:12]} ({printable(to)}).",
        "",
        *(field_line(field) for field in rollback.fields[:_FIELDS_SHOWN_MAX]),
    ]
    if len(rollback.fields) > _FIELDS_SHOWN_MAX:
        body.append(f"and {len(rollback.fields) - _FIELDS_SHOWN_MAX} more fields")
    trailer = f"Gpuaas-Rollback: {ref} {rollback.to}"
    text = "\n".join(body).rstrip()
    return f"Roll back {ref} to {rollback.what}\n\n{text}\n\n{trailer}\n"


def _earlier(
    commits: Commits, ref: ObjectRef, base: Revision, now: Form | None
) -> tuple[Revision, Form | None]:
    """The form before its last change, and a revision that has it."""
    found = commits.log(ref, base, 1)
    if found.steps:
        step = found.steps[0]
        if step.before_revision is not None:
            return step.before_revision, step.before
        raise Refused(
            "no_earlier_form", f"{ref} came with the first commit: there is nothing before it"
        )
    if found.end == "shallow":
        raise Refused(
            "no_earlier_form",
            f"this clone is shallow, and {ref} was not changed since it begins",
            hint="git fetch --unshallow brings the rest",
        )
    assert now is None
    raise no_such(ref, _known(commits, base, ref), base[:12])


def _known(commits: Commits, base: Revision, ref: ObjectRef) -> list[ObjectRef | str]:
    """Objects of its kind, by the names of their files."""
    pattern = KINDS[ref.kind].pattern
    found = (pattern.fullmatch(path) for path in commits.paths(base))
    return [ObjectRef(ref.kind, one.groups()) for one in found if one]


def _refuse(ref: ObjectRef, to: Revision, now: Form | None, then: Form | None) -> None:
    if then is not None and then.document is None:
        hint = "name one that can be read with --to; gpuaas history shows them"
        message = f"{ref} can't be read in {to[:12]}"
        raise Refused("form_unreadable", message, where=then.path, hint=hint)
    both = now is not None and then is not None and now.document is not None
    if both and not _fields(now, then):
        raise Refused("nothing_to_roll_back", f"{ref} says the same in {to[:12]}")
    wrong = illegal(ref, now.document if now else None, then.document if then else None)
    if wrong is not None:
        raise Refused(ILLEGAL_STEP, wrong.message, hint=wrong.hint)


def _refuse_in_place(
    commits: Commits, ref: ObjectRef, base: Revision, forms: tuple[Form | None, Form | None]
) -> None:
    promotion = commits.form(promotion_of(ref), base)
    now, then, offered = (one.document if one else None for one in (*forms, promotion))
    for wrong in changed_in_place(ref, (now, then), (offered, offered)):
        raise Refused(CHANGED_IN_PLACE, wrong.message, hint=wrong.hint)


def _fields(now: Form | None, then: Form | None) -> tuple[FieldChange, ...]:
    if now is None or then is None or now.document is None or then.document is None:
        return ()
    return field_changes(now.document, then.document)


def _what(now: Form | None, then: Form | None, revision: Revision) -> str:
    """What it is rolled back to, for the subject of the commit."""
    if then is None:
        return "what was before it: it is removed"
    version = value_at(then.document, "/spec/version")
    was = value_at(now.document, "/spec/version") if now and now.document else None
    if isinstance(version, str) and version != was:
        return f"version {version}"
    return f"the form it had in {revision[:12]}"


# --- files ---------------------------------------------------------------------------------------


def _files(
    commits: Commits,
    ref: ObjectRef,
    base: Revision,
    to: Revision,
    now: Form | None,
    then: Form | None,
    limits: ParseLimits,
) -> dict[str, bytes | None]:
    current = commits.content(base, now.path) if now else None
    source = commits.content(to, then.path) if then else None
    if now is not None and now.document is None:
        return _mended(ref, now, current or b"", then, source or b"")
    if now is None and then is not None:
        path = _path_for(ref, then.path, source or b"", limits)
        there = commits.content(base, path)
        files: dict[str, bytes | None] = {path: _added(ref, there, then, source or b"", limits)}
    elif now is not None:
        files = {now.path: _changed(ref, now, current or b"", then, source or b"", limits)}
    verify(ref, commits, base, files, then, limits)
    return files


def _changed(
    ref: ObjectRef, now: Form, current: bytes, then: Form | None, source: bytes, limits: ParseLimits
) -> bytes | None:
    index = index_of(ref, now.path, current, limits)
    if then is None:
        return removed(current, index)
    if _alone(current) and _alone(source):
        return source
    return replaced(current, index, text_of(source, index_of(ref, then.path, source, limits)))


def _added(
    ref: ObjectRef, there: bytes | None, then: Form, source: bytes, limits: ParseLimits
) -> bytes:
    if there is None and _alone(source):
        return source
    text = text_of(source, index_of(ref, then.path, source, limits))
    return text if there is None else appended(there, text)


def _mended(
    ref: ObjectRef, now: Form, current: bytes, then: Form | None, source: bytes
) -> dict[str, bytes | None]:
    """For a file that can't be cut: replaced whole, if it never held anything else."""
    if then is not None and now.path == then.path and _alone(source) and b"\n---" not in current:
        return {now.path: source}
    raise Refused(
        "form_unreadable",
        f"{ref} can't be read as it is now, and its file may hold more than it",
        where=now.path,
        hint="mend the file by hand: git restore --source REVISION -- FILE",
    )


def _path_for(ref: ObjectRef, path: str, source: bytes, limits: ParseLimits) -> str:
    """Where a restored object goes: where it was; alone it needs a file of its own name."""
    kind = KINDS[ref.kind]
    documents, _ = parse_file(path, source, limits)
    named = kind.placeholders(path).get("name", ref.name) == ref.name
    return path if named or len(documents) == 1 else kind.path_of(ref.path)


def _alone(content: bytes) -> bool:
    try:
        return len(spans(content)) == 1
    except ValueError:
        return False


def index_of(ref: ObjectRef, path: str, content: bytes, limits: ParseLimits) -> int:
    """The place of an object's document in its file."""
    documents, _ = parse_file(path, content, limits)
    return next(one.index for one in documents if names(one.value, path) == ref)


def verify(
    ref: ObjectRef,
    commits: Commits,
    base: Revision,
    files: Mapping[str, bytes | None],
    then: Form | None,
    limits: ParseLimits,
) -> None:
    """Reads the result again: the object as it was, and everything else as it is."""
    for path, content in files.items():
        before, _ = parse_file(path, commits.content(base, path) or b"", limits)
        after, problems = parse_file(path, content or b"", limits)
        others = [one.value for one in before if names(one.value, path) != ref]
        found = [one.value for one in after if names(one.value, path) == ref]
        wanted = [then.document] if then else []
        rest = [one.value for one in after if names(one.value, path) != ref]
        if repr((found, rest)) != repr((wanted, others)) or (problems and content):
            raise Refused(
                "file_not_cut",
                f"the document of {ref} can't be told from the rest of its file",
                where=path,
                hint="change it by hand",
            )


# --- what stands in the way ----------------------------------------------------------------------


def in_the_way(
    snapshot: Snapshot, files: Mapping[str, bytes | None], check: Check
) -> tuple[Problem, ...]:
    """Problems that the state repo would have with these files, and has not now."""
    known = {_identity(problem) for problem in check(snapshot)}
    found = check(_with(snapshot, files))
    return tuple(problem for problem in found if _identity(problem) not in known)


def _identity(problem: Problem) -> tuple[str, ...]:
    """Without its line: the rest of a file moves when a document gets longer."""
    return problem.path, problem.code, problem.object, problem.pointer, problem.message


def _with(snapshot: Snapshot, files: Mapping[str, bytes | None]) -> Snapshot:
    kept = [file for file in snapshot.files if file.path not in files]
    new = [SourceFile(path, "", text) for path, text in files.items() if text is not None]
    merged = sorted((*kept, *new), key=lambda file: file.path)
    return replace(snapshot, files=tuple(merged))
