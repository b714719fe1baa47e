"""A small HTTP server for programs that have Python's standard library and nothing else.

Rules: a program is a table of routes. A handler gets a Request and gives an Answer, or raises
Failure; anything else that it raises is logged and answered 500. SIGTERM ends the program with 0.
"""

from __future__ import annotations

import json
import re
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

BODY_BYTES_MAX = 16 * 1024 * 1024
JSON, TEXT = "application/json", "text/plain; charset=utf-8"
METRICS_TEXT = "text/plain; version=0.0.4; charset=utf-8"


class Failure(Exception):
    """What a handler raises to answer with this status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


@dataclass(frozen=True)
class Request:
    """`groups` are what the route's pattern found in the path."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes
    groups: tuple[str, ...] = ()

    def json(self) -> dict[str, Any]:
        """The body as an object; Failure 400 when it is none."""
        try:
            document = json.loads(self.body)
        except ValueError as error:
            raise Failure(400, f"the body is no JSON: {error}") from None
        if not isinstance(document, dict):
            raise Failure(400, "the body has to be a JSON object")
        return document


@dataclass(frozen=True)
class Answer:
    """`body`: all of it, or its parts as they come."""

    body: bytes | Iterable[bytes] = b""
    status: int = 200
    content_type: str = JSON

    @classmethod
    def json(cls, document: object, status: int = 200) -> Answer:
        return cls(json.dumps(document).encode(), status)


Handler = Callable[[Request], Answer]


def plain_failure(failure: Failure) -> Answer:
    return Answer.json({"error": failure.message}, failure.status)


@dataclass(frozen=True)
class App:
    """`routes`: (method, pattern of the whole path) → handler. `failed` says it in the app's words;
    `admit` looks at each request first and raises Failure where it may not come in.
    """

    routes: Mapping[tuple[str, str], Handler]
    failed: Callable[[Failure], Answer] = plain_failure
    admit: Callable[[Request], None] = lambda _: None

    def answer(self, request: Request) -> Answer:
        try:
            self.admit(request)
            return self._route(request)
        except Failure as failure:
            return self.failed(failure)
        except Exception:
            traceback.print_exc()
            return self.failed(Failure(500, "something went wrong here; the log has it"))

    def _route(self, request: Request) -> Answer:
        methods = []
        for (method, pattern), handler in self.routes.items():
            found = re.fullmatch(pattern, request.path)
            if found and method == request.method:
                return handler(Request(**{**vars(request), "groups": found.groups()}))
            methods += [method] if found else []
        if methods:
            raise Failure(405, f"{request.path} takes {', '.join(methods)}")
        raise Failure(404, f"there is no {request.path}")


def server(app: App, port: int, host: str = "") -> ThreadingHTTPServer:
    """Bound to the port, serving nothing yet; port 0 is any free one, no host all addresses."""

    class _Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        server_version, sys_version = "plain", ""

        def do_GET(self) -> None:
            self._do()

        def do_POST(self) -> None:
            self._do()

        def do_PUT(self) -> None:
            self._do()

        def do_DELETE(self) -> None:
            self._do()

        def _do(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            if length > BODY_BYTES_MAX:
                self.close_connection = True
                self._send(app.failed(Failure(413, f"at most {BODY_BYTES_MAX} bytes")))
                return
            url = urlsplit(self.path)
            request = Request(
                self.command,
                url.path,
                dict(parse_qsl(url.query)),
                {name.lower(): value for name, value in self.headers.items()},
                self.rfile.read(length),
            )
            self._send(app.answer(request))

        def _send(self, answer: Answer) -> None:
            self.send_response(answer.status)
            self.send_header("Content-Type", answer.content_type)
            if isinstance(answer.body, bytes):
                self.send_header("Content-Length", str(len(answer.body)))
                self.end_headers()
                self.wfile.write(answer.body)
                return
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for part in _chunks(answer.body):
                self.wfile.write(part)

        def log_message(self, format: str, *args: object) -> None:
            """Probes come every second: only what failed is worth a line."""
            if len(args) > 1 and str(args[1]) >= "400":
                say(f"{self.client_address[0]} {format % args}")

    class _Server(ThreadingHTTPServer):
        request_queue_size = 128

        def handle_error(self, *_: object) -> None:
            """A client that went away is no error of ours."""
            if not isinstance(sys.exception(), ConnectionError):
                traceback.print_exc()

    return _Server((host, port), _Handler)


def run(app: App, port: int) -> None:
    """Serves until SIGTERM or SIGINT."""
    serving = server(app, port)

    def end(*_: object) -> None:
        threading.Thread(target=serving.shutdown).start()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    say(f"listening on port {serving.server_address[1]}")
    serving.serve_forever(poll_interval=0.05)
    serving.server_close()
    say("ended")


def say(line: str) -> None:
    """One line of the log."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _chunks(parts: Iterable[bytes]) -> Iterator[bytes]:
    for part in parts:
        if part:
            yield b"%x\r\n%s\r\n" % (len(part), part)
    yield b"0\r\n\r\n"
