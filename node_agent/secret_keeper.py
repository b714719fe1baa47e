"""Sees to it that a workload finds its secrets, and that they go with it.

Rules:
- Looked for before each start, not the first alone: what is in memory is gone after a reboot.
- What is there is used, so that the control plane being away stops no restart. What is not there
  is asked for, and until it comes nothing starts; but for want of its identity alone nothing waits.
- A value is in the answer, in a local variable and in its file; in no log, state or message.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Protocol

from pydantic import ValidationError

from node_agent.engines.base import Cancelled, EngineFailure
from node_agent.envelope import EnvelopeRefused, unseal
from node_agent.link import Away, Link
from node_agent.sealing import OneTimeKey, SealRefused
from node_agent.secret_files import SecretFiles
from node_agent.state import StateStore
from node_agent.wire import (
    MACHINE_IDENTITY,
    SECRETS_TYPE,
    FailureReason,
    Secrets,
    SecretsRequest,
    Workload,
)


class WallClock(Protocol):
    def now_ms(self) -> int: ...


class Provider(Protocol):
    """Who puts the secrets of workloads in place. Every method may raise `EngineFailure`."""

    def provide(self, workload: Workload, called_off: threading.Event) -> None:
        """Returns once every secret is there that it can't do without. Raises `Cancelled` when
        called off.
        """
        ...

    def remove(self, instance: str) -> None: ...

    def residue(self, instance: str) -> int:
        """How much is left of the instance's."""
        ...


class SecretKeeper:
    """Keeps them as files, and gets them from the control plane."""

    def __init__(self, files: SecretFiles, link: Link, store: StateStore, clock: WallClock) -> None:
        self._files = files
        self._link = link
        self._store = store
        self._clock = clock
        self._changing = threading.Lock()

    def provide(self, workload: Workload, called_off: threading.Event) -> None:
        names = [secret.name for secret in workload.secrets]
        missing = self._files.missing(workload.instance, names)
        if not missing:
            return
        try:
            values = self._fetch(workload.instance, missing)
        except EngineFailure:
            if {*missing} - {MACHINE_IDENTITY}:
                raise
            values = {}
        with self._changing:
            # Of an instance that was removed while the answer was on its way, nothing may appear.
            if called_off.is_set():
                raise Cancelled
            self._files.put(workload.instance, values)

    def remove(self, instance: str) -> None:
        with self._changing:
            self._files.remove(instance)

    def residue(self, instance: str) -> int:
        return self._files.residue(instance)

    def _fetch(self, instance: str, names: tuple[str, ...]) -> Mapping[str, str]:
        key = OneTimeKey()
        try:
            values = self._ask(key, instance, names)
        except (Away, EnvelopeRefused, SealRefused) as refused:
            raise _unavailable(f"{refused.code}: {refused.message}") from None
        except ValidationError:
            raise _unavailable("answer_malformed: the answer is not one") from None
        if values.keys() != set(names):
            raise _unavailable("answer_malformed: the answer has other secrets than were asked for")
        return values

    def _ask(self, key: OneTimeKey, instance: str, names: tuple[str, ...]) -> dict[str, str]:
        identity = self._store.identity
        if identity is None:
            raise Away("not_joined", "this node has not joined")
        request = SecretsRequest(
            node=identity.node,
            sent_at_ms=self._clock.now_ms(),
            instance=instance,
            names=names,
            public_key=key.public_key,
        )
        payload, signer = unseal(self._link.secrets(request), SECRETS_TYPE, identity.verifiers)
        if signer.version < identity.min_version:
            message = f"signed with key version {signer.version}, too old"
            raise EnvelopeRefused("key_retired", message)
        return key.open(Secrets.model_validate_json(payload), identity.node, instance)


def _unavailable(why: str) -> EngineFailure:
    message = f"the control plane gave no secrets: {why}"
    return EngineFailure(FailureReason.SECRET_UNAVAILABLE, message, transient=True)
