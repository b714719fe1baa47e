"""Reads a Git tree into SourceFiles, and again cheaply after a small commit.

Rules: bounded by `files_max`, `file_bytes_max`, `snapshot_bytes_max` and a depth. A folder that is
the same tree as at the last reading is taken over whole, a file that is the same blob is not read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import pygit2

from reconciler.core.source import FileKind, SourceFile
from reconciler.errors import Refused
from reconciler.settings import Settings

DOCUMENT_SUFFIXES = (".yaml", ".yml")
"""Files with other endings are listed, never loaded."""

DEPTH_MAX = 64
_TREE = 0o040000
_KINDS: dict[int, FileKind] = {0o120000: "symlink", 0o160000: "submodule"}


@dataclass(frozen=True)
class _Folder:
    """One tree as read: its own files, its folders by name, and all below flattened."""

    tree_id: str
    own: Mapping[str, SourceFile]
    folders: Mapping[str, _Folder]
    files: tuple[SourceFile, ...]
    trees: int
    size_bytes: int


_NOTHING = _Folder("", {}, {}, (), 0, 0)


class Budget:
    """Counts what a snapshot holds against the limits; Refused when it is too much."""

    def __init__(self, settings: Settings, where: str) -> None:
        self._settings = settings
        self._where = where
        self._entries = 0
        self._size_bytes = 0

    def take(self, entries: int, size_bytes: int) -> None:
        self._entries += entries
        self._size_bytes += size_bytes
        if self._entries > self._settings.files_max:
            self._refuse("too_many_files", f"more than {self._settings.files_max} files")
        if self._size_bytes > self._settings.snapshot_bytes_max:
            self._refuse(
                "too_many_bytes", f"more than {self._settings.snapshot_bytes_max} bytes of YAML"
            )

    def descend(self, depth: int) -> None:
        self.take(1, 0)
        if depth > DEPTH_MAX:
            self._refuse("too_deep", f"folders more than {DEPTH_MAX} deep")

    def _refuse(self, code: str, message: str) -> None:
        raise Refused(
            code, message, where=self._where, hint="keep the state repo for platform state alone"
        )


class TreeReader:
    """Lists the files of trees, remembering the last one. `blobs_read` counts the blobs loaded."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._last = _NOTHING
        self.blobs_read = 0

    def files(self, repository: Any, tree_id: str, where: str) -> tuple[SourceFile, ...]:
        """All files below a tree, sorted by path; Refused beyond the limits."""
        if tree_id != self._last.tree_id:
            walk = _Walk(repository, self._settings, Budget(self._settings, where))
            self._last = walk.folder("", tree_id, self._last, 0)
            self.blobs_read += walk.blobs_read
        return tuple(sorted(self._last.files, key=attrgetter("path")))


class _Walk:
    """One reading of one tree."""

    def __init__(self, repository: Any, settings: Settings, budget: Budget) -> None:
        self._repository = repository
        self._backends = list(repository.odb.backends)
        self._file_bytes_max = settings.file_bytes_max
        self._budget = budget
        self.blobs_read = 0

    def folder(self, prefix: str, tree_id: str, last: _Folder, depth: int) -> _Folder:
        if tree_id == last.tree_id:
            self._budget.take(last.trees + len(last.files), last.size_bytes)
            return last
        self._budget.descend(depth)
        own: dict[str, SourceFile] = {}
        folders: dict[str, _Folder] = {}
        for entry in self._repository[tree_id]:
            name = entry.raw_name.decode("utf-8", "backslashreplace")
            if entry.filemode == _TREE:
                before = last.folders.get(name, _NOTHING)
                below = self.folder(f"{prefix}{name}/", str(entry.id), before, depth + 1)
                folders[name] = below
            else:
                own[name] = self._file(prefix + name, entry, last.own.get(name))
        return _gathered(tree_id, own, folders)

    def _file(self, path: str, entry: Any, last: SourceFile | None) -> SourceFile:
        blob_id, kind = str(entry.id), _KINDS.get(entry.filemode, "file")
        was = "file" if last is None or last.kind == "too_large" else last.kind
        if last is not None and last.blob_id == blob_id and was == kind:
            self._budget.take(1, len(last.content))
            return last
        content = b""
        if kind == "file" and path.endswith(DOCUMENT_SUFFIXES):
            if self._size_bytes(entry) > self._file_bytes_max:
                kind = "too_large"
            else:
                content = self._repository[entry.id].data
                self.blobs_read += 1
        self._budget.take(1, len(content))
        return SourceFile(path, blob_id, content, kind)

    def _size_bytes(self, entry: Any) -> int:
        """From the object's header: a huge blob is not loaded to learn that it is huge."""
        for attempt in range(2):
            for backend in self._backends:
                try:
                    return int(backend.read_header(entry.id)[1])
                except KeyError:
                    if attempt == 0:
                        backend.refresh()
        raise KeyError(str(entry.id))


def _gathered(
    tree_id: str, own: Mapping[str, SourceFile], folders: Mapping[str, _Folder]
) -> _Folder:
    below = folders.values()
    return _Folder(
        tree_id,
        own,
        folders,
        (*own.values(), *(file for folder in below for file in folder.files)),
        1 + sum(folder.trees for folder in below),
        sum(len(file.content) for file in own.values()) + sum(f.size_bytes for f in below),
    )


def blob_id(content: bytes) -> str:
    """The id Git would give these bytes."""
    return str(pygit2.hash(content))
