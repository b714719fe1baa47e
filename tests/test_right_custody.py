"""Where the Environment names a Vault nothing is kept, signed or issued anywhere else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from reconciler.core.names import Revision
from reconciler.core.records import Accepted, AcceptedObject
from reconciler.errors import Refused
from reconciler.ports import Ports, Secret
from reconciler.settings import Settings
from reconciler.wiring import ports as wiring
from reconciler.wiring.ports import open_ports

HEAD = Revision("a" * 40)
USES: tuple[Callable[[Ports], object], ...] = (
    lambda ports: ports.secrets.write("projects/acme/lab/token", Secret("hunter2-and-more")),
    lambda ports: ports.secrets.ensure_signing_key("tasks"),
    lambda ports: ports.secrets.sign("tasks", b""),
    lambda ports: ports.ca.root(),
)


def naming(address: str | None) -> Accepted:
    spec = {"vault": {"address": address}} if address else {}
    document = json.dumps({"kind": "Environment", "spec": spec})
    stored = AcceptedObject("Environment/prod", "environments/prod.yaml", 1, document, HEAD)
    return Accepted(HEAD, {stored.ref: stored})


def settings(folder: Path, vault_address: str = "") -> Settings:
    return Settings(state_dir=folder, environment="prod", vault_address=vault_address)


@pytest.mark.parametrize("use", USES)
def test_nothing_is_kept_here_instead(tmp_path: Path, use: Callable[[Ports], object]) -> None:
    with open_ports(settings(tmp_path)) as ports:
        ports.store.save_accepted(naming("https://vault.example:8200"))
        with pytest.raises(Refused, match=r"belong into https://vault\.example:8200, and") as told:
            use(ports)
    assert (told.value.code, (tmp_path / "secrets").exists()) == ("vault_not_configured", False)


def test_nor_in_another_vault(tmp_path: Path) -> None:
    with open_ports(settings(tmp_path, "https://other.example:8200")) as ports:
        ports.store.save_accepted(naming("https://vault.example:8200"))
        with pytest.raises(Refused, match=r"uses https://other\.example:8200") as told:
            ports.secrets.read("projects/acme/lab/token")
    assert told.value.code == "vault_differs"


def test_one_that_is_named_later_counts_from_then_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wiring, "_CHECK_AFTER_S", 0.0)
    with open_ports(settings(tmp_path)) as ports:
        ports.store.save_accepted(naming(None))
        ports.secrets.ensure_signing_key("tasks")
        ports.store.save_accepted(naming("https://vault.example:8200"))
        with pytest.raises(Refused, match="vault_not_configured"):
            ports.secrets.sign("tasks", b"task")
        ports.store.save_accepted(naming(None))
        ports.secrets.sign("tasks", b"task")
