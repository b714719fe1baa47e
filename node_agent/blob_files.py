"""The files of the blob cache: content under its digest, parts of it, and what is known of each.

Rules:
- `<hex>` was hashed, byte by byte, before it got that name. `<hex>.part` was not, and is never used
  for anything but to go on from.
- `<hex>.stamp` says what the file looked like to the kernel when it was hashed; nobody changes a
  file without changing that. One that does not fit its stamp is as good as not hashed. When the
  stamp was touched last is when the blob was used last.
- `<hex>.from` lists the sources that the control plane gave it as: what one project may have by its
  name is not another's by its digest.
- The folder is the agent's own (0700), a whole blob can be read by all (0444): who gets to see it
  is decided by whom it is mounted for.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from node_agent.blob_room import Kept
from node_agent.engines.base import EngineFailure
from node_agent.wire import FailureReason, Workload

BLOBS_FOLDER = "blobs"
"""In the agent's state folder."""
CHUNK_BYTES = 1024 * 1024
_HEX = re.compile(r"[0-9a-f]{64}")
_PART, _STAMP, _FROM = ".part", ".stamp", ".from"


def blob_path(folder: Path, digest: str) -> Path:
    """Where the content of `digest` is in the cache in `folder`, once it is there."""
    return folder / "sha256" / digest.removeprefix("sha256:")


def blob_paths(folder: Path | None, workload: Workload) -> Mapping[str, Path]:
    """Where the blobs of a workload are, by the names it knows them by; `folder`: of the cache."""
    if folder is None and workload.blobs:
        raise EngineFailure(FailureReason.BLOB_UNAVAILABLE, "this agent keeps no blobs")
    where = (folder or Path()).absolute()
    return {blob.name: blob_path(where, blob.digest) for blob in workload.blobs}


class BlobFiles:
    """Those under `folder`, for one process. Raises OSError, and nothing else."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files = folder / "sha256"

    @property
    def folder(self) -> Path:
        """Made when it is not there."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._files.mkdir(mode=0o700, exist_ok=True)
        return self._folder

    def path(self, digest: str) -> Path:
        return blob_path(self._folder, digest)

    def is_there(self, digest: str) -> bool:
        """Whether something has its name, hashed as it is now or not."""
        return os.path.lexists(self.path(digest))

    def is_intact(self, digest: str) -> bool:
        """Whether it is there, and nobody changed it since it was hashed."""
        seen = _looks(self.path(digest))
        return seen is not None and seen == _read(_beside(self.path(digest), _STAMP))

    def size_bytes(self, digest: str) -> int:
        """Of what has its name; 0 when nothing has."""
        return _size(self.path(digest))

    def part_bytes(self, digest: str) -> int:
        return _size(_beside(self.path(digest), _PART))

    def open_part(self, digest: str) -> IO[bytes]:
        """To be read, and then written on from its end. Nothing else has it open."""
        _ = self.folder
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        return os.fdopen(os.open(_beside(self.path(digest), _PART), flags, 0o600), "r+b")

    def keep(self, digest: str, part: IO[bytes]) -> None:
        """Gives a part whose bytes were all hashed its name; on disk when it returns."""
        part.flush()
        os.fchmod(part.fileno(), 0o444)
        os.fsync(part.fileno())
        path = self.path(digest)
        _beside(path, _PART).rename(path)
        self.stamp(digest)
        _flush(self._files)

    def stamp(self, digest: str) -> None:
        """Notes that it was hashed as it is now."""
        path = self.path(digest)
        _write(_beside(path, _STAMP), _looks(path))

    def was_given_as(self, digest: str, source: str) -> bool:
        return source in self._sources(digest)

    def note_source(self, digest: str, source: str) -> None:
        sources = sorted({*self._sources(digest), source})
        _write(_beside(self.path(digest), _FROM), sources)

    def _sources(self, digest: str) -> list[str]:
        found = _read(_beside(self.path(digest), _FROM))
        return [one for one in found if isinstance(one, str)] if isinstance(found, list) else []

    def note_use(self, digest: str) -> None:
        os.utime(_beside(self.path(digest), _STAMP))

    def hashes_right(self, digest: str, go_on: Callable[[], None]) -> bool:
        """Reads all of it; `go_on` is called now and then, and may raise."""
        hashed = hashlib.sha256()
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            handle = os.open(self.path(digest), flags)
        except OSError:
            return False
        with os.fdopen(handle, "rb") as file:
            while piece := file.read(CHUNK_BYTES):
                go_on()
                hashed.update(piece)
        return f"sha256:{hashed.hexdigest()}" == digest

    def remove(self, digest: str) -> None:
        """Blob, part and what is known of it. What has it open or mounted keeps it."""
        path = self.path(digest)
        known = _beside(path, _STAMP), _beside(path, _FROM)
        for one in (*known, path, _beside(path, _PART)):
            one.unlink(missing_ok=True)

    def drop_part(self, digest: str) -> None:
        _beside(self.path(digest), _PART).unlink(missing_ok=True)

    def kept(self) -> tuple[Kept, ...]:
        """Everything that takes room, by digest; parts count as what they are part of."""
        found: dict[str, tuple[int, int]] = {}
        for name, seen in self._entries():
            digest = f"sha256:{name[:64]}"
            bytes_before, used_before = found.get(digest, (0, 0))
            # Who else it was given to is no use of it.
            used_ms = 0 if name.endswith(_FROM) else seen.st_mtime_ns // 1_000_000
            found[digest] = (bytes_before + seen.st_size, max(used_before, used_ms))
        return tuple(Kept(digest, *found[digest]) for digest in sorted(found))

    def whole(self) -> tuple[str, ...]:
        """Digests that something has the name of, sorted."""
        return tuple(
            sorted(f"sha256:{name}" for name, _ in self._entries() if _HEX.fullmatch(name))
        )

    def _entries(self) -> Iterator[tuple[str, os.stat_result]]:
        try:
            listed = list(os.scandir(self._files))
        except FileNotFoundError:
            return
        for entry in listed:
            if _HEX.match(entry.name) is None:
                continue
            try:
                yield entry.name, entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _size(path: Path) -> int:
    try:
        return path.lstat().st_size
    except FileNotFoundError:
        return 0


def _looks(path: Path) -> dict[str, int] | None:
    """What can't stay the same when content changes; None when it is no plain file."""
    try:
        seen = path.lstat()
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(seen.st_mode):
        return None
    return {
        "inode": seen.st_ino,
        "size_bytes": seen.st_size,
        "mtime_ns": seen.st_mtime_ns,
        "ctime_ns": seen.st_ctime_ns,
    }


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None


def _write(path: Path, content: object) -> None:
    temporary = _beside(path, ".tmp")
    temporary.write_text(json.dumps(content))
    temporary.rename(path)


def _flush(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
