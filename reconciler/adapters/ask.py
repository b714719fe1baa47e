"""One request to a control plane that sends or brings a credential, over HTTP.

Rules: no redirect is followed, and what is answered is bounded. Over plain HTTP to this very host
only: whoever sees what is sent could use it. Nothing of it is in an error. httpx stays in here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import httpx

from reconciler.adapters.fetch_document import is_this_host
from reconciler.core.printable import printable
from reconciler.errors import Refused, Transient
from reconciler.ports import Secret

_BYTES_MAX = 256 * 1024


@dataclass(frozen=True)
class Asking:
    """What is asked for, for messages, and the codes of what may become of it."""

    what: str
    in_the_clear: str
    no_answer: str
    no_answer_hint: str
    odd: str


@dataclass(frozen=True)
class Answered:
    """`document` is empty where the body is no JSON object; `code` and `message` are those of the
    error envelope, made safe to show.
    """

    status: int
    document: Mapping[str, Any]
    where: str
    asking: Asking

    @property
    def code(self) -> str:
        return printable(str(self._error.get("code", "")))[:80]

    @property
    def message(self) -> str:
        return printable(str(self._error.get("message", "")))[:300]

    @property
    def may_pass(self) -> bool:
        """Whether the same may work later."""
        return self.status >= 500 or self.status == 429

    @property
    def _error(self) -> Mapping[str, Any]:
        found = self.document.get("error")
        return found if isinstance(found, dict) else {}

    def odd(self, what: str) -> Refused:
        return _odd(self.where, self.asking, what)


def ask(
    server: str,
    path: str,
    asking: Asking,
    timeout_s: float,
    *,
    method: str = "POST",
    token: Secret | None = None,
    as_json: Mapping[str, Any] | None = None,
    as_form: Mapping[str, str] | None = None,
    query: Mapping[str, str] | None = None,
) -> Answered:
    """One request for `path` of the control plane at `server`, with a bearer token if there is one.
    Raises Refused bad_server or for plain HTTP beyond this host, Transient without an answer.
    """
    url = _address(server, path, asking)
    # To this host no proxy of the environment is needed, and none is to see it.
    by_proxy = url.scheme == "https"
    client = httpx.Client(timeout=timeout_s, follow_redirects=False, trust_env=by_proxy)
    shown = {"Authorization": f"Bearer {token.reveal()}"} if token is not None else {}
    request = client.build_request(
        method, url, json=as_json, data=as_form, params=query, headers=shown
    )
    try:
        with client, closing(client.send(request, stream=True)) as answer:
            body = _bounded(answer, str(url), asking)
            return Answered(answer.status_code, _document(body), str(url), asking)
    except httpx.HTTPError as error:
        message = f"no answer ({type(error).__name__})"
        raise Transient(
            asking.no_answer, message, where=str(url), hint=asking.no_answer_hint
        ) from None


def _address(server: str, path: str, asking: Asking) -> httpx.URL:
    try:
        url = httpx.URL(server)
    except httpx.InvalidURL:
        raise Refused("bad_server", f"no address: {server[:80]!r}", hint="https://HOST") from None
    if url.scheme not in ("http", "https") or not url.host or url.userinfo or url.query:
        raise Refused("bad_server", f"no address: {url.host or server[:80]!r}", hint="https://HOST")
    if url.scheme != "https" and not is_this_host(url.host):
        message = f"{asking.what} is not asked for over plain HTTP, where others could read it"
        raise Refused(asking.in_the_clear, message, where=str(url), hint="use https://")
    return url.copy_with(path=url.path.rstrip("/") + path)


def _bounded(answer: httpx.Response, where: str, asking: Asking) -> bytes:
    body = bytearray()
    for part in answer.iter_bytes():
        body += part
        if len(body) > _BYTES_MAX:
            raise _odd(where, asking, f"more than {_BYTES_MAX} bytes")
    return bytes(body)


def _document(body: bytes) -> Mapping[str, Any]:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _odd(where: str, asking: Asking, what: str) -> Refused:
    hint = "is that the address of a control plane?"
    return Refused(asking.odd, f"it answered {what}", where=where, hint=hint)
