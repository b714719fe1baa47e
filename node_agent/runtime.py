"""The running agent: takes tasks, keeps workloads, reports.

Rules:
- Several kinds of threads: one asks for tasks, one per instance converges, one reports, one keeps
  the certificate good, one keeps SSH keys in place, one pulls blobs ahead. They share the state
  store and little else.
- The control plane being away changes nothing for what runs. Reports are state, not events, so what
  was missed meanwhile is in the next one.
- Stopping the agent stops no workload, and neither does its node's being revoked.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import structlog

from node_agent.acks import Acks
from node_agent.authorized_keys import AuthorizedKeys
from node_agent.backoff import Backoff
from node_agent.blob_keeper import BlobKeeper
from node_agent.clock import SystemClock
from node_agent.engines.base import Engine
from node_agent.inventory import take_inventory
from node_agent.last_report import keep_report
from node_agent.link import (
    CERTIFICATE_REQUIRED,
    NODE_REVOKED,
    TLS_REFUSED,
    AgentKey,
    Away,
    Credentials,
    Link,
)
from node_agent.looks import Looks
from node_agent.node_config import ConfigKeeper, Converge
from node_agent.ports import HostPorts
from node_agent.pull_credentials import PullCredentials
from node_agent.renewal import Renewal
from node_agent.secret_files import SecretFiles
from node_agent.secret_keeper import SecretKeeper
from node_agent.sshd_check import SshdCheck
from node_agent.state import StateStore
from node_agent.status import is_progress, tombstone
from node_agent.strays import Strays
from node_agent.tasks import Accepted, Refusal, Trust, Verdict, admit
from node_agent.turns import Turns
from node_agent.wire import (
    AnyTask,
    Inventory,
    Poll,
    PollReply,
    PullBlobTask,
    Report,
    WorkloadReport,
)
from node_agent.worker import Worker

ACK_WAIT_S = 2.0
SSH_FILE = "ssh-users.json"


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


class Agent:
    """Everything between the state store, the engines and the control plane."""

    def __init__(
        self,
        store: StateStore,
        engines: Mapping[str, Engine],
        folder: Path,
        pace: Pace | None = None,
        secret_files: SecretFiles | None = None,
        ssh_keys: Converge | None = None,
        blob_quota_bytes: int | None = None,
    ) -> None:
        """`store` must have joined; `folder` is where it is; `ssh_keys` puts those of the node in
        place; `blob_quota_bytes` as in `BlobCache`. Starts nothing yet.
        """
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
        self._secrets_link = self._link()
        files = secret_files or SecretFiles.for_node(identity.node)
        self._secrets = SecretKeeper(files, self._secrets_link, store, self._clock)
        self._credentials_for = PullCredentials(self._secrets_link, store, self._clock)
        self._blobs = BlobKeeper(
            folder, self._link(), store, self._clock, self._say_changed, blob_quota_bytes
        )
        self._workers: dict[str, Worker] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._changed = threading.Event()
        install = ssh_keys or AuthorizedKeys(folder / SSH_FILE, sshd_warning=SshdCheck()).converge
        self._config = ConfigKeeper(store, self._clock, install, self._say_changed)
        # It shows no certificate, so that one that has ended is not in the way of the next.
        self._renewal_link = Link(identity.server, self._key, self._trusted)
        self._renewal = Renewal(
            store, self._key, self._renewal_link, self._clock, self._pace.backoff_max_s
        )
        self._acks = Acks()
        self._refusal = ""
        self._complete = False
        self._silent: dict[str, str] = {}
        self._looks = Looks()
        self._strays = Strays(engines, self._looks)
        self._threads: list[threading.Thread] = []

    def _link(self) -> Link:
        return Link(self._identity.server, self._key, self._credentials)

    def _credentials(self) -> Credentials:
        identity = self._store.identity or self._identity
        return Credentials(identity.ca, identity.certificate)

    def _trusted(self) -> Credentials:
        return Credentials(self._credentials().ca)

    # --- life ---

    def start(self) -> None:
        """Takes up every instance it knows and begins to poll and report."""
        for name in self._store.recovered.moved_aside:
            self._log.error("state file unreadable, moved aside", file=name)
        for instance, state in sorted(self._store.instances().items()):
            if state.proof is None:
                self._ensure_worker(instance)
        loops = {
            "poll": self._poll_loop,
            "report": self._report_loop,
            "certificate": lambda: self._renewal.run(self._stop),
            "config": lambda: self._config.run(self._stop),
            "blobs": lambda: self._blobs.run(self._stop),
        }
        threads = [
            threading.Thread(target=body, name=name, daemon=True) for name, body in loops.items()
        ]
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
        self._acks.release()
        self._renewal.wake()
        self._config.wake()
        self._blobs.wake()
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
        self._blobs.close()
        self._renewal_link.close()

    # --- tasks ---

    def _poll_loop(self) -> None:
        link = self._link()
        backoff = Backoff(self._pace.backoff_max_s)
        while not self._stop.is_set():
            poll = Poll(
                node=self._identity.node,
                sent_at_ms=self._clock.now_ms(),
                report_seq=self._store.report_seq,
                wait_ms=self._pace.poll_wait_ms,
                config=self._config.digest,
            )
            try:
                reply = link.poll(poll)
            except Away as away:
                self._note_away("poll failed", away)
                self._stop.wait(backoff.next_s())
                continue
            try:
                believed = self._take(reply)
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
                self._acks.wait(ACK_WAIT_S)
        link.close()

    def _note_away(self, event: str, away: Away) -> None:
        if away.code == NODE_REVOKED:
            self._log.error(
                "this node was revoked: what runs is kept, and nothing new is taken until it joins "
                "anew", code=away.code, message=away.message,
            )  # fmt: skip
            return
        self._log.warning(event, code=away.code, message=away.message)
        if away.code in {CERTIFICATE_REQUIRED, TLS_REFUSED}:
            self._renewal.hurry()

    def _take(self, reply: PollReply) -> bool:
        """The config before the tasks: they may be signed with a key that it is the first to name.
        False when one of them is not believed.
        """
        refused = self._config.adopt(reply.config) if reply.config is not None else ""
        return self._take_tasks(reply.tasks, refused)

    def _take_tasks(self, envelopes: Sequence[Mapping[str, Any]], refused: str = "") -> bool:
        """Judges every one; False when the signature of one did not hold. `refused`: why something
        beside them is not believed.
        """
        verdicts = [self.take_task(json.dumps(envelope).encode()) for envelope in envelopes]
        unbelieved = [v for v in verdicts if isinstance(v, Refusal) and v.task_id is None]
        said = f"{unbelieved[0].code}: {unbelieved[0].message}" if unbelieved else refused
        self._say_refusal(said)
        return not said

    def _say_changed(self) -> None:
        self._changed.set()

    def _say_refusal(self, said: str) -> None:
        if said != self._refusal:
            self._refusal = said
            self._changed.set()

    def take_task(self, raw: bytes) -> Verdict:
        """Judges one task; when it is accepted, that is on disk before it is acknowledged."""
        now_ms = self._clock.now_ms()
        verdict = admit(raw, self._trust(), now_ms)
        if isinstance(verdict, Accepted):
            task = verdict.task
            self._accept(task, now_ms)
            self._log.info(
                "task accepted", kind=task.kind, instance=task.instance, task_id=task.task_id,
                correlation_id=task.correlation_id,
            )  # fmt: skip
        elif isinstance(verdict, Refusal):
            self._log.warning(
                "task refused", code=verdict.code, message=verdict.message,
                task_id=verdict.task_id,
            )  # fmt: skip
        if self._acks.owe(verdict):
            self._changed.set()
        return verdict

    def _accept(self, task: AnyTask, now_ms: int) -> None:
        if isinstance(task, PullBlobTask):
            self._blobs.accept(task, now_ms)
        else:
            self._store.accept(task, now_ms)
            self._ensure_worker(task.instance)

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
                self._changed.set, self._secrets, self._looks, self._blobs.cache,
                self._credentials_for.of,
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
        self._strays.note_change()
        self._changed.set()

    # --- reports ---

    def _report_loop(self) -> None:
        link = self._link()
        backoff = Backoff(self._pace.backoff_max_s)
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
                self._acks.forget(report.acks)
                keep_report(self._folder, report)
            except Away as away:
                self._note_away("report failed", away)
                self._stop.wait(backoff.next_s())
                continue
            except OSError as error:
                self._log.error("state not written", error=error.strerror)
                self._stop.wait(backoff.next_s())
                continue
            backoff.reset()
            if not self._changed.wait(self._pace.heartbeat_s):
                self._strays.note_time()
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
            and self._config.seen() == sent.config
            and len(now) == len(before)
            and all(one == before.get(one.instance) or is_progress(one) for one in now)
        )

    def _report(self, inventory: Inventory) -> Report:
        workloads, reached, complete = self._workload_reports()
        acks = self._acks.ready(reached)
        strays_known = self._strays.look(self._store.instances(), self._clock.steady_ms())
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
            strays=self._strays.found(known),
            acks=acks,
            refusal=self._refusal,
            config=self._config.seen(),
            blobs=self._blobs.seen(),
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
                reports.append(tombstone(state.target, state.progress))
                reached[instance] = state.seq
            elif state.accepted_at_ms < self._connected_at_ms or state.engines:
                complete = False
        return tuple(reports), reached, complete

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


def agent_version() -> str:
    try:
        return version("gpuaas")
    except PackageNotFoundError:
        return "unknown"
