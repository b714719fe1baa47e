"""Documents for hypothesis: drawn from a kind's schema, or a valid case bent out of shape.

What is drawn obeys the schema's types, patterns and bounds, and its conditions (`if` a field has
one value, `then`) and counts of fields most of the time: many documents are valid, the others
nearly so.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from hypothesis import strategies as st

Schema = Mapping[str, Any]

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 2),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from(["", "a", "A b", "hello\n", "1.10", "cpu", "docker", "active", "blob", "/x"]),
    st.text(max_size=70),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


def documents(schema: Schema) -> st.SearchStrategy[Any]:
    """Values that the schema describes."""
    if "const" in schema:
        return st.just(schema["const"])
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    types = schema.get("type", "object")
    if isinstance(types, list):
        return st.one_of(*(documents({**schema, "type": one, "examples": ()}) for one in types))
    return _OF_TYPE[types](schema)


def _text(schema: Schema) -> st.SearchStrategy[str]:
    known = st.sampled_from(schema["examples"]) if schema.get("examples") else st.nothing()
    if "pattern" in schema:
        return known | _matching(schema["pattern"])
    return known | st.text(min_size=schema.get("minLength", 0), max_size=30)


@cache
def _matching(pattern: str) -> st.SearchStrategy[str]:
    return st.from_regex(pattern, fullmatch=True)


def _integer(schema: Schema) -> st.SearchStrategy[int | float]:
    whole = st.integers(schema.get("minimum"), schema.get("maximum"))
    return whole | st.integers(1, 100).map(float)


def _number(schema: Schema) -> st.SearchStrategy[int | float]:
    return st.integers(1, 8) | st.floats(0.0625, 100)


def _array(schema: Schema) -> st.SearchStrategy[list[Any]]:
    least = schema.get("minItems", 0)
    return st.lists(documents(schema["items"]), min_size=least, max_size=least + 2)


def _object(schema: Schema) -> st.SearchStrategy[dict[str, Any]]:
    fields = schema.get("properties", {})
    values = schema.get("additionalProperties")
    if not fields:
        keys = documents(schema.get("propertyNames", {"type": "string"}))
        inner = documents(values) if isinstance(values, dict) else VALUES
        least = schema.get("minProperties", 0)
        return st.dictionaries(keys, inner, min_size=least, max_size=least + 2)
    if schema.get("maxProperties") == 1:
        one = (st.fixed_dictionaries({name: documents(rule)}) for name, rule in fields.items())
        return st.one_of(*one, _with_conditions(schema))
    return _with_conditions(schema)


@st.composite
def _with_conditions(draw: st.DrawFn, schema: Schema) -> dict[str, Any]:
    fields, needed = schema["properties"], set(schema.get("required", ()))
    made: dict[str, Any] = draw(
        st.fixed_dictionaries(
            {name: documents(rule) for name, rule in fields.items() if name in needed},
            optional={name: documents(rule) for name, rule in fields.items() if name not in needed},
        )
    )
    if draw(st.integers(0, 9)) == 0:
        return made
    for rule in (schema, *schema.get("allOf", ())):
        if "if" not in rule:
            continue
        holds = all(
            made.get(name) == one["const"] for name, one in rule["if"]["properties"].items()
        )
        _obey(draw, rule.get("then" if holds else "else", {}), fields, made)
    return made


def _obey(draw: st.DrawFn, rule: Schema, fields: Schema, made: dict[str, Any]) -> None:
    for name in rule.get("required", ()):
        made.setdefault(name, draw(documents(fields[name])))
    for name, narrower in rule.get("properties", {}).items():
        if narrower is False:
            made.pop(name, None)
        elif name in made:
            made[name] = draw(documents({**fields[name], "examples": (), **narrower}))


_OF_TYPE = {
    "string": _text,
    "integer": _integer,
    "number": _number,
    "boolean": lambda schema: st.booleans(),
    "array": _array,
    "object": _object,
}


def field_names(schema: Any) -> Iterator[str]:
    """Every name of a field anywhere in a schema."""
    if isinstance(schema, dict):
        fields = schema.get("properties")
        yield from fields if isinstance(fields, dict) else ()
        for inner in schema.values():
            yield from field_names(inner)
    elif isinstance(schema, list):
        for inner in schema:
            yield from field_names(inner)


def containers(value: Any) -> Iterator[dict[str, Any] | list[Any]]:
    if isinstance(value, dict | list):
        yield value
        for inner in value.values() if isinstance(value, dict) else value:
            yield from containers(inner)


def members(value: Any) -> Iterator[Any]:
    """What may be put somewhere else: everything inside, scalars included."""
    for holder in containers(value):
        yield from holder.values() if isinstance(holder, dict) else holder


@st.composite
def bent(draw: st.DrawFn, cases: list[Any], names: list[str]) -> Any:
    """A copy of one of the cases with members dropped, added, replaced or moved. `names` are those
    of fields.
    """
    valid = draw(st.sampled_from(cases))
    document = copy.deepcopy(valid)
    for _ in range(draw(st.integers(1, 3))):
        _bend(draw, draw(st.sampled_from(list(containers(document)))), valid, names)
    return document


def _bend(
    draw: st.DrawFn, target: dict[str, Any] | list[Any], donor: Any, names: list[str]
) -> None:
    graft = st.sampled_from(list(members(donor))).map(copy.deepcopy)
    value = draw(st.one_of(VALUES, graft))
    keys: list[Any] = list(target) if isinstance(target, dict) else list(range(len(target)))
    what = draw(st.sampled_from(["drop", "add", "replace"]))
    if what == "add" or not keys:
        if isinstance(target, list):
            target.append(value)
        else:
            target[draw(st.sampled_from(names) | st.text(max_size=6))] = value
        return
    key = draw(st.sampled_from(keys))
    if what == "drop":
        del target[key]
    else:
        target[key] = value
