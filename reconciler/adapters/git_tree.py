"""Reads a Git tree into SourceFiles, and again cheaply after a small commit.

Rules: bounded by `files_max`, `file_bytes_max`, `snapshot_bytes_max` and a depth. A folder that is
the same tree as at the last reading is taken over whole, a file that is the same blob is not read.
Names and modes are those of the tree's own bytes, read as `git_chain` reads them: what one of the
two called by another name, or passed over, would be accepted without having been judged.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

from reconciler.adapters.git_raw import Entry, EntryKind, entry_kind, path_name, tree_entries
from reconciler.adapters.tree_limits import DOCUMENT_SUFFIXES, Budget, TreeLimits
from reconciler.core.source import FileKind, SourceFile
from reconciler.errors import Refused

if TYPE_CHECKING:
    from reconciler.settings import Settings

_TREE, _BLOB = 2, 3
# Nobody checks out what has an odd mode, any more than a submodule.
_KINDS: Mapping[EntryKind, FileKind] = {
    "file": "file",
    "symlink": "symlink",
    "submodule": "submodule",
    "odd": "submodule",
}


@dataclass(frozen=True)
class _Folder:
    """One tree as read: its own files, its folders by name, and all below, sorted by path."""

    tree_id: str
    own: Mapping[str, SourceFile]
    folders: Mapping[str, _Folder]
    files: tuple[SourceFile, ...]
    trees: int
    size_bytes: int


_NOTHING = _Folder("", {}, {}, (), 0, 0)


def read_tree(repository: Any, tree_id: str) -> tuple[Entry, ...]:
    """What a tree holds; Refused("git_bad_objects") for one that can be read in several ways."""
    kind, raw = repository.read(tree_id)
    if kind != _TREE:
        raise ValueError(f"{tree_id} is not a folder")
    entries = tree_entries(raw)
    if entries is None:
        raise Refused(
            "git_bad_objects",
            f"the tree {tree_id} can be read in several ways",
            hint="git fsck shows it; rewrite the commits that hold it",
        )
    return entries


def read_blob(repository: Any, blob_id: str) -> bytes:
    """The content of a file."""
    kind, content = repository.read(blob_id)
    if kind != _BLOB:
        raise ValueError(f"{blob_id} is not a file")
    return bytes(content)


class TreeReader:
    """Lists the files of trees, remembering the last one. `blobs_read` counts the blobs loaded."""

    def __init__(self, limits: Settings | TreeLimits) -> None:
        self._limits = limits
        self._last = _NOTHING
        self.blobs_read = 0

    def files(self, repository: Any, tree_id: str, where: str) -> tuple[SourceFile, ...]:
        """All files below a tree, sorted by path; Refused beyond the limits."""
        if tree_id != self._last.tree_id:
            walk = _Walk(repository, self._limits, Budget(self._limits, where))
            self._last = walk.folder("", tree_id, self._last, 0)
            self.blobs_read += walk.blobs_read
        return self._last.files


class _Walk:
    """One reading of one tree."""

    def __init__(self, repository: Any, limits: Settings | TreeLimits, budget: Budget) -> None:
        self._repository = repository
        self._backends = list(repository.odb.backends)
        self._file_bytes_max = limits.file_bytes_max
        self._budget = budget
        self.blobs_read = 0

    def folder(self, prefix: str, tree_id: str, last: _Folder, depth: int) -> _Folder:
        if tree_id == last.tree_id:
            self._budget.take(last.trees + len(last.files), last.size_bytes)
            return last
        self._budget.descend(depth)
        own: dict[str, SourceFile] = {}
        folders: dict[str, _Folder] = {}
        for mode, raw_name, raw_id in read_tree(self._repository, tree_id):
            name, entry_id, kind = path_name(raw_name), raw_id.hex(), entry_kind(mode)
            if kind == "folder":
                before = last.folders.get(name, _NOTHING)
                below = self.folder(f"{prefix}{name}/", entry_id, before, depth + 1)
                folders[name] = below
            else:
                was = last.own.get(name)
                own[name] = self._file(prefix + name, entry_id, _KINDS[kind], was)
        return _gathered(tree_id, own, folders)

    def _file(self, path: str, blob_id: str, kind: FileKind, last: SourceFile | None) -> SourceFile:
        was = "file" if last is None or last.kind == "too_large" else last.kind
        if last is not None and last.blob_id == blob_id and was == kind:
            self._budget.take(1, len(last.content))
            return last
        content = b""
        if kind == "file" and path.endswith(DOCUMENT_SUFFIXES):
            if self._size_bytes(blob_id) > self._file_bytes_max:
                kind = "too_large"
            else:
                content = read_blob(self._repository, blob_id)
                self.blobs_read += 1
        self._budget.take(1, len(content))
        return SourceFile(path, blob_id, content, kind)

    def _size_bytes(self, blob_id: str) -> int:
        """From the object's header: a huge blob is not loaded to learn that it is huge."""
        for attempt in range(2):
            for backend in self._backends:
                try:
                    return int(backend.read_header(blob_id)[1])
                except KeyError:
                    if attempt == 0:
                        backend.refresh()
        raise KeyError(blob_id)


def _gathered(
    tree_id: str, own: Mapping[str, SourceFile], folders: Mapping[str, _Folder]
) -> _Folder:
    below = folders.values()
    parts: dict[str, tuple[SourceFile, ...]] = {name: (file,) for name, file in own.items()}
    # With its slash, a folder's name sorts as the paths of all that is in it.
    parts |= {f"{name}/": folder.files for name, folder in folders.items()}
    return _Folder(
        tree_id,
        own,
        folders,
        tuple(chain.from_iterable(parts[name] for name in sorted(parts))),
        1 + sum(folder.trees for folder in below),
        sum(len(file.content) for file in own.values()) + sum(f.size_bytes for f in below),
    )
