"""A registry on the loopback address that serves one image, honestly until it is told otherwise."""

from __future__ import annotations

from reconciler.core.names import Digest
from reconciler.devkit.images import MANIFEST_TYPE
from tests.fakes.bad_server import Answer, BadServer, Request


class BadRegistry(BadServer):
    """`blobs` are served by digest. `answers[method, digest]` replaces the honest answer."""

    def __init__(self, blobs: dict[Digest, bytes]) -> None:
        super().__init__()
        self.blobs = blobs
        self.answers: dict[tuple[str, str], Answer] = {}

    def answer_to(self, request: Request) -> Answer:
        digest = request.path.rpartition("/")[2]
        return self.answers.get((request.command, digest), self.honest)

    def honest(self, request: Request) -> None:
        digest = Digest.parse(request.path.rpartition("/")[2])
        content = self.blobs.get(digest)
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
