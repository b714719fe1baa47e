"""An HTTP client whose whole look at something ends in time, whatever the other side does.

Rules:
- Each wait for a socket is cut to what is left: headers, interim answers and chunk lines that drip
  get no more than a body that does.
- The time is of the thread that looks; a connection that is used again has the next look's.
"""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Self

import httpcore
import httpx

_PIECE_BYTES = 16 * 1024
_CONNECTIONS_MAX, _KEPT_MAX, _KEPT_S = 100, 20, 5.0
"""As httpx has them."""


class LookTimeout(httpx.TimeoutException):
    """The time of the whole look is over, not that of one answer."""


class _Time(threading.local):
    """Until when, by the monotonic clock, the look of this thread may take."""

    end_s = float("inf")
    whole_s = 0.0

    def left(self, timeout_s: float | None) -> float | None:
        """What one wait may take that may take `timeout_s` by itself."""
        left_s = self.end_s - time.monotonic()
        if left_s <= 0:
            raise LookTimeout(f"not done in {self.whole_s:g} s")
        if left_s == float("inf"):
            return timeout_s
        return left_s if timeout_s is None else min(timeout_s, left_s)

    @contextmanager
    def waiting(self, timeout_s: float | None) -> Iterator[float | None]:
        left_s = self.left(timeout_s)
        try:
            yield left_s
        except httpcore.TimeoutException:
            self.left(timeout_s)
            raise


class _Stream(httpcore.NetworkStream):
    def __init__(self, inner: httpcore.NetworkStream, time: _Time) -> None:
        self._inner, self._time = inner, time

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        with self._time.waiting(timeout) as left_s:
            return self._inner.read(max_bytes, left_s)

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        for start in range(0, len(buffer), _PIECE_BYTES):
            with self._time.waiting(timeout) as left_s:
                self._inner.write(buffer[start : start + _PIECE_BYTES], left_s)

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        with self._time.waiting(timeout) as left_s:
            inner = self._inner.start_tls(ssl_context, server_hostname, left_s)
        return _Stream(inner, self._time)

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)


class _Network(httpcore.NetworkBackend):
    def __init__(self, time: _Time) -> None:
        self._inner, self._time = httpcore.SyncBackend(), time

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        """By one address after another: a name that has many would take the time of each."""
        failed: httpcore.ConnectError | httpcore.ConnectTimeout
        failed = httpcore.ConnectError("the name has no address")
        for address in _addresses(host, port):
            try:
                with self._time.waiting(timeout) as left_s:
                    inner = self._inner.connect_tcp(
                        address, port, left_s, local_address, socket_options
                    )
                return _Stream(inner, self._time)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failed = error
        raise failed


def _addresses(host: str, port: int) -> list[str]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise httpcore.ConnectError(str(error)) from error
    return list(dict.fromkeys(str(one[4][0]) for one in found))


class _Transport(httpx.HTTPTransport):
    def __init__(self, context: ssl.SSLContext, time: _Time) -> None:
        super().__init__(verify=context, trust_env=False)
        # httpx has no place for a network of one's own; the pool takes one.
        self._pool = httpcore.ConnectionPool(
            ssl_context=context,
            max_connections=_CONNECTIONS_MAX,
            max_keepalive_connections=_KEPT_MAX,
            keepalive_expiry=_KEPT_S,
            network_backend=_Network(time),
        )


class TimedClient:
    """Asks nothing of the environment, follows no redirect and keeps no cookie. Safe to use from
    several threads.
    """

    def __init__(self, timeout_s: float, context: ssl.SSLContext, headers: dict[str, str]) -> None:
        self._time = _Time()
        self.timeout_s = timeout_s
        self._headers = headers
        self._transport = _Transport(context, self._time)
        self._extensions = {"timeout": httpx.Timeout(timeout_s).as_dict()}

    def close(self) -> None:
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @contextmanager
    def stream(
        self,
        method: str,
        url: httpx.URL,
        *,
        headers: Mapping[str, str] | None = None,
        content: bytes | Iterable[bytes] | None = None,
    ) -> Iterator[httpx.Response]:
        """One answer, its body yet to be read. Raises httpx.HTTPError."""
        # Of a request that httpx.Client sends, half is for what is not done here.
        request = httpx.Request(
            method,
            url,
            headers={**self._headers, **(headers or {})},
            content=content,
            extensions=self._extensions,
        )
        answer = self._transport.handle_request(request)
        answer.request = request
        try:
            yield answer
        finally:
            answer.close()

    @contextmanager
    def within(self, seconds: float) -> Iterator[None]:
        """All that this thread asks in here takes no longer together, or ends with LookTimeout."""
        kept = self._time.end_s, self._time.whole_s
        end_s = time.monotonic() + seconds
        if end_s < kept[0]:
            self._time.end_s, self._time.whole_s = end_s, seconds
        try:
            yield
        finally:
            self._time.end_s, self._time.whole_s = kept
