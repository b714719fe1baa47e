"""The kinds of the state repo: one module a kind, one row a kind in KINDS.

Rules: pure. A path fixes the kind and the scope; the document only adds its own name. Adding a kind
is a module, a row, a schema and its cases; a test walks KINDS and fails on a missing piece.
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
from reconciler.core.kinds.node import Node
from reconciler.core.kinds.project import Project
from reconciler.core.kinds.promotion import Promotion
from reconciler.core.kinds.tenant import Tenant
from reconciler.core.names import ObjectRef

_PROJECT = "tenants/{tenant}/projects/{project}"
_PORTS = "/spec/runtime_profile/ports"

_ROWS = (
    Kind("Environment", Environment, "environments/{name}.yaml"),
    Kind("Node", Node, "platform/nodes/{any}.yaml", unique=(("/spec/accelerators", "uuid"),)),
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
    Kind("Allocation", Allocation, f"{_PROJECT}/allocations/{{name}}.yaml"),
    Kind("Artifact", Artifact, f"{_PROJECT}/artifacts/{{app}}/{{version}}/{{name}}.yaml"),
    Kind("AppInstance", AppInstance, f"{_PROJECT}/instances/{{name}}.yaml"),
)

KINDS: Mapping[str, Kind] = MappingProxyType({row.name: row for row in _ROWS})
TOP_FOLDERS = frozenset(row.path.partition("/")[0] for row in _ROWS)


def kind_for_path(path: str) -> Kind | None:
    """The kind whose manifests live at `path`; None when there is none."""
    return next((kind for kind in _ROWS if kind.pattern.fullmatch(path)), None)


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
    "ref_for",
]
