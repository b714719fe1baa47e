"""Tokens that let into a registry: JWTs of the distribution token protocol, signed by custody.

Rules:
- A token says what may be done in which repository, for minutes, at one registry. Without one the
  registry lets nobody in, and this is the only place that makes any.
- The key never leaves custody. The oldest version that is not retired signs: it is the one that
  registries were told of first. A newer one takes its place when that is retired, not before.
- A token is in an answer, in a header and in memory; in no log, error or store.
"""

from __future__ import annotations

import base64
import json
import threading
import uuid
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from reconciler.artifacts.registry_keys import certificate, key_id_of
from reconciler.errors import Transient
from reconciler.ports import REGISTRY_KEY, Clock, PublicKey, Secret, SecretStore
from reconciler.settings import Settings

Scopes = Mapping[str, tuple[str, ...]]
"""Repository → actions: `pull`, `push`, `delete`."""
CONTROL_PLANE = "control-plane"
_NUMBER_BYTES = 32
_KEPT_MAX = 4_096


@dataclass(frozen=True)
class RegistryToken:
    """`token` is good for `expires_in_s` from `issued_at_ms` on; registries add a minute."""

    token: Secret
    issued_at_ms: int
    expires_in_s: int


class RegistryTokens:
    """Safe to use from several threads. Raises what a SecretStore does."""

    def __init__(self, secrets: SecretStore, clock: Clock, settings: Settings) -> None:
        self._secrets = secrets
        self._clock = clock
        self._issuer = settings.registry_token_issuer
        self._service = settings.registry_token_service
        self._key_id_form = settings.registry_token_key_id
        self._ttl_s = settings.registry_token_ttl_s
        self._lock = threading.Lock()
        self._kept: OrderedDict[object, RegistryToken] = OrderedDict()

    def bearer(
        self, scopes: Scopes, subject: str = CONTROL_PLANE, ttl_s: float | None = None
    ) -> Secret:
        """One that is good for half of its life at least; the same one for the same question."""
        asked = (tuple(sorted(scopes.items())), subject, ttl_s)
        now_ms = self._clock.now_ms()
        with self._lock:
            kept = self._kept.get(asked)
        if kept is not None and 0 <= now_ms - kept.issued_at_ms < kept.expires_in_s * 500:
            return kept.token
        made = self.issue(scopes, subject, ttl_s)
        with self._lock:
            self._kept[asked] = made
            self._kept.move_to_end(asked)
            if len(self._kept) > _KEPT_MAX:
                self._kept.popitem(last=False)
        return made.token

    def issue(self, scopes: Scopes, subject: str, ttl_s: float | None = None) -> RegistryToken:
        """A new one. Without any scope it opens nothing, and proves who asked for it."""
        now_ms = self._clock.now_ms()
        issued_s = now_ms // 1000
        expires_in_s = int(self._ttl_s if ttl_s is None else ttl_s)
        claims = {
            "iss": self._issuer,
            "sub": subject,
            "aud": self._service,
            "exp": issued_s + expires_in_s,
            "nbf": issued_s,
            "iat": issued_s,
            "jti": uuid.uuid4().hex,
            "access": [
                {"type": "repository", "name": name, "actions": sorted(actions)}
                for name, actions in sorted(scopes.items())
            ],
        }
        return RegistryToken(Secret(self._signed(claims)), now_ms, expires_in_s)

    def _signed(self, claims: Mapping[str, Any]) -> str:
        key = signing_keys(self._secrets)[0]
        header = {"alg": "ES256", "kid": key_id_of(key.pem, self._key_id_form), "typ": "JWT"}
        message = f"{_segment(header)}.{_segment(claims)}"
        signed = self._secrets.sign(REGISTRY_KEY, message.encode(), key.version)
        numbers = decode_dss_signature(signed.signature)
        raw = b"".join(number.to_bytes(_NUMBER_BYTES, "big") for number in numbers)
        return f"{message}.{_base64url(raw)}"


def signing_keys(secrets: SecretStore) -> tuple[PublicKey, ...]:
    """Those that registries are to believe, the one that signs first; made if there is none."""
    found = secrets.public_keys(REGISTRY_KEY)
    if not found:
        secrets.ensure_signing_key(REGISTRY_KEY, "ecdsa-p256")
        found = secrets.public_keys(REGISTRY_KEY)
    if not found:
        raise Transient("no_signing_key", f"there is no signing key {REGISTRY_KEY!r} yet")
    return found


def bundle(secrets: SecretStore) -> str:
    """Certificates of those keys, PEM: what `auth.token.rootcertbundle` of a registry takes."""

    def signed(content: bytes, key: PublicKey) -> bytes:
        return secrets.sign(key.name, content, key.version).signature

    keys = signing_keys(secrets)
    return "".join(certificate(key, partial(signed, key=key)) for key in keys)


def _segment(document: Mapping[str, Any]) -> str:
    return _base64url(json.dumps(document, separators=(",", ":"), sort_keys=True).encode())


def _base64url(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
