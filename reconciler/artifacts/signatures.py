"""Checks one signature or attestation with the keys of the policies.

Rules:
- Bytes in, proofs or a reason out: no disk, network or clock.
- A signature is checked over the bytes that came, before anything in them is believed. What is
  read of bytes whose signature did not hold only chooses the words of the refusal.
- The key decides the algorithm. Key ids, hints and certificates in a document decide nothing.
- Anybody may attach: bytes and signatures are bounded, and a signature that can't be one by its
  form costs no arithmetic on a curve.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from reconciler.artifact_ports import Document
from reconciler.core.names import Digest
from reconciler.core.printable import printable
from reconciler.core.trust.evidence import Proof, Rejected
from reconciler.core.trust.judge import NOT_TRUSTED, UNSIGNED_PROVENANCE
from reconciler.core.trust.rules import TrustedKey, TrustRules
from reconciler.core.trust.statements import (
    BUNDLE_TYPE,
    IN_TOTO,
    Claims,
    claims_of,
    signed_digest,
    strict_json,
)

MALFORMED = "signature_malformed"
OTHER_SUBJECT = "signature_other_subject"
SIGNATURES_MAX = 4
PAYLOAD_BYTES_MAX = 1024 * 1024
SIGNATURE_CHARS_MAX = 1024
_P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
_P256_BYTES_MAX = 72
_ED25519_BYTES = 64
_BASE64 = re.compile(r"[-_+/0-9A-Za-z]*={0,2}")


@dataclass(frozen=True)
class Verifier:
    """A key of the policies, ready to check with."""

    key: TrustedKey
    holds: Callable[[bytes, bytes], bool]
    """(signature, message) → whether it holds."""


def verifiers(rules: TrustRules) -> tuple[Verifier, ...]:
    """Of all keys, revoked ones too: what they signed is refused with the reason. A key that does
    not load, or is not what its scheme says, checks nothing.
    """
    found = ((key, _holds(key)) for _, key in sorted(rules.keys.items()))
    return tuple(Verifier(key, holds) for key, holds in found if holds is not None)


def check_document(
    document: Document, digest: Digest, keys: Sequence[Verifier]
) -> tuple[Proof, ...] | Rejected:
    """A proof for each key whose signature holds over `digest`; first_seen_ms is left at 0."""
    try:
        if document.form == "classic_signature":
            return _check_classic(document, digest, keys)
        return _check_statement(document, digest, keys)
    except ValueError as error:
        return Rejected(document.digest, MALFORMED, _clipped(str(error)))


def pae(payload_type: str, payload: bytes) -> bytes:
    """What a DSSE envelope's signature is over."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


def _check_classic(
    document: Document, digest: Digest, keys: Sequence[Verifier]
) -> tuple[Proof, ...] | Rejected:
    _check_size(len(document.content))
    signature = decoded(document.signature, SIGNATURE_CHARS_MAX)
    signers = [one.key for one in keys if one.holds(signature, document.content)]
    if not signers:
        return Rejected(
            document.digest, NOT_TRUSTED, "a signature that no key of the policies made"
        )
    subject = signed_digest(document.content)
    if subject != digest:
        return _other_subject(document, str(subject))
    return tuple(
        Proof(
            *("signature", "classic", key.id, key.scheme, document.digest, 0),
            key_hash=key.fingerprint,
        )
        for key in signers
    )


def _check_statement(
    document: Document, digest: Digest, keys: Sequence[Verifier]
) -> tuple[Proof, ...] | Rejected:
    envelope = strict_json(document.content)
    if document.form == "bundle":
        envelope = _enveloped(envelope)
    payload, signatures = _opened(envelope)
    message = pae(IN_TOTO, payload)
    signers = [
        one.key for one in keys if any(one.holds(signature, message) for signature in signatures)
    ]
    if not signers:
        return _not_trusted(document, payload, bool(signatures))
    claims = claims_of(payload)
    if not all(
        text.isprintable() for text in (claims.predicate_type, claims.builder, *claims.sources)
    ):
        raise ValueError("it names what can't be shown")
    if not claims.is_of(digest):
        return _other_subject(document, f"{len(claims.subjects)} other subjects")
    return tuple(_proof(document, claims, key) for key in signers)


def _proof(document: Document, claims: Claims, key: TrustedKey) -> Proof:
    bundled = document.form == "bundle"
    # Only a bundle is a signature by what it states; beside `cosign sign` nobody makes another.
    kind = "attestation" if claims.kind == "signature" and not bundled else claims.kind
    return Proof(
        kind,
        "bundle" if bundled else "classic",
        key.id,
        key.scheme,
        document.digest,
        0,
        claims.predicate_type,
        claims.builder,
        claims.sources,
        key.fingerprint,
    )


def _enveloped(bundle: dict[str, Any]) -> dict[str, Any]:
    if bundle.get("mediaType") != BUNDLE_TYPE:
        raise ValueError("it is no bundle v0.3")
    envelope = bundle.get("dsseEnvelope")
    if not isinstance(envelope, dict):
        raise ValueError("the bundle has no DSSE envelope")
    return envelope


def _opened(envelope: dict[str, Any]) -> tuple[bytes, tuple[bytes, ...]]:
    """Payload and signatures of a DSSE envelope around an in-toto statement."""
    if envelope.get("payloadType") != IN_TOTO:
        raise ValueError(f"its payload is no {IN_TOTO}")
    payload, listed = envelope.get("payload"), envelope.get("signatures")
    if not isinstance(payload, str) or not isinstance(listed, list):
        raise ValueError("it is no DSSE envelope")
    if len(listed) > SIGNATURES_MAX:
        raise ValueError(f"it has more than {SIGNATURES_MAX} signatures")
    texts = [entry.get("sig") if isinstance(entry, dict) else None for entry in listed]
    _check_size(len(payload) * 3 // 4)
    return decoded(payload, len(payload)), tuple(
        decoded(text, SIGNATURE_CHARS_MAX) for text in texts
    )


def _check_size(payload_bytes: int) -> None:
    if payload_bytes > PAYLOAD_BYTES_MAX:
        raise ValueError(f"its payload is larger than {PAYLOAD_BYTES_MAX} bytes")


def decoded(text: object, chars_max: int) -> bytes:
    """Base64, standard or for URLs, as DSSE allows; ValueError for anything else."""
    if not isinstance(text, str) or len(text) > chars_max or not _BASE64.fullmatch(text):
        raise ValueError("what should be base64 is not")
    return base64.b64decode(text.translate({ord("-"): "+", ord("_"): "/"}), validate=True)


def _not_trusted(document: Document, payload: bytes, signed: bool) -> Rejected:
    claims = claims_of(payload)
    how = "that no key of the policies signed" if signed else "that nobody signed"
    if claims.kind == "provenance":
        return Rejected(document.digest, UNSIGNED_PROVENANCE, f"provenance {how}")
    what = "a signature" if claims.kind == "signature" else "an attestation"
    return Rejected(document.digest, NOT_TRUSTED, f"{what} {how}")


def _other_subject(document: Document, subject: str) -> Rejected:
    return Rejected(
        document.digest, OTHER_SUBJECT, f"it is about {subject}, not about this artifact"
    )


def _holds(key: TrustedKey) -> Callable[[bytes, bytes], bool] | None:
    try:
        loaded = load_pem_public_key(key.public_key.encode())
    except (ValueError, UnsupportedAlgorithm):
        return None
    if key.scheme == "ed25519" and isinstance(loaded, Ed25519PublicKey):
        return _checking(_is_ed25519, loaded.verify)
    if key.scheme == "ecdsa-p256" and isinstance(loaded, ec.EllipticCurvePublicKey):
        curve, public = ec.ECDSA(hashes.SHA256()), loaded
        if isinstance(public.curve, ec.SECP256R1):
            return _checking(
                _is_p256, lambda signature, message: public.verify(signature, message, curve)
            )
    return None


def _is_ed25519(signature: bytes) -> bool:
    return len(signature) == _ED25519_BYTES


def _is_p256(signature: bytes) -> bool:
    if len(signature) > _P256_BYTES_MAX:
        return False
    try:
        numbers = decode_dss_signature(signature)
    except ValueError:
        return False
    return all(0 < number < _P256_ORDER for number in numbers)


def _checking(
    formed: Callable[[bytes], bool], verify: Callable[[bytes, bytes], None]
) -> Callable[[bytes, bytes], bool]:
    return lambda signature, message: formed(signature) and _verified(verify, signature, message)


def _verified(verify: Callable[[bytes, bytes], None], signature: bytes, message: bytes) -> bool:
    try:
        verify(signature, message)
    except InvalidSignature:
        return False
    return True


def _clipped(text: str) -> str:
    return printable(text[:200])
