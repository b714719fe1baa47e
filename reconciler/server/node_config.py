"""What holds for a node as a whole: which keys and CA it believes, who may open tunnels there.

Rules:
- It follows from custody, the store and the reports alone, so that every server says the same.
- A poll never waits for custody: while that is away an agent keeps what it has. Who can't be asked
  is never taken for somebody who has nothing to say.
- It is signed with a version that the agent knows already (`task_key`), once for each form.
- A CA that is away holds nothing else up: agents keep the one they believe. One that took the place
  of another is believed beside it, for as long as this process may show a certificate of that.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import structlog

from node_agent.membership import NODE_CONFIG_TYPE, NodeConfig, SshKey
from node_agent.wire import VerifierKey
from reconciler.core.observed import NodeSeen, Seen
from reconciler.custody.task_key import TaskKey
from reconciler.errors import GpuaasError, Refused
from reconciler.observe import ReportMemo, see_nodes
from reconciler.ports import TASK_KEY, Ports
from reconciler.settings import Settings

FRESH_MS = 1_000
"""How long a look at keys and tunnels counts, for all nodes together."""
RETRY_MS = 2_000
"""How long custody is left alone after it failed to answer."""
ROOT_FRESH_MS = 60_000
"""How long the CA certificate is not asked for again, whether or not there was an answer."""
ROOTS_MAX = 4
SIGNING_MAX = 4
SIGNING_WAIT_S = 0.5

SshKeys = Mapping[str, tuple[SshKey, ...]]
"""By node, who may open tunnels there."""

log = structlog.get_logger(__name__)


def no_keys() -> SshKeys:
    return {}


@dataclass(frozen=True)
class _Look:
    key: TaskKey
    verifiers: tuple[VerifierKey, ...]
    ssh_keys: SshKeys
    ca: str
    at_ms: int


@dataclass(frozen=True)
class _Sealed:
    digest: str
    key_id: str
    issued_at_ms: int
    envelope: Mapping[str, Any]


class NodeConfigs:
    """For all nodes, and any number of threads. `ssh_keys` may raise GpuaasError."""

    def __init__(
        self, ports: Ports, settings: Settings, ssh_keys: Callable[[], SshKeys] = no_keys
    ) -> None:
        self._ports = ports
        self._settings = settings
        self._ssh_keys = ssh_keys
        self._reports = ReportMemo()
        self._looking = threading.Lock()
        self._signing = threading.BoundedSemaphore(SIGNING_MAX)
        self._look: _Look | None = None
        self._retry_at_ms = 0
        self._roots: tuple[str, ...] = ()
        self._roots_fresh_until_ms = 0
        self._sealed: dict[str, _Sealed] = {}

    def __call__(self, node: str, digest: str) -> Mapping[str, Any] | None:
        """The signed NodeConfig of a node that has the one with this digest; None when that is the
        right one, or when nobody can say or sign another now. Never raises for custody's sake.
        """
        look = self._looked()
        if look is None:
            return None
        config = NodeConfig(
            node=node,
            issued_at_ms=self._next_issued_at_ms(node),
            verifiers=look.verifiers,
            min_version=look.verifiers[0].version,
            ssh_keys=look.ssh_keys.get(node, ()),
            ca=look.ca,
        )
        wanted = config.digest
        if wanted == digest:
            return None
        known = self._sealed.get(node)
        if known is not None and (known.digest, known.key_id) == (wanted, look.key.key.key_id):
            return known.envelope
        envelope = self._seal_in_time(config, look.key)
        if envelope is not None:
            self._sealed[node] = _Sealed(wanted, look.key.key.key_id, config.issued_at_ms, envelope)
        return envelope

    def seal(self, payload: bytes, payload_type: str) -> dict[str, Any]:
        """Signed with what all agents know. Raises what a SecretStore does."""
        look = self._looked() or self._look_anew()
        try:
            return look.key.seal(payload, payload_type)
        except Refused as refused:
            if refused.code != "key_version_unknown":
                raise
            # Another process retired it since.
            return self._look_anew().key.seal(payload, payload_type)

    def _looked(self) -> _Look | None:
        """What holds now. One thread looks; the others go on with what was seen before."""
        look, now_ms = self._look, self._ports.clock.now_ms()
        if look is not None and 0 <= now_ms - look.at_ms < FRESH_MS:
            return look
        if now_ms < self._retry_at_ms or not self._looking.acquire(blocking=False):
            return look
        try:
            return self._look_anew()
        except GpuaasError as error:
            self._failed(error, "node_config_unknown")
            return look
        finally:
            self._looking.release()

    def _look_anew(self) -> _Look:
        now_ms = self._ports.clock.now_ms()
        verifiers = self._ports.secrets.verifier_keys(TASK_KEY)
        key = TaskKey.of(self._ports.secrets, self._nodes(verifiers, now_ms))
        if not verifiers:
            verifiers = (key.key,)
        self._look = _Look(key, verifiers, self._ssh_keys(), self._ca(now_ms), now_ms)
        return self._look

    def _ca(self, now_ms: int) -> str:
        """The CA certificates to believe, the newest first; empty while there was no answer yet."""
        if now_ms >= self._roots_fresh_until_ms:
            self._roots_fresh_until_ms = now_ms + ROOT_FRESH_MS
            try:
                root = self._ports.ca.root()
            except GpuaasError as error:
                log.warning("node_config_without_ca", code=error.code, message=error.message)
            else:
                older = tuple(one for one in self._roots if one != root)
                self._roots = (root, *older)[:ROOTS_MAX]
        return "".join(self._roots)

    def _nodes(
        self, verifiers: tuple[VerifierKey, ...], now_ms: int
    ) -> Mapping[str, Seen[NodeSeen]]:
        """Where there is one version only, nobody has to be asked which ones he knows."""
        if len(verifiers) < 2:
            return {}
        return see_nodes(self._ports, self._settings, now_ms, self._reports).nodes

    def _seal_in_time(self, config: NodeConfig, key: TaskKey) -> Mapping[str, Any] | None:
        if self._ports.clock.now_ms() < self._retry_at_ms:
            return None
        if not self._signing.acquire(timeout=SIGNING_WAIT_S):
            return None
        try:
            return key.seal(config.canonical(), NODE_CONFIG_TYPE)
        except GpuaasError as error:
            self._look = None
            self._failed(error, "node_config_unsigned")
            return None
        finally:
            self._signing.release()

    def _failed(self, error: GpuaasError, event: str) -> None:
        now_ms = self._ports.clock.now_ms()
        if now_ms >= self._retry_at_ms:
            log.warning(event, code=error.code, message=error.message)
        self._retry_at_ms = now_ms + RETRY_MS

    def _next_issued_at_ms(self, node: str) -> int:
        """Above that of the one before, so that an agent never takes an older for a newer one."""
        known = self._sealed.get(node)
        now_ms = self._ports.clock.now_ms()
        return now_ms if known is None else max(now_ms, known.issued_at_ms + 1)
