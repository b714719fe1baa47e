"""A revision's files → the objects it holds, and everything that is wrong with them.

Rules: all problems at once, each with file, line and column. A document with a problem never
becomes an object. Where it is not certain which objects a file holds, the file is a broken path:
what it held before must not be taken for removed.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any

from pydantic import ValidationError

from reconciler.core.desired import Candidate, StateObject
from reconciler.core.kinds import KINDS, TOP_FOLDERS, Kind, Manifest, kind_for_path, ref_for
from reconciler.core.names import VERSION, ObjectRef, nearest
from reconciler.core.parse import (
    Document,
    ParseLimits,
    Place,
    locate_all,
    parse_file,
    short,
    words_for,
)
from reconciler.core.problems import Problem
from reconciler.core.schema import QUOTE_IT, Finding, SchemaSet, launch_schema_problems, pointer_of
from reconciler.core.source import Snapshot, SourceFile

_READABLE_NAME = re.compile(VERSION)
API_GROUP = b"gpuaas.dev/"
_NAME = "/metadata/name"
_LAUNCH_PARAMETERS = "/spec/launch_parameters"


@dataclass(frozen=True)
class _Checked:
    """One document after every check of its own. `ref` None: what it names could not be told."""

    document: Document
    ref: ObjectRef | None
    findings: tuple[Finding, ...]
    manifest: Manifest | None


@dataclass(frozen=True)
class _FileResult:
    path: str
    problems: tuple[Problem, ...]
    checked: tuple[_Checked, ...] = ()
    broken: bool = False


def validate(snapshot: Snapshot, schemas: SchemaSet, limits: ParseLimits) -> Candidate:
    """Reads every manifest of a revision. Files outside the known folders are not looked at.

    `broken_paths` may also name a folder: a link or submodule that stands where manifests belong.
    """
    results = [_read(file, schemas, limits) for file in snapshot.files if _concerns_us(file)]
    places = _places_by_ref(results)
    problems = {problem for result in results for problem in result.problems}
    problems.update(_duplicates(places))
    objects = {
        ref: StateObject(ref, path, item.document.line, item.manifest, item.document.value)
        for ref, [(path, item), *others] in sorted(places.items())
        if item.manifest is not None and not others
    }
    return Candidate(
        snapshot.revision,
        MappingProxyType(objects),
        tuple(sorted(problems)),
        frozenset(result.path for result in results if result.broken),
    )


def invalid_objects(candidate: Candidate) -> dict[ObjectRef, str]:
    """Objects whose own document is wrong, as far as their names could be read, with why."""
    invalid: dict[ObjectRef, str] = {}
    for problem in candidate.problems:
        if problem.object:
            try:
                ref = ObjectRef.parse(problem.object)
            except ValueError:
                continue
            invalid.setdefault(ref, f"{problem.code}: {problem.message}")
    return invalid


def located(
    problems: Iterable[Problem], snapshot: Snapshot, limits: ParseLimits
) -> tuple[Problem, ...]:
    """Problems between objects know the line of their document; this finds that of the field.

    Each file with such a problem is read once more. One whose document does not begin where the
    problem says (it is about an earlier form) keeps the place it has.
    """
    by_path: dict[str, list[Problem]] = defaultdict(list)
    for problem in problems:
        by_path[problem.path].append(problem)
    files = {file.path: file for file in snapshot.files if file.path in by_path}
    return tuple(
        placed
        for path, those in sorted(by_path.items())
        for placed in (_placed(files[path], those, limits) if path in files else those)
    )


def _placed(file: SourceFile, problems: list[Problem], limits: ParseLimits) -> list[Problem]:
    documents, _ = parse_file(file.path, file.content, limits)
    index_at = {document.line: document.index for document in documents}
    wanted: dict[int, set[str]] = defaultdict(set)
    for problem in problems:
        if problem.pointer and problem.line in index_at:
            wanted[index_at[problem.line]].add(problem.pointer)
    places = locate_all(file.content, wanted)
    found = [places.get((index_at.get(p.line, -1), p.pointer)) for p in problems]
    return [
        replace(problem, line=place.line, column=place.column) if place else problem
        for problem, place in zip(problems, found, strict=True)
    ]


def _concerns_us(file: SourceFile) -> bool:
    is_yaml = file.path.lower().endswith((".yaml", ".yml"))
    top = file.path.partition("/")[0]
    if top not in TOP_FOLDERS:
        # A misspelled folder would otherwise be taken for something that is none of our business.
        return is_yaml and API_GROUP in file.content and nearest(top, TOP_FOLDERS) is not None
    return is_yaml or file.kind in ("symlink", "submodule")


def _read(file: SourceFile, schemas: SchemaSet, limits: ParseLimits) -> _FileResult:
    refused = _refuse_file(file, limits)
    if refused is not None:
        return _FileResult(file.path, (refused,), broken=True)
    kind = kind_for_path(file.path)
    if kind is None:
        return _FileResult(file.path, (_unknown_path(file.path),), broken=True)
    documents, problems = parse_file(file.path, file.content, limits)
    if not documents and not problems:
        return _FileResult(file.path, (_empty_file(file.path),), broken=True)
    alone = len(documents) == 1 and not problems
    checked = tuple(_check(kind, file.path, document, alone, schemas) for document in documents)
    problems += _located(file, checked)
    broken = any(not problem.object for problem in problems)
    return _FileResult(file.path, problems, checked, broken)


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


def _check(kind: Kind, path: str, document: Document, alone: bool, schemas: SchemaSet) -> _Checked:
    """Every check one document can be put to by itself. `alone`: the file holds nothing else."""
    value = document.value
    findings = _envelope(kind, value)
    misplaced = bool(findings)
    findings += _schema_findings(kind, value, schemas)
    manifest = None if findings else _model(kind, value, findings)
    name = _name_of(value)
    if name is None:
        return _Checked(document, None, tuple(findings), None)
    findings += _name_mismatch(kind, path, name, alone)
    certain = not misplaced and all(finding.pointer != _NAME for finding in findings)
    findings += _agreement(kind, path, value, name)
    findings += _unique_keys(kind, value)
    findings += _launch_parameters(value) if kind.name == "AppVersion" else []
    ref = ref_for(kind, path, name) if certain else None
    return _Checked(document, ref, tuple(findings), None if findings else manifest)


def _envelope(kind: Kind, value: Mapping[str, Any]) -> list[Finding]:
    """Whether it says it is what its path makes it. A missing kind is for the schema to find."""
    said = value.get("kind")
    if not isinstance(said, str) or said == kind.name:
        return []
    if said in KINDS:
        message = f"{said} does not belong here: this path is for {kind.name}"
        return [Finding("/kind", "kind_mismatch", message, f"move it to {_readable(KINDS[said])}")]
    meant = nearest(said[:100], KINDS)
    hint = f"did you mean {meant!r}?" if meant else f"this path is for {kind.name}"
    return [Finding("/kind", "unknown_kind", f"unknown kind {short(said)}", hint)]


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


def _name_mismatch(kind: Kind, path: str, name: str, alone: bool) -> list[Finding]:
    expected = kind.placeholders(path).get("name")
    if expected is None or expected == name or not (alone or kind.names_its_folder):
        return []
    what = "folder" if kind.names_its_folder else "file"
    message = f"named {short(name)}, but its {what} is named {short(expected)}"
    return [Finding(_NAME, "name_mismatch", message, "rename one of the two")]


def _agreement(kind: Kind, path: str, value: Mapping[str, Any], name: str) -> Iterator[Finding]:
    """Fields that repeat the name or the scope must agree with it."""
    placeholders = kind.placeholders(path)
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


def _launch_parameters(value: Mapping[str, Any]) -> list[Finding]:
    schema = _at(value, _LAUNCH_PARAMETERS)
    found = launch_schema_problems(schema) if isinstance(schema, dict) else []
    return [finding._replace(pointer=_LAUNCH_PARAMETERS + finding.pointer) for finding in found]


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


def _located(file: SourceFile, checked: Sequence[_Checked]) -> tuple[Problem, ...]:
    """Findings with their line and column; the file is read once more, whatever their number."""
    wanted: dict[int, set[str]] = {
        item.document.index: {finding.pointer for finding in item.findings}
        for item in checked
        if item.findings
    }
    if not wanted:
        return ()
    places = locate_all(file.content, wanted)
    return tuple(
        _problem(file.path, item, finding, places[item.document.index, finding.pointer])
        for item in checked
        for finding in item.findings
    )


def _problem(path: str, item: _Checked, finding: Finding, place: Place) -> Problem:
    pointer, code, message, hint = finding
    if hint == QUOTE_IT and place.text:
        hint = f'{hint}: "{place.text}"'
    owner = str(item.ref) if item.ref else ""
    return Problem(path, place.line, place.column, code, message, pointer, hint, owner)


_Places = dict[ObjectRef, list[tuple[str, _Checked]]]


def _places_by_ref(results: Iterable[_FileResult]) -> _Places:
    places: _Places = defaultdict(list)
    for result in results:
        for item in result.checked:
            if item.ref is not None:
                places[item.ref].append((result.path, item))
    return places


def _duplicates(places: _Places) -> Iterator[Problem]:
    """Each place of an object that stands in several names another one."""
    for ref, found in places.items():
        for number, (path, item) in enumerate(found if len(found) > 1 else ()):
            other_path, other = found[0 if number else 1]
            message = f"{ref} also stands at {other_path}:{other.document.line}"
            yield Problem(
                path,
                item.document.line,
                1,
                "duplicate_object",
                message,
                hint="keep one of the two",
                object=str(ref),
            )
