"""Sees to it that a workload finds its secrets, and that they go with it.

Rules:
- Looked for before each start, not the first alone: what is in memory is gone after a reboot.
- An instance's own are asked for when they are not there; what somebody else may write anew is
  asked for before each start. Where nothing comes, what is there is used: the control plane being
  away stops no restart. What is not there is waited for; but its identity alone nothing waits for.
- A value is in the answer, in a local variable and in its file; in no log, state or message.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

import structlog
from pydantic import ValidationError

from node_agent.clock import WallClock
from node_agent.engines.base import Cancelled, EngineFailure
from node_agent.engines.secret_env import VALUE_BYTES_MAX
from node_agent.envelope import EnvelopeRefused, unseal
from node_agent.link import Away, Link
from node_agent.sealing import OneTimeKey, SealRefused
from node_agent.secret_files import SecretFiles
from node_agent.state import StateStore
from node_agent.wire import (
    MACHINE_IDENTITY,
    SECRETS_TYPE,
    FailureReason,
    SecretFile,
    Secrets,
    SecretsRequest,
    Workload,
)


class Provider(Protocol):
    """Who puts the secrets of workloads in place. Every method may raise `EngineFailure`."""

    def provide(
        self, workload: Workload, called_off: threading.Event, *, starts: bool = False
    ) -> None:
        """Returns once every secret is there that it can't do without. Raises `Cancelled` when
        called off. `starts`: it is about to, so that what can change is looked at anew.
        """
        ...

    def keep_only(self, instance: str, spec_hashes: Collection[str]) -> None:
        """Forgets what other workloads of the instance had for themselves."""
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
        self._log = structlog.get_logger()

    def provide(
        self, workload: Workload, called_off: threading.Event, *, starts: bool = False
    ) -> None:
        missing = self._files.missing(workload)
        wanted = [
            secret
            for secret in _read(workload)
            if secret.name in missing or (starts and secret.source)
        ]
        if not wanted and workload.topology is None:
            return
        try:
            values = self._fetch(workload.instance, wanted) if wanted else {}
        except EngineFailure as failure:
            if {*missing} - {MACHINE_IDENTITY}:
                raise
            if any(secret.source for secret in wanted):
                self._log.warning(
                    "secrets as they were", instance=workload.instance, message=failure.message
                )
            values = {}
        with self._changing:
            # Of an instance that was removed while the answer was on its way, nothing may appear.
            if called_off.is_set():
                raise Cancelled
            self._files.put(workload, values)

    def keep_only(self, instance: str, spec_hashes: Collection[str]) -> None:
        with self._changing:
            self._files.keep_only(instance, spec_hashes)

    def remove(self, instance: str) -> None:
        with self._changing:
            self._files.remove(instance)

    def residue(self, instance: str) -> int:
        return self._files.residue(instance)

    def _fetch(self, instance: str, wanted: Sequence[SecretFile]) -> Mapping[str, str]:
        """Values by the names of their files."""
        key = OneTimeKey()
        asked = tuple(sorted({secret.asked for secret in wanted}))
        try:
            values = self._ask(key, instance, asked)
        except (Away, EnvelopeRefused, SealRefused) as refused:
            raise _unavailable(f"{refused.code}: {refused.message}") from None
        except ValidationError:
            raise _unavailable("answer_malformed: the answer is not one") from None
        if values.keys() != set(asked):
            raise _unavailable("answer_malformed: the answer has other secrets than were asked for")
        for secret in wanted:
            _check_variable(secret, values[secret.asked])
        return {secret.name: values[secret.asked] for secret in wanted}

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


def _read(workload: Workload) -> Sequence[SecretFile]:
    """Those that it looks at: of a topology, what no service names is not asked for."""
    if workload.topology is None:
        return workload.secrets
    named = {name for service in workload.topology.services for name in service.secrets}
    return [secret for secret in workload.secrets if secret.name in named]


def _check_variable(secret: SecretFile, value: str) -> None:
    """The kernel hands no program a variable that holds a NUL or is too long."""
    if not secret.env:
        return
    length_bytes = len(value.encode(errors="surrogatepass"))
    if "\0" not in value and length_bytes <= VALUE_BYTES_MAX:
        return
    message = (
        f"the secret {secret.name} does not fit into the variable {secret.env}: it holds a NUL or "
        f"is over {VALUE_BYTES_MAX} bytes; leave env out and read its file"
    )
    raise EngineFailure(FailureReason.SECRET_UNAVAILABLE, message, transient=True)


def _unavailable(why: str) -> EngineFailure:
    message = f"the control plane gave no secrets: {why}"
    return EngineFailure(FailureReason.SECRET_UNAVAILABLE, message, transient=True)
