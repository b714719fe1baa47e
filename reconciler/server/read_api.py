"""Read-only: status, instances, events, nodes, health and metrics.

Rules:
- Documents come from `read_models`, the same that the command line shows. Nothing is changed.
- While readers need no token, they must call us by an address or a name of ours: else any page in
  a browser on this host could read along, by letting its own name point here (DNS rebinding).
"""

from __future__ import annotations

import gzip
import ipaddress
import re
from collections.abc import Awaitable, Callable, Collection
from urllib.parse import urlsplit

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from reconciler.core.names import NAME, InstanceKey
from reconciler.server.deps import ServerDeps, Threads
from reconciler.server.errors import ApiError
from reconciler.server.metrics import Process, StateCollector
from reconciler.use_cases.timeline import events_of
from reconciler.views import read_models
from reconciler.views.timeline import timeline_document

EVENTS_PER_PAGE_MAX = 1_000
_CURSOR_MAX = 2**63 - 1
_PROBES = ("/healthz", "/readyz")
_KEY = re.compile(rf"{NAME}/{NAME}/{NAME}(?:\.{NAME})?")


Answer = Callable[[Request], Awaitable[Response]]


class ReadApi:
    """Routes under /v1 that only read, and the endpoints for probes and Prometheus."""

    def __init__(self, deps: ServerDeps, threads: Threads) -> None:
        self._deps = deps
        self._threads = threads
        # A snapshot may wait for the registry: who asks for one waits in a line of its own.
        self._snapshots = Threads(1)
        self._offline_after_ms = int(deps.settings.node_offline_after_s * 1000)
        listen = urlsplit(f"//{deps.settings.listen}").hostname or ""
        self._hosts = {"localhost", listen, *map(str.lower, deps.settings.allowed_hosts)}

    def routes(self) -> list[Route]:
        found = {
            "/healthz": self.healthz,
            "/readyz": self.readyz,
            "/metrics": self.metrics,
            "/v1/status": self.status,
            "/v1/instances": self.instances,
            "/v1/instances/{tenant}/{project}/{name}": self.instance,
            "/v1/instances/{tenant}/{project}/{name}/timeline": self.timeline,
            "/v1/events": self.events,
            "/v1/nodes": self.nodes,
            "/v1/snapshot": self.snapshot,
        }
        return [
            Route(path, answer if path in _PROBES else self._called_by_name(answer))
            for path, answer in found.items()
        ]

    async def healthz(self, _request: Request) -> Response:
        """Live while the loop goes round: a loop that hangs is mended by a restart alone."""
        beat = self._deps.heartbeat() if self._deps.heartbeat is not None else None
        if beat is None:
            return JSONResponse({"status": "live"})
        if beat.age_s > self._deps.settings.heartbeat_age_max_s:
            message = f"the loop last gave a sign of life {beat.age_s:.0f} s ago"
            raise ApiError(503, "loop_silent", message)
        return JSONResponse({"status": "live", "heartbeat_age_s": round(beat.age_s, 1)})

    async def readyz(self, _request: Request) -> Response:
        """Ready when the store answers and passes are being made, by whichever process leads."""
        last = await self._threads.run(self._deps.store.last_pass)
        if last is None:
            raise ApiError(503, "no_pass_yet", "no pass has ended yet")
        age_s = read_models.pass_age_ms(last, self._deps.clock.now_ms()) / 1000
        if age_s > self._deps.settings.pass_age_max_s:
            raise ApiError(503, "pass_overdue", f"the last pass ended {age_s:.0f} s ago")
        ready: dict[str, object] = {"status": "ready", "last_pass_age_s": age_s}
        if self._deps.heartbeat is not None:
            leading = self._deps.heartbeat().leading
            ready["role"] = "leading" if leading else "standing_by"
        return JSONResponse({**ready, "last_pass_result": last.result})

    async def metrics(self, _request: Request) -> Response:
        content = await self._threads.run(self._exposition)
        return Response(content, media_type=CONTENT_TYPE_LATEST)

    async def status(self, _request: Request) -> Response:
        return JSONResponse(await self._threads.run(self._status))

    async def instances(self, _request: Request) -> Response:
        records = await self._threads.run(self._deps.store.records)
        found = [read_models.instance_document(one) for one in read_models.in_order(records)]
        return JSONResponse({"instances": found})

    async def instance(self, request: Request) -> Response:
        parts = (request.path_params[name] for name in ("tenant", "project", "name"))
        key = InstanceKey("/".join(parts))
        records = await self._threads.run(self._deps.store.records)
        if key not in records:
            raise ApiError(404, "no_such_instance", "there is no instance of that name")
        return JSONResponse(read_models.instance_with_members(records, key))

    async def timeline(self, request: Request) -> Response:
        parts = (request.path_params[name] for name in ("tenant", "project", "name"))
        key = InstanceKey("/".join(parts))
        last = _number(request, "last", 100, EVENTS_PER_PAGE_MAX)
        return JSONResponse(await self._threads.run(self._timeline, key, last))

    def _timeline(self, key: InstanceKey, last: int) -> read_models.Document:
        store = self._deps.store
        record, events = store.records().get(key), events_of(store, key)
        if record is None and not events:
            raise ApiError(404, "no_such_instance", "there is no instance of that name")
        return timeline_document(key, record, events, self._deps.clock.now_ms(), last)

    async def events(self, request: Request) -> Response:
        after = _number(request, "after", 0, _CURSOR_MAX)
        limit = _number(request, "limit", 100, EVENTS_PER_PAGE_MAX)
        key = _instance(request)
        found = await self._threads.run(self._deps.store.events, after, limit, key)
        return JSONResponse(read_models.events_document(found, after))

    async def nodes(self, _request: Request) -> Response:
        nodes = await self._threads.run(self._deps.store.nodes)
        now_ms = self._deps.clock.now_ms()
        return JSONResponse(read_models.nodes_document(nodes, now_ms, self._offline_after_ms))

    async def snapshot(self, request: Request) -> Response:
        """What an offline plan is made from: signed and redacted, compressed for who takes that."""
        take = self._deps.snapshot
        if take is None:
            raise ApiError(404, "no_snapshot", "this server offers no snapshots")
        content, headers = await self._snapshots.run(take), {"Vary": "Accept-Encoding"}
        if _takes_gzip(request.headers.get("accept-encoding", "")):
            content = await self._snapshots.run(gzip.compress, content, 5, mtime=0)
            headers["Content-Encoding"] = "gzip"
        return Response(content, media_type="application/json", headers=headers)

    def _called_by_name(self, answer: Answer) -> Answer:
        async def checked(request: Request) -> Response:
            if not self._deps.settings.allow_remote_read:
                check_host(request.headers.get("host", ""), self._hosts)
            return await answer(request)

        return checked

    def _status(self) -> read_models.Document:
        store = self._deps.store
        return read_models.status_document(
            store.records(),
            store.nodes(),
            store.last_pass(),
            self._deps.clock.now_ms(),
            self._offline_after_ms,
        )

    def _exposition(self) -> bytes:
        store, now_ms = self._deps.store, self._deps.clock.now_ms()
        beat = self._deps.heartbeat() if self._deps.heartbeat is not None else None
        process = Process(
            beat is not None and beat.leading,
            beat.age_s if beat is not None else 0.0,
            self._deps.metrics.last_good_s,
        )
        state = StateCollector(
            store.records().values(),
            store.nodes(),
            store.open_intents(now_ms),
            store.last_pass(),
            now_ms,
            process,
        )
        return self._deps.metrics.exposition(state)


def check_host(header: str, names: Collection[str]) -> None:
    """Raises ApiError 421 unless a Host header holds an IP address or one of `names`."""
    try:
        host = urlsplit(f"//{header}").hostname or ""
        if host in names or ipaddress.ip_address(host):
            return
    except ValueError:
        pass  # Neither a host nor an address: refused like any name that is not ours.
    message = "this host is not called so: use its address, or name it in allowed_hosts"
    raise ApiError(421, "wrong_host", message)


def _takes_gzip(header: str) -> bool:
    """Whether an Accept-Encoding header allows gzip: named, and not with a weight of 0."""
    for part in header.lower().split(","):
        name, _, weight = part.replace(" ", "").partition(";q=")
        if name in ("gzip", "*"):
            return not re.fullmatch(r"0(\.0*)?", weight or "1")
    return False


def _number(request: Request, name: str, default: int, maximum: int) -> int:
    text = request.query_params.get(name, str(default))
    if not re.fullmatch(r"[0-9]{1,19}", text) or int(text) > maximum:
        raise ApiError(422, "invalid_parameter", f"{name}: expected a number from 0 to {maximum}")
    return int(text)


def _instance(request: Request) -> InstanceKey | None:
    text = request.query_params.get("instance")
    if text is None:
        return None
    if not _KEY.fullmatch(text):
        raise ApiError(422, "invalid_parameter", "instance: expected tenant/project/name[.member]")
    return InstanceKey(text)
