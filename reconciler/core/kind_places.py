"""Where the manifests of each kind live: one row a kind.

Rules: pure, and loads no model, so that documents can be read and held against their schema by who
has not loaded the models. The models are beside their rows in `core.kinds`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType

from reconciler.core.names import NAME, VERSION

_SEGMENTS = {"version": VERSION}


@dataclass(frozen=True)
class KindPlace:
    """Where the manifests of one kind live, and what the path says of them.

    `path` is the path template. `{name}` in a folder fixes metadata.name; in the file name it does
    so for a file of one document; `{any}` leaves the file name free. The other placeholders are the
    scope. `named_by` are pointers whose value must be metadata.name, `scoped_by` pairs of a pointer
    and the placeholder it must agree with, `unique` pairs of a list's pointer and the key that no
    two entries may share.
    """

    name: str
    path: str
    named_by: tuple[str, ...] = ()
    scoped_by: tuple[tuple[str, str], ...] = ()
    unique: tuple[tuple[str, str], ...] = ()

    @property
    def schema_file(self) -> str:
        return f"{self.name.lower()}.v1.schema.json"

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """The template as an expression over whole paths; `.yml` is taken as well."""
        folder, _, file = self.path.rpartition("/")
        folder = re.sub(r"\{(\w+)\}", _folder_group, folder)
        file = re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", file.removesuffix(".yaml"))
        return re.compile(rf"{folder}/{file}\.ya?ml")

    def placeholders(self, path: str) -> dict[str, str]:
        """Placeholder → its value in `path`; empty when the path is not this kind's."""
        found = self.pattern.fullmatch(path)
        return found.groupdict() if found else {}

    def path_of(self, names: tuple[str, ...]) -> str:
        """Where the object of these names, outermost first, is looked for by a reader."""
        left = iter(names)
        return re.sub(r"\{\w+\}", lambda _: next(left), self.path)

    def scope(self, path: str) -> tuple[str, ...]:
        """The names above the object, outermost first; ValueError for another kind's path."""
        if not self.pattern.fullmatch(path):
            raise ValueError(f"{path} is no path of a {self.name} ({self.path})")
        return scope_of(self.placeholders(path))

    @cached_property
    def names_its_folder(self) -> bool:
        """Whether metadata.name is fixed by a folder, however many documents the file has."""
        return "{name}" in self.path.rpartition("/")[0]


def scope_of(placeholders: Mapping[str, str]) -> tuple[str, ...]:
    """The names above an object, outermost first, from what its path says."""
    return tuple([value for key, value in placeholders.items() if key not in ("name", "any")])


def _folder_group(found: re.Match[str]) -> str:
    return f"(?P<{found[1]}>{_SEGMENTS.get(found[1], NAME)})"


_PROJECT = "tenants/{tenant}/projects/{project}"
_PORTS = "/spec/runtime_profile/ports"
_SECRETS = "/spec/runtime_profile/secrets"
_TOPOLOGY = "/spec/runtime_profile/topology"

KIND_PLACES = (
    KindPlace("Environment", "environments/{name}.yaml"),
    KindPlace(
        "TrustPolicy",
        "platform/trust/{any}.yaml",
        unique=(("/spec/signing_keys", "id"), ("/spec/builders", "id")),
    ),
    KindPlace("Identity", "platform/iam/{any}.yaml", unique=(("/spec/keys", "id"),)),
    KindPlace("RoleBinding", "platform/iam/{any}.yaml"),
    KindPlace(
        "FleetPolicy",
        "platform/fleet/{any}.yaml",
        unique=(("/spec/rollout/waves", "name"),),
    ),
    KindPlace("Node", "platform/nodes/{any}.yaml", unique=(("/spec/accelerators", "uuid"),)),
    KindPlace("PlatformRelease", "platform/releases/{name}.yaml"),
    KindPlace("App", "catalog/{name}/app.yaml", named_by=("/spec/slug",)),
    KindPlace(
        "AppVersion",
        "catalog/{app}/versions/{name}.yaml",
        named_by=("/spec/version",),
        scoped_by=(("/spec/slug", "app"),),
        unique=(
            (_PORTS, "name"),
            (_PORTS, "container"),
            (_SECRETS, "name"),
            (_SECRETS, "env"),
            (f"{_TOPOLOGY}/services", "name"),
            (f"{_TOPOLOGY}/volumes", "name"),
            (f"{_TOPOLOGY}/endpoints", "name"),
        ),
    ),
    KindPlace("Promotion", "catalog/{app}/promotions/{name}.yaml"),
    KindPlace("Tenant", "tenants/{name}/tenant.yaml"),
    KindPlace("Project", "tenants/{tenant}/projects/{name}/project.yaml"),
    KindPlace("Entitlement", f"{_PROJECT}/entitlements/{{name}}.yaml"),
    KindPlace(
        "ServiceAccount",
        f"{_PROJECT}/service-accounts/{{name}}.yaml",
        unique=(("/spec/public_keys", "id"),),
    ),
    KindPlace("Allocation", f"{_PROJECT}/allocations/{{name}}.yaml"),
    KindPlace("Artifact", f"{_PROJECT}/artifacts/{{app}}/{{version}}/{{name}}.yaml"),
    KindPlace("AppInstance", f"{_PROJECT}/instances/{{name}}.yaml"),
)

PLACE_OF: Mapping[str, KindPlace] = MappingProxyType({row.name: row for row in KIND_PLACES})
TOP_FOLDERS = frozenset(row.path.partition("/")[0] for row in KIND_PLACES)
_ANY = "*"


def _shape(path: str) -> tuple[str, int, str]:
    """What tells most kinds apart without an expression: the first folder, the depth, the last."""
    folder = path.rpartition("/")[0]
    last = folder.rpartition("/")[2]
    return path.partition("/")[0], path.count("/"), _ANY if "{" in last else last


_BY_SHAPE = {
    shape: tuple(row for row in KIND_PLACES if _shape(row.path) == shape)
    for shape in map(_shape, (row.path for row in KIND_PLACES))
}


def places_for_path(path: str) -> list[tuple[KindPlace, dict[str, str]]]:
    """The kinds whose manifests live at `path`, most often one, each with what the path says of its
    objects: placeholder → value."""
    shape = top, depth, _ = _shape(path)
    rows = (*_BY_SHAPE.get(shape, ()), *_BY_SHAPE.get((top, depth, _ANY), ()))
    found = [(kind, kind.pattern.fullmatch(path)) for kind in rows]
    return [(kind, match.groupdict()) for kind, match in found if match]
