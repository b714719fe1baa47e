"""Blobs in a bucket: `sha256/abcdef…`, and `uploads/…` for what is on its way.

Rules:
- An object under `sha256/` is there whole and hashed, or not at all: a large one is put together
  under `uploads/`, and copied, within the service, once it is known what it hashes to.
- The bytes that make up no whole part yet lie in a folder here, so that an upload goes on at any
  byte. Parts grow with their number: ten thousand are enough for the largest object.
- `claims/…` has an empty object for each source that a blob was published as.
- What the service has is its own word, asked again whenever something went wrong. What is here is
  the upload's end, and the name that the service gave it.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from reconciler.adapters.blob_uploads import (
    Hashes,
    Look,
    Running,
    alone,
    already_finished,
    as_stored,
    checked_name,
    claim_of,
    hash_of,
    look_of,
    mismatch,
    no_such_blob,
    no_such_upload,
    read_mark,
    write_all,
    write_mark,
    wrong_offset,
)
from reconciler.adapters.s3_client import Bucket, S3Key, S3Place, read_key
from reconciler.artifact_ports import BlobPart
from reconciler.core.names import Digest
from reconciler.errors import GpuaasError

__all__ = ["S3Blobs", "S3Key", "S3Place", "part_bytes", "read_key"]

_PARTS_MAX = 10_000
_TIER_PARTS = 1_250
_FIRST_PART_BYTES = 16 * 1024 * 1024
_UPLOADS_AT_ONCE = 4
_LOCK = "lock"
_WAITING_MAX = 2
"""Parts of one upload that wait to be sent: so much of it lies here at most, twice over."""


def part_bytes(number: int) -> int:
    """Size of the part with this number, from 1: twice as large every 1,250 parts, 5 TB in all."""
    return int(_FIRST_PART_BYTES << ((number - 1) // _TIER_PARTS))


@dataclass
class _Upload:
    """An upload as this process knows it. `number`: of the part that is being filled."""

    folder: Path
    upload_id: str = ""
    number: int = 1
    before_bytes: int = 0
    """Bytes of the parts before it."""
    joined_bytes: int | None = None
    """The service put it together already, and has so many bytes of it."""
    waiting: list[Future[None]] = field(default_factory=list)

    @property
    def tail(self) -> Path:
        return self.piece(self.number)

    def piece(self, number: int) -> Path:
        return self.folder / f"part-{number:05d}"

    @property
    def kept_bytes(self) -> int:
        if self.joined_bytes is not None:
            return self.joined_bytes
        return self.before_bytes + _size(self.tail)


class S3Blobs:
    """A BlobStore. `folder` holds what is not in the bucket yet, on the same host each time."""

    def __init__(self, place: S3Place, key: S3Key, folder: Path) -> None:
        self._bucket = Bucket(place, key)
        self._folder = folder / "uploads"
        self._hashes = Hashes()
        self._known: dict[str, _Upload] = {}
        self._guard = threading.Lock()
        self._sending = ThreadPoolExecutor(_UPLOADS_AT_ONCE, "gpuaas-s3")
        with as_stored(folder):
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def close(self) -> None:
        self._sending.shutdown(cancel_futures=True)
        self._bucket.close()

    def size_bytes(self, digest: Digest) -> int | None:
        return self._bucket.size_bytes(_key(digest))

    def read(self, digest: Digest, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        size_bytes = self.size_bytes(digest)
        if size_bytes is None:
            raise no_such_blob(digest)
        if start >= (size_bytes if end is None else min(end, size_bytes)):
            return iter(())
        found = self._bucket.open(_key(digest), start, end)
        if found is None:
            raise no_such_blob(digest)
        return found

    def address(self, digest: Digest, ttl_s: float) -> str | None:
        return self._bucket.address(_key(digest), ttl_s)

    def part(self, upload: str) -> BlobPart:
        folder = self._place(upload)
        with as_stored(folder):
            done = read_mark(folder / "done")
            if done is not None:
                return BlobPart(self.size_bytes(Digest.parse(done)) or 0)
            if not folder.is_dir():
                return BlobPart(0)
            with self._at(upload) as state:
                return BlobPart(state.kept_bytes)

    def append(self, upload: str, offset: int, pieces: Iterable[bytes]) -> BlobPart:
        with self._at(upload) as state:
            if state.joined_bytes is not None or (state.folder / "done").exists():
                raise already_finished()
            kept = state.kept_bytes
            if kept != offset:
                raise wrong_offset(kept, offset)
            self._append(upload, state, kept, pieces)
            return BlobPart(state.kept_bytes)

    def finish(self, upload: str, digest: Digest) -> int:
        folder = self._place(upload)
        if not folder.is_dir():
            raise no_such_upload()
        with self._at(upload) as state:
            done = read_mark(folder / "done")
            if done is None:
                self._settle(upload, state, digest)
            elif done != str(digest):
                raise mismatch(digest, done, state.kept_bytes)
            self._publish(upload, digest)
            self._empty(state.folder)
            self._forget(upload, state)
        size_bytes = self.size_bytes(digest)
        if size_bytes is None:
            raise no_such_upload()
        return size_bytes

    def discard(self, upload: str) -> None:
        folder = self._place(upload)
        if not folder.is_dir():
            return
        with self._at(upload) as state:
            self._drop(upload, state)

    def claim(self, source: str, digest: Digest) -> None:
        self._bucket.put(_claim_key(source, digest), io.BytesIO())

    def claimed(self, source: str, digest: Digest) -> bool:
        return self._bucket.size_bytes(_claim_key(source, digest)) is not None

    def delete(self, digest: Digest) -> None:
        self._bucket.delete(_key(digest))

    # --- uploads ---------------------------------------------------------------------------------

    def _append(self, upload: str, state: _Upload, kept: int, pieces: Iterable[bytes]) -> None:
        if not kept:
            state.tail.touch(0o600)
        running = self._hashes.take(upload, _look(state), empty=kept == 0)
        try:
            for piece in pieces:
                self._add(upload, state, memoryview(piece), running)
        finally:
            self._hashes.put(upload, running, _look(state), state.kept_bytes)

    def _add(self, upload: str, state: _Upload, piece: memoryview, running: Running | None) -> None:
        while piece:
            room = part_bytes(state.number) - _size(state.tail)
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
            descriptor = os.open(state.tail, flags, 0o600)
            try:
                write_all(descriptor, piece[:room], running)
            finally:
                os.close(descriptor)
            if len(piece) >= room:
                self._send_tail(upload, state)
            piece = piece[room:]

    def _send_tail(self, upload: str, state: _Upload) -> None:
        """A part that is whole goes on its way; the next one begins."""
        if not state.upload_id:
            state.upload_id = self._bucket.begin(_upload_key(upload))
            write_mark(state.folder / "state", json.dumps({"upload_id": state.upload_id}))
        sent = self._sending.submit(self._send, upload, state, state.number)
        state.waiting.append(sent)
        state.before_bytes += part_bytes(state.number)
        state.number += 1
        while len(state.waiting) > _WAITING_MAX:
            state.waiting.pop(0).result()

    def _send(self, upload: str, state: _Upload, number: int) -> None:
        place = state.piece(number)
        with suppress(FileNotFoundError), place.open("rb") as file:
            self._bucket.put_part(_upload_key(upload), state.upload_id, number, file)
            # The upload may have been dropped and begun anew meanwhile: then that is another file.
            if os.path.samestat(place.stat(), os.fstat(file.fileno())):
                place.unlink()

    def _settle(self, upload: str, state: _Upload, digest: Digest) -> None:
        """Hashed, and marked as that; Refused, and dropped, where it is something else.

        A blob of one part stays here until then, and is marked when it is in its place.
        """
        while state.waiting:
            state.waiting.pop(0).result()
        size_bytes = state.kept_bytes
        if state.upload_id:
            running = self._hashes.take(upload, _look(state), empty=False)
            as_sent = state.joined_bytes is None and self._join(upload, state)
            known = running is not None and as_sent
            found = running.text() if running and known else self._hash_of_joined(upload)
        else:
            found = self._put_small(state, digest)
        if found != str(digest):
            self._drop(upload, state)
            raise mismatch(digest, found, size_bytes)
        write_mark(state.folder / "done", str(digest))

    def _put_small(self, state: _Upload, digest: Digest) -> str:
        """What it hashes to; where that is right, the very file that was hashed is in its place."""
        try:
            file = state.tail.open("rb")
        except FileNotFoundError:
            raise no_such_upload() from None
        with file:
            found = hash_of(file.fileno())
            if found == str(digest):
                file.seek(0)
                self._bucket.put(_key(digest), file)
        return found

    def _join(self, upload: str, state: _Upload) -> bool:
        """Whether it was put together of the very parts that were sent from here."""
        key, wanted = _upload_key(upload), state.kept_bytes
        last = _size(state.tail)
        if last:
            with state.tail.open("rb") as file:
                self._bucket.put_part(key, state.upload_id, state.number, file)
        parts = self._bucket.parts(key, state.upload_id)
        if not parts:
            raise no_such_upload()
        self._bucket.complete(key, state.upload_id, parts)
        state.joined_bytes = self._bucket.size_bytes(key) or 0
        sent = [(number, part_bytes(number)) for number in range(1, state.number)]
        sent += [(state.number, last)] if last else []
        there = [(one.number, one.size_bytes) for one in parts]
        return there == sent and state.joined_bytes == wanted

    def _hash_of_joined(self, upload: str) -> str:
        running = hashlib.sha256()
        for piece in self._bucket.open(_upload_key(upload), 0, None) or ():
            running.update(piece)
        return f"sha256:{running.hexdigest()}"

    def _publish(self, upload: str, digest: Digest) -> None:
        """From `uploads/` to its place; again after a crash, and then what is done is done."""
        key = _upload_key(upload)
        if self._bucket.size_bytes(key) is not None:
            self._bucket.copy(key, _key(digest))
            self._bucket.delete(key)

    def _drop(self, upload: str, state: _Upload) -> None:
        self._hashes.drop(upload)
        key = _upload_key(upload)
        if state.upload_id:
            self._bucket.abort(key, state.upload_id)
            self._bucket.delete(key)
        self._known.pop(upload, None)
        # The lock goes last, and while it is held: who comes meanwhile begins nothing in between.
        for place in state.folder.iterdir():
            if place.name != _LOCK:
                place.unlink(missing_ok=True)
        (state.folder / _LOCK).unlink(missing_ok=True)
        with suppress(OSError):
            state.folder.rmdir()

    def _empty(self, folder: Path) -> None:
        """What is here of an upload that is kept in the bucket; its mark stays."""
        for place in folder.glob("part-*"):
            place.unlink(missing_ok=True)

    # --- what is known of an upload --------------------------------------------------------------

    @contextmanager
    def _at(self, upload: str) -> Iterator[_Upload]:
        """The upload, for one thread of one process. After any failure it is looked at anew."""
        folder = self._place(upload)
        with as_stored(folder):
            folder.mkdir(mode=0o700, exist_ok=True)
            with alone(folder / _LOCK):
                state = self._state(upload, folder)
                try:
                    yield state
                except (GpuaasError, OSError):
                    self._forget(upload, state)
                    raise

    def _state(self, upload: str, folder: Path) -> _Upload:
        with self._guard:
            known = self._known.get(upload)
        # Another process may have gone on with it: then the files are not as they were.
        if known is None or known.upload_id != _upload_id(folder) or _beyond(known):
            known = self._look(upload, folder)
            with self._guard:
                self._known[upload] = known
        return known

    def _forget(self, upload: str, state: _Upload) -> None:
        for sent in state.waiting:
            sent.cancel() or sent.exception()
        with self._guard:
            self._known.pop(upload, None)

    def _look(self, upload: str, folder: Path) -> _Upload:
        """From the files here and what the service says of its parts."""
        state = _Upload(folder, _upload_id(folder))
        if not state.upload_id:
            return state
        key = _upload_key(upload)
        # First what lies here, then what the service has: a part is removed here after that.
        here = {place.name: _size(place) for place in folder.glob("part-*")}
        parts = self._bucket.parts(key, state.upload_id)
        if parts is None:
            state.joined_bytes = self._bucket.size_bytes(key)
            if state.joined_bytes is None and not (folder / "done").exists():
                # The service dropped it, as services do with what is old: it begins anew.
                self._empty(folder)
                (folder / "state").unlink()
                return _Upload(folder)
            return state
        there = {one.number: one.size_bytes for one in parts}
        while state.number < _PARTS_MAX:
            whole = part_bytes(state.number)
            if there.get(state.number) == whole:
                state.piece(state.number).unlink(missing_ok=True)
                state.before_bytes += whole
                state.number += 1
            elif here.get(state.tail.name) == whole:
                self._send_tail(upload, state)
            else:
                break
        return state

    def _place(self, upload: str) -> Path:
        return self._folder / checked_name(upload)


def _key(digest: Digest) -> str:
    return f"sha256/{digest.value.removeprefix('sha256:')}"


def _claim_key(source: str, digest: Digest) -> str:
    return "/".join(("claims", *claim_of(source, digest)))


def _upload_key(upload: str) -> str:
    return f"uploads/{upload}"


def _upload_id(folder: Path) -> str:
    found = read_mark(folder / "state")
    return str(json.loads(found)["upload_id"]) if found else ""


def _beyond(state: _Upload) -> bool:
    return state.piece(state.number + 1).exists()


def _look(state: _Upload) -> Look:
    """Of the part that is being filled, and of what it is a part of."""
    try:
        descriptor = os.open(state.tail, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return (state.upload_id, state.number)
    try:
        return (state.upload_id, state.number, *look_of(descriptor))
    finally:
        os.close(descriptor)


def _size(place: Path) -> int:
    try:
        return place.stat().st_size
    except FileNotFoundError:
        return 0
