"""PlatformRelease: the builds of one version of the platform's own programs."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints, model_validator

from reconciler.core.kinds.artifact import BlobSource
from reconciler.core.kinds.base import (
    DigestText,
    Int,
    Label,
    Manifest,
    MediaType,
    Name,
    Part,
    Repository,
    Text,
    Timestamp,
    VersionMetadata,
)

PlatformName = Annotated[
    str, StringConstraints(pattern="^(?:any|(?:linux|darwin|windows)/(?:amd64|arm64))$")
]
"""os/arch; `any` for what runs everywhere."""


class Build(Part):
    """One file to download. kind oci has `repository`, kind blob has `source`."""

    kind: Literal["oci", "blob"]
    repository: Repository | None = None
    source: BlobSource | None = None
    digest: DigestText
    size_bytes: Int = Field(ge=1, le=1_099_511_627_776)
    media_type: MediaType | None = None

    @model_validator(mode="after")
    def _place_fits_kind(self) -> Build:
        if (self.repository is not None, self.source is not None) != (
            self.kind == "oci",
            self.kind == "blob",
        ):
            raise ValueError("kind oci has a repository, kind blob a source, and neither has both")
        return self


Builds = Annotated[dict[PlatformName, Build], Field(min_length=1, max_length=16)]


class Components(Part):
    """At least one."""

    agent: Builds | None = None
    cli: Builds | None = None
    sdk: Builds | None = None

    @model_validator(mode="after")
    def _any(self) -> Components:
        if not self.builds:
            raise ValueError("give at least one of agent, cli and sdk")
        return self

    @property
    def builds(self) -> dict[tuple[str, str], Build]:
        """(component, platform) → its build, sorted."""
        named = (("agent", self.agent), ("cli", self.cli), ("sdk", self.sdk))
        return {
            (component, platform): build
            for component, builds in named
            for platform, build in sorted((builds or {}).items())
        }


class PlatformReleaseSpec(Part):
    """A withdrawn release stays, with the reason: nobody gets it, and agents leave it."""

    channel: Name
    state: Literal["published", "withdrawn"]
    reason: Label | None = None
    released_at: Timestamp | None = None
    components: Components
    notes: Text = ""

    @model_validator(mode="after")
    def _withdrawn_has_reason(self) -> PlatformReleaseSpec:
        if self.state == "withdrawn" and self.reason is None:
            raise ValueError("state withdrawn needs a reason")
        return self


class PlatformRelease(Manifest):
    kind: Literal["PlatformRelease"]
    metadata: VersionMetadata
    spec: PlatformReleaseSpec
