"""What node agents call: join, report, poll for tasks, ask for secrets.

Rules:
- What an agent sends is believed by its signature alone; the key tells which node speaks.
- A join token is known here by its hash only. It is spent in the transaction that enrols the node.
- A report counts once and fresh, and so does a request for secrets. Tasks leave as the stored,
  signed envelopes, never rebuilt.
"""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import json
import math
import re
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from node_agent import envelope
from node_agent.wire import (
    MESSAGE_BYTES_MAX,
    POLL_TYPE,
    REPORT_TYPE,
    SECRETS_REQUEST_TYPE,
    JoinReply,
    JoinRequest,
    Phase,
    Poll,
    PollReply,
    Report,
    SecretsRequest,
    VerifierKey,
)
from reconciler.core.authority.accounts import audience
from reconciler.core.names import NAME
from reconciler.core.records import EnrolledNode, Intent
from reconciler.errors import Refused
from reconciler.server.deps import ServerDeps, Threads
from reconciler.server.errors import ApiError, first_problem, read_body
from reconciler.server.instance_secrets import InstanceSecrets, Once

_SMALL_BYTES_MAX = 64 * 1024
_SIGNERS_MAX = 4
_NUMBER_MAX = 2**63 - 1
_UNCHECKED_SEQ_MAX = 2**53
"""Task numbers up to here are taken on an agent's word alone: our store may have been lost. They
leave room for more tasks than there will ever be."""
_PORT_MAX = 65_535
_ITEMS_MAX = 10_000
_TEXT_LENGTH_MAX = 4_000
_ADDRESSES_MAX = 10_000
_POLLS_PER_RECHECK = 100

M = TypeVar("M", Report, Poll, SecretsRequest)


class FailureLimit:
    """Counts failed tries by address in a sliding window; used in the event loop only."""

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

    def pardon(self, address: str) -> None:
        """Takes the last failure back."""
        if self._failures.get(address):
            self._failures[address].pop()


PROGRESS_WAITS_S = 1.0
_UNDER_WAY = (Phase.PENDING.value, Phase.PULLING.value, Phase.STARTING.value)


class News:
    """Tells a report that says something new from a heartbeat that repeats the one before, and
    from one that says how far something got: that decides nothing, and comes when a node is busy.

    What a heartbeat proves, that the node is there, is read from the store when it is needed.
    """

    def __init__(self, silence_ms: int) -> None:
        self._silence_ms = silence_ms
        self._last: dict[str, tuple[bytes, bytes, int]] = {}

    def wake_after_s(self, report: Report, now_ms: int) -> float | None:
        """How soon a pass should look at it; None for one that needs none."""
        said = report.model_dump(
            mode="json", include={"agent_version", "complete", "workloads", "strays", "refusal"}
        )
        said["acks"] = [(ack.task_id, ack.accepted) for ack in report.acks]
        whole = _gist(said)
        said["acks"] = [ack.task_id for ack in report.acks if not ack.accepted]
        said["workloads"] = list(filter(None, map(_without_progress, said["workloads"])))
        gist = _gist(said)
        known, before, at_ms = self._last.get(report.node, (b"", b"", 0))
        self._last[report.node] = (whole, gist, now_ms)
        if gist != before or now_ms - at_ms > self._silence_ms:
            return 0.0
        return None if whole == known else PROGRESS_WAITS_S


def _without_progress(workload: dict[str, Any]) -> dict[str, Any]:
    """What runs there while something is on its way; empty when that is nothing."""
    if workload["phase"] not in _UNDER_WAY or workload["reason"] is not None:
        return workload
    running = ("instance", "running_hash", "retained", "endpoints")
    return {name: workload[name] for name in running} if workload["running_hash"] else {}


def _gist(said: Mapping[str, Any]) -> bytes:
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).digest()


class AgentApi:
    """Routes under /v1/agent."""

    def __init__(self, deps: ServerDeps, threads: Threads) -> None:
        self._deps = deps
        self._threads = threads
        window_ms = int(deps.settings.join_failures_window_s * 1000)
        self._joins = FailureLimit(deps.settings.join_failures_max, window_ms)
        self._news = News(int(deps.settings.node_offline_after_s * 1000))
        self._secrets = InstanceSecrets(
            deps.store, deps.secrets, deps.task_key, audience(deps.settings.environment)
        )
        # A request counts as fresh for that long before and after the time it gives.
        self._asked = Once(2 * int(deps.settings.report_age_max_s * 1000))

    def routes(self) -> list[Route]:
        return [
            Route("/v1/agent/join", self.join, methods=["POST"]),
            Route("/v1/agent/report", self.report, methods=["POST"]),
            Route("/v1/agent/poll", self.poll, methods=["POST"]),
            Route("/v1/agent/secrets", self.secrets, methods=["POST"]),
        ]

    async def join(self, request: Request) -> Response:
        address = request.client.host if request.client else ""
        now_ms = self._deps.clock.now_ms()
        wait_ms = self._joins.retry_after_ms(address, now_ms)
        if wait_ms > 0:
            headers = {"Retry-After": str(math.ceil(wait_ms / 1000))}
            raise ApiError(
                429, "too_many_tries", "too many failed joins: wait, then retry", headers
            )
        timeout_s = self._deps.settings.body_timeout_s
        wanted = _join_request(await read_body(request, _SMALL_BYTES_MAX, timeout_s))
        # Asked for before the token is spent: a secret store that is away costs no token.
        reply = await self._threads.run(self._join_reply, wanted.node)
        # Counted before the answer is known, so that tries in parallel count as well.
        self._joins.failed(address, now_ms)
        if await self._threads.run(self._redeem, wanted, now_ms) is None:
            raise ApiError(
                401,
                "token_refused",
                "the join token is unknown, used, expired or for another node: ask for a new one",
            )
        self._joins.pardon(address)
        self._deps.wake("join")
        return JSONResponse(reply.model_dump(mode="json"))

    async def report(self, request: Request) -> Response:
        body = await read_body(request, MESSAGE_BYTES_MAX, self._deps.settings.body_timeout_s)
        now_ms = self._deps.clock.now_ms()
        # In a thread as a whole: a large message must not hold up everybody else's.
        report, saved = await self._threads.run(self._take_report, body, now_ms)
        if not saved:
            raise ApiError(
                409, "replayed_report", f"report {report.report_seq} is not newer than the last one"
            )
        after_s = await self._threads.run(self._news.wake_after_s, report, now_ms)
        if after_s is not None:
            asyncio.get_running_loop().call_later(after_s, self._deps.wake, "report")
        return JSONResponse({"report_seq": report.report_seq, "received_at_ms": now_ms})

    async def poll(self, request: Request) -> Response:
        body = await read_body(request, _SMALL_BYTES_MAX, self._deps.settings.body_timeout_s)
        node, payload = await self._threads.run(self._unsealed, body, POLL_TYPE)
        poll = self._checked(Poll, node, payload, self._deps.clock.now_ms())
        wait_s = min(poll.wait_ms / 1000, self._deps.settings.long_poll_s)
        tasks = await self._await_tasks(request, node.name, wait_s)
        return JSONResponse(_poll_reply(tasks).model_dump(mode="json"))

    async def secrets(self, request: Request) -> Response:
        body = await read_body(request, _SMALL_BYTES_MAX, self._deps.settings.body_timeout_s)
        node, payload = await self._threads.run(self._unsealed, body, SECRETS_REQUEST_TYPE)
        now_ms = self._deps.clock.now_ms()
        wanted = self._checked(SecretsRequest, node, payload, now_ms)
        if not self._asked.is_first(wanted.public_key, now_ms):
            raise ApiError(
                409, "replayed_request", "this very request was made before: make a new one"
            )
        return JSONResponse(await self._threads.run(self._secrets.answer, wanted))

    async def _await_tasks(self, request: Request, node: str, wait_s: float) -> Sequence[Intent]:
        store, signal, clock = self._deps.store, self._deps.task_queued, self._deps.clock
        deadline = asyncio.get_running_loop().time() + wait_s
        with signal.waiting(node) as waiter:
            while True:
                waiter.clear()
                tasks = await self._threads.run(store.tasks_for, node, clock.now_ms())
                left_s = deadline - asyncio.get_running_loop().time()
                if tasks or left_s <= 0 or signal.closed or await request.is_disconnected():
                    return tasks
                await waiter.wait(min(left_s, self._recheck_s()))

    def _recheck_s(self) -> float:
        # Another process may have queued a task. A large fleet shares the looks, so that waiting
        # agents never cost more than a few hundred reads a second.
        crowd = max(1.0, self._deps.task_queued.waiting_count / _POLLS_PER_RECHECK)
        return self._deps.settings.task_recheck_interval_s * crowd

    def _take_report(self, body: bytes, now_ms: int) -> tuple[Report, bool]:
        """The report, and whether it is newer than the last one and was stored."""
        node, payload = self._unsealed(body, REPORT_TYPE)
        report = self._checked(Report, node, payload, now_ms)
        self._check_numbers(node, report)
        _check_bounds(report.model_dump())
        _check_endpoints(report)
        return report, self._save(node, report, payload, now_ms)

    def _check_numbers(self, node: EnrolledNode, report: Report) -> None:
        """A number too high to count on from would stop every task, so none is believed."""
        plausible = (
            0 < report.report_seq <= _NUMBER_MAX
            and 0 <= report.last_seq <= _NUMBER_MAX
            and (
                report.last_seq <= _UNCHECKED_SEQ_MAX
                or report.last_seq < self._deps.store.next_seq(node.name)
            )
        )
        if not plausible:
            raise ApiError(422, "invalid_message", "report_seq or last_seq is out of range")

    def _unsealed(self, body: bytes, payload_type: str) -> tuple[EnrolledNode, bytes]:
        signers = _signers(body)
        nodes = self._nodes_by_key(signers)
        if signers and not nodes:
            raise _refusal(envelope.EnvelopeRefused("unknown_key", ""))
        keys = [
            VerifierKey(key_id=signer, version=1, public_key=node.public_key)
            for signer, node in nodes.items()
        ]
        try:
            payload, key = envelope.unseal(body, payload_type, keys)
        except envelope.EnvelopeRefused as refused:
            raise _refusal(refused) from None
        return nodes[key.key_id], payload

    def _checked(self, kind: type[M], node: EnrolledNode, payload: bytes, now_ms: int) -> M:
        try:
            message = kind.model_validate_json(payload)
        except ValidationError as error:
            raise ApiError(422, "invalid_message", first_problem(error)) from None
        if message.node != node.name:
            raise ApiError(
                403, "wrong_node", f"this key belongs to node {node.name}, not the sender"
            )
        age_max_ms = int(self._deps.settings.report_age_max_s * 1000)
        if abs(now_ms - message.sent_at_ms) > age_max_ms:
            raise ApiError(
                422,
                "not_fresh",
                f"sent more than {age_max_ms / 1000:g} s from now by the control plane's clock: "
                "check the clocks",
            )
        return message

    def _nodes_by_key(self, signers: Sequence[str]) -> dict[str, EnrolledNode]:
        found = {signer: self._deps.store.node_by_key(signer) for signer in signers}
        return {signer: node for signer, node in found.items() if node is not None}

    def _save(self, node: EnrolledNode, report: Report, payload: bytes, now_ms: int) -> bool:
        store = self._deps.store
        # The report first: it is what a replay fails on. An agent that gets no answer because of
        # a crash in between sends its acknowledgements again.
        if not store.save_report(
            node.name, payload.decode(), report.report_seq, report.last_seq, now_ms
        ):
            return False
        store.acknowledge(node.name, report.acks)
        return True

    def _redeem(self, wanted: JoinRequest, now_ms: int) -> EnrolledNode | None:
        secret_hash = hashlib.sha256(wanted.token.encode()).hexdigest()
        try:
            return self._deps.store.redeem_join_token(
                secret_hash, wanted.node, wanted.public_key, now_ms
            )
        except Refused as refused:
            if refused.code != "key_in_use":
                raise
            raise ApiError(409, refused.code, f"{refused.message} ({refused.hint})") from None

    def _join_reply(self, node: str) -> JoinReply:
        keys = self._deps.secrets.verifier_keys(self._deps.task_key)
        return JoinReply(node=node, verifiers=keys)


def _check_bounds(value: Any) -> None:
    """Raises ApiError for a list or a text that no agent of ours would send."""
    waiting = [value]
    while waiting:
        found = waiting.pop()
        if isinstance(found, str):
            if len(found) > _TEXT_LENGTH_MAX:
                message = f"a text is longer than {_TEXT_LENGTH_MAX} characters"
                raise ApiError(422, "invalid_message", message)
        elif isinstance(found, dict | list | tuple):
            if len(found) > _ITEMS_MAX:
                message = f"a list has more than {_ITEMS_MAX} entries"
                raise ApiError(422, "invalid_message", message)
            waiting.extend((*found, *found.values()) if isinstance(found, dict) else found)
        elif isinstance(found, int) and abs(found) > _NUMBER_MAX:
            raise ApiError(422, "invalid_message", "a number is out of range")


def _check_endpoints(report: Report) -> None:
    """People are shown these in commands to paste: an address and numbers, and no other words."""
    for endpoint in (found for one in report.workloads for found in one.endpoints):
        ports = (endpoint.container, endpoint.host_port)
        if not (_is_address(endpoint.host_ip) and all(1 <= port <= _PORT_MAX for port in ports)):
            raise ApiError(422, "invalid_message", "an endpoint is no address with a port")


def _is_address(text: str) -> bool:
    address, zoned, zone = text.partition("%")
    try:
        ipaddress.ip_address(address)
    except ValueError:
        return False
    return not zoned or re.fullmatch(r"\w[-.\w]*", zone, re.ASCII) is not None


def _join_request(body: bytes) -> JoinRequest:
    try:
        wanted = JoinRequest.model_validate_json(body)
    except ValidationError as error:
        raise ApiError(422, "invalid_message", first_problem(error)) from None
    if not re.fullmatch(NAME, wanted.node):
        raise ApiError(422, "invalid_message", "node: not a valid node name")
    return wanted


def _signers(body: bytes) -> list[str]:
    """Key ids an envelope names: where to look for a key, nothing that is believed."""
    try:
        document = json.loads(body)
        named = [signature["keyid"] for signature in document["signatures"][:_SIGNERS_MAX]]
    except (ValueError, KeyError, TypeError, RecursionError):
        return []
    return [signer for signer in named if isinstance(signer, str) and re.fullmatch(r"\w+", signer)]


def _refusal(refused: envelope.EnvelopeRefused) -> ApiError:
    if refused.code == "unknown_key":
        return ApiError(401, "unknown_node", "no enrolled node has this key: join first")
    status = 401 if refused.code == "bad_signature" else 400
    return ApiError(status, refused.code, refused.message)


def _poll_reply(tasks: Sequence[Intent]) -> PollReply:
    """As many tasks as fit into a message, oldest first; the rest comes with the next poll."""
    envelopes: list[dict[str, Any]] = []
    size_bytes = 0
    for task in tasks:
        size_bytes += len(task.envelope.encode())
        if envelopes and size_bytes > MESSAGE_BYTES_MAX // 2:
            break
        envelopes.append(json.loads(task.envelope))
    return PollReply(tasks=tuple(envelopes))
