"""What both artifact stores know of uploads: their names, who is at one, and what it hashes to.

Rules:
- One thread of one process at a time is at an upload; who comes meanwhile is told to come again.
- The running hash is of bytes that this process wrote, in order, and nobody else since: what the
  file looked like is kept beside it. Where that is not so, the bytes are read again.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from reconciler.core.names import Digest
from reconciler.errors import Refused, Transient

if TYPE_CHECKING:
    from hashlib import _Hash

PIECE_BYTES = 1024 * 1024
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_PASSES = (errno.EIO, errno.EINTR, errno.ESTALE, errno.ETIMEDOUT, errno.EMFILE, errno.ENFILE)
_RUNNING_MAX = 1_000
_NAME = re.compile(r"[0-9A-Za-z][-_0-9A-Za-z]{0,79}")

Look = tuple[int | str, ...]
"""What a file looks like: inode, size, time of its last change; and what else tells it apart."""


@dataclass
class Running:
    """The hash of an upload so far, of how many bytes it is, and how its file looked by then."""

    hash: _Hash
    size_bytes: int = 0
    look: Look | None = None

    def add(self, piece: memoryview) -> None:
        self.hash.update(piece)
        self.size_bytes += len(piece)

    def text(self) -> str:
        return f"sha256:{self.hash.hexdigest()}"


class Hashes:
    """Running hashes by upload; the oldest goes when there are too many, and is read again."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: OrderedDict[str, Running] = OrderedDict()

    def take(self, upload: str, look: Look, *, empty: bool) -> Running | None:
        """The one that goes on from this look of the file; None where that is not known."""
        with self._lock:
            found = self._known.pop(upload, None)
        if empty:
            return Running(hashlib.sha256())
        return found if found is not None and found.look == look else None

    def put(self, upload: str, running: Running | None, look: Look, size_bytes: int) -> None:
        """Nothing is kept where the upload has other bytes than were added here."""
        if running is None or running.size_bytes != size_bytes:
            return
        running.look = look
        with self._lock:
            self._known[upload] = running
            while len(self._known) > _RUNNING_MAX:
                self._known.popitem(last=False)

    def drop(self, upload: str) -> None:
        with self._lock:
            self._known.pop(upload, None)


@contextlib.contextmanager
def alone(lock: Path) -> Iterator[None]:
    """Nobody else is at it meanwhile, in any process. Transient("upload_busy") where one is."""
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except FileNotFoundError:
        # Its folder went with the upload, just now.
        raise upload_busy() from None
    try:
        _lock(descriptor)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise upload_busy() from None
    if not os.fstat(descriptor).st_nlink:
        # The upload was dropped between the two: whoever begins it anew has another file.
        raise upload_busy()


def upload_busy() -> Transient:
    return Transient("upload_busy", "another request is at this upload", retry_after_s=1.0)


@contextlib.contextmanager
def as_stored(place: Path) -> Iterator[None]:
    """What the file system says, as Transient or Refused."""
    try:
        yield
    except OSError as error:
        where = str(error.filename or place)
        if error.errno in _FULL:
            raise full(where) from None
        kind = Transient if error.errno in _PASSES else Refused
        raise kind("blob_store_unreachable", f"{error.strerror}", where=where) from None


def full(where: str) -> Transient:
    hint = "make room there; what was sent so far is kept"
    message = "there is no room left for blobs"
    return Transient("blob_store_full", message, where=where, hint=hint, retry_after_s=60.0)


def checked_name(upload: str) -> str:
    """Refused("no_such_upload") for what could be no name of ours."""
    if not _NAME.fullmatch(upload):
        raise no_such_upload()
    return upload


def no_such_upload() -> Refused:
    return Refused("no_such_upload", "nothing was uploaded under this name")


def no_such_blob(digest: Digest) -> Refused:
    return Refused("no_such_blob", "this blob is not in the artifact store", where=str(digest))


def wrong_offset(kept: int, offset: int) -> Refused:
    message = f"{kept} bytes are kept, so it goes on there, not at {offset}"
    return Refused("wrong_offset", message)


def already_finished() -> Refused:
    return Refused("upload_finished", "this upload was finished: nothing is added to it any more")


def mismatch(wanted: Digest, found: str, size_bytes: int) -> Refused:
    message = f"{size_bytes} bytes were uploaded, and they hash to {found}, not to {wanted}"
    hint = "they were dropped: upload the right file from its beginning"
    return Refused("digest_mismatch", message, hint=hint)


def look_of(descriptor: int) -> tuple[int, int, int]:
    found = os.fstat(descriptor)
    return found.st_ino, found.st_size, found.st_mtime_ns


def hash_of(file: int | Path) -> str:
    """`sha256:…` of a file, or of an open one from its beginning: that stays open."""
    with open(file, "rb", buffering=0, closefd=isinstance(file, Path)) as opened:
        opened.seek(0)
        return "sha256:" + hashlib.file_digest(opened, "sha256").hexdigest()


def claim_of(source: str, digest: Digest) -> tuple[str, str]:
    """What a claim is kept as: the digest's folder, and a name in it."""
    return digest.value.removeprefix("sha256:"), hashlib.sha256(source.encode()).hexdigest()


def write_all(descriptor: int, piece: bytes | memoryview, running: Running | None) -> None:
    """Also where the room ends in between: what was written is in the running hash."""
    view = memoryview(piece)
    while view:
        written = os.write(descriptor, view)
        if running is not None:
            running.add(view[:written])
        view = view[written:]


def flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_mark(place: Path, text: str) -> None:
    """A small file, whole or not at all, and on the disk when it returns."""
    fresh = place.with_name(f".{place.name}.new")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, text.encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    fresh.replace(place)
    flush_folder(place.parent)


def read_mark(place: Path) -> str | None:
    try:
        return place.read_text()
    except FileNotFoundError:
        return None
