"""The catalog of releases of a control plane, asked for over HTTP.

Rules: as in `adapters.blob_http`: a token goes to that control plane alone, over plain HTTP to this
very host only. What is answered is bounded, and nothing of it is believed but what it hashes to.
"""

from __future__ import annotations

import json
from typing import Any

import httpx

from reconciler.adapters.blob_answers import odd, refusal_of, server_address
from reconciler.errors import Transient
from reconciler.ports import Secret

_BYTES_MAX = 8 * 1024 * 1024


def ask_catalog(
    address: str, path: str, query: dict[str, str], token: Secret | None, timeout_s: float
) -> dict[str, Any]:
    """The JSON object at `path`. Refused by the control plane's own codes, Transient without an
    answer.
    """
    url = server_address(address)
    headers = {"Authorization": f"Bearer {token.reveal()}"} if token is not None else {}
    client = httpx.Client(
        base_url=url,
        headers=headers,
        timeout=timeout_s,
        follow_redirects=False,
        trust_env=url.scheme == "https",
    )
    try:
        with client, client.stream("GET", path.lstrip("/"), params=query) as answer:
            body = bytearray()
            for piece in answer.iter_bytes():
                body += piece
                if len(body) > _BYTES_MAX:
                    raise odd(answer)
            whole = _read(answer, bytes(body))
            if whole.status_code != 200:
                raise refusal_of(whole)
            return _object(whole)
    except httpx.HTTPError as error:
        message = f"no answer ({type(error).__name__})"
        hint = "is the control plane reachable from here?"
        raise Transient("no_answer", message, where=str(url), hint=hint) from None


def _read(answer: httpx.Response, body: bytes) -> httpx.Response:
    """The same with its body, which was read within bounds."""
    after = answer.headers.get("retry-after", "")
    return httpx.Response(
        answer.status_code, headers={"retry-after": after}, content=body, request=answer.request
    )


def _object(answer: httpx.Response) -> dict[str, Any]:
    try:
        found = json.loads(answer.content)
    except (ValueError, RecursionError):
        raise odd(answer) from None
    if not isinstance(found, dict):
        raise odd(answer)
    return found
