"""Fetches one document over HTTP: a snapshot from the control plane's read API.

Rules: GET, no redirect followed, size and time bounded, before and after decompressing. A token is
sent to the one address that was given, and over plain HTTP to this very host only. What comes back
is not believed here: who asked checks its signature. httpx stays in here.
"""

from __future__ import annotations

import ipaddress
import time
import zlib
from collections.abc import Callable

import httpx

from reconciler.errors import Refused, Transient
from reconciler.ports import Secret

_GZIP = 16 + zlib.MAX_WBITS


def fetch_document(
    url: str,
    bytes_max: int,
    timeout_s: float,
    monotonic: Callable[[], float] = time.monotonic,
    token: Secret | None = None,
) -> bytes:
    """The body of a 200 answer.

    Refused (fetch_refused, snapshot_too_large, token_in_the_clear) for another answer, a larger
    one, or a token that others could read; Transient (fetch_failed) when there is no answer, or it
    takes longer than `timeout_s` altogether.
    """
    deadline = monotonic() + timeout_s
    try:
        headers = {"Accept-Encoding": "gzip", **_credential(url, token)}
        # With a token no proxy of the environment is asked: to this host none is needed, and
        # through one over plain HTTP the token would not stay on it.
        direct = token is not None and httpx.URL(url).scheme == "http"
        with (
            httpx.Client(timeout=timeout_s, follow_redirects=False, trust_env=not direct) as client,
            client.stream("GET", url, headers=headers) as answer,
        ):
            if answer.status_code != 200:
                raise _refused(url, answer.status_code)
            return _body(answer, url, bytes_max, lambda: monotonic() > deadline)
    except (httpx.HTTPError, httpx.InvalidURL, zlib.error) as error:
        raise _silent(url, type(error).__name__) from None


def _credential(url: str, token: Secret | None) -> dict[str, str]:
    """The header that carries the token, if there is one and it would stay secret."""
    if token is None:
        return {}
    parts = httpx.URL(url)
    if parts.scheme != "https" and not is_this_host(parts.host):
        raise Refused(
            "token_in_the_clear",
            "a token is not sent over plain HTTP, where others could read it",
            where=_place(url),
            hint="use https://",
        )
    return {"Authorization": f"Bearer {token.reveal()}"}


def is_this_host(host: str) -> bool:
    """Whether a name or address is one of this very machine, which no network carries."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _body(answer: httpx.Response, url: str, bytes_max: int, is_late: Callable[[], bool]) -> bytes:
    # Not httpx's own decoders: they take any number of encodings, and a part for its whole size.
    encoding = answer.headers.get("content-encoding", "identity").lower()
    if encoding not in ("identity", "gzip"):
        raise _refused(url, f"in an encoding nobody asked for: {encoding[:40]!r}")
    unpack = zlib.decompressobj(_GZIP) if encoding == "gzip" else None
    parts, size = [], 0
    for raw in answer.iter_raw():
        part = unpack.decompress(raw, bytes_max - size + 1) if unpack else raw
        size += len(part)
        if size > bytes_max:
            message = f"more than {bytes_max} bytes"
            raise Refused("snapshot_too_large", message, where=_place(url))
        if is_late():
            raise _silent(url, "not all of it in time")
        parts.append(part)
    if unpack and not unpack.eof:
        raise _silent(url, "it ends too early")
    return b"".join(parts)


def _silent(url: str, why: str) -> Transient:
    hint = "is the control plane reachable from here?"
    return Transient("fetch_failed", f"no answer ({why})", where=_place(url), hint=hint)


def _refused(url: str, answer: int | str) -> Refused:
    hint = "look at that address"
    if isinstance(answer, int) and 300 <= answer < 400:
        hint = "use the address it redirects to"
    elif answer == 401:
        hint = "it takes a fresh token: in GPUAAS_TOKEN, or in the file of --token-file"
    elif answer == 403:
        hint = "the token's owner needs platform.status.read for the platform"
    return Refused("fetch_refused", f"it answered {answer}", where=_place(url), hint=hint)


def _place(url: str) -> str:
    """The address without what may be a credential in it."""
    try:
        parts = httpx.URL(url)
    except httpx.InvalidURL:
        return "the address"
    return f"{parts.scheme}://{parts.host}{parts.path}"
