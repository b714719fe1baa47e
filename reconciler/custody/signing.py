"""Envelopes signed with a key that stays in custody."""

from __future__ import annotations

from typing import Any

from node_agent.envelope import seal
from node_agent.wire import VerifierKey
from reconciler.ports import SecretStore


def newest_verifier(secrets: SecretStore, name: str) -> VerifierKey:
    """What verifies the newest version of an ed25519 key, which is made if there is none."""
    keys = secrets.verifier_keys(name)
    if not keys:
        secrets.ensure_signing_key(name)
        keys = secrets.verifier_keys(name)
    return keys[-1]


def sealed(secrets: SecretStore, name: str, payload: bytes, payload_type: str) -> dict[str, Any]:
    """A DSSE envelope by the newest version, also while the key is rotated."""
    key = newest_verifier(secrets, name)

    def sign(message: bytes) -> bytes:
        return secrets.sign(name, message, key.version).signature

    return seal(payload, payload_type, key.key_id, sign)
