"""Waiting for something to become true, by asking; the limit only ends a test that would hang."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
LIMIT_S = 120.0
INTERVAL_S = 0.02


def wait_until(
    ask: Callable[[], T | None], limit_s: float = LIMIT_S, interval_s: float = INTERVAL_S
) -> T:
    """Asks until the answer is truthy and returns it; AssertionError after `limit_s`."""
    deadline = time.monotonic() + limit_s
    while not (answer := ask()):
        assert time.monotonic() < deadline, f"not true after {limit_s:g} s"
        time.sleep(interval_s)
    return answer
