"""Editors find the right schema for every file, and it says what the kind's own schema says."""

from __future__ import annotations

import json
import re
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import yaml

from docs import editor_schemas
from reconciler.core.kinds import KINDS, Kind
from reconciler.core.schema import compile_schema

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "example-state-repo"
FILES = sorted(EXAMPLE.rglob("*.yaml"))
CATALOG: list[dict[str, Any]] = json.loads((ROOT / "schemas/catalog.json").read_text())["schemas"]
IAM = "identity-or-rolebinding.v1.schema.json"
HEADER = "# yaml-language-server: $schema="


def documents(path: Path) -> list[str]:
    return re.split("^---\n", path.read_text(), flags=re.MULTILINE)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(EXAMPLE)))
def test_every_document_of_the_example_names_its_schema(path: Path) -> None:
    """An editor reads the header of each document by itself, so that each needs one."""
    for text in documents(path):
        header = text.partition("\n")[0]
        assert header.startswith(HEADER)
        kind = KINDS[yaml.safe_load(text)["kind"]]
        assert (
            path.parent / header[len(HEADER) :]
        ).resolve() == ROOT / "schemas" / kind.schema_file


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(EXAMPLE)))
def test_the_catalog_finds_one_schema_for_every_file(path: Path) -> None:
    inside = str(path.relative_to(EXAMPLE))
    for place in (f"/repos/state/{inside}", f"/srv/{inside.removesuffix('.yaml')}.yml"):
        found = [e["url"] for e in CATALOG if any(fnmatch(place, g) for g in e["fileMatch"])]
        assert found == [f"{editor_schemas.HOME}/{editor_schemas.schema_for(inside)}"]


def test_the_catalog_is_in_step_with_the_kinds() -> None:
    listed = [word for entry in CATALOG for word in entry["name"].split()[1:] if word != "or"]
    assert sorted(listed) == sorted(KINDS)
    for entry in CATALOG:
        name = entry["url"].removeprefix(f"{editor_schemas.HOME}/")
        schema = json.loads((ROOT / "schemas" / name).read_text())
        assert schema["$id"] == entry["url"]
        assert entry["description"]


def test_no_schema_for_what_is_no_manifest() -> None:
    assert editor_schemas.schema_for("README.md") == ""
    assert editor_schemas.schema_for("platform/iam/people.yaml") == IAM
    assert editor_schemas.schema_for("platform/nodes/a.yml") == "node.v1.schema.json"


@pytest.fixture(scope="module")
def combined() -> jsonschema_rs.Draft202012Validator:
    return compile_schema(json.loads((ROOT / "schemas" / IAM).read_text()))


@pytest.mark.parametrize("kind", [KINDS["Identity"], KINDS["RoleBinding"]], ids=lambda k: k.name)
def test_the_schema_of_a_shared_path_says_what_each_kind_says(
    kind: Kind, combined: jsonschema_rs.Draft202012Validator
) -> None:
    cases = ROOT / "tests/schemas" / kind.name.lower()
    assert all(combined.is_valid(read(path)) for path in (cases / "valid").iterdir())
    assert not any(combined.is_valid(read(path)) for path in (cases / "invalid").iterdir())


def test_the_schema_of_a_shared_path_takes_no_other_kind(
    combined: jsonschema_rs.Draft202012Validator,
) -> None:
    assert not combined.is_valid(read(ROOT / "tests/schemas/tenant/valid/alone.yaml"))
    assert not combined.is_valid({})


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text())
