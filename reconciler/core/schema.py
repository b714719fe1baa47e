"""Documents against their JSON Schemas, with findings a person can act on.

Rules: no network and no file is ever asked for a $ref. Patterns run on an engine that is linear in
its input, so that neither a schema nor a value can stall a pass. Findings are values; none raises.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from types import MappingProxyType
from typing import Any, NamedTuple

import jsonschema_rs

from reconciler.core.names import nearest
from reconciler.core.parse import escape, short, words_for

_TYPE_WORDS = {
    "string": "a string",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "array": "a list",
    "object": "a mapping",
    "null": "null",
}
FINDINGS_MAX = 100
WORDS_MAX = 500
"""A finding may quote an app's own schema, which may be as long as a file."""
REFERENCES_MAX = 20
ITEMS_LOOKED_AT_MAX = 2_000
_PATTERN_LENGTH_MAX = 60
QUOTE_IT = "put it in quotes"
_YAML_1_1_BOOLEANS = {"yes": "true", "on": "true", "no": "false", "off": "false"}


class Finding(NamedTuple):
    """`pointer` is a JSON pointer into the document; `code` is stable."""

    pointer: str
    code: str
    message: str
    hint: str = ""


@dataclass(frozen=True)
class SchemaSet:
    """One compiled validator a kind."""

    schemas: Mapping[str, Mapping[str, Any]]
    validators: Mapping[str, jsonschema_rs.Draft202012Validator]

    @classmethod
    def build(cls, documents: Mapping[str, dict[str, Any]]) -> SchemaSet:
        """`documents` are kind → schema; ValueError for one that is no schema (our own mistake)."""
        validators = {kind: compile_schema(schema) for kind, schema in documents.items()}
        return cls(MappingProxyType(dict(documents)), MappingProxyType(validators))

    def problems(self, kind: str, document: Any) -> list[Finding]:
        """Everything the schema of `kind` finds wrong with `document`, in document order."""
        validator = self.validators[kind]
        if validator.is_valid(document):
            return []
        # The library draws up all errors before it gives the first: of half a million, in seconds.
        shown = _shortened(document)
        errors = validator.iter_errors(document if validator.is_valid(shown) else shown)
        return _findings(errors, self.schemas[kind], document)


def launch_schema_problems(schema: Mapping[str, Any]) -> list[Finding]:
    """What is wrong with an app's `launch_parameters` as a JSON Schema; pointers start inside it.

    References are refused: a form's schema has no need for them, and a loop of them has no bottom.
    """
    references = [
        Finding(pointer, "launch_parameters_ref", "$ref is not taken here", "write the schema out")
        for pointer in islice(_references(schema), REFERENCES_MAX)
    ]
    if references:
        return references
    if schema.get("type", "object") != "object":
        message = "launch_parameters describe a mapping: the type must be object"
        return [Finding("/type", "launch_parameters_invalid", message)]
    try:
        compile_schema(dict(schema))
    except ValueError as error:
        return [_unusable_schema(error)]
    return []


def parameter_problems(schema: Mapping[str, Any], parameters: Mapping[str, Any]) -> list[Finding]:
    """An instance's parameters against its version's (already checked) `launch_parameters`."""
    document = dict(parameters)
    return _findings(compile_schema(dict(schema)).iter_errors(document), schema, document)


def compile_schema(schema: dict[str, Any]) -> jsonschema_rs.Draft202012Validator:
    """ValueError when it is no schema. Nothing is fetched, patterns run in linear time."""
    return jsonschema_rs.Draft202012Validator(
        schema, offline=True, pattern_options=jsonschema_rs.RegexOptions()
    )


def _unusable_schema(error: ValueError) -> Finding:
    path = error.instance_path if isinstance(error, jsonschema_rs.ValidationError) else []
    message = getattr(error, "message", str(error)).partition("\n")[0]
    return Finding(
        pointer_of(path), "launch_parameters_invalid", f"not a valid JSON Schema: {message[:200]}"
    )


def _references(schema: Mapping[str, Any]) -> Iterator[str]:
    """Pointers to every $ref and $dynamicRef, without recursion; built for collections only, as
    there may be any number of other values."""
    waiting: list[tuple[str, Any]] = [("", schema)]
    while waiting:
        pointer, value = waiting.pop()
        members = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, inner in members:
            if key in ("$ref", "$dynamicRef"):
                yield f"{pointer}/{key}"
            if isinstance(inner, Mapping | list):
                waiting.append((f"{pointer}/{escape(str(key))}", inner))


def pointer_of(path: Sequence[str | int]) -> str:
    """A JSON pointer from its segments."""
    return "".join(f"/{escape(str(segment))}" for segment in path)


def _findings(
    errors: Iterable[jsonschema_rs.ValidationError], schema: Mapping[str, Any], document: Any
) -> list[Finding]:
    each = (finding for error in errors for finding in _of_error(error, schema, document))
    found = sorted({_clipped(finding) for finding in islice(each, FINDINGS_MAX)})
    if next(each, None) is not None:
        message = f"more than {FINDINGS_MAX} problems in one document: the rest is not shown"
        found.append(Finding("", "too_many_problems", message))
    return found


def _shortened(value: Any) -> Any:
    """The same with long lists cut: none of the published schemas takes one as long as the rest."""
    if isinstance(value, list):
        return [_shortened(item) for item in value[:ITEMS_LOOKED_AT_MAX]]
    if isinstance(value, dict):
        return {key: _shortened(inner) for key, inner in value.items()}
    return value


def _clipped(found: Finding) -> Finding:
    return found._replace(message=clip(found.message), hint=clip(found.hint))


def clip(text: str) -> str:
    return text if len(text) <= WORDS_MAX else text[: WORDS_MAX - 1] + "…"


def _of_error(
    error: jsonschema_rs.ValidationError, schema: Mapping[str, Any], document: Any
) -> Iterator[Finding]:
    path = _true_path(document, error.instance_path)
    pointer = pointer_of(path)
    keyword = error.kind.name
    rule = _rule(schema, error.schema_path)
    if keyword == "additionalProperties":
        known = rule.get("properties", {})
        for name in error.kind.as_dict()["unexpected"]:
            yield _unknown_field(pointer, name, known, rule.get("x-instead"))
    elif keyword == "required":
        name = str(error.kind.as_dict()["property"])
        about = str(_member(rule, name).get("description", ""))
        yield Finding(pointer, "missing_field", f"the field {short(name)} is missing", about)
    elif keyword == "falseSchema" and error.schema_path[-1:] == ["additionalProperties"]:
        # How the library puts it when the schema names no field: once, and without the names.
        for name in _value_at(document, path):
            yield _unknown_field(pointer, name, {})
    elif keyword == "falseSchema":
        name = str(path[-1]) if path else ""
        yield Finding(pointer, "field_not_allowed", f"{short(name)} does not belong here")
    elif keyword == "propertyNames":
        name = str(error.kind.as_dict()["error"].instance)
        message = f"the name {short(name)} has the wrong form"
        yield Finding(f"{pointer}/{escape(name)}", "wrong_format", message, _expected(rule))
    elif keyword in _EXPLAIN:
        code, message, hint = _EXPLAIN[keyword](_value_at(document, path), rule)
        yield Finding(pointer, code, message, hint)
    else:
        yield Finding(pointer, "schema_violation", error.message[:200])


def _true_path(document: Any, path: Sequence[str | int]) -> list[str | int]:
    """The path with the names that stand there: the library takes `007` for the number 7."""
    found: list[str | int] = []
    for given in path:
        step = given
        if isinstance(document, dict) and step not in document:
            step = next((name for name in document if _as_number(name) == given), str(given))
        found.append(step)
        inside = isinstance(document, list) or (isinstance(document, dict) and step in document)
        document = document[step] if inside else None
    return found


def _as_number(name: str) -> int | None:
    digits = name.removeprefix("+")
    return int(digits) if len(digits) < 20 and digits.isascii() and digits.isdecimal() else None


def _value_at(document: Any, path: Sequence[str | int]) -> Any:
    for step in path:
        document = document[step]
    return document


def _rule(schema: Any, path: Sequence[str | int]) -> Mapping[str, Any]:
    """The subschema whose keyword failed; empty when it can't be followed."""
    for step in path[:-1]:
        try:
            schema = schema[step]
        except (KeyError, IndexError, TypeError):
            return {}
    return schema if isinstance(schema, Mapping) else {}


def _member(rule: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = rule.get("properties", {}).get(name, {})
    return found if isinstance(found, Mapping) else {}


def _unknown_field(
    pointer: str, name: str, known: Mapping[str, Any], instead: Any = None
) -> Finding:
    """`instead`: what to do about names that other formats have for it."""
    meant = nearest(name, known)
    hint = f"did you mean {meant!r}?" if meant else f"known fields: {', '.join(sorted(known))}"
    if isinstance(instead, Mapping) and name in instead:
        hint = str(instead[name])
    where = f"{pointer}/{escape(name)}"
    return Finding(where, "unknown_field", f"unknown field {short(name)}", hint if known else "")


def _expected(rule: Mapping[str, Any]) -> str:
    """What would be right, from the schema's own words."""
    about = str(rule.get("description", ""))
    examples = rule.get("examples") or ()
    return f"{about} For example {json.dumps(examples[0])}".strip() if examples else about


_NUMBER = re.compile(r"[-+]?[0-9]+(?:\.[0-9]+)?")
_UNQUOTE = "write the number without quotes"
_PLAIN = "write a plain number, without a unit"
_Explained = tuple[str, str, str]
_Explain = Callable[[Any, Mapping[str, Any]], _Explained]


def _type(value: Any, rule: Mapping[str, Any]) -> _Explained:
    types = rule.get("type", [])
    types = [types] if isinstance(types, str) else types
    wanted = " or ".join(_TYPE_WORDS.get(word, word) for word in types)
    hint = ""
    if "string" in types and isinstance(value, int | float):
        hint = QUOTE_IT
    elif "boolean" in types and isinstance(value, str) and value.lower() in _YAML_1_1_BOOLEANS:
        hint = f"write {_YAML_1_1_BOOLEANS[value.lower()]}"
    elif value is None:
        hint = "give it a value or leave the field out"
    elif isinstance(value, str) and types in (["integer"], ["number"]):
        hint = _UNQUOTE if _NUMBER.fullmatch(value) else _PLAIN
    else:
        hint = _written(types, rule)
    return "wrong_type", f"expected {wanted}, got {words_for(value)}", hint


def _written(types: Sequence[str], rule: Mapping[str, Any]) -> str:
    """How what holds others is written."""
    fields = rule.get("properties")
    if types == ["object"] and isinstance(fields, Mapping) and fields:
        needed = [str(name) for name in rule.get("required", ())]
        example = f", as in {{{', '.join(f'{name}: …' for name in needed)}}}" if needed else ""
        return f"write it with its fields{example}: {', '.join(sorted(fields))}"
    if types == ["array"]:
        return f"{_expected(rule)} Write a list".strip()
    return _expected(rule) if types == ["object"] else ""


def _choice(value: Any, rule: Mapping[str, Any]) -> _Explained:
    options = rule["enum"] if "enum" in rule else [rule.get("const")]
    meant = nearest(value, [o for o in options if isinstance(o, str)]) if _is_text(value) else None
    wanted = ", ".join(str(option) for option in options)
    message = f"{words_for(value)} is not one of: {wanted}"
    return "unknown_value", message, f"did you mean {meant!r}?" if meant else ""


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= 100


def _format(value: Any, rule: Mapping[str, Any]) -> _Explained:
    if isinstance(value, str) and "://" in value and "@" in value.split("://")[1].split("/")[0]:
        what = "an address can't name a user or password: anybody can read it here"
        return "wrong_format", what, "leave out what stands before the @"
    pattern = str(rule.get("pattern", ""))
    if pattern.startswith("^secret://"):
        # Not quoted: it may be the value itself that somebody put in the wrong place.
        what = "what stands here is no secret that this instance may refer to"
        hint = (
            "secret://project/NAME of its own project or secret://tenant/NAME of its tenant; "
            "those of others can't be named, and a value never stands here"
        )
        return "secret_reference_refused", what, hint
    if "integer" in rule.get("type", ()) and isinstance(value, str) and _NUMBER.fullmatch(value):
        return "wrong_type", f"expected a number, got {words_for(value)}", _UNQUOTE
    shown = f" (pattern {pattern})" if 0 < len(pattern) <= _PATTERN_LENGTH_MAX else ""
    return "wrong_format", f"{words_for(value)} has the wrong form{shown}", _expected(rule)


def _range(value: Any, rule: Mapping[str, Any]) -> _Explained:
    bounds = (
        ("at least", rule.get("minimum")),
        ("more than", rule.get("exclusiveMinimum")),
        ("at most", rule.get("maximum")),
        ("less than", rule.get("exclusiveMaximum")),
        ("a multiple of", rule.get("multipleOf")),
    )
    wanted = " and ".join(f"{words} {bound}" for words, bound in bounds if bound is not None)
    return "out_of_range", f"{value} is out of range: it must be {wanted}", ""


def _length(value: Any, rule: Mapping[str, Any]) -> _Explained:
    low, high = rule.get("minLength", 0), rule.get("maxLength")
    message = f"{len(value)} characters: it must be {_between(low, high)}"
    return "wrong_length", message, str(rule.get("description", ""))


def _count(value: Any, rule: Mapping[str, Any]) -> _Explained:
    noun = "Items" if isinstance(value, list) else "Properties"
    low, high = rule.get(f"min{noun}", 0), rule.get(f"max{noun}")
    if noun == "Properties" and low == high == 1 and "properties" in rule:
        message = f"give exactly one of: {', '.join(sorted(rule['properties']))}"
        return "wrong_count", message, ""
    entry = "entry" if len(value) == 1 else "entries"
    return "wrong_count", f"{len(value)} {entry}: it must be {_between(low, high)}", ""


def _between(low: int, high: int | None) -> str:
    if high is None:
        return f"at least {low}"
    return f"{low} to {high}"


def _unique(value: Any, rule: Mapping[str, Any]) -> _Explained:  # noqa: ARG001
    seen: set[str] = set()
    for entry in value:
        text = json.dumps(entry, sort_keys=True)
        if text in seen:
            return "duplicate_item", f"{text[:60]} stands here twice", "keep one of the two"
        seen.add(text)
    return "duplicate_item", "an entry stands here twice", "keep one of the two"


_EXPLAIN: Mapping[str, _Explain] = MappingProxyType(
    {
        "type": _type,
        "enum": _choice,
        "const": _choice,
        "pattern": _format,
        "format": _format,
        "minimum": _range,
        "maximum": _range,
        "exclusiveMinimum": _range,
        "exclusiveMaximum": _range,
        "multipleOf": _range,
        "minLength": _length,
        "maxLength": _length,
        "minItems": _count,
        "maxItems": _count,
        "minProperties": _count,
        "maxProperties": _count,
        "uniqueItems": _unique,
    }
)
