"""An engine in memory. Workloads behave as their command says, and time is the caller's.

Commands: `serve` is ready and stays; `deaf` stays and is never ready; `exit N` ends with N when
started; anything else is a command that is not found. An image whose digest is not in `images` is
not found.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from node_agent.engines import secret_env
from node_agent.engines.base import (
    Ask,
    Cancelled,
    EngineFacts,
    EngineFailure,
    Residue,
    endpoints_of,
    no_credential,
    unit_name,
)
from node_agent.secret_files import SecretFiles
from node_agent.units import Probed, Unit
from node_agent.wire import ExecProbe, FailureReason, Image, Probe, Workload


@dataclass
class FakeEngine:
    """`away` makes every call fail; `taken_ports` are held by somebody else.

    `exec_override` is what every command probe runs instead; `sticky_volumes` can't be removed.
    `disk_full` fails what writes; `pruned` images have to be pulled again; `own_ways` is how every
    container it makes differs from what was asked for. `calls` counts what it was asked, by method.
    `environments` is what each unit found at its last start, its secrets from `secrets`.
    """

    node: str
    images: set[str]
    name: Literal["docker", "process"] = "docker"
    away: bool = False
    taken_ports: set[int] = field(default_factory=set)
    volumes: dict[str, str] = field(default_factory=dict)
    sticky_volumes: bool = False
    exec_override: tuple[str, ...] | None = None
    disk_full: bool = False
    pruned: set[str] = field(default_factory=set)
    own_ways: tuple[str, ...] = ()
    calls: Counter[str] = field(default_factory=Counter)
    secrets: SecretFiles | None = None
    environments: dict[str, dict[str, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._units: dict[str, Unit] = {}
        self._commands: dict[str, tuple[str, ...]] = {}
        self._workloads: dict[str, Workload] = {}
        self._changed: Callable[[str | None], None] = lambda _: None
        self._lock = threading.RLock()
        self._closed = threading.Event()

    def facts(self) -> EngineFacts:
        self._answer("facts")
        return EngineFacts(version="fake")

    def units(self, instance: str | None = None) -> tuple[Unit, ...]:
        with self._lock:
            self._answer("units")
            return tuple(
                unit
                for _, unit in sorted(self._units.items())
                if unit.node == self.node and instance in {None, unit.instance}
            )

    def pull(self, image: Image, cancelled: threading.Event, _ask: Ask = no_credential, /) -> None:
        self._answer("pull")
        if cancelled.is_set():
            raise Cancelled
        self._write()
        self.pruned.discard(image.digest)
        if image.digest not in self.images:
            raise EngineFailure(FailureReason.IMAGE_NOT_FOUND, f"{image.digest} is not there")

    def create(self, workload: Workload, host_ports: Mapping[str, int]) -> None:
        with self._lock:
            self._answer("create")
            self._write()
            if workload.image.digest in self.pruned:
                raise EngineFailure(FailureReason.IMAGE_NOT_FOUND, "no such image")
            if secret_env.wanted(workload):
                secret_env.wrapped(workload, workload.command)
            name = unit_name(workload.instance, workload.spec_hash)
            if name in self._units:
                raise EngineFailure(FailureReason.CREATE_REFUSED, f"{name} exists", transient=True)
            self._units[name] = Unit(
                unit_id=name,
                name=name,
                engine=self.name,
                instance=workload.instance,
                node=self.node,
                spec_hash=workload.spec_hash,
                status="created",
                created_at_ms=len(self._units),
                image_digest=workload.image.digest,
                endpoints=endpoints_of(workload, host_ports),
                altered=self.own_ways,
            )
            self._commands[name] = workload.command
            self._workloads[name] = workload
            self.volumes[f"{name}-data"] = workload.instance

    def start(self, unit: Unit) -> None:
        with self._lock:
            self._answer("start")
            if any(e.host_port in self.taken_ports for e in unit.endpoints):
                raise EngineFailure(FailureReason.PORT_IN_USE, "the port is taken")
            self._fill_environment(unit.unit_id)
            match self._commands[unit.unit_id]:
                case ("serve" | "deaf",):
                    self._set(unit.unit_id, status="running", exit_code=None)
                case ("exit", code):
                    self._set(unit.unit_id, status="exited", exit_code=int(code))
                case _:
                    raise EngineFailure(FailureReason.COMMAND_NOT_FOUND, "no such command")

    def _fill_environment(self, unit_id: str) -> None:
        workload = self._workloads[unit_id]
        found = dict(workload.env)
        if self.secrets is not None:
            folder = self.secrets.folder_of(workload)
            for secret in workload.secrets:
                if secret.env:
                    found[secret.env] = (folder / secret.name).read_bytes().decode()
        self.environments[unit_id] = found

    def stop(self, unit: Unit, grace_ms: int) -> None:
        with self._lock:
            self._answer("stop")
            if unit.unit_id in self._units and self._units[unit.unit_id].alive:
                self._set(unit.unit_id, status="exited", exit_code=143)

    def remove(self, unit: Unit) -> None:
        with self._lock:
            self._answer("remove")
            self._units.pop(unit.unit_id, None)

    def probe(self, unit: Unit, probe: Probe, timeout_ms: int) -> Probed:
        with self._lock:
            self._answer("probe")
            seen = self._units.get(unit.unit_id)
            if seen is None or not seen.alive:
                return Probed(False, "it does not run")
            if isinstance(probe, ExecProbe):
                command = self.exec_override or probe.command
                return Probed(command == ("true",), f"{command[0]} was run")
            if seen.host_port(probe.port) is None:
                return Probed(False, f"port {probe.port} is not published")
            return Probed(self._commands[unit.unit_id] == ("serve",), "it answers nothing")

    def sweep(self, instance: str) -> None:
        with self._lock:
            self._answer("sweep")
            if self.sticky_volumes:
                return
            self.volumes = {v: owner for v, owner in self.volumes.items() if owner != instance}

    def residue(self, instance: str) -> Residue:
        with self._lock:
            volumes = sum(owner == instance for owner in self.volumes.values())
            return Residue(len(self.units(instance)), 0, volumes, 0)

    def watch(self, changed: Callable[[str | None], None], stop: threading.Event) -> None:
        self._changed = changed
        changed(None)
        while not (stop.wait(0.01) or self._closed.is_set()):
            continue

    def close(self) -> None:
        self._closed.set()

    def kill(self, unit: Unit) -> None:
        """Behind the agent's back."""
        self.end(unit, 137)

    def end(self, unit: Unit, exit_code: int) -> None:
        """It exits by itself."""
        with self._lock:
            self._set(unit.unit_id, status="exited", exit_code=exit_code)

    def force_running(self, unit: Unit) -> None:
        """Somebody starts it by hand, whatever else runs."""
        with self._lock:
            self._set(unit.unit_id, status="running", exit_code=None)

    def pause(self, unit: Unit) -> None:
        with self._lock:
            self._set(unit.unit_id, status="paused", exit_code=None)

    def alter(self, unit: Unit, *lines: str) -> None:
        """Somebody changes its settings, in place or by making it again."""
        with self._lock:
            self._units[unit.unit_id] = replace(self._units[unit.unit_id], altered=lines)
            self._changed(unit.instance)

    def put(self, unit: Unit) -> None:
        """Something that was there before."""
        self._units[unit.unit_id] = unit

    def get(self, unit_id: str) -> Unit | None:
        return self._units.get(unit_id)

    def _set(
        self,
        unit_id: str,
        *,
        status: Literal["created", "running", "paused", "exited"],
        exit_code: int | None,
    ) -> None:
        unit = self._units[unit_id]
        self._units[unit_id] = replace(unit, status=status, exit_code=exit_code)
        self._changed(unit.instance)

    def _write(self) -> None:
        if self.disk_full:
            message = "write /layer: no space left on device"
            raise EngineFailure(FailureReason.DISK_FULL, message, transient=True)

    def _answer(self, asked: str) -> None:
        self.calls[asked] += 1
        if self.away:
            raise EngineFailure(FailureReason.ENGINE_UNAVAILABLE, "no answer", transient=True)
