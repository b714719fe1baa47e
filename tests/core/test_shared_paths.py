"""Where two kinds may stand at one path, the document says which it is, and both are told."""

from __future__ import annotations

import pytest

from reconciler.adapters.schema_files import load_schemas
from reconciler.core.desired import Candidate
from reconciler.core.kinds import KINDS, kind_for_path, kinds_for_path, pick
from reconciler.core.names import ObjectRef, Revision
from reconciler.core.parse import ParseLimits
from reconciler.core.schema import SchemaSet
from reconciler.core.source import Snapshot, SourceFile
from reconciler.core.validate import validate

SCHEMAS = SchemaSet.build(load_schemas())
PATH = "platform/iam/people.yaml"
ADA = """\
apiVersion: gpuaas.dev/v1
kind: Identity
metadata: {name: ada}
spec: {type: user, display_name: Ada}
"""
ADMINS = """\
apiVersion: gpuaas.dev/v1
kind: RoleBinding
metadata: {name: admins}
spec: {subjects: [{identity: ada}], role: platform-admin, scope: {platform: true}}
"""


def check(text: str) -> Candidate:
    files = (SourceFile(PATH, "0", text.encode()),)
    return validate(
        Snapshot(Revision("1" * 40), files, "Ada", "a change", 0), SCHEMAS, ParseLimits()
    )


def test_a_path_may_be_for_several_kinds() -> None:
    both = kinds_for_path(PATH)
    assert [kind.name for kind in both] == ["Identity", "RoleBinding"]
    assert kinds_for_path("platform/iam/deeper/people.yaml") == ()
    assert pick(both, "RoleBinding") is KINDS["RoleBinding"]
    assert pick(both, "Tenant") is KINDS["Identity"]
    assert kind_for_path(PATH, "RoleBinding") is KINDS["RoleBinding"]
    assert kind_for_path("README.md", "Identity") is None


def test_one_file_holds_both() -> None:
    found = check(f"{ADA}---\n{ADMINS}")
    assert found.problems == ()
    refs = [ObjectRef("Identity", ("ada",)), ObjectRef("RoleBinding", ("admins",))]
    assert sorted(found.objects, key=str) == refs


def test_two_kinds_may_share_a_name() -> None:
    found = check(f"{ADA}---\n{ADMINS.replace('name: admins', 'name: ada')}")
    assert found.problems == ()
    assert len(found.objects) == 2


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            ("kind: RoleBinding", "kind: Tenant"),
            "kind_mismatch: Tenant does not belong here: this path is for Identity or RoleBinding "
            "(move it to tenants/<name>/tenant.yaml)",
        ),
        (
            ("kind: RoleBinding", "kind: RoleBnding"),
            "unknown_kind: unknown kind 'RoleBnding' (did you mean 'RoleBinding'?)",
        ),
        (
            ("kind: RoleBinding", "kind: Role-1"),
            "unknown_kind: unknown kind 'Role-1' (this path is for Identity or RoleBinding)",
        ),
        (
            ("kind: RoleBinding\n", ""),
            "missing_field: the field 'kind' is missing (this path is for Identity or RoleBinding)",
        ),
        (
            ("kind: RoleBinding", "kind: 5"),
            "wrong_type: expected a string, got the number 5 "
            "(this path is for Identity or RoleBinding)",
        ),
        (
            ("role: platform-admin", "role: platform-amdin"),
            "unknown_value: the text 'platform-amdin' is not one of: platform-admin, ",
        ),
    ],
)
def test_what_is_said(change: tuple[str, str], says: str) -> None:
    found = check(ADMINS.replace(*change))
    said = [str(problem) for problem in found.problems]
    assert any(says in text for text in said), said
    assert found.objects == {}


def test_a_misspelt_kind_is_held_against_the_schema_that_was_meant() -> None:
    found = check(ADMINS.replace("kind: RoleBinding", "kind: RoleBnding"))
    assert [problem.code for problem in found.problems] == ["unknown_kind"]


def test_a_document_that_does_not_say_its_kind_breaks_its_file() -> None:
    """It may be any of them: what the file held before must not be taken for removed."""
    found = check(f"{ADA}---\n{ADMINS.replace('kind: RoleBinding', 'labels: {}')}")
    assert [problem.code for problem in found.problems] == ["missing_field"]
    assert found.broken_paths == {PATH}
