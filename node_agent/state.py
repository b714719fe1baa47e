"""What the agent remembers across its own death, one small file for each thing.

Rules:
- A file is replaced whole (see `disk`). What is in memory changes after what is on disk.
- An accepted task and its target are one file, so that they can't come apart.
- A file that can't be read is moved aside and said out loud, never overlooked: with it may have
  gone the highest task number, so every task issued before now is refused from then on.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from node_agent.disk import Disk, FolderDisk, StateUnusable
from node_agent.membership import NodeConfig
from node_agent.state_pulls import PULLS_FILE, Pulls, parse_pulls, pulls_text, to_forget, with_pull
from node_agent.steps import (
    Absent,
    Fault,
    JobDone,
    Present,
    Progress,
    ServiceProgress,
    Target,
)
from node_agent.tasks import ISSUED_AHEAD_MAX_MS
from node_agent.wire import (
    ControlTask,
    FailureReason,
    LaunchTask,
    Proof,
    PullBlobTask,
    RemoveTask,
    VerifierKey,
    Workload,
)

InstanceTask = LaunchTask | ControlTask | RemoveTask

REMEMBERED_TASKS_MAX = 64
REMOVED_KEPT_MAX = 1_000
REMOVED_KEPT_MS = 24 * 3_600_000
REPORT_SEQ_RESERVE = 60_000
RETIRED_KEYS_MAX = 8
_IDENTITY_FILE = "agent.json"


class _Stored(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Identity(_Stored):
    """Who this agent is and whom it believes. `seq_floor` covers forgotten task numbers.

    No task issued before `not_before_ms` is taken. `report_seq_reserved` is above every report
    number ever used. `config` is the NodeConfig in force; `verifiers` and `min_version` are its.
    `certificate` (chain) and `ca` are PEM; an agent that joined before there were any has none.
    """

    node: str
    server: str
    private_key: str
    verifiers: tuple[VerifierKey, ...]
    min_version: int
    joined_at_ms: int
    seq_floor: int = 0
    not_before_ms: int = 0
    report_seq_reserved: int = 0
    certificate: str = ""
    ca: str = ""
    config: NodeConfig | None = None

    @property
    def joined_securely(self) -> bool:
        """Whether there is a CA to know the control plane by."""
        return bool(self.ca) and self.server.startswith("https://")

    def __repr__(self) -> str:
        node, server = self.node, self.server
        return f"Identity(node={node!r}, server={server!r}, private_key=***, certificate=***)"

    __str__ = __repr__


class StoredFault(_Stored):
    reason: FailureReason
    message: str
    exit_code: int | None = None


class StoredGivenUp(_Stored):
    """A service that is not started again while it is of this form."""

    service: str
    form: str
    fault: StoredFault


class StoredJob(_Stored):
    """A job that is done. `volumes`: when each was made, by name."""

    service: str
    form: str
    volumes: dict[str, str]


class InstanceState(_Stored):
    """One instance: the task it was given last, and the progress worth keeping.

    `workload` None means it is to be absent. `host_ports` are the ports the agent picked, by port
    name; they stay the same over replacements. `engines` are those that ever held something of it.
    `given_up` and `jobs` are of a topology; what an agent wrote that knew of neither has none.
    """

    instance: str
    seq: int
    task_ids: tuple[str, ...]
    correlation_id: str
    accepted_at_ms: int
    workload: Workload | None
    run: bool = True
    stop_grace_ms: int = 10_000
    committed: Workload | None = None
    failure: StoredFault | None = None
    restarts: int = 0
    proof: Proof | None = None
    losses_ms: tuple[int, ...] = ()
    tolerated: tuple[str, ...] = ()
    host_ports: dict[str, int] = {}
    engines: tuple[str, ...] = ()
    given_up: tuple[StoredGivenUp, ...] = ()
    jobs: tuple[StoredJob, ...] = ()

    @property
    def target(self) -> Target:
        if self.workload is None:
            return Absent(self.instance, self.stop_grace_ms)
        return Present(self.workload, self.run)

    @property
    def progress(self) -> Progress:
        return Progress(
            committed=self.committed,
            failure=_fault(self.failure) if self.failure is not None else None,
            restarts=self.restarts,
            proof=self.proof,
            losses_ms=self.losses_ms,
            tolerated=self.tolerated,
            jobs=tuple(
                JobDone(one.service, one.form, tuple(sorted(one.volumes.items())))
                for one in self.jobs
            ),
            services=tuple(
                ServiceProgress(one.service, failed=_fault(one.fault), form=one.form)
                for one in self.given_up
            ),
        )

    def with_progress(self, progress: Progress) -> InstanceState:
        fault = progress.failure
        changes = {
            "committed": progress.committed,
            "failure": _stored(fault) if fault is not None else None,
            "restarts": progress.restarts,
            "proof": progress.proof,
            "losses_ms": progress.losses_ms,
            "tolerated": progress.tolerated,
            "given_up": tuple(
                StoredGivenUp(service=one.name, form=one.form, fault=_stored(one.failed))
                for one in progress.services
                if one.failed is not None
            ),
            "jobs": tuple(
                StoredJob(service=one.name, form=one.form, volumes=dict(one.volumes))
                for one in progress.jobs
            ),
        }
        return self.model_copy(update=changes)

    def stored(self) -> str:
        """As its file. What is said of few instances is left out where there is nothing to say: an
        agent that knows nothing of it can read it, too.
        """
        return self.model_dump_json(exclude={one for one in _OF_FEW if not getattr(self, one)})


_OF_FEW = ("given_up", "jobs")


def _fault(stored: StoredFault) -> Fault:
    return Fault(stored.reason, stored.message, stored.exit_code, final=True)


def _stored(fault: Fault) -> StoredFault:
    return StoredFault(reason=fault.reason, message=fault.message, exit_code=fault.exit_code)


@dataclass(frozen=True)
class Recovered:
    """What had to be moved aside while loading, by its new name. Empty on a healthy start."""

    moved_aside: tuple[str, ...] = ()


class StateStore:
    """The state folder. Safe to use from several threads; held by one process at a time."""

    def __init__(self, place: Path | Disk, now_ms: int) -> None:
        """Raises StateUnusable when another agent holds it or the identity can't be read.

        `place`: the folder, or what stands in for one.
        """
        self._lock = threading.RLock()
        self._disk = FolderDisk(place) if isinstance(place, Path) else place
        try:
            self._moved_aside: list[str] = []
            self._identity = self._load_identity(now_ms)
            self._instances = self._load_instances(now_ms)
            self._pulls = self._load_pulls(now_ms)
            self._executed = {t for s in self._instances.values() for t in s.task_ids}
            self._executed |= {t for pull in self._pulls.values() for t in pull.task_ids}
            self._refuse_older_tasks(now_ms)
            self._report_seq = self._identity.report_seq_reserved if self._identity else 0
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._disk.close()

    @property
    def recovered(self) -> Recovered:
        return Recovered(tuple(self._moved_aside))

    # --- identity ---

    @property
    def identity(self) -> Identity | None:
        with self._lock:
            return self._identity

    def save_identity(self, identity: Identity) -> None:
        with self._lock:
            self._disk.write(_IDENTITY_FILE, identity.model_dump_json())
            self._identity = identity

    def save_certificate(self, certificate: str) -> None:
        """The one to show from now on."""
        self._update_identity(certificate=certificate)

    def save_config(self, config: NodeConfig) -> None:
        """What holds for the node from now on, and whom its agent believes.

        Some retired keys are remembered, so that it can say of a task that it is too old.
        """
        with self._lock:
            assert self._identity is not None
            before = self._identity.verifiers
            retired = [key for key in before if key.version < config.min_version]
            self._update_identity(
                config=config,
                verifiers=(*retired[-RETIRED_KEYS_MAX:], *config.verifiers),
                min_version=config.min_version,
                ca=config.ca or self._identity.ca,
            )

    def _update_identity(self, **changes: object) -> None:
        with self._lock:
            assert self._identity is not None
            self.save_identity(self._identity.model_copy(update=changes))

    def next_report_seq(self, now_ms: int) -> int:
        """Rises with the clock, and in any case. Written ahead in blocks, not at each report."""
        with self._lock:
            assert self._identity is not None
            self._report_seq = max(self._report_seq + 1, now_ms)
            if self._report_seq > self._identity.report_seq_reserved:
                reserved = self._report_seq + REPORT_SEQ_RESERVE
                self._update_identity(report_seq_reserved=reserved)
            return self._report_seq

    @property
    def report_seq(self) -> int:
        return self._report_seq

    # --- tasks and instances ---

    @property
    def last_seq(self) -> int:
        with self._lock:
            floor = self._identity.seq_floor if self._identity else 0
            pulled = (pull.seq for pull in self._pulls.values())
            return max([floor, *pulled, *(state.seq for state in self._instances.values())])

    def was_executed(self, task_id: str) -> bool:
        with self._lock:
            return task_id in self._executed

    def instances(self) -> Mapping[str, InstanceState]:
        with self._lock:
            return dict(self._instances)

    def instance(self, instance: str) -> InstanceState | None:
        with self._lock:
            return self._instances.get(instance)

    def pulls(self) -> Pulls:
        """What tasks asked to have in the cache of blobs, by digest."""
        with self._lock:
            return self._pulls

    def accept_pull(self, task: PullBlobTask, now_ms: int) -> None:
        """From now on its blob is wanted here. On disk before it returns."""
        with self._lock:
            after = with_pull(self._pulls, task, now_ms)
            doomed = to_forget(after, now_ms)
            kept = {digest: pull for digest, pull in after.items() if digest not in doomed}
            if doomed and self._identity is not None:
                self._update_identity(seq_floor=self.last_seq)
            self._disk.write(PULLS_FILE, pulls_text(kept))
            forgotten = {one for digest in doomed for one in after[digest].task_ids}
            self._pulls = kept
            self._executed = (self._executed | {task.task_id}) - forgotten

    def accept(self, task: InstanceTask, now_ms: int) -> InstanceState:
        """Makes the task's target the one that counts. On disk before it returns."""
        with self._lock:
            state = _accepted(self._instances.get(task.instance), task, now_ms)
            self._save(state)
            self._executed.add(task.task_id)
            self._forget_old(now_ms)
            return state

    def save_progress(self, instance: str, seq: int, progress: Progress) -> bool:
        """Writes what is worth keeping. False: a newer task has replaced the one with `seq`."""
        with self._lock:
            state = self._instances.get(instance)
            if state is None or state.seq != seq:
                return False
            after = state.with_progress(progress)
            if after != state:
                self._save(after)
            return True

    def save_placement(self, instance: str, engine: str, host_ports: Mapping[str, int]) -> None:
        """Remembers, before anything is created, where it will be and which ports it was given."""
        with self._lock:
            state = self._instances[instance]
            engines = tuple(sorted({*state.engines, engine}))
            changes = {"engines": engines, "host_ports": dict(host_ports)}
            after = state.model_copy(update=changes)
            if after != state:
                self._save(after)

    def _save(self, state: InstanceState) -> None:
        self._disk.write(_instance_file(state.instance), state.stored())
        self._instances[state.instance] = state

    def _forget_old(self, now_ms: int) -> None:
        """Drops removals that are old or too many, after their task numbers are safe elsewhere."""
        proved = sorted(
            (s for s in self._instances.values() if s.proof is not None),
            key=lambda s: (-s.accepted_at_ms, s.instance),
        )
        old = [s for s in proved if s.accepted_at_ms < now_ms - REMOVED_KEPT_MS]
        doomed = {s.instance for s in (*old, *proved[REMOVED_KEPT_MAX:])}
        if not doomed or self._identity is None:
            return
        self._update_identity(seq_floor=self.last_seq)
        self._disk.remove(tuple(_instance_file(instance) for instance in sorted(doomed)))
        for instance in sorted(doomed):
            state = self._instances.pop(instance)
            self._executed.difference_update(state.task_ids)

    # --- loading ---

    def _load_identity(self, now_ms: int) -> Identity | None:
        stored = self._disk.read(_IDENTITY_FILE)
        try:
            return None if stored is None else Identity.model_validate_json(stored)
        except ValidationError:
            aside = self._disk.move_aside(_IDENTITY_FILE, now_ms)
            raise StateUnusable(
                "state_corrupt",
                f"agent.json could not be read and is now {aside}; join again with a new token",
            ) from None

    def _load_instances(self, now_ms: int) -> dict[str, InstanceState]:
        found = {}
        for name in self._disk.names():
            try:
                state = InstanceState.model_validate_json(self._disk.read(name) or b"")
            except ValidationError:
                self._moved_aside.append(self._disk.move_aside(name, now_ms))
            else:
                found[state.instance] = state
        return found

    def _load_pulls(self, now_ms: int) -> Pulls:
        stored = self._disk.read(PULLS_FILE)
        try:
            return {} if stored is None else parse_pulls(stored)
        except ValidationError:
            self._moved_aside.append(self._disk.move_aside(PULLS_FILE, now_ms))
            return {}

    def _refuse_older_tasks(self, now_ms: int) -> None:
        if self._moved_aside and self._identity is not None:
            self._update_identity(not_before_ms=now_ms + ISSUED_AHEAD_MAX_MS)

    def anything_lost(self) -> bool:
        """Whether a file was ever moved aside in this folder."""
        return self._disk.anything_lost()


def _instance_file(instance: str) -> str:
    return f"instances/{hashlib.sha256(instance.encode()).hexdigest()[:32]}.json"


def _accepted(before: InstanceState | None, task: InstanceTask, now_ms: int) -> InstanceState:
    remembered = (before.task_ids if before else ())[-REMEMBERED_TASKS_MAX + 1 :]
    base = before or InstanceState(
        instance=task.instance, seq=0, task_ids=(), correlation_id="", accepted_at_ms=0,
        workload=None,
    )  # fmt: skip
    common = {
        "seq": task.seq,
        "task_ids": (*remembered, task.task_id),
        "correlation_id": task.correlation_id,
        "accepted_at_ms": now_ms,
        "failure": None,
        "proof": None,
        "losses_ms": (),
        "given_up": (),
    }
    match task:
        case LaunchTask(workload=workload):
            changes = {"workload": workload, "run": True, "stop_grace_ms": workload.stop_grace_ms}
        case ControlTask(run=run):
            changes = {"run": run}
        case RemoveTask():
            changes = {
                "workload": None, "committed": None, "restarts": 0, "tolerated": (), "jobs": (),
            }  # fmt: skip
    return base.model_copy(update={**common, **changes})
