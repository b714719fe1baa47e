"""The NodeConfig in force: whose word counts on this node, and who may open tunnels there.

Rules:
- One is believed by the keys that were believed before it, and only if it goes forwards: an old
  one, played again, would bring back a key that was retired, or a tunnel that was closed.
- It is on disk before any of it is acted on. What it says of others' files is brought about again
  and again, in a thread of its own: a home folder can hang.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import structlog
from pydantic import ValidationError

from node_agent.authorized_keys import Installed
from node_agent.certificate import CertificateRefused, tls_context
from node_agent.clock import WallClock
from node_agent.envelope import EnvelopeRefused, unseal
from node_agent.membership import NODE_CONFIG_TYPE, NodeConfig, SshKey
from node_agent.state import Identity, StateStore
from node_agent.tasks import ISSUED_AHEAD_MAX_MS
from node_agent.wire import ConfigSeen, VerifierKey

CONVERGE_S = 60.0
SSH_ERROR_LENGTH_MAX = 500

Converge = Callable[[tuple[SshKey, ...]], Installed]
"""Makes these keys, and no others of ours, the ones that may open tunnels; never raises."""


def believed(raw: bytes, identity: Identity, now_ms: int) -> NodeConfig:
    """The NodeConfig in a signed envelope; raises EnvelopeRefused unless it is to be put in force.

    `code`, beside those of an envelope: key_retired, malformed, wrong_node, issued_in_future,
    outdated, ca_malformed.
    """
    payload, signer = unseal(raw, NODE_CONFIG_TYPE, identity.verifiers)
    if signer.version < identity.min_version:
        message = f"signed with key version {signer.version}, too old"
        raise EnvelopeRefused("key_retired", message)
    try:
        config = NodeConfig.model_validate_json(payload)
    except ValidationError:
        raise EnvelopeRefused("malformed", "signed, but not a NodeConfig") from None
    if config.node != identity.node:
        raise EnvelopeRefused("wrong_node", f"for node {config.node}, this is {identity.node}")
    if config.issued_at_ms > now_ms + ISSUED_AHEAD_MAX_MS:
        ahead_s = (config.issued_at_ms - now_ms) // 1_000
        raise EnvelopeRefused("issued_in_future", f"issued {ahead_s} s ahead of our clock")
    _check_forwards(config, identity)
    _check_ca(config)
    return config


def _check_forwards(config: NodeConfig, identity: Identity) -> None:
    before = identity.config
    if before is not None and config.issued_at_ms < before.issued_at_ms:
        raise EnvelopeRefused("outdated", "issued before the one in force")
    if config.min_version < identity.min_version:
        message = f"it would believe version {config.min_version} again, which was retired"
        raise EnvelopeRefused("outdated", message)
    newest = _newest(config.verifiers)
    if newest < _newest(identity.verifiers) or newest < config.min_version:
        message = f"its newest key, version {newest}, is older than one that is known"
        raise EnvelopeRefused("outdated", message)


def _check_ca(config: NodeConfig) -> None:
    """Without one that can be used, no later NodeConfig would get here."""
    if not config.ca:
        return
    try:
        tls_context(config.ca)
    except CertificateRefused as refused:
        raise EnvelopeRefused(refused.code, refused.message) from None


class ConfigKeeper:
    """Puts NodeConfigs in force. `adopt` is for one thread, `run` for another."""

    def __init__(
        self, store: StateStore, clock: WallClock, converge: Converge, changed: Callable[[], None]
    ) -> None:
        self._store = store
        self._clock = clock
        self._converge = converge
        self._changed = changed
        self._due = threading.Event()
        self._installed = Installed((), "")
        self._log = structlog.get_logger()

    @property
    def digest(self) -> str:
        config = self._identity().config
        return config.digest if config is not None else ""

    def seen(self) -> ConfigSeen:
        identity = self._identity()
        return ConfigSeen(
            digest=identity.config.digest if identity.config is not None else "",
            newest_version=_newest(identity.verifiers),
            min_version=identity.min_version,
            ssh_keys=self._installed.ids,
            ssh_error=self._installed.error[:SSH_ERROR_LENGTH_MAX],
        )

    def adopt(self, envelope: Mapping[str, Any]) -> str:
        """Puts it in force; else why not, code and message. Raises OSError when it is not on disk
        because it can't be.
        """
        identity = self._identity()
        try:
            config = believed(json.dumps(envelope).encode(), identity, self._clock.now_ms())
        except EnvelopeRefused as refused:
            self._log.warning("node config refused", code=refused.code, message=refused.message)
            return f"config_refused: {refused.code}: {refused.message}"
        self._store.save_config(config)
        self._log.info(
            "node config adopted", newest_version=_newest(config.verifiers),
            min_version=config.min_version, ssh_keys=len(config.ssh_keys),
        )  # fmt: skip
        self._due.set()
        self._changed()
        return ""

    def run(self, stop: threading.Event) -> None:
        """Brings it about now, after each that is adopted, and now and then, until `stop`."""
        while not stop.is_set():
            self._due.clear()
            self.bring_about()
            self._due.wait(CONVERGE_S)

    def wake(self) -> None:
        self._due.set()

    def bring_about(self) -> None:
        config = self._identity().config
        if config is None:
            return
        before, self._installed = self._installed, self._converge(config.ssh_keys)
        if self._installed == before:
            return
        if self._installed.error:
            self._log.error("SSH keys not in place", message=self._installed.error)
        self._changed()

    def _identity(self) -> Identity:
        identity = self._store.identity
        assert identity is not None
        return identity


def _newest(verifiers: Sequence[VerifierKey]) -> int:
    return max((key.version for key in verifiers), default=0)
