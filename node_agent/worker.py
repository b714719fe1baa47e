"""Carries one instance to its target: look, decide, act, learn, again.

Rules:
- One thread per instance, so that a slow pull holds up nobody else.
- What is decided is `converge`'s; this file only does it and says how it went.
- A newer task takes over at once: a pull or a probe on its way is called off, not waited for.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import structlog

from node_agent.converge import learn, next_step, renewed
from node_agent.engines.base import Cancelled, Engine, EngineFailure
from node_agent.engines.probes import port_is_free
from node_agent.state import InstanceState, StateStore
from node_agent.status import workload_report
from node_agent.steps import (
    Absent,
    Commit,
    Create,
    Done,
    Failed,
    GiveUp,
    Outcome,
    ProbeReady,
    Progress,
    Prove,
    Pull,
    Remove,
    Settled,
    Start,
    Step,
    Stop,
    Sweep,
    TakeNote,
    Wait,
)
from node_agent.units import Probed, Unit
from node_agent.wire import FailureReason, Phase, Proof, Workload, WorkloadReport

REFRESH_MS = 10_000
"""How long what was seen is believed when no engine says that something changed."""
REFRESH_ON_TRIAL_MS = 500
ENGINE_RETRY_MS = 1_000
PORT_FIRST, PORT_COUNT = 20_000, 10_000
"""Below the range that Linux takes the ports of outgoing connections from."""


class Clock(Protocol):
    def now_ms(self) -> int:
        """Wall clock."""
        ...

    def steady_ms(self) -> int:
        """Wall clock as of the agent's start, plus time passed: never jumps."""
        ...


@dataclass(frozen=True)
class Published:
    """What a worker last said, going by task number `seq`.

    `seen` False: an engine does not answer, so it may be old.
    """

    report: WorkloadReport
    seq: int
    seen: bool


class HostPorts:
    """Picks free host ports, never one that another instance holds, running or not."""

    def __init__(self, store: StateStore) -> None:
        self._store = store
        self._lock = threading.Lock()

    def allocate(self, workload: Workload) -> dict[str, int]:
        """A host port for every port name, remembered on disk before it is used."""
        with self._lock:
            states, identity = self._store.instances(), self._store.identity
            # Two agents on one host begin in different places, so that they rarely meet.
            seed = f"{identity.node}/{identity.joined_at_ms}" if identity else ""
            held = dict(states[workload.instance].host_ports)
            others = {
                port
                for name, state in states.items()
                if name != workload.instance
                for port in state.host_ports.values()
            }
            ports: dict[str, int] = {}
            for port in workload.ports:
                if port.host in _in_use_by_others(states, workload.instance):
                    # Free at the moment perhaps, but people reach the other one there.
                    message = f"host port {port.host} is another instance's"
                    raise EngineFailure(FailureReason.PORT_IN_USE, message, transient=True)
                taken = others | set(ports.values())
                ports[port.name] = (
                    port.host
                    or held.get(port.name)
                    or _free_port(f"{seed}/{workload.instance}/{port.name}", taken)
                )
            self._store.save_placement(workload.instance, workload.engine, {**held, **ports})
            return ports

    def forget(self, workload: Workload) -> None:
        """After a port turned out to be taken by somebody else."""
        with self._lock:
            self._store.save_placement(workload.instance, workload.engine, {})


class Worker:
    """The thread of one instance."""

    def __init__(
        self,
        instance: str,
        store: StateStore,
        engines: Mapping[str, Engine],
        ports: HostPorts,
        clock: Clock,
        changed: Callable[[], None],
        may_end: Callable[[Worker], bool],
    ) -> None:
        self.instance = instance
        self._store = store
        self._engines = engines
        self._ports = ports
        self._clock = clock
        self._changed = changed
        self._may_end = may_end
        self._log = structlog.get_logger().bind(instance=instance)
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._dirty = True
        self._units: tuple[Unit, ...] = ()
        self._looked_at_ms = 0
        self._seq: int | None = None
        self._progress = Progress()
        self._published: Published | None = None
        self._thread = threading.Thread(target=self._run, name=f"worker-{instance}", daemon=True)

    @property
    def published(self) -> Published | None:
        return self._published

    @property
    def woken(self) -> bool:
        return self._wake.is_set()

    def start(self) -> None:
        self._thread.start()

    def wake(self, *, dirty: bool = False) -> None:
        """There is a newer task, or (`dirty`) a unit may have changed."""
        self._dirty = self._dirty or dirty
        self._wake.set()

    def stop(self) -> None:
        """Asks the thread to end after the step it is at. What runs goes on running."""
        self._stop.set()
        self._wake.set()

    def join(self, timeout_s: float) -> None:
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while not self._stop.is_set():
            self._wake.clear()
            state = self._store.instance(self.instance)
            try:
                finished = state is None or self._turn(state)
            except OSError as error:
                # A full disk, most likely: nothing was written, so the same turn is taken again.
                self._log.error("state not written", error=error.strerror)
                self._wake.wait(ENGINE_RETRY_MS / 1_000)
                continue
            if finished:
                if self._may_end(self):
                    return
                self._wake.wait(REFRESH_MS / 1_000)

    def _turn(self, state: InstanceState) -> bool:
        """One look, one step. True when nothing of the instance is left to take care of."""
        self._take_over(state)
        now_ms = self._clock.steady_ms()
        try:
            self._look(state, now_ms)
        except EngineFailure as failure:
            self._say_unseen(state, failure)
            self._wake.wait(ENGINE_RETRY_MS / 1_000)
            return False
        step = next_step(state.target, self._units, self._progress, now_ms)
        self._say(state, step)
        if isinstance(step, Settled) and isinstance(state.target, Absent):
            return True
        if isinstance(step, Wait | Settled):
            until_ms = step.until_ms if isinstance(step, Wait) else now_ms + REFRESH_MS
            self._wake.wait(max(0, min(until_ms - now_ms, REFRESH_MS)) / 1_000)
            return False
        self._act(state, step)
        return False

    def _take_over(self, state: InstanceState) -> None:
        now_ms = self._clock.steady_ms()
        if self._seq is None:
            self._progress = replace(state.progress, attempt_since_ms=now_ms)
        elif self._seq != state.seq:
            self._progress = renewed(state.target, self._progress, now_ms)
        else:
            return
        self._seq = state.seq
        self._dirty = True

    def _look(self, state: InstanceState, now_ms: int) -> None:
        committed = self._progress.committed
        settled = committed is not None and committed == state.workload
        age_ms_max = REFRESH_MS if settled else REFRESH_ON_TRIAL_MS
        if not self._dirty and now_ms - self._looked_at_ms < age_ms_max:
            return
        # Cleared first: what changes while we look must make us look again.
        self._dirty = False
        try:
            self._units = tuple(
                unit for engine in self._involved(state) for unit in engine.units(self.instance)
            )
        except EngineFailure:
            self._dirty = True
            raise
        self._looked_at_ms = now_ms

    def _involved(self, state: InstanceState) -> Sequence[Engine]:
        """The engines that may hold something of it: all of them when that was never written."""
        names = set(state.engines)
        if state.workload is not None:
            names.add(state.workload.engine)
        return [self._engine(name) for name in sorted(names or self._engines)]

    def _engine(self, name: str) -> Engine:
        if name not in self._engines:
            message = f"the {name} engine is not offered any more"
            raise EngineFailure(FailureReason.ENGINE_UNAVAILABLE, message, transient=True)
        return self._engines[name]

    # --- acting ---

    def _act(self, state: InstanceState, step: Step) -> None:
        self._log.debug("step", step=type(step).__name__, correlation_id=state.correlation_id)
        if isinstance(step, Pull | ProbeReady):
            outcome = self._aside(state, step)
        else:
            outcome = self._attempted(state, step, threading.Event())
        if outcome is None:
            return
        if isinstance(outcome, Failed):
            self._note_failure(state, step, outcome)
        now_ms = self._clock.steady_ms()
        progress = learn(state.target, self._progress, step, outcome, now_ms)
        if self._store.save_progress(self.instance, state.seq, progress):
            self._progress = progress
        self._dirty = self._dirty or not isinstance(step, ProbeReady | TakeNote | Commit | GiveUp)
        self._tell(state, step, outcome)

    def _tell(self, state: InstanceState, step: Step, outcome: Outcome) -> None:
        """A line for how a task ended: beside the one that it was accepted."""
        log = self._log.bind(correlation_id=state.correlation_id)
        if isinstance(step, GiveUp):
            log.warning("given up", reason=step.fault.reason.value, message=step.fault.message)
        elif isinstance(step, Commit):
            log.info("runs as asked")
        elif isinstance(outcome, Done) and outcome.proof is not None and outcome.proof.clean:
            log.info("removed, nothing is left")

    def _note_failure(self, state: InstanceState, step: Step, failed: Failed) -> None:
        self._log.warning(
            "step failed", step=type(step).__name__, reason=failed.reason.value,
            message=failed.message, correlation_id=state.correlation_id,
        )  # fmt: skip
        if isinstance(step, Start) and failed.reason is FailureReason.PORT_IN_USE:
            self._ports.forget(step.workload)

    def _aside(self, state: InstanceState, step: Pull | ProbeReady) -> Outcome | None:
        """Carries out a step that may take long. None when a newer task came before its end."""
        called_off = threading.Event()
        outcomes: list[Outcome | None] = []

        def body() -> None:
            outcomes.append(self._attempted(state, step, called_off))
            self._wake.set()

        threading.Thread(target=body, name=f"aside-{self.instance}", daemon=True).start()
        while True:
            self._wake.wait()
            self._wake.clear()
            if outcomes:
                return outcomes[0]
            current = self._store.instance(self.instance)
            if self._stop.is_set() or current is None or current.seq != state.seq:
                called_off.set()
                return None

    def _attempted(
        self, state: InstanceState, step: Step, called_off: threading.Event
    ) -> Outcome | None:
        try:
            return self._carry_out(state, step, called_off)
        except EngineFailure as failure:
            return Failed(failure.reason, failure.message, failure.transient)
        except Cancelled:
            return None
        except Exception as error:
            # A mistake of ours must not end the thread that looks after a workload.
            self._log.exception("unexpected", step=type(step).__name__)
            message = f"unexpected {type(error).__name__}, see the agent's log"
            return Failed(FailureReason.ENGINE_UNAVAILABLE, message, transient=True)

    def _carry_out(self, state: InstanceState, step: Step, called_off: threading.Event) -> Outcome:
        match step:
            case Pull(workload):
                self._engine(workload.engine).pull(workload.image, called_off)
            case Create(workload):
                host_ports = self._ports.allocate(workload)
                self._engine(workload.engine).create(workload, host_ports)
            case Start(unit, _):
                self._engine(unit.engine).start(unit)
            case ProbeReady(unit, workload):
                return self._probe(unit, workload)
            case Stop(unit, grace_ms):
                self._engine(unit.engine).stop(unit, grace_ms)
            case Remove(unit):
                self._engine(unit.engine).remove(unit)
            case Sweep(instance):
                for engine in self._involved(state):
                    engine.sweep(instance)
            case Prove(instance):
                return Done(self._prove(state, instance))
            case _:
                pass
        return Done()

    def _probe(self, unit: Unit, workload: Workload) -> Probed:
        readiness = workload.readiness
        if readiness.probe is None:
            return Probed(True)
        return self._engine(unit.engine).probe(unit, readiness.probe, readiness.timeout_ms)

    def _prove(self, state: InstanceState, instance: str) -> Proof:
        found = [engine.residue(instance) for engine in self._involved(state)]
        return Proof(
            checked_at_ms=self._clock.now_ms(),
            containers=sum(residue.containers for residue in found),
            networks=sum(residue.networks for residue in found),
            volumes=sum(residue.volumes for residue in found),
            paths=sum(residue.paths for residue in found),
        )

    # --- saying ---

    def _say(self, state: InstanceState, step: Step) -> None:
        report = workload_report(state.target, self._units, self._progress, step)
        self._publish(report, state.seq, seen=True)

    def _say_unseen(self, state: InstanceState, failure: EngineFailure) -> None:
        """Repeats what was known last; nothing was seen, so nothing is said to be gone."""
        if self._published is not None:
            self._publish(self._published.report, self._published.seq, seen=False)
            return
        workload = state.workload
        report = WorkloadReport(
            instance=self.instance,
            target_hash=workload.spec_hash if workload else None,
            running_hash=None,
            phase=Phase.PENDING if workload else Phase.REMOVING,
            reason=failure.reason,
            message=failure.message,
        )
        self._publish(report, state.seq, seen=False)

    def _publish(self, report: WorkloadReport, seq: int, *, seen: bool) -> None:
        before = self._published
        since_ms = self._clock.now_ms()
        if before is not None and _standing(before.report) == _standing(report):
            since_ms = before.report.since_ms
        after = Published(report.model_copy(update={"since_ms": since_ms}), seq, seen)
        if after != before:
            self._published = after
            self._changed()


def _standing(report: WorkloadReport) -> tuple[object, ...]:
    return report.phase, report.target_hash, report.running_hash


def _in_use_by_others(states: Mapping[str, InstanceState], instance: str) -> set[int | None]:
    """The host ports of what is to be present, beside this instance."""
    return {
        port.host or state.host_ports.get(port.name)
        for name, state in states.items()
        if name != instance and state.workload is not None
        for port in state.workload.ports
    } - {None}


def _free_port(purpose: str, taken: set[int]) -> int:
    """Begins where `purpose` says, so that an instance gets the same port again when it is free."""
    offset = int(hashlib.sha256(purpose.encode()).hexdigest(), 16)
    for step in range(PORT_COUNT):
        port = PORT_FIRST + (offset + step) % PORT_COUNT
        if port not in taken and port_is_free(port):
            return port
    raise EngineFailure(FailureReason.PORT_IN_USE, "no free port was found", transient=True)
