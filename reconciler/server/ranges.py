"""Blobs as answers to GET and HEAD: whole or from any byte on, and named by their content.

Rules:
- One range is answered; several get the whole, as RFC 9110 allows. A range that depends on another
  content than this one gets the whole.
- Content never changes under its digest, so the digest is the ETag and the Repr-Digest (RFC 9530).
- No thread waits for a slow reader: pieces are read one ahead, and sent by the event loop.
"""

from __future__ import annotations

import base64
import re
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from urllib.parse import quote

import anyio
import structlog
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Send

from reconciler.artifact_ports import NO_SUCH_BLOB, PUBLISH_IT
from reconciler.core.names import Digest
from reconciler.errors import GpuaasError
from reconciler.ports import BlobStore
from reconciler.server.deps import Threads
from reconciler.server.errors import ApiError

log = structlog.get_logger(__name__)

OCTETS = "application/octet-stream"
_RANGE = re.compile(r"bytes=(?:(\d{1,19})-(\d{0,19})|-(\d{1,19}))", re.IGNORECASE | re.ASCII)


def etag_of(digest: Digest) -> str:
    return f'"{digest}"'


def repr_digest(digest: Digest) -> str:
    """The digest as RFC 9530 writes it."""
    raw = bytes.fromhex(digest.value.removeprefix("sha256:"))
    return f"sha-256=:{base64.b64encode(raw).decode()}:"


def byte_range(
    header: str | None, if_range: str | None, etag: str, size_bytes: int
) -> tuple[int, int] | None:
    """First byte and the one after the last that are asked for; None for all of them.

    ApiError 416 for what lies behind the end. What can't be read is ignored, as RFC 9110 has it.
    """
    found = _RANGE.fullmatch(header.replace(" ", "")) if header else None
    if found is None or (if_range is not None and if_range.strip() != etag):
        return None
    first, last, tail = found.groups()
    if tail is not None:
        start, end = max(0, size_bytes - int(tail)), size_bytes
    else:
        start, end = int(first), min(size_bytes, int(last) + 1 if last else size_bytes)
        if last and int(last) < int(first):
            return None
    if start >= end:
        message = f"there are {size_bytes} bytes, and none of them is in that range"
        headers = {"Content-Range": f"bytes */{size_bytes}", "ETag": etag}
        raise ApiError(416, "range_not_satisfiable", message, headers)
    return start, end


async def blob_answer(
    request: Request,
    blobs: BlobStore,
    threads: Threads,
    source: str,
    digest: Digest,
    *,
    media_type: str = OCTETS,
    file_name: str = "",
    redirect_ttl_s: float | None = None,
) -> Response:
    """The answer to GET or HEAD for a blob that the caller may have as `source`. ApiError 404
    no_such_blob, also where it was never published as that.

    `redirect_ttl_s`: a GET is sent on to the store's own address, where it has one, good for that
    long.
    """
    size_bytes = await threads.run(size_of, blobs, source, digest)
    etag = etag_of(digest)
    headers = described(digest, file_name)
    if etag in request.headers.get("if-none-match", "").replace(" ", "").split(","):
        return Response(status_code=304, headers=headers)
    if request.method == "HEAD":
        # A range means nothing to HEAD: it tells of the whole.
        headers["Content-Length"] = str(size_bytes)
        return Response(headers=headers, media_type=media_type)
    asked = request.headers.get("range")
    wanted = byte_range(asked, request.headers.get("if-range"), etag, size_bytes)
    if redirect_ttl_s is not None:
        address = await threads.run(blobs.address, digest, redirect_ttl_s)
        if address is not None:
            return Response(status_code=307, headers={**headers, "Location": address})
    start, end = wanted or (0, size_bytes)
    if wanted is not None:
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{size_bytes}"
    status = 206 if wanted is not None else 200
    return streamed(blobs, threads, digest, start, end, status, headers, media_type)


def described(digest: Digest, file_name: str = "") -> dict[str, str]:
    """The headers that say what it is."""
    headers = {
        "Accept-Ranges": "bytes",
        "ETag": etag_of(digest),
        "Repr-Digest": repr_digest(digest),
    }
    if file_name:
        headers["Content-Disposition"] = f"attachment; filename*=UTF-8''{quote(file_name, safe='')}"
    return headers


def streamed(
    blobs: BlobStore,
    threads: Threads,
    digest: Digest,
    start: int,
    end: int,
    status: int,
    headers: dict[str, str],
    media_type: str = OCTETS,
) -> Response:
    """Bytes start..end (excluded) as they are read."""
    content = _pieces(blobs, threads, digest, start, end)
    headers = {**headers, "Content-Length": str(end - start)}
    return _Streamed(content, status, headers, media_type)


class _Streamed(StreamingResponse):
    """Closes what it reads from also when the reader goes away in between."""

    def __init__(
        self,
        content: AsyncGenerator[bytes, None],
        status: int,
        headers: dict[str, str],
        media_type: str,
    ) -> None:
        super().__init__(content, status, headers, media_type)
        self._content = content

    async def stream_response(self, send: Send) -> None:
        async with aclosing(self._content):
            try:
                await super().stream_response(send)
            except GpuaasError as error:
                # There is no other way to say it by now: the answer ends early.
                log.warning("blob_cut_off", code=error.code, reason=error.message)


async def _pieces(
    blobs: BlobStore, threads: Threads, digest: Digest, start: int, end: int
) -> AsyncGenerator[bytes, None]:
    if start == end:
        return
    pieces = await threads.run(blobs.read, digest, start, end)
    try:
        while True:
            piece = await threads.run(_next, pieces)
            if piece is None:
                return
            yield piece
    finally:
        close = getattr(pieces, "close", None)
        if close is not None:
            with anyio.CancelScope(shield=True):
                await threads.run(close)


def _next(pieces: Iterator[bytes]) -> bytes | None:
    return next(pieces, None)


def size_of(blobs: BlobStore, source: str, digest: Digest) -> int:
    """Of a blob that was published as `source`. ApiError 404 no_such_blob for any other."""
    size_bytes = blobs.size_bytes(digest) if blobs.claimed(source, digest) else None
    if size_bytes is None:
        raise ApiError(404, "no_such_blob", f"{NO_SUCH_BLOB} ({PUBLISH_IT})")
    return size_bytes
