"""Which wrapping tokens were given out here: each goes with a MAC of what it is for.

Rules:
- Custody can't tell a token that is spent from one that never was. What has no MAC of ours raises
  no alarm, and custody is not asked about it.
- The key lies in custody, made once, and is kept in memory for a while: that tells tokens apart
  while custody is away too.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import secrets as random_secrets
import threading
from dataclasses import dataclass

from reconciler.core.custody.paths import WRAP_MAC_KEY, join_secret
from reconciler.errors import GpuaasError
from reconciler.ports import Clock, Secret, SecretStore, Wrapped

KEY_FRESH_MS = 60_000
"""A key that was deleted, so that nothing handed out before counts, is another one by then."""
_CONTEXT = b"gpuaas-wrap-v1\0"
_JOIN = re.compile(r"([0-9]{1,20}):([!-9;-~]{1,2048}):([0-9]{1,16}):([0-9a-f]{64})")


@dataclass(frozen=True)
class Given:
    """A wrapping token as somebody brings it: for the secret at `path`, good until then. Nothing of
    it is to be believed before `WrapMac.holds`.
    """

    path: str
    token: Secret
    expires_at_ms: int
    mac: str


class WrapMac:
    """Both methods raise what a SecretStore does, as long as the key was never read."""

    def __init__(self, secrets: SecretStore, clock: Clock) -> None:
        self._secrets = secrets
        self._clock = clock
        self._lock = threading.Lock()
        self._key: bytes = b""
        self._fresh_until_ms = 0

    def given(self, path: str, wrapped: Wrapped) -> Given:
        """With the MAC, ready to be given out."""
        ends_ms = wrapped.expires_at_ms
        return Given(path, wrapped.token, ends_ms, self._mac(path, wrapped.token, ends_ms))

    def holds(self, given: Given) -> bool:
        """Whether it was given out here, for just that path and end."""
        expected = self._mac(given.path, given.token, given.expires_at_ms)
        return hmac.compare_digest(expected.encode(), given.mac.encode(errors="replace"))

    def _mac(self, path: str, token: Secret, expires_at_ms: int) -> str:
        said = json.dumps([path, token.reveal(), expires_at_ms]).encode()
        return hmac.new(self._current(), _CONTEXT + said, hashlib.sha256).hexdigest()

    def _current(self) -> bytes:
        with self._lock:
            now_ms = self._clock.now_ms()
            if not self._key or now_ms >= self._fresh_until_ms:
                try:
                    drawn = Secret(random_secrets.token_urlsafe(32))
                    self._key = self._secrets.ensure(WRAP_MAC_KEY, drawn).reveal().encode()
                except GpuaasError:
                    if not self._key:
                        raise
                self._fresh_until_ms = now_ms + KEY_FRESH_MS
            return self._key


def join_text(given: Given) -> str:
    """What a join token holds for its node: `<number>:<wrapping token>:<end>:<MAC>`."""
    number = given.path.rpartition("/")[2]
    return ":".join((number, given.token.reveal(), str(given.expires_at_ms), given.mac))


def read_join_text(text: str, node: str) -> Given | None:
    """As `node` brings it; None for what is none."""
    found = _JOIN.fullmatch(text)
    if found is None:
        return None
    number, token, ends_ms, mac = found.groups()
    return Given(join_secret(node, number), Secret(token), int(ends_ms), mac)
