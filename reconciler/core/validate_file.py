"""One file of a revision → its objects, and everything that is wrong with it by itself.

Rules: all problems at once, each with file, line and column. A document with a problem never
becomes an object. Where it is not certain which objects a file holds, the file is broken: what it
held before must not be taken for removed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, NamedTuple

from pydantic import ValidationError

from reconciler.core.desired import StateObject
from reconciler.core.kinds import KINDS, TOP_FOLDERS, Kind, Manifest, places_for_path
from reconciler.core.kinds.base import scope_of
from reconciler.core.misplaced import API_GROUP, misnamed, names_borne
from reconciler.core.names import VERSION, ObjectRef, nearest
from reconciler.core.parse import Document, ParseLimits, parse_file, short, words_for
from reconciler.core.parse_fast import FastReader
from reconciler.core.parse_places import Place, locate_all
from reconciler.core.problems import Problem
from reconciler.core.schema import QUOTE_IT, Finding, SchemaSet, launch_schema_problems, pointer_of
from reconciler.core.source import SourceFile

_READABLE_NAME = re.compile(VERSION)
_NAME = "/metadata/name"
_LAUNCH_PARAMETERS = "/spec/launch_parameters"
_FORMS_MAX = 1_000
_FORM_LENGTH_MAX = 10_000


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


@dataclass(frozen=True)
class Checks:
    """What files are held against. `fast` and `forms` remember, and are one caller's alone: a form
    is the `launch_parameters` of a version, which most often are those of the version before."""

    schemas: SchemaSet
    limits: ParseLimits
    fast: FastReader
    forms: dict[str, tuple[Finding, ...]] = field(default_factory=dict)


class _Checked(NamedTuple):
    """One document after every check of its own. `ref` None: what it names could not be told."""

    document: Document
    ref: ObjectRef | None
    findings: tuple[Finding, ...]
    manifest: Manifest | None


class _Allowed(NamedTuple):
    """A kind that lives at a path, and what the path says of the object."""

    kind: Kind
    placeholders: Mapping[str, str]


class _Reading(NamedTuple):
    """A file as far as it was read. `result` is there when nothing is left to check."""

    path: str
    content: bytes
    allowed: tuple[_Allowed, ...] = ()
    documents: tuple[Document, ...] = ()
    problems: tuple[Problem, ...] = ()
    result: FileResult | None = None


def check_files(files: Iterable[SourceFile], checks: Checks) -> list[FileResult]:
    """Everything that each file says by itself. One outside the known folders is not looked at.

    All are read before the first is checked: to do one thing ten thousand times and then the next
    takes a quarter less time than to do all things to one file after the other.
    """
    listed = list(files)
    results = [_checked(reading, checks) for reading in [_read(file, checks) for file in listed]]
    return [_bearing(file, result) for file, result in zip(listed, results, strict=True)]


def _bearing(file: SourceFile, result: FileResult) -> FileResult:
    if not result.broken and result is not NO_MANIFESTS:
        return result
    names = names_borne(file)
    return result._replace(bears=names) if names else result


def _read(file: SourceFile, checks: Checks) -> _Reading:
    def settled(result: FileResult) -> _Reading:
        return _Reading(file.path, file.content, result=result)

    if not _concerns_us(file):
        return settled(NO_MANIFESTS)
    refused = _refuse_file(file, checks.limits)
    if refused is not None:
        return settled(FileResult((refused,), broken=True))
    allowed = tuple([_Allowed(*place) for place in places_for_path(file.path)])
    if not allowed:
        return settled(FileResult((_unknown_path(file.path),), broken=True))
    documents, problems = parse_file(file.path, file.content, checks.limits, checks.fast)
    if not documents and not problems:
        return settled(FileResult((_empty_file(file.path),), broken=True))
    return _Reading(file.path, file.content, allowed, documents, problems)


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
    templates = [_readable(kind) for kind in KINDS.values() if kind.path.startswith(f"{meant}/")]
    near = get_close_matches(path, templates, n=1, cutoff=0.0)
    message = "no kind of manifest lives at this path"
    return Problem(path, 0, 0, "unknown_path", message, hint=f"did you mean {near[0]}?")


def _readable(kind: Kind) -> str:
    return kind.path.replace("{", "<").replace("}", ">")


def _check(
    allowed: tuple[_Allowed, ...], document: Document, alone: bool, checks: Checks
) -> _Checked:
    """Every check one document can be put to by itself. `alone`: the file holds nothing else."""
    value = document.value
    if len(allowed) > 1 and not isinstance(value.get("kind"), str):
        return _Checked(document, None, (_kind_not_said(allowed, value),), None)
    kind, placeholders = _pick(allowed, value.get("kind"))
    findings = _envelope(allowed, value)
    misplaced = bool(findings)
    findings += _schema_findings(kind, value, checks.schemas)
    manifest = None if findings else _model(kind, value, findings)
    name = _name_of(value)
    if name is None:
        return _Checked(document, None, tuple(findings), None)
    findings += _name_mismatch(kind, placeholders, name, alone)
    certain = not misplaced and all(finding.pointer != _NAME for finding in findings)
    findings += _agreement(kind, placeholders, value, name)
    findings += _unique_keys(kind, value)
    findings += _launch_parameters(value, checks.forms) if kind.name == "AppVersion" else []
    ref = ObjectRef(kind.name, (*scope_of(placeholders), name)) if certain else None
    return _Checked(document, ref, tuple(findings), None if findings else manifest)


def _pick(allowed: tuple[_Allowed, ...], said: object) -> _Allowed:
    """Of the kinds that a path allows, what a document says it is; else the nearest, the first."""
    names = [one.kind.name for one in allowed]
    if said not in names and len(names) > 1:
        said = nearest(str(said), names)
    return next((one for one in allowed if one.kind.name == said), allowed[0])


def _envelope(allowed: tuple[_Allowed, ...], value: Mapping[str, Any]) -> list[Finding]:
    """Whether it says it is what its path makes it. A missing kind is for the schema to find."""
    said = value.get("kind")
    if not isinstance(said, str) or any(said == one.kind.name for one in allowed):
        return []
    wanted = _either(allowed)
    if said in KINDS:
        message = f"{said} does not belong here: this path is for {wanted}"
        return [Finding("/kind", "kind_mismatch", message, f"move it to {_readable(KINDS[said])}")]
    meant = nearest(said[:100], KINDS)
    hint = f"did you mean {meant!r}?" if meant else f"this path is for {wanted}"
    return [Finding("/kind", "unknown_kind", f"unknown kind {short(said)}", hint)]


def _kind_not_said(allowed: tuple[_Allowed, ...], value: Mapping[str, Any]) -> Finding:
    """Of several kinds, none can be held against a document that doesn't say which it is."""
    hint = f"this path is for {_either(allowed)}"
    if "kind" not in value:
        return Finding("", "missing_field", "the field 'kind' is missing", hint)
    said = words_for(value["kind"])
    return Finding("/kind", "wrong_type", f"expected a string, got {said}", hint)


def _either(allowed: tuple[_Allowed, ...]) -> str:
    return " or ".join(one.kind.name for one in allowed)


def _schema_findings(kind: Kind, value: dict[str, Any], schemas: SchemaSet) -> list[Finding]:
    """By the schema of the kind it says it is, since the rest of it was written for that one."""
    said = value.get("kind")
    if not isinstance(said, str):
        return schemas.problems(kind.name, value)
    if said in KINDS:
        return schemas.problems(said, value)
    found = schemas.problems(kind.name, value)
    return [finding for finding in found if finding.pointer != "/kind"]


def _name_of(value: Mapping[str, Any]) -> str | None:
    metadata = value.get("metadata")
    name = metadata.get("name") if isinstance(metadata, dict) else None
    return name if isinstance(name, str) and _READABLE_NAME.fullmatch(name) else None


def _name_mismatch(
    kind: Kind, placeholders: Mapping[str, str], name: str, alone: bool
) -> list[Finding]:
    expected = placeholders.get("name")
    if expected is None or expected == name or not (alone or kind.names_its_folder):
        return []
    what = "folder" if kind.names_its_folder else "file"
    message = f"named {short(name)}, but its {what} is named {short(expected)}"
    return [Finding(_NAME, "name_mismatch", message, "rename one of the two")]


def _agreement(
    kind: Kind, placeholders: Mapping[str, str], value: Mapping[str, Any], name: str
) -> Iterator[Finding]:
    """Fields that repeat the name or the scope must agree with it."""
    expected = [(pointer, name) for pointer in kind.named_by]
    expected += [(pointer, placeholders[key]) for pointer, key in kind.scoped_by]
    for pointer, wanted in expected:
        found = _at(value, pointer)
        if isinstance(found, str) and found != wanted:
            message = f"{words_for(found)} disagrees with the path, which says {short(wanted)}"
            yield Finding(pointer, "path_mismatch", message, f"write {wanted}")


def _unique_keys(kind: Kind, value: Mapping[str, Any]) -> Iterator[Finding]:
    for pointer, key in kind.unique:
        entries = _at(value, pointer)
        seen: set[str | int] = set()
        for index, entry in enumerate(entries if isinstance(entries, list) else ()):
            found = entry.get(key) if isinstance(entry, dict) else None
            if not isinstance(found, str | int):
                continue
            if found in seen:
                message = f"{key} {found} is used twice"
                where = f"{pointer}/{index}/{key}"
                yield Finding(where, "duplicate_item", message, "each needs its own")
            seen.add(found)


def _launch_parameters(
    value: Mapping[str, Any], forms: dict[str, tuple[Finding, ...]]
) -> Iterator[Finding]:
    schema = _at(value, _LAUNCH_PARAMETERS)
    if not isinstance(schema, dict):
        return
    text = json.dumps(schema)
    found = forms.get(text)
    if found is None:
        found = tuple(launch_schema_problems(schema))
        if len(forms) < _FORMS_MAX and len(text) <= _FORM_LENGTH_MAX:
            forms[text] = found
    for finding in found:
        yield finding._replace(pointer=_LAUNCH_PARAMETERS + finding.pointer)


def _at(value: Any, pointer: str) -> Any:
    """What a pointer of plain mapping keys names; None when nothing stands there."""
    for segment in pointer.split("/")[1:]:
        value = value.get(segment) if isinstance(value, dict) else None
    return value


def _model(kind: Kind, value: dict[str, Any], findings: list[Finding]) -> Manifest | None:
    """The typed manifest; what only the model refuses is added to `findings`."""
    try:
        return kind.model.model_validate(value)
    except ValidationError as error:
        findings += [
            Finding(pointer_of(one["loc"]), "invalid_field", one["msg"])
            for one in error.errors(include_url=False, include_context=False, include_input=False)
        ]
        return None


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
