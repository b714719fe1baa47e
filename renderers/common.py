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
from typing import Any, Literal

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

Engine = Literal["docker", "process"]

LABEL_ORG = "dev.gpuaas.org-id"
LABEL_PROJECT = "dev.gpuaas.project-id"

_shared = lru_cache(maxsize=4096)


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
            image=_image(
                instance.registry_endpoint,
                instance.registry_plain_http,
                instance.artifact.repository,
                str(instance.artifact.digest),
            ),
            command=instance.command,
            env=dict(sorted(instance.env.items())),
            ports=_ports(instance),
            limits=_limits(
                instance.cpu_millis,
                instance.memory_mib,
                instance.shm_mib,
                instance.gpu_vendor,
                tuple(sorted(instance.gpu_uuids)),
            ),
            readiness=_readiness(_Same(instance.readiness)),
            stop_grace_ms=instance.stop_grace_s * 1000,
            labels=_labels(instance),
            secrets=_secrets(instance.secrets),
            blobs=instance.blobs,
            packages=_packages(instance),
        )
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        return CannotRender("invalid_workload", f"{where}: {first['msg']}")


class _Same:
    """A mapping as a key: equal to itself alone."""

    __slots__ = ("mapping",)

    def __init__(self, mapping: Mapping[str, Any]) -> None:
        self.mapping = mapping

    def __hash__(self) -> int:
        return id(self.mapping)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.mapping is other.mapping


@_shared
def _image(registry: str, plain_http: bool, repository: str, digest: str) -> Image:
    return Image(registry=registry, plain_http=plain_http, repository=repository, digest=digest)


@_shared
def _port(name: str, container: int, host: int | None, address: str | None) -> Port:
    return Port(name=name, container=container, host=host, address=address)


def _ports(instance: Instance) -> tuple[Port, ...]:
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


@_shared
def _secrets(asked: tuple[SecretFile, ...]) -> tuple[SecretFile, ...]:
    """Each brings the instance's own identity along, whatever its version asks for."""
    return tuple(sorted((*asked, SecretFile(name=MACHINE_IDENTITY)), key=attrgetter("name")))


@_shared
def _limits(
    cpu_millis: int | None,
    memory_mib: int | None,
    shm_mib: int,
    gpu_vendor: Literal["nvidia", "amd"] | None,
    gpu_uuids: tuple[str, ...],
) -> Limits:
    return Limits(
        cpu_millis=cpu_millis,
        memory_mib=memory_mib,
        shm_mib=shm_mib,
        gpu_vendor=gpu_vendor,
        gpu_uuids=gpu_uuids,
    )


def _labels(instance: Instance) -> dict[str, str]:
    """What tells people on the host whose this is. The agent adds the labels it works by itself."""
    return {
        LABEL_APP: instance.app,
        LABEL_ORG: instance.org_id,
        LABEL_PROJECT: instance.project_id,
        LABEL_VERSION: instance.version,
    }


@_shared
def _readiness(given: _Same) -> Readiness:
    """From the manifest's `runtime_profile.health`. Without a probe it is ready once it runs."""
    health = given.mapping
    if not health:
        return Readiness()
    return Readiness.model_validate(
        {
            "probe": _probe(health.get("readiness")),
            "interval_ms": _ms(health["interval_s"]),
            "timeout_ms": _ms(health["timeout_s"]),
            "start_budget_ms": _ms(health["start_budget_s"]),
            "failures_max": health["failures_max"],
        }
    )


def _probe(readiness: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if not readiness:
        return None
    kind, probe = next((kind, probe) for kind, probe in readiness.items() if probe is not None)
    fields = {key: tuple(value) if key == "command" else value for key, value in probe.items()}
    return {"kind": kind, **fields}


def _ms(seconds: float) -> int:
    return round(seconds * 1000)
