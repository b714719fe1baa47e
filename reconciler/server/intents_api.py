"""Publish and pull intents: asked for, looked at, completed, closed.

Rules:
- Only who shows a token: on this host alone that is not proved, and what is given out are
  credentials. Publishing needs apps.artifact.register in the project, pulling apps.instance.read
  there; whether the project may see the artifact is asked besides.
- An intent of a project that the caller may not read can't be told from none.
- What should run is not touched by any of this.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from reconciler.core.transfers import PublishWish, PullWish, Transfer
from reconciler.errors import Refused
from reconciler.server.access_rules import ARTIFACT_REGISTER, INSTANCE_READ, Access, Reader
from reconciler.server.deps import ServerDeps, Threads
from reconciler.server.errors import ApiError, first_problem, read_body
from reconciler.server.operations import (
    CLOSE,
    COMPLETE,
    INTENT,
    INTENT_REFUSALS,
    INTENTS,
    PUBLISH,
    PULL,
    Operation,
    Query,
)
from reconciler.server.rate_limit import peer_of
from reconciler.use_cases.handover import Asker
from reconciler.use_cases.intents import Intents
from reconciler.use_cases.transfers import Desk
from reconciler.views.transfers import transfer_document

_BODY_BYTES_MAX = 16 * 1024
_NO_IDS = ("publish", "pull")
"""What stands where an id would, and is only posted to."""
Document = dict[str, Any]
Text = Annotated[str, Field(max_length=1_000)]


def _whole(given: object) -> object:
    """JSON does not tell 60.0 from 60."""
    return int(given) if isinstance(given, float) and given.is_integer() else given


Seconds = Annotated[int, BeforeValidator(_whole)]
T = TypeVar("T", bound=BaseModel)
Answer = Callable[[Request, Reader, Query], Awaitable[Response]]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class PublishBody(_Body):
    project: Text
    app: Text
    version: Text
    name: Text = "image"
    kind: Literal["oci", "blob"] = "oci"
    tag: Text = ""
    channel: Text = ""
    ttl_s: Seconds | None = None


class PullBody(_Body):
    project: Text
    artifact: Text
    ttl_s: Seconds | None = None


class CompleteBody(_Body):
    digest: Text


class IntentsApi:
    """Routes under /v1/intents."""

    def __init__(self, deps: ServerDeps, threads: Threads, access: Access) -> None:
        self._deps = deps
        self._threads = threads
        self._access = access

    def routes(self) -> list[Route]:
        answers: tuple[tuple[Operation, Answer], ...] = (
            (PUBLISH, self.publish),
            (PULL, self.pull),
            (INTENTS, self.listed),
            (INTENT, self.shown),
            (COMPLETE, self.complete),
            (CLOSE, self.close),
        )
        return [
            Route(one.path, self._let_in(one, answer), methods=[one.method])
            for one, answer in answers
        ]

    def _let_in(
        self, operation: Operation, answer: Answer
    ) -> Callable[[Request], Awaitable[Response]]:
        async def checked(request: Request) -> Response:
            if request.path_params.get("id") in _NO_IDS:
                raise HTTPException(405, headers={"Allow": "POST"})
            reader = await self._access.reader(request)
            if reader.type == "local":
                headers = {"WWW-Authenticate": "Bearer"}
                message = "intents need a token: send Authorization: Bearer TOKEN"
                raise ApiError(401, "token_required", message, headers)
            query = Query(operation, request.query_params)
            return await answer(request, reader, query)

        return checked

    async def publish(self, request: Request, reader: Reader, _query: Query) -> Response:
        body = await self._body(request, PublishBody)
        _may(reader, ARTIFACT_REGISTER, body.project)
        wish = PublishWish(
            body.project, body.app, body.version, body.name, body.kind,
            body.tag, body.channel, body.ttl_s,
        )  # fmt: skip
        found = await self._asked(self._intents(request, reader).publish, wish)
        return JSONResponse(found, status_code=PUBLISH.status)

    async def pull(self, request: Request, reader: Reader, _query: Query) -> Response:
        body = await self._body(request, PullBody)
        _may(reader, INSTANCE_READ, body.project)
        wish = PullWish(body.project, body.artifact, body.ttl_s)
        found = await self._asked(self._intents(request, reader).pull, wish)
        return JSONResponse(found, status_code=PULL.status)

    async def listed(self, _request: Request, reader: Reader, query: Query) -> Response:
        project, last = query.text("project"), query.number("last")
        return JSONResponse(await self._threads.run(self._listed, reader, project, last))

    async def shown(self, request: Request, reader: Reader, _query: Query) -> Response:
        transfer = await self._seen(request, reader)
        return JSONResponse(transfer_document(transfer, self._deps.clock.now_ms()))

    async def complete(self, request: Request, reader: Reader, _query: Query) -> Response:
        transfer = await self._seen(request, reader)
        _may(reader, ARTIFACT_REGISTER, transfer.owner)
        body = await self._body(request, CompleteBody)
        completing = self._intents(request, reader).complete
        return JSONResponse(await self._asked(completing, transfer.id, body.digest))

    async def close(self, request: Request, reader: Reader, _query: Query) -> Response:
        transfer = await self._seen(request, reader)
        if transfer.requester != reader.actor:
            _may(reader, ARTIFACT_REGISTER, transfer.owner)
        closing = self._intents(request, reader).close
        return JSONResponse(await self._asked(closing, transfer.id))

    # --- in a thread -----------------------------------------------------------------------------

    def _listed(self, reader: Reader, project: str, last: int) -> Document:
        now_ms = self._deps.clock.now_ms()
        found = [
            one
            for one in self._deps.store.transfers(project)
            if reader.holds(INSTANCE_READ, tuple(one.owner.split("/")))
        ]
        return {"intents": [transfer_document(one, now_ms) for one in found[:last]]}

    def _intents(self, request: Request, reader: Reader) -> Intents:
        deps = self._deps
        if deps.registry is None:
            raise ApiError(503, "no_registry", "this server has no way to a registry")
        desk = Desk(deps.store, deps.secrets, deps.clock, deps.registry, deps.settings, deps.blobs)
        peer = peer_of(request.client.host if request.client else "")
        return Intents(desk, Asker(reader.actor, reader.type, peer, request.state.correlation_id))

    async def _asked(self, call: Callable[..., Any], *given: Any) -> Any:
        try:
            return await self._threads.run(call, *given)
        except Refused as error:
            status = INTENT_REFUSALS.get(error.code)
            if status is None:
                raise
            message = f"{error.message} ({error.hint})" if error.hint else error.message
            raise ApiError(status, error.code, message) from None

    async def _seen(self, request: Request, reader: Reader) -> Transfer:
        found = await self._threads.run(self._deps.store.transfer, request.path_params["id"])
        if found is None or not reader.holds(INSTANCE_READ, tuple(found.owner.split("/"))):
            raise ApiError(404, "no_such_transfer", "there is no such intent")
        return found

    async def _body(self, request: Request, kind: type[T]) -> T:
        raw = await read_body(request, _BODY_BYTES_MAX, self._deps.settings.body_timeout_s)
        try:
            return kind.model_validate_json(raw)
        except ValidationError as error:
            raise ApiError(422, "wish_invalid", first_problem(error)) from None


def _may(reader: Reader, permission: str, project: str) -> None:
    if not reader.holds(permission, tuple(project.split("/"))):
        message = f"{reader.actor} may not do this: it needs {permission} in the project"
        raise ApiError(403, "not_permitted", message)
