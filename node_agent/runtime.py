"""The running agent: takes tasks, keeps workloads, reports.

Rules:
- Three kinds of threads: one asks for tasks, one per instance converges, one reports. They share
  the state store and nothing else that matters.
- The control plane being away changes nothing for what runs. Reports are state, not events, so what
  was missed meanwhile is in the next one.
- Stopping the agent stops no workload.
"""

from __future__ import annotations

import json
import os
import random
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import structlog

from node_agent.engines.base import Engine, EngineFailure
from node_agent.inventory import take_inventory
from node_agent.link import AgentKey, Away, Link
from node_agent.looks import Looks
from node_agent.ports import HostPorts
from node_agent.secret_files import SecretFiles
from node_agent.secret_keeper import SecretKeeper
from node_agent.state import InstanceState, StateStore
from node_agent.status import is_progress, workload_report
from node_agent.tasks import Accepted, Refusal, Trust, Verdict, acknowledgement, admit
from node_agent.turns import REFRESH_MS, Turns
from node_agent.wire import Inventory, Poll, Report, Stray, TaskAck, WorkloadReport
from node_agent.worker import Worker

BACKOFF_FIRST_S = 0.25
ACK_WAIT_S = 2.0
STRAYS_MAX = 1_000


@dataclass(frozen=True)
class Pace:
    """How often the agent speaks. The defaults are for production, tests are less patient.

    `progress_s` is how long mere progress may wait to be told: each report costs both sides work
    just while the engine starts something.
    """

    heartbeat_s: float = 10.0
    poll_wait_ms: int = 25_000
    debounce_s: float = 0.02
    progress_s: float = 0.5
    backoff_max_s: float = 30.0
    inventory_s: float = 60.0


class SystemClock:
    """Wall clock for what is compared with others, a steady one for waiting."""

    def __init__(self) -> None:
        self._base_ms = time.time_ns() // 1_000_000
        self._base_steady_ns = time.monotonic_ns()

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def steady_ms(self) -> int:
        return self._base_ms + (time.monotonic_ns() - self._base_steady_ns) // 1_000_000


@dataclass(frozen=True)
class _Owed:
    """An acknowledgement, withheld until the report that carries it speaks of that task too.

    Else the control plane would read: taken over, and yet not there.
    """

    ack: TaskAck
    instance: str = ""
    seq: int = 0


def _owed(ack: TaskAck, verdict: Verdict) -> _Owed:
    if isinstance(verdict, Accepted):
        return _Owed(ack, verdict.task.instance, verdict.task.seq)
    return _Owed(ack)


class Agent:
    """Everything between the state store, the engines and the control plane."""

    def __init__(
        self,
        store: StateStore,
        engines: Mapping[str, Engine],
        folder: Path,
        pace: Pace | None = None,
        secret_files: SecretFiles | None = None,
    ) -> None:
        """`store` must have joined; `folder` is where it is. Starts nothing yet."""
        identity = store.identity
        if identity is None:
            raise ValueError("the agent has not joined")
        self._store = store
        self._identity = identity
        self._engines = engines
        self._folder = folder
        self._pace = pace or Pace()
        self._clock = SystemClock()
        self._connected_at_ms = self._clock.now_ms()
        self._key = AgentKey.from_hex(identity.private_key)
        self._log = structlog.get_logger().bind(node=identity.node)
        self._ports = HostPorts(store)
        self._secrets_link = Link(identity.server, self._key)
        files = secret_files or SecretFiles.for_node(identity.node)
        self._secrets = SecretKeeper(files, self._secrets_link, store, self._clock)
        self._workers: dict[str, Worker] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._changed = threading.Event()
        self._acks: dict[str, _Owed] = {}
        self._acked = threading.Event()
        self._refusal = ""
        self._complete = False
        self._silent: dict[str, str] = {}
        self._strays: tuple[Stray, ...] = ()
        self._strays_known = False
        self._strays_due = True
        self._strays_changed = False
        self._looks = Looks()
        self._threads: list[threading.Thread] = []

    # --- life ---

    def start(self) -> None:
        """Takes up every instance it knows and begins to poll and report."""
        for name in self._store.recovered.moved_aside:
            self._log.error("state file unreadable, moved aside", file=name)
        for instance, state in sorted(self._store.instances().items()):
            if state.proof is None:
                self._ensure_worker(instance)
        loops = [("poll", self._poll_loop), ("report", self._report_loop)]
        threads = [threading.Thread(target=body, name=name, daemon=True) for name, body in loops]
        watchers = [
            threading.Thread(
                target=engine.watch,
                args=(self._engine_changed, self._stop),
                name=f"watch-{name}",
                daemon=True,
            )
            for name, engine in sorted(self._engines.items())
        ]
        self._threads = [*threads, *watchers]
        for thread in self._threads:
            thread.start()

    def stop(self, timeout_s: float = 5.0) -> None:
        """Ends every loop, waiting for at most `timeout_s`; workloads go on."""
        deadline_s = time.monotonic() + timeout_s
        self._stop.set()
        self._changed.set()
        self._acked.set()
        with self._lock:
            workers = list(self._workers.values())
        for worker in workers:
            worker.stop()
        for engine in self._engines.values():
            engine.close()
        for worker in workers:
            worker.join(max(0.0, deadline_s - time.monotonic()))
        for thread in self._threads:
            thread.join(max(0.0, deadline_s - time.monotonic()))
        self._secrets_link.close()

    # --- tasks ---

    def _poll_loop(self) -> None:
        link = Link(self._identity.server, self._key)
        backoff = _Backoff(self._pace.backoff_max_s)
        while not self._stop.is_set():
            poll = Poll(
                node=self._identity.node,
                sent_at_ms=self._clock.now_ms(),
                report_seq=self._store.report_seq,
                wait_ms=self._pace.poll_wait_ms,
            )
            try:
                reply = link.poll(poll)
            except Away as away:
                self._log.warning("poll failed", code=away.code, message=away.message)
                self._stop.wait(backoff.next_s())
                continue
            try:
                believed = self._take_tasks(reply.tasks)
            except OSError as error:
                # Not on disk, so not acknowledged: the task comes again.
                self._log.error("state not written", error=error.strerror)
                self._say_refusal(f"state_not_written: {error.strerror}")
                self._stop.wait(backoff.next_s())
                continue
            if not believed:
                # Nobody can be told which task it was, so it comes again at once, and again.
                self._stop.wait(backoff.next_s())
                continue
            backoff.reset()
            if reply.tasks:
                # Until they are acknowledged the same tasks come again, at once.
                self._acked.wait(ACK_WAIT_S)
        link.close()

    def _take_tasks(self, envelopes: Sequence[Mapping[str, Any]]) -> bool:
        """Judges every one; False when the signature of one did not hold."""
        verdicts = [self.take_task(json.dumps(envelope).encode()) for envelope in envelopes]
        unbelieved = [v for v in verdicts if isinstance(v, Refusal) and v.task_id is None]
        said = f"{unbelieved[0].code}: {unbelieved[0].message}" if unbelieved else ""
        self._say_refusal(said)
        return not unbelieved

    def _say_refusal(self, said: str) -> None:
        if said != self._refusal:
            self._refusal = said
            self._changed.set()

    def take_task(self, raw: bytes) -> Verdict:
        """Judges one task; when it is accepted, that is on disk before it is acknowledged."""
        now_ms = self._clock.now_ms()
        verdict = admit(raw, self._trust(), now_ms)
        ack = acknowledgement(verdict)
        if isinstance(verdict, Accepted):
            task = verdict.task
            self._store.accept(task, now_ms)
            self._ensure_worker(task.instance)
            self._log.info(
                "task accepted", kind=task.kind, instance=task.instance, task_id=task.task_id,
                correlation_id=task.correlation_id,
            )  # fmt: skip
        elif isinstance(verdict, Refusal):
            self._log.warning(
                "task refused", code=verdict.code, message=verdict.message,
                task_id=verdict.task_id,
            )  # fmt: skip
        if ack is not None:
            with self._lock:
                self._acks[ack.task_id] = _owed(ack, verdict)
                self._acked.clear()
            self._changed.set()
        return verdict

    def _trust(self) -> Trust:
        identity = self._store.identity or self._identity
        return Trust(
            node=identity.node,
            verifiers=identity.verifiers,
            min_version=identity.min_version,
            engines=frozenset(self._engines),
            last_seq=self._store.last_seq,
            not_before_ms=identity.not_before_ms,
            was_executed=self._store.was_executed,
            present=self._is_present,
        )

    def _is_present(self, instance: str) -> bool:
        state = self._store.instance(instance)
        return state is not None and state.workload is not None

    # --- workers ---

    def _ensure_worker(self, instance: str, *, dirty: bool = False) -> None:
        with self._lock:
            worker = self._workers.get(instance)
            if worker is not None:
                worker.wake(dirty=dirty)
                return
            turns = Turns(
                instance, self._store, self._engines, self._ports, self._clock,
                self._changed.set, self._secrets, self._looks,
            )  # fmt: skip
            worker = Worker(turns, self._clock, self._may_end)
            self._workers[instance] = worker
            worker.start()

    def _may_end(self, worker: Worker) -> bool:
        with self._lock:
            if worker.woken:
                return False
            del self._workers[worker.instance]
            return True

    def _engine_changed(self, instance: str | None) -> None:
        with self._lock:
            known = dict(self._workers)
        if instance is None:
            for worker in known.values():
                worker.wake(dirty=True)
        elif instance in known:
            known[instance].wake(dirty=True)
            return
        elif self._store.instance(instance) is not None:
            # It was removed and proved; whatever appears now under its name has to go too.
            self._ensure_worker(instance, dirty=True)
            return
        self._strays_due = self._strays_changed = True
        self._changed.set()

    # --- reports ---

    def _report_loop(self) -> None:
        link = Link(self._identity.server, self._key)
        backoff = _Backoff(self._pace.backoff_max_s)
        inventory, inventory_at_s = self._take_inventory(), time.monotonic()
        while not self._stop.is_set():
            self._changed.clear()
            if time.monotonic() - inventory_at_s >= self._pace.inventory_s:
                inventory, inventory_at_s = self._take_inventory(), time.monotonic()
            try:
                report = self._report(inventory)
                if report.complete != self._complete:
                    self._complete = report.complete
                    if inventory.engine_errors or not report.complete:
                        # It knows of the engines what was true up to a minute ago.
                        inventory, inventory_at_s = self._take_inventory(), time.monotonic()
                        report = report.model_copy(update={"inventory": inventory})
                self._tell_engines(inventory)
                link.report(report)
                self._forget_acks(report.acks)
                self._keep_for_status(report)
            except Away as away:
                self._log.warning("report failed", code=away.code, message=away.message)
                self._stop.wait(backoff.next_s())
                continue
            except OSError as error:
                self._log.error("state not written", error=error.strerror)
                self._stop.wait(backoff.next_s())
                continue
            backoff.reset()
            if not self._changed.wait(self._pace.heartbeat_s):
                self._strays_due = True
            elif not self._acks:
                self._stop.wait(self._pace.debounce_s)
                self._let_progress(report)
        link.close()

    def _let_progress(self, sent: Report) -> None:
        """Waits while nothing but progress came since what was sent last."""
        until_s = time.monotonic() + self._pace.progress_s
        while not self._stop.is_set():
            self._changed.clear()
            left_s = until_s - time.monotonic()
            if self._acks or left_s <= 0 or not self._only_progress(sent):
                return
            self._changed.wait(left_s)

    def _only_progress(self, sent: Report) -> bool:
        before = {workload.instance: workload for workload in sent.workloads}
        now, _, complete = self._workload_reports()
        return (
            complete == sent.complete
            and self._refusal == sent.refusal
            and len(now) == len(before)
            and all(one == before.get(one.instance) or is_progress(one) for one in now)
        )

    def _report(self, inventory: Inventory) -> Report:
        workloads, reached, complete = self._workload_reports()
        with self._lock:
            acks = tuple(
                owed.ack
                for _, owed in sorted(self._acks.items())
                if owed.seq <= reached.get(owed.instance, 0)
            )
        strays_known = self._look_for_strays()
        known = self._store.instances()
        now_ms = self._clock.now_ms()
        return Report(
            node=self._identity.node,
            agent_version=agent_version(),
            sent_at_ms=now_ms,
            report_seq=self._store.next_report_seq(now_ms),
            last_seq=self._store.last_seq,
            connected_at_ms=self._connected_at_ms,
            complete=complete and strays_known,
            inventory=inventory,
            workloads=workloads,
            strays=tuple(stray for stray in self._strays if stray.instance not in known),
            acks=acks,
            refusal=self._refusal,
        )

    def _workload_reports(self) -> tuple[tuple[WorkloadReport, ...], Mapping[str, int], bool]:
        """Every instance, the task number each speaks of, and whether all were really seen."""
        reports: list[WorkloadReport] = []
        reached: dict[str, int] = {}
        complete = True
        for instance, state in sorted(self._store.instances().items()):
            with self._lock:
                worker = self._workers.get(instance)
            published = worker.published if worker is not None else None
            if published is not None:
                reports.append(published.report)
                reached[instance] = published.seq
                complete = complete and published.seen
            elif state.proof is not None:
                reports.append(_tombstone(state))
                reached[instance] = state.seq
            elif state.accepted_at_ms < self._connected_at_ms or state.engines:
                complete = False
        return tuple(reports), reached, complete

    def _look_for_strays(self) -> bool:
        if not self._strays_due:
            return self._strays_known
        self._strays_due = False
        now_ms = self._clock.steady_ms()
        # In case nothing told of a change, what the workers saw is new enough.
        after_ms = now_ms if self._strays_changed else now_ms - REFRESH_MS
        self._strays_changed = False
        try:
            looks = [
                self._looks.newer_than(engine, after_ms, now_ms)
                for _, engine in sorted(self._engines.items())
            ]
        except EngineFailure:
            self._strays_due, self._strays_changed, self._strays_known = True, True, False
            return False
        known = self._store.instances()
        self._strays = tuple(
            Stray(name=unit.name, instance=unit.instance, spec_hash=unit.spec_hash or None)
            for _, units in looks
            for unit in units
            if unit.instance not in known
        )[:STRAYS_MAX]
        self._strays_known = True
        return True

    def _forget_acks(self, sent: tuple[TaskAck, ...]) -> None:
        with self._lock:
            for ack in sent:
                owed = self._acks.get(ack.task_id)
                if owed is not None and owed.ack == ack:
                    del self._acks[ack.task_id]
            if not self._acks:
                self._acked.set()

    def _take_inventory(self) -> Inventory:
        engines = [engine for _, engine in sorted(self._engines.items())]
        return take_inventory(engines, self._folder)

    def _tell_engines(self, inventory: Inventory) -> None:
        """A line when an engine falls silent, and one when it is back."""
        before, self._silent = self._silent, dict(inventory.engine_errors)
        for engine, message in sorted(self._silent.items()):
            if engine not in before:
                self._log.warning("engine does not answer", engine=engine, message=message)
        for engine in sorted(before.keys() - self._silent.keys()):
            self._log.info("engine answers again", engine=engine)

    def _keep_for_status(self, report: Report) -> None:
        """For `gpuaas-agent status`. Losing it loses nothing, so it is not flushed."""
        path = self._folder / "report.json"
        temporary = path.with_suffix(".part")
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(report.canonical())
        temporary.replace(path)


class _Backoff:
    """Doubles up to a limit. Jittered, so that a fleet does not come back all at once."""

    def __init__(self, max_s: float) -> None:
        self._max_s = max_s
        self._next_s = min(BACKOFF_FIRST_S, max_s)

    def next_s(self) -> float:
        wait_s = self._next_s * random.uniform(0.5, 1.0)  # noqa: S311
        self._next_s = min(self._next_s * 2, self._max_s)
        return wait_s

    def reset(self) -> None:
        self._next_s = min(BACKOFF_FIRST_S, self._max_s)


def agent_version() -> str:
    try:
        return version("gpuaas")
    except PackageNotFoundError:
        return "unknown"


def _tombstone(state: InstanceState) -> WorkloadReport:
    report = workload_report(state.target, (), state.progress, None)
    return report.model_copy(update={"since_ms": state.proof.checked_at_ms if state.proof else 0})
