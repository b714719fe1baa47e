"""Entitlement: whether a project may use an app, and in which modes. Named after the app."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from reconciler.core.kinds.base import (
    ControlPlaneScope,
    Manifest,
    OperatingMode,
    Part,
    UniqueItems,
)


class PolicyOverrides(Part):
    """A list that is left out leaves the environment's default as the only choice."""

    allowed_operating_modes: UniqueItems[OperatingMode] | None = Field(default=None, min_length=1)
    allowed_control_plane_scopes: UniqueItems[ControlPlaneScope] | None = Field(
        default=None, min_length=1
    )


class EntitlementSpec(Part):
    enabled: bool
    policy_overrides: PolicyOverrides | None = None


class Entitlement(Manifest):
    kind: Literal["Entitlement"]
    spec: EntitlementSpec
