"""Vault is sealed, killed and gone, at bad moments. What runs goes on; what needs a key waits, says
why, and goes on by itself once Vault is back.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from node_agent.secret_files import SecretFiles
from reconciler.devkit.state_repo import INSTANCE as INSTANCE_FILE
from tests.e2e.custody import Custody
from tests.e2e.platform import (
    AGENT,
    CONTROL_PLANE,
    VERSIONS,
    Platform,
    publish_to_layout,
)
from tests.services.vault_server import VaultServer

ENVIRONMENT_FILE = "environments/dev.yaml"
SECRET = "    secrets: [{name: token}]\n"


@pytest.fixture
def vault_server(tmp_path: Path) -> Iterator[VaultServer]:
    """One that keeps what it has on the disk: it can be killed and come back, sealed."""
    storage = tmp_path / "vault-storage"
    storage.mkdir()
    with VaultServer.start(tmp_path / "vault", storage) as server:
        yield server


@pytest.fixture
def platform(vault_server: VaultServer, tmp_path: Path) -> Iterator[Platform]:
    """The first version runs, and reads a secret."""
    root = tmp_path / "platform"
    root.mkdir()
    custody = Custody(vault_server, tmp_path)
    pace = {"GPUAAS_POLL_INTERVAL_S": "0.5"}
    made = Platform(root, publish_to_layout(root / "images"), settings={**custody.settings, **pace})
    for version in VERSIONS:
        made.repo.edit(f"catalog/hello/versions/{version}.yaml", _with_secret)
    made.repo.begin_with()
    try:
        made.start()
        made.wait_settled("running")
        yield made
    finally:
        made.stop()


def _with_secret(text: str) -> str:
    kind = next(line for line in text.splitlines(keepends=True) if line.startswith("    kind: "))
    return text.replace(kind, kind + SECRET)


def _waits(platform: Platform, code: str) -> dict[str, Any] | None:
    """The last pass, when it ended waiting for this."""
    last: dict[str, Any] | None = platform.status()["last_pass"]
    if last is None or last["revision"] != platform.repo.head():
        return None
    return last if last["result"] == "waiting" and code in last["message"] else None


def test_sealed_in_the_middle_of_an_upgrade(
    platform: Platform, vault_server: VaultServer
) -> None:
    before = platform.workload_processes()
    cursor = platform.last_cursor()
    vault_server.seal()
    platform.set_version(VERSIONS[1])
    # By polling: what proves a webhook may be in Vault, too.
    platform.repo.commit("Upgrade while nobody can sign")
    last = platform.wait(lambda: _waits(platform, "custody_sealed"))
    assert "Vault is sealed" in last["message"]
    said = platform.gpuaas("status").stdout
    assert "custody_sealed" in said
    assert (platform.page(), platform.workload_processes()) == (VERSIONS[0], before)
    # The node is heard all the while, and is not taken to be away.
    assert [f for f in platform.findings() if f["code"] == "node_offline"] == []

    vault_server.unseal()
    platform.wait_settled("running")
    assert platform.page() == VERSIONS[1]
    assert platform.event_names(cursor) == ["upgrade_requested", "upgraded"]


def test_started_anew_while_it_is_sealed(platform: Platform, vault_server: VaultServer) -> None:
    before = platform.workload_processes()
    vault_server.seal()
    platform.kill(CONTROL_PLANE, AGENT)
    platform.restart(CONTROL_PLANE, AGENT)
    platform.set_version(VERSIONS[1])
    platform.repo.commit("Upgrade while nobody can sign")
    platform.wait(lambda: platform.status()["last_pass"]["revision"] == platform.repo.head())
    assert (platform.page(), platform.workload_processes()) == (VERSIONS[0], before)

    vault_server.unseal()
    platform.wait_settled("running")
    assert platform.page() == VERSIONS[1]


def test_what_died_is_brought_back_without_vault(
    platform: Platform, vault_server: VaultServer
) -> None:
    (folder,) = [
        path
        for root in SecretFiles.for_node(platform.node).candidates
        if root.exists()
        for path in root.iterdir()
    ]
    value = (folder / "token").read_text()
    (died,) = platform.workload_processes()
    vault_server.kill()
    platform.kill_workload()
    platform.wait(lambda: platform.workload_processes() not in ([], [died]))
    platform.wait(lambda: platform.page() == VERSIONS[0])
    assert (folder / "token").read_text() == value
    vault_server.restart()
    vault_server.unseal()
    platform.wait_settled("running")


def test_killed_in_a_rotation(
    platform: Platform, vault_server: VaultServer, tmp_path: Path
) -> None:
    added = "spec:\n  signing_keys: {tasks: {version: 2}}\n"
    platform.repo.edit(ENVIRONMENT_FILE, lambda text: text.replace("spec:\n", added))
    platform.set_version(VERSIONS[1])
    platform.commit("Rotate, and upgrade")
    prefix = platform.environment["GPUAAS_VAULT_PREFIX"]

    def newest() -> int:
        key = vault_server.ask("GET", f"{prefix}-transit/keys/tasks").json()["data"]
        return int(key["latest_version"])

    platform.wait(lambda: newest() == 2)
    vault_server.kill()
    platform.wait(lambda: "custody_" in str(platform.status()["last_pass"]))
    # An upgrade that had begun by then is carried through, with the secrets fetched ahead of it.
    platform.wait(lambda: platform.page() in VERSIONS)
    vault_server.restart()
    vault_server.unseal()
    platform.wait_settled("running")
    assert platform.page() == VERSIONS[1]
    key = vault_server.ask("GET", f"{prefix}-transit/keys/tasks").json()["data"]
    assert (key["latest_version"], key["min_decryption_version"]) == (2, 2)
    assert platform.gpuaas("plan").returncode == 0


class SealingProxy(ThreadingHTTPServer):
    """In front of a Vault: passes everything on, and seals it right after the nth signature."""

    def __init__(self, vault: VaultServer) -> None:
        super().__init__(("127.0.0.1", 0), _Passing)
        self.vault = vault
        self.seal_after = 0
        self.signed = 0
        self.address = f"http://127.0.0.1:{self.server_address[1]}"

    def passed(self, path: str) -> None:
        if "/sign/tasks" in path and self.seal_after:
            self.signed += 1
            if self.signed == self.seal_after:
                self.vault.seal()


class _Passing(BaseHTTPRequestHandler):
    server: SealingProxy

    def handle_any(self) -> None:
        size = int(self.headers.get("Content-Length") or 0)
        kept = {k: v for k, v in self.headers.items() if k.lower().startswith(("x-vault", "conte"))}
        answer = httpx.request(
            self.command,
            self.server.vault.address + self.path,
            content=self.rfile.read(size),
            headers=kept,
            trust_env=False,
        )
        self.server.passed(self.path)
        self.send_response(answer.status_code)
        self.send_header("Content-Type", answer.headers.get("Content-Type", "application/json"))
        self.send_header("Content-Length", str(len(answer.content)))
        self.end_headers()
        self.wfile.write(answer.content)

    do_GET = do_POST = do_PUT = do_LIST = do_DELETE = handle_any

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: what it would say are paths."""


@pytest.fixture
def proxy(vault_server: VaultServer) -> Iterator[SealingProxy]:
    with SealingProxy(vault_server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def test_sealed_between_two_signatures_of_one_pass(
    vault_server: VaultServer, proxy: SealingProxy, tmp_path: Path
) -> None:
    """The first instance's task is signed, the second one's is not: neither is half done."""
    root = tmp_path / "platform"
    root.mkdir()
    custody = Custody(vault_server, tmp_path)
    pace = {"GPUAAS_POLL_INTERVAL_S": "0.5", "GPUAAS_VAULT_ADDRESS": proxy.address}
    made = Platform(root, publish_to_layout(root / "images"), settings={**custody.settings, **pace})
    first = made.repo.folder / INSTANCE_FILE
    for name in ("hello-b", "hello-c"):
        text = first.read_text().replace("name: hello\n", f"name: {name}\n")
        first.with_name(f"{name}.yaml").write_text(text.replace("cpu_cores: 0.5", "cpu_cores: 0.1"))
    made.repo.commit("Three of them")
    proxy.seal_after = 2
    try:
        made.start()
        made.wait(lambda: proxy.signed >= 2)
        last = made.wait(lambda: _waits(made, "custody_sealed"))
        assert last["result"] == "waiting"
        assert made.event_names().count("deploying") == 0
        assert made.workload_processes() == []
        vault_server.unseal()
        made.wait_settled("running")
        told = made.event_names()
        assert sorted(told) == sorted(["requested", "deploying", "running"] * 3)
        assert len(made.workload_processes()) == 3
    finally:
        made.stop()
