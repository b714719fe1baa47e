"""A node's disk: `os`, `fcntl` and `Path` as far as the agent's state folder uses them.

Rules:
- What a file holds is safe once the file was flushed, what it is called once its folder was. A
  power cut keeps some first part of the renames and deletions that were not flushed, and of a file
  that was not flushed a piece. The end of a process alone loses nothing that was written.
- Each call is a place at which the process may die, and at which the disk may be full.
"""

from __future__ import annotations

import errno
import os as real_os
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from types import SimpleNamespace, TracebackType

from tests.sim.world import Crash, Incarnation, World


@dataclass(eq=False)
class _File:
    content: bytes = b""
    flushed: bytes | None = None
    """None: never."""


_Op = tuple[str, _File | None]
"""A name, and what it stands for from now on; None: nothing."""


@dataclass
class Disk:
    world: World
    full: bool = False
    holder: Incarnation | None = None
    """Who has the lock."""
    _names: dict[str, _File] = field(default_factory=dict)
    _safe_names: dict[str, _File] = field(default_factory=dict)
    _unsafe: list[list[_Op]] = field(default_factory=list)

    def change(self, *ops: _Op) -> None:
        """Changes names, all at once."""
        for name, file in ops:
            if file is None:
                del self._names[name]
            else:
                self._names[name] = file
        self._unsafe.append(list(ops))

    def get(self, name: str) -> _File | None:
        return self._names.get(name)

    def names(self) -> list[str]:
        return sorted(self._names)

    def flush_names(self) -> None:
        self._safe_names = dict(self._names)
        self._unsafe.clear()

    def power_cut(self) -> None:
        rng = self.world.rng
        names = dict(self._safe_names)
        for ops in self._unsafe[: rng.randint(0, len(self._unsafe))]:
            for name, file in ops:
                if file is None:
                    names.pop(name, None)
                else:
                    names[name] = file
        for file in names.values():
            if file.content != file.flushed:
                piece = file.content[: rng.randint(0, len(file.content))]
                file.content = piece if rng.random() < 0.5 else (file.flushed or b"")
            file.flushed = file.content
        self._names, self._safe_names = names, dict(names)
        self._unsafe.clear()
        self.holder = None

    def wipe(self) -> None:
        """Another disk in its place."""
        self._names, self._safe_names = {}, {}
        self._unsafe.clear()
        self.full = False
        self.holder = None


class DiskPath:
    """What StateStore needs of a `pathlib.Path`, in the hands of one process."""

    def __init__(self, disk: Disk, inc: Incarnation, text: str) -> None:
        self.disk, self.inc, self.text = disk, inc, text

    def __truediv__(self, name: str) -> DiskPath:
        return DiskPath(self.disk, self.inc, f"{self.text}/{name}")

    def __str__(self) -> str:
        return self.text

    def __lt__(self, other: DiskPath) -> bool:
        return self.text < other.text

    @property
    def name(self) -> str:
        return self.text.rpartition("/")[2]

    @property
    def parent(self) -> DiskPath:
        return DiskPath(self.disk, self.inc, self.text.rpartition("/")[0])

    def with_name(self, name: str) -> DiskPath:
        return self.parent / name

    def with_suffix(self, suffix: str) -> DiskPath:
        return self.with_name(self.name.rpartition(".")[0] + suffix)

    def mkdir(self, mode: int = 0, parents: bool = False, exist_ok: bool = False) -> None:
        pass

    def chmod(self, mode: int) -> None:
        pass

    def glob(self, pattern: str) -> Iterator[DiskPath]:
        depth = self.text.count("/") + 1
        for found in self.rglob(pattern):
            if found.text.count("/") == depth:
                yield found

    def rglob(self, pattern: str) -> Iterator[DiskPath]:
        for name in self.disk.names():
            if name.startswith(self.text + "/") and fnmatchcase(name.rpartition("/")[2], pattern):
                yield DiskPath(self.disk, self.inc, name)

    def read_bytes(self) -> bytes:
        return self._file().content

    def read_text(self) -> str:
        return self._file().content.decode()

    def exists(self) -> bool:
        return self.disk.get(self.text) is not None

    def _file(self) -> _File:
        file = self.disk.get(self.text)
        if file is None:
            raise FileNotFoundError(errno.ENOENT, "no such file", self.text)
        return file

    def rename(self, target: DiskPath) -> DiskPath:
        self.point("before rename")
        self.disk.change((target.text, self._file()), (self.text, None))
        self.point("after rename")
        return target

    replace = rename

    def unlink(self, missing_ok: bool = False) -> None:
        self.point("unlink")
        if self.disk.get(self.text) is None and missing_ok:
            return
        self._file()
        self.disk.change((self.text, None))

    def point(self, where: str) -> None:
        self.disk.world.point(self.inc, f"disk {where}")


@dataclass(eq=False)
class _Handle:
    """A file descriptor; `file` is None for a folder."""

    path: DiskPath
    file: _File | None

    def __enter__(self) -> _Handle:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        pass

    def write(self, text: str | bytes) -> None:
        assert self.file is not None
        data = text.encode() if isinstance(text, str) else text
        if self.path.disk.full:
            self.file.content += data[: len(data) // 2]
            raise OSError(errno.ENOSPC, "no space left on device")
        half = len(data) // 2
        self.file.content += data[:half]
        self.path.point("within write")
        self.file.content += data[half:]

    def flush(self) -> None:
        pass

    def fileno(self) -> _Handle:
        return self


def _open(path: DiskPath, flags: int, mode: int = 0) -> _Handle:
    path.point("open")
    if flags & real_os.O_DIRECTORY:
        return _Handle(path, None)
    file = path.disk.get(path.text)
    if file is None:
        if path.disk.full:
            raise OSError(errno.ENOSPC, "no space left on device")
        file = _File()
        path.disk.change((path.text, file))
    elif flags & real_os.O_TRUNC:
        file.content = b""
    return _Handle(path, file)


def _fsync(handle: _Handle) -> None:
    if handle.file is None:
        handle.path.point("before folder flush")
        handle.path.disk.flush_names()
    else:
        handle.path.point("before flush")
        handle.file.flushed = handle.file.content


def _lock(handle: _Handle, _: int) -> None:
    disk = handle.path.disk
    if disk.holder is not None and disk.holder.alive and disk.holder is not handle.path.inc:
        raise OSError(errno.EWOULDBLOCK, "locked")
    disk.holder = handle.path.inc


def _stat(path: DiskPath) -> SimpleNamespace:
    return SimpleNamespace(st_mtime_ns=path.disk.world.now * 1_000_000)


OS = SimpleNamespace(
    O_WRONLY=real_os.O_WRONLY, O_RDWR=real_os.O_RDWR, O_RDONLY=real_os.O_RDONLY,
    O_CREAT=real_os.O_CREAT, O_TRUNC=real_os.O_TRUNC, O_CLOEXEC=real_os.O_CLOEXEC,
    O_DIRECTORY=real_os.O_DIRECTORY, open=_open, fdopen=lambda handle, _="w": handle,
    fsync=_fsync, close=lambda _: None, stat=_stat,
)  # fmt: skip
"""In place of `os` in `node_agent.state`."""

FCNTL = SimpleNamespace(LOCK_EX=2, LOCK_NB=4, flock=_lock)
"""In place of `fcntl` there."""

__all__ = ["FCNTL", "OS", "Crash", "Disk", "DiskPath"]
