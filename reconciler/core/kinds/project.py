"""Project: what entitlements, allocations and instances belong to."""

from __future__ import annotations

from typing import Literal

from reconciler.core.kinds.base import ExternalId, Label, Manifest, Part


class ProjectSpec(Part):
    project_id: ExternalId
    display_name: Label


class Project(Manifest):
    kind: Literal["Project"]
    spec: ProjectSpec
