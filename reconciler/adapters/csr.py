"""Which certificate signing requests are taken, and for whom, the same for every CA."""

from __future__ import annotations

import re

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from node_agent.membership import NODE_DOMAIN
from reconciler.errors import Refused

CSR_LENGTH_MAX = 8192
RSA_BITS_MIN = 2048
RSA_BITS_MAX = 4096

_LABEL = re.compile(r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?")
_CURVES = (ec.SECP256R1, ec.SECP384R1)
_HASHES = (hashes.SHA256, hashes.SHA384, hashes.SHA512)

CsrKey = ed25519.Ed25519PublicKey | ec.EllipticCurvePublicKey | rsa.RSAPublicKey


def agent_name(node: str) -> str:
    """The DNS name of a node's agent. Refused("csr_refused") for what is no node's name."""
    if not _LABEL.fullmatch(node):
        raise _refused(f"it is for {node[:80]!r}, which is no node's name")
    return f"{node}.{NODE_DOMAIN}"


def check_csr(pem: str) -> CsrKey:
    """The key it asks for. Refused("csr_refused") for what is none, whose signature does not hold,
    or whose key is of a kind or size that we certify for nobody. What else it asks for counts for
    nothing.
    """
    if len(pem) > CSR_LENGTH_MAX:
        raise _refused(f"it is longer than {CSR_LENGTH_MAX} characters")
    try:
        csr = x509.load_pem_x509_csr(pem.encode())
        key, is_signed = csr.public_key(), csr.is_signature_valid
        hashed_with = csr.signature_hash_algorithm
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise _refused("it is no certificate signing request in PEM") from None
    if not _may_be_certified(key):
        raise _refused(
            f"its key is neither ed25519, ECDSA P-256 or P-384, nor RSA of {RSA_BITS_MIN} to "
            f"{RSA_BITS_MAX} bits"
        )
    assert isinstance(key, CsrKey)
    if hashed_with is not None and not isinstance(hashed_with, _HASHES):
        raise _refused(f"it is signed over {hashed_with.name}")
    if not is_signed:
        raise _refused("its signature does not hold: who sent it may not have the key")
    return key


def _may_be_certified(key: object) -> bool:
    if isinstance(key, rsa.RSAPublicKey):
        return RSA_BITS_MIN <= key.key_size <= RSA_BITS_MAX
    if isinstance(key, ec.EllipticCurvePublicKey):
        return isinstance(key.curve, _CURVES)
    return isinstance(key, ed25519.Ed25519PublicKey)


def _refused(message: str) -> Refused:
    return Refused("csr_refused", message, where="certificate signing request")
