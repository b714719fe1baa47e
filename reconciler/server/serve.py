"""Runs the application in a thread of its own, from a bound socket to a clean stop.

Rules: the address is bound before anything starts, so that a port that is taken is said at once.
Beyond the loopback readers need a token (`access_rules`), and somebody else has to add TLS.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager

import structlog
import uvicorn
from starlette.applications import Starlette

from reconciler.errors import Refused
from reconciler.settings import Settings

log = structlog.get_logger(__name__)

_BACKLOG = 1024
_DRAIN_S = 5
_STOP_S = 15.0


@contextmanager
def serve(app: Starlette, settings: Settings) -> Iterator[str]:
    """Yields the base URL; port 0 picks a free port. Raises Refused when it cannot listen."""
    family, address = _resolve(settings.listen)
    _tell_exposure(address[0], settings)
    with closing(_bind(family, address, settings.listen)) as listener:
        server = _Server(_config(app))
        thread = threading.Thread(
            target=server.run, args=([listener],), name="gpuaas-http", daemon=True
        )
        url = _url(listener)
        thread.start()
        try:
            server.settled.wait()
            if not server.started:
                raise Refused("server_failed", "the HTTP server did not start", where=url)
            yield url
        finally:
            app.state.before_stop()
            server.should_exit = True
            thread.join(_STOP_S)


class _Server(uvicorn.Server):
    """Says when it is up, or has given up."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.settled = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.settled.set()

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            super().run(sockets)
        finally:
            self.settled.set()


def _config(app: Starlette) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        lifespan="off",
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=_DRAIN_S,
    )


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


def _bind(family: socket.AddressFamily, address: tuple[str, int], listen: str) -> socket.socket:
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
            raise Refused(
                "port_in_use",
                f"something else listens on {listen}",
                hint="stop it, or choose another address with --listen",
            ) from None
        raise Refused("listen_failed", f"cannot listen on {listen}: {error.strerror}") from None
    return listener


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
