"""A server on the loopback address that is no good Vault, in one way after another."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

Answer = Callable[["Request"], None]


class Request(BaseHTTPRequestHandler):
    """One request; an `Answer` writes its response. `body` is what it was sent."""

    server: _Server
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        vault = self.server.vault
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        vault.requests.append(f"{self.command} {self.path}")
        vault.headers.append(dict(self.headers))
        # The last answer is for all further requests.
        answer = vault.answers.pop(0) if len(vault.answers) > 1 else vault.answers[0]
        answer(self)

    do_POST = do_DELETE = do_GET

    def log_message(self, format: str, *args: object) -> None:
        """Silent: the test says what was asked."""

    def reply(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    @property
    def stopped(self) -> threading.Event:
        return self.server.vault.stopped


class _Server(ThreadingHTTPServer):
    vault: BadVault
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is no news."""


class BadVault:
    def __init__(self, *answers: Answer) -> None:
        self.answers = [*answers]
        self.requests: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.stopped = threading.Event()
        self._server = _Server(("127.0.0.1", 0), Request)
        self._server.vault = self
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stopped.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def saying(document: object, status: int = 200) -> Answer:
    """What a Vault might say."""
    return raw(json.dumps(document).encode(), status)


def raw(body: bytes, status: int = 200, **headers: str) -> Answer:
    return lambda request: request.reply(status, body, **headers)


def echoing(status: int) -> Answer:
    """All that it was sent, as its error."""

    def answer(request: Request) -> None:
        told = [request.body.decode(), str(request.headers), request.path]
        request.reply(status, json.dumps({"errors": told}).encode())

    return answer


def stalling(request: Request) -> None:
    """No answer at all, until the test is over."""
    request.stopped.wait()


def dripping_head(request: Request) -> None:
    """A header that comes byte by byte, each soon enough for a read, and never ends."""
    _drip(request, b"HTTP/1.1 200 OK\r\nX-Slow: ", b"x")


def dripping_body(request: Request) -> None:
    _drip(request, b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n{", b" ")


def dripping_chunks(request: Request) -> None:
    _drip(request, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n")


def endless(request: Request) -> None:
    """More and more, without saying how much."""
    request.send_response(200)
    request.send_header("Connection", "close")
    request.end_headers()
    while not request.stopped.is_set():
        try:
            request.wfile.write(b" " * 65536)
        except OSError:
            return


def resetting(request: Request) -> None:
    """Ends the connection with nothing said."""
    request.close_connection = True
    request.connection.shutdown(socket.SHUT_RDWR)


def truncated(request: Request) -> None:
    """Less than it says."""
    request.send_response(200)
    request.send_header("Content-Length", "1000")
    request.end_headers()
    request.wfile.write(b"{")
    resetting(request)


def _drip(request: Request, first: bytes, more: bytes) -> None:
    part = first
    while not request.stopped.wait(0.02):
        try:
            request.wfile.write(part)
            request.wfile.flush()
        except OSError:
            return
        part = more
