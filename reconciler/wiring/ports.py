"""The real services of one process."""

from __future__ import annotations

import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from reconciler.adapters.clock import SystemClock
from reconciler.adapters.store_sql import SqlStore
from reconciler.core.custody.layout import VaultLayout
from reconciler.custody.away import refuse_wrong_custody
from reconciler.errors import Refused
from reconciler.ports import (
    RECONCILER_LEASE,
    TASK_KEY,
    WEBHOOK_SECRET_PATH,
    CertificateAuthority,
    Clock,
    Ports,
    Registry,
    Secret,
    SecretStore,
    Store,
)
from reconciler.settings import Settings
from reconciler.wiring.source import git_source, state_dir

if TYPE_CHECKING:
    from reconciler.adapters.git_pygit2 import GitSource
    from reconciler.adapters.vault_client import VaultClient
    from reconciler.artifacts.registry_tokens import RegistryTokens

_STORE = "store.db"
_CHECK_AFTER_S = 1.0


class OnDemand:
    """A service that its first use opens, in whichever thread: most plans ask no registry and sign
    nothing, and HTTP or cryptography takes longer to load than the store takes to open.
    """

    def __init__(self, open: Callable[[], Any], check: Callable[[], None] | None = None) -> None:
        """`check` raises where it must not be used now, opened or not."""
        self._open = open
        self._check = check
        self._opening = threading.Lock()
        self._opened: Any = None

    def __getattr__(self, name: str) -> Any:
        if self._check is not None:
            self._check()
        with self._opening:
            if self._opened is None:
                self._opened = self._open()
        return getattr(self._opened, name)

    def close_if_opened(self) -> None:
        if self._opened is not None:
            self._opened.close()


@contextmanager
def open_ports(
    settings: Settings, *, make: bool = True, source: GitSource | None = None
) -> Iterator[Ports]:
    """The real services of one process, closed at the end. `source`: opened already.

    `make` false: who only looks finds a state directory or is told that there is none. One made in
    passing would belong to whoever looked first.
    """
    folder = state_dir(settings) if make else _existing(settings.state_dir)
    store = SqlStore.open(f"sqlite:///{folder / _STORE}")
    clock = SystemClock()
    vault = OnDemand(lambda: _open_vault(settings))
    check = _the_named_one(store, settings)
    custody = OnDemand(lambda: _open_secrets(settings, folder / "secrets", vault), check)
    ca = OnDemand(lambda: _open_ca(settings, custody, vault), check)
    tokens = OnDemand(lambda: _open_tokens(cast(SecretStore, custody), clock, settings))
    registry = OnDemand(lambda: _open_registry(settings, tokens))
    try:
        yield Ports(
            source=source or git_source(settings),
            registry=cast(Registry, registry),
            secrets=cast(SecretStore, custody),
            ca=cast(CertificateAuthority, ca),
            store=store,
            clock=clock,
        )
    finally:
        vault.close_if_opened()
        registry.close_if_opened()
        store.close()


def _the_named_one(store: Store, settings: Settings) -> Callable[[], None]:
    """Looks whether this custody is still the one that the Environment names. A Vault that was
    named a moment ago counts from its next second on.
    """
    looked_s = -_CHECK_AFTER_S

    def check() -> None:
        nonlocal looked_s
        now_s = time.monotonic()
        if now_s - looked_s >= _CHECK_AFTER_S:
            refuse_wrong_custody(store.accepted(), settings)
            looked_s = now_s

    return check


def first_start(ports: Ports) -> None:
    """Makes the keys and secrets a control plane cannot start without; harmless when they exist."""
    ports.secrets.ensure_signing_key(TASK_KEY)
    ports.secrets.ensure(WEBHOOK_SECRET_PATH, Secret(secrets.token_urlsafe(32)))


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


def _open_registry(settings: Settings, tokens: Any) -> Registry:
    """Of a registry that asks for no token, custody never hears."""
    from reconciler.adapters.registry_oci import OciRegistry  # noqa: PLC0415

    return OciRegistry(settings, lambda scopes: cast(Secret, tokens.bearer(scopes)))


def _open_tokens(secrets: SecretStore, clock: Clock, settings: Settings) -> RegistryTokens:
    from reconciler.artifacts.registry_tokens import RegistryTokens  # noqa: PLC0415

    return RegistryTokens(secrets, clock, settings)


def _open_vault(settings: Settings) -> VaultClient:
    from reconciler.adapters.vault_client import runtime_client  # noqa: PLC0415

    return runtime_client(settings)


def _open_secrets(settings: Settings, folder: Path, vault: Any) -> SecretStore:
    """Of a Vault that is named nothing is ever kept here instead."""
    if settings.vault_address:
        from reconciler.adapters.secrets_vault import VaultSecrets  # noqa: PLC0415

        return VaultSecrets(vault, VaultLayout(settings.vault_prefix))
    from reconciler.adapters.secrets_local import LocalSecrets  # noqa: PLC0415

    return LocalSecrets(folder)


def _open_ca(settings: Settings, custody: Any, vault: Any) -> CertificateAuthority:
    if settings.vault_address:
        from reconciler.adapters.ca_vault import VaultCa  # noqa: PLC0415

        return VaultCa(vault, VaultLayout(settings.vault_prefix))
    from reconciler.adapters.ca_local import LocalCa  # noqa: PLC0415

    return LocalCa(custody)


def _existing(folder: Path) -> Path:
    if not (folder / _STORE).exists():
        raise Refused(
            "no_state",
            "no control plane has kept its state here yet",
            where=str(folder),
            hint="start `gpuaas run` or `gpuaas apply`, or pass --state-dir",
        )
    return folder
