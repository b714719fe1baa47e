"""A SecretStore in memory."""

from __future__ import annotations

import re

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from node_agent.wire import VerifierKey, key_id
from reconciler.errors import Refused
from reconciler.ports import Secret, Signed


class FakeSecrets:
    """Real keys, made anew for each instance."""

    def __init__(self) -> None:
        self._keys: dict[str, list[Ed25519PrivateKey]] = {}
        self._secrets: dict[str, Secret] = {}

    def ensure_signing_key(self, name: str) -> VerifierKey:
        if not self.verifier_keys(name):
            self.rotate(name)
        return self.verifier_keys(name)[-1]

    def rotate(self, name: str) -> VerifierKey:
        _check(name, r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?", "key_name_refused")
        self._keys.setdefault(name, []).append(Ed25519PrivateKey.generate())
        return self.verifier_keys(name)[-1]

    def verifier_keys(self, name: str) -> tuple[VerifierKey, ...]:
        _check(name, r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?", "key_name_refused")
        return tuple(
            _verifier(key, number) for number, key in enumerate(self._keys.get(name, []), 1)
        )

    def sign(self, name: str, message: bytes) -> Signed:
        verifiers = self.verifier_keys(name)
        if not verifiers:
            raise Refused("no_signing_key", f"there is no signing key {name!r}")
        return Signed(self._keys[name][-1].sign(message), verifiers[-1])

    def read(self, path: str) -> Secret | None:
        _check(path, r"(?:[A-Za-z0-9_][\w.-]*)(?:/[A-Za-z0-9_][\w.-]*)*", "secret_path_refused")
        return self._secrets.get(path)

    def write(self, path: str, value: Secret) -> None:
        self.read(path)
        self._secrets[path] = value

    def ensure(self, path: str, value: Secret) -> Secret:
        self.read(path)
        return self._secrets.setdefault(path, value)

    def delete(self, path: str) -> None:
        self.read(path)
        self._secrets.pop(path, None)


def _verifier(key: Ed25519PrivateKey, version: int) -> VerifierKey:
    text = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw).hex()
    return VerifierKey(key_id=key_id(text), version=version, public_key=text)


def _check(text: str, pattern: str, code: str) -> None:
    if len(text) > 400 or not re.fullmatch(pattern, text, re.ASCII):
        raise Refused(code, f"not a name: {text[:80]!r}")
