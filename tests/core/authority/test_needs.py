"""What changes need: every kind, every sort of change, and manifests that make no sense."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.core.authority.needs import TABLE, needs, same, table_rows
from reconciler.core.authority.roles import ALL_PERMISSIONS, MACHINE_PERMISSIONS
from reconciler.core.kinds import KINDS
from reconciler.core.names import ObjectRef
from tests.core.authority.changes import (
    APPROVAL,
    ODD,
    TERM,
    Change,
    changes,
    document,
    ref_of,
    stepping,
)
from tests.core.authority.trust_builders import Document

LAB = ("acme", "lab")
REGISTER, PROMOTE, DEPRECATE, RETIRE, REVOKE = (
    f"apps.artifact.{verb}" for verb in ("register", "promote", "deprecate", "retire", "revoke")
)
CREATE, UPDATE, SUSPEND, DELETE = (
    f"apps.instance.{verb}" for verb in ("create", "update", "suspend", "delete")
)
EDIT, APPROVE, BREAK = (
    "platform.environment.edit",
    "platform.removals.approve",
    "platform.sync.break_glass",
)
OFFER, WITHDRAW = "apps.version.promote", "apps.version.deprecate"


def keys(kind: str, before: Any, after: Any) -> list[str]:
    return sorted(need.permission for need in needs(ref_of(kind), before, after))


def rows_of(kind: str) -> set[str]:
    return {row.permission for row in TABLE if row.kind == kind}


def test_every_kind_has_rows() -> None:
    assert {row.kind for row in TABLE} == set(KINDS)


def test_every_permission_that_is_no_look_is_asked_for() -> None:
    reads = {key for key in ALL_PERMISSIONS if key.endswith(".read")}
    assert {row.permission for row in TABLE} == ALL_PERMISSIONS - reads


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_change_of_every_kind_needs_something_of_its_kind(kind: str) -> None:
    for change in changes(kind).values():
        found = needs(*change)
        assert found, change
        assert {need.permission for need in found} <= rows_of(kind)
        assert all(
            need.human_only is (need.permission not in MACHINE_PERMISSIONS) for need in found
        )
        assert all(need.scope == change.ref.path[: len(need.scope)] for need in found)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_nothing_changed_needs_nothing(kind: str) -> None:
    assert needs(ref_of(kind), document(kind), document(kind)) == ()
    assert needs(ref_of(kind), None, None) == ()


def test_scopes_are_where_the_object_is() -> None:
    def scope(kind: str) -> tuple[str, ...]:
        return needs(*changes(kind)["c"])[0].scope

    assert scope("Environment") == scope("App") == scope("Identity") == ()
    assert scope("Tenant") == ("acme",)
    assert scope("Project") == scope("Artifact") == scope("AppInstance") == LAB


def environment(**spec: Any) -> Document:
    return document("Environment", **spec)


def instance(**spec: Any) -> Document:
    return document("AppInstance", **spec)


def artifact(state: str = "published", **spec: Any) -> Document:
    return document("Artifact", state=state, **spec)


PLAIN, GLASS = environment(), environment(sync={"break_glass": TERM})
CASES: dict[str, tuple[str, Document | None, Document | None, list[str]]] = {
    "an environment": ("Environment", None, PLAIN, [EDIT]),
    "with approvals": (
        "Environment", None, environment(guards={"approvals": [APPROVAL]}), [EDIT, APPROVE],
    ),
    "removals approved": (
        "Environment", PLAIN, environment(guards={"approvals": [APPROVAL]}), [EDIT, APPROVE],
    ),
    "a budget raised": ("Environment", PLAIN, environment(guards={"removals_max": 9}), [EDIT]),
    "glass broken": ("Environment", PLAIN, GLASS, [BREAK]),
    "glass mended": ("Environment", GLASS, PLAIN, [BREAK]),
    "glass mended, with an empty sync": ("Environment", GLASS, environment(sync={}), [BREAK]),
    "an empty sync cleared": ("Environment", environment(sync={}), PLAIN, [EDIT]),
    "glass broken and mode set": (
        "Environment", PLAIN, environment(sync={"break_glass": TERM, "mode": "manual"}),
        [EDIT, BREAK],
    ),
    "glass broken and renamed": (
        "Environment", PLAIN, environment(domain="x.example", sync={"break_glass": TERM}),
        [EDIT, BREAK],
    ),
    "environment gone": ("Environment", GLASS, None, [EDIT]),
    "sync that is a list": (
        "Environment", PLAIN, environment(sync=["break_glass"]), [EDIT, APPROVE, BREAK],
    ),
    "version offered": ("Promotion", *stepping("Promotion", "staged", "canary"), [OFFER]),
    "canary taken back": ("Promotion", *stepping("Promotion", "canary", "staged"), [OFFER]),
    "version deprecated": (
        "Promotion", *stepping("Promotion", "active", "deprecated"), [WITHDRAW],
    ),
    "deprecation undone": (
        "Promotion", *stepping("Promotion", "deprecated", "active"), [WITHDRAW, OFFER],
    ),
    "promotion deleted": ("Promotion", document("Promotion", state="active"), None, [WITHDRAW]),
    "a state nobody knows": (
        "Promotion", *stepping("Promotion", "active", "gold"), [WITHDRAW, OFFER],
    ),
    "registered": ("Artifact", None, artifact(), [REGISTER]),
    "registered as promoted": ("Artifact", None, artifact("promoted"), [PROMOTE, REGISTER]),
    "retagged": ("Artifact", artifact(), artifact(tag="v2"), [REGISTER]),
    "another digest under a promoted name": (
        "Artifact", artifact("promoted"), artifact("promoted", digest="sha256:2"),
        [PROMOTE, REGISTER],
    ),
    "promoted": ("Artifact", artifact(), artifact("promoted"), [PROMOTE]),
    "promoted, with another digest": (
        "Artifact", artifact(), artifact("promoted", digest="sha256:2"), [PROMOTE, REGISTER],
    ),
    "promotion undone": ("Artifact", artifact("promoted"), artifact(), [PROMOTE, REGISTER]),
    "deprecated": ("Artifact", artifact("promoted"), artifact("deprecated"), [DEPRECATE]),
    "promoted again": (
        "Artifact", artifact("deprecated"), artifact("promoted"), [DEPRECATE, PROMOTE],
    ),
    "retired": ("Artifact", artifact("deprecated"), artifact("retired"), [RETIRE]),
    "revoked": ("Artifact", artifact("retired"), artifact("revoked"), [REVOKE]),
    "revocation undone": (
        "Artifact", artifact("revoked"), artifact("promoted"), [PROMOTE, REVOKE],
    ),
    "artifact deleted": ("Artifact", artifact("promoted"), None, [RETIRE]),
    "revoked one deleted": ("Artifact", artifact("revoked"), None, [RETIRE, REVOKE]),
    "launched": ("AppInstance", None, instance(), [CREATE]),
    "launched, to stay down": (
        "AppInstance", None, instance(desired="decommissioned"), [CREATE, DELETE],
    ),
    "renamed": ("AppInstance", None, instance(moved_from="yan"), [CREATE, UPDATE]),
    "upgraded": ("AppInstance", instance(), instance(version="2.0.0"), [UPDATE]),
    "stopped": ("AppInstance", instance(), instance(desired="stopped"), [UPDATE]),
    "suspended": ("AppInstance", instance(), instance(suspend=TERM), [SUSPEND]),
    "suspended and upgraded": (
        "AppInstance", instance(), instance(suspend=TERM, version="2.0.0"), [SUSPEND, UPDATE],
    ),
    "file deleted": ("AppInstance", instance(), None, [DELETE]),
    "taken down": ("AppInstance", instance(), instance(desired="decommissioned"), [DELETE]),
    "taken down and changed": (
        "AppInstance", instance(), instance(desired="decommissioned", version="2.0.0"),
        [DELETE, UPDATE],
    ),
    "brought back": ("AppInstance", instance(desired="decommissioned"), instance(), [CREATE]),
    "true for 1": (
        "AppInstance", instance(parameters={"n": 1}), instance(parameters={"n": True}), [UPDATE],
    ),
    "desired is a list": (
        "AppInstance", instance(), instance(desired=["running"]),
        [CREATE, DELETE, SUSPEND, UPDATE],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_a_change_needs(case: str) -> None:
    kind, before, after, expected = CASES[case]
    assert keys(kind, before, after) == sorted(expected)


def test_an_unknown_kind_needs_everything() -> None:
    found = needs(ObjectRef("Unicorn", ("x",)), None, {"kind": "Unicorn"})
    assert {need.permission for need in found} == ALL_PERMISSIONS
    assert all(need.scope == () for need in found)


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("spec", [None, [], "spec", 7, {"state": [], "desired": {}, "guards": 1}])
def test_what_is_not_understood_needs_all_of_its_kind(kind: str, spec: Any) -> None:
    broken = {**document(kind), "spec": spec}
    assert set(keys(kind, document(kind), broken)) == rows_of(kind)


@given(kind=st.sampled_from(sorted(KINDS)), before=st.none() | ODD, after=st.none() | ODD)
def test_any_two_documents_need_something_unless_they_are_the_same(
    kind: str, before: Any, after: Any
) -> None:
    found = needs(ref_of(kind), before, after)
    assert bool(found) is not same(before, after)
    assert {need.permission for need in found} <= rows_of(kind)


@pytest.mark.parametrize(
    ("one", "other"), [(1, True), (1, 1.0), (0, False), ("1", 1), ([1], (1,)), ({}, []), (None, 0)]
)
def test_values_of_different_types_are_different(one: Any, other: Any) -> None:
    assert not same(one, other)
    assert not same({"a": [one]}, {"a": [other]})


def test_the_table_can_be_read() -> None:
    row = next(row for row in table_rows() if row.permission == "platform.removals.approve")
    assert row == (
        "Environment",
        "change guards.approvals",
        "platform.removals.approve",
        "the platform",
        True,
        "beside platform.environment.edit",
    )
    assert len(table_rows()) == len(TABLE)


def test_a_change_is_named_by_what_it_does() -> None:
    change: Change = changes("AppInstance")["s"]
    assert [need.words for need in needs(*change)] == ["suspend"]


@pytest.mark.parametrize(
    ("kind", "field", "value", "permission"),
    [
        ("Project", "ssh_key", {"version": 2}, "tenants.project.edit"),
        ("Node", "ssh_user", "tunnel", "fleet.node.edit"),
    ],
)
def test_who_is_let_into_nodes_is_for_people_to_decide(
    kind: str, field: str, value: object, permission: str
) -> None:
    """No machine puts in or takes out a project's key, or the user that it lets in."""
    without, having = document(kind), document(kind, **{field: value})
    for before, after in ((without, having), (having, without)):
        [need] = needs(ref_of(kind), before, after)
        assert (need.permission, need.human_only) == (permission, True)
