"""Signing keys in Vault's transit engine. Private keys stay there; public ones are remembered here.

Rules:
- Public keys are asked for anew after a short while, and while Vault is away those known count.
- A retired version is trimmed: nobody's later change of a setting brings it back.
- A key that was there and is gone is not made anew: no node would believe the new one.
"""

from __future__ import annotations

import base64
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_public_key,
)

from node_agent.wire import VerifierKey, key_id
from reconciler.adapters.secret_paths import (
    check_key_name,
    key_version_unknown,
    no_signing_key,
    wrong_key_type,
)
from reconciler.adapters.vault_client import VaultClient, not_set_up
from reconciler.core.custody.layout import VaultLayout
from reconciler.errors import Refused, Transient
from reconciler.ports import KeyKind, PublicKey, Signed

FRESH_S = 10.0

_KINDS: Mapping[str, KeyKind] = {"ed25519": "ed25519", "ecdsa-p256": "ecdsa-p256"}
_SIGNATURE = re.compile(r"vault:v([1-9][0-9]{0,8}):([A-Za-z0-9+/=]+)")


@dataclass(frozen=True)
class _Known:
    keys: tuple[PublicKey, ...]
    at_s: float


class TransitKeys:
    """See `ports.SecretStore` for what its methods promise."""

    def __init__(
        self,
        client: VaultClient,
        layout: VaultLayout,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client
        self._layout = layout
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._known: dict[str, _Known] = {}

    def ensure(self, name: str, kind: KeyKind) -> PublicKey:
        check_key_name(name)
        keys = self._fetch(name)
        if not keys:
            self._refuse_lost(name)
            self._make(name, kind)
            keys = self._fetch(name)
        if not keys:
            raise self._client.malformed(self._layout.key_path(name))
        if keys[-1].kind != kind:
            raise wrong_key_type(name, kind)
        return keys[-1]

    def public_keys(self, name: str) -> tuple[PublicKey, ...]:
        check_key_name(name)
        known = self._known.get(name)
        if known is not None and self._monotonic() - known.at_s < FRESH_S:
            return known.keys
        try:
            return self._fetch(name)
        except Transient:
            if known is None:
                raise
            return known.keys

    def verifier_keys(self, name: str) -> tuple[VerifierKey, ...]:
        return tuple(_verifier(key) for key in self.public_keys(name))

    def rotate(self, name: str) -> PublicKey:
        check_key_name(name)
        self._newest(name)
        self._post(f"{self._layout.key_path(name)}/rotate", {})
        return self._newest(name)

    def retire(self, name: str, min_version: int) -> None:
        check_key_name(name)
        found = self._versions(name)
        if not found.keys:
            raise no_signing_key(name)
        if min_version > found.keys[-1].version:
            raise key_version_unknown(name, min_version)
        path, lowest = self._layout.key_path(name), max(min_version, found.lowest)
        if found.lowest < lowest:
            config = {"min_decryption_version": lowest, "min_encryption_version": lowest}
            self._post(f"{path}/config", config, again=True)
        # Asked apart: a crash may have come between the two.
        if found.available < lowest:
            self._post(f"{path}/trim", {"min_available_version": lowest}, again=True)
        self._fetch(name)

    def sign(self, name: str, message: bytes, version: int | None) -> Signed:
        check_key_name(name)
        if version is not None:
            self._check_version(name, version)
        body: dict[str, Any] = {"input": base64.b64encode(message).decode()}
        if version is not None:
            body["key_version"] = version
        # What else may be asked for is as we want it by itself: SHA-256, and DER for ECDSA.
        path = self._layout.sign_path(name)
        try:
            answer = self._client.post(path, body, again=True)
        except Transient as error:
            # Vault says 500 to a version that was retired since we looked.
            if error.code == "custody_unavailable" and version is not None:
                self._forget(name)
                self._check_version(name, version)
            raise
        if not answer.ok:
            raise self._client.malformed(path) if self._fetch(name) else no_signing_key(name)
        match = _SIGNATURE.fullmatch(str(answer.data.get("signature")))
        if match is None:
            raise self._client.malformed(path)
        return Signed(_base64(match[2], self._client.malformed(path)), int(match[1]))

    def _make(self, name: str, kind: KeyKind) -> None:
        """Harmless when somebody else was first."""
        try:
            self._post(self._layout.key_path(name), {"type": kind}, again=True)
        except Refused as error:
            if error.code != "custody_forbidden":
                raise
            # Who only signs need not be allowed to: keys come with the rest of what is set up.
            message = f"there is no signing key {name!r}"
            raise not_set_up(message, self._client.address) from None

    def _check_version(self, name: str, version: int) -> None:
        """One that is not known may have been made since we looked."""
        if any(key.version == version for key in self.public_keys(name)):
            return
        keys = self._fetch(name)
        if not keys:
            raise no_signing_key(name)
        if not any(key.version == version for key in keys):
            raise key_version_unknown(name, version)

    def _newest(self, name: str) -> PublicKey:
        keys = self._fetch(name)
        if not keys:
            raise no_signing_key(name)
        return keys[-1]

    def _post(self, path: str, body: dict[str, Any], *, again: bool = False) -> None:
        if not self._client.post(path, body, again=again).ok:
            raise self._client.malformed(path)

    def _refuse_lost(self, name: str) -> None:
        known = self._known.get(name)
        if known is not None and known.keys:
            raise Refused(
                "signing_key_lost",
                "the signing key was there, and is gone",
                where=self._layout.key_path(name),
                hint="restore Vault; or restart for new keys, and join every node again",
            )

    def _forget(self, name: str) -> None:
        """It stays known for while Vault is away, and is asked for at the next chance."""
        with self._lock:
            known = self._known.get(name)
            if known is not None:
                self._known[name] = _Known(known.keys, float("-inf"))

    def _fetch(self, name: str) -> tuple[PublicKey, ...]:
        at_s = self._monotonic()
        keys = self._versions(name).keys
        if keys:
            with self._lock:
                self._known[name] = _Known(keys, at_s)
        return keys

    def _versions(self, name: str) -> _Versions:
        path = self._layout.key_path(name)
        answer = self._client.get(path)
        if answer is None:
            return _Versions((), 1, 1)
        try:
            return _versions(name, answer.data)
        except (ValueError, TypeError, KeyError, AttributeError, UnsupportedAlgorithm):
            raise self._client.malformed(path) from None


@dataclass(frozen=True)
class _Versions:
    """Those not retired, oldest first; the lowest of them; the lowest that Vault still has."""

    keys: tuple[PublicKey, ...]
    lowest: int
    available: int


def _versions(name: str, data: Mapping[str, Any]) -> _Versions:
    kind = _KINDS.get(str(data["type"]))
    if kind is None:
        raise wrong_key_type(name, "signing")
    available = int(data.get("min_available_version") or 1)
    lowest = max(int(data["min_decryption_version"]), int(data["min_encryption_version"]), 1)
    found = {int(version): key for version, key in data["keys"].items()}
    keys = tuple(
        PublicKey(name, kind, version, _pem(kind, found[version]["public_key"]))
        for version in sorted(found)
        if version >= max(lowest, available)
    )
    return _Versions(keys, lowest, available)


def _pem(kind: KeyKind, text: str) -> str:
    if kind == "ed25519":
        raw = base64.b64decode(text, validate=True)
        key: Any = Ed25519PublicKey.from_public_bytes(raw)
    else:
        key = load_pem_public_key(text.encode())
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise TypeError("not an ECDSA key")
    pem: bytes = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return pem.decode()


def _verifier(key: PublicKey) -> VerifierKey:
    loaded = load_pem_public_key(key.pem.encode())
    if not isinstance(loaded, Ed25519PublicKey):
        raise wrong_key_type(key.name, "ed25519")
    text = loaded.public_bytes_raw().hex()
    return VerifierKey(key_id=key_id(text), version=key.version, public_key=text)


def _base64(text: str, error: Refused) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        raise error from None
