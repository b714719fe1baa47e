"""Every kind is whole: schema, module, example and cases, and schema and model say the same."""

from __future__ import annotations

import copy
import importlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from reconciler.adapters.schema_files import load_schemas
from reconciler.core.kinds import KINDS, Kind, kind_for_path
from reconciler.core.parse import ParseLimits, parse_file
from reconciler.core.schema import SchemaSet

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SCHEMAS = SchemaSet.build(load_schemas())
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
    assert len(cases(kind, "invalid")) >= 5
    examples = ROOT / "example-state-repo"
    homes = [kind_for_path(str(p.relative_to(examples))) for p in examples.rglob("*.yaml")]
    assert kind in homes


def test_no_schema_and_no_case_is_left_over() -> None:
    files = {kind.schema_file for kind in KINDS.values()}
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

VALID = [(kind, read(path)) for kind in KINDS.values() for path in cases(kind, "valid")]
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


def containers(value: Any) -> Iterator[dict[str, Any] | list[Any]]:
    if isinstance(value, dict | list):
        yield value
        for inner in value.values() if isinstance(value, dict) else value:
            yield from containers(inner)


@st.composite
def mutated(draw: st.DrawFn) -> tuple[Kind, Any]:
    kind, valid = draw(st.sampled_from(VALID))
    document = copy.deepcopy(valid)
    for _ in range(draw(st.integers(1, 3))):
        mutate(draw, draw(st.sampled_from(list(containers(document)))), valid)
    return kind, document


def mutate(draw: st.DrawFn, target: dict[str, Any] | list[Any], donor: Any) -> None:
    """Drops, adds, replaces or grafts one member."""
    graft = st.sampled_from(list(containers(donor))).map(copy.deepcopy)
    value = draw(st.one_of(VALUES, graft))
    keys: list[Any] = list(target) if isinstance(target, dict) else list(range(len(target)))
    what = draw(st.sampled_from(["drop", "add", "replace"]))
    if what == "add" or not keys:
        if isinstance(target, list):
            target.append(value)
        else:
            known = ["source", "canary", "tcp", "exec", "vault", "labels", "gpus", "desired"]
            target[draw(st.sampled_from(known) | st.text(max_size=6))] = value
        return
    key = draw(st.sampled_from(keys))
    if what == "drop":
        del target[key]
    else:
        target[key] = value


@settings(max_examples=600, deadline=None)
@given(mutated())
def test_schema_and_model_agree(case: tuple[Kind, Any]) -> None:
    kind, document = case
    findings = SCHEMAS.problems(kind.name, document)
    assert model_accepts(kind, document) == (not findings), json.dumps(document)
    assert all(finding.code != "schema_violation" and finding.message for finding in findings)
