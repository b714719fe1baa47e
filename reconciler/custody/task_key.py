"""Signs what agents believe: tasks, secrets, the configuration of a node.

Rule: with the newest version of the task key that every agent knows, and with no other. Which that
is follows from what the agents report (`core.plan.keys`), in every process alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from node_agent.wire import VerifierKey
from reconciler.core.observed import NodeSeen, Seen
from reconciler.core.plan.keys import signing_version
from reconciler.errors import Transient
from reconciler.ports import TASK_KEY, SecretStore


class TaskKey:
    """The version to sign with now. The key itself stays in the secret store."""

    def __init__(self, secrets: SecretStore, key: VerifierKey) -> None:
        self._secrets = secrets
        self.key = key

    @classmethod
    def of(cls, secrets: SecretStore, nodes: Mapping[str, Seen[NodeSeen]]) -> TaskKey:
        """`nodes` are all that joined. Raises what a SecretStore does."""
        keys = secrets.verifier_keys(TASK_KEY)
        if not keys:
            secrets.ensure_signing_key(TASK_KEY)
            keys = secrets.verifier_keys(TASK_KEY)
        if not keys:
            raise Transient("no_signing_key", f"there is no signing key {TASK_KEY!r} yet")
        wanted = signing_version([key.version for key in keys], nodes)
        return cls(secrets, next(key for key in keys if key.version == wanted))

    def seal(self, payload: bytes, payload_type: str) -> dict[str, Any]:
        """The signed envelope. Raises what a SecretStore does."""
        # Loads cryptography, of which a plan needs nothing; the server has it from its start.
        from node_agent.envelope import seal  # noqa: PLC0415

        return seal(payload, payload_type, self.key.key_id, self._sign)

    def _sign(self, message: bytes) -> bytes:
        return self._secrets.sign(TASK_KEY, message, self.key.version).signature
