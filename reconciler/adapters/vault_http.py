"""One Vault or OpenBao over HTTP: bounded in time and size, and believed in nothing.

Rules:
- Nothing comes from the environment: no proxy, no .netrc, no VAULT_ variable, no other CA bundle.
- No redirect is followed: a token goes to the address that was given, and in the clear to this very
  host only.
- What the server wrote gets into no error: it could be what it was sent.
- A call has one deadline, from the connection to the last byte, however slowly they come.
- After no answer nobody asks for a while, and then one does: a Vault that is away costs one
  timeout, not one a call.
- "There is none" needs Vault's own word for it; a bare 404 may come from anything in between.
hvac, requests and urllib3 stay in here.
"""

from __future__ import annotations

import io
import json
import random
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.client import HTTPResponse
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests
import urllib3
from hvac.adapters import RawAdapter
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from reconciler.adapters.fetch_document import is_this_host
from reconciler.errors import GpuaasError, Refused, Transient

ANSWER_BYTES_MAX = 8 * 1024 * 1024
ATTEMPTS_MAX = 3
RETRY_DELAY_S = 0.1
PAUSE_S = 0.5
PAUSE_S_MAX = 15.0
CONNECTIONS_MAX = 16

Json = dict[str, Any]
_PASSING = frozenset({"custody_unreachable", "custody_unavailable"})
_SILENT = frozenset({"custody_unreachable", "custody_timeout"})


@dataclass(frozen=True)
class Answer:
    """What Vault said: 200 or 204, or 400, 403, 404 of its own with `errors`, its own texts.

    `errors` are for looking words up in, never for showing: they may hold what was sent.
    """

    status: int
    data: Mapping[str, Any] = field(default_factory=dict, repr=False)
    auth: Mapping[str, Any] = field(default_factory=dict, repr=False)
    wrap_info: Mapping[str, Any] = field(default_factory=dict, repr=False)
    errors: tuple[str, ...] = field(default=(), repr=False)

    @property
    def ok(self) -> bool:
        return self.status < 400

    def says(self, words: str) -> bool:
        return any(words in error for error in self.errors)


class VaultHttp:
    """Asks the Vault at `address`, an `https://` URL, or `http://` on this very host.

    Raises Transient (custody_sealed, custody_timeout, custody_unreachable, custody_unavailable) and
    Refused (custody_malformed; vault_address_refused for an address that is none). `timeout_s` is
    for all attempts of a call together.
    """

    def __init__(
        self,
        address: str,
        *,
        ca_file: Path | None = None,
        timeout_s: float = 5.0,
        monotonic: Callable[[], float] = time.monotonic,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self.address = _checked_address(address)
        self._timeout_s = timeout_s
        self._monotonic = monotonic
        self._uniform = uniform
        self._pause = _Pause(monotonic, uniform, timeout_s)
        self._session = requests.Session()
        self._session.trust_env = False
        self._session.verify = str(ca_file) if ca_file else True
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, _Connections(pool_maxsize=CONNECTIONS_MAX))
        # Not hvac's Client, which takes certificates and addresses from the environment.
        self._adapter = RawAdapter(
            base_uri=self.address,
            token="",
            allow_redirects=False,
            session=self._session,
            ignore_exceptions=True,
        )

    def close(self) -> None:
        self._session.close()

    def ask(
        self,
        method: str,
        path: str,
        *,
        token: str = "",
        body: Json | None = None,
        headers: Mapping[str, str] | None = None,
        again: bool = False,
    ) -> Answer:
        """`again`: asking twice does no more than asking once, so that it may be repeated."""
        self._pause.enter()
        try:
            answer = self._asked(method, path, token, body, headers or {}, again)
        except Transient as error:
            if error.code in _SILENT:
                self._pause.failed(error)
            else:
                self._pause.answered()
            raise
        except Refused:
            self._pause.answered()
            raise
        self._pause.answered()
        return answer

    def _asked(
        self,
        method: str,
        path: str,
        token: str,
        body: Json | None,
        headers: Mapping[str, str],
        again: bool,
    ) -> Answer:
        deadline = self._monotonic() + self._timeout_s
        delay_s = RETRY_DELAY_S
        for _ in range(ATTEMPTS_MAX - 1 if again else 0):
            try:
                return self._once(method, path, token, body, headers, deadline)
            except Transient as error:
                delay_s *= 2
                wait_s = self._uniform(0.5, 1.0) * delay_s
                if error.code not in _PASSING or self._monotonic() + wait_s >= deadline:
                    raise
                time.sleep(wait_s)
        return self._once(method, path, token, body, headers, deadline)

    def _once(
        self,
        method: str,
        path: str,
        token: str,
        body: Json | None,
        headers: Mapping[str, str],
        deadline: float,
    ) -> Answer:
        left_s = max(deadline - self._monotonic(), 0.001)
        try:
            with self._adapter.request(
                method,
                f"/v1/{path}",
                headers={
                    **headers,
                    **({"X-Vault-Token": token} if token else {}),
                    "Accept-Encoding": "identity",
                },
                json=body,
                stream=True,
                timeout=urllib3.Timeout(total=left_s),
            ) as response:
                return _read(response, _content(response.raw), path, self.address)
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
            raise self._silent(error) from None

    def _silent(self, error: Exception) -> GpuaasError:
        # urllib3 puts one error into another; only the names of their types are told.
        names = list(_names(error))
        if any("Timeout" in name for name in names):
            message = f"no answer within {self._timeout_s:g} s"
            return Transient("custody_timeout", message, where=self.address)
        if any("SSL" in name or "Certificate" in name for name in names):
            return Transient(
                "custody_unreachable",
                "its certificate is not believed, or it does not speak TLS",
                where=self.address,
                hint="is vault_ca_file the CA of that Vault?",
            )
        return Transient(
            "custody_unreachable",
            f"no connection, or it broke ({names[-1]})",
            where=self.address,
            hint="does Vault run, and is vault_address right?",
        )


class _Pause:
    """After no answer nobody asks for a while; then one does, and the others wait for its end."""

    def __init__(
        self,
        monotonic: Callable[[], float],
        uniform: Callable[[float, float], float],
        timeout_s: float,
    ) -> None:
        self._monotonic = monotonic
        self._uniform = uniform
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._error: Transient | None = None
        self._failures = 0
        self._until = 0.0

    def enter(self) -> None:
        """Raises the error of the last attempt while it is too early for another one."""
        with self._lock:
            if self._error is None:
                return
            now = self._monotonic()
            if now < self._until:
                raise Transient(
                    self._error.code,
                    self._error.message,
                    where=self._error.where,
                    hint=self._error.hint,
                    retry_after_s=self._until - now,
                )
            self._until = now + self._timeout_s

    def failed(self, error: Transient) -> None:
        with self._lock:
            self._error = error
            self._failures += 1
            # Jitter, so that several control planes do not come back all at once.
            longest_s = min(PAUSE_S * 2.0 ** min(self._failures, 16), PAUSE_S_MAX)
            self._until = self._monotonic() + self._uniform(0.5, 1.0) * longest_s

    def answered(self) -> None:
        if self._error is not None:
            with self._lock:
                self._error, self._failures = None, 0


def _content(raw: urllib3.BaseHTTPResponse) -> bytes:
    """As it comes, no encoding undone; one byte more than may be when it is too much."""
    parts, left = [], ANSWER_BYTES_MAX + 1
    # Only the read after the last byte tells that some are missing.
    while left and (part := raw.read(left, decode_content=False)):
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


def _read(response: requests.Response, content: bytes, path: str, address: str) -> Answer:
    if len(content) > ANSWER_BYTES_MAX:
        raise _malformed(address, f"its answer has more than {ANSWER_BYTES_MAX} bytes")
    status, document = response.status_code, _document(content)
    if 300 <= status < 400:
        raise Transient(
            "custody_unavailable",
            f"it redirects elsewhere ({status}), and a token is not sent there",
            where=address,
            hint="set vault_address to the active Vault, or to what forwards to it",
        )
    errors = _errors(document)
    if status == 500 and any("invalid secret id" in error for error in errors):
        # Some versions of Vault blame themselves for it.
        return Answer(400, errors=errors)
    if status in (429, 412) or status >= 500:
        raise _unwell(status, errors, address)
    if status == 204 and not content:
        return Answer(status)
    if document is None or status not in (200, 204, 400, 403, 404):
        raise _malformed(address, f"no Vault answers like that ({status}, {path})")
    if status == 400 and any("Upgrading from non-versioned" in error for error in errors):
        raise _unwell(status, errors, address)
    return Answer(
        status,
        _mapping(document, "data"),
        _mapping(document, "auth"),
        _mapping(document, "wrap_info"),
        errors,
    )


def _document(content: bytes) -> Json | None:
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None


def _errors(document: Json | None) -> tuple[str, ...]:
    found = (document or {}).get("errors")
    return tuple(e for e in found if isinstance(e, str)) if isinstance(found, list) else ()


def _mapping(document: Json, name: str) -> Mapping[str, Any]:
    found = document.get(name)
    return found if isinstance(found, dict) else {}


def _unwell(status: int, errors: tuple[str, ...], address: str) -> Transient:
    if status == 503 and any("sealed" in error for error in errors):
        hint = "unseal it; nothing here has to be restarted"
        return Transient("custody_sealed", "Vault is sealed", where=address, hint=hint)
    return Transient("custody_unavailable", f"it answered {status}", where=address)


def _malformed(address: str, message: str) -> Refused:
    hint = "is vault_address that of a Vault or OpenBao?"
    return Refused("custody_malformed", message, where=address, hint=hint)


def _names(error: BaseException) -> list[str]:
    """The types of an error and of those it was made from, outermost first."""
    names: list[str] = []
    inner: object = error
    while isinstance(inner, BaseException) and len(names) < 10:
        names.append(type(inner).__name__)
        reason = getattr(inner, "reason", None)
        nested = next((a for a in reversed(inner.args) if isinstance(a, BaseException)), None)
        inner = reason if isinstance(reason, BaseException) else nested
    return names


def _checked_address(address: str) -> str:
    try:
        parts = urlsplit(address)
        host, _ = parts.hostname or "", parts.port
        host.encode("idna")
    except (ValueError, UnicodeError):
        parts, host = urlsplit(""), ""
    told = f"{parts.scheme}://{host}"
    if parts.scheme not in ("http", "https") or not host or parts.query or parts.username:
        hint = "such as https://vault.example:8200"
        raise Refused("vault_address_refused", "vault_address is no Vault's URL", hint=hint)
    if parts.scheme == "http" and not is_this_host(host):
        raise Refused(
            "vault_address_refused",
            "tokens and secrets are not sent over plain HTTP, where others could read them",
            where=told,
            hint="use https://",
        )
    return address.rstrip("/")


class _Deadlined(io.RawIOBase):
    """A socket's file that ends at one deadline, where a socket alone has one for each read."""

    def __init__(self, raw: io.RawIOBase, connection: socket.socket) -> None:
        self._raw = raw
        self._connection = connection
        timeout_s = connection.gettimeout()
        self._deadline = None if timeout_s is None else time.monotonic() + timeout_s

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        if self._deadline is not None:
            left_s = self._deadline - time.monotonic()
            if left_s <= 0:
                raise TimeoutError("timed out")
            self._connection.settimeout(left_s)
        return self._raw.readinto(buffer)

    def close(self) -> None:
        if not self.closed:
            self._raw.close()
            super().close()


class _Response(HTTPResponse):
    def __init__(self, sock: socket.socket, *args: Any, **more: Any) -> None:
        super().__init__(sock, *args, **more)
        self.fp = io.BufferedReader(_Deadlined(self.fp.detach(), sock))


class _HttpConnection(HTTPConnection):
    response_class = _Response


class _HttpsConnection(HTTPSConnection):
    response_class = _Response


class _HttpPool(HTTPConnectionPool):
    ConnectionCls = _HttpConnection


class _HttpsPool(HTTPSConnectionPool):
    ConnectionCls = _HttpsConnection


class _Connections(HTTPAdapter):
    def init_poolmanager(self, *args: Any, **more: Any) -> None:
        super().init_poolmanager(*args, **more)
        pools = {"http": _HttpPool, "https": _HttpsPool}
        self.poolmanager.pool_classes_by_scheme = pools
