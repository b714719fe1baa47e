"""A registry on the loopback address that serves one image, honestly until it is told otherwise."""

from __future__ import annotations

import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self

from reconciler.core.names import Digest
from reconciler.devkit.images import MANIFEST_TYPE

Answer = Callable[["Request"], None]


class Request(BaseHTTPRequestHandler):
    """One request; an `Answer` writes its response."""

    server: _Server

    def do_GET(self) -> None:
        registry = self.server.registry
        registry.requests.append(f"{self.command} {self.path}")
        registry.headers.append(dict(self.headers))
        digest = self.path.rpartition("/")[2]
        registry.answers.get((self.command, digest), honest)(self)

    do_HEAD = do_GET

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
        return self.server.registry.stopped


class _Server(ThreadingHTTPServer):
    registry: BadRegistry


class BadRegistry:
    """`blobs` are served by digest. `answers[method, digest]` replaces the honest answer."""

    def __init__(self, blobs: dict[Digest, bytes]) -> None:
        self.blobs = blobs
        self.answers: dict[tuple[str, str], Answer] = {}
        self.requests: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.stopped = threading.Event()
        self._server = _Server(("127.0.0.1", 0), Request)
        self._server.registry = self
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stopped.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def honest(request: Request) -> None:
    digest = Digest.parse(request.path.rpartition("/")[2])
    content = request.server.registry.blobs.get(digest)
    if content is None:
        code = "MANIFEST_UNKNOWN" if "/manifests/" in request.path else "BLOB_UNKNOWN"
        request.reply(404, b'{"errors":[{"code":"%s"}]}' % code.encode())
        return
    kind = MANIFEST_TYPE if "/manifests/" in request.path else "application/octet-stream"
    request.reply(200, content, Content_Type=kind, Docker_Content_Digest=str(digest))


def serving(body: bytes, status: int = 200, **headers: str) -> Answer:
    """Any bytes, under the digest that was asked for and the type of a manifest."""

    def answer(request: Request) -> None:
        asked = request.path.rpartition("/")[2]
        known = {"Content_Type": MANIFEST_TYPE, "Docker_Content_Digest": asked}
        request.reply(status, body, **{**known, **headers})

    return answer


def sizeless(request: Request) -> None:
    """There, but of no size that it would say."""
    request.send_response(200)
    request.end_headers()


def hanging(request: Request) -> None:
    """No answer at all, until the test is over."""
    request.stopped.wait()


def dripping(request: Request) -> None:
    """One byte at a time, each soon enough for a read, the whole never."""
    request.send_response(200)
    request.send_header("Content-Length", "1000000")
    request.end_headers()
    while not request.stopped.wait(0.02):
        try:
            request.wfile.write(b" ")
            request.wfile.flush()
        except OSError:
            return


def endless(request: Request) -> None:
    """More and more, without saying how much."""
    request.send_response(200)
    request.send_header("Content-Type", MANIFEST_TYPE)
    request.end_headers()
    while not request.stopped.is_set():
        try:
            request.wfile.write(b" " * 1024)
        except OSError:
            return


def truncated(request: Request) -> None:
    """Less than it says."""
    request.send_response(200)
    request.send_header("Content-Type", MANIFEST_TYPE)
    request.send_header("Content-Length", "1000")
    request.end_headers()
    request.wfile.write(b"{")
