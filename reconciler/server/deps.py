"""What the server is given, and the signal between the loop's threads and waiting agents."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, ParamSpec, Protocol, TypeVar

import anyio.to_thread

from reconciler.artifact_ports import BlobStore
from reconciler.core.names import InstanceKey
from reconciler.ports import Clock, Registry, SecretStore, Store
from reconciler.server.metrics import Metrics
from reconciler.settings import Settings

P = ParamSpec("P")
R = TypeVar("R")


class Waiter:
    """One agent's open poll. Lives in the server's event loop; `wake` may come from any thread."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._event = asyncio.Event()

    def wake(self) -> None:
        # A loop that is closed has nobody left who waits.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._event.set)

    def clear(self) -> None:
        """To be called before looking for tasks: what comes in after the look wakes again."""
        self._event.clear()

    async def wait(self, timeout_s: float) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._event.wait(), timeout_s)


class Signal:
    """Says that tasks were queued for a node. A hint only: the tasks are in the store."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiters: dict[str, set[Waiter]] = {}
        self._closed = False

    def notify(self, node: str) -> None:
        with self._lock:
            woken = list(self._waiters.get(node, ()))
        for waiter in woken:
            waiter.wake()

    def close(self) -> None:
        """Ends every wait, now and from now on, so that a server can stop."""
        with self._lock:
            self._closed = True
            woken = [waiter for waiters in self._waiters.values() for waiter in waiters]
        for waiter in woken:
            waiter.wake()

    @property
    def closed(self) -> bool:
        return self._closed

    @property
    def waiting_count(self) -> int:
        with self._lock:
            return sum(len(waiters) for waiters in self._waiters.values())

    @contextmanager
    def waiting(self, node: str) -> Iterator[Waiter]:
        waiter = Waiter()
        with self._lock:
            self._waiters.setdefault(node, set()).add(waiter)
        try:
            yield waiter
        finally:
            with self._lock:
                self._waiters[node].discard(waiter)
                if not self._waiters[node]:
                    del self._waiters[node]


class Beat(Protocol):
    """How long ago the loop went round, whether it makes the passes or stands by, and whether
    custody answered it.
    """

    @property
    def age_s(self) -> float: ...

    @property
    def leading(self) -> bool: ...

    @property
    def custody_up(self) -> bool: ...


@dataclass(frozen=True)
class ServerDeps:
    """`wake` asks the loop for a pass, with the reason; it may be called from any thread.

    `task_key` names the signing key of tasks in the secret store. `snapshot` gives a signed
    snapshot to plan offline with, where this server offers any. `heartbeat` tells of the loop of
    this process, where there is one. `node_config` gives a node's signed NodeConfig where that has
    another digest than the one given (`node_config.NodeConfigs`). `registry` is what intents are
    completed with, `blobs` the artifact store. `topology` gives the topology document of an
    instance, and is Refused for one that comes to nothing.
    """

    store: Store
    secrets: SecretStore
    clock: Clock
    settings: Settings
    wake: Callable[[str], None]
    task_queued: Signal
    metrics: Metrics
    task_key: str = "tasks"
    snapshot: Callable[[], bytes] | None = None
    heartbeat: Callable[[], Beat] | None = None
    node_config: Callable[[str, str], Mapping[str, Any] | None] | None = None
    registry: Registry | None = None
    blobs: BlobStore | None = None
    topology: Callable[[InstanceKey], dict[str, Any]] | None = None


class Threads:
    """Runs what blocks (the store, the secret store) in a bounded number of threads."""

    def __init__(self, threads_max: int) -> None:
        self._limiter = anyio.CapacityLimiter(threads_max)

    def run(self, call: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> Awaitable[R]:
        return anyio.to_thread.run_sync(partial(call, *args, **kwargs), limiter=self._limiter)
