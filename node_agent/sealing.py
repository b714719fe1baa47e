"""Secret values sealed to one asker, for both sides of the wire.

Rules:
- Values are encrypted to an X25519 key that the asker made for this one request and forgets with
  it. What is written down on the way stays closed, also to who gets hold of every other key later.
- What is sealed is bound to its node, its instance and both public keys: nowhere else it opens.
- This keeps values from who listens. Who sent them is for the envelope around them to say.
- One error leaves: SealRefused, which quotes no value.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from node_agent.wire import Secrets, SecretsRequest

_PURPOSE = "gpuaas secrets v1"
_NONCE = bytes(12)
"""Each key seals one message and no other, so there is nothing for a nonce to tell apart."""


class SealRefused(Exception):
    """`code`: bad_key, not_for_us or seal_broken."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


class OneTimeKey:
    """Made for one request; whoever made it can open the answer, once and nobody else."""

    def __init__(self) -> None:
        self._private = X25519PrivateKey.generate()
        self.public_key = self._private.public_key().public_bytes_raw().hex()

    def open(self, answer: Secrets, node: str, instance: str) -> dict[str, str]:
        """Secret values by name; raises SealRefused unless it is the answer to this request."""
        if (answer.node, answer.instance, answer.asked_with) != (node, instance, self.public_key):
            raise SealRefused("not_for_us", "the answer is one to another question")
        context = _context(node, instance, self.public_key, answer.public_key)
        cipher = _cipher(self._private, answer.public_key, context)
        try:
            sealed = base64.b64decode(answer.sealed, validate=True)
            values = json.loads(cipher.decrypt(_NONCE, sealed, context))
        except (InvalidTag, binascii.Error, ValueError):
            raise SealRefused("seal_broken", "the answer was altered on its way") from None
        return {str(name): str(value) for name, value in values.items()}

    def __repr__(self) -> str:
        return f"OneTimeKey({self.public_key[:8]}…, ***)"


def seal_values(request: SecretsRequest, values: Mapping[str, str]) -> Secrets:
    """The answer to `request`, which its asker alone can open; SealRefused when its key is none."""
    ours = X25519PrivateKey.generate()
    public_key = ours.public_key().public_bytes_raw().hex()
    context = _context(request.node, request.instance, request.public_key, public_key)
    cipher = _cipher(ours, request.public_key, context)
    sealed = cipher.encrypt(_NONCE, json.dumps(dict(values)).encode(), context)
    return Secrets(
        node=request.node,
        instance=request.instance,
        asked_with=request.public_key,
        public_key=public_key,
        sealed=base64.b64encode(sealed).decode(),
    )


def _context(node: str, instance: str, asked_with: str, public_key: str) -> bytes:
    return json.dumps([_PURPOSE, node, instance, asked_with, public_key]).encode()


def _cipher(ours: X25519PrivateKey, theirs: str, context: bytes) -> ChaCha20Poly1305:
    try:
        shared = ours.exchange(X25519PublicKey.from_public_bytes(bytes.fromhex(theirs)))
    except ValueError:
        # Points of low order give the same secret whatever our key is.
        raise SealRefused("bad_key", "not a usable X25519 key") from None
    return ChaCha20Poly1305(HKDF(SHA256(), 32, salt=None, info=context).derive(shared))
