"""Runs the applications, each in a thread of its own, from a bound socket to a clean stop.

Rules: an address is bound before anything starts, so that a port that is taken is said at once.
Agents are spoken to over TLS and in no other way. People beyond the loopback need a token
(`access_rules`), and somebody else has to add TLS.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import structlog
import uvicorn
from starlette.applications import Starlette

from reconciler.errors import Refused
from reconciler.server.agent_tls import AgentTls
from reconciler.server.peer import PeerProtocol
from reconciler.settings import Settings

log = structlog.get_logger(__name__)

_BACKLOG = 1024
_DRAIN_S = 5
_STOP_S = 15.0
_AGENTS_KEEP_ALIVE_S = 75
"""Longer than between two reports, so that an agent mostly goes on with the connection it has."""


_COMMON: dict[str, Any] = {
    "lifespan": "off",
    "ws": "none",
    "log_config": None,
    "access_log": False,
    "server_header": False,
    "proxy_headers": False,
    "timeout_graceful_shutdown": _DRAIN_S,
}


@contextmanager
def serve(app: Starlette, settings: Settings) -> Iterator[str]:
    """Yields the base URL; port 0 picks a free port. Raises Refused when it cannot listen."""
    family, address = _resolve(settings.listen)
    _tell_exposure(address[0], settings)
    hint = "stop it, or choose another address with --listen"
    with (
        closing(_bind(family, address, settings.listen, hint)) as listener,
        _running(app, uvicorn.Config(app, **_COMMON), listener, "http") as server,
    ):
        yield server.url


@contextmanager
def serve_agents(app: Starlette, settings: Settings, tls: AgentTls) -> Iterator[str]:
    """The same over TLS. Without a certificate yet it listens, and ends handshakes at once."""
    family, address = _resolve(settings.agents_listen)
    hint = "stop it, or choose another address: agents_listen in gpuaas.toml, --agents-listen"
    with closing(_bind(family, address, settings.agents_listen, hint)) as listener:
        tls.renew()
        config = uvicorn.Config(
            app,
            http=PeerProtocol,
            ssl_context_factory=lambda *_: tls.context,
            timeout_keep_alive=_AGENTS_KEEP_ALIVE_S,
            **_COMMON,
        )
        with _running(app, config, listener, "https") as server, tls.kept(server.loop):
            yield server.url


@contextmanager
def _running(
    app: Starlette, config: uvicorn.Config, listener: socket.socket, scheme: str
) -> Iterator[_Server]:
    server = _Server(config, _url(scheme, listener))
    thread = threading.Thread(
        target=server.run, args=([listener],), name=f"gpuaas-{scheme}", daemon=True
    )
    thread.start()
    try:
        server.settled.wait()
        if not server.started:
            raise Refused("server_failed", "the HTTP server did not start", where=server.url)
        yield server
    finally:
        app.state.before_stop()
        server.should_exit = True
        thread.join(_STOP_S)


class _Server(uvicorn.Server):
    """Says when it is up, or has given up. `loop` is there once it is up."""

    loop: asyncio.AbstractEventLoop

    def __init__(self, config: uvicorn.Config, url: str) -> None:
        super().__init__(config)
        self.url = url
        self.settled = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.loop = asyncio.get_running_loop()
        self.settled.set()

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            super().run(sockets)
        finally:
            self.settled.set()


def _resolve(listen: str) -> tuple[socket.AddressFamily, tuple[str, int]]:
    """`host:port` or `[ipv6]:port`, as an address to bind."""
    host, colon, port = listen.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    invalid = Refused("listen_invalid", f"cannot listen on {listen!r}", hint="use HOST:PORT")
    if not colon or not host or not port.isdecimal() or int(port) > 65535:
        raise invalid
    try:
        found = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)
    except (OSError, ValueError):
        raise invalid from None
    family, _, _, _, address = found[0]
    return family, (str(address[0]), int(address[1]))


def _tell_exposure(address: str, settings: Settings) -> None:
    """An address that others reach is no mistake, but what goes with it is to be known."""
    if ipaddress.ip_address(address).is_loopback:
        return
    advice = "put a proxy with TLS in front: tokens and answers are sent as they are"
    log.warning("listens_in_the_clear", listen=settings.listen, advice=advice)
    if settings.allow_remote_read:
        advice = "unset allow_remote_read, or let nobody but the proxy reach this address"
        log.warning("reads_need_no_token", listen=settings.listen, advice=advice)


def _bind(
    family: socket.AddressFamily, address: tuple[str, int], listen: str, hint: str
) -> socket.socket:
    # Named as TCP, since asyncio switches Nagle's algorithm off for what says so: each answer would
    # wait 40 ms for the client's delayed acknowledgement of its first half.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            message = f"something else listens on {listen}"
            raise Refused("port_in_use", message, hint=hint) from None
        raise Refused("listen_failed", f"cannot listen on {listen}: {error.strerror}") from None
    return listener


def _url(scheme: str, listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
