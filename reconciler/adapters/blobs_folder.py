"""Blobs in a folder: `sha256/ab/abcdef…`, and beside them `uploads/` for what is on its way.

Rules:
- A file under `sha256` is there whole and on the disk, or not at all: it was hashed, flushed and
  then renamed. What was hashed is marked before that, so that a crash in between repeats nothing.
- Uploads are not flushed before they are finished: one that a power cut damaged no longer hashes
  to its digest, and is sent again.
- One thread of one process is at an upload, also to drop it. What is renamed is the very file that
  was hashed, and a blob that is good is not touched by another upload of it.
- `claims/` has an empty file for each source that a blob was published as.
- The folder is its owner's alone.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from reconciler.adapters.blob_uploads import (
    PIECE_BYTES,
    Hashes,
    alone,
    already_finished,
    as_stored,
    checked_name,
    claim_of,
    flush_folder,
    hash_of,
    look_of,
    mismatch,
    no_such_blob,
    no_such_upload,
    read_mark,
    upload_busy,
    write_all,
    write_mark,
    wrong_offset,
)
from reconciler.artifact_ports import BlobPart
from reconciler.core.names import Digest


class FolderBlobs:
    """A BlobStore; several processes may share the folder."""

    def __init__(self, folder: Path) -> None:
        self._blobs = folder / "sha256"
        self._uploads = folder / "uploads"
        self._claims = folder / "claims"
        self._hashes = Hashes()
        with as_stored(folder):
            for one in (folder, self._blobs, self._uploads, self._claims):
                one.mkdir(mode=0o700, parents=True, exist_ok=True)

    def close(self) -> None:
        """Nothing is held open."""

    def size_bytes(self, digest: Digest) -> int | None:
        with as_stored(self._blobs):
            try:
                return self._place(digest).stat().st_size
            except FileNotFoundError:
                return None

    def read(self, digest: Digest, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        place = self._place(digest)
        with as_stored(place):
            try:
                descriptor = os.open(place, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                raise no_such_blob(digest) from None
        return _pieces(descriptor, place, start, end)

    def address(self, digest: Digest, ttl_s: float) -> str | None:  # noqa: ARG002
        return None

    def part(self, upload: str) -> BlobPart:
        place = self._part(upload)
        with as_stored(place):
            done = read_mark(_mark(place))
            if done is not None:
                return BlobPart(self.size_bytes(Digest.parse(done)) or _size(place))
            return BlobPart(_size(place))

    def append(self, upload: str, offset: int, pieces: Iterable[bytes]) -> BlobPart:
        place = self._part(upload)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        with as_stored(place), alone(_lock(place)):
            if _mark(place).exists():
                raise already_finished()
            descriptor = os.open(place, flags, 0o600)
            try:
                self._append(upload, descriptor, offset, pieces)
                return BlobPart(os.fstat(descriptor).st_size)
            finally:
                os.close(descriptor)

    def finish(self, upload: str, digest: Digest) -> int:
        place = self._part(upload)
        with as_stored(place), alone(_lock(place)):
            done = read_mark(_mark(place))
            if done is not None and done != str(digest):
                raise mismatch(digest, done, self.size_bytes(Digest.parse(done)) or 0)
            self._settle(upload, place, digest, hashed=done is not None)
        size_bytes = self.size_bytes(digest)
        if size_bytes is None:
            raise no_such_upload()
        return size_bytes

    def discard(self, upload: str) -> None:
        place = self._part(upload)
        with as_stored(place), alone(_lock(place)):
            self._hashes.drop(upload)
            # The lock goes last, and while it is held: who waits for it is told to come again, and
            # who comes after that finds nothing.
            for one in (place, _mark(place), _lock(place)):
                one.unlink(missing_ok=True)

    def claim(self, source: str, digest: Digest) -> None:
        place = self._claim(source, digest)
        with as_stored(place):
            place.parent.mkdir(mode=0o700, exist_ok=True)
            os.close(os.open(place, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
            flush_folder(place.parent)
            flush_folder(self._claims)

    def claimed(self, source: str, digest: Digest) -> bool:
        place = self._claim(source, digest)
        with as_stored(place):
            try:
                place.stat()
            except FileNotFoundError:
                return False
            return True

    def delete(self, digest: Digest) -> None:
        with as_stored(self._blobs):
            self._place(digest).unlink(missing_ok=True)

    def _append(self, upload: str, descriptor: int, offset: int, pieces: Iterable[bytes]) -> None:
        look = look_of(descriptor)
        kept = look[1]
        if kept != offset:
            raise wrong_offset(kept, offset)
        running = self._hashes.take(upload, look, empty=kept == 0)
        try:
            for piece in pieces:
                write_all(descriptor, piece, running)
        finally:
            after = look_of(descriptor)
            self._hashes.put(upload, running, after, after[1])

    def _settle(self, upload: str, place: Path, digest: Digest, *, hashed: bool) -> None:
        """Hashes the upload, marks it and gives it its name. `hashed`: it was marked before."""
        try:
            descriptor = os.open(place, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            if hashed:
                return  # All of it was done before.
            raise no_such_upload() from None
        try:
            if not hashed:
                self._check(upload, place, descriptor, digest)
                write_mark(_mark(place), str(digest))
            self._keep(place, descriptor, digest)
        finally:
            os.close(descriptor)

    def _check(self, upload: str, place: Path, descriptor: int, digest: Digest) -> None:
        """Hashed and on the disk; Refused, and dropped, where it is something else."""
        look = look_of(descriptor)
        running = self._hashes.take(upload, look, empty=False)
        found = running.text() if running is not None else hash_of(descriptor)
        if look_of(descriptor) != look:
            raise upload_busy()
        if found != str(digest):
            place.unlink()
            raise mismatch(digest, found, look[1])
        os.fchmod(descriptor, 0o400)
        os.fsync(descriptor)

    def _keep(self, part: Path, descriptor: int, digest: Digest) -> None:
        """Gives the file that was hashed its name, unless a good one has it already."""
        place = self._place(digest)
        if not place.parent.is_dir():
            place.parent.mkdir(mode=0o700, exist_ok=True)
            flush_folder(self._blobs)
        if not os.path.samestat(os.lstat(part), os.fstat(descriptor)):
            # Another file came to its name, past the lock: that one was never hashed.
            _mark(part).unlink(missing_ok=True)
            raise upload_busy()
        if place.exists() and hash_of(place) == str(digest):
            part.unlink()
            return
        part.replace(place)
        flush_folder(place.parent)

    def _claim(self, source: str, digest: Digest) -> Path:
        folder, name = claim_of(source, digest)
        return self._claims / folder / name

    def _place(self, digest: Digest) -> Path:
        hexadecimal = digest.value.removeprefix("sha256:")
        return self._blobs / hexadecimal[:2] / hexadecimal

    def _part(self, upload: str) -> Path:
        return self._uploads / checked_name(upload)


def _mark(part: Path) -> Path:
    return part.with_name(f"{part.name}.done")


def _lock(part: Path) -> Path:
    return part.with_name(f"{part.name}.lock")


def _size(place: Path) -> int:
    try:
        return place.stat().st_size
    except FileNotFoundError:
        return 0


def _pieces(descriptor: int, place: Path, start: int, end: int | None) -> Iterator[bytes]:
    """Takes over the descriptor."""
    try:
        while end is None or start < end:
            wanted = PIECE_BYTES if end is None else min(PIECE_BYTES, end - start)
            with as_stored(place):
                piece = os.pread(descriptor, wanted, start)
            if not piece:
                return
            start += len(piece)
            yield piece
    finally:
        os.close(descriptor)
