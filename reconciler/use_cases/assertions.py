"""Makes a signed assertion (RFC 7523) from a private key: what a token is asked for with.

Rules: the key is used and forgotten; it is in no error. Each assertion is good once.
"""

from __future__ import annotations

import uuid

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import (
    load_pem_private_key,
    load_ssh_private_key,
)

from reconciler.core.authority.accounts import Algorithm, Subject
from reconciler.errors import Refused

PrivateKey = Ed25519PrivateKey | EllipticCurvePrivateKey | RSAPrivateKey
_OPENSSH = b"-----BEGIN OPENSSH PRIVATE KEY-----"
_RSA_BITS_MIN = 2048


def assertion(
    private_key_pem: bytes,
    subject: str,
    key_id: str,
    audience: str,
    now_ms: int,
    ttl_s: int = 120,
) -> str:
    """A compact JWT by which `subject` asks for a token. `key_id` is the key's in its manifest.

    Takes unencrypted PEM and OpenSSH private keys: ed25519, ECDSA P-256, RSA for people. Refused
    for any other key, and for a subject that is none.
    """
    if Subject.parse(subject) is None:
        raise Refused(
            "account_malformed",
            f"not an account: {subject[:200]!r}",
            hint="tenant/project/name, identity:NAME or instance:tenant/project/name",
        )
    key = _loaded(private_key_pem)
    issued_s = now_ms // 1000
    claims = {
        "iss": subject,
        "sub": subject,
        "aud": audience,
        "iat": issued_s,
        "exp": issued_s + ttl_s,
        "jti": uuid.uuid4().hex,
    }
    return jwt.encode(claims, key, algorithm=_algorithm(key), headers={"kid": key_id})


def _loaded(pem: bytes) -> PrivateKey:
    """Refused for a key that nobody could verify with."""
    found = _parsed(pem)
    if isinstance(found, EllipticCurvePrivateKey) and isinstance(found.curve, SECP256R1):
        return found
    if isinstance(found, RSAPrivateKey) and found.key_size >= _RSA_BITS_MIN:
        return found
    if isinstance(found, Ed25519PrivateKey):
        return found
    raise Refused(
        "key_unsupported",
        "tokens are asked for with ed25519, ECDSA P-256, or RSA of 2048 bits and more",
        hint="ssh-keygen -t ed25519 makes one that fits",
    )


def _parsed(pem: bytes) -> object:
    load = load_ssh_private_key if _OPENSSH in pem else load_pem_private_key
    try:
        return load(pem.lstrip(), None)
    except TypeError:
        raise Refused(
            "key_encrypted",
            "the private key is encrypted",
            hint="give a copy without a passphrase, kept where nobody else reads it",
        ) from None
    except (ValueError, UnsupportedAlgorithm):
        raise Refused(
            "key_unreadable",
            "this is no private key in PEM or OpenSSH form",
            hint="give the private key's file, not the public one's",
        ) from None


def _algorithm(key: PrivateKey) -> Algorithm:
    if isinstance(key, Ed25519PrivateKey):
        return "EdDSA"
    return "ES256" if isinstance(key, EllipticCurvePrivateKey) else "RS256"
