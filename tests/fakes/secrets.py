"""A SecretStore in memory."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Callable
from functools import wraps
from threading import RLock
from typing import Concatenate, ParamSpec, TypeVar

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from node_agent.wire import VerifierKey, key_id
from reconciler.adapters.secret_paths import (
    check_key_name,
    check_path,
    check_token,
    check_value,
    key_version_unknown,
    no_secret,
    no_signing_key,
    wrap_foreign,
    wrap_spent,
    wrong_key_type,
)
from reconciler.errors import GpuaasError
from reconciler.ports import Clock, KeyKind, PublicKey, Secret, SecretSeen, Signed, Wrapped
from tests.fakes.clock import FakeClock

P = ParamSpec("P")
R = TypeVar("R")
PrivateKey = Ed25519PrivateKey | ec.EllipticCurvePrivateKey


def _answers(
    method: Callable[Concatenate[FakeSecrets, P], R],
) -> Callable[Concatenate[FakeSecrets, P], R]:
    @wraps(method)
    def answering(self: FakeSecrets, /, *args: P.args, **kwargs: P.kwargs) -> R:
        with self._lock:
            if self.failure is not None:
                raise self.failure
            return method(self, *args, **kwargs)

    return answering


class FakeSecrets:
    """Real keys: made anew for each instance, or always the same for one `seed`.

    Set `failure` to make every method raise it, as a custody does that is sealed.
    """

    def __init__(self, clock: Clock | None = None, seed: str = "") -> None:
        self.failure: GpuaasError | None = None
        self.secrets: dict[str, Secret] = {}
        self._lock = RLock()
        self._clock = clock or FakeClock()
        self._seed = seed.encode() or os.urandom(32)
        self._keys: dict[str, dict[int, PrivateKey]] = {}
        self._seen: dict[str, SecretSeen] = {}
        self._wrapped: dict[str, tuple[str, Secret, int]] = {}

    @_answers
    def ensure_signing_key(self, name: str, kind: KeyKind = "ed25519") -> PublicKey:
        keys = self.public_keys(name)
        if keys and keys[-1].kind != kind:
            raise wrong_key_type(name, kind)
        return keys[-1] if keys else self._add(name, 1, kind)

    @_answers
    def public_keys(self, name: str) -> tuple[PublicKey, ...]:
        check_key_name(name)
        return tuple(
            _public(name, version, key) for version, key in self._keys.get(name, {}).items()
        )

    @_answers
    def verifier_keys(self, name: str) -> tuple[VerifierKey, ...]:
        check_key_name(name)
        return tuple(
            _verifier(name, version, key) for version, key in self._keys.get(name, {}).items()
        )

    @_answers
    def rotate(self, name: str) -> PublicKey:
        newest = self._newest(name)
        return self._add(name, newest.version + 1, newest.kind)

    @_answers
    def retire(self, name: str, min_version: int) -> None:
        if min_version > self._newest(name).version:
            raise key_version_unknown(name, min_version)
        kept = {at: key for at, key in self._keys[name].items() if at >= min_version}
        self._keys[name] = kept

    @_answers
    def sign(self, name: str, message: bytes, version: int | None = None) -> Signed:
        newest = self._newest(name).version
        version = newest if version is None else version
        key = self._keys[name].get(version)
        if key is None:
            raise key_version_unknown(name, version)
        if isinstance(key, Ed25519PrivateKey):
            return Signed(key.sign(message), version)
        return Signed(key.sign(message, ec.ECDSA(hashes.SHA256())), version)

    @_answers
    def read(self, path: str) -> Secret | None:
        check_path(path)
        return self.secrets.get(path)

    @_answers
    def seen(self, path: str) -> SecretSeen | None:
        if self.read(path) is None:
            return None
        return self._seen.get(path) or SecretSeen(1, self._clock.now_ms())

    @_answers
    def paths(self, prefix: str) -> tuple[str, ...]:
        check_path(prefix)
        return tuple(sorted(path for path in self.secrets if path.startswith(f"{prefix}/")))

    @_answers
    def write(self, path: str, value: Secret) -> None:
        check_value(path, value)
        before = self.seen(path)
        self.secrets[path] = value
        version = before.version + 1 if before is not None else 1
        self._seen[path] = SecretSeen(version, self._clock.now_ms())

    @_answers
    def ensure(self, path: str, value: Secret) -> Secret:
        if self.read(path) is None:
            self.write(path, value)
        return self.secrets[path]

    @_answers
    def delete(self, path: str) -> None:
        check_path(path)
        self.secrets.pop(path, None)
        self._seen.pop(path, None)

    @_answers
    def wrap(self, path: str, ttl_s: float) -> Wrapped:
        value = self.read(path)
        if value is None:
            raise no_secret(path)
        token, ends_ms = secrets.token_urlsafe(32), self._clock.now_ms() + int(ttl_s * 1000)
        self._wrapped[token] = (path, value, ends_ms)
        return Wrapped(Secret(token), ends_ms)

    @_answers
    def unwrap(self, token: Secret, path: str) -> Secret:
        check_path(path)
        text = check_token(token, path)
        held, value, ends_ms = self._wrapped.get(text, (path, None, 0))
        if value is None or ends_ms <= self._clock.now_ms():
            raise wrap_spent(path)
        if held != path:
            raise wrap_foreign(path)
        del self._wrapped[text]
        return value

    def _newest(self, name: str) -> PublicKey:
        keys = self.public_keys(name)
        if not keys:
            raise no_signing_key(name)
        return keys[-1]

    def _add(self, name: str, version: int, kind: KeyKind) -> PublicKey:
        drawn = hashlib.sha256(self._seed + f"/{name}/{version}".encode()).digest()
        key: PrivateKey = (
            Ed25519PrivateKey.from_private_bytes(drawn)
            if kind == "ed25519"
            else ec.derive_private_key(int.from_bytes(drawn[1:]), ec.SECP256R1())
        )
        self._keys.setdefault(name, {})[version] = key
        return _public(name, version, key)


def _public(name: str, version: int, key: PrivateKey) -> PublicKey:
    kind: KeyKind = "ed25519" if isinstance(key, Ed25519PrivateKey) else "ecdsa-p256"
    form = PublicFormat.SubjectPublicKeyInfo
    return PublicKey(
        name, kind, version, key.public_key().public_bytes(Encoding.PEM, form).decode()
    )


def _verifier(name: str, version: int, key: PrivateKey) -> VerifierKey:
    if not isinstance(key, Ed25519PrivateKey):
        raise wrong_key_type(name, "ed25519")
    text = key.public_key().public_bytes_raw().hex()
    return VerifierKey(key_id=key_id(text), version=version, public_key=text)
