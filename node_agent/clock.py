"""The agent's time."""

from __future__ import annotations

import time
from typing import Protocol


class WallClock(Protocol):
    def now_ms(self) -> int: ...


class SystemClock:
    """Wall clock for what is compared with others, a steady one for waiting."""

    def __init__(self) -> None:
        self._base_ms = time.time_ns() // 1_000_000
        self._base_steady_ns = time.monotonic_ns()

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def steady_ms(self) -> int:
        return self._base_ms + (time.monotonic_ns() - self._base_steady_ns) // 1_000_000
