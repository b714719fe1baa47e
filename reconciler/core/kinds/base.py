"""What every kind is made of.

Rules: a model accepts exactly what its schema in `schemas/` accepts, and a test holds the two
together. Unknown fields are refused, nothing is coerced, nothing is mutable. A field is given or
left out, never null. Units stand last in names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    model_validator,
)

from reconciler.core.names import NAME, VERSION

API_VERSION = "gpuaas.dev/v1"

_T = TypeVar("_T")
_COMPONENT = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_REPOSITORY = rf"[a-z0-9]+(?:(?:_|__|-+)[a-z0-9]+)*(?:/{_COMPONENT})*"
_DIGEST = "sha256:[0-9a-f]{64}"


def _integral(value: Any) -> Any:
    """JSON Schema takes 5.0 for the integer 5, and so do the models."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _unique(value: tuple[_T, ...]) -> tuple[_T, ...]:
    if len(set(value)) != len(value):
        raise ValueError("an entry stands there twice")
    return value


def _matching(pattern: str, length_max: int) -> StringConstraints:
    return StringConstraints(pattern=f"^{pattern}$", max_length=length_max)


Int = Annotated[int, BeforeValidator(_integral)]
Items = Annotated[tuple[_T, ...], Field(strict=False, max_length=1024)]
"""A list in YAML, a tuple in here."""
UniqueItems = Annotated[
    tuple[_T, ...], Field(strict=False, max_length=1024), AfterValidator(_unique)
]
Name = Annotated[str, StringConstraints(pattern=f"^{NAME}$")]
Version = Annotated[str, StringConstraints(pattern=f"^{VERSION}$")]
Label = Annotated[str, StringConstraints(min_length=1, max_length=200)]
"""One line for people."""
Text = Annotated[str, StringConstraints(max_length=20_000)]
Word = Annotated[str, _matching("[a-z][a-z0-9_]{0,62}", 63)]
ExternalId = Annotated[str, _matching("[0-9A-Za-z][-_.:0-9A-Za-z]{0,127}", 128)]
"""An id some other system made, kept as it is."""
DeviceId = Annotated[str, _matching("[0-9A-Za-z][-_.:/0-9A-Za-z]{0,127}", 128)]
"""A GPU's UUID, never its index."""
DigestText = Annotated[str, StringConstraints(pattern=f"^{_DIGEST}$")]
Repository = Annotated[str, _matching(_REPOSITORY, 255)]
"""A repository without a host: which registry it is in, the Environment says."""
ArtifactRef = Annotated[str, _matching(f"{_REPOSITORY}@{_DIGEST}", 400)]
"""`repository@sha256:…`, never a tag."""
UrlPath = Annotated[str, _matching(r"/[!-~]{0,1023}", 1024)]
MediaType = Annotated[str, _matching(r"[0-9a-z]+/[-+.0-9a-z]+", 200)]
AcceleratorFamily = Annotated[str, _matching("(?:cpu|(?:nvidia|amd)(?:-[0-9a-z]+)+)", 63)]
Argument = Annotated[str, StringConstraints(max_length=4096)]
PortNumber = Annotated[Int, Field(ge=1, le=65_535)]
CapacityShape = Literal["baremetal", "gpu_slice"]
OperatingMode = Literal["tenant_dedicated", "tenant_shared"]
ControlPlaneScope = Literal["project", "tenant"]
TenantBoundaryMode = Literal["project_isolated", "tenant_shared"]


ProjectPath = Annotated[str, StringConstraints(pattern=f"^{NAME}/{NAME}$")]
"""`tenant/project`."""
Timestamp = Annotated[
    str,
    StringConstraints(
        pattern=r"^20[0-9]{2}-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12][0-9]|3[01])"
        r"T(?:[01][0-9]|2[0-3]):[0-5][0-9](?::[0-5][0-9])?(?:Z|[-+](?:0[0-9]|1[0-4]):[0-5][0-9])$"
    ),
]
"""RFC 3339 with its zone; `core.times.parse_time_ms` reads it."""


class Part(BaseModel):
    """Base of everything inside a manifest."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _no_nulls(cls, value: Any) -> Any:
        if isinstance(value, dict) and None in value.values():
            raise ValueError("a field is null: give it a value or leave it out")
        return value


LabelKey = Annotated[str, _matching("[0-9A-Za-z](?:[-_./0-9A-Za-z]{0,126}[0-9A-Za-z])?", 128)]
LabelValue = Annotated[str, StringConstraints(max_length=256)]
AnnotationValue = Annotated[str, StringConstraints(max_length=4096)]


class Term(Part):
    """An exception from the rule: who made it, why, and when it ends by itself."""

    by: Label
    reason: Label
    until: Timestamp


class Metadata(Part):
    """The object's own name (its scope comes from the path) and free notes on it."""

    name: Name
    labels: dict[LabelKey, LabelValue] = Field(default_factory=dict, max_length=64)
    annotations: dict[LabelKey, AnnotationValue] = Field(default_factory=dict, max_length=64)


class VersionMetadata(Metadata):
    """For kinds whose name is a version."""

    name: Version


class Manifest(Part):
    """Base of all manifests: the envelope."""

    api_version: Literal["gpuaas.dev/v1"] = Field(alias="apiVersion")
    kind: str
    metadata: Metadata
    spec: Part


_SEGMENTS = {"version": VERSION}


@dataclass(frozen=True)
class Kind:
    """One row of the KINDS table.

    `path` is the path template. `{name}` in a folder fixes metadata.name; in the file name it does
    so for a file of one document; `{any}` leaves the file name free. The other placeholders are the
    scope. `named_by` are pointers whose value must be metadata.name, `scoped_by` pairs of a pointer
    and the placeholder it must agree with, `unique` pairs of a list's pointer and the key that no
    two entries may share.
    """

    name: str
    model: type[Manifest]
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
