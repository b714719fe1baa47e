"""A private folder whose files are sealed, for the local custody.

Rules: the folder is 0700, its files 0600, every write is atomic and on the disk when it returns,
and one process at a time writes. What is sealed says what it is: a file copied over another one, or
moved, is found out by whoever reads it.
"""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cryptography.fernet import Fernet, InvalidToken

from reconciler.errors import Refused


class SealedFolder:
    """`root`, made when missing, and the key file that seals what is in there.

    Refused for a folder or file that others may read, and for a key file that is lost or changed.
    """

    def __init__(self, root: Path, key_file: Path | None, parts: tuple[str, ...]) -> None:
        self.root = root
        self._key_file = key_file or root / "key"
        with as_refused(root):
            make_private(root)
            with self.alone():
                self.key = self._ensure_key_file(parts)
        self._fernet = Fernet(self.key)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """No other thread or process is in here meanwhile. Not to be entered twice."""
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        with as_refused(self.root):
            descriptor = os.open(self.root / ".lock", flags, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                yield
            finally:
                os.close(descriptor)

    def read(self, place: Path) -> dict[str, Any] | None:
        """The document in this file; None when there is no such file."""
        with as_refused(place):
            try:
                sealed = read_private(place)
            except FileNotFoundError:
                return None
        try:
            found: dict[str, Any] = json.loads(self._fernet.decrypt(sealed))
        except (InvalidToken, ValueError):
            raise wrong_key(place) from None
        return found

    def write(self, place: Path, document: Mapping[str, Any]) -> None:
        with as_refused(place):
            make_private(place.parent)
            write_private(place, self._fernet.encrypt(json.dumps(document).encode()))

    def remove(self, *places: Path) -> None:
        """Those of one folder; harmless where they are gone."""
        for place in places:
            with as_refused(place):
                place.unlink(missing_ok=True)
        if places and places[0].parent.is_dir():
            flush(places[0].parent)

    def _ensure_key_file(self, parts: tuple[str, ...]) -> bytes:
        try:
            key = read_private(self._key_file)
        except FileNotFoundError:
            return self._new_key_file(parts)
        try:
            Fernet(key)
        except ValueError:
            raise wrong_key(self._key_file) from None
        return key

    def _new_key_file(self, parts: tuple[str, ...]) -> bytes:
        # A new key over old secrets would look like an empty store, and lose them.
        if any((self.root / part).exists() for part in parts):
            raise Refused(
                "secrets_key_lost",
                "the key file is gone, and there are keys or secrets it encrypts",
                where=str(self._key_file),
                hint="put the key file back, or start with an empty folder",
            )
        key = Fernet.generate_key()
        write_private(self._key_file, key)
        return key


def wrong_key(place: Path) -> Refused:
    return Refused(
        "secrets_key_wrong",
        "it does not open with this key file, or it was damaged",
        where=str(place),
        hint="restore the folder and the key file from the same backup",
    )


@contextmanager
def as_refused(place: Path) -> Iterator[None]:
    """What the file system says, as Refused."""
    try:
        yield
    except OSError as error:
        raise Refused(
            "secrets_io", f"{error.strerror}", where=str(error.filename or place)
        ) from None


def make_private(folder: Path) -> None:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    _refuse_exposed(folder, folder.stat().st_mode, "chmod 700")


def read_private(place: Path) -> bytes:
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


def write_private(place: Path, content: bytes) -> None:
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
    flush(place.parent)


def flush(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
