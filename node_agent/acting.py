"""Carries the steps for one instance out: the hands of `turns`, which decide nothing.

Rules:
- What is not done raises: `EngineFailure` says why, `Cancelled` that it was called off.
- A workload's secrets and blobs are there before an engine makes or starts it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Protocol, cast

from node_agent.blobs import BlobProvider
from node_agent.engines import packages
from node_agent.engines.base import (
    Engine,
    EngineFailure,
    PullCredential,
    TopologyEngine,
    no_credential,
)
from node_agent.ports import HostPorts
from node_agent.secret_keeper import Provider
from node_agent.state import InstanceState
from node_agent.steps import (
    Apply,
    Create,
    Done,
    Outcome,
    ProbeReady,
    ProbeService,
    Prove,
    Pull,
    Remove,
    Repair,
    RepairServices,
    Start,
    StartServices,
    Step,
    Stop,
    Sweep,
)
from node_agent.units import Probed, Unit
from node_agent.wire import FailureReason, Image, Proof, Workload

Credentials = Callable[[Workload, Image], PullCredential]
"""What the registry of one of a workload's images is shown."""


class Clock(Protocol):
    def now_ms(self) -> int:
        """Wall clock."""
        ...

    def steady_ms(self) -> int:
        """Wall clock as of the agent's start, plus time passed: never jumps."""
        ...


class Acting:
    """What is at hand for one instance: engines, ports, secrets, blobs."""

    def __init__(
        self,
        engines: Mapping[str, Engine],
        ports: HostPorts,
        clock: Clock,
        secrets: Provider | None,
        blobs: BlobProvider | None,
        credentials: Credentials | None,
    ) -> None:
        self._engines = engines
        self._ports = ports
        self._clock = clock
        self._secrets = secrets
        self._blobs = blobs
        self._credentials = credentials

    def involved(self, state: InstanceState) -> Sequence[Engine]:
        """The engines that may hold something of it: all of them when that was never written."""
        names = {*(state.engines or self._engines)}
        if state.workload is not None:
            names.add(state.workload.engine)
        return [self.engine(name) for name in sorted(names)]

    def note_found(self, instance: str, units: Sequence[Unit]) -> None:
        """Units that the instance's state says nothing of; raises OSError."""
        self._ports.note_found(instance, units, self._engines)

    def engine(self, name: str) -> Engine:
        if name not in self._engines:
            message = f"the {name} engine is not offered any more"
            raise EngineFailure(FailureReason.ENGINE_UNAVAILABLE, message, transient=True)
        return self._engines[name]

    def carry_out(self, state: InstanceState, step: Step, called_off: threading.Event) -> Outcome:
        if isinstance(step, Pull | Create | Start | Apply | StartServices):
            # With the pull first of all: what runs is not stopped for one that can't start.
            puts_in_force = step.workload.topology is not None and isinstance(step, Start)
            starts = isinstance(step, Start | StartServices) and not puts_in_force
            self.provide(step.workload, called_off, starts=starts)
        if isinstance(step, Create | Start | Apply | StartServices):
            self._blobs_of(step.workload, None)
        match step:
            case Pull(workload):
                self._pull(workload, called_off)
            case Create(workload):
                host_ports = self._ports.allocate(workload)
                self.engine(workload.engine).create(workload, host_ports)
            case Start(unit, _):
                self.engine(unit.engine).start(unit)
            case ProbeReady(unit, workload):
                return self._probe(unit, workload)
            case Stop(unit, grace_ms):
                self.engine(unit.engine).stop(unit, grace_ms)
            case Remove(unit):
                self.engine(unit.engine).remove(unit)
            case Repair(unit, workload):
                self.engine(unit.engine).stop(unit, workload.stop_grace_ms)
                self.engine(unit.engine).remove(unit)
            case Sweep(instance):
                self._sweep(state, instance)
            case Prove(instance):
                return Done(self._prove(state, instance))
            case _:
                return self._carry_out_for_services(step)
        return Done()

    def _carry_out_for_services(self, step: Step) -> Outcome:
        match step:
            case Apply(unit, _):
                self.engine(unit.engine).start(unit)
            case StartServices(unit, _, names):
                self._topologies(unit).start_services(unit, names)
            case RepairServices(unit, workload, names):
                grace_ms = workload.stop_grace_ms
                self._topologies(unit).remove_services(unit, names, grace_ms)
            case ProbeService(unit, workload, name):
                return self._probe_service(unit, workload, name)
            case _:
                pass
        return Done()

    def _topologies(self, unit: Unit) -> TopologyEngine:
        engine = self.engine(unit.engine)
        if engine.name != "compose":
            message = f"the {unit.engine} engine knows no services"
            raise EngineFailure(FailureReason.ENGINE_UNAVAILABLE, message)
        return cast(TopologyEngine, engine)

    def _pull(self, workload: Workload, called_off: threading.Event) -> None:
        engine = self.engine(workload.engine)
        for image in workload.images:
            known = self._credentials
            ask = partial(known, workload, image) if known is not None else no_credential
            engine.pull(image, called_off, ask)
        self._blobs_of(workload, called_off)

    def _sweep(self, state: InstanceState, instance: str) -> None:
        for engine in self.involved(state):
            engine.sweep(instance)
        if self._secrets is not None:
            self._secrets.remove(instance)

    def keep_secrets(self, instance: str, spec_hashes: Collection[str]) -> None:
        """Those of other workloads of the instance go."""
        if self._secrets is not None:
            self._secrets.keep_only(instance, spec_hashes)

    def provide(
        self, workload: Workload, called_off: threading.Event, *, starts: bool = False
    ) -> None:
        if not workload.secrets:
            return
        if self._secrets is None:
            message = "this agent keeps no secrets"
            raise EngineFailure(FailureReason.SECRET_UNAVAILABLE, message)
        self._secrets.provide(workload, called_off, starts=starts)

    def _blobs_of(self, workload: Workload, called_off: threading.Event | None) -> None:
        """Has them there, unless called off; without that, only looks whether they still are."""
        if not workload.blobs:
            return
        if self._blobs is None:
            raise EngineFailure(FailureReason.BLOB_UNAVAILABLE, "this agent keeps no blobs")
        if called_off is None:
            self._blobs.check(workload)
        else:
            self._blobs.provide(workload, called_off)

    def _probe(self, unit: Unit, workload: Workload) -> Probed:
        readiness = workload.readiness
        engine = self.engine(unit.engine)
        if readiness.probe is not None:
            return engine.probe(unit, readiness.probe, readiness.timeout_ms)
        if workload.packages is not None:
            return engine.probe(unit, packages.THERE, packages.THERE_TIMEOUT_MS)
        return Probed(True)

    def _probe_service(self, unit: Unit, workload: Workload, name: str) -> Probed:
        service = workload.topology.service(name) if workload.topology is not None else None
        probe = service.readiness.probe if service is not None else None
        if service is None or probe is None:
            return Probed(True)
        timeout_ms = service.readiness.timeout_ms
        return self._topologies(unit).probe_service(unit, name, probe, timeout_ms)

    def _prove(self, state: InstanceState, instance: str) -> Proof:
        found = [engine.residue(instance) for engine in self.involved(state)]
        secrets = self._secrets.residue(instance) if self._secrets is not None else 0
        return Proof(
            checked_at_ms=self._clock.now_ms(),
            containers=sum(residue.containers for residue in found),
            networks=sum(residue.networks for residue in found),
            volumes=sum(residue.volumes for residue in found),
            paths=secrets + sum(residue.paths for residue in found),
        )

    def forget_ports(self, step: Start | StartServices) -> None:
        """Those of what could not be started; of several services it shows one at a time."""
        if isinstance(step, Start):
            self._ports.forget(step.workload)
            return
        topology = step.workload.topology
        service = topology.service(step.names[0]) if topology and len(step.names) == 1 else None
        if service is not None:
            self._ports.forget(step.workload, service.ports)
