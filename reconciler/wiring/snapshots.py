"""Snapshots of what is observed: taken and signed for who asks, and read from a file or address."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from reconciler.adapters.clock import SystemClock
from reconciler.errors import Refused
from reconciler.ports import Ports, Secret
from reconciler.settings import Settings
from reconciler.use_cases import snapshot

KEPT_MS = 5_000
TOKEN_VARIABLE = "GPUAAS_TOKEN"  # noqa: S105 - where it is, not what it is
_TOKEN_LENGTH_MAX = 16_384
_TOKEN = re.compile(r"[-._~+/0-9A-Za-z]+=*")


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


def is_address(place: str) -> bool:
    return place.startswith(("https://", "http://"))


def read_snapshot(place: str, settings: Settings, token: Secret | None = None) -> bytes:
    """The bytes of a snapshot, by path or http(s) address. Nothing of them is believed yet.

    `token` is shown to whoever is at the address, and to nobody else.
    """
    if is_address(place):
        from reconciler.adapters.fetch_document import fetch_document  # noqa: PLC0415 - loads HTTP

        bytes_max, timeout_s = snapshot.SNAPSHOT_BYTES_MAX, settings.fetch_timeout_s
        return fetch_document(place, bytes_max, timeout_s, token=token)
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


def bearer_token(file: Path | None, environment: Mapping[str, str]) -> Secret | None:
    """The token in `file`, else the one in GPUAAS_TOKEN; None without either.

    Refused (token_unreadable) for a file that can't be read, and for what is no token.
    """
    try:
        text = environment.get(TOKEN_VARIABLE, "")
        if file is not None:
            with file.open(encoding="ascii") as opened:
                text = opened.read(_TOKEN_LENGTH_MAX + 1)
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "not text"
        raise _no_token(f"it cannot be read: {why}", str(file)) from None
    if file is None and not text:
        return None
    if not _TOKEN.fullmatch(text.strip()) or len(text) > _TOKEN_LENGTH_MAX:
        raise _no_token("it holds no token", str(file or TOKEN_VARIABLE))
    return Secret(text.strip())


def _no_token(message: str, where: str) -> Refused:
    return Refused(
        "token_unreadable", message, where=where, hint="write the token and nothing else"
    )


def now_ms() -> int:
    """The time, for who needs no other service."""
    return SystemClock().now_ms()
