"""Where people unwrap what was handed over to them: a hand-over token in, its secret out, once.

Rules:
- This changes state, as no other route for people does: it uses up a token. What should run is not
  touched by it.
- Nobody has to say who he is: whoever has the token has the secret, and that is why it is good once
  and not for long. Body and answer are in no log.
- Anybody may come with what is no token of ours: that is no alarm, and whoever does it often has
  to wait. He keeps out nobody who comes from the same address, say a proxy, with one that is.
- One of ours that is refused is an alarm, told each time; what is limited is how often one and the
  same token may be tried.
"""

from __future__ import annotations

import json

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from reconciler.custody.wrap_mac import Given, WrapMac
from reconciler.errors import Refused
from reconciler.ports import Secret
from reconciler.server.deps import ServerDeps, Threads
from reconciler.server.errors import ApiError, read_body
from reconciler.server.rate_limit import Buckets, peer_of, take_turn
from reconciler.server.wrap_alarm import told_unwrap, tries_by_token
from reconciler.use_cases.handover import TOKEN_BYTES_MAX, Asker, checked_token

UNWRAP_PATH = "/v1/unwrap"
_BODY_BYTES_MAX = TOKEN_BYTES_MAX + 64
_REFUSALS_AT_ONCE, _REFUSAL_EVERY_S = 10, 6.0
"""What is no token of ours, by one address."""
_ADDRESSES_MAX = 10_000
_UNPROVED = "unproved"
_STATUS = {"handover_malformed": 400, "wrap_spent": 410, "wrap_foreign": 403}


class UnwrapApi:
    """POST /v1/unwrap."""

    def __init__(self, deps: ServerDeps, threads: Threads) -> None:
        self._deps = deps
        self._threads = threads
        self._by_address = Buckets(_REFUSALS_AT_ONCE, _REFUSAL_EVERY_S, _ADDRESSES_MAX)
        self._by_token = tries_by_token()
        self._macs = WrapMac(deps.secrets, deps.clock)

    def routes(self) -> list[Route]:
        return [Route(UNWRAP_PATH, self.unwrap, methods=["POST"])]

    async def unwrap(self, request: Request) -> Response:
        body = await read_body(request, _BODY_BYTES_MAX, self._deps.settings.body_timeout_s)
        token = _token(body)
        peer = peer_of(request.client.host if request.client else "")
        asker = Asker(_UNPROVED, _UNPROVED, peer, request.state.correlation_id)
        value = await self._threads.run(self._taken, token, asker)
        return JSONResponse({"value": value.reveal()})

    def _taken(self, token: Secret, asker: Asker) -> Secret:
        """Counts the try before its outcome is known, so that tries in parallel count as well."""
        now_ms = self._deps.clock.now_ms()
        given = self._checked(token, asker.peer, now_ms)
        take_turn(self._by_token, given.mac, now_ms, "too many tries of this token")
        refused = False
        try:
            return told_unwrap(self._deps, given, asker)
        except Refused as error:
            status = _STATUS.get(error.code)
            if status is None:
                raise
            refused = True
            raise ApiError(status, error.code, error.message) from None
        finally:
            if not refused:
                self._by_token.give_back(given.mac, now_ms)

    def _checked(self, token: Secret, peer: str, now_ms: int) -> Given:
        try:
            return checked_token(self._macs, token)
        except Refused as error:
            status = _STATUS.get(error.code)
            if status is None:
                raise
            take_turn(self._by_address, peer, now_ms, "too many refused tries from this address")
            raise ApiError(status, error.code, error.message) from None


def _token(body: bytes) -> Secret:
    """ApiError for a body that is not `{"token": "…"}`."""
    try:
        document = json.loads(body)
        token = document["token"] if [*document] == ["token"] else None
    except (ValueError, TypeError, KeyError, RecursionError):
        token = None
    if not isinstance(token, str):
        raise ApiError(400, "invalid_message", 'expected {"token": "…"} and nothing else')
    return Secret(token)
