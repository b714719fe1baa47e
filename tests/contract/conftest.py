"""What the suites ask for that hold for a fake and for the real thing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from node_agent.wire import Image
from reconciler.adapters.ca_vault import VaultCa
from reconciler.adapters.secrets_vault import VaultSecrets
from reconciler.adapters.store_sql import SqlStore
from reconciler.ports import Store
from tests.contract.topology_place import Place, open_place
from tests.fakes.store import MemoryStore
from tests.services.vault_place import vault_place
from tests.services.vault_server import OtherVault, VaultServer


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    if request.param == "memory":
        yield MemoryStore()
        return
    real = SqlStore.open(f"sqlite:///{tmp_path / 'store.db'}")
    yield real
    real.close()


@pytest.fixture
def place(
    docker_host: str, compose_program: Path, demo_image: Image, tmp_path: Path
) -> Iterator[Place]:
    """A node of its own for topologies, and somebody else on its Docker."""
    with open_place(docker_host, compose_program, demo_image, tmp_path) as place:
        yield place


@pytest.fixture
def vault_secrets(vault: VaultServer | OtherVault, tmp_path: Path) -> Iterator[VaultSecrets]:
    """Without any key or secret, and as somebody who may do everything: what the control plane's
    own login may, the tests of the policies say.
    """
    with vault_place(vault, tmp_path, kinds={"mount", "kv config"}) as place:
        yield VaultSecrets(place.root, place.layout)


@pytest.fixture
def vault_ca(vault: VaultServer | OtherVault, tmp_path: Path) -> Iterator[VaultCa]:
    with vault_place(vault, tmp_path, kinds={"mount", "root", "pki role"}) as place:
        yield VaultCa(place.root, place.layout)
