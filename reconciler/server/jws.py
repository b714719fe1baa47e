"""JSON Web Signatures: what a token says, and whether a key signed it. Owns PyJWT.

Rules: what is read before the signature holds decides which key to try, and nothing else. The
algorithm is the key's own, never the token's word. Times and names in it are for the caller.
"""

from __future__ import annotations

import base64
import binascii
import json
from functools import lru_cache
from typing import Any

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    EllipticCurvePublicKey,
    derive_private_key,
)
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey, RSAPublicNumbers
from cryptography.hazmat.primitives.serialization import load_pem_public_key, load_ssh_public_key
from jwt.types import Options

from reconciler.core.authority.accounts import AccountKey, Algorithm

PublicKey = Ed25519PublicKey | EllipticCurvePublicKey | RSAPublicKey
RSA_BITS_MIN, RSA_BITS_MAX = 2048, 8192
_ONLY_SIGNATURE: Options = {
    "verify_aud": False,
    "verify_exp": False,
    "verify_iat": False,
    "verify_iss": False,
    "verify_jti": False,
    "verify_nbf": False,
    "verify_sub": False,
}


def parts_of(token: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Header and payload of a compact JWS, unverified; ValueError for what is none."""
    pieces = token.split(".")
    if len(pieces) == 3 and all(pieces):
        header, payload = (_json_of(piece) for piece in pieces[:2])
        if isinstance(header, dict) and isinstance(payload, dict):
            return header, payload
    raise ValueError("no compact JWS")


def _json_of(piece: str) -> object:
    """ValueError for anything but base64url of JSON in which no name stands twice."""
    try:
        raw = base64.b64decode(piece + "=" * (-len(piece) % 4), altchars=b"-_", validate=True)
        return json.loads(raw, object_pairs_hook=_once)
    except (binascii.Error, RecursionError):
        raise ValueError("not readable") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice")
    return found


def verified_payload(token: str, key: PublicKey, algorithm: Algorithm) -> dict[str, Any] | None:
    """None when the signature does not hold. No claim is looked at."""
    try:
        return jwt.decode(token, key, algorithms=[algorithm], options=_ONLY_SIGNATURE)
    except jwt.PyJWTError:
        return None


@lru_cache(maxsize=4096)
def loaded(key: AccountKey) -> PublicKey | None:
    """None for a key that can't be used."""
    text = key.public_key.strip()
    found: object
    try:
        if "-----BEGIN" in text:
            found = load_pem_public_key(text.encode())
        elif " " in text:
            found = load_ssh_public_key(" ".join(text.split()[:2]).encode())
        else:
            found = Ed25519PublicKey.from_public_bytes(bytes.fromhex(text))
    except (ValueError, UnsupportedAlgorithm):
        return None
    return _fitting(found, key.algorithm)


def _fitting(key: object, algorithm: Algorithm) -> PublicKey | None:
    if isinstance(key, Ed25519PublicKey):
        return key if algorithm == "EdDSA" else None
    if isinstance(key, EllipticCurvePublicKey):
        return key if algorithm == "ES256" and isinstance(key.curve, SECP256R1) else None
    if isinstance(key, RSAPublicKey) and RSA_BITS_MIN <= key.key_size <= RSA_BITS_MAX:
        return key if algorithm == "RS256" else None
    return None


@lru_cache
def nobodys_key(algorithm: Algorithm) -> PublicKey:
    """One to verify with where there is none, so that it takes as long: its word counts nothing."""
    if algorithm == "EdDSA":
        return Ed25519PublicKey.from_public_bytes(bytes.fromhex("58" + "66" * 31))
    if algorithm == "ES256":
        return derive_private_key(1, SECP256R1()).public_key()
    return RSAPublicNumbers(e=65_537, n=2**RSA_BITS_MIN - 1).public_key()
