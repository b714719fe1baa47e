"""Reasons for a pass, and when one is due."""

from __future__ import annotations

import threading
from collections.abc import Callable

Later = Callable[[float, Callable[[], None]], Callable[[], None]]
"""Does something once, so many seconds from now; returns how to call that off."""


def in_a_while(after_s: float, job: Callable[[], None]) -> Callable[[], None]:
    """`Later` with a thread of its own, which keeps no process from ending."""
    timer = threading.Timer(after_s, job)
    timer.daemon = True
    timer.start()
    return timer.cancel


class Wakeups:
    """Reasons for a pass, collected until somebody takes them."""

    def __init__(self) -> None:
        self._reasons: set[str] = set()
        self._changed = threading.Condition()

    def add(self, reason: str) -> None:
        with self._changed:
            self._reasons.add(reason)
            self._changed.notify_all()

    def take(self, timeout_s: float) -> frozenset[str]:
        """Waits for a reason for up to `timeout_s` seconds; returns and clears all there are."""
        with self._changed:
            if not self._reasons:
                self._changed.wait(timeout_s)
            taken = frozenset(self._reasons)
            self._reasons.clear()
            return taken
