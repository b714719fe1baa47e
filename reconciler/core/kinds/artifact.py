"""Artifact: a registered digest and the state it is wanted in."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints, model_validator

from reconciler.core.kinds.base import (
    DigestText,
    Label,
    Manifest,
    MediaType,
    Name,
    Part,
    Repository,
    UniqueItems,
)

ArtifactState = Literal["published", "promoted", "deprecated", "retired", "revoked"]
BlobSource = Annotated[
    str,
    StringConstraints(pattern=r"^artifact_store://[0-9A-Za-z][-_./0-9A-Za-z]*$", max_length=500),
]
Tag = Annotated[str, StringConstraints(pattern=r"^[0-9A-Za-z_][-.0-9A-Za-z_]{0,127}$")]
Url = Annotated[str, StringConstraints(pattern=r"^[a-z][-+.0-9a-z]*://[!-~]+$", max_length=1000)]
Commit = Annotated[str, StringConstraints(pattern="^[0-9a-f]{40}(?:[0-9a-f]{24})?$")]


class SourceMetadata(Part):
    """Where the publisher says it comes from; a claim, not evidence."""

    commit: Commit | None = None
    repository_url: Url | None = None
    builder: Label | None = None


class ArtifactSpec(Part):
    """kind oci has `repository`, kind blob has `source`; the tag is a label and decides nothing.

    Promoted without `channels`: for all of them. `prefetch`: delivered ahead to every node where
    the project has an active allocation.
    """

    kind: Literal["oci", "blob"]
    repository: Repository | None = None
    source: BlobSource | None = None
    digest: DigestText
    tag: Tag | None = None
    media_type: MediaType | None = None
    source_metadata: SourceMetadata | None = None
    visibility: Literal["platform", "tenant", "project"] = Field(default="project")
    state: ArtifactState
    channels: UniqueItems[Name] = ()
    prefetch: bool = False

    @model_validator(mode="after")
    def _place_fits_kind(self) -> ArtifactSpec:
        if (self.repository is not None, self.source is not None) != (
            self.kind == "oci",
            self.kind == "blob",
        ):
            raise ValueError("kind oci has a repository, kind blob a source, and neither has both")
        if "channels" in self.model_fields_set and self.state != "promoted":
            raise ValueError("channels are of an artifact in state promoted")
        if self.prefetch and self.kind != "blob":
            raise ValueError("prefetch is for kind blob")
        return self


class Artifact(Manifest):
    kind: Literal["Artifact"]
    spec: ArtifactSpec
