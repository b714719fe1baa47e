"""Node: a host of the fleet and what it is said to offer."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from reconciler.core.kinds.base import (
    AcceleratorFamily,
    CapacityShape,
    DeviceId,
    Int,
    Items,
    Label,
    Manifest,
    Name,
    Part,
    UniqueItems,
)

Engine = Literal["docker", "process", "compose"]
HostAddress = Annotated[
    str,
    StringConstraints(
        pattern=r"^(?:[0-9]{1,3}(?:\.[0-9]{1,3}){3}|[0-9a-fA-F:]*:[0-9a-fA-F:.]+)$", max_length=45
    ),
]
"""An IP address, since Docker publishes at nothing else."""
UnixUser = Annotated[
    str,
    StringConstraints(
        pattern=r"^(?:[a-qs-z_]|r(?:[-a-np-z0-9_]|o(?:[-a-np-z0-9_]|o(?:[-a-su-z0-9_]"
        r"|t[-a-z0-9_]))))[-a-z0-9_]{0,31}$",
        max_length=32,
    ),
]
"""A user of the host; `root` is none, spelt out since patterns that run in linear time can't say
"but not".
"""


class Accelerator(Part):
    uuid: DeviceId
    vendor: Literal["nvidia", "amd"]
    model: Label
    memory_mib: Int = Field(ge=1, le=16_777_216)


class NodeSpec(Part):
    """`ssh_user` is who the keys of projects let in, to open tunnels and nothing else."""

    pool: Name
    capacity_shape: CapacityShape
    accelerator_family: AcceleratorFamily
    accelerators: Items[Accelerator] = ()
    cpu_cores: Int = Field(ge=1, le=65_536)
    memory_mib: Int = Field(ge=1, le=1_073_741_824)
    engines: UniqueItems[Engine] = Field(min_length=1)
    address: HostAddress | None = None
    ssh_user: UnixUser | None = None


class Node(Manifest):
    kind: Literal["Node"]
    spec: NodeSpec
