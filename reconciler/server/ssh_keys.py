"""Which SSH keys each node should have, for whoever writes its NodeConfig.

Rules: no private key is read. Custody is asked once for each key and process; the store is looked
through again only once a pass has ended, since nothing else changes what is wanted.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping

from node_agent.membership import SshKey
from reconciler.core.custody.paths import ssh_public_path
from reconciler.core.ssh_access import (
    KeyName,
    keys_by_node,
    keys_wanted,
    reported_by,
    wanted_versions,
)
from reconciler.ports import SecretStore, Store

Keys = Mapping[str, tuple[SshKey, ...]]


class SshKeysSource:
    """Call it for the keys by node. Safe to use from several threads."""

    def __init__(self, store: Store, secrets: SecretStore) -> None:
        self._store = store
        self._secrets = secrets
        self._lock = threading.Lock()
        self._public: dict[KeyName, str] = {}
        self._pass: tuple[str, int] | None = None
        self._keys: Keys = {}

    def __call__(self) -> Keys:
        """Raises GpuaasError while a key can't be read: what was said before then stays true."""
        with self._lock:
            last = self._store.last_pass()
            seen = (last.revision, last.started_at_ms) if last is not None else None
            if seen is None or seen != self._pass:
                self._keys = self._look()
                self._pass = seen
            return self._keys

    def _look(self) -> Keys:
        accepted = self._store.accepted()
        if not wanted_versions(accepted):
            self._public = {}
            return {}
        records, installed = self._store.records(), reported_by(self._store.nodes())
        wanted = keys_wanted(accepted, records, installed)
        found = {name: self._public.get(name) or self._read(name) for name in wanted}
        # One that nobody wants is forgotten here: should there ever be another in its place, it is
        # read anew.
        self._public = {name: line for name, line in found.items() if line}
        return keys_by_node(accepted, records, installed, self._public)

    def _read(self, name: KeyName) -> str:
        """Its public line; empty while there is none."""
        owner, version = name
        found = self._secrets.read(ssh_public_path(*owner, version))
        return found.reveal() if found is not None else ""
