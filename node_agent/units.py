"""What engines see: the units that run workloads, and what a probe of one found. Pure types."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from node_agent.wire import Endpoint, EngineName


@dataclass(frozen=True)
class ServiceSeen:
    """One service of a topology, as its container stands. `address`: on the topology's network.

    `missing`: there is no container of it, or one of another form of it. `form`: of what its
    container is made, or would be; empty where that is not known.
    """

    name: str
    unit_id: str = ""
    status: Literal["missing", "created", "running", "paused", "exited"] = "missing"
    exit_code: int | None = None
    out_of_memory: bool = False
    altered: tuple[str, ...] = ()
    address: str = ""
    image_digest: str | None = None
    form: str = ""

    @property
    def alive(self) -> bool:
        return self.status in {"running", "paused"}


@dataclass(frozen=True)
class Unit:
    """One container or process of ours, or all containers of one topology.

    Of a topology there is one for each form of it that the node has the file of. At most one of
    these is in force and has `services`, in the order of their names; the others are `created`.
    `volumes`: of the one in force, by name, when each was made; empty for one that is not there.
    None where nobody looked.

    `altered`: in what it is not as it was asked for, a line each, no values of settings in it.
    """

    unit_id: str
    name: str
    engine: EngineName
    instance: str
    node: str
    spec_hash: str
    status: Literal["created", "running", "paused", "exited"]
    created_at_ms: int
    image_digest: str | None = None
    endpoints: tuple[Endpoint, ...] = ()
    exit_code: int | None = None
    out_of_memory: bool = False
    altered: tuple[str, ...] = ()
    gpu_vendor: Literal["nvidia", "amd"] | None = None
    gpu_uuids: tuple[str, ...] = ()
    services: tuple[ServiceSeen, ...] = ()
    volumes: tuple[tuple[str, str], ...] | None = None

    @property
    def alive(self) -> bool:
        return self.status in {"running", "paused"}

    def host_port(self, container_port: int) -> int | None:
        endpoint = self.endpoint(container_port)
        return endpoint.host_port if endpoint is not None else None

    def endpoint(self, container_port: int) -> Endpoint | None:
        """Where that port of it is published."""
        return next((one for one in self.endpoints if one.container == container_port), None)


@dataclass(frozen=True)
class Probed:
    """What one readiness probe found. `detail` never quotes what the workload answered."""

    ready: bool
    detail: str = ""
