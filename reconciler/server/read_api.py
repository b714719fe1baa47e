"""Read-only: status, instances, events, nodes, audit, health and metrics.

Rules:
- Documents come from `views`, the same that the command line shows. Nothing is changed.
- No route without its row in `operations`: who may call it is asked there, before the answer is
  made, and what is of single projects is filtered by what the caller may read.
"""

from __future__ import annotations

import gzip
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from reconciler.core.names import InstanceKey
from reconciler.core.records import InstanceRecord, NumberedEvent
from reconciler.errors import Refused
from reconciler.server import operations
from reconciler.server.access_rules import (
    NOBODY,
    Access,
    Reader,
    grant_document,
    may_read,
    without_foreign_names,
)
from reconciler.server.deps import ServerDeps, Threads
from reconciler.server.errors import ApiError
from reconciler.server.metrics import Process, StateCollector
from reconciler.server.openapi import openapi_json
from reconciler.server.operations import KEY, Operation, Query
from reconciler.use_cases.timeline import events_of
from reconciler.views import read_models
from reconciler.views.audit import row_document
from reconciler.views.timeline import timeline_document

_LOOK_AT = 1_000
_LOOKS_MAX = 10
"""Events looked at in one go, and how often for one page of who may read few of them."""

Records = Mapping[InstanceKey, InstanceRecord]


@dataclass(frozen=True)
class Call:
    """A request that was let in: whose, and its parameters."""

    request: Request
    reader: Reader
    query: Query

    @property
    def key(self) -> InstanceKey:
        """The instance in the path; ApiError 404 for what no instance could be called."""
        parts = (self.request.path_params[name] for name in ("tenant", "project", "name"))
        key = InstanceKey("/".join(parts))
        if not KEY.fullmatch(key):
            raise _no_such_instance()
        return key


Answer = Callable[[Call], Awaitable[Response]]


class ReadApi:
    """Routes that only read, and the endpoints for probes and Prometheus."""

    def __init__(self, deps: ServerDeps, threads: Threads, access: Access) -> None:
        self._deps = deps
        self._threads = threads
        self._access = access
        # A snapshot may wait for the registry: who asks for one waits in a line of its own.
        self._snapshots = Threads(1)
        # What is accepted may have to be resolved first: the same holds.
        self._topologies = Threads(1)
        self._offline_after_ms = int(deps.settings.node_offline_after_s * 1000)

    def routes(self) -> list[Route]:
        answers: dict[str, Answer] = {
            "healthz": self.healthz,
            "readyz": self.readyz,
            "openapi": self.openapi,
            "metrics": self.metrics,
            "whoami": self.whoami,
            "status": self.status,
            "instances": self.instances,
            "instance": self.instance,
            "timeline": self.timeline,
            "topology": self.topology,
            "events": self.events,
            "nodes": self.nodes,
            "audit": self.audit,
            "snapshot": self.snapshot,
        }
        return [
            Route(one.path, self._let_in(one, answers[one.id]))
            for one in operations.READ_OPERATIONS
        ]

    def _let_in(self, operation: Operation, answer: Answer) -> Callable[..., Awaitable[Response]]:
        async def checked(request: Request) -> Response:
            reader = NOBODY
            if operation.needs_token:
                reader = await self._access.reader(request)
                if operation.access != operations.CALLER and not operation.by_project:
                    may_read(reader, operation.access)
            return await answer(Call(request, reader, Query(operation, request.query_params)))

        return checked

    async def healthz(self, _call: Call) -> Response:
        """Live while the loop goes round: a loop that hangs is mended by a restart alone."""
        beat = self._deps.heartbeat() if self._deps.heartbeat is not None else None
        if beat is None:
            return JSONResponse({"status": "live"})
        if beat.age_s > self._deps.settings.heartbeat_age_max_s:
            message = f"the loop last gave a sign of life {beat.age_s:.0f} s ago"
            raise ApiError(503, "loop_silent", message)
        return JSONResponse({"status": "live", "heartbeat_age_s": round(beat.age_s, 1)})

    async def readyz(self, _call: Call) -> Response:
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

    async def openapi(self, _call: Call) -> Response:
        return Response(openapi_json(), media_type="application/json")

    async def metrics(self, _call: Call) -> Response:
        content = await self._threads.run(self._exposition)
        return Response(content, media_type=CONTENT_TYPE_LATEST)

    async def whoami(self, call: Call) -> Response:
        reader = call.reader
        return JSONResponse(
            {
                "actor": reader.actor,
                "type": reader.type,
                "grants": [grant_document(one) for one in reader.grants],
                "expires_at_ms": reader.expires_at_ms,
            }
        )

    async def status(self, _call: Call) -> Response:
        return JSONResponse(await self._threads.run(self._status))

    async def instances(self, call: Call) -> Response:
        return JSONResponse(await self._threads.run(self._instances, call.reader))

    def _instances(self, reader: Reader) -> read_models.Document:
        records = self._deps.store.records()
        seen = [one for one in read_models.in_order(records) if reader.sees(one.key)]
        found = {"instances": [read_models.instance_document(one) for one in seen]}
        return _without_foreign_names(found, reader, records)

    async def instance(self, call: Call) -> Response:
        return JSONResponse(await self._threads.run(self._instance, call.key, call.reader))

    def _instance(self, key: InstanceKey, reader: Reader) -> read_models.Document:
        records = self._deps.store.records()
        if key not in records or not reader.sees(key):
            raise _no_such_instance()
        found = read_models.instance_with_members(records, key)
        return _without_foreign_names(found, reader, records)

    async def timeline(self, call: Call) -> Response:
        last = call.query.number("last")
        return JSONResponse(await self._threads.run(self._timeline, call.key, last, call.reader))

    def _timeline(self, key: InstanceKey, last: int, reader: Reader) -> read_models.Document:
        store = self._deps.store
        records, events = store.records(), events_of(store, key)
        record = records.get(key)
        if (record is None and not events) or not reader.sees(key):
            raise _no_such_instance()
        # A name may have been another project's before.
        own = [one for one in events if reader.sees(one.event.instance)]
        found = timeline_document(key, record, own, self._deps.clock.now_ms(), last)
        return _without_foreign_names(found, reader, records)

    async def topology(self, call: Call) -> Response:
        return JSONResponse(await self._topologies.run(self._topology, call.key, call.reader))

    def _topology(self, key: InstanceKey, reader: Reader) -> read_models.Document:
        take = self._deps.topology
        if not reader.sees(key):
            raise _no_such_instance()
        if take is None:
            raise ApiError(404, "no_topology", "this server offers no topologies")
        try:
            found = take(key)
        except Refused as refused:
            if refused.code == "no_such_instance":
                raise _no_such_instance() from None
            # Why so may name what is of others; `gpuaas explain` says it to who may read it.
            message = "nothing can run for this instance as it is accepted"
            raise ApiError(409, "instance_unresolved", message) from None
        return _without_foreign_names(found, reader, self._deps.store.records())

    async def events(self, call: Call) -> Response:
        query = call.query
        asked = (query.number("after"), query.number("limit"), query.instance())
        return JSONResponse(await self._threads.run(self._events, *asked, call.reader))

    def _events(
        self, after: int, limit: int, instance: InstanceKey | None, reader: Reader
    ) -> read_models.Document:
        """Events that the reader may see, and how far was looked: what is left out moves the
        cursor like what is shown, so that a page of nothing gets on as well.
        """
        store = self._deps.store
        if reader.sees_all:
            return read_models.events_document(store.events(after, limit, instance), after)
        if instance is not None and not reader.sees(instance):
            return read_models.events_document((), after)
        seen, at = self._visible_events(after, limit, instance, reader)
        found = {**read_models.events_document(seen), "next_after": at}
        return _without_foreign_names(found, reader, store.records())

    def _visible_events(
        self, after: int, limit: int, instance: InstanceKey | None, reader: Reader
    ) -> tuple[Sequence[NumberedEvent], int]:
        seen: list[NumberedEvent] = []
        for _ in range(_LOOKS_MAX if limit else 0):
            page = self._deps.store.events(after, _LOOK_AT, instance)
            for numbered in page:
                after = numbered.cursor
                if reader.sees(numbered.event.instance):
                    seen.append(numbered)
                    if len(seen) == limit:
                        return seen, after
            if len(page) < _LOOK_AT:
                break
        return seen, after

    async def nodes(self, _call: Call) -> Response:
        nodes = await self._threads.run(self._deps.store.nodes)
        now_ms = self._deps.clock.now_ms()
        return JSONResponse(read_models.nodes_document(nodes, now_ms, self._offline_after_ms))

    async def audit(self, call: Call) -> Response:
        after, limit = call.query.number("after"), call.query.number("limit")
        return JSONResponse(await self._threads.run(self._audit, after, limit))

    async def snapshot(self, call: Call) -> Response:
        """What an offline plan is made from: signed and redacted, compressed for who takes that."""
        take = self._deps.snapshot
        if take is None:
            raise ApiError(404, "no_snapshot", "this server offers no snapshots")
        content, headers = await self._snapshots.run(take), {"Vary": "Accept-Encoding"}
        if _takes_gzip(call.request.headers.get("accept-encoding", "")):
            content = await self._snapshots.run(gzip.compress, content, 5, mtime=0)
            headers["Content-Encoding"] = "gzip"
        return Response(content, media_type="application/json", headers=headers)

    def _status(self) -> read_models.Document:
        store = self._deps.store
        return read_models.status_document(
            store.records(),
            store.nodes(),
            store.last_pass(),
            self._deps.clock.now_ms(),
            self._offline_after_ms,
        )

    def _audit(self, after: int, limit: int) -> read_models.Document:
        store = self._deps.store
        # The head first: rows that come in between are then no rows too many.
        seq, row_hash = store.audit_head()
        rows = [row for row in store.audit(after, limit) if row.seq <= seq]
        return {
            "rows": [row_document(row) for row in rows],
            "next_after": rows[-1].seq if rows else after,
            "head": {"seq": seq, "row_hash": row_hash},
        }

    def _exposition(self) -> bytes:
        store, now_ms = self._deps.store, self._deps.clock.now_ms()
        beat = self._deps.heartbeat() if self._deps.heartbeat is not None else None
        process = Process(
            beat is not None and beat.leading,
            beat.age_s if beat is not None else 0.0,
            self._deps.metrics.last_good_s,
            beat is None or beat.custody_up,
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


def _takes_gzip(header: str) -> bool:
    """Whether an Accept-Encoding header allows gzip: named, and not with a weight of 0."""
    for part in header.lower().split(","):
        name, _, weight = part.replace(" ", "").partition(";q=")
        if name in ("gzip", "*"):
            return not re.fullmatch(r"0(\.0*)?", weight or "1")
    return False


def _no_such_instance() -> ApiError:
    return ApiError(404, "no_such_instance", "there is no instance of that name")


def _without_foreign_names(
    document: read_models.Document, reader: Reader, records: Records
) -> read_models.Document:
    found: read_models.Document = without_foreign_names(document, reader, records)
    return found
