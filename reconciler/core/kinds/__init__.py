"""The kinds of the state repo: one module a kind, one row a kind in `core.kind_places`.

Rules: pure. A path fixes the scope and the kind, or the few kinds that a document may choose from
(Identity and RoleBinding share theirs); the document only adds its own name. Adding a kind is a
module, a row, a schema and its cases; a test walks KINDS and fails on a missing piece.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from reconciler.core.kind_places import KIND_PLACES, TOP_FOLDERS, KindPlace, places_for_path
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

_MODELS: tuple[type[Manifest], ...] = (
    Allocation,
    App,
    AppInstance,
    AppVersion,
    Artifact,
    Entitlement,
    Environment,
    FleetPolicy,
    Identity,
    Node,
    PlatformRelease,
    Project,
    Promotion,
    RoleBinding,
    ServiceAccount,
    Tenant,
    TrustPolicy,
)


def _kind(place: KindPlace, model: type[Manifest]) -> Kind:
    return Kind(place.name, place.path, place.named_by, place.scoped_by, place.unique, model=model)


_BY_NAME = {model.__name__: model for model in _MODELS}
KINDS: Mapping[str, Kind] = MappingProxyType(
    {place.name: _kind(place, _BY_NAME[place.name]) for place in KIND_PLACES}
)


def kinds_for_path(path: str) -> tuple[Kind, ...]:
    """The kinds whose manifests live at `path`, most often one; empty when none does."""
    return tuple([KINDS[place.name] for place, _ in places_for_path(path)])


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
    "ref_for",
]
