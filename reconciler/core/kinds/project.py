"""Project: what entitlements, allocations and instances belong to."""

from __future__ import annotations

from typing import Literal

from reconciler.core.kinds.base import ExternalId, Label, Manifest, Part, Term


class ProjectSpec(Part):
    """`suspend` holds all changes to its instances; drift is shown, not repaired, until it ends."""

    project_id: ExternalId
    display_name: Label
    suspend: Term | None = None


class Project(Manifest):
    kind: Literal["Project"]
    spec: ProjectSpec
