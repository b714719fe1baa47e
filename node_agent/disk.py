"""The state folder as the store sees it: named files that are replaced whole.

Rules:
- A file is written beside, flushed, renamed, the folder flushed. A reader finds the old one or the
  new one, whenever the machine dies. What was half written is cleared when the folder is opened.
- The folder is 0700, each file 0600: private key and app settings are here.
- One process at a time holds the folder.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Protocol

_CORRUPT = ".corrupt-"


class StateUnusable(Exception):
    """The state folder can't be used. `code`: state_locked, state_corrupt, state_unwritable."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


class Disk(Protocol):
    """Files by their name in the folder, `agent.json` or `instances/….json`.

    Writing raises OSError, and then the old file is still there.
    """

    def read(self, name: str) -> bytes | None:
        """None when there is none."""
        ...

    def write(self, name: str, text: str) -> None:
        """Replaces it whole. On disk when it returns."""
        ...

    def names(self) -> tuple[str, ...]:
        """The instances' files, sorted."""
        ...

    def remove(self, names: tuple[str, ...]) -> None: ...

    def move_aside(self, name: str, now_ms: int) -> str:
        """Keeps a file that can't be read out of the way; returns its new name."""
        ...

    def anything_lost(self) -> bool:
        """Whether a file was ever moved aside."""
        ...

    def close(self) -> None: ...


class FolderDisk:
    """The real one. Raises StateUnusable when another process holds the folder, or it can't be."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock_file = _hold(folder)
        for path in (*folder.glob("*.tmp"), *(folder / "instances").glob("*.tmp")):
            path.unlink(missing_ok=True)

    def read(self, name: str) -> bytes | None:
        try:
            return (self._folder / name).read_bytes()
        except FileNotFoundError:
            return None

    def write(self, name: str, text: str) -> None:
        path = self._folder / name
        temporary = path.with_suffix(".tmp")
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(handle, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
        _flush_folder(path.parent)

    def names(self) -> tuple[str, ...]:
        found = (self._folder / "instances").glob("*.json")
        return tuple(sorted(f"instances/{path.name}" for path in found))

    def remove(self, names: tuple[str, ...]) -> None:
        for name in names:
            (self._folder / name).unlink(missing_ok=True)
        _flush_folder(self._folder / "instances")

    def move_aside(self, name: str, now_ms: int) -> str:
        path = self._folder / name
        aside = path.with_name(f"{path.name}{_CORRUPT}{now_ms}")
        path.rename(aside)
        _flush_folder(path.parent)
        return aside.name

    def anything_lost(self) -> bool:
        return any(self._folder.rglob(f"*{_CORRUPT}*"))

    def close(self) -> None:
        os.close(self._lock_file)


def _hold(folder: Path) -> int:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        (folder / "instances").mkdir(mode=0o700, exist_ok=True)
        folder.chmod(0o700)
        handle = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StateUnusable("state_unwritable", f"{folder}: {error.strerror}") from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise StateUnusable("state_locked", f"another agent uses {folder}") from None
    return handle


def _flush_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
