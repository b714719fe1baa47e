"""A revision of the state repo as bytes, before anything is believed about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from reconciler.core.names import Revision

FileKind = Literal["file", "symlink", "submodule", "too_large"]


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
