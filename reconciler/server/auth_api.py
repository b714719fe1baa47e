"""Where tokens are asked for: an assertion in, a bearer token out (RFC 7523).

Rules:
- Every token that is issued, and who asked for it, is in the audit trail before it leaves; refusals
  are too, as many as the trail can bear, and all of them in the log.
- An assertion is good once, whichever process is asked.
- Who is refused often has to wait, and so has an account that asks for more tokens than it needs.
  Nobody uses up an account's share who did not prove to be it.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import get_args
from urllib.parse import parse_qsl

import structlog
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from reconciler.core.authority.accounts import TOKEN_PATH
from reconciler.core.kinds.role_binding import Permission
from reconciler.core.printable import printable
from reconciler.core.records import AuditEntry
from reconciler.server.assertions import Asserted, AssertionLimits, Assertions, Denied
from reconciler.server.deps import ServerDeps, Threads
from reconciler.server.errors import ApiError, read_body
from reconciler.server.rate_limit import Buckets, peer_of, retry_after, take_turn
from reconciler.server.tokens import Issued, Tokens

GRANT_TYPE = "urn:ietf:params:oauth:grant-type:jwt-bearer"
SERVICE_ACCOUNT_PATH = "/v1/auth/service-account/token"
_FORM = "application/x-www-form-urlencoded"
_JSON = "application/json"
_FIELDS_MAX = 16
_PERMISSIONS = frozenset(get_args(Permission))
_UNPROVED = "unproved"
"""Who acts, in the audit trail, where that was not proved."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Wanted:
    """One request: `scope` None where it asks for all that its account may."""

    assertion: str
    scope: tuple[str, ...] | None
    peer: str
    correlation_id: str


class AuthApi:
    """Routes under /v1/auth."""

    def __init__(self, deps: ServerDeps, threads: Threads, tokens: Tokens) -> None:
        self._deps = deps
        self._threads = threads
        self._tokens = tokens
        limits = self._limits = tokens.limits
        bounds = AssertionLimits(
            limits.assertion_bytes_max, limits.assertion_ahead_max_s, limits.clock_skew_max_s
        )
        self._assertions = Assertions(tokens.accounts, tokens.audience, bounds)
        names_max = limits.names_max
        self._by_account = Buckets(limits.account_burst, limits.account_refill_s, names_max)
        self._by_address = Buckets(limits.address_burst, limits.address_refill_s, names_max)
        self._told = _Told(deps, Buckets(limits.told_burst, limits.told_refill_s, names_max))

    def routes(self) -> list[Route]:
        return [
            Route(path, self.token, methods=["POST"]) for path in (TOKEN_PATH, SERVICE_ACCOUNT_PATH)
        ]

    async def token(self, request: Request) -> Response:
        timeout_s = self._deps.settings.body_timeout_s
        body = await read_body(request, self._limits.body_bytes_max, timeout_s)
        fields = _fields(request.headers.get("content-type", ""), body)
        wanted = Wanted(
            _assertion(fields),
            _scope(fields),
            peer_of(request.client.host if request.client else ""),
            request.state.correlation_id,
        )
        issued = await self._threads.run(self._answer, wanted)
        return JSONResponse(
            {
                "access_token": issued.access_token,
                "token_type": "Bearer",
                "expires_in": issued.expires_in_s,
                "scope": " ".join(issued.scope),
            }
        )

    def _answer(self, wanted: Wanted) -> Issued:
        """Counts the try before its outcome is known, so that tries in parallel count as well."""
        now_ms = self._deps.clock.now_ms()
        take_turn(self._by_address, wanted.peer, now_ms, "too many refused tries from this address")
        refused = False
        try:
            return self._issued(wanted, now_ms)
        except Denied as denied:
            refused = True
            self._told.refused(wanted, denied, now_ms)
            raise
        finally:
            if not refused:
                self._by_address.give_back(wanted.peer, now_ms)

    def _issued(self, wanted: Wanted, now_ms: int) -> Issued:
        asserted = self._assertions.verified(wanted.assertion, now_ms)
        subject = str(asserted.account.subject)
        # Looked at before the assertion is used up, and taken after: a copy of it takes nothing.
        wait_ms = self._by_account.wait_ms(subject, now_ms)
        if wait_ms:
            raise _limited(asserted, wait_ms)
        self._use(asserted, now_ms)
        self._by_account.take(subject, now_ms)
        issued = self._tokens.issue(asserted.account, asserted.key_id, wanted.scope)
        self._told.issued(wanted, asserted, issued, now_ms)
        return issued

    def _use(self, asserted: Asserted, now_ms: int) -> None:
        subject = str(asserted.account.subject)
        digest = hashlib.sha256(json.dumps([subject, asserted.jti]).encode()).hexdigest()
        if not self._deps.store.use_once(f"assertion/{digest}", asserted.expires_at_ms, now_ms):
            message = "this very assertion was used before: make a new one"
            denied = Denied(401, "assertion_replayed", message)
            raise denied.of(asserted.account, asserted.key_id)


class _Told:
    """Writes to the log and the audit trail. Neither hears a token or an assertion."""

    def __init__(self, deps: ServerDeps, buckets: Buckets) -> None:
        self._deps = deps
        self._buckets = buckets
        self._lock = threading.Lock()
        self._untold = 0

    def issued(self, wanted: Wanted, asserted: Asserted, issued: Issued, now_ms: int) -> None:
        actor, subject = asserted.actor, str(asserted.account.subject)
        entry = AuditEntry(
            at_ms=now_ms,
            actor=str(actor),
            requester_type=actor.type,
            action="auth.token.issued",
            object=subject,
            reason=f"key {asserted.key_id}, token {issued.token_id}, {issued.expires_in_s} s",
            correlation_id=wanted.correlation_id,
        )
        self._deps.store.append_audit([entry])
        log.info(
            "token_issued",
            account=subject,
            key_id=asserted.key_id,
            jti=issued.token_id,
            scope=issued.scope,
            peer=wanted.peer,
            correlation_id=wanted.correlation_id,
        )

    def refused(self, wanted: Wanted, denied: Denied, now_ms: int) -> None:
        log.warning(
            "token_refused",
            code=denied.code,
            why=denied.why,
            account=denied.account,
            key_id=printable(denied.key_id),
            proved=denied.actor is not None,
            peer=wanted.peer,
            correlation_id=wanted.correlation_id,
        )
        # Those who prove nothing share one bucket, and leave the others theirs.
        if self._buckets.take(str(denied.actor or ""), now_ms):
            with self._lock:
                self._untold += 1
            return
        with self._lock:
            untold, self._untold = self._untold, 0
        entry = AuditEntry(
            at_ms=now_ms,
            actor=str(denied.actor or _UNPROVED),
            requester_type=denied.actor.type if denied.actor else _UNPROVED,
            action="auth.token.refused",
            object=denied.account or _UNPROVED,
            reason=_reason(denied, wanted.peer, untold),
            correlation_id=wanted.correlation_id,
            result=denied.code,
        )
        self._deps.store.append_audit([entry])


def _reason(denied: Denied, peer: str, untold: int) -> str:
    words = [denied.why, f"from {peer}"]
    if denied.key_id:
        words.insert(1, f"key {printable(denied.key_id)}")
    if untold:
        words.append(f"{untold} refusals before it are in the log alone")
    return ", ".join(words)


# --- what is asked -------------------------------------------------------------------------------


def _fields(content_type: str, body: bytes) -> Mapping[str, str]:
    """By name, each once; ApiError for a body that is neither a form nor a JSON object of texts."""
    kind = content_type.partition(";")[0].strip().lower()
    try:
        if kind == _FORM:
            pairs = parse_qsl(
                body.decode("ascii"),
                keep_blank_values=True,
                strict_parsing=True,
                max_num_fields=_FIELDS_MAX,
            )
        elif kind == _JSON:
            pairs = json.loads(body, object_pairs_hook=list)
        else:
            message = f"expected {_FORM} or {_JSON}"
            raise ApiError(415, "unsupported_media_type", message)
        return _named(pairs)
    except (ValueError, RecursionError):
        raise ApiError(400, "invalid_message", "the body can't be read") from None


def _named(pairs: Sequence[tuple[str, object]]) -> dict[str, str]:
    """ValueError for a name that stands twice, and for what is no list of names and texts."""
    found: dict[str, str] = {}
    for pair in pairs if isinstance(pairs, list) else ():
        name, value = pair if isinstance(pair, tuple) else ("", None)
        if not isinstance(value, str) or name in found:
            raise ValueError
        found[name] = value
    return found


def _assertion(fields: Mapping[str, str]) -> str:
    if fields.get("grant_type") != GRANT_TYPE:
        raise ApiError(400, "unsupported_grant_type", f"grant_type: expected {GRANT_TYPE}")
    if not fields.get("assertion"):
        raise ApiError(400, "invalid_message", "assertion: missing")
    return fields["assertion"]


def _scope(fields: Mapping[str, str]) -> tuple[str, ...] | None:
    """What is asked for; None for everything. ApiError for what is no permission."""
    asked = fields.get("scope", "").split()
    unknown = sorted({*asked} - _PERMISSIONS)
    if unknown:
        message = f"scope: there is no permission {printable(unknown[0][:80])}"
        raise ApiError(400, "scope_invalid", message)
    return tuple(asked) or None


def _limited(asserted: Asserted, wait_ms: int) -> Denied:
    subject = str(asserted.account.subject)
    message = f"too many tokens for {subject}: wait, then retry; a token is good many times"
    denied = Denied(429, "rate_limited", message, headers=retry_after(wait_ms))
    return denied.of(asserted.account, asserted.key_id)
