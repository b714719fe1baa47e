"""The key pairs that service accounts prove themselves with, in files.

Rules: a private key is written for its owner alone, never over another file, and never shown. None
of the library's types leaves.
"""

from __future__ import annotations

import os
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
    load_ssh_private_key,
    load_ssh_public_key,
)

from reconciler.core.kinds.keys import KeyScheme
from reconciler.errors import Refused

_FILE_BYTES_MAX = 64 * 1024
Public = tuple[KeyScheme, str]
"""The scheme, and the key as PEM."""


def read_account_key(path: Path) -> Public:
    """A public key file: PEM, or an OpenSSH line; Refused for anything else."""
    try:
        with path.open("rb") as file:
            content = file.read(_FILE_BYTES_MAX)
    except OSError as error:
        raise Refused("key_unreadable", f"{error.strerror}", where=str(path)) from None
    if b"PRIVATE KEY" in content[:100]:
        hint = f"openssl pkey -in {path} -pubout writes the public half"
        raise Refused("key_private", "this is a private key", where=str(path), hint=hint)
    load = load_pem_public_key if content.startswith(b"-----BEGIN") else load_ssh_public_key
    try:
        return _public(load(content))
    except (ValueError, UnsupportedAlgorithm):
        raise _unreadable(path) from None


def generate_account_key(path: Path) -> Public:
    """A new ed25519 pair, its private half in a new file; Refused when there is a file."""
    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    try:
        descriptor = os.open(path, flags, 0o600)
    except OSError as error:
        hint = "name a new file, outside of the state repo"
        raise Refused("not_written", f"{error.strerror}", where=str(path), hint=hint) from None
    with os.fdopen(descriptor, "wb") as file:
        file.write(pem)
    return _public(key.public_key())


def public_forms(private: bytes) -> frozenset[str]:
    """How a manifest may write the public half of a private key, white space aside: PEM, hex, or
    the first two words of an OpenSSH line. Empty for what is no private key, or encrypted.
    """
    load = load_ssh_private_key if b"OPENSSH PRIVATE KEY" in private else load_pem_private_key
    try:
        public = load(private.lstrip(), None).public_key()
        pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        found = {"".join(pem.decode().split())}
        if isinstance(public, Ed25519PublicKey):
            found.add(public.public_bytes_raw().hex())
        line = public.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
        found.add("".join(line.decode().split()[:2]))
    except (ValueError, TypeError, AttributeError, UnsupportedAlgorithm):
        return frozenset()
    return frozenset(found)


def _public(key: object) -> Public:
    if isinstance(key, Ed25519PublicKey):
        scheme: KeyScheme = "ed25519"
    elif isinstance(key, EllipticCurvePublicKey) and isinstance(key.curve, SECP256R1):
        scheme = "ecdsa-p256"
    else:
        raise ValueError("another kind of key")
    return scheme, key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def _unreadable(path: Path) -> Refused:
    hint = "an ed25519 or ECDSA P-256 public key, as PEM or as an OpenSSH .pub file"
    return Refused("key_unreadable", "no such public key is in there", where=str(path), hint=hint)
