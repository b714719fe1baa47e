"""Keys and secrets in a folder, for evaluation on one machine.

Rules: the folder is 0700, its files 0600, every write is atomic, and one process at a time writes.
All is encrypted with the key file. By default that file lies in the same folder, and then the
encryption protects nothing: whoever reads the folder reads everything. Kept elsewhere (`key_file`)
it protects backups and copies of the folder, and still not against a person with access to both.
A signing key is in this process's memory while it signs. Use Vault where any of that matters.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from cryptography.fernet import Fernet, InvalidToken
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from node_agent.wire import VerifierKey, key_id
from reconciler.errors import Refused
from reconciler.ports import Secret, Signed

PATH_LENGTH_MAX = 400
FILE_NAME_LENGTH_MAX = 200
SECRET_BYTES_MAX = 64 * 1024

_NAME = re.compile(r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?")
_SEGMENT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_VERSION = re.compile(r"([1-9][0-9]{0,8})\.pem")


class LocalSecrets:
    """A SecretStore in `directory`, which is made when missing.

    Refused for a folder or file that others may read, and for a key file that is lost or changed.
    """

    def __init__(self, directory: Path, key_file: Path | None = None) -> None:
        self._directory = directory
        self._key_file = key_file or directory / "key"
        self._signing_keys: dict[Path, Ed25519PrivateKey] = {}
        with _as_refused(directory):
            _make_private(directory)
            with self._alone():
                self._fernet_key = self._ensure_key_file()

    def ensure_signing_key(self, name: str) -> VerifierKey:
        """The newest key of that name, made if there is none."""
        _check_name(name)
        with _as_refused(self._directory), self._alone():
            versions = self._versions(name)
            if versions:
                return self._verifier(name, versions[-1])
            self._refuse_lost(name)
            return self._new_key(name, 1)

    def rotate(self, name: str) -> VerifierKey:
        """Adds a version, which signs from now on; the older ones still verify."""
        _check_name(name)
        with _as_refused(self._directory), self._alone():
            return self._new_key(name, (self._versions(name) or [0])[-1] + 1)

    def verifier_keys(self, name: str) -> tuple[VerifierKey, ...]:
        """All versions, oldest first; empty when there is no such key."""
        _check_name(name)
        with _as_refused(self._directory):
            return tuple(self._verifier(name, version) for version in self._versions(name))

    def sign(self, name: str, message: bytes) -> Signed:
        """64 raw ed25519 signature bytes by the newest version; Refused when there is no key."""
        _check_name(name)
        with _as_refused(self._directory):
            versions = self._versions(name)
            if not versions:
                raise Refused("no_signing_key", f"there is no signing key {name!r}")
            signature = self._load(name, versions[-1]).sign(message)
            return Signed(signature, self._verifier(name, versions[-1]))

    def read(self, path: str) -> Secret | None:
        """The secret at a path such as `apps/acme/token`; None when there is none."""
        place = self._place(path)
        with _as_refused(place):
            try:
                sealed = _read_private(place)
            except FileNotFoundError:
                return None
        try:
            document = json.loads(Fernet(self._fernet_key).decrypt(sealed))
        except (InvalidToken, ValueError):
            raise self._wrong_key(place) from None
        if document["path"] != path:
            raise Refused("secret_moved", "the file holds the secret of another path", where=path)
        return Secret(document["value"])

    def write(self, path: str, value: Secret) -> None:
        """Stores a secret, in place of an older one."""
        place, document = self._place(path), _document(path, value)
        with _as_refused(place), self._alone():
            self._write(place, document)

    def ensure(self, path: str, value: Secret) -> Secret:
        """The secret at `path`, which is `value` if there was none; the same for all who ask."""
        found = self.read(path)
        if found is not None:
            return found
        place, document = self._place(path), _document(path, value)
        with _as_refused(place), self._alone():
            # Somebody else may have been first.
            found = self.read(path)
            if found is None:
                self._write(place, document)
        return found or value

    def delete(self, path: str) -> None:
        """Forgets the secret at this path, and is on the disk when it returns."""
        place = self._place(path)
        with _as_refused(place), self._alone():
            try:
                place.unlink()
            except FileNotFoundError:
                return
            _flush(place.parent)

    def _write(self, place: Path, document: bytes) -> None:
        _make_private(place.parent)
        _write_private(place, Fernet(self._fernet_key).encrypt(document))

    def _place(self, path: str) -> Path:
        segments = path.split("/")
        if len(path) > PATH_LENGTH_MAX or not all(_SEGMENT.fullmatch(s) for s in segments):
            raise Refused(
                "secret_path_refused",
                f"not a secret's path: {path[:80]!r}",
                hint="words of letters, digits, '_', '.' and '-', with '/' between them",
            )
        # One flat folder: `a` and `a/b` may both be secrets, and no path leads out.
        name = quote(path, safe="")
        if len(name) > FILE_NAME_LENGTH_MAX:
            # Longer than file systems take. No path begins with a dash, so it meets no other.
            name = "-" + hashlib.sha256(path.encode()).hexdigest()
        return self._directory / "secrets" / name

    def _versions(self, name: str) -> list[int]:
        folder = self._directory / "keys" / name
        if not folder.is_dir():
            return []
        found = (_VERSION.fullmatch(path.name) for path in folder.iterdir())
        return sorted(int(match.group(1)) for match in found if match)

    def _refuse_lost(self, name: str) -> None:
        """A new key in place of one that this process has used would be believed by no node."""
        place = self._key_place(name, 1).parent
        if any(used.parent == place for used in self._signing_keys):
            raise Refused(
                "signing_key_lost",
                "the signing key was there, and is gone",
                where=str(place),
                hint="put the folder back; or restart for new keys, and join every node again",
            )

    def _new_key(self, name: str, version: int) -> VerifierKey:
        key = Ed25519PrivateKey.generate()
        pem = key.private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(self._fernet_key)
        )
        place = self._key_place(name, version)
        _make_private(place.parent.parent)
        _make_private(place.parent)
        _write_private(place, pem)
        return self._verifier(name, version)

    def _key_place(self, name: str, version: int) -> Path:
        return self._directory / "keys" / name / f"{version}.pem"

    def _load(self, name: str, version: int) -> Ed25519PrivateKey:
        place = self._key_place(name, version)
        if place not in self._signing_keys:
            try:
                key = load_pem_private_key(_read_private(place), self._fernet_key)
            except (ValueError, TypeError):
                raise self._wrong_key(place) from None
            if not isinstance(key, Ed25519PrivateKey):
                raise Refused("wrong_key_type", "not an ed25519 key", where=str(place))
            self._signing_keys[place] = key
        return self._signing_keys[place]

    def _verifier(self, name: str, version: int) -> VerifierKey:
        public = self._load(name, version).public_key()
        text = public.public_bytes(Encoding.Raw, PublicFormat.Raw).hex()
        return VerifierKey(key_id=key_id(text), version=version, public_key=text)

    def _ensure_key_file(self) -> bytes:
        try:
            key = _read_private(self._key_file)
        except FileNotFoundError:
            return self._new_key_file()
        try:
            Fernet(key)
        except ValueError:
            raise self._wrong_key(self._key_file) from None
        return key

    def _new_key_file(self) -> bytes:
        # A new key over old secrets would look like an empty store, and lose them.
        if any((self._directory / part).exists() for part in ("keys", "secrets")):
            raise Refused(
                "secrets_key_lost",
                "the key file is gone, and there are keys or secrets it encrypts",
                where=str(self._key_file),
                hint="put the key file back, or start with an empty folder",
            )
        key = Fernet.generate_key()
        _write_private(self._key_file, key)
        return key

    def _wrong_key(self, place: Path) -> Refused:
        return Refused(
            "secrets_key_wrong",
            "it does not open with this key file, or it was damaged",
            where=str(place),
            hint="restore the folder and the key file from the same backup",
        )

    @contextmanager
    def _alone(self) -> Iterator[None]:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        descriptor = os.open(self._directory / ".lock", flags, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def _document(path: str, value: Secret) -> bytes:
    # The path is sealed in: a file copied over another one is found out.
    document = json.dumps({"path": path, "value": value.reveal()}).encode()
    if len(document) > SECRET_BYTES_MAX:
        raise Refused("secret_too_large", f"more than {SECRET_BYTES_MAX} bytes", where=path)
    return document


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise Refused("key_name_refused", f"not a key's name: {name[:80]!r}")


@contextmanager
def _as_refused(place: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise Refused(
            "secrets_io", f"{error.strerror}", where=str(error.filename or place)
        ) from None


def _make_private(folder: Path) -> None:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    _refuse_exposed(folder, folder.stat().st_mode, "chmod 700")


def _read_private(place: Path) -> bytes:
    descriptor = os.open(place, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as handle:
        _refuse_exposed(place, os.fstat(descriptor).st_mode, "chmod 600")
        return handle.read()


def _refuse_exposed(place: Path, mode: int, command: str) -> None:
    if mode & 0o077:
        raise Refused(
            "secrets_exposed",
            f"others may reach it (mode {mode & 0o777:o})",
            where=str(place),
            hint=f"{command} {place}, and rotate what it held",
        )


def _write_private(place: Path, content: bytes) -> None:
    """Whole or not at all, and on the disk when it returns. mkstemp makes files 0600."""
    descriptor, name = tempfile.mkstemp(prefix=".new-", dir=place.parent)
    try:
        with os.fdopen(descriptor, "wb") as handle:
            handle.write(content)
            handle.flush()
            os.fsync(descriptor)
        os.replace(name, place)
    except BaseException:
        os.unlink(name)
        raise
    _flush(place.parent)


def _flush(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
