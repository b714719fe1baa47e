"""What tasks asked to have in the cache of blobs ahead, and the thread that gets it there.

Rules:
- One at a time: what nothing waits for yet leaves the line to what something does.
- What can help by being tried again is tried again, with pauses; else it is given up until a newer
  task asks. Either way the report says how it stands.
- A blob is kept for whom a task asked for AHEAD_KEPT_MS from then on. Then it is like any other: a
  control plane that still wants it there asks again when it went.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol
from zlib import crc32

import structlog

from node_agent.blob_room import Needs
from node_agent.engines.base import Cancelled, EngineFailure
from node_agent.state import StateStore
from node_agent.state_pulls import AHEAD_KEPT_MS, Pull

PAUSE_FIRST_MS, PAUSE_MAX_MS = 1_000, 300_000
IDLE_S = 60.0


class Clock(Protocol):
    def now_ms(self) -> int: ...

    def steady_ms(self) -> int: ...


class Cache(Protocol):
    def bring(
        self, digest: str, source: str, called_off: threading.Event, *, for_target: bool
    ) -> None: ...

    def is_ready(self, digest: str) -> bool: ...


@dataclass(frozen=True)
class _Tried:
    """How a pull stands; `due_ms` None: it was given up, or there is nothing left to do."""

    seq: int
    tries: int
    due_ms: int | None


class BlobPulls:
    """Carries out the pull tasks in `store`. `run` is for one thread, the rest for any."""

    def __init__(self, store: StateStore, cache: Cache, clock: Clock) -> None:
        self._store = store
        self._cache = cache
        self._clock = clock
        self._woken = threading.Event()
        self._tried: dict[str, _Tried] = {}
        self._log = structlog.get_logger()

    def wake(self) -> None:
        self._woken.set()

    def run(self, stop: threading.Event) -> None:
        while not stop.is_set():
            self._woken.clear()
            wait_ms = self.turn(stop)
            if wait_ms:
                self._woken.wait(wait_ms / 1_000)

    def turn(self, called_off: threading.Event) -> int:
        """One pull at most; for how many milliseconds there is nothing to do then."""
        now_ms = self._clock.steady_ms()
        due = [(self._due_ms(pull), pull) for pull in self._store.pulls().values()]
        waiting = sorted(
            ((due_ms, pull.seq, pull) for due_ms, pull in due if due_ms is not None),
            key=lambda one: one[:2],
        )
        if not waiting:
            return int(IDLE_S * 1_000)
        due_ms, _, pull = waiting[0]
        if due_ms > now_ms:
            return due_ms - now_ms
        self._try(pull, called_off)
        return 0

    def _due_ms(self, pull: Pull) -> int | None:
        tried = self._tried.get(pull.digest)
        return 0 if tried is None or tried.seq != pull.seq else tried.due_ms

    def _try(self, pull: Pull, called_off: threading.Event) -> None:
        tried = self._tried.get(pull.digest)
        tries = tried.tries + 1 if tried is not None and tried.seq == pull.seq else 1
        log = self._log.bind(digest=pull.digest, correlation_id=pull.correlation_id)
        due_ms: int | None = None
        try:
            self._cache.bring(pull.digest, pull.source, called_off, for_target=False)
            log.info("blob is there")
        except Cancelled:
            return
        except EngineFailure as failure:
            log.warning("blob not pulled", reason=failure.reason.value, message=failure.message)
            if failure.transient:
                due_ms = self._clock.steady_ms() + _pause_ms(tries, pull.digest)
        except Exception:
            # A mistake of ours must not end the thread that brings everything else.
            log.exception("unexpected")
            due_ms = self._clock.steady_ms() + PAUSE_MAX_MS
        self._tried[pull.digest] = _Tried(pull.seq, tries, due_ms)


def needs_of(store: StateStore, now_ms: int) -> Needs:
    """What the workloads of this node read, and what tasks asked for not long ago."""
    targets = {
        blob.digest
        for state in store.instances().values()
        if state.workload is not None
        for workload in (state.workload, state.committed)
        if workload is not None
        for blob in workload.blobs
    }
    return Needs(frozenset(targets), _ahead(store.pulls(), now_ms))


def _ahead(pulls: Mapping[str, Pull], now_ms: int) -> Mapping[str, int]:
    fresh = (pull for pull in pulls.values() if now_ms - pull.accepted_at_ms < AHEAD_KEPT_MS)
    return {pull.digest: pull.accepted_at_ms for pull in fresh}


def _pause_ms(tries: int, digest: str) -> int:
    """Spread by the digest, and longer each time."""
    pause_ms = int(min(PAUSE_FIRST_MS * 2 ** min(tries - 1, 16), PAUSE_MAX_MS))
    return pause_ms * (50 + crc32(digest.encode()) % 51) // 100
