"""Keys and secrets in a folder, for evaluation on one machine.

Rules: see `local_folder`, `local_keys` and `local_wrapping` for what lies in there.
All is encrypted with the key file. By default that file lies in the same folder, and then the
encryption protects nothing: whoever reads the folder reads everything. Kept elsewhere (`key_file`)
it protects backups and copies of the folder, and still not against a person with access to both.
A signing key is in this process's memory while it signs. Use Vault where any of that matters.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from node_agent.wire import VerifierKey
from reconciler.adapters.clock import SystemClock
from reconciler.adapters.local_folder import SealedFolder, as_refused
from reconciler.adapters.local_keys import LocalKeys
from reconciler.adapters.local_wrapping import LocalWrapping
from reconciler.adapters.secret_paths import check_path, check_value, no_secret
from reconciler.errors import Refused
from reconciler.ports import Clock, KeyKind, PublicKey, Secret, SecretSeen, Signed, Wrapped

FILE_NAME_LENGTH_MAX = 200

_PARTS = ("keys", "secrets", "wrapped")


class LocalSecrets:
    """A SecretStore in `directory`, which is made when missing.

    Refused for a folder or file that others may read, and for a key file that is lost or changed.
    """

    def __init__(
        self, directory: Path, key_file: Path | None = None, clock: Clock | None = None
    ) -> None:
        self._clock = clock or SystemClock()
        self._folder = SealedFolder(directory, key_file, _PARTS)
        self._keys = LocalKeys(self._folder)
        self._wrapping = LocalWrapping(self._folder, self._clock)
        self._home = directory / "secrets"

    def ensure_signing_key(self, name: str, kind: KeyKind = "ed25519") -> PublicKey:
        return self._keys.ensure(name, kind)

    def public_keys(self, name: str) -> tuple[PublicKey, ...]:
        return self._keys.public_keys(name)

    def verifier_keys(self, name: str) -> tuple[VerifierKey, ...]:
        return self._keys.verifier_keys(name)

    def rotate(self, name: str) -> PublicKey:
        return self._keys.rotate(name)

    def retire(self, name: str, min_version: int) -> None:
        """Their private keys are deleted."""
        self._keys.retire(name, min_version)

    def sign(self, name: str, message: bytes, version: int | None = None) -> Signed:
        return self._keys.sign(name, message, version)

    def read(self, path: str) -> Secret | None:
        """The secret at a path such as `projects/acme/lab/token`; None when there is none."""
        found = self._read(path)
        return Secret(found["value"]) if found is not None else None

    def seen(self, path: str) -> SecretSeen | None:
        """The version of one that is made anew after it was deleted is 1 again."""
        found = self._read(path)
        if found is None:
            return None
        if "version" in found:
            return SecretSeen(found["version"], found["changed_at_ms"])
        # Written before versions were counted: the file says when.
        with as_refused(self._place(path)):
            return SecretSeen(1, self._place(path).stat().st_mtime_ns // 1_000_000)

    def paths(self, prefix: str) -> tuple[str, ...]:
        check_path(prefix)
        return tuple(sorted(path for path in self._all() if path.startswith(f"{prefix}/")))

    def write(self, path: str, value: Secret) -> None:
        """Stores a secret, in place of an older one."""
        check_path(path)
        check_value(path, value)
        with self._folder.alone():
            self._write(path, value)

    def ensure(self, path: str, value: Secret) -> Secret:
        """The secret at `path`, which is `value` if there was none; the same for all who ask."""
        check_value(path, value)
        found = self.read(path)
        if found is not None:
            return found
        with self._folder.alone():
            # Somebody else may have been first.
            found = self.read(path)
            if found is None:
                self._write(path, value)
        return found or value

    def delete(self, path: str) -> None:
        """Forgets the secret at this path, and is on the disk when it returns."""
        check_path(path)
        with self._folder.alone():
            self._folder.remove(self._place(path))

    def wrap(self, path: str, ttl_s: float) -> Wrapped:
        with self._folder.alone():
            found = self.read(path)
            if found is None:
                raise no_secret(path)
            return self._wrapping.wrap(path, found, ttl_s)

    def unwrap(self, token: Secret, path: str) -> Secret:
        check_path(path)
        with self._folder.alone():
            return self._wrapping.unwrap(token, path)

    def _read(self, path: str) -> dict[str, Any] | None:
        check_path(path)
        found = self._folder.read(self._place(path))
        # The path is sealed in: a file copied over another one is found out.
        if found is not None and found["path"] != path:
            raise Refused("secret_moved", "the file holds the secret of another path", where=path)
        return found

    def _write(self, path: str, value: Secret) -> None:
        before, now_ms = self.seen(path), self._clock.now_ms()
        version, changed_ms = (before.version, before.changed_at_ms) if before else (0, 0)
        self._folder.write(
            self._place(path),
            {
                "path": path,
                "value": value.reveal(),
                "version": version + 1,
                # A clock that was set back makes nothing look older than what it replaced.
                "changed_at_ms": max(now_ms, changed_ms),
            },
        )

    def _place(self, path: str) -> Path:
        # One flat folder: `a` and `a/b` may both be secrets, and no path leads out.
        name = quote(path, safe="")
        if len(name) > FILE_NAME_LENGTH_MAX:
            # Longer than file systems take. No path begins with a dash, so it meets no other.
            name = "-" + hashlib.sha256(path.encode()).hexdigest()
        return self._home / name

    def _all(self) -> Iterator[str]:
        """The paths of all secrets there are."""
        with as_refused(self._home):
            try:
                names = [place.name for place in self._home.iterdir()]
            except FileNotFoundError:
                return
        for name in names:
            if name.startswith("-"):
                found = self._folder.read(self._home / name)
                if found is not None:
                    yield str(found["path"])
            elif not name.startswith("."):
                yield unquote(name)
