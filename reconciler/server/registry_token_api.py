"""Where clients of the registry get their tokens: the distribution token protocol, over Basic auth.

Rules:
- Who logs in is a transfer, by its id and credential. It opens what the transfer says, while that
  is open, and a token for it lasts no longer. What else is asked for is left out without a word,
  as the protocol wants it: the registry refuses what a token does not say.
- Whoever has no good credential gets no token at all, and who tries often has to wait.
- Neither credential nor token is in any log.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from urllib.parse import parse_qs

import structlog
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from reconciler.artifacts.registry_keys import TOKEN_PATH
from reconciler.artifacts.registry_tokens import RegistryToken, RegistryTokens
from reconciler.core.transfers import opens
from reconciler.ports import Secret
from reconciler.server.deps import ServerDeps, Threads
from reconciler.server.errors import ApiError, read_body
from reconciler.server.rate_limit import peer_of
from reconciler.server.transfer_login import TransferLogin, basic

_BODY_BYTES_MAX = 16 * 1024
_FIELDS_MAX = 64
_FORM = "application/x-www-form-urlencoded"

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Login:
    """What somebody says he is, and what he wants to do, `repository:<name>:<actions>` each."""

    transfer: str
    password: Secret
    service: str
    scopes: tuple[str, ...]
    peer: str
    correlation_id: str = field(default="")


class RegistryTokenApi:
    """GET and POST /v1/registry/token."""

    def __init__(self, deps: ServerDeps, threads: Threads) -> None:
        self._deps = deps
        self._threads = threads
        self._service = deps.settings.registry_token_service
        self._ttl_s = int(deps.settings.registry_token_ttl_s)
        self._tokens = RegistryTokens(deps.secrets, deps.clock, deps.settings)
        self._login = TransferLogin(deps)

    def routes(self) -> list[Route]:
        return [
            Route(TOKEN_PATH, self.given, methods=["GET"]),
            Route(TOKEN_PATH, self.posted, methods=["POST"]),
        ]

    async def given(self, request: Request) -> Response:
        name, password = basic(request.headers.get("authorization", ""))
        query = request.query_params
        return await self._answer(
            request, name, password, query.get("service", ""), query.getlist("scope")
        )

    async def posted(self, request: Request) -> Response:
        """As OAuth 2 has it: the credential is in the body."""
        timeout_s = self._deps.settings.body_timeout_s
        body = await read_body(request, _BODY_BYTES_MAX, timeout_s)
        fields = _fields(request.headers.get("content-type", ""), body)
        if _one(fields, "grant_type") != "password":
            raise ApiError(400, "unsupported_grant_type", "grant_type: expected password")
        name, password = _one(fields, "username"), Secret(_one(fields, "password"))
        service, scopes = _one(fields, "service"), fields.get("scope", [])
        return await self._answer(request, name, password, service, scopes)

    async def _answer(
        self, request: Request, name: str, password: Secret, service: str, scopes: Iterable[str]
    ) -> Response:
        asked = tuple(word for scope in scopes for word in scope.split())
        peer = peer_of(request.client.host if request.client else "")
        login = Login(name, password, service, asked, peer, request.state.correlation_id)
        made = await self._threads.run(self._issued, login)
        token, at_s = made.token.reveal(), made.issued_at_ms / 1000
        return JSONResponse(
            {
                "token": token,
                "access_token": token,
                "expires_in": made.expires_in_s,
                "issued_at": datetime.fromtimestamp(at_s, UTC).isoformat(timespec="seconds"),
            }
        )

    def _issued(self, login: Login) -> RegistryToken:
        now_ms = self._deps.clock.now_ms()
        if login.service not in ("", self._service):
            message = f"this control plane makes tokens for {self._service!r}"
            raise ApiError(400, "service_unknown", message)
        transfer = self._login.opened(login.transfer, login.password, login.peer, now_ms)
        granted = _granted(login.scopes, opens(transfer))
        left_s = max(1, (transfer.expires_at_ms - now_ms) // 1000)
        log.info(
            "registry_token_issued",
            transfer=transfer.id,
            granted={name: list(actions) for name, actions in granted.items()},
            peer=login.peer,
            correlation_id=login.correlation_id,
        )
        subject = f"transfer/{transfer.id}"
        return self._tokens.issue(granted, subject, min(self._ttl_s, left_s))


def _granted(
    asked: Iterable[str], opened: Mapping[str, tuple[str, ...]]
) -> dict[str, tuple[str, ...]]:
    """Repository → actions that are both asked for and opened."""
    found: dict[str, set[str]] = {}
    for scope in asked:
        kind, _, rest = scope.partition(":")
        name, _, actions = rest.rpartition(":")
        if kind == "repository" and name in opened:
            found.setdefault(name, set()).update({*actions.split(",")} & {*opened[name]})
    return {name: tuple(sorted(actions)) for name, actions in sorted(found.items()) if actions}


def _fields(content_type: str, body: bytes) -> Mapping[str, list[str]]:
    if content_type.partition(";")[0].strip().lower() != _FORM:
        raise ApiError(415, "unsupported_media_type", f"expected {_FORM}")
    try:
        return parse_qs(body.decode("ascii"), keep_blank_values=True, max_num_fields=_FIELDS_MAX)
    except ValueError:
        raise ApiError(400, "invalid_message", "the body can't be read") from None


def _one(fields: Mapping[str, list[str]], name: str) -> str:
    found = fields.get(name, [])
    if len(found) > 1:
        raise ApiError(400, "invalid_message", f"{name}: given more than once")
    return found[0] if found else ""
