"""What clients notice of how the socket is set up."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import closing
from urllib.parse import urlsplit

import httpx

from tests.server.harness import Plane


def accepted(port: int) -> Iterator[socket.socket]:
    """This process's own end of every connection to that port of it."""
    for name in os.listdir("/proc/self/fd"):
        try:
            there = socket.socket(fileno=os.dup(int(name)))
        except OSError:
            continue
        with closing(there):
            if there.family == socket.AF_INET and there.type == socket.SOCK_STREAM:
                try:
                    there.getpeername()
                except OSError:
                    continue
                if there.getsockname()[1] == port:
                    yield there


def test_an_answer_does_not_wait_for_the_clients_acknowledgement(plane: Plane) -> None:
    url = str(plane.client.base_url)
    port = urlsplit(url).port
    assert port is not None
    with httpx.Client(base_url=url, trust_env=False) as client:
        client.get("/healthz")
        options = [one.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) for one in accepted(port)]
    assert options
    assert all(options)
