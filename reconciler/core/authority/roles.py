"""What each role may do, and what a machine may do at most.

Rules: every permission is in platform-admin. A role is held at a scope and covers what is below it.
A role or permission held where it makes no sense gives nothing there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import get_args

from reconciler.core.kinds.role_binding import Permission
from reconciler.core.kinds.service_account import ServiceRole

ALL_PERMISSIONS: frozenset[str] = frozenset(get_args(Permission))


def _area(prefix: str) -> frozenset[str]:
    return frozenset(key for key in ALL_PERMISSIONS if key.startswith(prefix))


_INSTANCES = _area("apps.instance.")
_ARTIFACTS = _area("apps.artifact.")
_PROJECT_OWNER = (
    _INSTANCES | _ARTIFACTS | {"tenants.entitlement.edit", "tenants.service_account.edit"}
)
_READ_INSTANCES = frozenset(("apps.instance.read",))

ROLES: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        "platform-admin": ALL_PERMISSIONS,
        "tenant-admin": _PROJECT_OWNER | {"tenants.project.edit"},
        "project-admin": _PROJECT_OWNER,
        "app-operator": _INSTANCES,
        "artifact-publisher": _READ_INSTANCES | {"apps.artifact.register", "apps.artifact.promote"},
        "break-glass": _READ_INSTANCES | {"platform.sync.break_glass"},
        "viewer": _READ_INSTANCES | {"fleet.node.read", "platform.status.read"},
    }
)
"""Role → its permissions. The role custom has those that its binding names."""

PLATFORM_ONLY = _area("platform.") | _area("fleet.") | _area("apps.app.") | _area("apps.version.")
"""What is about the whole platform: held at a tenant or project it gives nothing."""

MACHINE_ROLES: frozenset[str] = frozenset(get_args(ServiceRole))
MACHINE_PERMISSIONS = _INSTANCES | {
    "apps.artifact.promote",
    "apps.artifact.register",
    "apps.version.promote",
}
"""What needs no human; the rest can't be given to a service account."""

_DEEPEST: Mapping[str, int] = {"platform-admin": 0, "tenant-admin": 1}


def fits_scope(role: str, scope: tuple[str, ...]) -> bool:
    """Whether a role makes sense at a scope: a platform-admin of one tenant does not."""
    return len(scope) <= _DEEPEST.get(role, len(scope))


def permissions_of(role: str, custom: Iterable[str] | None = None) -> frozenset[str]:
    """Those of a role; `custom` are those that a binding names for the role custom."""
    return frozenset(custom or ()) & ALL_PERMISSIONS if role == "custom" else ROLES[role]


def roles_with(permission: str) -> tuple[str, ...]:
    """The roles that have a permission, most limited first."""
    able = [role for role, has in ROLES.items() if permission in has]
    return tuple(sorted(able, key=lambda role: (len(ROLES[role]), role)))
