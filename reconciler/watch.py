"""What is measured of a pass while it is made. Nothing is decided by it.

Rule: phases are timed by a clock that only goes on, so that nobody sets it back in between.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

PHASES = ("fetch", "load", "observe", "plan", "write")


@dataclass
class Watch:
    """`seconds` by phase, those that were gone through; `revision_seen_ms` is when the revision of
    the pass came here, None where nobody knows.
    """

    revision_seen_ms: int | None = None
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """What is done within counts as `name`, one of PHASES; several times add up."""
        began = time.perf_counter()
        try:
            yield
        finally:
            took = time.perf_counter() - began
            self.seconds[name] = self.seconds.get(name, 0.0) + took
