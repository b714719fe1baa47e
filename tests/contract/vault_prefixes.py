"""A prefix of its own in the Vault of the tests, made as `gpuaas vault bootstrap` makes it."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from reconciler.adapters.vault_admin import VaultAdmin
from reconciler.adapters.vault_client import VaultClient, token_client
from reconciler.adapters.vault_http import Answer, VaultHttp
from reconciler.core.custody.desired import desired
from reconciler.core.custody.layout import CLASSES, VaultLayout
from reconciler.core.custody.paths import SecretClass
from reconciler.core.custody.things import Thing
from reconciler.ports import Secret
from reconciler.settings import Settings
from reconciler.use_cases.vault import bootstrap

CERTIFICATE_TTL_S = 24 * 3600.0


class Vault(Protocol):
    """What the `vault` fixture gives."""

    address: str
    root_token: str


class VaultPrefix:
    """`as_root` does what no class may; `login` gives the token of a class."""

    def __init__(self, vault: Vault, prefix: str) -> None:
        self.vault, self.layout = vault, VaultLayout(prefix)
        self.http = VaultHttp(vault.address, timeout_s=30.0)
        self.admin = VaultAdmin(self.client(vault.root_token), self.layout)
        self._tokens: dict[SecretClass, str] = {}

    @property
    def settings(self) -> Settings:
        return Settings(vault_address=self.vault.address, vault_prefix=self.layout.prefix)

    @property
    def wanted(self) -> tuple[Thing, ...]:
        return desired(self.layout, CERTIFICATE_TTL_S)

    def client(self, token: str) -> VaultClient:
        return token_client(self.settings, Secret(token))

    def admin_of(self, secret_class: SecretClass) -> VaultAdmin:
        return VaultAdmin(self.client(self.login(secret_class)), self.layout)

    def as_root(self, method: str, path: str, body: dict[str, object] | None = None) -> Answer:
        answer = self.http.ask(method, path, token=self.vault.root_token, body=body)
        assert answer.ok, answer.errors
        return answer

    def login(self, secret_class: SecretClass) -> str:
        """The same token each time."""
        if secret_class not in self._tokens:
            made = self.as_root("POST", self.layout.secret_id_path(secret_class), {})
            body = {
                "role_id": self.admin.role_id(secret_class),
                "secret_id": made.data["secret_id"],
            }
            answer = self.http.ask("POST", self.layout.login_path(), body=body)
            self._tokens[secret_class] = str(answer.auth["client_token"])
        return self._tokens[secret_class]

    def wanted_ttl_s(self, secret_class: SecretClass) -> int:
        """How long a token of the class may be good for, before it is renewed."""
        role = next(t for t in self.wanted if t.key == ("role", self.layout.role(secret_class)))
        return int(role.fields["token_ttl"].removesuffix("s"))

    def remove(self) -> None:
        layout = self.layout
        for mount in (layout.kv_mount, layout.transit_mount, layout.pki_mount):
            self.as_root("DELETE", f"sys/mounts/{mount}")
        self.as_root("DELETE", f"sys/auth/{layout.approle_mount}")
        for secret_class in CLASSES:
            self.as_root("DELETE", f"sys/policies/acl/{layout.policy(secret_class)}")
        self.http.close()


@contextmanager
def vault_prefix(vault: Vault, *, made: bool = True) -> Iterator[VaultPrefix]:
    """Taken away at the end, for a Vault that is there for more than these tests."""
    prefix = VaultPrefix(vault, f"t-{secrets.token_hex(4)}")
    try:
        if made:
            bootstrap(prefix.admin, prefix.wanted)
        yield prefix
    finally:
        prefix.remove()
