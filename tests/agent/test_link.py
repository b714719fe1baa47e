"""The way to the control plane, when somebody else answers in its place."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from node_agent.link import AgentKey, Away, Link
from node_agent.wire import Poll
from tests.agent.cases import NODE, NOW_MS


@pytest.mark.parametrize(
    ("status", "answer", "code"),
    [
        (500, b"[" * 200_000, "http_500"),
        (500, b'{"error":' * 100_000, "http_500"),
        (200, b"[" * 200_000, "answer_malformed"),
        (200, b'{"tasks":[' + b'{"a":' * 100_000, "answer_malformed"),
        (200, b" " * (8 * 1024 * 1024 + 1), "answer_too_large"),
    ],
    ids=["deep error", "deep fields", "deep answer", "deep task", "endless answer"],
)
def test_no_answer_ends_the_loop_that_asked(status: int, answer: bytes, code: str) -> None:
    """Attempted: to stop an agent for good with one answer, by somebody between, without a key."""

    class Answers(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            return

    with HTTPServer(("127.0.0.1", 0), Answers) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        link = Link(f"http://127.0.0.1:{server.server_address[1]}", AgentKey.generate())
        try:
            with pytest.raises(Away) as away:
                link.poll(Poll(node=NODE, sent_at_ms=NOW_MS, report_seq=1, wait_ms=0))
        finally:
            link.close()
            thread.join()
    assert away.value.code == code
