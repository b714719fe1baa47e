"""The kinds of the state repo: one module a kind, one row a kind in KINDS.

Rules: pure. A path fixes the scope and the kind, or the few kinds that a document may choose from
(Identity and RoleBinding share theirs); the document only adds its own name. Adding a kind is a
module, a row, a schema and its cases; a test walks KINDS and fails on a missing piece.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from reconciler.core.kinds.allocation import Allocation
from reconciler.core.kinds.app import App
from reconciler.core.kinds.app_instance import AppInstance
from reconciler.core.kinds.app_version import AppVersion
from reconciler.core.kinds.artifact import Artifact
from reconciler.core.kinds.base import API_VERSION, Kind, Manifest, Metadata
from reconciler.core.kinds.entitlement import Entitlement
from reconciler.core.kinds.environment import Environment
from reconciler.core.kinds.fleet_policy import FleetPolicy
from reconciler.core.kinds.identity import Identity
from reconciler.core.kinds.node import Node
from reconciler.core.kinds.platform_release import PlatformRelease
from reconciler.core.kinds.project import Project
from reconciler.core.kinds.promotion import Promotion
from reconciler.core.kinds.role_binding import RoleBinding
from reconciler.core.kinds.service_account import ServiceAccount
from reconciler.core.kinds.tenant import Tenant
from reconciler.core.kinds.trust_policy import TrustPolicy
from reconciler.core.names import ObjectRef

_PROJECT = "tenants/{tenant}/projects/{project}"
_PORTS = "/spec/runtime_profile/ports"

_ROWS = (
    Kind("Environment", Environment, "environments/{name}.yaml"),
    Kind(
        "TrustPolicy",
        TrustPolicy,
        "platform/trust/{any}.yaml",
        unique=(("/spec/signing_keys", "id"), ("/spec/builders", "id")),
    ),
    Kind("Identity", Identity, "platform/iam/{any}.yaml", unique=(("/spec/keys", "id"),)),
    Kind("RoleBinding", RoleBinding, "platform/iam/{any}.yaml"),
    Kind(
        "FleetPolicy",
        FleetPolicy,
        "platform/fleet/{any}.yaml",
        unique=(("/spec/rollout/waves", "name"),),
    ),
    Kind("Node", Node, "platform/nodes/{any}.yaml", unique=(("/spec/accelerators", "uuid"),)),
    Kind("PlatformRelease", PlatformRelease, "platform/releases/{name}.yaml"),
    Kind("App", App, "catalog/{name}/app.yaml", named_by=("/spec/slug",)),
    Kind(
        "AppVersion",
        AppVersion,
        "catalog/{app}/versions/{name}.yaml",
        named_by=("/spec/version",),
        scoped_by=(("/spec/slug", "app"),),
        unique=((_PORTS, "name"), (_PORTS, "container")),
    ),
    Kind("Promotion", Promotion, "catalog/{app}/promotions/{name}.yaml"),
    Kind("Tenant", Tenant, "tenants/{name}/tenant.yaml"),
    Kind("Project", Project, "tenants/{tenant}/projects/{name}/project.yaml"),
    Kind("Entitlement", Entitlement, f"{_PROJECT}/entitlements/{{name}}.yaml"),
    Kind(
        "ServiceAccount",
        ServiceAccount,
        f"{_PROJECT}/service-accounts/{{name}}.yaml",
        unique=(("/spec/public_keys", "id"),),
    ),
    Kind("Allocation", Allocation, f"{_PROJECT}/allocations/{{name}}.yaml"),
    Kind("Artifact", Artifact, f"{_PROJECT}/artifacts/{{app}}/{{version}}/{{name}}.yaml"),
    Kind("AppInstance", AppInstance, f"{_PROJECT}/instances/{{name}}.yaml"),
)

KINDS: Mapping[str, Kind] = MappingProxyType({row.name: row for row in _ROWS})
TOP_FOLDERS = frozenset(row.path.partition("/")[0] for row in _ROWS)
_ANY = "*"


def _shape(path: str) -> tuple[str, int, str]:
    """What tells most kinds apart without an expression: the first folder, the depth, the last."""
    folder = path.rpartition("/")[0]
    last = folder.rpartition("/")[2]
    return path.partition("/")[0], path.count("/"), _ANY if "{" in last else last


_BY_SHAPE = {
    shape: tuple(row for row in _ROWS if _shape(row.path) == shape)
    for shape in map(_shape, (row.path for row in _ROWS))
}


def kinds_for_path(path: str) -> tuple[Kind, ...]:
    """The kinds whose manifests live at `path`, most often one; empty when none does."""
    return tuple([kind for kind, _ in places_for_path(path)])


def places_for_path(path: str) -> list[tuple[Kind, dict[str, str]]]:
    """The same, each with what the path says of its objects: placeholder → value."""
    shape = top, depth, _ = _shape(path)
    rows = (*_BY_SHAPE.get(shape, ()), *_BY_SHAPE.get((top, depth, _ANY), ()))
    found = [(kind, kind.pattern.fullmatch(path)) for kind in rows]
    return [(kind, match.groupdict()) for kind, match in found if match]


def pick(kinds: tuple[Kind, ...], said: object) -> Kind:
    """Of those that a path allows, the kind that a document says it is; the first when none."""
    return next((kind for kind in kinds if kind.name == said), kinds[0])


def kind_for_path(path: str, said: object = None) -> Kind | None:
    """The kind of a document at `path` that says it is a `said`; None when no kind lives there."""
    kinds = kinds_for_path(path)
    return pick(kinds, said) if kinds else None


def ref_for(kind: Kind, path: str, name: str) -> ObjectRef:
    """The object called `name` in the file at `path`; raises ValueError for another kind's path."""
    return ObjectRef(kind.name, (*kind.scope(path), name))


__all__ = [
    "API_VERSION",
    "KINDS",
    "TOP_FOLDERS",
    "Kind",
    "Manifest",
    "Metadata",
    "kind_for_path",
    "kinds_for_path",
    "pick",
    "places_for_path",
    "ref_for",
]
