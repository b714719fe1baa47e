"""The real services of one process."""

from __future__ import annotations

import os
import secrets
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from reconciler.adapters.clock import SystemClock
from reconciler.adapters.git_pygit2 import GitSource
from reconciler.adapters.secrets_local import LocalSecrets
from reconciler.adapters.store_sql import SqlStore
from reconciler.core.names import ArtifactKey
from reconciler.core.observed import ArtifactSeen
from reconciler.errors import Refused
from reconciler.ports import (
    RECONCILER_LEASE,
    TASK_KEY,
    WEBHOOK_SECRET_PATH,
    Ports,
    RegistryEndpoint,
    Secret,
)
from reconciler.settings import Settings

if TYPE_CHECKING:
    from reconciler.adapters.registry_oci import OciRegistry

_STORE = "store.db"


class RegistryOnDemand:
    """A registry that is opened by the first question: most plans ask none, and HTTP and its
    certificates take longer to load than the store takes to open.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._opening = threading.Lock()
        self._opened: OciRegistry | None = None

    def look_up(self, endpoint: RegistryEndpoint, key: ArtifactKey) -> ArtifactSeen:
        return self._open().look_up(endpoint, key)

    def close(self) -> None:
        if self._opened is not None:
            self._opened.close()

    def _open(self) -> OciRegistry:
        with self._opening:
            if self._opened is None:
                from reconciler.adapters.registry_oci import OciRegistry  # noqa: PLC0415

                self._opened = OciRegistry(self._settings)
            return self._opened


@contextmanager
def open_ports(settings: Settings, *, make: bool = True) -> Iterator[Ports]:
    """The real services of one process, closed at the end.

    `make` false: who only looks finds a state directory or is told that there is none. One made in
    passing would belong to whoever looked first.
    """
    folder = _state_dir(settings) if make else _existing(settings.state_dir)
    store = SqlStore.open(f"sqlite:///{folder / _STORE}")
    registry = RegistryOnDemand(settings)
    try:
        yield Ports(
            source=GitSource(settings.repo, settings.branch, folder / "mirror.git", settings),
            registry=registry,
            secrets=LocalSecrets(folder / "secrets"),
            store=store,
            clock=SystemClock(),
        )
    finally:
        registry.close()
        store.close()


def first_start(ports: Ports) -> None:
    """Makes the keys and secrets a control plane cannot start without; harmless when they exist."""
    ports.secrets.ensure_signing_key(TASK_KEY)
    if ports.secrets.read(WEBHOOK_SECRET_PATH) is None:
        ports.secrets.write(WEBHOOK_SECRET_PATH, Secret(secrets.token_urlsafe(32)))


def holder() -> str:
    """Names this process in the lease: host, process and a word that no restart repeats."""
    return f"{socket.gethostname()}/{os.getpid()}/{secrets.token_hex(4)}"


def leader(ports: Ports, settings: Settings) -> str | None:
    """Who holds the reconciler's lease, or None when nobody does."""
    me = holder()
    ttl_ms = int(settings.lease_ttl_s * 1000)
    found = ports.store.lease(RECONCILER_LEASE, me, ports.clock.now_ms(), ttl_ms)
    if found != me:
        return found
    ports.store.release(RECONCILER_LEASE, me)
    return None


def _existing(folder: Path) -> Path:
    if not (folder / _STORE).exists():
        raise Refused(
            "no_state",
            "no control plane has kept its state here yet",
            where=str(folder),
            hint="start `gpuaas run` or `gpuaas apply`, or pass --state-dir",
        )
    return folder


def _state_dir(settings: Settings) -> Path:
    folder = settings.state_dir
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise Refused(
            "state_dir",
            f"cannot make the state directory: {error.strerror}",
            where=str(folder),
            hint="pass --state-dir with a folder you may write to",
        ) from None
    return folder
