"""One instance's turns: look, decide, do one step, learn from it, say how it stands.

Rules:
- No threads and no waiting: whoever drives the turns waits, and does in its own way what may take
  long (see `Aside`). So the very same turns run under a real clock and under a simulated one.
- What is decided is `converge`'s; this file only does it and says how it went.
- What can't be written to the state folder was not done: the same turn is taken again.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import structlog

from node_agent.acting import Acting, Clock, Credentials
from node_agent.blobs import BlobProvider
from node_agent.converge import next_step, on_trial, wanted_workload
from node_agent.engines.base import (
    DISK_FULL_NUMBERS,
    Cancelled,
    Engine,
    EngineFailure,
)
from node_agent.learning import learn, renewed
from node_agent.looks import Looks
from node_agent.ports import HostPorts
from node_agent.secret_keeper import Provider
from node_agent.state import InstanceState, StateStore
from node_agent.status import workload_report
from node_agent.steps import (
    Absent,
    Apply,
    Commit,
    Done,
    Failed,
    GiveUp,
    GiveUpService,
    NoteJobs,
    NoteReady,
    Outcome,
    Present,
    ProbeReady,
    ProbeService,
    Progress,
    Pull,
    Remove,
    RepairServices,
    Settled,
    Start,
    StartServices,
    Step,
    TakeNote,
    Wait,
)
from node_agent.units import Unit
from node_agent.wire import FailureReason, Phase, WorkloadReport

REFRESH_MS = 10_000
"""How long what was seen is believed when no engine says that something changed."""
REFRESH_ON_TRIAL_MS = 500
ENGINE_RETRY_MS = 1_000
CATCH_UP_MS = 30_000
_CHANGES_NOTHING = (
    ProbeReady, ProbeService, TakeNote, NoteReady, NoteJobs, Commit, GiveUp, GiveUpService,
)  # fmt: skip


@dataclass(frozen=True)
class Published:
    """What was last said, going by task number `seq`.

    `seen` False: an engine does not answer, so it may be old.
    """

    report: WorkloadReport
    seq: int
    seen: bool


# --- what to do after a turn ---------------------------------------------------------------------


@dataclass(frozen=True)
class Again:
    """A step was done; the next turn may follow at once."""


@dataclass(frozen=True)
class Rest:
    """Nothing to do before the steady clock says `until_ms`, unless something changes."""

    until_ms: int


@dataclass(frozen=True)
class Aside:
    """A step that may take long: `attempt` it anywhere, then `finish` it, or drop it.

    It is to be called off as soon as it is `superseded`. Starting a topology is none, though it may
    have to stop services: half done and left alone it would get in the way of what comes next.
    """

    state: InstanceState
    step: Pull | ProbeReady | ProbeService


@dataclass(frozen=True)
class Finished:
    """Nothing of the instance is left to take care of."""


Next = Again | Rest | Aside | Finished


class Turns:
    """What is known of one instance between its turns. Only `dirty` may be set by other threads."""

    def __init__(
        self,
        instance: str,
        store: StateStore,
        engines: Mapping[str, Engine],
        ports: HostPorts,
        clock: Clock,
        changed: Callable[[], None],
        secrets: Provider | None = None,
        looks: Looks | None = None,
        blobs: BlobProvider | None = None,
        credentials: Credentials | None = None,
    ) -> None:
        self.instance = instance
        self.dirty = True
        self._store = store
        self._clock = clock
        self._changed = changed
        self._looks = looks or Looks()
        self._acting = Acting(engines, ports, clock, secrets, blobs, credentials)
        self._log = structlog.get_logger().bind(instance=instance)
        self._units: tuple[Unit, ...] = ()
        self._looked_at_ms = 0
        self._seq: int | None = None
        self._progress = Progress()
        self._published: Published | None = None
        self._catch_up_ms = 0

    @property
    def published(self) -> Published | None:
        return self._published

    @property
    def progress(self) -> Progress:
        return self._progress

    def turn(self) -> Next:
        """One look and at most one step."""
        state = self._store.instance(self.instance)
        if state is None:
            return Finished()
        try:
            return self._turn(state)
        except OSError as error:
            return self._not_written(error)

    def superseded(self, aside: Aside) -> bool:
        """Whether a newer task came since."""
        current = self._store.instance(self.instance)
        return current is None or current.seq != aside.state.seq

    def attempt(self, aside: Aside, called_off: threading.Event) -> Outcome | None:
        """Carries out what may take long. None when it was called off. Touches nothing of ours."""
        return self._attempted(aside.state, aside.step, called_off)

    def finish(self, aside: Aside, outcome: Outcome | None) -> Next:
        """Learns how it ended. A newer task may have come meanwhile; then nothing is written."""
        try:
            return self._learn(aside.state, aside.step, outcome)
        except OSError as error:
            return self._not_written(error)

    def _turn(self, state: InstanceState) -> Next:
        self._take_over(state)
        now_ms = self._clock.steady_ms()
        try:
            self._look(state, now_ms)
        except EngineFailure as failure:
            self._say_unseen(state, failure)
            return Rest(now_ms + ENGINE_RETRY_MS)
        step = next_step(state.target, self._units, self._progress, now_ms)
        self._say(state, step)
        if isinstance(step, Settled) and isinstance(state.target, Absent):
            return Finished()
        if isinstance(step, Wait | Settled):
            self._catch_up(state, now_ms)
            refresh_ms = self._looked_at_ms + REFRESH_MS
            return Rest(min(step.until_ms, refresh_ms) if isinstance(step, Wait) else refresh_ms)
        self._log.debug("step", step=type(step).__name__, correlation_id=state.correlation_id)
        if isinstance(step, Pull | ProbeReady | ProbeService):
            return Aside(state, step)
        return self._learn(state, step, self._attempted(state, step, threading.Event()))

    def _not_written(self, error: OSError) -> Rest:
        """A full disk, most likely."""
        self._log.error("state not written", error=error.strerror)
        return Rest(self._clock.steady_ms() + ENGINE_RETRY_MS)

    def _take_over(self, state: InstanceState) -> None:
        now_ms = self._clock.steady_ms()
        if self._seq is None:
            self._progress = replace(state.progress, attempt_since_ms=now_ms)
        elif self._seq != state.seq:
            self._progress = renewed(state.target, self._progress, now_ms)
        else:
            return
        self._seq = state.seq
        self.dirty = True

    def _look(self, state: InstanceState, now_ms: int) -> None:
        age_ms = now_ms - self._looked_at_ms
        due = self.dirty or (age_ms >= REFRESH_ON_TRIAL_MS and self._tries_something(state))
        if not due and age_ms < REFRESH_MS:
            return
        # Cleared first: what changes while we look must make us look again.
        self.dirty = False
        try:
            looks = [self._seen(engine, due, now_ms) for engine in self._acting.involved(state)]
        except EngineFailure:
            self.dirty = True
            raise
        self._units = tuple(unit for _, units in looks for unit in units)
        self._looked_at_ms = min((at_ms for at_ms, _ in looks), default=now_ms)
        if self._units and not state.engines:
            self._acting.note_found(self.instance, self._units)

    def _seen(self, engine: Engine, due: bool, now_ms: int) -> tuple[int, Sequence[Unit]]:
        """Its units of this instance, and when they were seen; shared unless it is `due`."""
        if due:
            return now_ms, engine.units(self.instance)
        after_ms = max(self._looked_at_ms, now_ms - REFRESH_MS)
        at_ms, units = self._looks.newer_than(engine, after_ms, now_ms)
        return at_ms, [unit for unit in units if unit.instance == self.instance]

    def _tries_something(self, state: InstanceState) -> bool:
        """Whether something may change soon that no event tells of: a first start, say."""
        if isinstance(state.target, Absent):
            return False
        wanted = wanted_workload(state.target, self._progress)
        return wanted is not None and on_trial(wanted, self._progress)

    # --- acting ---

    def _learn(self, state: InstanceState, step: Step, outcome: Outcome | None) -> Again:
        if outcome is None:
            return Again()
        # Before anything is written: what was done is to be seen even when that fails.
        self.dirty = self.dirty or not isinstance(step, _CHANGES_NOTHING)
        if isinstance(outcome, Failed):
            self._note_failure(state, step, outcome)
        now_ms = self._clock.steady_ms()
        progress = learn(state.target, self._progress, step, outcome, now_ms)
        before = self._progress
        try:
            saved = self._store.save_progress(self.instance, state.seq, progress)
        except OSError:
            if isinstance(step, StartServices | RepairServices):
                # They were started or removed all the same: who was ready is asked anew.
                self._progress = replace(before, services=progress.services)
            raise
        if saved:
            self._progress = progress
        self._tell(state, step, outcome)
        self._tell_losses(state, step, before)
        return Again()

    def _tell(self, state: InstanceState, step: Step, outcome: Outcome) -> None:
        """A line for how a task ended: beside the one that it was accepted."""
        log = self._log.bind(correlation_id=state.correlation_id)
        if isinstance(step, GiveUp):
            log.warning("given up", reason=step.fault.reason.value, message=step.fault.message)
        elif isinstance(step, Commit):
            log.info("runs as asked")
        elif isinstance(outcome, Done) and outcome.proof is not None and outcome.proof.clean:
            log.info("removed, nothing is left")

    def _tell_losses(self, state: InstanceState, step: Step, before: Progress) -> None:
        """A line for each time that it was lost: many of them are its flapping."""
        log = self._log.bind(correlation_id=state.correlation_id)
        if isinstance(step, Start) and self._progress.restarts > before.restarts:
            log.warning("ended, started again", exit_code=step.unit.exit_code,
                        restarts=self._progress.restarts)  # fmt: skip
        elif isinstance(step, ProbeReady) and before.ready_hash and not self._progress.ready_hash:
            log.warning("ready no more", probe=self._progress.probe_detail)
        elif isinstance(step, Apply) and step.workload == before.committed:
            lost = [name for name, made in step.unit.volumes or () if not made]
            if lost:
                log.warning("volume removed by somebody, made anew and empty", volumes=lost)
        self._tell_of_services(log, before)

    def _tell_of_services(self, log: Any, before: Progress) -> None:
        earlier = {one.name: one for one in before.services}
        for one in self._progress.services:
            was = earlier.get(one.name)
            if was is None:
                continue
            if one.restarts > was.restarts:
                log.warning("ended, started again", service=one.name, restarts=one.restarts)
            elif was.ready and not one.ready and one.probe_failures:
                log.warning("ready no more", service=one.name, probe=one.probe_detail)
            if one.failed is not None and was.failed is None:
                log.warning("service given up", service=one.name, message=one.failed.message)

    def _note_failure(self, state: InstanceState, step: Step, failed: Failed) -> None:
        self._log.warning(
            "step failed", step=type(step).__name__, reason=failed.reason.value,
            message=failed.message, correlation_id=state.correlation_id,
        )  # fmt: skip
        taken = failed.reason is FailureReason.PORT_IN_USE
        if taken and isinstance(step, Start | StartServices):
            self._acting.forget_ports(step)

    def _attempted(
        self, state: InstanceState, step: Step, called_off: threading.Event
    ) -> Outcome | None:
        try:
            outcome = self._acting.carry_out(state, step, called_off)
            if isinstance(step, Remove):
                self._forget_secrets(state, step.unit)
            return outcome
        except EngineFailure as failure:
            return Failed(failure.reason, failure.message, failure.transient)
        except Cancelled:
            return None
        except OSError as error:
            if error.errno in DISK_FULL_NUMBERS:
                return Failed(FailureReason.DISK_FULL, str(error.strerror), transient=True)
            return self._unexpected(step, error)
        except Exception as error:
            return self._unexpected(step, error)

    def _unexpected(self, step: Step, error: Exception) -> Failed:
        """A mistake of ours must not end the thread that looks after a workload."""
        self._log.exception("unexpected", step=type(step).__name__)
        message = f"unexpected {type(error).__name__}, see the agent's log"
        return Failed(FailureReason.ENGINE_UNAVAILABLE, message, transient=True)

    def _forget_secrets(self, state: InstanceState, removed: Unit) -> None:
        """Of workloads that are neither there any more nor wanted again."""
        if isinstance(state.target, Absent):
            return
        units = {unit.spec_hash for unit in self._units if unit.unit_id != removed.unit_id}
        workloads = [one for one in (state.workload, self._progress.committed) if one is not None]
        kept = units | {workload.spec_hash for workload in workloads}
        self._acting.keep_secrets(self.instance, kept)

    def _catch_up(self, state: InstanceState, now_ms: int) -> None:
        """What started without all its secrets gets the rest while it runs."""
        target = state.target
        wanted = wanted_workload(target, self._progress) if isinstance(target, Present) else None
        if wanted is None or now_ms < self._catch_up_ms:
            return
        self._catch_up_ms = now_ms + CATCH_UP_MS
        with contextlib.suppress(EngineFailure):  # Who is silent is asked again.
            self._acting.provide(wanted, threading.Event())

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
