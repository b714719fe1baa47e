"""Units that carry our labels and are of no instance that we were given."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from node_agent.engines.base import Engine, EngineFailure
from node_agent.looks import Looks
from node_agent.turns import REFRESH_MS
from node_agent.wire import Stray

STRAYS_MAX = 1_000


class Strays:
    """What was found when looking last."""

    def __init__(self, engines: Mapping[str, Engine], looks: Looks) -> None:
        self._engines = engines
        self._looks = looks
        self._found: tuple[Stray, ...] = ()
        self._known = False
        self._due = True
        self._changed = False

    def note_change(self) -> None:
        """An engine said that there may be another one."""
        self._due = self._changed = True

    def note_time(self) -> None:
        """It is some time ago that anybody looked."""
        self._due = True

    def look(self, instances: Collection[str], now_ms: int) -> bool:
        """Looks if it is time to; whether all there are is known."""
        if not self._due:
            return self._known
        self._due = False
        # In case nothing told of a change, what the workers saw is new enough.
        after_ms = now_ms if self._changed else now_ms - REFRESH_MS
        self._changed = False
        try:
            looks = [
                self._looks.newer_than(engine, after_ms, now_ms)
                for _, engine in sorted(self._engines.items())
            ]
        except EngineFailure:
            self._due, self._changed, self._known = True, True, False
            return False
        self._found = tuple(
            Stray(
                name=unit.name, instance=unit.instance, spec_hash=unit.spec_hash or None,
                alive=unit.alive,
            )
            for _, units in looks
            for unit in units
            if unit.instance not in instances
        )[:STRAYS_MAX]
        self._known = True
        return True

    def found(self, instances: Collection[str]) -> tuple[Stray, ...]:
        """Without those of `instances`, which came to be known since."""
        return tuple(stray for stray in self._found if stray.instance not in instances)
