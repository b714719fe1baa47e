"""A folder on disk as a Snapshot, for checking what is not committed yet.

Rules: reads only; symbolic links are listed, never followed; `.git` is left out, and so is what Git
would not keep (neither file, folder nor link). The limits are those of a committed snapshot.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING

from reconciler.adapters.tree_limits import DOCUMENT_SUFFIXES, Budget, TreeLimits, blob_id
from reconciler.core.names import Revision
from reconciler.core.source import FileKind, Snapshot, SourceFile
from reconciler.errors import Refused

if TYPE_CHECKING:
    from reconciler.settings import Settings

UNCOMMITTED = Revision("0" * 40)
"""The revision of files that are not committed, as Git itself writes it."""


def snapshot_of_directory(path: Path, settings: Settings) -> Snapshot:
    """The folder at `path` as it is; see `files_of_directory`."""
    return snapshot_of(files_of_directory(path, TreeLimits.of(settings)))


def snapshot_of(files: Iterable[SourceFile]) -> Snapshot:
    """Files of a folder, sorted by path, as what is not committed yet."""
    return Snapshot(UNCOMMITTED, tuple(files), "", "", 0)


def files_of_directory(path: Path, limits: TreeLimits) -> list[SourceFile]:
    """All files below `path`, sorted; a folder with a `.git` of its own is a submodule.

    Only .yaml and .yml files have content. Refused when `path` is no folder, beyond the limits, or
    where something cannot be read: half a folder would look like removals.
    """
    budget = Budget(limits, str(path))
    try:
        return sorted(_files(os.fspath(path), "", limits, budget, 0), key=attrgetter("path"))
    except NotADirectoryError:
        raise Refused("not_a_folder", "not a folder", where=str(path)) from None
    except OSError as error:
        raise Refused(
            "unreadable", f"{error.strerror}", where=str(error.filename or path)
        ) from None


def _files(
    folder: str, prefix: str, limits: TreeLimits, budget: Budget, depth: int
) -> Iterator[SourceFile]:
    budget.descend(depth)
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name == ".git":
                continue
            path = prefix + _readable(entry.name)
            if entry.is_symlink():
                budget.take(1, 0)
                yield SourceFile(path, "", b"", "symlink")
            elif not entry.is_dir(follow_symlinks=False):
                yield from _file(entry.path, path, limits, budget)
            elif os.path.lexists(os.path.join(entry.path, ".git")):
                budget.take(1, 0)
                yield SourceFile(path, "", b"", "submodule")
            else:
                yield from _files(entry.path, path + "/", limits, budget, depth + 1)


def _readable(name: str) -> str:
    if name.isascii():
        return name
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _file(place: str, path: str, limits: TreeLimits, budget: Budget) -> Iterator[SourceFile]:
    if not path.endswith(DOCUMENT_SUFFIXES):
        budget.take(1, 0)
        yield SourceFile(path, "", b"")
        return
    content = _read(place, limits.file_bytes_max + 1)
    if content is None:
        return
    kind: FileKind = "file" if len(content) <= limits.file_bytes_max else "too_large"
    kept = content if kind == "file" else b""
    budget.take(1, len(kept))
    yield SourceFile(path, blob_id(content) if kind == "file" else "", kept, kind)


def _read(place: str, size_bytes_max: int) -> bytes | None:
    """Up to so many bytes of a file; None for a pipe, a device, a socket."""
    # NONBLOCK: opening a named pipe would wait for a writer. NOFOLLOW: it may have become a link.
    descriptor = os.open(place, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            return None
        wanted = min(status.st_size + 1, size_bytes_max)
        content = os.read(descriptor, wanted)
        if len(content) < status.st_size or len(content) == wanted:
            content = _read_on(descriptor, content, size_bytes_max)
        return content
    finally:
        os.close(descriptor)


def _read_on(descriptor: int, content: bytes, size_bytes_max: int) -> bytes:
    """The rest of a file that is growing, or comes in pieces."""
    pieces, size_bytes = [content], len(content)
    while size_bytes < size_bytes_max:
        piece = os.read(descriptor, min(size_bytes_max - size_bytes, 1024 * 1024))
        if not piece:
            break
        pieces.append(piece)
        size_bytes += len(piece)
    return b"".join(pieces)
