"""What every kind is made of.

Rules: a model accepts exactly what its schema in `schemas/` accepts, and a test holds the two
together. Unknown fields are refused, nothing is coerced, nothing is mutable. A field is given or
left out, never null. Units stand last in names.
"""

from __future__ import annotations

from dataclasses import dataclass, field
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

from reconciler.core.kind_places import KindPlace
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
BlobRef = Annotated[
    str, _matching(rf"artifact_store://[0-9A-Za-z][-_./0-9A-Za-z]*@{_DIGEST}", 600)
]
"""`artifact_store://…@sha256:…`."""
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


@dataclass(frozen=True)
class Kind(KindPlace):
    """One row of the KINDS table: a place, and the model of what stands there."""

    model: type[Manifest] = field(kw_only=True)
