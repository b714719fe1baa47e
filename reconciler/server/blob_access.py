"""Whose credential it is that comes to move a blob, and what it opens.

Rules:
- Who comes is a transfer, by its id and credential (Basic). A publish transfer takes bytes under
  its own id; a pull transfer gives the one digest it names. Neither opens anything else.
- Whoever has no good credential learns nothing, and who tries often has to wait. Tries that were
  good don't count.
"""

from __future__ import annotations

import base64
import binascii
import math

from starlette.requests import Request

from reconciler.core.names import Digest
from reconciler.core.transfers import Transfer, admits
from reconciler.server.deps import ServerDeps, Threads
from reconciler.server.errors import ApiError
from reconciler.server.rate_limit import Buckets, peer_of

_REFUSALS_AT_ONCE, _REFUSAL_EVERY_S = 30, 2.0
_ADDRESSES_MAX = 10_000


class BlobAccess:
    """Looks transfers up in the store. Every method raises ApiError for who may not."""

    def __init__(self, deps: ServerDeps, threads: Threads) -> None:
        self._deps = deps
        self._threads = threads
        self._by_address = Buckets(_REFUSALS_AT_ONCE, _REFUSAL_EVERY_S, _ADDRESSES_MAX)

    async def publishing(self, request: Request) -> Transfer:
        """The open publish transfer that the path names."""
        transfer = await self._threads.run(self._opened, request)
        if transfer.id != request.path_params["id"]:
            raise _not_opened("this credential is of another intent than the path names")
        if transfer.kind != "publish" or transfer.content != "blob":
            raise _not_opened("this intent is not there to publish a blob with")
        return transfer

    async def pulling(self, request: Request, digest: Digest) -> Transfer:
        """The open pull transfer that names this digest."""
        transfer = await self._threads.run(self._opened, request)
        if (transfer.kind, transfer.content) != ("pull", "blob"):
            raise _not_opened("this intent is not there to pull a blob with")
        if transfer.digest != str(digest):
            raise _not_opened(f"this intent opens {transfer.digest} and no other blob")
        return transfer

    def still_open(self, transfer: Transfer) -> None:
        """Asked again while a request goes on. ApiError once it was closed, or its time is up."""
        found = self._deps.store.transfer(transfer.id)
        now_ms = self._deps.clock.now_ms()
        if found is None or found.state != "open" or not found.is_open(now_ms):
            raise _refused()

    def _opened(self, request: Request) -> Transfer:
        name, password = _basic(request.headers.get("authorization", ""))
        now_ms = self._deps.clock.now_ms()
        peer = peer_of(request.client.host if request.client else "")
        wait_ms = self._by_address.take(peer, now_ms)
        if wait_ms:
            headers = {"Retry-After": str(math.ceil(wait_ms / 1000))}
            message = "too many refused tries from this address: wait, then retry"
            raise ApiError(429, "rate_limited", message, headers)
        transfer = self._deps.store.transfer(name)
        if transfer is None or not admits(transfer, password, now_ms):
            raise _refused()
        self._by_address.give_back(peer, now_ms)
        return transfer


def _basic(header: str) -> tuple[str, str]:
    scheme, _, word = header.strip().partition(" ")
    try:
        decoded = base64.b64decode(word.strip(), validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        decoded = ""
    name, colon, password = decoded.partition(":")
    if scheme.lower() != "basic" or not colon:
        raise _refused()
    return name, password


def _refused() -> ApiError:
    headers = {"WWW-Authenticate": 'Basic realm="gpuaas"'}
    message = (
        "no open intent has this credential: log in with the id of a publish or pull intent and "
        "what its hand-over token unwraps to (gpuaas intent publish|pull)"
    )
    return ApiError(401, "credential_refused", message, headers)


def _not_opened(message: str) -> ApiError:
    return ApiError(403, "blob_not_opened", message)
