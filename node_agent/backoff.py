"""How long to wait before the next try."""

from __future__ import annotations

import random

FIRST_S = 0.25


class Backoff:
    """Doubles up to a limit. Jittered, so that a fleet does not come back all at once."""

    def __init__(self, max_s: float) -> None:
        self._max_s = max_s
        self._next_s = min(FIRST_S, max_s)

    def next_s(self) -> float:
        wait_s = self._next_s * random.uniform(0.5, 1.0)  # noqa: S311
        self._next_s = min(self._next_s * 2, self._max_s)
        return wait_s

    def reset(self) -> None:
        self._next_s = min(FIRST_S, self._max_s)
