"""Which secrets a node may have, and the sealed answer that brings them.

Rules:
- A node gets the secrets of an instance while the instance's record places it there, and only those
  that the record names, as it names them: with the reference, where there is one. Who may not,
  learns no more than that.
- Where a reference leads is decided here, by the tenant and project that the record is of.
- An instance's own value is made when it is first asked for, and is the same from then on: a random
  word, or the key pair that is its identity. One that it refers to is never made, only read.
- What leaves is sealed to the asker's one-time key (`node_agent.sealing`) and signed like a task.
"""

from __future__ import annotations

import secrets as randomness
from collections import OrderedDict
from typing import Any

from node_agent.sealing import SealRefused, seal_values
from node_agent.wire import MACHINE_IDENTITY, SECRETS_TYPE, SecretsRequest
from reconciler.core.custody.paths import asked_for, referred_path
from reconciler.core.custody.referred import name_of, owner_of
from reconciler.core.lifecycle import LIVE
from reconciler.core.names import InstanceKey, secret_path
from reconciler.core.records import InstanceRecord, node_name
from reconciler.custody.task_key import TaskKey
from reconciler.observe import node_seen
from reconciler.ports import Secret, SecretStore, Store
from reconciler.server.errors import ApiError
from reconciler.server.machine_identity import make_identity

_VALUE_BYTES = 32


class Once:
    """Knows the requests of late, so that a copy of one is told from it.

    The copy's answer would be of no use to who sent it. That each process knows its own only, and
    the oldest go when there are too many, costs no more than that.
    """

    def __init__(self, window_ms: int, known_max: int = 100_000) -> None:
        self._window_ms = window_ms
        self._known_max = known_max
        self._until_ms: OrderedDict[str, int] = OrderedDict()

    def is_first(self, word: str, now_ms: int) -> bool:
        """To be called in the event loop only."""
        known = self._until_ms
        while known and (len(known) >= self._known_max or next(iter(known.values())) <= now_ms):
            known.popitem(last=False)
        if word in known:
            return False
        known[word] = now_ms + self._window_ms
        return True


class InstanceSecrets:
    """Answers signed requests for the secrets of instances."""

    def __init__(self, store: Store, secrets: SecretStore, audience: str) -> None:
        self._store = store
        self._secrets = secrets
        self._audience = audience

    def answer(self, request: SecretsRequest) -> dict[str, Any]:
        """The signed envelope; raises ApiError for what `request.node` may not have."""
        record = self._placed(request)
        unknown = sorted({*request.names} - {*record.secrets})
        if unknown:
            message = f"{request.instance} has no secret {unknown[0][:80]!r}"
            raise ApiError(403, "no_such_secret", message)
        values = {asked: self._value(record, asked) for asked in sorted({*request.names})}
        try:
            sealed = seal_values(request, values)
        except SealRefused as refused:
            raise ApiError(422, refused.code, f"public_key: {refused.message}") from None
        return self._key_for(request.node).seal(sealed.canonical(), SECRETS_TYPE)

    def _placed(self, request: SecretsRequest) -> InstanceRecord:
        for record in self._store.records().values():
            # Not one that is to go: its secrets go with it, and are not to be made once more.
            there = record.node == request.node and record.state in LIVE
            if there and node_name(record) == request.instance:
                return record
        message = "no such instance is placed on this node"
        raise ApiError(403, "not_placed", message)

    def _value(self, record: InstanceRecord, asked: str) -> str:
        name, reference = asked_for(asked)
        if reference:
            return self._referred(record, reference)
        path = secret_path(record.node, InstanceKey(node_name(record)), name)
        if name == MACHINE_IDENTITY:
            fresh = make_identity(record, self._audience)
        else:
            fresh = Secret(randomness.token_urlsafe(_VALUE_BYTES))
        return self._secrets.ensure(path, fresh).reveal()

    def _referred(self, record: InstanceRecord, reference: str) -> str:
        path = referred_path(reference, owner_of(record.key))
        found = self._secrets.read(path) if path is not None else None
        if path is None or found is None:
            hint = f": gpuaas secret set {name_of(path)}" if path is not None else ""
            raise ApiError(404, "secret_missing", f"there is no {reference[:200]}{hint}")
        return found.reveal()

    def _key_for(self, name: str) -> TaskKey:
        """The newest version that this node's agent says it knows, however long ago it did."""
        node = self._store.node(name)
        if node is None:
            return TaskKey.of(self._secrets, {})
        return TaskKey.of(self._secrets, {name: node_seen(node, node.reported_at_ms or 0, 0)})
