"""Roles hold what they are said to hold, and no permission is forgotten."""

from __future__ import annotations

from typing import get_args

import pytest

from reconciler.core.authority.needs import TABLE
from reconciler.core.authority.roles import (
    ALL_PERMISSIONS,
    MACHINE_PERMISSIONS,
    MACHINE_ROLES,
    PLATFORM_ONLY,
    ROLES,
    fits_scope,
    permissions_of,
    roles_with,
)
from reconciler.core.kinds.role_binding import Permission, Role

HUMAN_OF_A_PROJECT = {
    "apps.artifact.deprecate",
    "apps.artifact.retire",
    "apps.artifact.revoke",
    "apps.artifact.verify",
    "tenants.entitlement.edit",
    "tenants.service_account.edit",
}
INSTANCES = {f"apps.instance.{verb}" for verb in ("create", "delete", "read", "suspend", "update")}
MACHINE_ARTIFACTS = {"apps.artifact.promote", "apps.artifact.register"}


def test_every_role_and_permission_is_known() -> None:
    assert set(ROLES) | {"custom"} == set(get_args(Role))
    assert ROLES["platform-admin"] == set(get_args(Permission)) == ALL_PERMISSIONS


@pytest.mark.parametrize(
    ("role", "held"),
    [
        (
            "tenant-admin",
            INSTANCES | MACHINE_ARTIFACTS | HUMAN_OF_A_PROJECT | {"tenants.project.edit"},
        ),
        ("project-admin", INSTANCES | MACHINE_ARTIFACTS | HUMAN_OF_A_PROJECT),
        ("app-operator", INSTANCES),
        ("artifact-publisher", MACHINE_ARTIFACTS | {"apps.instance.read"}),
        ("break-glass", {"apps.instance.read", "platform.sync.break_glass"}),
        ("viewer", {"apps.instance.read", "fleet.node.read", "platform.status.read"}),
    ],
)
def test_a_role_holds(role: str, held: set[str]) -> None:
    assert permissions_of(role) == held


def test_custom_holds_what_its_binding_names() -> None:
    assert permissions_of("custom", ["apps.app.edit", "no.such.key"]) == {"apps.app.edit"}
    assert permissions_of("custom") == frozenset()


def test_a_machines_roles_hold_nothing_that_needs_a_human_where_it_acts() -> None:
    for role in sorted(MACHINE_ROLES):
        assert permissions_of(role) - MACHINE_PERMISSIONS <= PLATFORM_ONLY, role


def test_what_is_for_the_platform_only_is_needed_nowhere_else() -> None:
    """Reads have no row: nothing is changed by them."""
    assert {row.permission for row in TABLE if row.where == "platform"} <= PLATFORM_ONLY
    assert not {row.permission for row in TABLE if row.where != "platform"} & PLATFORM_ONLY


def test_wide_roles_are_not_held_in_narrow_scopes() -> None:
    assert fits_scope("platform-admin", ())
    assert not fits_scope("platform-admin", ("acme",))
    assert fits_scope("tenant-admin", ("acme",))
    assert not fits_scope("tenant-admin", ("acme", "lab"))
    assert fits_scope("viewer", ("acme", "lab"))


def test_roles_with_a_permission_come_most_limited_first() -> None:
    assert roles_with("apps.artifact.promote") == (
        "artifact-publisher",
        "project-admin",
        "tenant-admin",
        "platform-admin",
    )
