"""A public key that Git may be told to sign with, as people keep it in a file. Pure."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from dataclasses import dataclass
from typing import Literal

_SSH_LINE = re.compile(r"((?:ssh|ecdsa|sk)-[-.@0-9a-z]+) (AAAA[+/0-9A-Za-z]+={0,2})(?: ([ -~]*))?")
ARMOR = "-----BEGIN PGP PUBLIC KEY BLOCK-----"


@dataclass(frozen=True)
class PublicKey:
    """`key_id` as in `facts.Signature`; `text` an OpenSSH line without comment, or an armored block
    with one line feed at its end.
    """

    type: Literal["ssh", "openpgp"]
    text: str
    key_id: str


def ssh_public_key(text: str) -> PublicKey | None:
    """An OpenSSH public key line, whatever its comment; None for anything else."""
    found = _SSH_LINE.fullmatch(text.strip())
    if found is None:
        return None
    try:
        blob = base64.b64decode(found[2], validate=True)
    except binascii.Error:
        return None
    digest = base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")
    return PublicKey("ssh", f"{found[1]} {found[2]}", f"SHA256:{digest}")
