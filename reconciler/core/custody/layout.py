"""Where everything is in a Vault: one place for all names, all of them under one prefix.

Rules:
- Every mount, policy and role is named `<prefix>-<what>`: two control planes may share a Vault.
- API paths are without `/v1/`, as policies have them. A secret's path says its class, and the class
  is the first word after the mount: a policy for a class is one line.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from reconciler.core.custody.paths import SecretClass, class_of

CLASSES: tuple[SecretClass, ...] = get_args(SecretClass)
AGENT_ROLE = "agent"
SERVER_ROLE = "server"


@dataclass(frozen=True)
class VaultLayout:
    """`prefix` is `settings.vault_prefix`. Paths of a secret of no class are None."""

    prefix: str

    @property
    def kv_mount(self) -> str:
        return f"{self.prefix}-kv"

    @property
    def transit_mount(self) -> str:
        return f"{self.prefix}-transit"

    @property
    def pki_mount(self) -> str:
        return f"{self.prefix}-pki"

    @property
    def approle_mount(self) -> str:
        return f"{self.prefix}-approle"

    def policy(self, secret_class: SecretClass) -> str:
        return f"{self.prefix}-{secret_class}"

    def role(self, secret_class: SecretClass) -> str:
        """The AppRole of a class; it has the policy of the same name, and no other."""
        return self.policy(secret_class)

    def secret_name(self, path: str) -> str | None:
        """A secret's path inside the KV mount: its class, then the path."""
        secret_class = class_of(path)
        return None if secret_class is None else f"{secret_class}/{path}"

    def kv_data_path(self, path: str) -> str | None:
        """Where its value is read and written."""
        return self._kv("data", path)

    def kv_metadata_path(self, path: str) -> str | None:
        """Where it is listed, seen without its value, and deleted with all its versions."""
        return self._kv("metadata", path)

    def creation_path(self, path: str) -> str | None:
        """What `sys/wrapping/lookup` has to say of a token that wraps the secret at `path`."""
        return self.kv_data_path(path)

    def secret_id_path(self, secret_class: SecretClass) -> str:
        """Where secret ids are made: the creation path of a token that wraps one."""
        return f"{self.role_path(secret_class)}/secret-id"

    def role_path(self, secret_class: SecretClass) -> str:
        return f"auth/{self.approle_mount}/role/{self.role(secret_class)}"

    def login_path(self) -> str:
        return f"auth/{self.approle_mount}/login"

    def key_path(self, name: str) -> str:
        return f"{self.transit_mount}/keys/{name}"

    def sign_path(self, name: str) -> str:
        return f"{self.transit_mount}/sign/{name}"

    def pki_role_path(self, role: str) -> str:
        return f"{self.pki_mount}/roles/{role}"

    def pki_sign_path(self, role: str) -> str:
        return f"{self.pki_mount}/sign/{role}"

    def _kv(self, part: str, path: str) -> str | None:
        name = self.secret_name(path)
        return None if name is None else f"{self.kv_mount}/{part}/{name}"
