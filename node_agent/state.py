"""What the agent remembers across its own death, one small file for each thing.

Rules:
- A file is replaced whole: written beside, flushed, renamed, the folder flushed. A reader finds the
  old one or the new one. The folder is 0700, each file 0600: private key and app settings are here.
- An accepted task and its target are one file, so that they can't come apart.
- A file that can't be read is moved aside and said out loud, never overlooked: with it may have
  gone the highest task number, so every task issued before now is refused from then on.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from node_agent.steps import Absent, Fault, Present, Progress, Target
from node_agent.tasks import ISSUED_AHEAD_MAX_MS, AnyTask
from node_agent.wire import (
    ControlTask,
    FailureReason,
    LaunchTask,
    Proof,
    RemoveTask,
    VerifierKey,
    Workload,
)

REMEMBERED_TASKS_MAX = 64
REMOVED_KEPT_MAX = 1_000
REMOVED_KEPT_MS = 24 * 3_600_000
REPORT_SEQ_RESERVE = 60_000
_CORRUPT = ".corrupt-"


class StateUnusable(Exception):
    """The state folder can't be used. `code`: state_locked, state_corrupt, state_unwritable."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


class _Stored(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Identity(_Stored):
    """Who this agent is and whom it believes. `seq_floor` covers forgotten task numbers.

    No task issued before `not_before_ms` is taken. `report_seq_reserved` is above every report
    number ever used.
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

    def __repr__(self) -> str:
        return f"Identity(node={self.node!r}, server={self.server!r}, private_key=***)"

    __str__ = __repr__


class StoredFault(_Stored):
    reason: FailureReason
    message: str
    exit_code: int | None = None


class InstanceState(_Stored):
    """One instance: the task it was given last, and the progress worth keeping.

    `workload` None means it is to be absent. `host_ports` are the ports the agent picked, by port
    name; they stay the same over replacements. `engines` are those that ever held something of it.
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
    host_ports: dict[str, int] = {}
    engines: tuple[str, ...] = ()

    @property
    def target(self) -> Target:
        if self.workload is None:
            return Absent(self.instance, self.stop_grace_ms)
        return Present(self.workload, self.run)

    @property
    def progress(self) -> Progress:
        failure, fault = self.failure, None
        if failure is not None:
            fault = Fault(failure.reason, failure.message, failure.exit_code, final=True)
        return Progress(
            committed=self.committed, failure=fault, restarts=self.restarts, proof=self.proof
        )

    def with_progress(self, progress: Progress) -> InstanceState:
        fault, failure = progress.failure, None
        if fault is not None:
            failure = StoredFault(
                reason=fault.reason, message=fault.message, exit_code=fault.exit_code
            )
        changes = {
            "committed": progress.committed,
            "failure": failure,
            "restarts": progress.restarts,
            "proof": progress.proof,
        }
        return self.model_copy(update=changes)


@dataclass(frozen=True)
class Recovered:
    """What had to be moved aside while loading, by its new name. Empty on a healthy start."""

    moved_aside: tuple[str, ...] = ()


class StateStore:
    """The state folder. Safe to use from several threads; held by one process at a time."""

    def __init__(self, folder: Path, now_ms: int) -> None:
        """Raises StateUnusable when another agent holds it or the identity can't be read."""
        self._folder = folder
        self._lock = threading.RLock()
        self._lock_file = _hold(folder)
        try:
            _clear_temporary(folder)
            self._moved_aside: list[str] = []
            self._identity = self._load_identity(now_ms)
            self._instances = self._load_instances()
            self._executed = {t for s in self._instances.values() for t in s.task_ids}
            self._refuse_older_tasks(now_ms)
            self._report_seq = self._identity.report_seq_reserved if self._identity else 0
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        os.close(self._lock_file)

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
            _write(self._folder / "agent.json", identity.model_dump_json())
            self._identity = identity

    def next_report_seq(self, now_ms: int) -> int:
        """Rises with the clock, and in any case. Written ahead in blocks, not at each report."""
        with self._lock:
            assert self._identity is not None
            self._report_seq = max(self._report_seq + 1, now_ms)
            if self._report_seq > self._identity.report_seq_reserved:
                reserved = self._report_seq + REPORT_SEQ_RESERVE
                self.save_identity(
                    self._identity.model_copy(update={"report_seq_reserved": reserved})
                )
            return self._report_seq

    @property
    def report_seq(self) -> int:
        return self._report_seq

    # --- tasks and instances ---

    @property
    def last_seq(self) -> int:
        with self._lock:
            floor = self._identity.seq_floor if self._identity else 0
            return max([floor, *(state.seq for state in self._instances.values())])

    def was_executed(self, task_id: str) -> bool:
        with self._lock:
            return task_id in self._executed

    def instances(self) -> Mapping[str, InstanceState]:
        with self._lock:
            return dict(self._instances)

    def instance(self, instance: str) -> InstanceState | None:
        with self._lock:
            return self._instances.get(instance)

    def accept(self, task: AnyTask, now_ms: int) -> InstanceState:
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
        _write(self._instance_file(state.instance), state.model_dump_json())
        self._instances[state.instance] = state

    def _instance_file(self, instance: str) -> Path:
        digest = hashlib.sha256(instance.encode()).hexdigest()[:32]
        return self._folder / "instances" / f"{digest}.json"

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
        self.save_identity(self._identity.model_copy(update={"seq_floor": self.last_seq}))
        for instance in sorted(doomed):
            state = self._instances.pop(instance)
            self._executed.difference_update(state.task_ids)
            self._instance_file(instance).unlink(missing_ok=True)
        _flush_folder(self._folder / "instances")

    # --- loading ---

    def _load_identity(self, now_ms: int) -> Identity | None:
        path = self._folder / "agent.json"
        try:
            return Identity.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return None
        except ValidationError:
            aside = _move_aside(path, now_ms)
            raise StateUnusable(
                "state_corrupt",
                f"agent.json could not be read and is now {aside}; join again with a new token",
            ) from None

    def _load_instances(self) -> dict[str, InstanceState]:
        found = {}
        for path in sorted((self._folder / "instances").glob("*.json")):
            try:
                state = InstanceState.model_validate_json(path.read_bytes())
            except ValidationError:
                self._moved_aside.append(_move_aside(path, os.stat(path).st_mtime_ns // 1_000_000))
            else:
                found[state.instance] = state
        return found

    def _refuse_older_tasks(self, now_ms: int) -> None:
        if self._moved_aside and self._identity is not None:
            self.save_identity(
                self._identity.model_copy(update={"not_before_ms": now_ms + ISSUED_AHEAD_MAX_MS})
            )

    def anything_lost(self) -> bool:
        """Whether a file was ever moved aside in this folder."""
        return any(self._folder.rglob(f"*{_CORRUPT}*"))


def _accepted(before: InstanceState | None, task: AnyTask, now_ms: int) -> InstanceState:
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
    }
    match task:
        case LaunchTask(workload=workload):
            changes = {"workload": workload, "run": True, "stop_grace_ms": workload.stop_grace_ms}
        case ControlTask(run=run):
            changes = {"run": run}
        case RemoveTask():
            changes = {"workload": None, "committed": None, "restarts": 0}
    return base.model_copy(update={**common, **changes})


def _hold(folder: Path) -> int:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        (folder / "instances").mkdir(mode=0o700, exist_ok=True)
        folder.chmod(0o700)
        handle = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StateUnusable("state_unwritable", f"{folder}: {error.strerror}") from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise StateUnusable("state_locked", f"another agent uses {folder}") from None
    return handle


def _clear_temporary(folder: Path) -> None:
    for path in (*folder.glob("*.tmp"), *(folder / "instances").glob("*.tmp")):
        path.unlink(missing_ok=True)


def _move_aside(path: Path, now_ms: int) -> str:
    aside = path.with_name(f"{path.name}{_CORRUPT}{now_ms}")
    path.rename(aside)
    _flush_folder(path.parent)
    return aside.name


def _write(path: Path, text: str) -> None:
    temporary = path.with_suffix(".tmp")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(handle, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
    _flush_folder(path.parent)


def _flush_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
