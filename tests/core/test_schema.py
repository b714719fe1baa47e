"""Findings in plain words, and schemas that users bring along."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from reconciler.adapters.schema_files import load_schemas
from reconciler.core.parse import short
from reconciler.core.schema import (
    FINDINGS_MAX,
    ITEMS_LOOKED_AT_MAX,
    Finding,
    SchemaSet,
    launch_schema_problems,
    parameter_problems,
)
from tests.core import builders as b

CASES: list[Any] = [
    ({"type": "string"}, 1.5, "wrong_type", "expected a string, got the number 1.5"),
    ({"type": ["integer", "null"]}, "x", "wrong_type", "expected a whole number or null, got"),
    ({"const": 3}, 4, "unknown_value", "the number 4 is not one of: 3"),
    ({"enum": ["a", "b"]}, ["a"], "unknown_value", "a list is not one of: a, b"),
    ({"pattern": "^a$"}, "b", "wrong_format", "the text 'b' has the wrong form"),
    ({"minimum": 1, "maximum": 8}, 9, "out_of_range", "must be at least 1 and at most 8"),
    ({"exclusiveMinimum": 0}, 0, "out_of_range", "0 is out of range: it must be more than 0"),
    ({"multipleOf": 2}, 3, "out_of_range", "it must be a multiple of 2"),
    ({"minLength": 2}, "x", "wrong_length", "1 characters: it must be at least 2"),
    ({"maxItems": 1}, [1, 2], "wrong_count", "2 entries: it must be 0 to 1"),
    ({"minProperties": 1}, {}, "wrong_count", "0 entries: it must be at least 1"),
    ({"uniqueItems": True}, [{"a": 1}, {"a": 1}], "duplicate_item", "stands here twice"),
    ({"properties": {"a": False}}, {"a": 1}, "field_not_allowed", "'a' does not belong here"),
    ({"propertyNames": {"maxLength": 1}}, {"ab": 1}, "wrong_format", "the name 'ab' has the wrong"),
    ({"not": {}}, 1, "schema_violation", ""),
]


@pytest.mark.parametrize(("rule", "value", "code", "words"), CASES)
def test_findings_in_plain_words(rule: dict[str, Any], value: Any, code: str, words: str) -> None:
    (finding,) = parameter_problems({"properties": {"v": rule}}, {"v": value})
    assert finding.code == code
    assert words in finding.message
    assert finding.pointer.startswith("/v")


HINTS: list[tuple[dict[str, Any], Any, str]] = [
    ({"type": "integer"}, "8080", "write the number without quotes"),
    ({"type": "integer"}, "256Mi", "write a plain number, without a unit"),
    ({"type": "number"}, "500m", "write a plain number, without a unit"),
    ({"type": ["integer", "string"], "pattern": "^all$"}, "1", "write the number without quotes"),
    (
        {"type": "object", "required": ["service"], "properties": {"service": {}, "if": {}}},
        "db",
        "write it with its fields, as in {service: …}: if, service",
    ),
    ({"type": "array", "description": "Program."}, "a b", "Program. Write a list"),
    ({"type": "object", "description": "Variables."}, ["A=1"], "Variables."),
]


@pytest.mark.parametrize(("rule", "value", "hint"), HINTS, ids=lambda one: str(one)[:30])
def test_what_is_of_another_sort_is_told_how_to_write_it(
    rule: dict[str, Any], value: Any, hint: str
) -> None:
    (found,) = parameter_problems({"properties": {"v": rule}}, {"v": value})
    assert found.hint == hint


def test_what_other_formats_call_it_is_known() -> None:
    rule = {
        "additionalProperties": False,
        "properties": {"env": {}},
        "x-instead": {"environment": "call it env"},
    }
    (found,) = parameter_problems(rule, {"environment": {}})
    assert (found.code, found.hint) == ("unknown_field", "call it env")


def test_a_pattern_says_what_would_be_right() -> None:
    rule = {"pattern": "^[a-z]+$", "description": "A word.", "examples": ["hello"]}
    (finding,) = parameter_problems({"properties": {"v": rule}}, {"v": "1"})
    assert finding.hint == 'A word. For example "hello"'


def test_an_address_that_names_a_user_is_not_quoted() -> None:
    document = b.world()[b.ENVIRONMENT_FILE]
    document["spec"]["package_index"] = {"url": "https://ci:hunter2@wheels.example/simple/"}
    (found,) = SchemaSet.build(load_schemas()).problems("Environment", document)
    assert (found.code, found.pointer) == ("wrong_format", "/spec/package_index/url")
    assert found.message == "an address can't name a user or password: anybody can read it here"
    assert found.hint == "leave out what stands before the @"
    assert short("pip @ https://ci:hunter2@wheels.example/") == "'pip @ https://…@wheels.example/'"


def test_long_values_are_cut() -> None:
    (finding,) = parameter_problems({"properties": {"v": {"pattern": "^b$"}}}, {"v": "a" * 100_000})
    assert len(finding.message) < 120


@pytest.mark.parametrize(
    ("schema", "finding"),
    [
        (
            {"properties": {"a": {"$ref": "https://example.com/s.json"}}},
            ("/properties/a/$ref", "launch_parameters_ref", "$ref is not taken here"),
        ),
        (
            {"$defs": {"a/b": {"$dynamicRef": "#x"}}},
            ("/$defs/a~1b/$dynamicRef", "launch_parameters_ref", "$ref is not taken here"),
        ),
        (
            {"properties": []},
            ("/properties", "launch_parameters_invalid", "not a valid JSON Schema: [] is not of"),
        ),
        (
            {"properties": {"a": {"pattern": "("}}},
            ("/properties/a/pattern", "launch_parameters_invalid", "not a valid JSON Schema: "),
        ),
        (
            {"type": ["object", "null"]},
            ("/type", "launch_parameters_invalid", "the type must be object"),
        ),
    ],
)
def test_launch_parameters_must_be_a_usable_schema(
    schema: dict[str, Any], finding: tuple[str, str, str]
) -> None:
    (found,) = launch_schema_problems(schema)
    assert (found.pointer, found.code) == finding[:2]
    assert finding[2] in found.message


def test_good_launch_parameters() -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer", "x-ui": {"label": "N"}}}}
    assert launch_schema_problems(schema) == []
    assert launch_schema_problems({}) == []
    assert parameter_problems(schema, {"n": 1}) == []


def test_a_pattern_that_would_backtrack_for_ever_is_answered() -> None:
    schema = {"properties": {"a": {"pattern": "^(a+)+$"}}}
    assert launch_schema_problems(schema) == []
    found = parameter_problems(schema, {"a": "a" * 50_000 + "!"})
    assert [finding.code for finding in found] == ["wrong_format"]


def test_our_own_schema_may_not_ask_the_network() -> None:
    with pytest.raises(ValueError, match=r"cannot fetch http://127\.0\.0\.1:9/schema"):
        SchemaSet.build({"App": {"$ref": "http://127.0.0.1:9/schema"}})


@pytest.mark.parametrize("name", ["0", "007", "+1", "-1", "1.0"])
def test_a_name_of_digits_is_found_where_it_stands(name: str) -> None:
    schema = {
        "type": "object",
        "additionalProperties": {"type": "array", "uniqueItems": True, "items": {"maximum": 1}},
    }
    found = parameter_problems(schema, {name: [1, 1], "list": [0, 9]})
    assert [(one.pointer, one.code) for one in found] == [
        (f"/{name}", "duplicate_item"),
        ("/list/1", "out_of_range"),
    ]


def test_findings_come_in_order() -> None:
    schema = SchemaSet.build(
        {"App": {"additionalProperties": False, "required": ["z"], "properties": {"z": {}}}}
    )
    assert schema.problems("App", {"b": 1, "a": 2}) == [
        Finding("", "missing_field", "the field 'z' is missing"),
        Finding("/a", "unknown_field", "unknown field 'a'", "known fields: z"),
        Finding("/b", "unknown_field", "unknown field 'b'", "known fields: z"),
    ]


def test_no_parameter_is_known_where_none_is_named() -> None:
    found = parameter_problems({"type": "object", "additionalProperties": False}, {"a": 1})
    assert found == [Finding("/a", "unknown_field", "unknown field 'a'")]


def test_a_document_full_of_mistakes_gets_a_bounded_answer() -> None:
    schema = SchemaSet.build({"App": {"additionalProperties": False}})
    found = schema.problems("App", {f"k{n}": 1 for n in range(50_000)})
    assert len(found) == FINDINGS_MAX + 1
    assert found[-1].code == "too_many_problems"
    assert found[-1].message == ("more than 100 problems in one document: the rest is not shown")


def test_a_wide_schema_takes_no_more_memory_than_it_has() -> None:
    """Attempted: gigabytes of pointers, from a file of one MB."""
    wide = {"k" * 100_000: [0] * 100_000, "items": [{"$ref": "#/x"}] * 1_000}
    found = launch_schema_problems(wide)
    assert [f.code for f in found] == ["launch_parameters_ref"] * 20
    assert found[-1].pointer.startswith("/items/")


def test_a_finding_does_not_carry_a_whole_schema() -> None:
    """Attempted: an enum of one MB, repeated in the problem of each instance that misses it."""
    schema = {"properties": {"size": {"enum": ["x" * 900_000]}}}
    (found,) = parameter_problems(schema, {"size": 1})
    assert (found.code, len(found.message)) == ("unknown_value", 500)


def test_a_list_of_half_a_million_wrong_entries_is_told_by_its_length() -> None:
    document = {"kind": "Allocation", "spec": {"gpus": [1] * 500_000}}
    found = SchemaSet.build(load_schemas()).problems("Allocation", document)
    assert len(found) <= FINDINGS_MAX + 1
    assert found[-1].code == "too_many_problems"
    schemas = SchemaSet.build({"X": {"properties": {"v": {"maxItems": 1024}}}})
    (told,) = schemas.problems("X", {"v": [1] * 500_000})
    assert told.message == "500000 entries: it must be 0 to 1024"


def test_what_only_the_end_of_a_long_list_breaks_is_found() -> None:
    schema = {"type": "object", "properties": {"v": {"items": {"type": "string"}}}}
    schemas = SchemaSet.build({"X": schema})
    assert [f.pointer for f in schemas.problems("X", {"v": [*["a"] * 5_000, 1]})] == ["/v/5000"]


def test_the_published_schemas_take_no_list_that_checking_would_cut() -> None:
    bounds = re.findall(r'"m(?:ax|in)Items": (\d+)', json.dumps(load_schemas()))
    assert bounds
    assert max(map(int, bounds)) < ITEMS_LOOKED_AT_MAX
