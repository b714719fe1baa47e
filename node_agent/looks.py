"""What the engines showed last: one look for all instances, however many there are.

Rules:
- Only for looking now and then in case that no event told of a change. Who acted, or heard of a
  change, looks for itself.
- Nothing is remembered of an engine that does not answer.
"""

from __future__ import annotations

import threading

from node_agent.engines.base import Engine
from node_agent.units import Unit


class Looks:
    """Safe to use from several threads; who comes while one looks waits for what it finds."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._locks: dict[str, threading.Lock] = {}
        self._seen: dict[str, tuple[int, tuple[Unit, ...]]] = {}

    def newer_than(
        self, engine: Engine, after_ms: int, now_ms: int
    ) -> tuple[int, tuple[Unit, ...]]:
        """All units of an engine, and when they were seen, by the clock `now_ms` is of.

        Raises EngineFailure when it has to look and the engine can't.
        """
        with self._lock:
            lock = self._locks.setdefault(engine.name, threading.Lock())
        with lock:
            seen = self._seen.get(engine.name)
            if seen is None or seen[0] <= after_ms:
                # When it began: what changed while it looked may not be in it.
                seen = now_ms, engine.units()
                self._seen[engine.name] = seen
            return seen
