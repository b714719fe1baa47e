"""Environment: the only place where a host may be named."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from reconciler.core.kinds.base import (
    ControlPlaneScope,
    Int,
    Manifest,
    OperatingMode,
    Part,
    TenantBoundaryMode,
)

_HOST = "[0-9A-Za-z](?:[-.0-9A-Za-z]{0,251}[0-9A-Za-z])?"

Domain = Annotated[str, StringConstraints(pattern=f"^{_HOST}$")]
HostPort = Annotated[
    str, StringConstraints(pattern=rf"^(?:{_HOST}|\[[0-9a-fA-F:]{{2,39}}\]):[0-9]{{1,5}}$")
]
Address = Annotated[
    str, StringConstraints(pattern=r"^https?://[-.\[\]:0-9A-Za-z]+(?:/[!-~]*)?$", max_length=500)
]


class Registry(Part):
    """host:port of the OCI registry; `layout_path` is a folder read instead, for evaluation."""

    endpoint: HostPort
    plain_http: bool = False
    layout_path: str | None = Field(default=None, min_length=1, max_length=4096)


class Vault(Part):
    address: Address


class RemovalGuards(Part):
    """How much one pass may remove before a person has to agree."""

    removals_max: Int = Field(default=5, ge=0, le=100_000)
    removals_max_percent: Int = Field(default=30, ge=0, le=100)


class PolicyDefaults(Part):
    """What an instance gets where no entitlement says otherwise."""

    operating_mode: OperatingMode = "tenant_dedicated"
    control_plane_scope: ControlPlaneScope = "project"
    tenant_boundary_mode: TenantBoundaryMode = "project_isolated"


class EnvironmentSpec(Part):
    domain: Domain
    registry: Registry
    vault: Vault | None = None
    guards: RemovalGuards = RemovalGuards()
    defaults: PolicyDefaults = PolicyDefaults()


class Environment(Manifest):
    kind: Literal["Environment"]
    spec: EnvironmentSpec
