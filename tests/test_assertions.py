"""What a private key file makes, and which files make nothing."""

from __future__ import annotations

import subprocess
from pathlib import Path

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed448
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from reconciler.errors import Refused
from reconciler.use_cases.assertions import assertion
from tests.server.auth_world import CI, Pair, ec_pair, pair, rsa_pair

NOW_MS = 1_700_000_000_999
KEYS = {"EdDSA": pair(), "ES256": ec_pair(), "RS256": rsa_pair()}


@pytest.mark.parametrize("algorithm", KEYS)
@pytest.mark.parametrize("form", ["pem", "openssh", "pem after a blank line"])
def test_a_key_of_each_kind_and_form(algorithm: str, form: str) -> None:
    by = KEYS[algorithm]
    content = {"pem": by.pem, "openssh": by.openssh}.get(form, b"\n" + by.pem)
    made = assertion(content, CI, "ci-1", "gpuaas/prod", NOW_MS)
    assert jwt.get_unverified_header(made) == {"alg": algorithm, "kid": "ci-1", "typ": "JWT"}
    claims = jwt.decode(
        made, by.key.public_key(), [algorithm], audience="gpuaas/prod",
        options={"verify_exp": False},
    )  # fmt: skip
    jti = claims.pop("jti")
    assert claims == {
        "iss": CI, "sub": CI, "aud": "gpuaas/prod", "iat": 1_700_000_000, "exp": 1_700_000_120,
    }  # fmt: skip
    again = assertion(content, CI, "ci-1", "gpuaas/prod", NOW_MS, ttl_s=10)
    other = jwt.decode(again, options={"verify_signature": False})
    assert other["jti"] != jti
    assert other["exp"] == 1_700_000_010


def encrypted_pem() -> bytes:
    key = Ed25519PrivateKey.generate()
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"pass"))


def curve(key: ec.EllipticCurvePrivateKey | ed448.Ed448PrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


ENCRYPTED = (
    "key_encrypted: the private key is encrypted "
    "(give a copy without a passphrase, kept where nobody else reads it)"
)
UNREADABLE = (
    "key_unreadable: this is no private key in PEM or OpenSSH form "
    "(give the private key's file, not the public one's)"
)
UNSUPPORTED = (
    "key_unsupported: tokens are asked for with ed25519, ECDSA P-256, or RSA of 2048 bits and "
    "more (ssh-keygen -t ed25519 makes one that fits)"
)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (encrypted_pem(), ENCRYPTED),
        (b"", UNREADABLE),
        (b"\x00\xff", UNREADABLE),
        (pair().public_pem.encode(), UNREADABLE),
        (str(pair().ssh()["public_key"]).encode(), UNREADABLE),
        (pair().openssh[:100], UNREADABLE),
        (rsa_pair(bits=1024).pem, UNSUPPORTED),
        (curve(ec.generate_private_key(ec.SECP384R1())), UNSUPPORTED),
        (curve(ed448.Ed448PrivateKey.generate()), UNSUPPORTED),
    ],
    ids=[
        "encrypted", "empty", "no text", "public PEM", "public line", "cut off", "short RSA",
        "P-384", "Ed448",
    ],
)
def test_refused(content: bytes, said: str) -> None:
    with pytest.raises(Refused) as caught:
        assertion(content, CI, "ci-1", "gpuaas", NOW_MS)
    assert str(caught.value) == said
    assert caught.value.__cause__ is None


def test_an_encrypted_openssh_key(tmp_path: Path) -> None:
    file = tmp_path / "key"
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "a passphrase", "-f", str(file)]
    subprocess.run(command, check=True, timeout=60)
    with pytest.raises(Refused) as caught:
        assertion(file.read_bytes(), CI, "ci-1", "gpuaas", NOW_MS)
    assert str(caught.value) == ENCRYPTED


def test_a_name_that_is_none() -> None:
    by: Pair = KEYS["EdDSA"]
    with pytest.raises(Refused) as caught:
        assertion(by.pem, "ada", "ada-1", "gpuaas", NOW_MS)
    assert str(caught.value) == (
        "account_malformed: not an account: 'ada' "
        "(tenant/project/name, identity:NAME or instance:tenant/project/name)"
    )
