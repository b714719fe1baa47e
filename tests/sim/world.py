"""Time, chance and processes of one simulated run. Everything follows from the seed.

Rules:
- One thread. What happens is an event with its moment; the earliest goes first, ties in the order
  in which they were planned. One event is one tick, and after each the invariants are looked at.
- A process dies by `Crash`, which no `except Exception` can swallow, at any call of a port. What it
  was in the middle of is lost, as with SIGKILL; another incarnation starts later.
- What takes time (`sleep`) lets everything else happen meanwhile: that is where threads, other
  processes and other machines get between two lines of the code under test.
"""

from __future__ import annotations

import hashlib
import heapq
import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

START_MS = 1_800_000_000_000
DEPTH_MAX = 5
TAIL = 60
Job = Callable[[], None]


class Crash(BaseException):
    """The process died here."""


class Violation(BaseException):
    """An invariant does not hold. `rule` names it."""

    def __init__(self, rule: str, message: str) -> None:
        super().__init__(f"{rule}: {message}")
        self.rule = rule


@dataclass
class Incarnation:
    """One life of one process. What it started does not outlive it."""

    name: str
    number: int
    alive: bool = True
    frozen_until: int = 0
    """Till then nothing of it happens, as on a machine that is paused."""

    def __str__(self) -> str:
        return self.name


@dataclass
class World:
    """The clock on the wall, the only source of chance, and what is going to happen."""

    seed: int
    keep_trace: bool = False
    now: int = START_MS
    ticks: int = 0
    depth: int = 0
    after_tick: Job = lambda: None
    crash_wanted: Callable[[Incarnation, str], bool] = lambda _inc, _where: False
    on_crash: Callable[[Incarnation], None] = lambda _: None
    rng: Random = field(init=False)
    lines: deque[str] = field(init=False)

    def __post_init__(self) -> None:
        self.rng = Random(self.seed)
        self.lines = deque(maxlen=None if self.keep_trace else TAIL)
        self._queue: list[tuple[int, int, Incarnation | None, str, Job]] = []
        self._planned = 0
        self._digest = hashlib.blake2b(digest_size=16)

    # --- what happened ---

    def say(self, who: object, what: str) -> None:
        line = f"{(self.now - START_MS) / 1000:9.3f} {who}: {what}"
        self.lines.append(line)
        self._digest.update(line.encode())

    @property
    def trace_hash(self) -> str:
        return self._digest.hexdigest()

    # --- what is going to happen ---

    def at(self, after_ms: int, inc: Incarnation | None, label: str, job: Job) -> Job:
        """Plans `job`, in the name of `inc` if it still lives then. Returns how to call it off."""
        self._planned += 1
        called_off: list[bool] = []

        def run() -> None:
            if not called_off:
                job()

        moment = (self.now + max(0, after_ms), self._planned, inc, label, run)
        heapq.heappush(self._queue, moment)
        return lambda: called_off.append(True)

    def step(self) -> bool:
        """The next event; False when there is none."""
        if not self._queue:
            return False
        due, _, inc, label, job = heapq.heappop(self._queue)
        self.now = max(self.now, due)
        if inc is not None and inc.frozen_until > self.now:
            self._planned += 1
            heapq.heappush(self._queue, (inc.frozen_until, self._planned, inc, label, job))
        elif inc is None or inc.alive:
            self.ticks += 1
            self.guarded(inc, label, job)
            self.after_tick()
        return True

    def guarded(self, inc: Incarnation | None, label: str, job: Job) -> None:
        """Runs a job of a process that may die on the way. Nothing else may leave it."""
        try:
            job()
        except Crash:
            if inc is None or inc.alive:
                raise Violation("escaped", f"a crash of another in {label}") from None
        except Violation:
            raise
        except Exception as error:
            where = "".join(traceback.format_exception(error)[-6:])
            raise Violation("escaped", f"{label} of {inc}: {error!r}\n{where}") from error

    def sleep(self, inc: Incarnation, ms: int) -> None:
        """Time passes while a call of `inc` is on its way; others go on, and may end it."""
        if self.depth >= DEPTH_MAX:
            return
        until = self.now + ms
        self.depth += 1
        try:
            while self._queue and self._queue[0][0] <= until:
                self.step()
        finally:
            self.depth -= 1
        self.now = max(self.now, until)
        self.check_alive(inc)

    def freeze(self, inc: Incarnation, ms: int) -> None:
        """The whole process stands still in the middle of a call."""
        if self.depth < DEPTH_MAX:
            inc.frozen_until = self.now + ms
            self.sleep(inc, ms)

    # --- life and death ---

    def check_alive(self, inc: Incarnation) -> None:
        if not inc.alive:
            raise Crash(inc.name)

    def point(self, inc: Incarnation, where: str) -> None:
        """A place at which the process may die."""
        self.check_alive(inc)
        if self.crash_wanted(inc, where):
            self.kill(inc, where)
            raise Crash(inc.name)

    def kill(self, inc: Incarnation, where: str) -> None:
        inc.alive = False
        self.say(inc, f"dies at {where}")
        self.on_crash(inc)

    def chance(self, rate: float) -> bool:
        return rate > 0 and self.rng.random() < rate
