"""Gives node agents the blobs that they were told to have, from any byte on.

Rules: a node gets what its instances read and what it was asked to pull ahead, and no more
(`core.plan.blobs.digests_for`), as what its target says that it is: what was not published as that
source is not there for it. Where the store has an address of its own, the bytes come from
there: what is believed is their hash.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from node_agent.artifact_wire import BLOB_REQUEST_TYPE, BlobRequest
from reconciler.core.names import Digest, InstanceKey
from reconciler.core.plan.blobs import digests_for
from reconciler.core.records import InstanceRecord, Intent
from reconciler.server.blobs_api import store_of
from reconciler.server.deps import ServerDeps, Threads
from reconciler.server.errors import ApiError, read_body
from reconciler.server.peer import shown_key
from reconciler.server.ranges import described, size_of, streamed
from reconciler.server.senders import Senders
from reconciler.use_cases.transfers import sources_ahead, sources_seen

ADDRESS_TTL_S = 900.0
_MESSAGE_BYTES_MAX = 64 * 1024


class AgentBlobs:
    """POST /v1/agent/blob."""

    def __init__(self, deps: ServerDeps, threads: Threads) -> None:
        self._deps = deps
        self._threads = threads
        self._senders = Senders(deps)

    def routes(self) -> list[Route]:
        return [Route("/v1/agent/blob", self.give, methods=["POST"])]

    async def give(self, request: Request) -> Response:
        shown = shown_key(request, self._deps.clock.now_ms())
        timeout_s = self._deps.settings.body_timeout_s
        body = await read_body(request, _MESSAGE_BYTES_MAX, timeout_s)
        wanted = await self._threads.run(self._asked, body, shown)
        blobs, digest = store_of(self._deps), Digest(wanted.digest)
        size_bytes = await self._threads.run(size_of, blobs, wanted.source, digest)
        if wanted.offset > size_bytes:
            message = f"it has {size_bytes} bytes, and goes on at none beyond"
            headers = {"Content-Range": f"bytes */{size_bytes}"}
            raise ApiError(416, "wrong_offset", message, headers)
        headers = described(digest)
        if wanted.offset == size_bytes:
            headers["Content-Range"] = f"bytes */{size_bytes}"
            return streamed(blobs, self._threads, digest, size_bytes, size_bytes, 200, headers)
        address = await self._threads.run(blobs.address, digest, ADDRESS_TTL_S)
        if address is not None:
            return Response(status_code=307, headers={**headers, "Location": address})
        status = 206 if wanted.offset else 200
        if wanted.offset:
            headers["Content-Range"] = f"bytes {wanted.offset}-{size_bytes - 1}/{size_bytes}"
        return streamed(blobs, self._threads, digest, wanted.offset, size_bytes, status, headers)

    def _asked(self, body: bytes, shown: str | None) -> BlobRequest:
        """The request of a node that may have what it asks for. Raises ApiError."""
        node, payload = self._senders.unsealed(body, BLOB_REQUEST_TYPE, shown)
        now_ms = self._deps.clock.now_ms()
        wanted = self._senders.checked(BlobRequest, node, payload, now_ms)
        store = self._deps.store
        records, intents = store.records(), store.open_intents(now_ms)
        known = wanted.digest in digests_for(node.name, records.values(), intents)
        if not known or not self._is_seen(wanted, node.name, records, intents):
            message = "nothing on this node reads that blob, and it was not asked to pull it"
            raise ApiError(403, "blob_not_for_node", message)
        return wanted

    def _is_seen(
        self,
        wanted: BlobRequest,
        node: str,
        records: Mapping[InstanceKey, InstanceRecord],
        intents: Iterable[Intent],
    ) -> bool:
        """Whether it is registered as that source where those who read it here may see it: a node
        could name another project's.
        """
        readers = {
            tuple(key.split("/")[:2])
            for key, record in records.items()
            if record.node == node and wanted.digest in record.blobs
        }
        accepted = self._deps.store.accepted()
        if wanted.source in sources_seen(accepted, wanted.digest, readers):
            return True
        asked = any(one.target_hash == wanted.digest and one.node == node for one in intents)
        return asked and wanted.source in sources_ahead(accepted, wanted.digest)
