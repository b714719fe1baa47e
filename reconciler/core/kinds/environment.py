"""Environment: the only place where a host may be named."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from reconciler.core.kinds.base import (
    ControlPlaneScope,
    Int,
    Items,
    Label,
    Manifest,
    Name,
    OperatingMode,
    Part,
    ProjectPath,
    TenantBoundaryMode,
    Term,
    Timestamp,
    UniqueItems,
    Word,
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
    """host:port of the OCI registry; `layout_path` is a folder read instead, for evaluation.

    auth token: it asks for the tokens that this control plane gives out.
    """

    endpoint: HostPort
    plain_http: bool = False
    layout_path: str | None = Field(default=None, min_length=1, max_length=4096)
    auth: Literal["none", "token"] = "none"


class PackageIndex(Part):
    """Where pip_packages come from: an index as pip understands it (PEP 503)."""

    url: Address


class Vault(Part):
    address: Address


class RemovalBudget(Part):
    """How many instances may be under removal at once, by count and by share; the lower counts."""

    removals_max: Int = Field(default=5, ge=0, le=100_000)
    removals_max_percent: Int = Field(default=30, ge=0, le=100)


class Approval(Part):
    """Agrees to one set of removals over budget, by the id that the plan shows for it."""

    removals: Annotated[str, StringConstraints(pattern="^[0-9a-f]{16}$")]
    reason: Label
    until: Timestamp


class RemovalGuards(RemovalBudget):
    """How much may be removed before a person has to agree: in all, on one node, of one kind.

    With `tombstones` a removed file alone removes nothing: `desired: decommissioned` has to say so.
    """

    per_node: RemovalBudget | None = None
    per_kind: dict[Literal["AppInstance"], RemovalBudget] = Field(default_factory=dict)
    tombstones: bool = False
    approvals: Items[Approval] = Field(default=(), max_length=100)


Weekday = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
TimeOfDay = Annotated[str, StringConstraints(pattern="^(?:(?:[01][0-9]|2[0-3]):[0-5][0-9]|24:00)$")]
TimeZone = Annotated[str, StringConstraints(pattern="^[A-Za-z][-+_/0-9A-Za-z]*$", max_length=64)]
ObjectPattern = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z*]+(?:/[-+.*?0-9A-Za-z]+)+$", max_length=300)
]
"""Kind/scope/name, where * and ? stand for anything."""


class SyncWindow(Part):
    """When changes may be carried out (allow) or may not (deny), by the clock of a time zone.

    `end` before `start` is on the next day; `days` are those it starts on. Drift is repaired at any
    time. Empty `days` or `projects`: all.
    """

    name: Name
    kind: Literal["allow", "deny"]
    days: UniqueItems[Weekday] = ()
    start: TimeOfDay
    end: TimeOfDay
    time_zone: TimeZone
    projects: UniqueItems[ProjectPath] = ()


class IgnoreRule(Part):
    """What is known and not to be told or repaired for a while. `codes` are findings, or drift."""

    objects: Items[ObjectPattern] = Field(min_length=1, max_length=100)
    codes: UniqueItems[Word] = Field(min_length=1, max_length=100)
    by: Label
    reason: Label
    until: Timestamp


class Sync(Part):
    """`manual`: changes wait for `gpuaas apply PLAN`; drift is repaired all the same."""

    mode: Literal["automatic", "manual"] = "automatic"
    windows: Items[SyncWindow] = Field(default=(), max_length=100)
    break_glass: Term | None = None
    suspend: Term | None = None
    ignore: Items[IgnoreRule] = Field(default=(), max_length=100)


class PolicyDefaults(Part):
    """What an instance gets where no entitlement says otherwise."""

    operating_mode: OperatingMode = "tenant_dedicated"
    control_plane_scope: ControlPlaneScope = "project"
    tenant_boundary_mode: TenantBoundaryMode = "project_isolated"


VersionNumber = Annotated[Int, Field(ge=1, le=1000)]


class SigningKey(Part):
    """The version that should sign. Those before it go by themselves once nobody needs them (the
    key of tasks); with `min_version` those below it go now, whoever is away. Of the key of registry
    tokens the oldest signs: which ones a registry knows, only people can tell.
    """

    version: VersionNumber
    min_version: VersionNumber | None = None


class SigningKeys(Part):
    """Without a word on a key nothing is done about it: it has the versions that it has."""

    tasks: SigningKey | None = None
    artifacts: SigningKey | None = None
    registry_tokens: SigningKey | None = None


class Trust(Part):
    """The channels of the TrustPolicies that what runs here has to be good for: a version in
    canary for `canary_channel`, any other for `channel`. Without the latter nothing is asked.
    """

    channel: Name
    canary_channel: Name | None = None


SnapshotKey = Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")]
"""An ed25519 public key, hex."""


class EnvironmentSpec(Part):
    """`endpoints` are the stable addresses of the platform, `snapshot_keys` those that sign what
    `gpuaas plan --snapshot` believes.
    """

    domain: Domain
    endpoints: dict[Name, Address] = Field(default_factory=dict, max_length=64)
    registry: Registry
    package_index: PackageIndex | None = None
    vault: Vault | None = None
    trust: Trust | None = None
    guards: RemovalGuards = RemovalGuards()
    sync: Sync = Sync()
    signing_keys: SigningKeys = SigningKeys()
    snapshot_keys: UniqueItems[SnapshotKey] = Field(default=(), max_length=16)
    defaults: PolicyDefaults = PolicyDefaults()


class Environment(Manifest):
    kind: Literal["Environment"]
    spec: EnvironmentSpec
