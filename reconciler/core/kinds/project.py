"""Project: what entitlements, allocations and instances belong to."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from reconciler.core.kinds.base import ExternalId, Int, Label, Manifest, Part, Term


class SshKey(Part):
    """A key pair for tunnels to the project's instances; a higher `version` is a new pair."""

    version: Int = Field(ge=1, le=1_000_000)


class ProjectSpec(Part):
    """`suspend` holds all changes to its instances; drift is shown, not repaired, until it ends."""

    project_id: ExternalId
    display_name: Label
    suspend: Term | None = None
    ssh_key: SshKey | None = None


class Project(Manifest):
    kind: Literal["Project"]
    spec: ProjectSpec
