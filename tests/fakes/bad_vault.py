"""A server on the loopback address that is no good Vault, in one way after another."""

from __future__ import annotations

import json
import socket

from tests.fakes.bad_server import Answer, BadServer, Request


class _OneConnection(Request):
    protocol_version = "HTTP/1.1"


class BadVault(BadServer):
    """The last of its answers is for all further requests."""

    handler = _OneConnection

    def __init__(self, *answers: Answer) -> None:
        super().__init__()
        self.answers = [*answers]

    def answer_to(self, request: Request) -> Answer:
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]

    @property
    def address(self) -> str:
        return f"http://{self.endpoint}"


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
