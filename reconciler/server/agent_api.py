"""What node agents call once they are in: report, poll for tasks, ask for secrets and credentials.

Rules:
- The connection shows a certificate of the key that signs what comes over it (`peer`, `senders`).
- A report counts once and fresh, and so does a request for secrets. Tasks leave as the stored,
  signed envelopes, never rebuilt.
"""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from node_agent.artifact_wire import PULL_TOKEN_REQUEST_TYPE, PullTokenRequest
from node_agent.wire import (
    MESSAGE_BYTES_MAX,
    POLL_TYPE,
    REPORT_TYPE,
    SECRETS_REQUEST_TYPE,
    Phase,
    Poll,
    PollReply,
    Report,
    SecretsRequest,
)
from reconciler.artifacts.registry_tokens import RegistryTokens
from reconciler.core.authority.accounts import audience
from reconciler.core.records import EnrolledNode, Intent
from reconciler.server.deps import ServerDeps, Threads
from reconciler.server.errors import ApiError, read_body
from reconciler.server.instance_secrets import InstanceSecrets, Once
from reconciler.server.peer import shown_key
from reconciler.server.pull_tokens import PullTokens
from reconciler.server.senders import Senders

_SMALL_BYTES_MAX = 64 * 1024
_NUMBER_MAX = 2**63 - 1
_UNCHECKED_SEQ_MAX = 2**53
"""Task numbers up to here are taken on an agent's word alone: our store may have been lost. They
leave room for more tasks than there will ever be."""
_PORT_MAX = 65_535
_ITEMS_MAX = 10_000
_TEXT_LENGTH_MAX = 4_000
_POLLS_PER_RECHECK = 100


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
            mode="json",
            include={"agent_version", "complete", "workloads", "strays", "refusal", "config"},
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
        self._senders = Senders(deps)
        self._news = News(int(deps.settings.node_offline_after_s * 1000))
        self._secrets = InstanceSecrets(
            deps.store, deps.secrets, audience(deps.settings.environment)
        )
        tokens = RegistryTokens(deps.secrets, deps.clock, deps.settings)
        self._pull_tokens = PullTokens(deps.store, tokens, deps.settings)
        # A request counts as fresh for that long before and after the time it gives.
        self._asked = Once(2 * int(deps.settings.report_age_max_s * 1000))

    def routes(self) -> list[Route]:
        return [
            Route("/v1/agent/report", self.report, methods=["POST"]),
            Route("/v1/agent/poll", self.poll, methods=["POST"]),
            Route("/v1/agent/secrets", self.secrets, methods=["POST"]),
            Route("/v1/agent/pull-token", self.pull_token, methods=["POST"]),
        ]

    async def report(self, request: Request) -> Response:
        shown = shown_key(request, self._deps.clock.now_ms())
        body = await read_body(request, MESSAGE_BYTES_MAX, self._deps.settings.body_timeout_s)
        now_ms = self._deps.clock.now_ms()
        # In a thread as a whole: a large message must not hold up everybody else's.
        report, saved = await self._threads.run(self._take_report, body, now_ms, shown)
        if not saved:
            raise ApiError(
                409, "replayed_report", f"report {report.report_seq} is not newer than the last one"
            )
        after_s = await self._threads.run(self._news.wake_after_s, report, now_ms)
        if after_s is not None:
            asyncio.get_running_loop().call_later(after_s, self._deps.wake, "report")
        return JSONResponse({"report_seq": report.report_seq, "received_at_ms": now_ms})

    async def poll(self, request: Request) -> Response:
        node, payload = await self._heard(request, POLL_TYPE)
        poll = self._senders.checked(Poll, node, payload, self._deps.clock.now_ms())
        reply = await self._await_news(request, node, poll)
        # One that asks for no config is of a version that knows of none.
        unknown = {"config"} if reply.config is None else None
        return JSONResponse(reply.model_dump(mode="json", exclude=unknown))

    async def secrets(self, request: Request) -> Response:
        node, payload = await self._heard(request, SECRETS_REQUEST_TYPE)
        now_ms = self._deps.clock.now_ms()
        wanted = self._senders.checked(SecretsRequest, node, payload, now_ms)
        if not self._asked.is_first(wanted.public_key, now_ms):
            raise ApiError(
                409, "replayed_request", "this very request was made before: make a new one"
            )
        return JSONResponse(await self._threads.run(self._secrets.answer, wanted))

    async def pull_token(self, request: Request) -> Response:
        node, payload = await self._heard(request, PULL_TOKEN_REQUEST_TYPE)
        now_ms = self._deps.clock.now_ms()
        wanted = self._senders.checked(PullTokenRequest, node, payload, now_ms)
        found = await self._threads.run(self._pull_tokens.answer, wanted)
        return JSONResponse(found.model_dump(mode="json"))

    async def _heard(self, request: Request, payload_type: str) -> tuple[EnrolledNode, bytes]:
        shown = shown_key(request, self._deps.clock.now_ms())
        body = await read_body(request, _SMALL_BYTES_MAX, self._deps.settings.body_timeout_s)
        return await self._threads.run(self._senders.unsealed, body, payload_type, shown)

    async def _await_news(self, request: Request, node: EnrolledNode, poll: Poll) -> PollReply:
        """What there is to tell, or nothing once the wait is over."""
        signal, loop = self._deps.task_queued, asyncio.get_running_loop()
        deadline = loop.time() + min(poll.wait_ms / 1000, self._deps.settings.long_poll_s)
        with signal.waiting(node.name) as waiter:
            while True:
                waiter.clear()
                reply = await self._threads.run(self._look, node, poll.config)
                left_s = deadline - loop.time()
                over = left_s <= 0 or signal.closed or await request.is_disconnected()
                if reply.tasks or reply.config is not None or over:
                    return reply
                await waiter.wait(min(left_s, self._recheck_s()))

    def _look(self, node: EnrolledNode, config: str | None) -> PollReply:
        """What there is for a node whose NodeConfig has this digest, if it knows of any.

        Raises ApiError when its key is believed no more.
        """
        self._senders.check_still(node)
        tasks = self._deps.store.tasks_for(node.name, self._deps.clock.now_ms())
        if config is None or self._deps.node_config is None:
            return _poll_reply(tasks)
        return _poll_reply(tasks, self._deps.node_config(node.name, config))

    def _recheck_s(self) -> float:
        # Another process may have queued a task. A large fleet shares the looks, so that waiting
        # agents never cost more than a few hundred reads a second.
        crowd = max(1.0, self._deps.task_queued.waiting_count / _POLLS_PER_RECHECK)
        return self._deps.settings.task_recheck_interval_s * crowd

    def _take_report(self, body: bytes, now_ms: int, shown: str | None) -> tuple[Report, bool]:
        """The report, and whether it is newer than the last one and was stored."""
        node, payload = self._senders.unsealed(body, REPORT_TYPE, shown)
        report = self._senders.checked(Report, node, payload, now_ms)
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


def _poll_reply(tasks: Sequence[Intent], config: Mapping[str, Any] | None = None) -> PollReply:
    """As many tasks as fit into a message, oldest first; the rest comes with the next poll."""
    envelopes: list[dict[str, Any]] = []
    size_bytes = 0
    for task in tasks:
        size_bytes += len(task.envelope.encode())
        if envelopes and size_bytes > MESSAGE_BYTES_MAX // 2:
            break
        envelopes.append(json.loads(task.envelope))
    return PollReply(tasks=tuple(envelopes), config=dict(config) if config else None)
