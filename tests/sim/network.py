"""The way between agents and control planes: it loses, delays, doubles and re-orders messages.

Rules:
- A message is bytes that were sealed; what arrives is what was sent, late or twice or never.
- Who asks gets one answer, or learns that there is none. A second answer to the same is dropped.
- Old messages may come again much later, as somebody would send them who recorded the line.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from tests.sim.world import Incarnation, World

TIMEOUT_MS = 10_000
Reply = Callable[[bytes | None, str], None]
"""The answer, or None and why not."""
Serve = Callable[[bytes, Reply], None]


@dataclass
class Network:
    """Rates are chances for each message."""

    world: World
    lost: float = 0.0
    doubled: float = 0.0
    delayed: float = 0.0
    cut: dict[str, int] = field(default_factory=dict)
    """Node → when its partition ends."""

    def ask(
        self, inc: Incarnation, serve: Serve | None, body: bytes, wait_ms: int, reply: Reply
    ) -> None:
        """Sends to `serve`, which is None when nobody listens. `reply` is called once."""
        world, answered = self.world, [False]

        def answer(content: bytes | None, why: str) -> None:
            if not answered[0]:
                answered[0] = True
                reply(content, why)

        node = inc.name
        if serve is None:
            world.at(5, inc, "refused", lambda: answer(None, "unreachable"))
            return
        timeout_ms = wait_ms + TIMEOUT_MS
        world.at(timeout_ms, inc, "timeout", lambda: answer(None, "unreachable"))
        if self._gone(node):
            return

        def back(content: bytes | None, why: str) -> None:
            if not self._gone(node):
                world.at(self._delay_ms(), inc, "answer", lambda: answer(content, why))

        world.at(self._delay_ms(), None, "request", lambda: serve(body, back))
        if world.chance(self.doubled):
            later = world.rng.choice((1, 300, 20_000))
            world.at(later, None, "request again", lambda: serve(body, lambda *_: None))

    def fails(self, node: str) -> bool:
        """Whether a question and its answer, that are waited for, are lost."""
        return self._gone(node)

    def _gone(self, node: str) -> bool:
        return self.world.now < self.cut.get(node, 0) or self.world.chance(self.lost)

    def _delay_ms(self) -> int:
        if self.world.chance(self.delayed):
            return self.world.rng.randint(200, 15_000)
        return self.world.rng.randint(1, 20)
