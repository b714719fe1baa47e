"""Signing keys in a sealed folder: `keys/<name>/<version>.pem`, encrypted, and which are retired.

Rules: a retired version is none any more from the moment that is written down; its private key is
deleted right after. A version number is never given twice.
"""

from __future__ import annotations

import re
from pathlib import Path

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from node_agent.wire import VerifierKey, key_id
from reconciler.adapters.local_folder import (
    SealedFolder,
    as_refused,
    make_private,
    read_private,
    write_private,
    wrong_key,
)
from reconciler.adapters.secret_paths import (
    check_key_name,
    key_version_unknown,
    no_signing_key,
    wrong_key_type,
)
from reconciler.errors import Refused
from reconciler.ports import KeyKind, PublicKey, Signed

PrivateKey = Ed25519PrivateKey | ec.EllipticCurvePrivateKey

_VERSION = re.compile(r"([1-9][0-9]{0,8})\.pem")
_RETIRED = "min-version"


class LocalKeys:
    """The keys in `folder`; see `ports.SecretStore` for what its methods promise."""

    def __init__(self, folder: SealedFolder) -> None:
        self._folder = folder
        self._loaded: dict[Path, PrivateKey] = {}
        self._used: set[str] = set()

    def ensure(self, name: str, kind: KeyKind) -> PublicKey:
        check_key_name(name)
        with self._folder.alone():
            versions = self._versions(name)
            if versions:
                found = self._public(name, versions[-1])
                if found.kind != kind:
                    raise wrong_key_type(name, kind)
                return found
            self._refuse_lost(name)
            return self._add(name, kind, 1)

    def public_keys(self, name: str) -> tuple[PublicKey, ...]:
        check_key_name(name)
        return tuple(self._public(name, version) for version in self._versions(name))

    def verifier_keys(self, name: str) -> tuple[VerifierKey, ...]:
        check_key_name(name)
        return tuple(self._verifier(name, version) for version in self._versions(name))

    def rotate(self, name: str) -> PublicKey:
        check_key_name(name)
        with self._folder.alone():
            newest = self._newest(name)
            return self._add(name, self._public(name, newest).kind, newest + 1)

    def retire(self, name: str, min_version: int) -> None:
        check_key_name(name)
        with self._folder.alone():
            if min_version > self._newest(name):
                raise key_version_unknown(name, min_version)
            lowest = max(min_version, self._min_version(name))
            document = {"name": name, "min_version": lowest}
            self._folder.write(self._home(name) / _RETIRED, document)
            # Also what a crash left the last time.
            below = [place for version, place in self._files(name) if version < lowest]
            self._folder.remove(*below)
            for place in below:
                self._loaded.pop(place, None)

    def sign(self, name: str, message: bytes, version: int | None) -> Signed:
        check_key_name(name)
        newest = self._newest(name)
        version = newest if version is None else version
        if version not in self._versions(name):
            raise key_version_unknown(name, version)
        key = self._load(name, version)
        if isinstance(key, Ed25519PrivateKey):
            return Signed(key.sign(message), version)
        return Signed(key.sign(message, ec.ECDSA(hashes.SHA256())), version)

    def _newest(self, name: str) -> int:
        versions = self._versions(name)
        if not versions:
            raise no_signing_key(name)
        return versions[-1]

    def _versions(self, name: str) -> list[int]:
        """Those that are not retired, oldest first."""
        files = self._files(name)
        lowest = self._min_version(name) if files else 1
        return [version for version, _ in files if version >= lowest]

    def _files(self, name: str) -> list[tuple[int, Path]]:
        with as_refused(self._home(name)):
            try:
                found = [*self._home(name).iterdir()]
            except FileNotFoundError:
                return []
        named = ((_VERSION.fullmatch(place.name), place) for place in found)
        return sorted((int(match[1]), place) for match, place in named if match)

    def _min_version(self, name: str) -> int:
        place = self._home(name) / _RETIRED
        document = self._folder.read(place)
        if document is None:
            return 1
        if document["name"] != name:
            raise Refused("secret_moved", "the file tells of another key", where=str(place))
        return int(document["min_version"])

    def _refuse_lost(self, name: str) -> None:
        """A new key in place of one that was used would be believed by no node."""
        if name in self._used or (self._home(name) / _RETIRED).exists():
            raise Refused(
                "signing_key_lost",
                "the signing key was there, and is gone",
                where=str(self._home(name)),
                hint="put the folder back; or restart for new keys, and join every node again",
            )

    def _add(self, name: str, kind: KeyKind, version: int) -> PublicKey:
        key: PrivateKey = (
            Ed25519PrivateKey.generate()
            if kind == "ed25519"
            else ec.generate_private_key(ec.SECP256R1())
        )
        encrypted = BestAvailableEncryption(self._folder.key)
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encrypted)
        with as_refused(self._home(name)):
            make_private(self._home(name).parent)
            make_private(self._home(name))
            write_private(self._place(name, version), pem)
        return self._public(name, version)

    def _home(self, name: str) -> Path:
        return self._folder.root / "keys" / name

    def _place(self, name: str, version: int) -> Path:
        return self._home(name) / f"{version}.pem"

    def _load(self, name: str, version: int) -> PrivateKey:
        place = self._place(name, version)
        known = self._loaded.get(place)
        if known is not None:
            return known
        try:
            with as_refused(place):
                key = load_pem_private_key(read_private(place), self._folder.key)
        except (ValueError, TypeError):
            raise wrong_key(place) from None
        if not isinstance(key, PrivateKey):
            raise Refused("wrong_key_type", "not a key we sign with", where=str(place))
        self._loaded[place] = key
        self._used.add(name)
        return key

    def _public(self, name: str, version: int) -> PublicKey:
        key = self._load(name, version)
        kind: KeyKind = "ed25519" if isinstance(key, Ed25519PrivateKey) else "ecdsa-p256"
        form = PublicFormat.SubjectPublicKeyInfo
        pem = key.public_key().public_bytes(Encoding.PEM, form)
        return PublicKey(name, kind, version, pem.decode())

    def _verifier(self, name: str, version: int) -> VerifierKey:
        key = self._load(name, version)
        if not isinstance(key, Ed25519PrivateKey):
            raise wrong_key_type(name, "ed25519")
        text = key.public_key().public_bytes_raw().hex()
        return VerifierKey(key_id=key_id(text), version=version, public_key=text)
