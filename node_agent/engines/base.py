"""What the agent needs of an engine: that which runs workloads, Docker or plain processes.

Rules:
- An engine decides nothing. It does one thing when told to, and says what it sees.
- It touches only what carries our labels for this node. Everything it makes carries them.
- Every method may raise `EngineFailure`, and nothing else. Doing a thing twice is harmless.
"""

from __future__ import annotations

import errno
import hashlib
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from node_agent.units import Probed, Unit
from node_agent.wire import (
    LABEL_INSTANCE,
    LABEL_MANAGED,
    LABEL_NODE,
    LABEL_SPEC_HASH,
    Endpoint,
    EngineName,
    FailureReason,
    Image,
    Probe,
    Workload,
)

NAME_LENGTH_MAX = 63
SECRETS_VARIABLE = "GPUAAS_SECRETS_PATH"
"""Says where the secrets are: `SECRETS_PATH` in a container, elsewhere for a process."""
BLOBS_VARIABLE = "GPUAAS_BLOBS_PATH"
"""Says where the blobs are: `BLOBS_PATH` in a container, elsewhere for a process."""
LOOPBACK = "127.0.0.1"
DISK_FULL_NUMBERS = frozenset({errno.ENOSPC, errno.EDQUOT})


class EngineFailure(Exception):
    """An engine could not do what it was told. `transient`: the same may work a little later."""

    def __init__(self, reason: FailureReason, message: str, *, transient: bool = False) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.transient = transient


class Cancelled(Exception):
    """A pull was called off because a newer task replaced its target."""


@dataclass(frozen=True)
class PullCredential:
    """`token`: what a registry is shown; empty: nothing. `missing`: why there is none, where one
    was asked for.
    """

    token: str = field(default="", repr=False)
    missing: str = ""


Ask = Callable[[], PullCredential]


def no_credential() -> PullCredential:
    return PullCredential()


@dataclass(frozen=True)
class Residue:
    """How much of an instance was found when looking for what a teardown may have left."""

    containers: int
    networks: int
    volumes: int
    paths: int


@dataclass(frozen=True)
class EngineFacts:
    """What an engine says of itself.

    `version`: of Docker; `compose_version`: of the Compose that makes topologies on it. `cdi`: it
    hands out CDI devices; `cdi_devices` are those it found, where it lists them.
    """

    version: str | None = None
    compose_version: str | None = None
    runtimes: tuple[str, ...] = ()
    cdi: bool = False
    cdi_devices: tuple[str, ...] = ()


class Engine(Protocol):
    """One way of running workloads on this host, on behalf of one node name."""

    @property
    def name(self) -> EngineName: ...

    def facts(self) -> EngineFacts:
        """Raises ENGINE_UNAVAILABLE when the engine does not answer."""
        ...

    def units(self, instance: str | None = None) -> tuple[Unit, ...]:
        """Everything that carries our labels for this node, or for one of its instances."""
        ...

    def pull(self, image: Image, cancelled: threading.Event, ask: Ask = no_credential, /) -> None:
        """Makes the image present and checks its digest. Raises `Cancelled` when called off.

        `ask` is called if its registry is to be asked.
        """
        ...

    def create(self, workload: Workload, host_ports: Mapping[str, int]) -> None:
        """Makes the unit, not started. `host_ports` has a host port for every port name."""
        ...

    def start(self, unit: Unit) -> None: ...

    def stop(self, unit: Unit, grace_ms: int) -> None:
        """Asks, waits up to `grace_ms`, then kills. Returns when it is down."""
        ...

    def remove(self, unit: Unit) -> None: ...

    def probe(self, unit: Unit, probe: Probe, timeout_ms: int) -> Probed: ...

    def sweep(self, instance: str) -> None:
        """Removes the volumes, networks and scratch of an instance that has no units any more."""
        ...

    def residue(self, instance: str) -> Residue:
        """Looks again, from scratch, for anything of the instance."""
        ...

    def watch(self, changed: Callable[[str | None], None], stop: threading.Event) -> None:
        """Blocks until `stop` or `close`; calls `changed` when a unit may have changed by itself.

        With the instance's name, or with None when any may have.
        """
        ...

    def close(self) -> None: ...


class TopologyEngine(Engine, Protocol):
    """An engine whose units are whole topologies. What `Engine` says means here:

    `create` writes the form down and touches nothing that runs; `start` puts it in force, replaces
    the containers of services that differ and of no others, and starts none; `stop` stops all, in
    reverse order; `remove` takes the containers away of what is in force, else the form alone.
    """

    def start_services(self, unit: Unit, names: Sequence[str]) -> None: ...

    def remove_services(self, unit: Unit, names: Sequence[str], grace_ms: int) -> None:
        """Stops and removes their containers."""
        ...

    def probe_service(self, unit: Unit, name: str, probe: Probe, timeout_ms: int) -> Probed:
        """Asked at the service's own address, from the host: it need not be published."""
        ...


def unit_name(instance: str, spec_hash: str) -> str:
    """`gpuaas-<tenant>-<project>-<name>-<8 of the spec hash>`; a long middle is cut and hashed."""
    tail = spec_hash.removeprefix("sha256:")[:8]
    name = f"gpuaas-{instance.replace('/', '-')}-{tail}"
    if len(name) <= NAME_LENGTH_MAX:
        return name
    digest = hashlib.sha256(instance.encode()).hexdigest()[:8]
    room = NAME_LENGTH_MAX - len(f"gpuaas---{digest}{tail}")
    return f"gpuaas-{instance.replace('/', '-')[:room]}-{digest}-{tail}"


def ownership_labels(node: str, instance: str, spec_hash: str | None = None) -> dict[str, str]:
    """The labels that make a thing ours."""
    labels = {LABEL_MANAGED: "true", LABEL_NODE: node, LABEL_INSTANCE: instance}
    if spec_hash is not None:
        labels[LABEL_SPEC_HASH] = spec_hash
    return labels


def endpoints_of(workload: Workload, host_ports: Mapping[str, int]) -> tuple[Endpoint, ...]:
    return tuple(
        Endpoint(
            name=port.name,
            container=port.container,
            host_ip=port.address or LOOPBACK,
            host_port=host_ports[port.name],
        )
        for port in workload.ports
    )
