"""What is read of a state repo, from Git or from disk: which files, and how many bytes at most.

Rules: knows no Git library and loads no settings, so that a check of files starts soon.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha1
from typing import TYPE_CHECKING

from reconciler.errors import Refused

if TYPE_CHECKING:
    from reconciler.settings import Settings

DOCUMENT_SUFFIXES = (".yaml", ".yml")
"""Files with other endings are listed, never loaded."""

DEPTH_MAX = 64


@dataclass(frozen=True)
class TreeLimits:
    """The limits of `Settings` on what is read, by default, for who begins before it is loaded."""

    file_bytes_max: int = 1024 * 1024
    files_max: int = 200_000
    snapshot_bytes_max: int = 512 * 1024 * 1024

    @classmethod
    def of(cls, settings: Settings) -> TreeLimits:
        return cls(settings.file_bytes_max, settings.files_max, settings.snapshot_bytes_max)


class Budget:
    """Counts what a snapshot holds against the limits; Refused when it is too much."""

    def __init__(self, limits: Settings | TreeLimits, where: str) -> None:
        self._limits = limits
        self._where = where
        self._entries = 0
        self._size_bytes = 0

    def take(self, entries: int, size_bytes: int) -> None:
        self._entries += entries
        self._size_bytes += size_bytes
        if self._entries > self._limits.files_max:
            self._refuse("too_many_files", f"more than {self._limits.files_max} files")
        if self._size_bytes > self._limits.snapshot_bytes_max:
            self._refuse(
                "too_many_bytes", f"more than {self._limits.snapshot_bytes_max} bytes of YAML"
            )

    def descend(self, depth: int) -> None:
        self.take(1, 0)
        if depth > DEPTH_MAX:
            self._refuse("too_deep", f"folders more than {DEPTH_MAX} deep")

    def _refuse(self, code: str, message: str) -> None:
        raise Refused(
            code, message, where=self._where, hint="keep the state repo for platform state alone"
        )


def blob_id(content: bytes) -> str:
    """The id Git gives these bytes, as a name and not as a proof."""
    return sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
