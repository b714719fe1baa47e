"""A folder on disk as a Snapshot, for checking what is not committed yet.

Rules: reads only; symbolic links are listed, never followed; `.git` is left out, and so is what Git
would not keep (neither file, folder nor link). The limits are those of a committed snapshot.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from operator import attrgetter
from pathlib import Path

from reconciler.adapters.git_tree import DOCUMENT_SUFFIXES, Budget, blob_id
from reconciler.core.names import Revision
from reconciler.core.source import FileKind, Snapshot, SourceFile
from reconciler.errors import Refused
from reconciler.settings import Settings

UNCOMMITTED = Revision("0" * 40)
"""The revision of files that are not committed, as Git itself writes it."""


def snapshot_of_directory(path: Path, settings: Settings) -> Snapshot:
    """All files below `path`; a folder with a `.git` of its own is a submodule.

    Only .yaml and .yml files have content. Refused when `path` is no folder, beyond the limits, or
    where something cannot be read: half a folder would look like removals.
    """
    budget = Budget(settings, str(path))
    try:
        files = sorted(_files(path, "", settings, budget, 0), key=attrgetter("path"))
    except NotADirectoryError:
        raise Refused("not_a_folder", "not a folder", where=str(path)) from None
    except OSError as error:
        raise Refused(
            "unreadable", f"{error.strerror}", where=str(error.filename or path)
        ) from None
    return Snapshot(UNCOMMITTED, tuple(files), "", "", 0)


def _files(
    folder: Path, prefix: str, settings: Settings, budget: Budget, depth: int
) -> Iterator[SourceFile]:
    budget.descend(depth)
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name == ".git":
                continue
            path = prefix + os.fsencode(entry.name).decode("utf-8", "backslashreplace")
            if entry.is_symlink():
                budget.take(1, 0)
                yield SourceFile(path, "", b"", "symlink")
            elif not entry.is_dir(follow_symlinks=False):
                yield from _file(entry.path, path, settings, budget)
            elif os.path.lexists(os.path.join(entry.path, ".git")):
                budget.take(1, 0)
                yield SourceFile(path, "", b"", "submodule")
            else:
                yield from _files(Path(entry.path), path + "/", settings, budget, depth + 1)


def _file(place: str, path: str, settings: Settings, budget: Budget) -> Iterator[SourceFile]:
    if not path.endswith(DOCUMENT_SUFFIXES):
        budget.take(1, 0)
        yield SourceFile(path, "", b"")
        return
    # NONBLOCK: opening a named pipe would wait for a writer. NOFOLLOW: it may have become a link.
    descriptor = os.open(place, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as handle:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return
        content = handle.read(settings.file_bytes_max + 1)
    kind: FileKind = "file" if len(content) <= settings.file_bytes_max else "too_large"
    kept = content if kind == "file" else b""
    budget.take(1, len(kept))
    yield SourceFile(path, blob_id(content) if kind == "file" else "", kept, kind)
