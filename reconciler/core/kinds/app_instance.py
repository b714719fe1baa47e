"""AppInstance: one app that should run for a project."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from reconciler.core.kinds.base import (
    ControlPlaneScope,
    Manifest,
    Name,
    OperatingMode,
    Part,
    Version,
)


class Requested(Part):
    """Hints: what is effective is decided from policy."""

    operating_mode: OperatingMode | None = None
    control_plane_scope: ControlPlaneScope | None = None


class PlacementIntent(Part):
    allocation: Name


class AppInstanceSpec(Part):
    """`parameters` answer the version's `launch_parameters`."""

    app: Name
    version: Version
    requested: Requested | None = None
    placement_intent: PlacementIntent
    parameters: dict[str, Any] = Field(default_factory=dict, max_length=256)
    desired: Literal["running", "stopped", "decommissioned"] = "running"


class AppInstance(Manifest):
    kind: Literal["AppInstance"]
    spec: AppInstanceSpec
