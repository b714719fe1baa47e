"""The way to the control plane. The agent only dials out; one request and one answer at a time.

Rules:
- Always TLS. Before a node has joined, one thing alone is fetched without verifying: the CA, which
  the join token's hash vouches for. From then on nothing is said to a server that is not of it.
- What is sent is sealed with the agent's key. What comes back is capped in size, and its tasks are
  believed by `tasks.admit` alone.
- Every failure leaves as `Away` (try again later) or `JoinRefused` (a person must act).
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import json
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import httpx
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from pydantic import ValidationError

from node_agent.artifact_wire import (
    BLOB_REQUEST_TYPE,
    PULL_TOKEN_REQUEST_TYPE,
    BlobRequest,
    PullToken,
    PullTokenRequest,
)
from node_agent.certificate import (
    CertificateRefused,
    pinned,
    request_for,
    tls_context,
    tls_words,
    unverified_context,
    validity_of,
)
from node_agent.envelope import seal
from node_agent.membership import (
    CERTIFICATE_REQUEST_TYPE,
    SERVER_NAME,
    CertificateReply,
    CertificateRequest,
    JoinReply,
    JoinRequest,
    JoinToken,
)
from node_agent.wire import (
    MESSAGE_BYTES_MAX,
    POLL_TYPE,
    REPORT_TYPE,
    SECRETS_REQUEST_TYPE,
    Poll,
    PollReply,
    Report,
    SecretsRequest,
    key_id,
)

REQUEST_TIMEOUT_S = 10.0
STREAM_TIMEOUT_S = 30.0
"""Between two pieces of an answer: as a whole it may take as long as it takes."""
SECRETS_TIMEOUT_S = 5.0
WORDS_MAX = 300
TLS_REFUSED = "tls_refused"
NODE_REVOKED = "node_revoked"
CERTIFICATE_REQUIRED = "certificate_required"


class Away(Exception):
    """The control plane did not take or answer a message.

    `code` is its own, or `unreachable`, `tls_refused`, `answer_malformed`, `answer_too_large`.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


class JoinRefused(Exception):
    """The join token does not work.

    `code`: token_malformed, insecure_server, pin_mismatch, answer_malformed, or the server's.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


@dataclass(frozen=True)
class AgentKey:
    """The agent's own ed25519 key. Its private half does not print."""

    public_key: str
    _private: Ed25519PrivateKey

    @classmethod
    def generate(cls) -> AgentKey:
        return cls._of(Ed25519PrivateKey.generate())

    @classmethod
    def from_hex(cls, private_key: str) -> AgentKey:
        return cls._of(Ed25519PrivateKey.from_private_bytes(bytes.fromhex(private_key)))

    @classmethod
    def _of(cls, private: Ed25519PrivateKey) -> AgentKey:
        raw = private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        return cls(raw.hex(), private)

    def reveal_private(self) -> str:
        """For the state folder only."""
        raw = self._private.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption())
        return raw.hex()

    def seal(self, payload: bytes, payload_type: str) -> bytes:
        document = seal(payload, payload_type, key_id(self.public_key), self._private.sign)
        return json.dumps(document).encode()

    def request_certificate(self, node: str) -> str:
        """A CSR for this key, PEM."""
        return request_for(self._private, node)

    def tls(self, credentials: Credentials) -> ssl.SSLContext:
        """Raises CertificateRefused when they are not to be used with this key."""
        return tls_context(credentials.ca, credentials.certificate, self._private)

    def __repr__(self) -> str:
        return f"AgentKey({self.public_key[:8]}…, ***)"


@dataclass(frozen=True)
class Credentials:
    """The CA certificates to believe and the certificate to show, if any; PEM."""

    ca: str
    certificate: str = ""

    def __repr__(self) -> str:
        return "Credentials(***)"


@dataclass
class _Connections:
    """Those made with one set of credentials, and how many requests use them."""

    credentials: Credentials
    client: httpx.Client
    ends_at_ms: int | None
    users: int = 0


class Link:
    """The connection to one control plane. Each loop has its own, so that none waits for another.

    `credentials` is asked before each request: when they changed, what follows goes over new
    connections, and those that are in use are left to end.
    """

    def __init__(self, server: str, key: AgentKey, credentials: Callable[[], Credentials]) -> None:
        self._server = server
        self._key = key
        self._credentials = credentials
        self._lock = threading.Lock()
        self._current: _Connections | None = None

    def report(self, report: Report) -> None:
        """Raises Away unless the control plane took it."""
        sealed = self._key.seal(report.canonical(), REPORT_TYPE)
        self._post("/v1/agent/report", sealed, REQUEST_TIMEOUT_S)

    def poll(self, poll: Poll) -> PollReply:
        """Waits for tasks for up to `poll.wait_ms`, and some more for the network."""
        sealed = self._key.seal(poll.canonical(), POLL_TYPE)
        answer = self._post("/v1/agent/poll", sealed, poll.wait_ms / 1_000 + REQUEST_TIMEOUT_S)
        try:
            return PollReply.model_validate_json(answer)
        except ValidationError:
            raise Away("answer_malformed", "the answer to a poll is not one") from None

    def secrets(self, request: SecretsRequest) -> bytes:
        """The envelope that came back, not yet believed. Several threads may ask at once."""
        sealed = self._key.seal(request.canonical(), SECRETS_REQUEST_TYPE)
        return self._post("/v1/agent/secrets", sealed, SECRETS_TIMEOUT_S)

    def pull_token(self, request: PullTokenRequest) -> PullToken:
        """Several threads may ask at once."""
        sealed = self._key.seal(request.canonical(), PULL_TOKEN_REQUEST_TYPE)
        answer = self._post("/v1/agent/pull-token", sealed, SECRETS_TIMEOUT_S)
        try:
            return PullToken.model_validate_json(answer)
        except ValidationError:
            message = "the answer to a request for a pull token is not one"
            raise Away("answer_malformed", message) from None

    @contextlib.contextmanager
    def blob(self, request: BlobRequest) -> Iterator[httpx.Response]:
        """The head of whatever the answer is; its body is not read yet (see `pieces_of`)."""
        sealed = self._key.seal(request.canonical(), BLOB_REQUEST_TYPE)
        with self._connections() as connections:
            client = connections.client
            with streamed(client, "POST", "/v1/agent/blob", content=sealed) as answer:
                yield answer

    def certificate(self, request: CertificateRequest) -> CertificateReply:
        """What the control plane made of it, not yet looked at."""
        sealed = self._key.seal(request.canonical(), CERTIFICATE_REQUEST_TYPE)
        answer = self._post("/v1/agent/certificate", sealed, REQUEST_TIMEOUT_S)
        try:
            return CertificateReply.model_validate_json(answer)
        except ValidationError:
            message = "the answer to a request for a certificate is not one"
            raise Away("answer_malformed", message) from None

    def close(self) -> None:
        with self._lock:
            if self._current is not None:
                self._current.client.close()
                self._current = None

    def _post(self, path: str, body: bytes, timeout_s: float) -> bytes:
        with self._connections() as connections:
            return _exchange(connections.client, "POST", path, body, timeout_s, Away)

    @contextlib.contextmanager
    def _connections(self) -> Iterator[_Connections]:
        with self._lock:
            used = self._renewed(self._current)
            used.users += 1
        try:
            yield used
        finally:
            with self._lock:
                used.users -= 1
                if used is not self._current and not used.users:
                    used.client.close()

    def _renewed(self, current: _Connections | None) -> _Connections:
        credentials = self._credentials()
        if current is None or current.credentials != credentials:
            fresh = self._connect(credentials)
            if current is not None and not current.users:
                current.client.close()
            self._current = current = fresh
        # Said here rather than found out: the server's word on it may be lost with the connection.
        if current.ends_at_ms is not None and current.ends_at_ms <= time.time_ns() // 1_000_000:
            message = "this node's certificate has ended; a new one is being asked for"
            raise Away(TLS_REFUSED, message)
        return current

    def _connect(self, credentials: Credentials) -> _Connections:
        shown = credentials.certificate
        try:
            ends_at_ms = validity_of(shown, self._key.public_key).ends_at_ms if shown else None
            context = self._key.tls(credentials)
        except CertificateRefused as refused:
            raise Away(refused.code, refused.message) from None
        return _Connections(credentials, _client(self._server, context), ends_at_ms)


def parse_join_token(text: str) -> JoinToken:
    """Reads what `gpuaas node join` printed; raises JoinRefused, never quoting it."""
    word = text.strip()
    try:
        raw = base64.urlsafe_b64decode(word + "=" * (-len(word) % 4))
        return JoinToken.model_validate_json(raw)
    except (ValueError, binascii.Error, ValidationError):
        message = "not a join token, or not the whole of it"
        raise JoinRefused("token_malformed", message) from None


def join(token: JoinToken, key: AgentKey) -> JoinReply:
    """Redeems the token. Raises Away when nobody answers, JoinRefused when the answer is no.

    The reply's `ca` is never empty; its `certificate` is, unless it is one of `key`.
    """
    if not token.server.startswith("https://"):
        message = "the token is for a control plane without TLS: ask for a new one"
        raise JoinRefused("insecure_server", message)
    ca = _pinned_ca(token)
    request = JoinRequest(
        token=token.secret,
        node=token.node,
        public_key=key.public_key,
        csr=key.request_certificate(token.node),
    )
    with _client(token.server, tls_context(ca)) as client:
        raw = _exchange(
            client, "POST", "/v1/agent/join", request.canonical(), REQUEST_TIMEOUT_S, JoinRefused
        )
    try:
        reply = JoinReply.model_validate_json(raw)
    except ValidationError:
        raise JoinRefused("answer_malformed", "the answer to a join is not one") from None
    if reply.node != token.node:
        raise JoinRefused("answer_malformed", "the answer to a join is for another node")
    return _usable(reply, key, ca)


def _pinned_ca(token: JoinToken) -> str:
    """The CA certificate that the token pins. Whoever answers, it is no other, or JoinRefused."""
    with _client(token.server, unverified_context()) as client:
        raw = _exchange(client, "GET", "/v1/agent/ca", b"", REQUEST_TIMEOUT_S, JoinRefused)
    try:
        ca = pinned(str(json.loads(raw)["ca"]), token.ca_hash)
    except (ValueError, KeyError, TypeError, RecursionError, CertificateRefused):
        message = f"{token.server} gives no CA certificate: is it a control plane's?"
        raise JoinRefused("answer_malformed", message) from None
    if ca is None:
        message = (
            "the server's CA is not the one that the token pins: the token is of another "
            "control plane, or somebody answers in its place"
        )
        raise JoinRefused("pin_mismatch", message)
    return ca


def _usable(reply: JoinReply, key: AgentKey, ca: str) -> JoinReply:
    """With what can't be used left out: the token is spent, and a certificate can be asked for."""
    reply = reply.model_copy(update={"ca": reply.ca or ca})
    try:
        validity_of(reply.certificate, key.public_key)
        key.tls(Credentials(reply.ca, reply.certificate))
    except CertificateRefused as refused:
        believed = ca if refused.code == "ca_malformed" else reply.ca
        return reply.model_copy(update={"certificate": "", "ca": believed})
    return reply


def _client(server: str, context: ssl.SSLContext) -> httpx.Client:
    # Proxies and credentials from the environment are not for a link that is pinned to one server.
    return httpx.Client(base_url=server, verify=context, trust_env=False, follow_redirects=False)


def _exchange(
    client: httpx.Client,
    method: str,
    path: str,
    body: bytes,
    timeout_s: float,
    refused: Callable[[str, str], Exception],
) -> bytes:
    try:
        request = client.build_request(
            method,
            path,
            content=body,
            headers={"Content-Type": "application/json"},
            timeout=timeout_s,
            # The name that its certificate is checked for, too.
            extensions={"sni_hostname": SERVER_NAME},
        )
        answer = client.send(request, stream=True)
        try:
            content = _capped(answer)
        finally:
            answer.close()
    except (httpx.HTTPError, httpx.InvalidURL, OSError, RuntimeError, ValueError) as error:
        raise _away(error) from None
    if answer.status_code in {200, 204}:
        return content
    code, message = _error_words(content, answer.status_code)
    if answer.status_code >= 500:
        raise Away(code, message)
    raise refused(code, message)


@contextlib.contextmanager
def streamed(
    client: httpx.Client,
    method: str,
    url: str,
    *,
    content: bytes = b"",
    headers: Mapping[str, str] | None = None,
    own: bool = True,
) -> Iterator[httpx.Response]:
    """An answer whose body is not read yet. Raises Away. `own`: of the control plane, by the name
    in its certificate.
    """
    try:
        request = client.build_request(
            method,
            url,
            content=content,
            headers={"Accept-Encoding": "identity", **(headers or {})},
            timeout=STREAM_TIMEOUT_S,
            extensions={"sni_hostname": SERVER_NAME} if own else {},
        )
        answer = client.send(request, stream=True)
    except (httpx.HTTPError, httpx.InvalidURL, OSError, RuntimeError, ValueError) as error:
        raise _away(error) from None
    try:
        yield answer
    finally:
        answer.close()


def pieces_of(answer: httpx.Response) -> Iterator[bytes]:
    """The body, as it comes. Raises Away for what goes wrong with it, and for nothing else."""
    pieces = answer.iter_raw()
    while True:
        try:
            piece = next(pieces, None)
        except (httpx.HTTPError, httpx.StreamError, OSError) as error:
            raise _away(error) from None
        if piece is None:
            return
        yield piece


def refusal_of(answer: httpx.Response) -> Away:
    """What an answer that is an error says."""
    return Away(*_error_words(_capped(answer), answer.status_code))


def _away(error: Exception) -> Away:
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ssl.SSLError):
        cause = cause.__cause__ or cause.__context__
    if cause is None or isinstance(cause, ssl.SSLEOFError | ssl.SSLZeroReturnError):
        message = f"the control plane does not answer ({type(error).__name__})"
        return Away("unreachable", message)
    return Away(TLS_REFUSED, tls_words(cause))


def _capped(answer: httpx.Response) -> bytes:
    content = b""
    for piece in answer.iter_bytes():
        content += piece
        if len(content) > MESSAGE_BYTES_MAX:
            raise Away("answer_too_large", f"an answer over {MESSAGE_BYTES_MAX} bytes")
    return content


def _error_words(content: bytes, status: int) -> tuple[str, str]:
    """The control plane's error envelope, as far as it is one."""
    try:
        error: Any = json.loads(content)["error"]
        words = f"{error['message']} (correlation id {error.get('correlation_id', 'none')})"
        return str(error["code"])[:64], words[:WORDS_MAX]
    except (ValueError, KeyError, TypeError, RecursionError):
        return f"http_{status}", f"the control plane answered {status}"
