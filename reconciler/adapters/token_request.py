"""Asks a control plane for a bearer token, over HTTP.

Rules: no redirect is followed, and what is answered is bounded. Over plain HTTP to this very host
only: what is shown here lets whoever sees it act for somebody. Neither assertion nor token is in an
error. httpx stays in here.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import httpx

from reconciler.adapters.fetch_document import is_this_host
from reconciler.core.authority.accounts import TOKEN_PATH
from reconciler.core.printable import printable
from reconciler.errors import Refused, Transient
from reconciler.ports import Secret

GRANT_TYPE = "urn:ietf:params:oauth:grant-type:jwt-bearer"
_BYTES_MAX = 64 * 1024


@dataclass(frozen=True)
class Token:
    value: Secret
    lasts_s: int
    scope: tuple[str, ...]


def request_token(
    server: str, assertion: Secret, scope: tuple[str, ...], timeout_s: float
) -> Token:
    """`server` is the address of the control plane. Refused token_refused, Transient."""
    url = _address(server)
    fields = {"grant_type": GRANT_TYPE, "assertion": assertion.reveal()}
    if scope:
        fields["scope"] = " ".join(scope)
    try:
        with (
            httpx.Client(
                timeout=timeout_s, follow_redirects=False, trust_env=url.scheme == "https"
            ) as client,
            client.stream("POST", url, data=fields) as answer,
        ):
            body = bytearray()
            for part in answer.iter_bytes():
                body += part
                if len(body) > _BYTES_MAX:
                    raise _odd(url, f"more than {_BYTES_MAX} bytes")
            return _token(answer.status_code, bytes(body), url)
    except httpx.HTTPError as error:
        hint = "is the control plane reachable from here?"
        message = f"no answer ({type(error).__name__})"
        raise Transient("token_not_fetched", message, where=str(url), hint=hint) from None


def _address(server: str) -> httpx.URL:
    try:
        url = httpx.URL(server)
    except httpx.InvalidURL:
        raise Refused("bad_server", f"no address: {server[:80]!r}", hint="https://HOST") from None
    if url.scheme not in ("http", "https") or not url.host or url.userinfo or url.query:
        raise Refused("bad_server", f"no address: {url.host or server[:80]!r}", hint="https://HOST")
    if url.scheme != "https" and not is_this_host(url.host):
        message = "a token is not asked for over plain HTTP, where others could read it"
        raise Refused("token_in_the_clear", message, where=str(url), hint="use https://")
    return url.copy_with(path=url.path.rstrip("/") + TOKEN_PATH)


def _token(status: int, body: bytes, url: httpx.URL) -> Token:
    try:
        answer = json.loads(body)
    except ValueError:
        answer = None
    found = answer if isinstance(answer, dict) else {}
    if status != 200:
        raise _refused(status, found.get("error"), url)
    value, lasts_s = found.get("access_token"), found.get("expires_in")
    if not isinstance(value, str) or not value or not isinstance(lasts_s, int):
        raise _odd(url, "something that is no token")
    return Token(Secret(value), lasts_s, tuple(str(found.get("scope", "")).split()))


def _refused(status: int, error: object, url: httpx.URL) -> Refused | Transient:
    told = error if isinstance(error, dict) else {}
    code, message = (
        printable(str(told.get("code", status))),
        printable(str(told.get("message", ""))),
    )
    text = f"{code[:80]}: {message[:300]}" if message else f"it answered {code[:80]}"
    if status >= 500 or status == 429:
        return Transient("token_not_fetched", text, where=str(url))
    hint = "is the account accepted, enabled, and the key in its manifest under that id?"
    return Refused("token_refused", text, where=str(url), hint=hint if status == 401 else "")


def _odd(url: httpx.URL, what: str) -> Refused:
    hint = "is that the address of a control plane?"
    return Refused("token_refused", f"it answered {what}", where=str(url), hint=hint)
