"""One more process that works while this one is busy, where there is a core for it.

Rules:
- What it sends is plain data (see `marshal`): no code, no object of ours.
- It may be killed, hang or never have been there. Then values end early, and whoever wanted them
  does the work itself: nothing is decided by a second process.
- It has no terminal and no standard output, and does not outlive its use.
- It is made by a fork, which is only safe while this process has one thread: early.
"""

from __future__ import annotations

import marshal
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

SILENCE_S_MAX = 20.0
"""How long nothing may be heard from it. A file of the largest size takes it a second or two."""
_SIZE_BYTES = 8
_CPU_MAX = Path("/sys/fs/cgroup/cpu.max")


Work = Callable[["Questions"], Iterable[Any]]


class SecondProcess:
    """The values that `work` makes in the other process, as far as they come."""

    def __init__(self, pid: int, questions: int, sizes: int, values: int) -> None:
        self._pid = pid
        self._questions = questions
        self._sizes = sizes
        self._values = values
        self._position = 0
        self._ended = False

    def ask(self, question: Any) -> None:
        """Hands over what was not known at the start: plain data, a few lines at most."""
        if not self._ended:
            with suppress(BrokenPipeError):
                os.write(self._questions, marshal.dumps(question))

    def has_news(self) -> bool:
        """Whether `take` would answer at once."""
        return self._ended or bool(_poll(self._sizes, 0))

    def take(self) -> Any:
        """The next value, waited for; None when no more will come, for whatever reason."""
        if self._ended:
            return None
        value = self._next()
        if value is None:
            self.close()
        return value

    def close(self) -> None:
        """Ends it if need be. May be called again."""
        if self._ended:
            return
        self._ended = True
        for descriptor in (self._questions, self._sizes, self._values):
            os.close(descriptor)
        with suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)
        with suppress(ChildProcessError):
            os.waitpid(self._pid, 0)

    def _next(self) -> Any:
        if not _poll(self._sizes, SILENCE_S_MAX):
            return None
        size = int.from_bytes(os.read(self._sizes, _SIZE_BYTES), "little")
        block = os.pread(self._values, size, self._position)
        self._position += size
        if not size or len(block) < size:
            return None
        return marshal.loads(block)  # noqa: S302 - written by our own code in our own process


class Questions:
    """What the other process is asked, as far as it looks."""

    def __init__(self, descriptor: int) -> None:
        self._pipe = os.fdopen(descriptor, "rb", buffering=0)

    def next(self) -> Any:
        """Waits; None when nobody asks any more."""
        try:
            return marshal.load(self._pipe)  # noqa: S302 - as above
        except EOFError:
            return None

    def any(self) -> bool:
        """Whether `next` would answer at once."""
        return bool(_poll(self._pipe.fileno(), 0))


def start(work: Work) -> SecondProcess | None:
    """Runs `work` in another process; None where that is not possible, or would not help.

    What it takes from this process is what was there at this moment.
    """
    if not pays():
        return None
    # The values go through memory, since a pipe would make the other process wait until this one
    # has time to read; through the pipe goes how long each is.
    values = os.memfd_create("values")
    (asked, questions), (sizes, told) = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(questions)
        os.close(sizes)
        _run(work, asked, values, told)
    os.close(asked)
    os.close(told)
    return SecondProcess(pid, questions, sizes, values)


def pays() -> bool:
    """Whether it can be done safely here, and would have a core of its own."""
    return sys.platform == "linux" and threading.active_count() == 1 and cores() >= 2


def cores() -> float:
    """How many cores this process may use, by its affinity and the quota of its control group."""
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = _CPU_MAX.read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return cores
    return cores if quota == "max" else min(cores, int(quota) / int(period))


def _run(work: Work, asked: int, values: int, told: int) -> None:
    """The other process, from its first to its last moment."""
    try:
        # An interrupt is for the first process to explain; without that one, nobody listens.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        nowhere = os.open(os.devnull, os.O_RDWR)
        for stream in range(3):
            os.dup2(nowhere, stream)
        for value in work(Questions(asked)):
            block = marshal.dumps(value)
            _write(values, block)
            os.write(told, len(block).to_bytes(_SIZE_BYTES, "little"))
    finally:
        # Without a traceback, and without what the first process has to do when it ends.
        os._exit(0)


def _poll(descriptor: int, wait_s: float) -> list[tuple[int, int]]:
    waiting = select.poll()
    waiting.register(descriptor, select.POLLIN)
    return waiting.poll(wait_s * 1000)


def _write(descriptor: int, block: bytes) -> None:
    rest = memoryview(block)
    while rest:
        rest = rest[os.write(descriptor, rest) :]
