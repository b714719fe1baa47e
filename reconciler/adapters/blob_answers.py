"""What a control plane answers about a blob, read; and where it may be asked.

Rules: an answer that can't be read is refused, one that may be better later is Transient. Nothing
that is not ours to show is in an error: no credential, and no address that opens something.
"""

from __future__ import annotations

import re

import httpx

from reconciler.adapters.fetch_document import is_this_host
from reconciler.core.printable import printable
from reconciler.errors import GpuaasError, Refused, Transient

_WAIT_S_MAX = 60.0
_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)", re.ASCII)
_FULL = 507


def server_address(text: str) -> httpx.URL:
    """Refused bad_server, or credential_in_the_clear for plain HTTP beyond this host."""
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL:
        raise Refused("bad_server", f"no address: {text[:80]!r}", hint="https://HOST") from None
    if url.scheme not in ("http", "https") or not url.host or url.userinfo or url.query:
        raise Refused("bad_server", f"no address: {url.host or text[:80]!r}", hint="https://HOST")
    if url.scheme != "https" and not is_this_host(url.host):
        message = "a credential is not sent over plain HTTP, where others could read it"
        raise Refused("credential_in_the_clear", message, where=text[:200], hint="use https://")
    return url


def elsewhere(answer: httpx.Response) -> httpx.URL:
    """Where a redirect leads. Refused where that gives up TLS."""
    location = answer.headers.get("location", "")
    try:
        url = answer.url.join(location)
    except httpx.InvalidURL:
        raise odd(answer) from None
    if url.scheme not in ("http", "https") or (answer.url.scheme, url.scheme) == ("https", "http"):
        raise odd(answer)
    return url


def cut_off(message: str) -> Transient:
    hint = "the same command goes on where it was cut off"
    return Transient("blob_cut_off", message, hint=hint, retry_after_s=0.0)


def refusal_of(answer: httpx.Response) -> GpuaasError:
    """What the answer's envelope says, or its status where it has none."""
    error: object = None
    try:
        error = answer.json().get("error")
    except (ValueError, AttributeError, httpx.ResponseNotRead):
        error = None
    told = error if isinstance(error, dict) else {}
    code = printable(str(told.get("code", "")))[:80] or _code_of(answer.status_code)
    message = printable(str(told.get("message", "")))[:500] or f"it answered {answer.status_code}"
    where = _where(answer)
    if answer.status_code == _FULL:
        return Transient("blob_store_full", message, where=where)
    passes = answer.status_code in (408, 429) or code == "upload_busy"
    if answer.status_code >= 500 or passes:
        return Transient(code, message, where=where, retry_after_s=wait_s(answer))
    return Refused(code, message, where=where)


def wait_s(answer: httpx.Response) -> float:
    given = answer.headers.get("retry-after", "")
    return min(_WAIT_S_MAX, float(given)) if re.fullmatch(r"[0-9]{1,5}", given, re.ASCII) else 0.0


def number_in(answer: httpx.Response, header: str) -> int:
    given = answer.headers.get(header, "")
    if not re.fullmatch(r"[0-9]{1,18}", given, re.ASCII):
        raise odd(answer)
    return int(given)


def start_of(answer: httpx.Response, asked: int) -> int:
    """The first byte that an answer of 200 or 206 brings."""
    if answer.status_code == 200:
        return 0
    found = _RANGE.fullmatch(answer.headers.get("content-range", ""))
    if found is None or int(found[1]) != asked:
        raise odd(answer)
    return asked


def odd(answer: httpx.Response) -> Refused:
    message = f"it answered {answer.status_code} with something that can't be read"
    hint = "is that the address of a control plane?"
    return Refused("bad_server", message, where=_where(answer), hint=hint)


def _where(answer: httpx.Response) -> str:
    # An address that opens something has that in its query.
    return str(answer.url.copy_with(query=None, userinfo=b""))


def _code_of(status: int) -> str:
    return {401: "credential_refused", 404: "no_such_blob"}.get(status, "blob_refused")
