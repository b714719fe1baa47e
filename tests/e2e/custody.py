"""Platforms whose keys and secrets are in a real Vault, set up the way an operator does it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

import httpx

from reconciler.core.custody.layout import VaultLayout
from tests.e2e.platform import gpuaas


class Vault(Protocol):
    """A running one, and who may do anything there."""

    address: str
    root_token: str


class Custody:
    """What `gpuaas vault bootstrap` made of a Vault, under a prefix of its own."""

    def __init__(self, vault: Vault, root: Path) -> None:
        self.vault = vault
        self.layout = VaultLayout(f"gpuaas-{uuid4().hex[:8]}")
        self.folder = root / "custody"
        self.settings = {
            "GPUAAS_VAULT_ADDRESS": vault.address,
            "GPUAAS_VAULT_PREFIX": self.layout.prefix,
        }
        self.bootstrap("--issue", "runtime", "--out", str(self.folder))
        self.settings |= {
            "GPUAAS_VAULT_ROLE_ID_FILE": str(self.role_id_file),
            "GPUAAS_VAULT_SECRET_ID_FILE": str(self.secret_id_file),
        }

    @property
    def role_id_file(self) -> Path:
        return self.folder / "runtime-role-id"

    @property
    def secret_id_file(self) -> Path:
        return self.folder / "runtime-secret-id"

    def bootstrap(self, *arguments: str) -> None:
        done = gpuaas(
            "vault",
            "bootstrap",
            *arguments,
            environment={**self.settings, "VAULT_TOKEN": self.vault.root_token},
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def ask(self, method: str, path: str, body: object = None) -> dict[str, Any]:
        """As root, whatever the control plane may."""
        answer = httpx.request(
            method,
            f"{self.vault.address}/v1/{path}",
            json=body,
            headers={"X-Vault-Token": self.vault.root_token},
            trust_env=False,
        )
        assert answer.is_success, f"{path}: {answer.text}"
        document: dict[str, Any] = answer.json() if answer.content else {}
        return document

    def value(self, path: str) -> str:
        """The value of the secret at a path of ours."""
        where = self.layout.kv_data_path(path)
        assert where is not None, path
        return str(self.ask("GET", where)["data"]["data"]["value"])

    def paths(self, path: str) -> list[str]:
        """All secrets below a path of ours."""
        where = self.layout.kv_metadata_path(path)
        found = []
        for name in self.ask("LIST", f"{where}/")["data"]["keys"]:
            below = f"{path}/{name}"
            found += self.paths(below.rstrip("/")) if name.endswith("/") else [below]
        return found
