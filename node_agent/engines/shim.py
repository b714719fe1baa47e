"""Stands between the agent and one process of ours, so that the process outlives the agent.

Run as `python -I -S shim.py UNIT_FOLDER`, never imported: small, standard library only, one thread.
It starts what `unit.json` says, in a session of its own and under its limits; writes `run.json`
before the first instruction of the workload runs; keeps the log within its cap; writes `exit.json`.
The lock file is held for as long as it lives, so that a unit can't be started twice.
Prints one line of JSON for the agent: {} or {"errno": …}.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import resource
import select
import signal
import sys
import time

LOG_BYTES_MAX = 10 * 1024 * 1024
CHUNK_BYTES = 65536


def main(folder: str) -> None:
    with open(os.path.join(folder, "unit.json")) as file:
        unit = json.load(file)
    lock = os.open(os.path.join(folder, "lock"), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        sys.stdout.write(json.dumps({"errno": errno.EALREADY}))
        return
    answer, tell = os.pipe()
    if os.fork():
        os.close(tell)
        with os.fdopen(answer) as stream:
            sys.stdout.write(stream.read() or json.dumps({"errno": errno.ECHILD}))
        return
    os.close(answer)
    os.setsid()
    stay(folder, unit, tell)


def stay(folder: str, unit: dict[str, object], tell: int) -> None:
    log_out, log_in = os.pipe()
    go_out, go_in = os.pipe()
    failed_out, failed_in = os.pipe()
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    pid = os.fork()
    if pid == 0:
        os.close(go_in)
        become(unit, null, log_in, go_out, failed_in)
    for end in (log_in, go_out, failed_in):
        os.close(end)
    # The workload waits for this word, so that no moment exists in which it runs unrecorded.
    run = {"pid": pid, "start_ticks": start_ticks(pid), "boot_id": boot_id(), "at_ms": now_ms()}
    try:
        write(folder, "run.json", run)
    except OSError as error:
        os.write(tell, json.dumps({"errno": error.errno or errno.EIO}).encode())
        return
    os.write(go_in, b"g")
    os.close(go_in)
    with os.fdopen(failed_out) as stream_failed:
        failed = stream_failed.read()
    if failed:
        os.unlink(os.path.join(folder, "run.json"))
        os.waitpid(pid, 0)
    os.write(tell, json.dumps({"errno": int(failed)} if failed else {}).encode())
    os.close(tell)
    if not failed:
        pump(folder, pid, log_out)


def become(unit: dict[str, object], null: int, log_in: int, go_out: int, failed_in: int) -> None:
    try:
        if os.read(go_out, 1) != b"g":
            os._exit(126)
        os.setsid()
        os.dup2(null, 0)
        os.dup2(log_in, 1)
        os.dup2(log_in, 2)
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        for name, value in dict(unit["rlimits"]).items():  # type: ignore[call-overload]
            resource.setrlimit(getattr(resource, name), (value, value))
        if unit.get("cores"):
            os.sched_setaffinity(0, unit["cores"])  # type: ignore[arg-type]
        os.chdir(str(unit["root"]))
        argv = [str(word) for word in unit["argv"]]  # type: ignore[attr-defined]
        os.execvpe(argv[0], argv, unit["env"])  # type: ignore[arg-type]  # noqa: S606
    except OSError as error:
        os.write(failed_in, str(error.errno or errno.EIO).encode())
    except ValueError:
        os.write(failed_in, str(errno.EINVAL).encode())
    finally:
        os._exit(127)


def pump(folder: str, pid: int, log_out: int) -> None:
    """Copies the workload's output to the log until the workload is gone."""
    path = os.path.join(folder, "log")
    log = open_log(path)
    gone = os.pidfd_open(pid)
    os.set_blocking(log_out, False)
    watched = [log_out, gone]
    while gone in watched:
        readable, _, _ = select.select(watched, [], [])
        if log_out in readable and not copy(log_out, log):
            watched.remove(log_out)
        if os.fstat(log).st_size > LOG_BYTES_MAX:
            os.close(log)
            os.replace(path, path + ".1")
            log = open_log(path)
        if gone in readable:
            watched.remove(gone)
    copy(log_out, log)
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    # A signal is shown the way a shell and Docker show it.
    write(folder, "exit.json", {"code": 128 - code if code < 0 else code, "at_ms": now_ms()})


def copy(source: int, target: int) -> bool:
    """One piece of output. False at its end."""
    try:
        content = os.read(source, CHUNK_BYTES)
    except BlockingIOError:
        return True
    try:
        os.write(target, content)
    except OSError:
        # A full disk must not stop the workload: its words are lost, it goes on.
        return bool(content)
    return bool(content)


def open_log(path: str) -> int:
    try:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    except OSError:
        return os.open(os.devnull, os.O_WRONLY)


def write(folder: str, name: str, document: dict[str, object]) -> None:
    path = os.path.join(folder, name)
    with open(os.open(path + ".tmp", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        json.dump(document, file)
    os.replace(path + ".tmp", path)


def start_ticks(pid: int) -> int:
    with open(f"/proc/{pid}/stat") as file:
        return int(file.read().rpartition(")")[2].split()[19])


def boot_id() -> str:
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()


def now_ms() -> int:
    return time.time_ns() // 1_000_000


if __name__ == "__main__":
    main(sys.argv[1])
