"""Public keys as manifests hold them. Nothing here is secret, and nothing here checks a signature.

Rules: a key is named by its id; two keys never share one. A revoked key stays in the repo, so that
what it signed is refused with the reason, and not as unknown.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, StringConstraints, model_validator

from reconciler.core.kinds.base import ExternalId, Label, Part, Timestamp

KeyScheme = Literal["ecdsa-p256", "ed25519"]
KeyText = Annotated[str, StringConstraints(max_length=16_384)]

_PEM = r"-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n?"
_ED25519_PEM = _PEM.format(r"MCowBQYDK2VwAyEA[+/0-9A-Za-z]{43}=")
_P256_START = "MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE"
_P256_PEM = _PEM.format(rf"{_P256_START}[+/0-9A-Za-z]{{28}}\n[+/0-9A-Za-z]{{58}}==")
_PUBLIC_KEYS = {
    "ed25519": re.compile(rf"[0-9a-f]{{64}}|{_ED25519_PEM}"),
    "ecdsa-p256": re.compile(_P256_PEM),
}


class Revocation(Part):
    """Nothing that the key signed counts any more, whenever it was signed."""

    at: Timestamp
    reason: Label


class Key(Part):
    """What every key has. Without `valid_from` and `valid_until` it is valid until revoked."""

    id: ExternalId
    valid_from: Timestamp | None = None
    valid_until: Timestamp | None = None
    revoked: Revocation | None = None


class VerifierKey(Key):
    """`public_key` is PEM (SubjectPublicKeyInfo); for ed25519 also the 32 bytes as hex."""

    scheme: KeyScheme
    public_key: KeyText

    @model_validator(mode="after")
    def _key_fits_scheme(self) -> VerifierKey:
        if not _PUBLIC_KEYS[self.scheme].fullmatch(self.public_key):
            raise ValueError(f"public_key is no {self.scheme} key")
        return self


class SignerKey(Key):
    """A key that Git signs commits with: an OpenSSH public key line, or an armored OpenPGP key.

    `fingerprint` picks one key of an OpenPGP block; an SSH key has its own.
    """

    type: Literal["ssh", "openpgp"]
    public_key: KeyText = Field(min_length=1)
    fingerprint: (
        Annotated[str, StringConstraints(pattern="^(?:[0-9A-F]{40}|[0-9A-F]{64})$")] | None
    ) = None

    @model_validator(mode="after")
    def _key_fits_type(self) -> SignerKey:
        if not _SIGNER_KEYS[self.type].fullmatch(self.public_key):
            raise ValueError(f"public_key is no {self.type} key")
        if (self.fingerprint is None) != (self.type == "ssh"):
            raise ValueError("an OpenPGP key has a fingerprint, an SSH key has none")
        return self


_SSH_TYPES = (
    r"ssh-ed25519|ssh-rsa|ecdsa-sha2-nistp(?:256|384|521)"
    r"|sk-ssh-ed25519@openssh\.com|sk-ecdsa-sha2-nistp256@openssh\.com"
)
_ARMOR = r"-----{} PGP PUBLIC KEY BLOCK-----"
_SIGNER_KEYS = {
    "ssh": re.compile(rf"(?:{_SSH_TYPES}) AAAA[+/0-9A-Za-z]+={{0,2}}(?: [ -~]*)?\n?"),
    "openpgp": re.compile(
        rf"{_ARMOR.format('BEGIN')}\n(?:[!-~][ -~]*\n)*\n(?:[+/=0-9A-Za-z]+\n)+"
        rf"{_ARMOR.format('END')}\n?"
    ),
}
