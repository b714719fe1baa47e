"""Allocation: capacity of one node leased to a project."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from reconciler.core.kinds.base import DeviceId, Int, Manifest, Name, Part, UniqueItems


class AllocationSpec(Part):
    node: Name
    state: Literal["active", "released"]
    gpus: UniqueItems[DeviceId] = ()
    cpu_cores: float = Field(gt=0, le=65_536)
    memory_mib: Int = Field(ge=1, le=1_073_741_824)
    exclusive: bool = False


class Allocation(Manifest):
    kind: Literal["Allocation"]
    spec: AllocationSpec
