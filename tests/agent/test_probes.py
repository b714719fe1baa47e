"""Readiness probes of workloads that answer in their own way, over real sockets."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from node_agent.engines.probes import probe_network
from node_agent.units import Unit
from node_agent.wire import Endpoint, HttpProbe

PROBE = HttpProbe(port=80)
PAUSE_S = 0.02


@contextmanager
def answering(*pieces: bytes) -> Iterator[Unit]:
    """A unit that sends these, with a pause after each, to the first who connects."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        done = threading.Event()

        def serve() -> None:
            with suppress(OSError):
                connection, _ = server.accept()
                with connection:
                    connection.recv(65_536)
                    for piece in pieces:
                        connection.sendall(piece)
                        if done.wait(PAUSE_S):
                            return

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        there = Endpoint(
            name="http", container=80, host_ip="127.0.0.1", host_port=server.getsockname()[1]
        )
        yield Unit("u", "u", "docker", "a/b/c", "n1", "", "running", 0, endpoints=(there,))
        done.set()
        thread.join(10)


@pytest.mark.parametrize(
    ("answer", "ready"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", True),
        (b"HTTP/1.1 302 Found\r\nLocation: http://10.0.0.1/\r\n\r\n", True),
        (b"HTTP/1.1 503 Later\r\n\r\n", False),
        (b"SSH-2.0-OpenSSH\r\n", False),
        (b"", False),
    ],
)
def test_what_an_answer_says(answer: bytes, ready: bool) -> None:
    with answering(answer) as unit:
        assert probe_network(unit, PROBE, 5_000).ready is ready


@pytest.mark.parametrize(
    "drops",
    [
        (b"HTTP/1.1 200 OK\r\n", *[b"X-More: 1\r\n"] * 50, b"\r\n"),
        (*[b"HTTP/1.1 100 Continue\r\n\r\n"] * 50, b"HTTP/1.1 200 OK\r\n\r\n"),
        (*[bytes([one]) for one in b"HTTP/1.1 200 " + b"O" * 50], b"\r\n\r\n"),
    ],
)
def test_an_answer_that_drips_is_none(drops: tuple[bytes, ...]) -> None:
    """Attempted: a version that never passes its gate, and never fails it either."""
    with answering(*drops) as unit:
        probed = probe_network(unit, PROBE, 200)
    assert (probed.ready, probed.detail) == (False, "no answer within 200 ms on port 80")
