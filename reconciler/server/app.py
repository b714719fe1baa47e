"""The HTTP applications: routes, and what surrounds all of them. Thin; decides nothing itself.

Rules: there is one for people and machines, and one for node agents, which is spoken to over TLS
alone. Neither has a route of the other.
"""

from __future__ import annotations

from collections.abc import Callable

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.routing import Route, Router

from reconciler.ports import CertificateAuthority
from reconciler.server.access_rules import Access
from reconciler.server.agent_api import AgentApi
from reconciler.server.auth_api import AuthApi
from reconciler.server.deps import ServerDeps, Signal, Threads
from reconciler.server.errors import CorrelationMiddleware, exception_handlers
from reconciler.server.hooks import Hooks
from reconciler.server.joining import Joining
from reconciler.server.read_api import ReadApi
from reconciler.server.tokens import Tokens
from reconciler.server.unwrap_api import UnwrapApi

__all__ = ["ServerDeps", "Signal", "build_agents_app", "build_app"]


def build_app(deps: ServerDeps) -> Starlette:
    """The ASGI application for people, forges and machines with tokens."""
    threads = Threads(deps.settings.server_threads_max)
    tokens = Tokens(deps.store, deps.secrets, deps.clock, deps.settings)
    rooms: tuple[AuthApi | Hooks | ReadApi | UnwrapApi, ...] = (
        AuthApi(deps, threads, tokens),
        Hooks(deps, threads),
        UnwrapApi(deps, threads),
        ReadApi(deps, threads, Access(deps.settings, tokens, deps.clock, threads)),
    )
    return _app([route for room in rooms for route in room.routes()], lambda: None)


def build_agents_app(deps: ServerDeps, ca: CertificateAuthority) -> Starlette:
    """The ASGI application for node agents, which threads of its own serve."""
    threads = Threads(deps.settings.server_threads_max)
    rooms: tuple[AgentApi | Joining, ...] = (Joining(deps, ca, threads), AgentApi(deps, threads))
    return _app([route for room in rooms for route in room.routes()], deps.task_queued.close)


def _app(routes: list[Route], before_stop: Callable[[], None]) -> Starlette:
    """`app.state.before_stop` ends open polls; `serve` calls it."""
    app = Starlette(
        routes=routes,
        middleware=[Middleware(CorrelationMiddleware)],
        exception_handlers=exception_handlers(),
    )
    _no_redirects(app.router)
    app.state.before_stop = before_stop
    return app


def _no_redirects(router: Router) -> None:
    # A path with a slash too many is not found: a redirect would drop the body of a POST.
    router.redirect_slashes = False
