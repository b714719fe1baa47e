"""Snapshots of what is observed: taken and signed for who asks, and read from a file or address."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from reconciler.adapters.clock import SystemClock
from reconciler.errors import Refused
from reconciler.ports import Ports
from reconciler.settings import Settings
from reconciler.use_cases import snapshot

KEPT_MS = 5_000


class SnapshotService:
    """Answers any number of askers with one snapshot every few seconds, however many they are."""

    def __init__(self, take: Callable[[], bytes], now_ms: Callable[[], int]) -> None:
        self._take = take
        self._now_ms = now_ms
        self._lock = threading.Lock()
        self._last: tuple[int, bytes] | None = None

    def __call__(self) -> bytes:
        """The signed snapshot; who asks while one is being taken waits for that one."""
        with self._lock:
            now_ms = self._now_ms()
            if self._last is None or not 0 <= now_ms - self._last[0] < KEPT_MS:
                self._last = (now_ms, self._take())
            return self._last[1]


def snapshot_service(ports: Ports, settings: Settings) -> SnapshotService:
    """The service of one control plane."""

    def take() -> bytes:
        return snapshot.sealed(snapshot.take(ports, settings), ports.secrets)

    return SnapshotService(take, ports.clock.now_ms)


def read_snapshot(place: str, settings: Settings) -> bytes:
    """The bytes of a snapshot, by path or http(s) address. Nothing of them is believed yet."""
    if place.startswith(("https://", "http://")):
        from reconciler.adapters.fetch_document import fetch_document  # noqa: PLC0415 - loads HTTP

        return fetch_document(place, snapshot.SNAPSHOT_BYTES_MAX, settings.fetch_timeout_s)
    try:
        with Path(place).open("rb") as file:
            return file.read(snapshot.SNAPSHOT_BYTES_MAX + 1)
    except OSError as error:
        raise Refused(
            "snapshot_unreadable",
            f"it cannot be read: {error.strerror}",
            where=place,
            hint="name a file or an http(s) address; `gpuaas snapshot --out FILE` makes one",
        ) from None


def now_ms() -> int:
    """The time, for who needs no other service."""
    return SystemClock().now_ms()
