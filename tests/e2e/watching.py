"""Watching Docker while a platform works: what runs at every moment, and a wire to trip over."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.e2e.platform import DockerNode

TRIP_LIMIT_S = 120.0
SAMPLE_INTERVAL_S = 0.02
"""Much less than Docker takes to stop or start one; without it Docker does nothing but answer."""


@dataclass
class Sampled:
    """How often how many containers of the instance ran at once."""

    counts: list[int] = field(default_factory=list)


@contextmanager
def sampling(node: DockerNode) -> Iterator[Sampled]:
    """Asks Docker again and again in a thread, on a connection of its own."""
    sampled, stop = Sampled(), threading.Event()
    api = node.connect()
    filters = {**node.filters, "status": "running"}

    def sample() -> None:
        while not stop.wait(SAMPLE_INTERVAL_S):
            sampled.counts.append(len(api.containers(filters=filters)))

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield sampled
    finally:
        stop.set()
        thread.join()
        api.close()


@contextmanager
def tripwire(node: DockerNode, action: str, then: Callable[[], None]) -> Iterator[None]:
    """Calls `then` at Docker's first `action` on a container of the instance.

    The end of the block waits for it.
    """
    api = node.connect()
    filters = {**node.filters, "type": "container", "event": action}
    # Docker answers before it listens: what happens in between is told because of the time.
    since: Any = f"{time.time():.6f}"
    stream = api.events(since=since, filters=filters, decode=True)
    tripped = threading.Event()

    def wait() -> None:
        for _ in stream:
            then()
            tripped.set()
            return

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    try:
        yield
        assert tripped.wait(TRIP_LIMIT_S), f"Docker never said {action!r}"
    finally:
        stream.close()
        thread.join(5)
        api.close()
