"""A background process of our own: started in its own session, found again, ended by its id.

Rules:
- Only what we started is ever signalled: a record on disk holds its pid, its start time and the
  boot it started in, and all three must still match.
- Half a start is no start: what was started is ended before the error leaves.
- Readiness is polled for, and an error carries the end of the process's log.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from reconciler.errors import Refused

POLL_INTERVAL_S = 0.05
SETTLE_TIMEOUT_S = 5.0
LOG_TAIL_BYTES = 2_000
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True)
class Identity:
    """A process that cannot be mistaken for a later one with its pid.

    A pid and its start time are unique until the next boot. The command line proves less: sshd
    rewrites its own, and while a program starts there may be none to read.
    """

    pid: int
    start_ticks: int
    boot_id: str

    def alive(self) -> bool:
        """False once it has ended, even when its parent has not yet asked how."""
        return self.boot_id == boot_id() and start_ticks(self.pid) == self.start_ticks


def boot_id() -> str:
    """Names this boot of the machine."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def identify(pid: int) -> Identity:
    """The process that has this pid now; one that is gone is not alive in any later look."""
    return Identity(pid, start_ticks(pid) or 0, boot_id())


def start_ticks(pid: int) -> int | None:
    """Clock ticks from boot to the start of a running process; None for a dead one or a zombie."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[19])


def command_line(pid: int) -> tuple[str, ...]:
    """The arguments of a running process; empty when it is gone."""
    try:
        raw = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return ()
    return tuple(os.fsdecode(word) for word in raw.rstrip(b"\0").split(b"\0"))


class Stoppable(ABC):
    """Something started that is stopped at the end of a `with` block."""

    @abstractmethod
    def stop(self) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.stop()


@dataclass(frozen=True)
class Service:
    """A started process: `name` for messages, its log, and the record of it on disk."""

    name: str
    identity: Identity
    log: Path
    record: Path

    def alive(self) -> bool:
        return self.identity.alive()

    def stop(self, grace_s: float = 10.0) -> None:
        """Ends the process and its group, by force after `grace_s`. Harmless when it is gone."""
        end(self.identity, grace_s)
        self.record.unlink(missing_ok=True)


def find_program(name: str, package: str) -> str:
    """The path of a program, the system's administrator folders included; Refused when missing."""
    found = shutil.which(name) or shutil.which(name, path=SYSTEM_PATH)
    if found is None:
        raise Refused(
            "program_missing", f"{name} is not installed", hint=f"apt-get install {package}"
        )
    return found


def start(
    name: str,
    argv: Sequence[str],
    root: Path,
    environment: Mapping[str, str] | None = None,
) -> Service:
    """Starts `argv` in its own session, logging to `<root>/<name>.log`, ending a leftover first.

    The environment is a fixed path plus `environment`: a proxy or a credential of the caller's
    shell does not reach the service.
    """
    root.mkdir(parents=True, exist_ok=True)
    end_leftover(name, root)
    log = root / f"{name}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            list(argv),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=root,
            env={"PATH": SYSTEM_PATH, "HOME": str(root), **(environment or {})},
            start_new_session=True,
        )
    # The child is ended by its pid and reaped in `end`; a forgotten Popen would warn about it.
    process.returncode = 0
    service = Service(name, identify(process.pid), log, _record(name, root))
    service.record.write_text(json.dumps(asdict(service.identity)))
    return service


def end_leftover(
    name: str,
    root: Path,
    grace_s: float = 10.0,
    meanwhile: Callable[[], object] | None = None,
) -> bool:
    """Ends what an earlier, killed run left under `root`, if it still is that process."""
    record = _record(name, root)
    try:
        document = json.loads(record.read_text())
        identity = Identity(
            int(document["pid"]), int(document["start_ticks"]), str(document["boot_id"])
        )
    except FileNotFoundError:
        return False
    except (OSError, ValueError, KeyError, TypeError):
        record.unlink(missing_ok=True)
        return False
    was_alive = identity.alive()
    end(identity, grace_s, meanwhile)
    record.unlink(missing_ok=True)
    return was_alive


def end(
    identity: Identity, grace_s: float, meanwhile: Callable[[], object] | None = None
) -> None:
    """SIGTERM, after `grace_s` SIGKILL, and SIGKILL to what is left of its group.

    `meanwhile` runs at every poll: a way to help it end.
    """
    if identity.alive():
        _signal(identity.pid, signal.SIGTERM)
        deadline = time.monotonic() + grace_s
        while identity.alive() and time.monotonic() < deadline:
            if meanwhile is not None:
                meanwhile()
            time.sleep(POLL_INTERVAL_S)
        _signal_group(identity.pid, signal.SIGKILL)
        while identity.alive():
            time.sleep(POLL_INTERVAL_S)
    _reap(identity.pid)


def wait_ready(service: Service, answers: Callable[[], bool], timeout_s: float) -> None:
    """Polls until `answers`; Refused with the end of the log when it dies or takes too long."""
    deadline = time.monotonic() + timeout_s
    while not answers():
        if not service.alive():
            raise Refused(
                "service_died", _with_log("it ended while starting", service), where=service.name
            )
        if time.monotonic() > deadline:
            raise Refused(
                "service_not_ready",
                _with_log(f"no answer after {timeout_s:g} s", service),
                where=service.name,
            )
        time.sleep(POLL_INTERVAL_S)


def run(argv: Sequence[str], timeout_s: float = 30.0) -> str:
    """Runs a short command, returns what it printed; Refused with its error output."""
    done = subprocess.run(
        list(argv),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    if done.returncode != 0:
        raise Refused(
            "command_failed", done.stderr.strip() or f"exit {done.returncode}", where=argv[0]
        )
    return done.stdout


def listens(pid: int, port: int) -> bool:
    """Whether this very process listens on an IPv4 TCP port, and not another one that was first."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    wanted = f":{port:04X}"
    inodes = {row[9] for row in rows if row[3] == "0A" and row[1].endswith(wanted)}
    try:
        open_files = [os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir()]
    except OSError:
        return False
    return any(f"socket:[{inode}]" in open_files for inode in inodes)


def log_tail(log: Path) -> str:
    """The last `LOG_TAIL_BYTES` of a log, as text."""
    try:
        return log.read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace").strip()
    except OSError:
        return ""


def _with_log(message: str, service: Service) -> str:
    tail = log_tail(service.log)
    return f"{message}; " + (f"the end of {service.log}:\n{tail}" if tail else "it logged nothing")


def _record(name: str, root: Path) -> Path:
    return root / f"{name}.process.json"


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def _signal_group(leader: int, number: signal.Signals) -> None:
    # It leads its own group because it was started in its own session.
    try:
        os.killpg(leader, number)
    except ProcessLookupError:
        return


def _reap(pid: int) -> None:
    # A leftover of another run is not our child; then there is nothing for us to collect. A child
    # with threads can look dead a moment before it can be collected. One that lives is a stranger.
    deadline = time.monotonic() + SETTLE_TIMEOUT_S
    while start_ticks(pid) is None and time.monotonic() < deadline:
        try:
            if os.waitpid(pid, os.WNOHANG)[0] == pid:
                return
        except ChildProcessError:
            return
        time.sleep(POLL_INTERVAL_S)
