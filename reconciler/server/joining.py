"""How node agents come in, and get their certificates.

Rules:
- A join token is known here by its hash only. It is spent twice over: its wrapping, which shows
  whether somebody else opened it, and its hash in the transaction that enrols the node.
- What was not made here for that node is a guess: no alarm, and whoever guesses often has to wait.
  He keeps out nobody who comes from the same address with a token that was.
- A certificate is for the enrolled key and no other, asked for by who has it.
- A CA that is away keeps nobody out: a joined agent asks for its certificate again.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections import deque
from collections.abc import Callable
from typing import NoReturn, TypeVar

import structlog
from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from node_agent.membership import (
    CERTIFICATE_REQUEST_TYPE,
    CertificateReply,
    CertificateRequest,
    JoinReply,
    JoinRequest,
)
from node_agent.wire import VerifierKey
from reconciler.core.names import NAME
from reconciler.core.records import AuditEntry, EnrolledNode
from reconciler.custody.wrap_mac import Given, WrapMac, read_join_text
from reconciler.errors import GpuaasError, Refused, Transient
from reconciler.ports import Certificate, CertificateAuthority, Clock
from reconciler.server.deps import ServerDeps, Threads
from reconciler.server.errors import ApiError, first_problem, read_body
from reconciler.server.instance_secrets import Once
from reconciler.server.peer import check_csr
from reconciler.server.rate_limit import peer_of, retry_after
from reconciler.server.senders import Senders
from reconciler.server.wrap_alarm import Asker, told_unwrap, tries_by_token

CERTIFICATES_MAX = 10
"""How many certificates a node may ask for within the window of failed joins."""
ROOT_FRESH_MS = 60_000

_BYTES_MAX = 64 * 1024
_ADDRESSES_MAX = 10_000
_ALARM_CODES = ("wrap_spent", "wrap_foreign")

R = TypeVar("R")
log = structlog.get_logger(__name__)


class FailureLimit:
    """Counts tries by name in a sliding window; used in the event loop only."""

    def __init__(self, failures_max: int, window_ms: int) -> None:
        self._failures_max = failures_max
        self._window_ms = window_ms
        self._failures: dict[str, deque[int]] = {}

    def retry_after_ms(self, address: str, now_ms: int) -> int:
        """0 when another try is allowed."""
        failures = self._failures.get(address, deque())
        while failures and failures[0] <= now_ms - self._window_ms:
            failures.popleft()
        if len(failures) < self._failures_max:
            return 0
        return failures[0] + self._window_ms - now_ms

    def failed(self, address: str, now_ms: int) -> None:
        if address not in self._failures and len(self._failures) >= _ADDRESSES_MAX:
            del self._failures[next(iter(self._failures))]
        self._failures.setdefault(address, deque()).append(now_ms)


class KnownRoot:
    """The CA certificate, asked for once a minute at most, and known while the CA is away."""

    def __init__(self, ca: CertificateAuthority, clock: Clock) -> None:
        self._ca = ca
        self._clock = clock
        self._lock = threading.Lock()
        self._pem = ""
        self._fresh_until_ms = 0

    def __call__(self) -> str:
        """Raises what a CertificateAuthority does as long as it never answered."""
        with self._lock:
            now_ms = self._clock.now_ms()
            if not self._pem or now_ms >= self._fresh_until_ms:
                try:
                    self._pem = self._ca.root()
                except Transient:
                    if not self._pem:
                        raise
                self._fresh_until_ms = now_ms + ROOT_FRESH_MS
            return self._pem


class Joining:
    """Routes under /v1/agent that need no certificate, since they are on the way to one."""

    def __init__(self, deps: ServerDeps, ca: CertificateAuthority, threads: Threads) -> None:
        self._deps = deps
        self._ca = ca
        self._threads = threads
        self._senders = Senders(deps)
        self._root = KnownRoot(ca, deps.clock)
        window_ms = int(deps.settings.join_failures_window_s * 1000)
        self._joins = FailureLimit(deps.settings.join_failures_max, window_ms)
        self._certificates = FailureLimit(CERTIFICATES_MAX, window_ms)
        self._by_token = tries_by_token()
        self._macs = WrapMac(deps.secrets, deps.clock)
        self._asked = Once(2 * int(deps.settings.report_age_max_s * 1000))

    def routes(self) -> list[Route]:
        return [
            Route("/v1/agent/ca", self.ca, methods=["GET"]),
            Route("/v1/agent/join", self.join, methods=["POST"]),
            Route("/v1/agent/certificate", self.certificate, methods=["POST"]),
        ]

    async def ca(self, request: Request) -> Response:  # noqa: ARG002 - the same for everybody
        return JSONResponse({"ca": await self._threads.run(self._root)})

    async def join(self, request: Request) -> Response:
        address = request.client.host if request.client else ""
        now_ms = self._deps.clock.now_ms()
        timeout_s = self._deps.settings.body_timeout_s
        wanted = _join_request(await read_body(request, _BYTES_MAX, timeout_s))
        check_csr(wanted.csr, wanted.public_key)
        given = await self._threads.run(self._made_here, wanted)
        if given is None:
            _slow_down(self._joins, address, now_ms, "too many failed joins: wait, then retry")
            self._joins.failed(address, now_ms)
            _refuse_token()
        actor, name = f"node/{wanted.node}", request.state.correlation_id
        asker = Asker(actor, "node", peer_of(address), name)
        reply = await self._threads.run(self._join_once, wanted, given, asker, now_ms)
        self._deps.wake("join")
        return JSONResponse(reply.model_dump(mode="json"))

    async def certificate(self, request: Request) -> Response:
        body = await read_body(request, _BYTES_MAX, self._deps.settings.body_timeout_s)
        node, payload = await self._threads.run(
            self._senders.unsealed, body, CERTIFICATE_REQUEST_TYPE, None
        )
        now_ms = self._deps.clock.now_ms()
        wanted = self._senders.checked(CertificateRequest, node, payload, now_ms)
        check_csr(wanted.csr, node.public_key)
        if not self._asked.is_first(hashlib.sha256(payload).hexdigest(), now_ms):
            message = "this very request was made before: make a new one"
            raise ApiError(409, "replayed_request", message)
        _slow_down(self._certificates, node.name, now_ms, "too many certificates: wait, then retry")
        self._certificates.failed(node.name, now_ms)
        reply = await self._threads.run(self._renewed, node, wanted.csr)
        return JSONResponse(reply.model_dump(mode="json"))

    # --- in a thread ---

    def _verifiers(self) -> tuple[VerifierKey, ...]:
        keys = self._deps.secrets.verifier_keys(self._deps.task_key)
        if not keys:
            message = "there is no key for tasks yet: the control plane is still starting"
            raise Transient("not_started", message)
        return keys

    def _made_here(self, wanted: JoinRequest) -> Given | None:
        given = read_join_text(wanted.token, wanted.node)
        return given if given is not None and self._macs.holds(given) else None

    def _join_once(self, wanted: JoinRequest, given: Given, asker: Asker, now_ms: int) -> JoinReply:
        """Counts the try before its outcome is known, so that tries in parallel count as well."""
        wait_ms = self._by_token.take(given.mac, now_ms)
        if wait_ms:
            _wait(wait_ms, "too many tries of this token: wait, then retry")
        refused = False
        try:
            return self._join(wanted, given, asker, now_ms)
        except ApiError:
            refused = True
            raise
        finally:
            if not refused:
                self._by_token.give_back(given.mac, now_ms)

    def _join(self, wanted: JoinRequest, given: Given, asker: Asker, now_ms: int) -> JoinReply:
        # Read before the token is spent: a store or custody that is away costs no token.
        keys, before = self._verifiers(), self._deps.store.node(wanted.node)
        path = given.path
        secret = self._unwrapped(given, asker)
        node = self._redeemed(secret, wanted, now_ms)
        if node is None:
            _refuse_token()
        self._tell("fleet.node.joined", node, f"from {asker.peer}", asker.correlation_id)
        _attempt("join_secret_left", node, lambda: self._deps.secrets.delete(path))
        self._drop_certificate(before, node)
        # Read after the node is known: a rotation waits from now on until it knows the new version.
        keys = _attempt("join_keys_unread", node, self._verifiers) or keys
        issued = _attempt("certificate_waits", node, lambda: self._issued(node, wanted.csr))
        return JoinReply(
            node=node.name,
            verifiers=keys,
            min_version=keys[0].version,
            certificate=issued.pem if issued is not None else "",
            ca=_attempt("certificate_waits", node, self._root) or "",
        )

    def _unwrapped(self, given: Given, asker: Asker) -> str:
        try:
            return told_unwrap(self._deps, given, asker).reveal()
        except Refused as refused:
            if refused.code not in _ALARM_CODES:
                raise
            _refuse_token()

    def _redeemed(self, secret: str, wanted: JoinRequest, now_ms: int) -> EnrolledNode | None:
        secret_hash = hashlib.sha256(secret.encode()).hexdigest()
        try:
            return self._deps.store.redeem_join_token(
                secret_hash, wanted.node, wanted.public_key, now_ms
            )
        except Refused as refused:
            if refused.code not in ("key_in_use", "key_revoked"):
                raise
            raise ApiError(409, refused.code, f"{refused.message} ({refused.hint})") from None

    def _drop_certificate(self, before: EnrolledNode | None, node: EnrolledNode) -> None:
        """That of the key before is good for nothing here any more; the CA is to say so too."""
        if before is not None and before.public_key != node.public_key:
            serial = before.certificate_serial
            if serial:
                _attempt("certificate_not_revoked", node, lambda: self._ca.revoke(serial))

    def _renewed(self, node: EnrolledNode, csr: str) -> CertificateReply:
        return CertificateReply(certificate=self._issued(node, csr).pem)

    def _issued(self, node: EnrolledNode, csr: str) -> Certificate:
        ttl_s = self._deps.settings.certificate_ttl_s
        issued = self._ca.sign_agent(node.name, csr, ttl_s)
        # Known before it is used: what is revoked later is the newest there is.
        self._deps.store.save_certificate(node.name, issued.serial, issued.not_after_ms)
        self._tell("fleet.certificate.issued", node, f"serial {issued.serial}")
        log.info("certificate_issued", node=node.name, serial=issued.serial)
        return issued

    def _tell(self, action: str, node: EnrolledNode, reason: str, correlation_id: str = "") -> None:
        entry = AuditEntry(
            at_ms=self._deps.clock.now_ms(),
            actor=f"node/{node.name}",
            requester_type="node",
            action=action,
            object=node.name,
            reason=reason,
            correlation_id=correlation_id,
        )
        self._deps.store.append_audit([entry])


def _attempt(event: str, node: EnrolledNode, call: Callable[[], R]) -> R | None:
    """What can be done later as well: the token is spent, so the join goes on without it."""
    try:
        return call()
    except GpuaasError as error:
        log.warning(event, node=node.name, code=error.code, reason=error.message)
        return None


def _slow_down(limit: FailureLimit, name: str, now_ms: int, message: str) -> None:
    wait_ms = limit.retry_after_ms(name, now_ms)
    if wait_ms > 0:
        _wait(wait_ms, message)


def _wait(wait_ms: int, message: str) -> NoReturn:
    raise ApiError(429, "too_many_tries", message, retry_after(wait_ms))


def _refuse_token() -> NoReturn:
    raise ApiError(
        401,
        "token_refused",
        "the join token is unknown, used, expired or for another node: ask for a new one",
    )


def _join_request(body: bytes) -> JoinRequest:
    try:
        wanted = JoinRequest.model_validate_json(body)
    except ValidationError as error:
        raise ApiError(422, "invalid_message", first_problem(error)) from None
    if not re.fullmatch(NAME, wanted.node):
        raise ApiError(422, "invalid_message", "node: not a valid node name")
    return wanted
