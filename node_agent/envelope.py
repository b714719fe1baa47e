"""Signed envelopes (DSSE, ed25519), for both sides of the wire.

Rules: bytes in, verified bytes out; no disk, network or clock. One error leaves: EnvelopeRefused.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import VerificationError
from securesystemslib.signer import Key, Signature, SSlibKey

from node_agent.wire import MESSAGE_BYTES_MAX, VerifierKey

SIGNATURES_MAX = 16

Sign = Callable[[bytes], bytes]
"""Signs the pre-authentication encoding and returns 64 raw ed25519 signature bytes."""


class EnvelopeRefused(Exception):
    """Not to be believed. `code`: malformed, wrong_type, unknown_key or bad_signature."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


def seal(payload: bytes, payload_type: str, signing_key_id: str, sign: Sign) -> dict[str, Any]:
    """Wraps and signs `payload`; the result is the envelope as a JSON-ready dict."""
    envelope = Envelope(payload, payload_type, {})
    signature = Signature(signing_key_id, sign(envelope.pae()).hex())
    envelope.signatures[signing_key_id] = signature
    document: dict[str, Any] = envelope.to_dict()
    return document


def unseal(
    raw: bytes,
    payload_type: str,
    keys: Iterable[VerifierKey],
    bytes_max: int = MESSAGE_BYTES_MAX,
) -> tuple[bytes, VerifierKey]:
    """Returns the payload and the key that signed it; raises EnvelopeRefused for anything else."""
    envelope = _parse(raw, bytes_max)
    if envelope.payload_type != payload_type:
        raise EnvelopeRefused("wrong_type", f"expected {payload_type}")
    known = {key.key_id: key for key in keys}
    candidates = [known[signer] for signer in envelope.signatures if signer in known]
    if not candidates:
        raise EnvelopeRefused("unknown_key", "signed by no key that is trusted here")
    try:
        accepted = envelope.verify([_sslib_key(key) for key in candidates], 1)
    except VerificationError:
        raise EnvelopeRefused("bad_signature", "the signature does not match the payload") from None
    return envelope.payload, known[next(iter(accepted))]


def _parse(raw: bytes, bytes_max: int) -> Envelope:
    if len(raw) > bytes_max:
        raise EnvelopeRefused("malformed", f"larger than {bytes_max} bytes")
    try:
        document = json.loads(raw)
        if not isinstance(document, dict) or not isinstance(document.get("payloadType"), str):
            raise ValueError("not an envelope")
        if len(document["signatures"]) > SIGNATURES_MAX:
            raise ValueError("too many signatures")
        return Envelope.from_dict(document)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise EnvelopeRefused(
            "malformed", f"not a DSSE envelope ({type(error).__name__})"
        ) from None


def _sslib_key(key: VerifierKey) -> Key:
    return SSlibKey(key.key_id, "ed25519", "ed25519", {"public": key.public_key})
