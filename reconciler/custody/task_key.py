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
from reconciler.custody.signing import sealed, verifiers_of
from reconciler.ports import TASK_KEY, SecretStore


class TaskKey:
    """The version to sign with now. The key itself stays in the secret store."""

    def __init__(self, secrets: SecretStore, key: VerifierKey) -> None:
        self._secrets = secrets
        self.key = key

    @classmethod
    def of(cls, secrets: SecretStore, nodes: Mapping[str, Seen[NodeSeen]]) -> TaskKey:
        """`nodes` are all that joined. Raises what a SecretStore does."""
        keys = verifiers_of(secrets, TASK_KEY)
        wanted = signing_version([key.version for key in keys], nodes)
        return cls(secrets, next(key for key in keys if key.version == wanted))

    def seal(self, payload: bytes, payload_type: str) -> dict[str, Any]:
        """The signed envelope. Raises what a SecretStore does."""
        return sealed(self._secrets, TASK_KEY, payload, payload_type, self.key)
