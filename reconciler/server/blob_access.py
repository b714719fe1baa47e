"""Whose credential it is that comes to move a blob, and what it opens.

Rules:
- Who comes is a transfer, by its id and credential (Basic). A publish transfer takes bytes under
  its own id; a pull transfer gives the one digest it names. Neither opens anything else.
- What a credential has to be, and how often it may be tried, `transfer_login` says.
"""

from __future__ import annotations

from starlette.requests import Request

from reconciler.core.names import Digest
from reconciler.core.transfers import Transfer
from reconciler.server.deps import ServerDeps, Threads
from reconciler.server.errors import ApiError
from reconciler.server.rate_limit import peer_of
from reconciler.server.transfer_login import TransferLogin, basic, credential_refused


class BlobAccess:
    """Looks transfers up in the store. Every method raises ApiError for who may not."""

    def __init__(self, deps: ServerDeps, threads: Threads) -> None:
        self._deps = deps
        self._threads = threads
        self._login = TransferLogin(deps)

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
            raise credential_refused()

    def _opened(self, request: Request) -> Transfer:
        name, password = basic(request.headers.get("authorization", ""))
        peer = peer_of(request.client.host if request.client else "")
        return self._login.opened(name, password, peer, self._deps.clock.now_ms())


def _not_opened(message: str) -> ApiError:
    return ApiError(403, "blob_not_opened", message)
