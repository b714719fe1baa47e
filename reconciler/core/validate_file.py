"""One file of a revision → its objects, and everything that is wrong with it by itself.

Rules: all problems at once, each with file, line and column. A document with a problem never
becomes an object. Where it is not certain which objects a file holds, the file is broken: what it
held before must not be taken for removed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Any, NamedTuple, Protocol

from pydantic import ValidationError

from reconciler.core.check_document import (
    NAME_POINTER,
    Allowed,
    Checks,
    Sound,
    allowed_at,
    check_document,
    readable,
)
from reconciler.core.desired import StateObject
from reconciler.core.kind_places import KIND_PLACES, TOP_FOLDERS
from reconciler.core.kinds import KINDS, Manifest
from reconciler.core.misplaced import API_GROUP, misnamed, names_borne
from reconciler.core.names import ObjectRef, nearest
from reconciler.core.parse import Document, ParseLimits, parse_file
from reconciler.core.parse_places import Place, locate_all
from reconciler.core.problems import Problem
from reconciler.core.schema import QUOTE_IT, Finding, pointer_of
from reconciler.core.source import SourceFile, portions


class SoundAhead(Protocol):
    """Somebody who calls `sound_documents` for the same files with the same checks, in their order,
    at the same time."""

    def has_news(self) -> bool:
        """Whether an answer is there that nobody has to wait for."""

    def sound(self, file: SourceFile) -> Sequence[Sound] | None:
        """What came of a file; waits for it. None: to be looked at by who asks."""

    def leave(self, file: SourceFile) -> None:
        """Says that this file and those after it are looked at by who says so."""


class Placed(NamedTuple):
    """A document whose name is certain. `object` None: something is wrong with it."""

    ref: ObjectRef
    path: str
    line: int
    object: StateObject | None


class FileResult(NamedTuple):
    """`broken`: the file may hold objects that could not be told. `bears` are the names of objects
    that a file which is broken, or not read at all, seems to be about.
    """

    problems: tuple[Problem, ...]
    placed: tuple[Placed, ...] = ()
    broken: bool = False
    bears: frozenset[str] = frozenset()


NO_MANIFESTS = FileResult(())
"""Of a file that is none of our business."""


class _Checked(NamedTuple):
    """One document after every check of its own. `ref` None: what it names could not be told."""

    document: Document
    ref: ObjectRef | None
    findings: tuple[Finding, ...]
    manifest: Manifest | None


class _Reading(NamedTuple):
    """A file as far as it was read. `result` is there when nothing is left to check."""

    path: str
    content: bytes
    allowed: tuple[Allowed, ...] = ()
    documents: tuple[Document, ...] = ()
    problems: tuple[Problem, ...] = ()
    result: FileResult | None = None


def check_files(
    files: Iterable[SourceFile], checks: Checks, ahead: SoundAhead | None = None
) -> list[FileResult]:
    """Everything that each file says by itself. One outside the known folders is not looked at.

    Some are read before the first of them is checked: to do one thing many times and then the next
    takes a quarter less time than to do all things to one file after the other.
    """
    waiting, done = list(portions(files)), list[list[FileResult]]()
    first: list[FileResult] = []
    while waiting:
        if ahead is not None and len(waiting) > 1 and not ahead.has_news():
            # The other begins at the front: from the back, both meet somewhere.
            ahead.leave(waiting[-1][0])
            done.append(_check_some(waiting.pop(), checks, None))
        else:
            first += _check_some(waiting.pop(0), checks, ahead)
    return first + [result for some in reversed(done) for result in some]


def _check_some(
    files: list[SourceFile], checks: Checks, ahead: SoundAhead | None
) -> list[FileResult]:
    readings = [_read(file, checks, ahead) for file in files]
    found = [_checked(reading, checks) for reading in readings]
    return [_bearing(file, one) for file, one in zip(files, found, strict=True)]


def _bearing(file: SourceFile, result: FileResult) -> FileResult:
    if not result.broken and result is not NO_MANIFESTS:
        return result
    names = names_borne(file)
    return result._replace(bears=names) if names else result


def _read(file: SourceFile, checks: Checks, ahead: SoundAhead | None) -> _Reading:
    def settled(result: FileResult) -> _Reading:
        return _Reading(file.path, file.content, result=result)

    sound = ahead.sound(file) if ahead is not None else None
    done = _made_of(file.path, sound) if sound is not None else None
    if done is not None:
        return settled(done)
    if not _concerns_us(file):
        return settled(NO_MANIFESTS)
    refused = _refuse_file(file, checks.limits)
    if refused is not None:
        return settled(FileResult((refused,), broken=True))
    allowed = allowed_at(file.path)
    if not allowed:
        return settled(FileResult((_unknown_path(file.path),), broken=True))
    documents, problems = parse_file(file.path, file.content, checks.limits, checks.fast)
    if not documents and not problems:
        return settled(FileResult((_empty_file(file.path),), broken=True))
    return _Reading(file.path, file.content, allowed, documents, problems)


def _made_of(path: str, sound: Sequence[Sound]) -> FileResult | None:
    """The objects of a file without findings; None: a model refuses what its schema lets pass."""
    placed = []
    for value, line, kind, names in sound:
        manifest, refused = _model(kind, value)
        if manifest is None or refused:
            return None
        ref = ObjectRef(kind, names)
        placed.append(Placed(ref, path, line, StateObject(ref, path, line, manifest, value)))
    return FileResult((), tuple(placed))


def _checked(reading: _Reading, checks: Checks) -> FileResult:
    if reading.result is not None:
        return reading.result
    path, documents, problems = reading.path, reading.documents, reading.problems
    alone = len(documents) == 1 and not problems
    checked = [_check(reading.allowed, document, alone, checks) for document in documents]
    problems += _located(reading, checked)
    broken = any(not problem.object for problem in problems)
    placed = tuple(_placed(path, one.ref, one) for one in checked if one.ref is not None)
    return FileResult(problems, placed, broken)


def _check(
    allowed: tuple[Allowed, ...], document: Document, alone: bool, checks: Checks
) -> _Checked:
    one = check_document(allowed, document, alone, checks)
    manifest, refused = _model(one.kind, document.value) if one.fits else (None, ())
    ref = None if any(finding.pointer == NAME_POINTER for finding in refused) else one.ref
    findings = (*one.findings, *refused)
    return _Checked(document, ref, findings, None if findings else manifest)


def _placed(path: str, ref: ObjectRef, one: _Checked) -> Placed:
    line, value = one.document.line, one.document.value
    found = StateObject(ref, path, line, one.manifest, value) if one.manifest is not None else None
    return Placed(ref, path, line, found)


def _concerns_us(file: SourceFile) -> bool:
    is_yaml = file.path.lower().endswith((".yaml", ".yml"))
    top = file.path.partition("/")[0]
    if top not in TOP_FOLDERS:
        # A misspelled folder would otherwise be taken for something that is none of our business.
        return is_yaml and API_GROUP in file.content and nearest(top, TOP_FOLDERS) is not None
    return is_yaml or file.kind in ("symlink", "submodule") or misnamed(file.path)


def _refuse_file(file: SourceFile, limits: ParseLimits) -> Problem | None:
    if file.kind == "file":
        return None
    message, hint = {
        "symlink": ("a symbolic link stands where manifests belong", "commit the file itself"),
        "submodule": ("a submodule stands where manifests belong", "commit the files themselves"),
        "too_large": (f"larger than {limits.file_bytes_max} bytes", "split the file"),
    }[file.kind]
    code = "file_too_large" if file.kind == "too_large" else file.kind
    return Problem(file.path, 0, 0, code, message, hint=hint)


def _empty_file(path: str) -> Problem:
    hint = "remove the file if what it held should go"
    return Problem(path, 0, 0, "empty_file", "no manifest stands in this file", hint=hint)


def _unknown_path(path: str) -> Problem:
    top = path.partition("/")[0]
    meant = top if top in TOP_FOLDERS else nearest(top, TOP_FOLDERS) or ""
    templates = [readable(place) for place in KIND_PLACES if place.path.startswith(f"{meant}/")]
    near = get_close_matches(path, templates, n=1, cutoff=0.0)
    message = "no kind of manifest lives at this path"
    return Problem(path, 0, 0, "unknown_path", message, hint=f"did you mean {near[0]}?")


def _model(kind: str, value: dict[str, Any]) -> tuple[Manifest | None, tuple[Finding, ...]]:
    """The typed manifest, or what only the model refuses."""
    try:
        return KINDS[kind].model.model_validate(value), ()
    except ValidationError as error:
        told = error.errors(include_url=False, include_context=False, include_input=False)
        return None, tuple(
            Finding(pointer_of(one["loc"]), "invalid_field", one["msg"]) for one in told
        )


def _located(reading: _Reading, checked: Sequence[_Checked]) -> tuple[Problem, ...]:
    """Findings with their line and column; the file is read once more, whatever their number."""
    wanted: dict[int, set[str]] = {
        item.document.index: {finding.pointer for finding in item.findings}
        for item in checked
        if item.findings
    }
    if not wanted:
        return ()
    places = locate_all(reading.content, wanted)
    return tuple(
        _problem(reading.path, item, finding, places[item.document.index, finding.pointer])
        for item in checked
        for finding in item.findings
    )


def _problem(path: str, item: _Checked, finding: Finding, place: Place) -> Problem:
    pointer, code, message, hint = finding
    if hint == QUOTE_IT and place.text:
        hint = f'{hint}: "{place.text}"'
    owner = str(item.ref) if item.ref else ""
    return Problem(path, place.line, place.column, code, message, pointer, hint, owner)
