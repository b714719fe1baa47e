"""A revision of the state repo as bytes, before anything is believed about it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from reconciler.core.names import Revision

FileKind = Literal["file", "symlink", "submodule", "too_large"]
_PORTION_FILES = 256
_PORTION_BYTES = 256 * 1024


@dataclass(frozen=True)
class SourceFile:
    """One file of a revision. `kind` says what Git stores there; only `file` has content."""

    path: str
    blob_id: str
    content: bytes
    kind: FileKind = "file"


@dataclass(frozen=True)
class Snapshot:
    """A revision of the state repo, whole. Files are sorted by path."""

    revision: Revision
    files: tuple[SourceFile, ...]
    author: str
    subject: str
    committed_at_ms: int


def portions(files: Iterable[SourceFile]) -> Iterator[list[SourceFile]]:
    """Files in their order, some at a time: few enough to hand on soon."""
    portion: list[SourceFile] = []
    size_bytes = 0
    for file in files:
        portion.append(file)
        size_bytes += len(file.content)
        if len(portion) >= _PORTION_FILES or size_bytes >= _PORTION_BYTES:
            yield portion
            portion, size_bytes = [], 0
    if portion:
        yield portion
