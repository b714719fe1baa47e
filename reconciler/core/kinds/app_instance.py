"""AppInstance: one app that should run for a project."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints

from reconciler.core.kinds.base import (
    ControlPlaneScope,
    Manifest,
    Name,
    OperatingMode,
    Part,
    Term,
    UniqueItems,
    Version,
)
from reconciler.core.names import NAME

SecretReference = Annotated[
    str,
    StringConstraints(pattern=rf"^secret://(?:project|tenant)/{NAME}$"),
]


class Requested(Part):
    """Hints: what is effective is decided from policy."""

    operating_mode: OperatingMode | None = None
    control_plane_scope: ControlPlaneScope | None = None


class PlacementIntent(Part):
    allocation: Name


class Member(Part):
    """One further member, by a name that stays its own when others come and go.

    `parameters` stand in for the instance's own where they differ.
    """

    name: Name
    role: Name
    allocation: Name
    parameters: dict[str, Any] = Field(default_factory=dict, max_length=256)


class AppInstanceSpec(Part):
    """`parameters` answer the version's `launch_parameters`.

    `secrets` says which secret of its project or tenant each one is that the version takes by
    reference. `depends_on` and `moved_from` name instances of the same project: what must be ready
    first, and what it was called before.
    """

    app: Name
    version: Version
    requested: Requested | None = None
    placement_intent: PlacementIntent
    parameters: dict[str, Any] = Field(default_factory=dict, max_length=256)
    secrets: dict[Name, SecretReference] = Field(default_factory=dict, max_length=32)
    desired: Literal["running", "stopped", "decommissioned"] = "running"
    depends_on: UniqueItems[Name] = Field(default=(), max_length=64)
    moved_from: Name | None = None
    suspend: Term | None = None
    members: Annotated[tuple[Member, ...], Field(strict=False, max_length=256)] = ()


class AppInstance(Manifest):
    kind: Literal["AppInstance"]
    spec: AppInstanceSpec
