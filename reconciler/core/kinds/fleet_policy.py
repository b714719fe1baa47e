"""FleetPolicy: which agent a set of nodes should run, on what, and how it gets there."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from reconciler.core.kinds.base import (
    AcceleratorFamily,
    Int,
    Items,
    LabelKey,
    LabelValue,
    Manifest,
    Name,
    Part,
    Term,
    UniqueItems,
    Version,
)

ReleaseNumber = Annotated[str, StringConstraints(pattern=r"^[0-9]{1,9}(?:\.[0-9]{1,9}){0,3}$")]
"""Compared number by number: 27.3 is older than 27.10."""


class NodeSelector(Part):
    """Nodes for which everything given holds; of a list, one entry. Nothing given: every node."""

    names: UniqueItems[Name] = ()
    pools: UniqueItems[Name] = ()
    accelerator_families: UniqueItems[AcceleratorFamily] = ()
    labels: dict[LabelKey, LabelValue] = Field(default_factory=dict, max_length=64)


class WantedAgent(Part):
    version: Version


class Least(Part):
    """Has to be there, in this version or a later one. No version: any."""

    version_min: ReleaseNumber | None = None


class Prerequisites(Part):
    """What a host needs; one that misses something takes no new workload, and says what it is."""

    docker: Least | None = None
    compose: Least | None = None
    nvidia_driver: Least | None = None
    nvidia_runtime: Least | None = None
    amd_runtime: Least | None = None
    registry_trust: bool = False
    disk_free_min_mib: Int = Field(default=0, ge=0, le=1_073_741_824)


class HealthGate(Part):
    """When a wave has gone well: all but `failures_max` of its nodes report the wanted version
    and are ready, within `timeout_s` of their update, and stay so for the soak.
    """

    failures_max: Int = Field(default=0, ge=0, le=100_000)
    timeout_s: Int = Field(default=600, ge=1, le=604_800)


class Wave(Part):
    """A part of the policy's nodes. A node belongs to the first wave that takes it.

    `percent` is of those that the selector takes, counted in a stable order of their names.
    """

    name: Name
    selector: NodeSelector = NodeSelector()
    percent: Int = Field(default=100, ge=1, le=100)
    max_unavailable: Int = Field(default=1, ge=1, le=100_000)
    soak_s: Int = Field(default=0, ge=0, le=2_592_000)
    health_gate: HealthGate = HealthGate()


class Rollout(Part):
    """Waves in order. Nodes that no wave takes come last, one at a time."""

    waves: Items[Wave] = Field(default=(), max_length=64)
    on_failure: Literal["roll_back", "hold"] = "roll_back"
    suspend: Term | None = None


class FleetPolicySpec(Part):
    selector: NodeSelector = NodeSelector()
    agent: WantedAgent | None = None
    prerequisites: Prerequisites = Prerequisites()
    rollout: Rollout = Rollout()


class FleetPolicy(Manifest):
    kind: Literal["FleetPolicy"]
    spec: FleetPolicySpec
