"""Every kind is whole: schema, module, example and cases, and schema and model say the same."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from pydantic import ValidationError

from docs import editor_schemas
from reconciler.adapters.schema_files import load_schemas
from reconciler.core.kinds import KINDS, Kind, kinds_for_path
from reconciler.core.parse import ParseLimits, parse_file
from reconciler.core.schema import SchemaSet
from tests.schemas.generate import bent, documents, field_names

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SCHEMAS = SchemaSet.build(load_schemas())
OF_THE_ENVELOPE = {"unknown_top_field", "wrong_api_version"}
EXPECT = re.compile(r"# expect: (\w+) ?(.*)")


def cases(kind: Kind, verdict: str) -> list[Path]:
    return sorted((HERE / kind.name.lower() / verdict).glob("*.yaml"))


def all_cases(verdict: str) -> list[Any]:
    return [
        pytest.param(kind, path, id=f"{kind.name}-{path.stem}")
        for kind in KINDS.values()
        for path in cases(kind, verdict)
    ]


def read(path: Path) -> dict[str, Any]:
    documents, problems = parse_file(path.name, path.read_bytes(), ParseLimits())
    assert not problems
    assert len(documents) == 1
    return documents[0].value


def model_accepts(kind: Kind, document: Any) -> bool:
    try:
        kind.model.model_validate(document)
    except ValidationError:
        return False
    return True


@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.name)
def test_the_kind_has_all_its_pieces(kind: Kind) -> None:
    module = re.sub(r"(?<!^)(?=[A-Z])", "_", kind.name).lower()
    assert importlib.import_module(f"reconciler.core.kinds.{module}")
    assert (ROOT / "schemas" / kind.schema_file).is_file()
    assert len(cases(kind, "valid")) >= 2
    about_the_kind = [p for p in cases(kind, "invalid") if p.stem not in OF_THE_ENVELOPE]
    assert len(about_the_kind) >= 5
    examples = ROOT / "example-state-repo"
    homes = [
        p for p in examples.rglob("*.yaml") if kind in kinds_for_path(str(p.relative_to(examples)))
    ]
    assert any(f"\nkind: {kind.name}\n" in p.read_text() for p in homes)


def test_no_schema_and_no_case_is_left_over() -> None:
    files = {kind.schema_file for kind in KINDS.values()} | editor_schemas.files().keys()
    assert {path.name for path in (ROOT / "schemas").iterdir()} == files
    folders = {kind.name.lower() for kind in KINDS.values()}
    assert {path.name for path in HERE.iterdir() if (path / "valid").is_dir()} == folders


@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.name)
def test_the_schema_is_a_good_contract(kind: Kind) -> None:
    schema = load_schemas()[kind.name]
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["$id"] == f"https://schemas.gpuaas.dev/{kind.schema_file}"
    for pointer, rule in described(schema, ""):
        assert rule.get("description"), f"{pointer} has no description"
        if rule.get("properties"):
            assert rule.get("additionalProperties") is False, f"{pointer} is open"
    for example in schema["examples"]:
        assert SCHEMAS.problems(kind.name, example) == []
        assert model_accepts(kind, example)


def described(schema: Any, pointer: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every subschema that stands for a field or an entry."""
    yield pointer, schema
    for name, inner in schema.get("properties", {}).items():
        yield from described(inner, f"{pointer}/{name}")
    for keyword in ("items", "additionalProperties", "propertyNames"):
        if isinstance(schema.get(keyword), dict):
            yield from described(schema[keyword], f"{pointer}/{keyword}")


@pytest.mark.parametrize(("kind", "path"), all_cases("valid"))
def test_valid(kind: Kind, path: Path) -> None:
    document = read(path)
    assert SCHEMAS.problems(kind.name, document) == []
    assert model_accepts(kind, document)


@pytest.mark.parametrize(("kind", "path"), all_cases("invalid"))
def test_invalid(kind: Kind, path: Path) -> None:
    expected = EXPECT.fullmatch(path.read_text().partition("\n")[0])
    assert expected, "the first line says what to expect"
    document = read(path)
    found = [(finding.code, finding.pointer) for finding in SCHEMAS.problems(kind.name, document)]
    assert found == [(expected[1], expected[2])]
    assert not model_accepts(kind, document)
    # Python's $ also matches before a last newline; ECMA's, which JSON Schema means, does not.
    if path.stem != "digest_trailing_newline":
        reference = jsonschema.Draft202012Validator(load_schemas()[kind.name])
        assert not reference.is_valid(document)


# --- schema and model agree on whatever a document is turned into --------------------------------


def agree(kind: Kind, document: Any) -> bool:
    """Holds schema and model together; whether they took it."""
    findings = SCHEMAS.problems(kind.name, document)
    assert model_accepts(kind, document) == (not findings), json.dumps(document)
    assert all(finding.code != "schema_violation" and finding.message for finding in findings)
    return not findings


@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.name)
def test_schema_and_model_agree_on_what_the_schema_describes(kind: Kind) -> None:
    schema = load_schemas()[kind.name]
    taken: list[bool] = []

    @settings(max_examples=100, deadline=None)
    @given(documents(schema))
    def check(document: Any) -> None:
        taken.append(agree(kind, document))

    check()
    assert any(taken), "no valid document was drawn: half of the test has no teeth"


@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.name)
def test_schema_and_model_agree_on_valid_cases_bent_out_of_shape(kind: Kind) -> None:
    valid = [read(path) for path in cases(kind, "valid")]
    names = sorted(set(field_names(load_schemas()[kind.name])))

    @settings(max_examples=150, deadline=None)
    @given(bent(valid, names))
    def check(document: Any) -> None:
        agree(kind, document)

    check()
