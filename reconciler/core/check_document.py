"""One document against its schema and its path: all that can be said without its model.

Rules: pure, and loads no model, which takes long; `core.validate_file` holds what is left to those.
Findings are values; none raises.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from reconciler.core.kind_places import PLACE_OF, KindPlace, places_for_path, scope_of
from reconciler.core.names import VERSION, ObjectRef, nearest
from reconciler.core.parse import Document, ParseLimits, parse_file, short, words_for
from reconciler.core.parse_fast import FastReader
from reconciler.core.schema import Finding, SchemaSet, launch_schema_problems
from reconciler.core.source import SourceFile

_READABLE_NAME = re.compile(VERSION)
NAME_POINTER = "/metadata/name"
_LAUNCH_PARAMETERS = "/spec/launch_parameters"
_FORMS_MAX = 1_000
_FORM_LENGTH_MAX = 10_000


class Allowed(NamedTuple):
    """A kind that lives at a path, and what the path says of the object."""

    place: KindPlace
    placeholders: Mapping[str, str]


@dataclass(frozen=True)
class Checks:
    """What files are held against. `fast` and `forms` remember, and are one caller's alone: a form
    is the `launch_parameters` of a version, which most often are those of the version before."""

    schemas: SchemaSet
    limits: ParseLimits
    fast: FastReader
    forms: dict[str, tuple[Finding, ...]] = field(default_factory=dict)


class Checked(NamedTuple):
    """One document. `ref` None: what it names could not be told; `kind` "": nor what it is."""

    document: Document
    kind: str
    ref: ObjectRef | None
    findings: tuple[Finding, ...]
    fits: bool
    """Whether its schema has nothing against it, so that a model may be made of it."""


Sound = tuple[Any, int, str, tuple[str, ...]]
"""A document without any finding: its value, its line, its kind, and the names it goes by."""


def sound_documents(file: SourceFile, checks: Checks) -> list[Sound] | None:
    """The documents of a file, if it stands where manifests belong and all of them are sound."""
    allowed = allowed_at(file.path) if file.kind == "file" else ()
    if not allowed:
        return None
    documents, problems = parse_file(file.path, file.content, checks.limits, checks.fast)
    if problems or not documents:
        return None
    sound: list[Sound] = []
    for document in documents:
        _, kind, ref, findings, _ = check_document(allowed, document, len(documents) == 1, checks)
        if findings or ref is None:
            return None
        sound.append((document.value, document.line, kind, ref.path))
    return sound


def allowed_at(path: str) -> tuple[Allowed, ...]:
    """The kinds that live at a path."""
    return tuple([Allowed(*place) for place in places_for_path(path)])


def check_document(
    allowed: tuple[Allowed, ...], document: Document, alone: bool, checks: Checks
) -> Checked:
    """Every check one document can be put to by itself. `alone`: the file holds nothing else."""
    value = document.value
    if len(allowed) > 1 and not isinstance(value.get("kind"), str):
        return Checked(document, "", None, (_kind_not_said(allowed, value),), fits=False)
    place, placeholders = _pick(allowed, value.get("kind"))
    findings = _envelope(allowed, value)
    misplaced = bool(findings)
    findings += _schema_findings(place, value, checks.schemas)
    fits = not findings
    name = _name_of(value)
    if name is None:
        return Checked(document, place.name, None, tuple(findings), fits)
    findings += _name_mismatch(place, placeholders, name, alone)
    certain = not misplaced and all(finding.pointer != NAME_POINTER for finding in findings)
    findings += _agreement(place, placeholders, value, name)
    findings += _unique_keys(place, value)
    findings += _launch_parameters(value, checks.forms) if place.name == "AppVersion" else []
    ref = ObjectRef(place.name, (*scope_of(placeholders), name)) if certain else None
    return Checked(document, place.name, ref, tuple(findings), fits)


def beyond_schema(path: str, value: Mapping[str, Any]) -> list[Finding]:
    """What a model of a document doesn't look at: whether it agrees with its path and itself."""
    allowed, name = allowed_at(path), _name_of(value)
    if not allowed or name is None:
        return [Finding(NAME_POINTER, "name_mismatch", f"no object of {path} has this name", "")]
    place, placeholders = _pick(allowed, value.get("kind"))
    findings = _envelope(allowed, value)
    findings += _agreement(place, placeholders, value, name)
    findings += _unique_keys(place, value)
    findings += _launch_parameters(value, {}) if place.name == "AppVersion" else []
    return findings


def ref_of(
    allowed: tuple[Allowed, ...], value: Mapping[str, Any], alone: bool
) -> ObjectRef | None:
    """The object that a document is about; None where `check_document` could not tell it either."""
    name = _name_of(value)
    if name is None or (len(allowed) > 1 and not isinstance(value.get("kind"), str)):
        return None
    place, placeholders = _pick(allowed, value.get("kind"))
    if _envelope(allowed, value) or _name_mismatch(place, placeholders, name, alone):
        return None
    return ObjectRef(place.name, (*scope_of(placeholders), name))


def readable(place: KindPlace) -> str:
    """The place as people write it."""
    return place.path.replace("{", "<").replace("}", ">")


def _pick(allowed: tuple[Allowed, ...], said: object) -> Allowed:
    """Of the kinds that a path allows, what a document says it is; else the nearest, the first."""
    names = [one.place.name for one in allowed]
    if said not in names and len(names) > 1:
        said = nearest(str(said), names)
    return next((one for one in allowed if one.place.name == said), allowed[0])


def _envelope(allowed: tuple[Allowed, ...], value: Mapping[str, Any]) -> list[Finding]:
    """Whether it says it is what its path makes it. A missing kind is for the schema to find."""
    said = value.get("kind")
    if not isinstance(said, str) or any(said == one.place.name for one in allowed):
        return []
    wanted = _either(allowed)
    if said in PLACE_OF:
        message = f"{said} does not belong here: this path is for {wanted}"
        return [
            Finding("/kind", "kind_mismatch", message, f"move it to {readable(PLACE_OF[said])}")
        ]
    meant = nearest(said[:100], PLACE_OF)
    hint = f"did you mean {meant!r}?" if meant else f"this path is for {wanted}"
    return [Finding("/kind", "unknown_kind", f"unknown kind {short(said)}", hint)]


def _kind_not_said(allowed: tuple[Allowed, ...], value: Mapping[str, Any]) -> Finding:
    """Of several kinds, none can be held against a document that doesn't say which it is."""
    hint = f"this path is for {_either(allowed)}"
    if "kind" not in value:
        return Finding("", "missing_field", "the field 'kind' is missing", hint)
    said = words_for(value["kind"])
    return Finding("/kind", "wrong_type", f"expected a string, got {said}", hint)


def _either(allowed: tuple[Allowed, ...]) -> str:
    return " or ".join(one.place.name for one in allowed)


def _schema_findings(place: KindPlace, value: dict[str, Any], schemas: SchemaSet) -> list[Finding]:
    """By the schema of the kind it says it is, since the rest of it was written for that one."""
    said = value.get("kind")
    if not isinstance(said, str):
        return schemas.problems(place.name, value)
    if said in PLACE_OF:
        return schemas.problems(said, value)
    found = schemas.problems(place.name, value)
    return [finding for finding in found if finding.pointer != "/kind"]


def _name_of(value: Mapping[str, Any]) -> str | None:
    metadata = value.get("metadata")
    name = metadata.get("name") if isinstance(metadata, dict) else None
    return name if isinstance(name, str) and _READABLE_NAME.fullmatch(name) else None


def _name_mismatch(
    place: KindPlace, placeholders: Mapping[str, str], name: str, alone: bool
) -> list[Finding]:
    expected = placeholders.get("name")
    if expected is None or expected == name or not (alone or place.names_its_folder):
        return []
    what = "folder" if place.names_its_folder else "file"
    message = f"named {short(name)}, but its {what} is named {short(expected)}"
    return [Finding(NAME_POINTER, "name_mismatch", message, "rename one of the two")]


def _agreement(
    place: KindPlace, placeholders: Mapping[str, str], value: Mapping[str, Any], name: str
) -> Iterator[Finding]:
    """Fields that repeat the name or the scope must agree with it."""
    expected = [(pointer, name) for pointer in place.named_by]
    expected += [(pointer, placeholders[key]) for pointer, key in place.scoped_by]
    for pointer, wanted in expected:
        found = _at(value, pointer)
        if isinstance(found, str) and found != wanted:
            message = f"{words_for(found)} disagrees with the path, which says {short(wanted)}"
            yield Finding(pointer, "path_mismatch", message, f"write {wanted}")


def _unique_keys(place: KindPlace, value: Mapping[str, Any]) -> Iterator[Finding]:
    for pointer, key in place.unique:
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
