"""The wall clock. Everything that decides takes the time as an argument instead."""

from __future__ import annotations

import time


class SystemClock:
    """The host's clock."""

    def now_ms(self) -> int:
        """Wall clock, milliseconds since the epoch."""
        return time.time_ns() // 1_000_000
