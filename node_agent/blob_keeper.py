"""The blobs of one node, put together: cache, where it is filled from, and what is pulled ahead."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from node_agent.artifact_wire import BlobSeen
from node_agent.blob_files import BLOBS_FOLDER
from node_agent.blob_link import BlobLink
from node_agent.blob_pulls import BlobPulls, Clock, needs_of
from node_agent.blob_room import Needs
from node_agent.blobs import BlobCache
from node_agent.link import Link
from node_agent.state import StateStore
from node_agent.wire import PullBlobTask


class BlobKeeper:
    """What the agent has of blobs; its cache is in `folder`, the agent's own.

    `changed` is called when there is something new to report, `quota_bytes` as in `BlobCache`.
    """

    def __init__(
        self,
        folder: Path,
        link: Link,
        store: StateStore,
        clock: Clock,
        changed: Callable[[], None],
        quota_bytes: int | None = None,
    ) -> None:
        self._store = store
        self._clock = clock
        self._source = BlobLink(link, store, clock)
        self.cache = BlobCache(
            folder / BLOBS_FOLDER, self._source, self._needs, changed, quota_bytes
        )
        self._pulls = BlobPulls(store, self.cache, clock)

    def accept(self, task: PullBlobTask, now_ms: int) -> None:
        """On disk before it returns; raises OSError."""
        self._store.accept_pull(task, now_ms)
        self._pulls.wake()

    def seen(self) -> tuple[BlobSeen, ...]:
        return self.cache.seen()

    def run(self, stop: threading.Event) -> None:
        """Pulls ahead what tasks ask for, until `stop` (and `wake`)."""
        self._pulls.run(stop)

    def wake(self) -> None:
        self._pulls.wake()

    def close(self) -> None:
        self._source.close()

    def _needs(self) -> Needs:
        return needs_of(self._store, self._clock.now_ms())
