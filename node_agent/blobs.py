"""The node's cache of blobs: weights and tarballs that workloads read, kept by their digest.

Rules:
- Nothing is used before every byte of it was hashed, and nothing that was changed since.
- One download for each digest, however many ask for it; what was begun goes on where it ended,
  also after the agent was killed. Who is called off leaves what there is for the next.
- A quota bounds the cache, and the disk keeps some room for others. `blob_room` says what goes, and
  it goes piece by piece as bytes come: nobody clears the cache by announcing a large blob.
- A blob that is there as one source is asked for before it is used as another: the control plane
  says who may have it.
- Every failure leaves as `EngineFailure`, with `blob_unavailable`, `disk_full` or, where the bytes
  are others than the digest says, `digest_mismatch`.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Protocol

import structlog

from node_agent.artifact_wire import BlobSeen
from node_agent.blob_files import CHUNK_BYTES, BlobFiles
from node_agent.blob_room import Kept, Needs, NoRoom, Room, room_left, to_evict
from node_agent.engines.base import DISK_FULL_NUMBERS, Cancelled, EngineFailure
from node_agent.link import Away
from node_agent.wire import FailureReason, Workload

QUOTA_SHARE = 0.5
"""Of the disk that the cache is on, where nobody says how much it may take."""
FREE_SHARE = 0.02
"""Of that disk, left free for others."""
WAIT_S = 0.1
ROOM_AHEAD_BYTES = 64 * 1024 * 1024
"""Written at most before room is looked at again, where there is plenty."""
SEEN_MAX = 500
"""Blobs in one report."""
ALTERED = "altered: its file was changed since it was hashed"
_FROM_ZERO = frozenset({"wrong_offset", "http_416"})
_FINAL = frozenset({"no_such_blob", "blob_not_for_node"})


@dataclass(frozen=True)
class BlobAnswer:
    """A blob from the offset that was asked for to its end; `size_bytes` is that of all of it."""

    size_bytes: int
    pieces: Iterable[bytes]


class BlobSource(Protocol):
    """Where blobs come from."""

    def open(self, source: str, digest: str, offset: int) -> AbstractContextManager[BlobAnswer]:
        """Raises Away, then and while it is read. What it gives is not believed."""
        ...


class BlobProvider(Protocol):
    """Who puts the blobs of workloads in place. Every method may raise `EngineFailure`."""

    def provide(self, workload: Workload, called_off: threading.Event) -> None:
        """Returns once all are there, hashed. Raises `Cancelled` when called off."""
        ...

    def check(self, workload: Workload) -> None:
        """Raises unless all are there, as they were hashed. Takes no time."""
        ...


@dataclass
class _Place:
    """Who is at one digest, and how the last try ended."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    tries: int = 0
    failure: EngineFailure | None = None
    at_it: bool = False
    promised: bool = False
    bytes_done: int = 0
    size_bytes: int | None = None
    error: str = ""
    final: bool = False

    @property
    def missing_bytes(self) -> int:
        return max(0, (self.size_bytes or 0) - self.bytes_done)


class _Trouble(Exception):
    """Why a blob is not there. `final`: the same again can't help."""

    def __init__(self, code: str, message: str, reason: FailureReason, *, final: bool) -> None:
        super().__init__(f"{code}: {message}")
        self.reason = reason
        self.final = final


class _Taking:
    """Takes room as it is written, and asks for more when that is used up."""

    def __init__(self, more: Callable[[int], int]) -> None:
        self._more = more
        self._left_bytes = 0

    def take(self, size_bytes: int) -> None:
        if size_bytes > self._left_bytes:
            self._left_bytes = self._more(size_bytes)
        self._left_bytes -= size_bytes


class BlobCache:
    """The cache in `folder`. Safe to use from several threads; one process has it."""

    def __init__(
        self,
        folder: Path,
        source: BlobSource,
        needs: Callable[[], Needs],
        changed: Callable[[], None] = lambda: None,
        quota_bytes: int | None = None,
        disk: Callable[[Path], tuple[int, int, int]] = shutil.disk_usage,
    ) -> None:
        """`needs` are asked for whenever room is made; `changed` is called when a blob is ready or
        a try has failed. `disk` gives total, used and free bytes of the disk of a folder.
        """
        self._files = BlobFiles(folder)
        self._source = source
        self._needs = needs
        self._changed = changed
        self._quota_bytes = quota_bytes
        self._disk = disk
        self._lock = threading.Lock()
        self._places: dict[str, _Place] = {}
        self._log = structlog.get_logger()

    # --- for workloads ---

    def provide(self, workload: Workload, called_off: threading.Event) -> None:
        for digest, source in sorted({blob.digest: blob.source for blob in workload.blobs}.items()):
            self.bring(digest, source, called_off, for_target=True)

    def check(self, workload: Workload) -> None:
        for blob in workload.blobs:
            if not self._files.is_intact(blob.digest):
                gone = not self._files.is_there(blob.digest)
                why = "gone: its file was removed" if gone else ALTERED
                raise _unavailable(f"{blob.source}: {why}; it is fetched again")

    # --- for anybody ---

    def bring(
        self, digest: str, source: str, called_off: threading.Event, *, for_target: bool
    ) -> None:
        """Has it there, whole and hashed. Raises EngineFailure, or `Cancelled` when called off."""
        place = self._place(digest)
        tries_before = place.tries
        with _alone(place, called_off):
            if place.failure is not None and place.tries != tries_before:
                raise place.failure  # It was tried while this one waited: not all try in turn.
            try:
                fetched = self._brought(place, digest, source, called_off, for_target)
            except (_Trouble, Away, OSError) as error:
                trouble = _as_trouble(error)
                self._note(place, str(trouble), final=trouble.final)
                place.failure = _failure(source, trouble)
                raise place.failure from None
            place.failure = None
            if fetched or place.error:
                self._note(place, "")

    def is_ready(self, digest: str) -> bool:
        return self._files.is_intact(digest)

    def seen(self) -> tuple[BlobSeen, ...]:
        """What is there, and how far what is needed has got, by digest."""
        whole, needs = self._files.whole(), self._needs()
        with self._lock:
            places = dict(self._places)
        wanted = {*needs.targets, *(needs.ahead or {})}
        wanted |= {digest for digest, place in places.items() if place.at_it}
        listed = sorted({*whole, *wanted})[:SEEN_MAX]
        return tuple(self._seen(digest, places.get(digest) or _Place()) for digest in listed)

    def _seen(self, digest: str, place: _Place) -> BlobSeen:
        if self._files.is_intact(digest):
            size_bytes = self._files.size_bytes(digest)
            return BlobSeen(
                digest=digest, state="ready", bytes_done=size_bytes, size_bytes=size_bytes
            )
        if not place.at_it and self._files.is_there(digest):
            return BlobSeen(digest=digest, state="failed", error=ALTERED)
        done = place.bytes_done if place.at_it else self._files.part_bytes(digest)
        failed = place.final and not place.at_it
        return BlobSeen(
            digest=digest,
            state="failed" if failed else "pulling",
            bytes_done=done,
            size_bytes=place.size_bytes,
            error="" if place.at_it else place.error,
        )

    # --- bringing one, alone with its digest ---

    def _brought(
        self,
        place: _Place,
        digest: str,
        source: str,
        called_off: threading.Event,
        for_target: bool,
    ) -> bool:
        """Whether anything had to be done for it."""
        fetched = not self._files.is_intact(digest)
        if fetched and not self._rehashed(digest, called_off):
            with self._at_it(place):
                self._download(place, digest, source, called_off, for_target)
            self._files.note_source(digest, source)
        elif not self._files.was_given_as(digest, source):
            # Nothing comes after its end: only whether it would be given is asked.
            with self._source.open(source, digest, self._files.size_bytes(digest)):
                self._files.note_source(digest, source)
        self._files.note_use(digest)
        return fetched

    def _rehashed(self, digest: str, called_off: threading.Event) -> bool:
        """A file that does not fit its stamp counts again if it still hashes right."""
        if not self._files.is_there(digest):
            return False
        if self._files.hashes_right(digest, lambda: _go_on(called_off)):
            self._files.stamp(digest)
            return True
        self._log.warning("a blob was changed on disk: thrown away", digest=digest)
        self._files.remove(digest)
        return False

    def _download(
        self,
        place: _Place,
        digest: str,
        source: str,
        called_off: threading.Event,
        for_target: bool,
    ) -> None:
        resumed = self._try_download(place, digest, source, called_off, for_target)
        if resumed is None:
            return
        if resumed:
            # What was there before may be what is wrong: a disk that lost power keeps promises not.
            self._log.warning("a blob's part does not go on: begun again", digest=digest)
            if self._try_download(place, digest, source, called_off, for_target) is None:
                return
        message = "the bytes that came are not what the digest says"
        raise _Trouble("digest_mismatch", message, FailureReason.DIGEST_MISMATCH, final=True)

    def _try_download(
        self,
        place: _Place,
        digest: str,
        source: str,
        called_off: threading.Event,
        for_target: bool,
    ) -> bool | None:
        """None once it is there; else the bytes were wrong and are gone, and it says whether some
        of them had been there before.
        """
        with self._files.open_part(digest) as part:
            hashed = hashlib.sha256()
            offset = _hash_part(part, hashed, called_off)
            place.bytes_done = offset
            try:
                with self._source.open(source, digest, offset) as answer:
                    place.size_bytes = answer.size_bytes
                    self._refuse_unfit(place, for_target=for_target)
                    room = _Taking(partial(self._make_room, digest, for_target=for_target))
                    whole = _write(part, hashed, answer, place, called_off, room)
            except Away as away:
                if away.code not in _FROM_ZERO or not offset:
                    raise
                whole = True  # Longer than the blob, so no part of it.
            if not whole:
                raise Away("cut_short", f"{place.bytes_done} of {place.size_bytes} bytes came")
            if f"sha256:{hashed.hexdigest()}" == digest:
                self._files.keep(digest, part)
                return None
        self._files.drop_part(digest)
        return offset > 0

    def _refuse_unfit(self, place: _Place, *, for_target: bool) -> None:
        """Unless all of it would fit, as large as it says that it is; that much is promised to it,
        and nothing goes for it yet.
        """
        with self._lock:
            others = [other for other in self._places.values() if other.promised]
            promised_bytes = sum(other.missing_bytes for other in others)
            room, kept = self._room(promised_bytes), self._files.kept()
            self._chosen(kept, room, place.missing_bytes, for_target=for_target)
            place.promised = True

    def _make_room(self, digest: str, more_bytes: int, *, for_target: bool) -> int:
        """Clears away what has to go for bytes that are here; how many may be written before it is
        to be asked again.
        """
        with self._lock:
            room, kept = self._room(), self._files.kept()
            for one in self._chosen(kept, room, more_bytes, for_target=for_target):
                self._log.info("a blob was cleared away", digest=one, for_digest=digest)
                self._files.remove(one)
            # Others take of it too.
            takers = sum(other.promised for other in self._places.values()) + 1
            return max(more_bytes, min(room_left(kept, room) // takers, ROOM_AHEAD_BYTES))

    def _chosen(
        self, kept: Sequence[Kept], room: Room, more_bytes: int, *, for_target: bool
    ) -> tuple[str, ...]:
        busy = {one for one, other in self._places.items() if other.lock.locked()}
        needs = self._needs()
        chosen = to_evict(kept, needs, busy, room, more_bytes, for_target=for_target)
        if isinstance(chosen, NoRoom):
            raise _no_room(chosen, more_bytes, room.quota_bytes)
        return chosen

    def _room(self, promised_bytes: int = 0) -> Room:
        total_bytes, _, free_bytes = self._disk(self._files.folder)
        quota_bytes = self._quota_bytes
        if quota_bytes is None:
            quota_bytes = int(total_bytes * QUOTA_SHARE)
        return Room(quota_bytes, free_bytes - int(total_bytes * FREE_SHARE), promised_bytes)

    # --- books ---

    def _place(self, digest: str) -> _Place:
        with self._lock:
            return self._places.setdefault(digest, _Place())

    @contextlib.contextmanager
    def _at_it(self, place: _Place) -> Iterator[None]:
        place.at_it = True
        try:
            yield
        finally:
            place.at_it = place.promised = False

    def _note(self, place: _Place, error: str, *, final: bool = False) -> None:
        place.tries += 1
        place.error, place.final = error, final
        self._changed()


@contextlib.contextmanager
def _alone(place: _Place, called_off: threading.Event) -> Iterator[None]:
    while not place.lock.acquire(timeout=WAIT_S):
        _go_on(called_off)
    try:
        _go_on(called_off)
        yield
    finally:
        place.lock.release()


def _go_on(called_off: threading.Event) -> None:
    if called_off.is_set():
        raise Cancelled


def _hash_part(part: IO[bytes], hashed: hashlib._Hash, called_off: threading.Event) -> int:
    """What is there already, hashed anew: nobody else's word for it is taken."""
    while piece := part.read(CHUNK_BYTES):
        _go_on(called_off)
        hashed.update(piece)
    return part.tell()


def _write(
    part: IO[bytes],
    hashed: hashlib._Hash,
    answer: BlobAnswer,
    place: _Place,
    called_off: threading.Event,
    room: _Taking,
) -> bool:
    """Whether all of it came. More than was announced is wrong bytes, and not written."""
    for piece in answer.pieces:
        _go_on(called_off)
        hashed.update(piece)
        if place.bytes_done + len(piece) > answer.size_bytes:
            return True
        room.take(len(piece))
        part.write(piece)
        place.bytes_done += len(piece)
    return place.bytes_done >= answer.size_bytes


def _no_room(found: NoRoom, more_bytes: int, quota_bytes: int) -> _Trouble:
    missing = f"{more_bytes} bytes more do not fit, {found.missing_bytes} are missing"
    if found.by == "disk":
        return _Trouble("disk_full", missing, FailureReason.DISK_FULL, final=False)
    message = f"{missing}: the cache may take {quota_bytes}, and workloads need what is in it"
    return _Trouble("over_quota", message, FailureReason.BLOB_UNAVAILABLE, final=False)


def _as_trouble(error: _Trouble | Away | OSError) -> _Trouble:
    if isinstance(error, _Trouble):
        return error
    reason = FailureReason.BLOB_UNAVAILABLE
    if isinstance(error, Away):
        return _Trouble(error.code, error.message, reason, final=error.code in _FINAL)
    if error.errno in DISK_FULL_NUMBERS:
        message = str(error.strerror)
        return _Trouble("disk_full", message, FailureReason.DISK_FULL, final=False)
    message = f"the cache can't be used ({error.strerror})"
    return _Trouble("cache_unusable", message, reason, final=False)


def _failure(source: str, trouble: _Trouble) -> EngineFailure:
    return EngineFailure(trouble.reason, f"{source}: {trouble}", transient=not trouble.final)


def _unavailable(message: str) -> EngineFailure:
    return EngineFailure(FailureReason.BLOB_UNAVAILABLE, message, transient=True)
