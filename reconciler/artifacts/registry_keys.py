"""What a registry has to be told to believe our tokens: keys, their ids, its configuration. Pure
but for the signature on a certificate, which custody makes.

Rule: only public halves are in here. A certificate is a form that a key comes in, since
distribution asks for it: nothing is issued under it, and its names and dates decide nothing there.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any, Literal

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_public_key,
)
from cryptography.x509.oid import NameOID

from reconciler.ports import PublicKey
from reconciler.settings import Settings

KeyIdForm = Literal["libtrust", "thumbprint"]
TOKEN_PATH = "/v1/registry/token"  # noqa: S105 - where tokens are asked for
BUNDLE_PLACE = "/etc/docker/registry/gpuaas-tokens.pem"
JWKS_PLACE = "/etc/distribution/gpuaas-tokens.json"
_LIBTRUST_BYTES = 30
_COORDINATE_BYTES = 32
_FROM = datetime(2020, 1, 1, tzinfo=UTC)
# RFC 5280 4.1.2.5: the date for what has no end. When a key ends is said by taking it out.
_UNTIL = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
_ECDSA_SHA256 = bytes.fromhex("300a06082a8648ce3d040302")
"""AlgorithmIdentifier in DER."""


def key_id_of(pem: str, form: KeyIdForm) -> str:
    """libtrust: 30 bytes of the hash of the SPKI, as distribution 2 names keys. thumbprint:
    RFC 7638, as distribution 3 does.
    """
    public = _public(pem)
    if form == "libtrust":
        spki = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        text = base64.b32encode(hashlib.sha256(spki).digest()[:_LIBTRUST_BYTES]).decode()
        return ":".join(text[at : at + 4] for at in range(0, len(text), 4))
    # Its members in the order of their names, and no space: that is what is hashed.
    canonical = json.dumps(_coordinates(public), separators=(",", ":"), sort_keys=True)
    return _base64url(hashlib.sha256(canonical.encode()).digest())


def jwks(keys: Iterable[PublicKey]) -> dict[str, Any]:
    """As `auth.token.jwks` of distribution 3 takes it."""
    return {
        "keys": [
            {
                **_coordinates(_public(key.pem)),
                "use": "sig",
                "alg": "ES256",
                "kid": key_id_of(key.pem, "thumbprint"),
            }
            for key in keys
        ]
    }


def certificate(key: PublicKey, sign: Callable[[bytes], bytes]) -> str:
    """A self-signed certificate of the key, PEM; `sign` makes DER ECDSA signatures with it.

    Its signature differs each time, and nothing else does.
    """
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{key.name} v{key.version}")])
    public = _public(key.pem)
    usage = x509.KeyUsage(
        digital_signature=True, content_commitment=False, key_encipherment=False,
        data_encipherment=False, key_agreement=False, key_cert_sign=False, crl_sign=False,
        encipher_only=False, decipher_only=False,
    )  # fmt: skip
    spki = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(public)
        .serial_number(int.from_bytes(hashlib.sha256(spki).digest()[:16], "big") >> 1 or 1)
        .not_valid_before(_FROM)
        .not_valid_after(_UNTIL)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(usage, critical=True)
    )
    # The library only signs with a key that it holds. What it would sign is taken from it, and
    # signed where the key is.
    drawn = builder.sign(ec.generate_private_key(ec.SECP256R1()), SHA256())
    content = drawn.tbs_certificate_bytes
    signature = _der(0x03, b"\0" + sign(content))
    whole = _der(0x30, content + _ECDSA_SHA256 + signature)
    return x509.load_der_x509_certificate(whole).public_bytes(Encoding.PEM).decode()


def configuration(settings: Settings, form: KeyIdForm) -> str:
    """The part of the registry's configuration that makes it ask for our tokens, YAML."""
    keys = f"rootcertbundle: {BUNDLE_PLACE}" if form == "libtrust" else f"jwks: {JWKS_PLACE}"
    return "".join(
        f"{line}\n"
        for line in (
            "auth:",
            "  token:",
            f"    realm: {realm(settings)}",
            f"    service: {json.dumps(settings.registry_token_service)}",
            f"    issuer: {json.dumps(settings.registry_token_issuer)}",
            f"    {keys}",
        )
    )


def realm(settings: Settings) -> str:
    """The URL at which clients of a registry ask for tokens."""
    return (settings.public_address or f"http://{settings.listen}").rstrip("/") + TOKEN_PATH


def _public(pem: str) -> ec.EllipticCurvePublicKey:
    found = load_pem_public_key(pem.encode())
    assert isinstance(found, ec.EllipticCurvePublicKey)
    return found


def _coordinates(public: ec.EllipticCurvePublicKey) -> dict[str, str]:
    numbers = public.public_numbers()
    x, y = (_base64url(n.to_bytes(_COORDINATE_BYTES, "big")) for n in (numbers.x, numbers.y))
    return {"crv": "P-256", "kty": "EC", "x": x, "y": y}


def _der(tag: int, content: bytes) -> bytes:
    length = len(content)
    if length < 0x80:
        return bytes((tag, length)) + content
    size = length.to_bytes((length.bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(size))) + size + content


def _base64url(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
