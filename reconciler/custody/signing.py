"""Envelopes signed with a key that stays in custody."""

from __future__ import annotations

from typing import Any

from node_agent.wire import VerifierKey
from reconciler.errors import Transient
from reconciler.ports import SecretStore


def verifiers_of(secrets: SecretStore, name: str) -> tuple[VerifierKey, ...]:
    """What verifies an ed25519 key, oldest version first; the key is made if there is none."""
    keys = secrets.verifier_keys(name)
    if not keys:
        secrets.ensure_signing_key(name)
        keys = secrets.verifier_keys(name)
    if not keys:
        raise Transient("no_signing_key", f"there is no signing key {name!r} yet")
    return keys


def newest_verifier(secrets: SecretStore, name: str) -> VerifierKey:
    """What verifies its newest version."""
    return verifiers_of(secrets, name)[-1]


def sealed(
    secrets: SecretStore,
    name: str,
    payload: bytes,
    payload_type: str,
    key: VerifierKey | None = None,
) -> dict[str, Any]:
    """A DSSE envelope by the version of `key`, else by the newest, also while it is rotated."""
    # Loads cryptography, of which a plan needs nothing; the server has it from its start.
    from node_agent.envelope import seal  # noqa: PLC0415

    by = key or newest_verifier(secrets, name)

    def sign(message: bytes) -> bytes:
        return secrets.sign(name, message, by.version).signature

    return seal(payload, payload_type, by.key_id, sign)
