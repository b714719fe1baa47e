"""A place of its own in a running Vault: mounts, policies, logins under a prefix nobody else has.

Made by the product's own bootstrap, so that whatever the tests do, they do with the rights that a
control plane has.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from reconciler.adapters.ca_vault import VaultCa
from reconciler.adapters.secrets_vault import VaultSecrets
from reconciler.adapters.vault_admin import VaultAdmin
from reconciler.adapters.vault_client import VaultClient, runtime_client, token_client
from reconciler.core.custody.desired import desired
from reconciler.core.custody.diff import Change
from reconciler.core.custody.layout import VaultLayout
from reconciler.core.custody.paths import SecretClass
from reconciler.core.custody.things import Kind
from reconciler.ports import Secret
from reconciler.settings import Settings
from reconciler.use_cases.vault import bootstrap
from tests.services.vault_server import OtherVault, VaultServer

SECRET_ID_TTL_S = 60

_NUMBERS = itertools.count(1)


@dataclass(frozen=True)
class VaultPlace:
    """`settings` log in as the control plane; `root` may do anything."""

    layout: VaultLayout
    settings: Settings
    root: VaultClient

    @property
    def admin(self) -> VaultAdmin:
        return VaultAdmin(self.root, self.layout)

    def secret_id(self, secret_class: SecretClass = "runtime") -> str:
        """A new one, as it is."""
        made = self.root.post(self.layout.secret_id_path(secret_class), {})
        return str(made.data["secret_id"])


@dataclass(frozen=True)
class Runtime:
    """The adapters as a control plane has them, logged in by AppRole."""

    client: VaultClient
    secrets: VaultSecrets
    ca: VaultCa


def runtime(place: VaultPlace, settings: Settings | None = None) -> Runtime:
    client = runtime_client(settings or place.settings)
    return Runtime(client, VaultSecrets(client, place.layout), VaultCa(client, place.layout))


@contextmanager
def vault_place(
    server: VaultServer | OtherVault,
    folder: Path,
    *,
    kinds: Container[Kind] | None = None,
    ca_file: Path | None = None,
) -> Iterator[VaultPlace]:
    """With `kinds` only such things are made, in half the time, and there is no login. `folder`
    gets the files of the login.
    """
    layout = VaultLayout(f"t{os.getpid()}-{next(_NUMBERS)}")
    settings = Settings(
        vault_address=server.address,
        vault_prefix=layout.prefix,
        vault_ca_file=ca_file,
        vault_role_id_file=folder / "role-id",
        vault_secret_id_file=folder / "secret-id",
        vault_timeout_s=20.0,
    )
    root = token_client(settings, Secret(server.root_token))
    place = VaultPlace(layout, settings, root)
    things = desired(layout, settings.certificate_ttl_s)
    if kinds is None:
        bootstrap(place.admin, things)
        (folder / "role-id").write_text(place.admin.role_id("runtime"))
        _write_private(folder / "secret-id", place.secret_id())
    else:
        for thing in things:
            if thing.kind in kinds:
                place.admin.make(thing, Change("create", thing.kind, thing.name))
    try:
        yield place
    finally:
        root.close()


def _write_private(file: Path, text: str) -> None:
    file.touch(mode=0o600)
    file.write_text(text)
