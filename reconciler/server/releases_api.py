"""The catalog of the platform's releases, and download of what is small of them.

Rules: anybody who shows who he is may have what is published; what is withdrawn nobody (410, with
the reason). Bytes come from the artifact store alone: an image is named, and the registry gives it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from reconciler.core.kinds.platform_release import Build
from reconciler.core.names import Digest
from reconciler.errors import Refused
from reconciler.server.access_rules import Access
from reconciler.server.deps import ServerDeps, Threads
from reconciler.server.errors import ApiError
from reconciler.server.operations import RELEASE, RELEASE_BUILD, RELEASES, Operation, Query
from reconciler.server.ranges import OCTETS, blob_answer
from reconciler.use_cases import releases
from reconciler.views.releases import release_document, releases_document

T = TypeVar("T")
_ADDRESS_TTL_S = 3600.0
_STATUS = {
    "no_such_release": 404,
    "no_such_build": 404,
    "release_withdrawn": 410,
    "release_in_registry": 409,
}


class ReleasesApi:
    """Routes under /v1/releases."""

    def __init__(self, deps: ServerDeps, threads: Threads, access: Access) -> None:
        self._deps = deps
        self._threads = threads
        self._access = access

    def routes(self) -> list[Route]:
        answers: tuple[tuple[Operation, Callable[[Request, Query], Awaitable[Response]]], ...] = (
            (RELEASES, self.listed),
            (RELEASE, self.shown),
            (RELEASE_BUILD, self.given),
        )
        return [Route(one.path, self._let_in(one, answer)) for one, answer in answers]

    def _let_in(
        self, operation: Operation, answer: Callable[[Request, Query], Awaitable[Response]]
    ) -> Callable[[Request], Awaitable[Response]]:
        async def checked(request: Request) -> Response:
            await self._access.reader(request)
            return await answer(request, Query(operation, request.query_params))

        return checked

    async def listed(self, _request: Request, query: Query) -> Response:
        accepted = await self._threads.run(self._deps.store.accepted)
        found = await self._threads.run(releases.releases_of, accepted, query.text("channel"))
        return JSONResponse(releases_document(found))

    async def shown(self, request: Request, _query: Query) -> Response:
        found = await self._threads.run(_asked, self._release, request.path_params["version"])
        return JSONResponse(release_document(found))

    async def given(self, request: Request, _query: Query) -> Response:
        """The bytes of one build, whole or from any byte on."""
        blobs = self._deps.blobs
        name, build = await self._threads.run(_asked, self._build, request)
        if blobs is None:
            raise ApiError(409, "no_blob_store", "this server has no artifact store")
        return await blob_answer(
            request,
            blobs,
            self._threads,
            build.source or "",
            Digest.parse(build.digest),
            media_type=build.media_type or OCTETS,
            file_name=name,
            redirect_ttl_s=_ADDRESS_TTL_S,
        )

    def _release(self, version: str) -> releases.Release:
        return releases.release_of(self._deps.store.accepted(), version)

    def _build(self, request: Request) -> tuple[str, Build]:
        """Its file's name, and what it is."""
        given = request.path_params
        release = self._release(given["version"])
        component, platform = given["component"], f"{given['os']}/{given['arch']}"
        build = releases.build_of(release, component, platform)
        releases.refuse_bytes(build)
        return releases.file_name(release, component, platform, build), build


def _asked(call: Callable[..., T], *given: object) -> T:
    try:
        return call(*given)
    except Refused as error:
        status = _STATUS.get(error.code)
        if status is None:
            raise
        message = f"{error.message} ({error.hint})" if error.hint else error.message
        raise ApiError(status, error.code, message) from None
