"""The way to the control plane. The agent only dials out; one request and one answer at a time.

Rules:
- What is sent is sealed with the agent's key. What comes back is capped in size, and its tasks are
  believed by `tasks.admit` alone.
- Every failure leaves as `Away` (try again later) or `JoinRefused` (a person must act).
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable
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

from node_agent.envelope import seal
from node_agent.wire import (
    MESSAGE_BYTES_MAX,
    POLL_TYPE,
    REPORT_TYPE,
    SECRETS_REQUEST_TYPE,
    JoinReply,
    JoinRequest,
    JoinToken,
    Poll,
    PollReply,
    Report,
    SecretsRequest,
    key_id,
)

REQUEST_TIMEOUT_S = 10.0
SECRETS_TIMEOUT_S = 5.0
WORDS_MAX = 300


class Away(Exception):
    """The control plane did not take or answer a message. `code` is its own, or `unreachable`."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


class JoinRefused(Exception):
    """The join token does not work. `code`: token_malformed, pin_mismatch, or the server's."""

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

    def __repr__(self) -> str:
        return f"AgentKey({self.public_key[:8]}…, ***)"


class Link:
    """A connection to one control plane. Each loop has its own, so that none waits for another."""

    def __init__(self, server: str, key: AgentKey) -> None:
        self._key = key
        self._client = _client(server)

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

    def close(self) -> None:
        self._client.close()

    def _post(self, path: str, body: bytes, timeout_s: float) -> bytes:
        return _post(self._client, path, body, timeout_s, Away)


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
    """Redeems the token. Raises Away when nobody answers, JoinRefused when the answer is no."""
    request = JoinRequest(token=token.secret, node=token.node, public_key=key.public_key)
    client = _client(token.server)
    try:
        raw = _post(client, "/v1/agent/join", request.canonical(), REQUEST_TIMEOUT_S, JoinRefused)
    finally:
        client.close()
    try:
        reply = JoinReply.model_validate_json(raw)
    except ValidationError:
        raise JoinRefused("answer_malformed", "the answer to a join is not one") from None
    if reply.verifier_hash != token.verifier_hash or reply.node != token.node:
        message = (
            "the server's verifier keys are not those the token pins: the token is of another "
            "control plane, or somebody answers in its place"
        )
        raise JoinRefused("pin_mismatch", message)
    return reply


def _client(server: str) -> httpx.Client:
    # Proxies and credentials from the environment are not for a link that is pinned to one server.
    return httpx.Client(base_url=server, trust_env=False, follow_redirects=False)


def _post(
    client: httpx.Client,
    path: str,
    body: bytes,
    timeout_s: float,
    refused: Callable[[str, str], Exception],
) -> bytes:
    try:
        headers = {"Content-Type": "application/json"}
        request = client.build_request(
            "POST", path, content=body, headers=headers, timeout=timeout_s
        )
        answer = client.send(request, stream=True)
        try:
            content = _capped(answer)
        finally:
            answer.close()
    except (httpx.HTTPError, httpx.InvalidURL, RuntimeError) as error:
        message = f"the control plane does not answer ({type(error).__name__})"
        raise Away("unreachable", message) from None
    if answer.status_code in {200, 204}:
        return content
    code, message = _error_words(content, answer.status_code)
    if answer.status_code >= 500:
        raise Away(code, message)
    raise refused(code, message)


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
