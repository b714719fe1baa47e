"""Drives the turns of one instance in a thread of its own.

Rules:
- One thread per instance, so that a slow pull holds up nobody else.
- A newer task takes over at once: a pull or a probe on its way is called off, not waited for.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from node_agent.acting import Clock
from node_agent.steps import Outcome
from node_agent.turns import REFRESH_MS, Again, Aside, Finished, Next, Published, Rest, Turns


class Worker:
    """The thread of one instance."""

    def __init__(self, turns: Turns, clock: Clock, may_end: Callable[[Worker], bool]) -> None:
        self.instance = turns.instance
        self._turns = turns
        self._clock = clock
        self._may_end = may_end
        self._wake = threading.Event()
        self._stop = threading.Event()
        name = f"worker-{self.instance}"
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    @property
    def published(self) -> Published | None:
        return self._turns.published

    @property
    def woken(self) -> bool:
        return self._wake.is_set()

    def start(self) -> None:
        self._thread.start()

    def wake(self, *, dirty: bool = False) -> None:
        """There is a newer task, or (`dirty`) a unit may have changed."""
        if dirty:
            self._turns.dirty = True
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
            after = self._turns.turn()
            if isinstance(after, Aside):
                after = self._aside(after)
            match after:
                case Finished():
                    if self._may_end(self):
                        return
                    self._wake.wait(REFRESH_MS / 1_000)
                case Rest(until_ms):
                    self._wake.wait(max(0, until_ms - self._clock.steady_ms()) / 1_000)
                case _:
                    pass

    def _aside(self, aside: Aside) -> Next:
        """Waits for what may take long, unless a newer task comes before its end."""
        called_off = threading.Event()
        outcomes: list[Outcome | None] = []

        def body() -> None:
            outcomes.append(self._turns.attempt(aside, called_off))
            self._wake.set()

        threading.Thread(target=body, name=f"aside-{self.instance}", daemon=True).start()
        while True:
            self._wake.wait()
            self._wake.clear()
            if outcomes:
                return self._turns.finish(aside, outcomes[0])
            if self._stop.is_set() or self._turns.superseded(aside):
                called_off.set()
                return Again()
