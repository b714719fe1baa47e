"""What runs of an app of several services on one node. Pure data, as all of `wire`.

Rules:
- There is no field for what no service may ever have: privileges, the host's network, processes or
  files, further Linux capabilities, builds, includes, tags. So no manifest, renderer or signed task
  can ask for it; the node's own file is written from these fields and nothing else.
- Names refer to each other inside one Topology, and to ports, secrets and blobs of its Workload.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from node_agent.wire_base import MOUNT_PATH, SERVICES_MAX, Wire
from node_agent.workload_wire import Image, Limits, Readiness

ServiceName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?$")]
MountPath = Annotated[str, StringConstraints(pattern=MOUNT_PATH, max_length=1024)]


class Dependency(Wire):
    """`started`: it was started; `healthy`: it is ready; `completed`: it ended with exit code 0."""

    service: ServiceName
    condition: Literal["started", "healthy", "completed"] = "started"


class Mount(Wire):
    """A volume of the topology at a path of the service."""

    volume: ServiceName
    path: MountPath
    read_only: bool = False


class Scratch(Wire):
    """Room in memory that is empty at each start and gone with the service."""

    path: MountPath
    size_mib: int = Field(ge=1)


class Volume(Wire):
    """Room on the node's disk that outlives upgrades and goes with the instance.

    `size_mib` has to be free before the first start; Docker holds nobody to it afterwards.
    """

    name: ServiceName
    size_mib: int = Field(ge=1)


class Service(Wire):
    """One container of the topology, reached by the others under its name.

    `ports`, `secrets` and `blobs` are names of the Workload's. `confined`: it can't write to its
    own image's files and has no Linux capability at all. `vital`: without it the instance is down.
    `restart` says what is to be done when it ends: `on_failure` takes exit code 0 for its end.
    """

    name: ServiceName
    image: Image
    command: tuple[str, ...] = ()
    env: dict[str, str] = Field(default_factory=dict)
    ports: tuple[str, ...] = ()
    limits: Limits = Limits()
    readiness: Readiness = Readiness()
    stop_grace_ms: int = Field(default=10_000, ge=0)
    depends_on: tuple[Dependency, ...] = ()
    mounts: tuple[Mount, ...] = ()
    scratch: tuple[Scratch, ...] = ()
    secrets: tuple[str, ...] = ()
    blobs: tuple[str, ...] = ()
    restart: Literal["always", "on_failure", "never"] = "always"
    vital: bool = True
    confined: bool = False


class Topology(Wire):
    """The services of one instance, in the order of their names.

    `vital_failure`: what is done when a vital service ends: it alone is started again, or all are.
    `other_failure`: what becomes of a launch or upgrade whose vital services are ready and another
    one is not in its time: it stays, degraded, or goes back as a whole.
    """

    services: tuple[Service, ...] = Field(min_length=1, max_length=SERVICES_MAX)
    volumes: tuple[Volume, ...] = ()
    vital_failure: Literal["restart_service", "restart_all"] = "restart_service"
    other_failure: Literal["degrade", "roll_back"] = "degrade"

    @model_validator(mode="after")
    def _refers_to_its_own(self) -> Self:
        names = [service.name for service in self.services]
        volumes = [volume.name for volume in self.volumes]
        if len({*names}) < len(names) or len({*volumes}) < len(volumes):
            raise ValueError("a name stands there twice")
        for service in self.services:
            if not {one.service for one in service.depends_on} <= {*names} - {service.name}:
                raise ValueError(f"{service.name} depends on a service that is not there")
            if not {one.volume for one in service.mounts} <= {*volumes}:
                raise ValueError(f"{service.name} mounts a volume that is not there")
        if starting_order(self) is None:
            raise ValueError("services depend on each other in a circle")
        return self

    def service(self, name: str) -> Service | None:
        return next((one for one in self.services if one.name == name), None)


def starting_order(topology: Topology) -> tuple[str, ...] | None:
    """Names of services, each after those it depends on; None where they form a circle."""
    waiting = {one.name: {d.service for d in one.depends_on} for one in topology.services}
    order: list[str] = []
    while waiting:
        ready = sorted(name for name, needs in waiting.items() if not needs & waiting.keys())
        if not ready:
            return None
        order += ready
        for name in ready:
            del waiting[name]
    return tuple(order)


class ServicePhase(Wire):
    """How one service stands. `detail` says why where it is not as wanted, without any output.

    `phase`: waiting (for what it depends on), starting, ready, completed, degraded, failed,
    stopped.
    """

    name: str
    phase: Literal["waiting", "starting", "ready", "completed", "degraded", "failed", "stopped"]
    vital: bool = True
    detail: str = ""
    restarts: int = 0
    exit_code: int | None = None
    image_digest: str | None = None
