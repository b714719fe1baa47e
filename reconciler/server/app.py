"""The HTTP application: routes, and what surrounds all of them. Thin; decides nothing itself."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.routing import Router

from reconciler.server.access_rules import Access
from reconciler.server.agent_api import AgentApi
from reconciler.server.auth_api import AuthApi
from reconciler.server.deps import ServerDeps, Signal, Threads
from reconciler.server.errors import CorrelationMiddleware, exception_handlers
from reconciler.server.hooks import Hooks
from reconciler.server.read_api import ReadApi
from reconciler.server.tokens import Tokens

__all__ = ["ServerDeps", "Signal", "build_app"]


def build_app(deps: ServerDeps) -> Starlette:
    """The ASGI application. `app.state.before_stop` ends open polls; `serve` calls it."""
    threads = Threads(deps.settings.server_threads_max)
    tokens = Tokens(deps.store, deps.secrets, deps.clock, deps.settings)
    rooms: tuple[AgentApi | AuthApi | Hooks | ReadApi, ...] = (
        AgentApi(deps, threads),
        AuthApi(deps, threads, tokens),
        Hooks(deps, threads),
        ReadApi(deps, threads, Access(deps.settings, tokens, deps.clock, threads)),
    )
    app = Starlette(
        routes=[route for room in rooms for route in room.routes()],
        middleware=[Middleware(CorrelationMiddleware)],
        exception_handlers=exception_handlers(),
    )
    _no_redirects(app.router)
    app.state.before_stop = deps.task_queued.close
    return app


def _no_redirects(router: Router) -> None:
    # A path with a slash too many is not found: a redirect would drop the body of a POST.
    router.redirect_slashes = False
