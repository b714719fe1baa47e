"""`gpuaas keys`: what is there, in words, as JSON and as PEM."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from reconciler.cli.keys import keys
from reconciler.errors import Refused
from reconciler.ports import REGISTRY_KEY, TASK_KEY
from reconciler.settings import Settings
from reconciler.wiring.ports import open_ports
from tests.cli.state_repo import run


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A control plane with two versions of its task key, and a node that joined."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "state"
    with open_ports(Settings(state_dir=folder, repo=str(tmp_path))) as ports:
        ports.secrets.ensure_signing_key(TASK_KEY)
        ports.secrets.rotate(TASK_KEY)
        ports.secrets.ensure_signing_key(REGISTRY_KEY, "ecdsa-p256")
        ports.secrets.rotate(REGISTRY_KEY)
        ports.store.add_join_token("hash", "node-a", 2**62)
        ports.store.redeem_join_token("hash", "node-a", "a" * 64, ports.clock.now_ms())
    return folder


def test_table(state: Path) -> None:
    said = run(keys, "--state-dir", state).output
    artifacts, registry, tasks = (line.split() for line in said.splitlines()[-3:])
    assert artifacts == ["artifacts", "ecdsa-p256", "none", "yet", "-", "-"]
    # The oldest signs: it is the one that registries were told of first.
    assert registry == ["registry-tokens", "ecdsa-p256", "1,", "2", "1", "1"]
    assert tasks == ["tasks", "ed25519", "1,", "2", "1", "1", "node-a"]


def test_json(state: Path) -> None:
    document = json.loads(run(keys, "--state-dir", state, "--format", "json").output)
    assert document["format"] == "gpuaas.dev/keys/v1"
    assert document["keys"][2] == {
        "name": "tasks",
        "kind": "ed25519",
        "versions": [1, 2],
        "signs_with": 1,
        "unaware": ["node-a"],
        "unknown": "",
        "min_version": 1,
    }


def test_pem_of_a_version(state: Path) -> None:
    newest = run(keys, "show", "tasks", "--state-dir", state).output
    older = run(keys, "--state-dir", state, "show", "tasks", "--version", "1").output
    assert newest != older
    for pem in (newest, older):
        assert pem.endswith("-----END PUBLIC KEY-----\n")
        assert isinstance(load_pem_public_key(pem.encode()), Ed25519PublicKey)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("tasks", "--version", "7"), "there is no version 7 of 'tasks', or no more.*1, 2"),
        (("artifacts",), "there is no signing key 'artifacts' yet"),
    ],
)
def test_none_there(state: Path, arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(Refused, match=message):
        run(keys, "show", *arguments, "--state-dir", state)


def test_nothing_is_made_by_looking(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="no_state"):
        run(keys, "--state-dir", tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()
