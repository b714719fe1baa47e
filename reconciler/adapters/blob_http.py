"""Moves one blob to or from a control plane, and goes on wherever it was cut off.

Rules:
- Only the hash of all bytes decides. An upload is named by what its file hashes to, a download is
  in its place once it hashed to what was asked for, and in a `.part` file beside it until then.
- The credential goes to the control plane alone, over plain HTTP to this very host only. Where it
  sends on to another address, nothing of ours goes along, and TLS is not given up.
- Not more is written than was announced, whoever sends it.
- What was cut off is tried again, as long as it gets on. Memory is bounded, however large it is.
  httpx stays in here.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import httpx

from reconciler.adapters.blob_answers import (
    cut_off,
    elsewhere,
    number_in,
    odd,
    refusal_of,
    server_address,
    start_of,
    wait_s,
)
from reconciler.adapters.part_file import open_part
from reconciler.core.names import Digest
from reconciler.errors import Refused, Transient
from reconciler.ports import Secret

PIECE_BYTES = 1024 * 1024
BODY_BYTES_MAX = 1024 * 1024 * 1024
"""Of one request: proxies have limits, and what is sent again after a cut is little."""
OFFSET = "Upload-Offset"
_TRIES_MAX = 10
_PAUSES_S = (0.1, 0.5, 1.0, 2.0, 4.0, 8.0)
_HASH_AHEAD = 4
_REDIRECTS = (301, 302, 303, 307, 308)

Told = Callable[[int, int], None]
"""Called with how many bytes are there, and how many there are to be."""


@dataclass(frozen=True)
class BlobServer:
    """A control plane, and the credential of an intent; without an intent, a bearer token or, where
    that is empty too, nothing. `timeout_s`: of connecting, and of each wait for bytes.
    """

    address: str
    intent: str
    password: Secret
    timeout_s: float = 60.0
    pauses_s: tuple[float, ...] = field(default=_PAUSES_S)


@dataclass(frozen=True)
class Moved:
    digest: Digest
    size_bytes: int


def upload(server: BlobServer, file: Path, told: Told) -> Moved:
    """The file's content, as the blob of a publish intent; what is there already is not sent again.

    Refused by the control plane's own codes, and for a file that changes meanwhile (file_changed)
    or is not what was begun to be uploaded (upload_of_another); Transient when it gets on no more.
    """
    with _client(server) as client, _opened(file) as content:
        # A thread of its own reads the file again, from memory mostly: sending waits for no hash.
        with ThreadPoolExecutor(1, "hash") as hashing:
            before = _look(content)
            hashed = hashing.submit(_hash_of, file)
            _Sending(client, server, content, before[0], told).run()
            digest = Digest(f"sha256:{hashed.result()}")
            if _look(content) != before:
                message = "it was changed while it was sent"
                raise Refused("file_changed", message, where=str(file), hint="upload it again")
        return _Finishing(client, server, digest).run()


def download(server: BlobServer, digest: Digest, place: Path, told: Told, path: str = "") -> Moved:
    """The blob, in place of the file that was there; goes on with what an earlier try left. `path`
    is where the server gives it, if that is not where it gives any blob.

    Refused by the control plane's own codes, blob_damaged, download_busy; Transient when it gets on
    no more.
    """
    part = place.with_name(f"{place.name}.{digest.short}.part")
    with _client(server) as client, _part_file(part) as file:
        receiving = _Receiving(client, server, digest, file, told, path)
        for _ in range(2):
            if receiving.run() == digest.value:
                file.flush()
                os.replace(part, place)
                return Moved(digest, receiving.done)
            # Damaged where it lay, say: once more from the beginning, and then it is the source.
            receiving.begin_anew()
        part.unlink()
        message = "what came does not hash to the digest that was asked for"
        raise Refused("blob_damaged", message, where=str(digest), hint="it was dropped: try again")


class _Tries:
    """Counts failures in a row, and waits between them; whoever gets on begins anew."""

    def __init__(self, server: BlobServer) -> None:
        self._pauses_s = server.pauses_s
        self._failures = 0

    def got_on(self) -> None:
        self._failures = 0

    def failed(self, error: Transient) -> None:
        """Raises it when it was the last try."""
        self._failures += 1
        if self._failures >= _TRIES_MAX or error.code == "blob_store_full":
            raise error
        pause_s = self._pauses_s[min(self._failures, len(self._pauses_s)) - 1]
        time.sleep(max(pause_s, min(error.retry_after_s, pause_s * 10)))


class _Sending:
    """Sends what is not there yet."""

    def __init__(
        self, client: httpx.Client, server: BlobServer, content: BinaryIO, size: int, told: Told
    ) -> None:
        self._client = client
        self._path = f"v1/blobs/uploads/{server.intent}"
        self._content = content
        self._size = size
        self._told = told
        self._tries = _Tries(server)

    def run(self) -> None:
        kept: int | None = None
        while True:
            try:
                kept = self._kept() if kept is None else kept
                if kept > self._size:
                    message = f"{kept} bytes were uploaded before, and this file has {self._size}"
                    hint = "name the file that was begun with, or open another intent"
                    raise Refused("upload_of_another", message, hint=hint)
                self._told(kept, self._size)
                if kept == self._size and kept:
                    return
                after = self._send(kept)
                if after > kept:
                    self._tries.got_on()
                kept = after
                if not self._size:
                    return
            except Transient as error:
                kept = None
                self._tries.failed(error)

    def _kept(self) -> int:
        with _asked():
            answer = self._client.get(self._path)
        if answer.status_code != 200:
            raise refusal_of(answer)
        return number_in(answer, OFFSET)

    def _send(self, offset: int) -> int:
        length = min(self._size - offset, BODY_BYTES_MAX)
        headers = {
            OFFSET: str(offset),
            "Content-Length": str(length),
            "Content-Type": "application/octet-stream",
        }
        with _asked():
            answer = self._client.patch(
                self._path, headers=headers, content=self._pieces(offset, length)
            )
        if answer.status_code == 409 and OFFSET in answer.headers:
            # Another try of ours was still under way: it goes on where that came to.
            raise cut_off("the upload got on elsewhere")
        if answer.status_code != 204:
            raise refusal_of(answer)
        return number_in(answer, OFFSET)

    def _pieces(self, offset: int, length: int) -> Iterator[bytes]:
        end = offset + length
        while offset < end:
            piece = os.pread(self._content.fileno(), min(PIECE_BYTES, end - offset), offset)
            if not piece:
                raise Refused("file_changed", "it became shorter while it was sent")
            yield piece
            offset += len(piece)
            self._told(offset, self._size)


class _Finishing:
    """Says what was uploaded, until it is hashed there too."""

    def __init__(self, client: httpx.Client, server: BlobServer, digest: Digest) -> None:
        self._client = client
        self._path = f"v1/blobs/uploads/{server.intent}/finish"
        self._digest = digest
        self._tries = _Tries(server)

    def run(self) -> Moved:
        while True:
            try:
                with _asked():
                    answer = self._client.post(self._path, json={"digest": str(self._digest)})
                if answer.status_code == 200:
                    return Moved(self._digest, _size_in(answer))
                if answer.status_code != 202:
                    raise refusal_of(answer)
                time.sleep(wait_s(answer))
                self._tries.got_on()
            except Transient as error:
                self._tries.failed(error)


class _Receiving:
    """Receives what is not there yet, and hashes all of it."""

    def __init__(
        self,
        client: httpx.Client,
        server: BlobServer,
        digest: Digest,
        file: BinaryIO,
        told: Told,
        path: str,
    ) -> None:
        self._client = client
        self._digest = digest
        self._path = path.lstrip("/") or f"v1/blobs/{digest}"
        self._file = file
        self._told = told
        self._tries = _Tries(server)
        self._running = hashlib.sha256()
        self._total: int | None = None
        self.done = 0
        self._hash_what_is_there()

    def run(self) -> str:
        """What it all hashes to, `sha256:…`, once there is no more of it."""
        with ThreadPoolExecutor(1, "hash") as hashing:
            while True:
                try:
                    before = self.done
                    try:
                        self._receive(hashing)
                    finally:
                        if self.done > before:
                            self._tries.got_on()
                    return f"sha256:{self._running.hexdigest()}"
                except Transient as error:
                    self._tries.failed(error)

    def begin_anew(self) -> None:
        self._file.seek(0)
        self._file.truncate()
        self._running = hashlib.sha256()
        self.done = 0

    def _hash_what_is_there(self) -> None:
        self._file.seek(0)
        while piece := self._file.read(PIECE_BYTES):
            self._running.update(piece)
            self.done += len(piece)

    def _receive(self, hashing: ThreadPoolExecutor) -> None:
        if self._total is None:
            self._total = self._size()
        if self.done > self._total:
            self.begin_anew()
        self._told(self.done, self._total)
        if self.done == self._total:
            return
        with _asked(), self._answer() as answer:
            if answer.status_code not in (200, 206):
                answer.read()
                raise refusal_of(answer)
            if start_of(answer, self.done) != self.done:
                # The whole although the rest was asked for.
                self.begin_anew()
            try:
                self._keep(answer, hashing)
            except Refused as refused:
                if refused.code == "blob_damaged":
                    self.begin_anew()
                raise
        if self.done < self._total:
            raise cut_off("the answer ended early")

    def _size(self) -> int:
        with _asked():
            answer = self._client.head(self._path)
        if answer.status_code != 200:
            # A HEAD says nothing of why: a GET does.
            with _asked(), self._client.stream("GET", self._path) as answer:
                if answer.status_code >= 400:
                    answer.read()
            raise refusal_of(answer)
        return number_in(answer, "Content-Length")

    @contextmanager
    def _answer(self) -> Iterator[httpx.Response]:
        headers = {"Accept-Encoding": "identity"}
        if self.done:
            headers |= {"Range": f"bytes={self.done}-", "If-Range": f'"{self._digest}"'}
        with self._client.stream("GET", self._path, headers=headers) as answer:
            if answer.status_code not in _REDIRECTS:
                yield answer
                return
            address = elsewhere(answer)
        # The store knows its own ETags only.
        headers.pop("If-Range", None)
        with (
            httpx.Client(timeout=self._client.timeout) as other,
            other.stream("GET", address, headers=headers) as answer,
        ):
            yield answer

    def _keep(self, answer: httpx.Response, hashing: ThreadPoolExecutor) -> None:
        """Also what came before it ended early is kept and hashed."""
        waiting: list[Future[None]] = []
        gathered = bytearray()
        try:
            for chunk in answer.iter_raw():
                if self.done + len(gathered) + len(chunk) > (self._total or 0):
                    gathered.clear()
                    raise self._too_much()
                gathered += chunk
                if len(gathered) >= PIECE_BYTES:
                    self._store(bytes(gathered), hashing, waiting)
                    gathered.clear()
        finally:
            if gathered:
                self._store(bytes(gathered), hashing, waiting)
            for one in waiting:
                one.result()

    def _too_much(self) -> Refused:
        message = f"more came than the {self._total} bytes that were announced"
        hint = "it was dropped: try again"
        return Refused("blob_damaged", message, where=str(self._digest), hint=hint)

    def _store(
        self, piece: bytes, hashing: ThreadPoolExecutor, waiting: list[Future[None]]
    ) -> None:
        with _written(self._file):
            self._file.write(piece)
        self.done += len(piece)
        waiting.append(hashing.submit(self._running.update, piece))
        if len(waiting) > _HASH_AHEAD:
            waiting.pop(0).result()
        self._told(self.done, self._total or self.done)


@contextmanager
def _asked() -> Iterator[None]:
    """What httpx says, as Transient."""
    try:
        yield
    except httpx.HTTPError as error:
        raise cut_off(f"the connection was lost ({type(error).__name__})") from None


@contextmanager
def _written(file: BinaryIO) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        hint = "the same command goes on where it stopped"
        raise Refused("not_written", f"{error.strerror}", where=file.name, hint=hint) from None


@contextmanager
def _opened(file: Path) -> Iterator[BinaryIO]:
    try:
        with file.open("rb", buffering=0) as content:
            yield content
    except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
        raise Refused("not_read", f"{error.strerror}", where=str(file)) from None


@contextmanager
def _part_file(place: Path) -> Iterator[BinaryIO]:
    """For one process at a time; it stays where it is after a failure."""
    with open_part(place) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            message = "another process is downloading it there"
            raise Refused("download_busy", message, where=str(place)) from None
        yield file


def _client(server: BlobServer) -> httpx.Client:
    url, password = server_address(server.address), server.password.reveal()
    bearer = {"Authorization": f"Bearer {password}"} if password and not server.intent else {}
    return httpx.Client(
        base_url=url,
        auth=httpx.BasicAuth(server.intent, password) if server.intent else None,
        headers=bearer,
        timeout=server.timeout_s,
        follow_redirects=False,
        # To this host no proxy of the environment is needed, and none is to see it.
        trust_env=url.scheme == "https",
    )


def _look(content: BinaryIO) -> tuple[int, int]:
    found = os.fstat(content.fileno())
    return found.st_size, found.st_mtime_ns


def _hash_of(file: Path) -> str:
    with file.open("rb", buffering=0) as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _size_in(answer: httpx.Response) -> int:
    try:
        return int(answer.json()["size_bytes"])
    except (ValueError, KeyError, TypeError):
        raise odd(answer) from None
