"""Where blobs come in and go out for people and CI: resumable, by the credential of a transfer.

Rules:
- An upload is bytes at an offset, and the offset is what is kept: whoever was cut off asks (HEAD)
  and goes on. It is a blob once all of it hashed to the digest that its sender names, never before.
- What came before a body ended early is kept. No thread waits for a slow sender, one that says
  nothing for a while is cut off, and a body takes the memory of two batches, however large it is.
- One body of an upload is taken at a time, and few of one project and in all (`upload_slots`): the
  offset and the credential are looked at before any of it is read, and the credential again before
  each batch is stored, however small it is after a while: no body outlasts its intent.
- What hashes for long is answered 202: ask again.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from reconciler.core.names import Digest
from reconciler.core.transfers import Transfer
from reconciler.errors import GpuaasError, Refused, Transient
from reconciler.ports import BlobPart, BlobStore
from reconciler.server.blob_access import BlobAccess
from reconciler.server.deps import ServerDeps, Threads
from reconciler.server.errors import ApiError, read_body
from reconciler.server.ranges import blob_answer
from reconciler.server.upload_slots import UploadSlots

BATCH_BYTES = 4 * 1024 * 1024
BATCH_AGE_S = 10.0
"""What came is stored after so long, also where it is no whole batch."""
FINISH_WAIT_S = 10.0
OFFSET = "Upload-Offset"
_ADDRESS_TTL_MS_MAX = 900_000
_DOCUMENT_BYTES_MAX = 1024
_HASHED_AT_ONCE = 4
_FINISHING_MAX = 1_000
_STATUS = {
    "wrong_offset": 409,
    "upload_finished": 409,
    "no_such_upload": 404,
    "no_such_blob": 404,
    "digest_mismatch": 422,
    "blob_store_full": 507,
}


class BlobsApi:
    """Routes under /v1/blobs."""

    def __init__(self, deps: ServerDeps, threads: Threads) -> None:
        self._deps = deps
        self._threads = threads
        self._hashing = Threads(_HASHED_AT_ONCE)
        self._access = BlobAccess(deps, threads)
        self._slots = UploadSlots()
        self._finishing: dict[tuple[str, Digest], asyncio.Task[int]] = {}

    def routes(self) -> list[Route]:
        upload = "/v1/blobs/uploads/{id}"
        return [
            Route(upload, self.kept, methods=["GET"]),
            Route(upload, self.take, methods=["PATCH"]),
            Route(f"{upload}/finish", self.finish, methods=["POST"]),
            Route("/v1/blobs/{digest}", self.give, methods=["GET"]),
        ]

    async def kept(self, request: Request) -> Response:
        """How much of an upload there is."""
        transfer = await self._access.publishing(request)
        part = await self._threads.run(self._blobs.part, transfer.id)
        return JSONResponse({"bytes_done": part.bytes_done}, headers={OFFSET: str(part.bytes_done)})

    async def take(self, request: Request) -> Response:
        """Adds a body to an upload, from the offset on that it names."""
        transfer = await self._access.publishing(request)
        offset = _offset(request)
        left = self._deps.settings.blob_bytes_max - offset
        declared = request.headers.get("content-length", "0")
        if left < 0 or (declared.isdecimal() and int(declared[:20]) > left):
            raise self._too_large()
        try:
            with self._slots.taken(transfer.id, transfer.owner):
                kept = await self._take(request, transfer, offset, left)
        except Refused as refused:
            raise await self._refusal(transfer.id, refused) from None
        except Transient as transient:
            raise _told(transient) from None
        return Response(status_code=204, headers={OFFSET: str(kept)})

    async def finish(self, request: Request) -> Response:
        """Says what the upload is to hash to, which makes it a blob."""
        transfer = await self._access.publishing(request)
        timeout_s = self._deps.settings.body_timeout_s
        digest = _digest(await read_body(request, _DOCUMENT_BYTES_MAX, timeout_s))
        hashing = self._hashed(transfer.id, digest)
        await asyncio.wait({hashing}, timeout=FINISH_WAIT_S)
        if not hashing.done():
            return JSONResponse({"hashing": True}, 202, {"Retry-After": "1"})
        self._finishing.pop((transfer.id, digest), None)  # Others may have waited for it, too.
        try:
            size_bytes = hashing.result()
        except GpuaasError as error:
            raise _told(error) from None
        return JSONResponse({"digest": str(digest), "size_bytes": size_bytes})

    async def give(self, request: Request) -> Response:
        """A blob, whole or from any byte on."""
        try:
            digest = Digest.parse(request.path_params["digest"])
        except ValueError:
            raise ApiError(404, "no_such_blob", "that is no digest of a blob") from None
        transfer = await self._access.pulling(request, digest)
        left_ms = transfer.expires_at_ms - self._deps.clock.now_ms()
        ttl_s = min(left_ms, _ADDRESS_TTL_MS_MAX) / 1000
        return await blob_answer(
            request,
            self._blobs,
            self._threads,
            transfer.repository,
            digest,
            redirect_ttl_s=ttl_s,
        )

    async def _take(self, request: Request, transfer: Transfer, offset: int, left: int) -> int:
        """How much is kept now. One batch is stored while the next one comes in."""
        storing: asyncio.Task[BlobPart] | None = None
        at = offset
        # Nothing is added by this: a wrong offset is told before anything is read.
        part = await self._append(transfer, at, b"")
        try:
            async for batch in self._batches(request, left):
                if storing is not None:
                    await storing
                storing = asyncio.ensure_future(self._append(transfer, at, batch))
                at += len(batch)
        finally:
            # Also what came before a body ended early is on its way: its fate is to be known.
            if storing is not None:
                await asyncio.wait({storing})
        return (await storing if storing is not None else part).bytes_done

    async def _batches(self, request: Request, left: int) -> AsyncIterator[bytes]:
        """The body, in pieces of `BATCH_BYTES`, or of what comes in `BATCH_AGE_S`; what there is of
        the last one also where it ends early, before that is raised.
        """
        batch, now_s = bytearray(), asyncio.get_running_loop().time
        begun_s = now_s()
        ended: Exception | None = None
        stream = request.stream()
        while True:
            try:
                async with asyncio.timeout(self._deps.settings.body_timeout_s):
                    chunk = await anext(stream)
            except StopAsyncIteration:
                break
            except TimeoutError:
                ended = self._too_slow()
                break
            except ClientDisconnect as gone:
                ended = gone
                break
            left -= len(chunk)
            if left < 0:
                raise self._too_large()
            batch += chunk
            if len(batch) >= BATCH_BYTES or (batch and now_s() - begun_s >= BATCH_AGE_S):
                yield bytes(batch)
                batch.clear()
                begun_s = now_s()
        if batch:
            yield bytes(batch)
        if ended is not None:
            raise ended

    async def _append(self, transfer: Transfer, offset: int, batch: bytes) -> BlobPart:
        return await self._threads.run(self._appended, transfer, offset, batch)

    def _appended(self, transfer: Transfer, offset: int, batch: bytes) -> BlobPart:
        self._access.still_open(transfer)
        return self._blobs.append(transfer.id, offset, [batch])

    def _hashed(self, upload: str, digest: Digest) -> asyncio.Task[int]:
        known = self._finishing.get((upload, digest))
        if known is None:
            for key in [key for key, task in self._finishing.items() if task.done()]:
                if len(self._finishing) >= _FINISHING_MAX:
                    del self._finishing[key]
            known = asyncio.ensure_future(self._finish(upload, digest))
            self._finishing[upload, digest] = known
        return known

    async def _finish(self, upload: str, digest: Digest) -> int:
        return await self._hashing.run(self._blobs.finish, upload, digest)

    async def _refusal(self, upload: str, refused: Refused) -> Exception:
        """With where it goes on, so that nobody has to ask for that."""
        told = _told(refused)
        if isinstance(told, ApiError) and refused.code == "wrong_offset":
            part = await self._threads.run(self._blobs.part, upload)
            told.headers[OFFSET] = str(part.bytes_done)
        return told

    def _too_large(self) -> ApiError:
        bytes_max = self._deps.settings.blob_bytes_max
        return ApiError(413, "too_large", f"a blob has no more than {bytes_max} bytes here")

    def _too_slow(self) -> ApiError:
        seconds = self._deps.settings.body_timeout_s
        message = f"nothing came for {seconds:g} s; what came before is kept"
        return ApiError(408, "too_slow", message, {"Connection": "close"})

    @property
    def _blobs(self) -> BlobStore:
        return store_of(self._deps)


def store_of(deps: ServerDeps) -> BlobStore:
    if deps.blobs is None:
        raise ApiError(409, "no_blob_store", "this control plane keeps no blobs")
    return deps.blobs


def _told(error: GpuaasError) -> Exception:
    """As an answer of its own, where there is one."""
    status = _STATUS.get(error.code)
    if status is None:
        return error
    message = f"{error.message} ({error.hint})" if error.hint else error.message
    return ApiError(status, error.code, message)


def _offset(request: Request) -> int:
    given = request.headers.get(OFFSET, "")
    if not re.fullmatch(r"[0-9]{1,18}", given, re.ASCII):
        raise ApiError(400, "invalid_message", f"{OFFSET}: expected a number of bytes")
    return int(given)


def _digest(body: bytes) -> Digest:
    try:
        document = json.loads(body)
        return Digest.parse(document["digest"] if [*document] == ["digest"] else "")
    except (ValueError, TypeError, RecursionError, KeyError):
        raise ApiError(400, "invalid_message", 'expected {"digest": "sha256:…"}') from None
