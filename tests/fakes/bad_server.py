"""A server on the loopback address that answers as a test says. What it is no good as is told by
those that are made of it.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar, Self

Answer = Callable[["Request"], None]


class Request(BaseHTTPRequestHandler):
    """One request; an `Answer` writes its response. `body` is what it was sent."""

    server: _Server

    def do_GET(self) -> None:
        bad = self.server.bad
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        bad.requests.append(f"{self.command} {self.path}")
        bad.headers.append(dict(self.headers))
        bad.answer_to(self)(self)

    do_HEAD = do_POST = do_DELETE = do_GET

    def log_message(self, format: str, *args: object) -> None:
        """Silent: the test says what was asked."""

    def reply(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    @property
    def stopped(self) -> threading.Event:
        return self.server.bad.stopped


class _Server(ThreadingHTTPServer):
    bad: BadServer
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is no news."""


class BadServer(ABC):
    """`requests` and `headers` are what it was asked, in order."""

    handler: ClassVar[type[Request]] = Request

    def __init__(self) -> None:
        self.requests: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.stopped = threading.Event()
        self._server = _Server(("127.0.0.1", 0), self.handler)
        self._server.bad = self
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))

    @abstractmethod
    def answer_to(self, request: Request) -> Answer: ...

    @property
    def endpoint(self) -> str:
        """host:port"""
        return f"127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stopped.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
