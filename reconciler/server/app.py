"""The HTTP applications: routes, and what surrounds all of them. Thin; decides nothing itself.

Rules: there is one for people and machines, and one for node agents, which is spoken to over TLS
alone. Neither has a route of the other.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, Router

from reconciler.ports import CertificateAuthority
from reconciler.server.access_rules import Access
from reconciler.server.agent_api import AgentApi
from reconciler.server.agent_blobs import AgentBlobs
from reconciler.server.auth_api import AuthApi
from reconciler.server.blobs_api import BlobsApi
from reconciler.server.deps import ServerDeps, Signal, Threads
from reconciler.server.errors import CorrelationMiddleware, exception_handlers
from reconciler.server.hooks import Hooks
from reconciler.server.intents_api import IntentsApi
from reconciler.server.joining import Joining
from reconciler.server.read_api import ReadApi
from reconciler.server.registry_token_api import RegistryTokenApi
from reconciler.server.releases_api import ReleasesApi
from reconciler.server.tokens import Tokens
from reconciler.server.unwrap_api import UnwrapApi

__all__ = ["ServerDeps", "Signal", "build_agents_app", "build_app"]


class Room(Protocol):
    """Some routes that belong together."""

    def routes(self) -> list[Route]: ...


def build_app(deps: ServerDeps) -> Starlette:
    """The ASGI application for people, forges and machines with tokens."""
    threads = Threads(deps.settings.server_threads_max)
    tokens = Tokens(deps.store, deps.secrets, deps.clock, deps.settings)
    access = Access(deps.settings, tokens, deps.clock, threads)
    rooms: tuple[Room, ...] = (
        AuthApi(deps, threads, tokens),
        Hooks(deps, threads),
        UnwrapApi(deps, threads),
        RegistryTokenApi(deps, threads),
        IntentsApi(deps, threads, access),
        BlobsApi(deps, threads),
        ReleasesApi(deps, threads, access),
        ReadApi(deps, threads, access),
    )
    return _app([route for room in rooms for route in room.routes()], lambda: None)


def build_agents_app(deps: ServerDeps, ca: CertificateAuthority) -> Starlette:
    """The ASGI application for node agents, which threads of its own serve."""
    threads = Threads(deps.settings.server_threads_max)
    rooms: tuple[Room, ...] = (
        Joining(deps, ca, threads),
        AgentApi(deps, threads),
        AgentBlobs(deps, threads),
    )
    return _app([route for room in rooms for route in room.routes()], deps.task_queued.close)


def _app(routes: list[Route], before_stop: Callable[[], None]) -> Starlette:
    """`app.state.before_stop` ends open polls; `serve` calls it."""
    app = Starlette(
        routes=_one_a_path(routes),
        middleware=[Middleware(CorrelationMiddleware)],
        exception_handlers=exception_handlers(),
    )
    _no_redirects(app.router)
    app.state.before_stop = before_stop
    return app


def _one_a_path(routes: list[Route]) -> list[Route]:
    """One for all methods of a path, so that who is told "not this one" is told of all others."""
    found: dict[str, dict[str, Any]] = {}
    for route in routes:
        found.setdefault(route.path, {}).update(dict.fromkeys(route.methods or (), route.endpoint))
    return [Route(path, _by_method(of), methods=list(of)) for path, of in found.items()]


def _by_method(endpoints: Mapping[str, Any]) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        made: Response = await endpoints[request.method](request)
        return made

    return answer


def _no_redirects(router: Router) -> None:
    # A path with a slash too many is not found: a redirect would drop the body of a POST.
    router.redirect_slashes = False
