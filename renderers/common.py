"""What every renderer shares: an Instance's fields laid out as a Workload.

Rules:
- Pure and total: the same Instance gives a byte-identical Workload, or a `CannotRender` value.
- Nothing is invented here. A host port nobody asked for stays None, for the agent to pick.
- No secret passes through: an Instance has their names and references, and no value.
- Parts that many instances have alike (an image, a probe) are made once and shared: none changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from operator import attrgetter, itemgetter
from typing import Any, Generic, Literal, TypeVar

from pydantic import ValidationError

from node_agent.wire import (
    LABEL_APP,
    LABEL_VERSION,
    MACHINE_IDENTITY,
    Image,
    Limits,
    Packages,
    Port,
    Readiness,
    SecretFile,
    Workload,
)
from reconciler.core.desired import Instance
from reconciler.core.names import ArtifactKey

Engine = Literal["docker", "process"]

LABEL_ORG = "dev.gpuaas.org-id"
LABEL_PROJECT = "dev.gpuaas.project-id"

T = TypeVar("T")
shared = lru_cache(maxsize=4096)


@dataclass(frozen=True)
class CannotRender:
    """No workload can be written for this instance. `code` is stable, `message` is for people."""

    code: str
    message: str


def workload_of(instance: Instance, engine: Engine) -> Workload | CannotRender:
    """The workload of one instance on `engine`; `CannotRender` outside the wire's bounds."""
    try:
        return Workload(
            instance=instance.key,
            engine=engine,
            image=image_of(instance, instance.artifact),
            command=instance.command,
            env=dict(sorted(instance.env.items())),
            ports=ports_of(instance),
            limits=limits_of(
                instance.cpu_millis,
                instance.memory_mib,
                instance.shm_mib,
                instance.gpu_vendor,
                tuple(sorted(instance.gpu_uuids)),
            ),
            readiness=_readiness(Same(instance.readiness)),
            stop_grace_ms=instance.stop_grace_s * 1000,
            labels=labels_of(instance),
            secrets=secrets_of(instance.secrets),
            blobs=instance.blobs,
            packages=_packages(instance),
        )
    except ValidationError as error:
        return outside_bounds(error)


def outside_bounds(error: ValidationError) -> CannotRender:
    """What the wire does not take, by its first field."""
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    return CannotRender("invalid_workload", f"{where}: {first['msg']}" if where else first["msg"])


class Same(Generic[T]):
    """Anything as a key: equal to itself alone."""

    __slots__ = ("it",)

    def __init__(self, it: T) -> None:
        self.it = it

    def __hash__(self) -> int:
        return id(self.it)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and self.it is other.it


def image_of(instance: Instance, artifact: ArtifactKey) -> Image:
    return _image(
        instance.registry_endpoint,
        instance.registry_plain_http,
        artifact.repository,
        str(artifact.digest),
    )


@shared
def _image(registry: str, plain_http: bool, repository: str, digest: str) -> Image:
    return Image(registry=registry, plain_http=plain_http, repository=repository, digest=digest)


@shared
def _port(name: str, container: int, host: int | None, address: str | None) -> Port:
    return Port(name=name, container=container, host=host, address=address)


def ports_of(instance: Instance) -> tuple[Port, ...]:
    addresses = instance.port_addresses
    listed = sorted(instance.ports, key=itemgetter(0, 1))
    return tuple([_port(*port, addresses.get(port[0])) for port in listed])


def _packages(instance: Instance) -> Packages | None:
    if not instance.packages:
        return None
    return Packages(
        index_url=instance.package_index,
        requirements=tuple(sorted(instance.packages)),
        require_hashes=all("--hash=" in line for line in instance.packages),
    )


@shared
def secrets_of(asked: tuple[SecretFile, ...]) -> tuple[SecretFile, ...]:
    """Each brings the instance's own identity along, whatever its version asks for."""
    return tuple(sorted((*asked, SecretFile(name=MACHINE_IDENTITY)), key=attrgetter("name")))


@shared
def limits_of(
    cpu_millis: int | None,
    memory_mib: int | None,
    shm_mib: int,
    gpu_vendor: Literal["nvidia", "amd"] | None,
    gpu_uuids: tuple[str, ...],
    pids: int = 4096,
) -> Limits:
    return Limits(
        cpu_millis=cpu_millis,
        memory_mib=memory_mib,
        pids=pids,
        shm_mib=shm_mib,
        gpu_vendor=gpu_vendor,
        gpu_uuids=gpu_uuids,
    )


def labels_of(instance: Instance) -> dict[str, str]:
    """What tells people on the host whose this is. The agent adds the labels it works by itself."""
    return {
        LABEL_APP: instance.app,
        LABEL_ORG: instance.org_id,
        LABEL_PROJECT: instance.project_id,
        LABEL_VERSION: instance.version,
    }


@shared
def _readiness(given: Same[Mapping[str, object]]) -> Readiness:
    """From the manifest's `runtime_profile.health`. Without a probe it is ready once it runs."""
    health: Mapping[str, Any] = given.it
    if not health:
        return Readiness()
    return Readiness.model_validate(
        {
            "probe": _probe(health.get("readiness")),
            "interval_ms": ms(health["interval_s"]),
            "timeout_ms": ms(health["timeout_s"]),
            "start_budget_ms": ms(health["start_budget_s"]),
            "failures_max": health["failures_max"],
        }
    )


def _probe(readiness: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if not readiness:
        return None
    kind, probe = next((kind, probe) for kind, probe in readiness.items() if probe is not None)
    fields = {key: tuple(value) if key == "command" else value for key, value in probe.items()}
    return {"kind": kind, **fields}


def ms(seconds: float) -> int:
    return round(seconds * 1000)
