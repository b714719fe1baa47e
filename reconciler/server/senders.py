"""Which node an agent's message is from.

Rules:
- What an agent sends is believed by its signature; the key tells which node speaks. It comes over
  a connection that shows a certificate of the same key, where one is asked for.
- Of a node that was revoked nothing is believed, whatever it signs.
- A message counts while it is fresh.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import TypeVar

from pydantic import ValidationError

from node_agent import envelope
from node_agent.membership import CertificateRequest
from node_agent.wire import BlobRequest, Poll, PullTokenRequest, Report, SecretsRequest, VerifierKey
from reconciler.core.records import EnrolledNode
from reconciler.server.deps import ServerDeps
from reconciler.server.errors import ApiError, first_problem

_SIGNERS_MAX = 4

M = TypeVar("M", Report, Poll, SecretsRequest, PullTokenRequest, BlobRequest, CertificateRequest)


class Senders:
    """Looks messages up in the store. Every method raises ApiError for what is not believed."""

    def __init__(self, deps: ServerDeps) -> None:
        self._deps = deps

    def unsealed(
        self, body: bytes, payload_type: str, shown: str | None
    ) -> tuple[EnrolledNode, bytes]:
        """The node whose key signed it, and the payload. `shown`: the key of the connection's
        certificate; None where none is asked for.
        """
        signers = _signers(body)
        nodes = self._nodes_by_key(signers)
        if signers and not nodes:
            raise _refusal(envelope.EnvelopeRefused("unknown_key", ""))
        keys = [
            VerifierKey(key_id=signer, version=1, public_key=node.public_key)
            for signer, node in nodes.items()
        ]
        try:
            payload, key = envelope.unseal(body, payload_type, keys)
        except envelope.EnvelopeRefused as refused:
            raise _refusal(refused) from None
        node = nodes[key.key_id]
        _refuse_revoked(node)
        if shown not in (None, node.public_key):
            message = "the connection's certificate is of another key than the message's"
            raise ApiError(403, "certificate_of_another", message)
        return node, payload

    def checked(self, kind: type[M], node: EnrolledNode, payload: bytes, now_ms: int) -> M:
        """The message, if it is `node`'s own and fresh."""
        try:
            message = kind.model_validate_json(payload)
        except ValidationError as error:
            raise ApiError(422, "invalid_message", first_problem(error)) from None
        if message.node != node.name:
            raise ApiError(
                403, "wrong_node", f"this key belongs to node {node.name}, not the sender"
            )
        age_max_ms = int(self._deps.settings.report_age_max_s * 1000)
        if abs(now_ms - message.sent_at_ms) > age_max_ms:
            raise ApiError(
                422,
                "not_fresh",
                f"sent more than {age_max_ms / 1000:g} s from now by the control plane's clock: "
                "check the clocks",
            )
        return message

    def check_still(self, node: EnrolledNode) -> None:
        """Whether its key still is that of the node: much may happen while a poll is open."""
        now = self._deps.store.node(node.name)
        if now is None or now.public_key != node.public_key:
            raise _refusal(envelope.EnvelopeRefused("unknown_key", ""))
        _refuse_revoked(now)

    def _nodes_by_key(self, signers: Sequence[str]) -> dict[str, EnrolledNode]:
        found = {signer: self._deps.store.node_by_key(signer) for signer in signers}
        return {signer: node for signer, node in found.items() if node is not None}


def _signers(body: bytes) -> list[str]:
    """Key ids an envelope names: where to look for a key, nothing that is believed."""
    try:
        document = json.loads(body)
        named = [signature["keyid"] for signature in document["signatures"][:_SIGNERS_MAX]]
    except (ValueError, KeyError, TypeError, RecursionError):
        return []
    return [signer for signer in named if isinstance(signer, str) and re.fullmatch(r"\w+", signer)]


def _refuse_revoked(node: EnrolledNode) -> None:
    if node.revoked_at_ms is not None:
        message = f"node {node.name} was revoked: nothing of this key is believed any more"
        raise ApiError(403, "node_revoked", message)


def _refusal(refused: envelope.EnvelopeRefused) -> ApiError:
    if refused.code == "unknown_key":
        return ApiError(401, "unknown_node", "no enrolled node has this key: join first")
    status = 401 if refused.code == "bad_signature" else 400
    return ApiError(status, refused.code, refused.message)
