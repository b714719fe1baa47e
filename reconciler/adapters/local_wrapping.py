"""Secrets that are handed over, each a file of its own in a sealed folder until it is unwrapped.

Rules: a file is named by the hash of its token, and the token is nowhere. Unwrapping deletes the
file before it gives the value: after a crash in between nobody has it, and never two.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterator
from pathlib import Path

from reconciler.adapters.local_folder import SealedFolder, as_refused
from reconciler.adapters.secret_paths import check_token, wrap_foreign, wrap_spent
from reconciler.ports import Clock, Secret, Wrapped

_TOKEN_BYTES = 32


class LocalWrapping:
    """The wrapped secrets in `folder`. Both methods are called while `folder.alone()`."""

    def __init__(self, folder: SealedFolder, clock: Clock) -> None:
        self._folder = folder
        self._home = folder.root / "wrapped"
        self._clock = clock

    def wrap(self, path: str, value: Secret, ttl_s: float) -> Wrapped:
        """A copy of the value as it is now."""
        self._forget_old()
        token = secrets.token_urlsafe(_TOKEN_BYTES)
        ends_ms = self._clock.now_ms() + int(ttl_s * 1000)
        document = {"path": path, "value": value.reveal(), "expires_at_ms": ends_ms}
        self._folder.write(self._home / f"{_digest(token)}-{ends_ms}", document)
        return Wrapped(Secret(token), ends_ms)

    def unwrap(self, token: Secret, path: str) -> Secret:
        digest = _digest(check_token(token, path))
        place = next((one for one, _ in self._files() if one.name.startswith(digest)), None)
        document = self._folder.read(place) if place is not None else None
        if place is None or document is None or self._is_over(document["expires_at_ms"]):
            raise wrap_spent(path)
        if document["path"] != path:
            raise wrap_foreign(path)
        self._folder.remove(place)
        return Secret(document["value"])

    def _forget_old(self) -> None:
        over = [place for place, ends_ms in self._files() if self._is_over(ends_ms)]
        self._folder.remove(*over)

    def _is_over(self, ends_ms: int) -> bool:
        return ends_ms <= self._clock.now_ms()

    def _files(self) -> Iterator[tuple[Path, int]]:
        """And when each ends."""
        with as_refused(self._home):
            try:
                found = sorted(self._home.iterdir())
            except FileNotFoundError:
                return
        for place in found:
            ends_ms = place.name.rpartition("-")[2]
            if not place.name.startswith(".") and ends_ms.isdigit():
                yield place, int(ends_ms)


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
