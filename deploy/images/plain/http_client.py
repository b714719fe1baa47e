"""One request, one answer."""

from __future__ import annotations

from collections.abc import Mapping
from http.client import HTTPConnection, HTTPException
from urllib.parse import urlsplit


class Unanswered(Exception):
    """Nobody answered, or not in HTTP."""


def ask(
    url: str,
    timeout_s: float,
    method: str = "GET",
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
) -> tuple[int, bytes]:
    """Status and body of what an http:// URL answers; a body is sent as JSON."""
    connection, path = _connection(url, timeout_s)
    sent = {**(headers or {}), **({"Content-Type": "application/json"} if body else {})}
    try:
        connection.request(method, path, body, sent)
        answer = connection.getresponse()
        return answer.status, answer.read()
    except (OSError, HTTPException) as error:
        raise Unanswered(str(error) or type(error).__name__) from None
    finally:
        connection.close()


def _connection(url: str, timeout_s: float) -> tuple[HTTPConnection, str]:
    try:
        parts = urlsplit(url)
        port = parts.port or 80
    except ValueError:
        raise Unanswered(f"{url} is no URL") from None
    if parts.scheme != "http" or not parts.hostname:
        raise Unanswered(f"{url} is no http:// URL")
    return HTTPConnection(parts.hostname, port, timeout=timeout_s), parts.path or "/"
