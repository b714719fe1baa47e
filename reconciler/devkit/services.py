"""Private services for the demo and the tests: a Docker Engine, a registry, an SSH server.

Rules:
- Each lives under a `root` of its own, on the loopback address or a Unix socket, and is ended by
  the process that started it or by the next start under the same root.
- `start_…` returns only once the service answers; else it raises Refused with the end of its log.
"""

from __future__ import annotations

import getpass
import json
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import httpx

from reconciler.devkit import process
from reconciler.devkit.dockerd import (
    Dockerd,
    answers,
    docker_possible,
    existing_docker,
    start_dockerd,
    stop_dockerd_leftover,
)
from reconciler.errors import Refused

__all__ = [
    "Dockerd",
    "RegistryServer",
    "SshServer",
    "TokenAuth",
    "answers",
    "docker_possible",
    "existing_docker",
    "free_port",
    "start_dockerd",
    "start_registry",
    "start_sshd",
    "stop_leftovers",
]

LOOPBACK = "127.0.0.1"
READY_TIMEOUT_S = 20.0
ASK_TIMEOUT_S = 2.0
ATTEMPTS_MAX = 3
T = TypeVar("T")


@dataclass(frozen=True)
class _Server(process.Stoppable):
    service: process.Service

    @property
    def pid(self) -> int:
        return self.service.identity.pid

    def stop(self) -> None:
        """Ends it. Harmless when it is gone."""
        self.service.stop()


@dataclass(frozen=True)
class TokenAuth:
    """What a registry lets in: tokens of `issuer` for `service`, signed by a key of `keys`.

    `realm` is the URL it sends clients to for them. `keys` are PEM certificates, or a JWK set,
    which distribution 3 takes.
    """

    realm: str
    keys: str
    service: str = "registry"
    issuer: str = "gpuaas"


@dataclass(frozen=True)
class RegistryServer(_Server):
    """A distribution registry over plain HTTP. `endpoint` is host:port; `data` holds its blobs."""

    endpoint: str
    data: Path


@dataclass(frozen=True)
class SshServer(_Server):
    """An OpenSSH server on the loopback address, for the user who started it, by key only.

    `known_hosts` is the line a client needs to trust it.
    """

    host: str
    port: int
    user: str
    known_hosts: str


def free_port() -> int:
    """A loopback port that is free now; whoever binds it must be ready to find it taken."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port


def start_registry(
    root: Path,
    port: int | None = None,
    token: TokenAuth | None = None,
    program: str | None = None,
) -> RegistryServer:
    """Starts Debian's docker-registry with its files under `root`, on `port` or a free one.

    With `token` it lets in who has one, and nobody else. `program`: another build of it.
    """
    program = program or process.find_program("docker-registry", "docker-registry")
    root = root.resolve()
    root.mkdir(parents=True, exist_ok=True)
    config = root / "registry.yaml"
    auth = {} if token is None else {"auth": {"token": _token_configuration(root, token)}}

    def attempt(chosen: int) -> RegistryServer:
        # JSON is YAML; the registry reads it as it is.
        wanted = {**_registry_configuration(root / "data", chosen), **auth}
        config.write_text(json.dumps(wanted, indent=1))
        service = process.start("registry", [program, "serve", str(config)], root)
        _ready_or_end(service, chosen, _registry_answers)
        return RegistryServer(service, f"{LOOPBACK}:{chosen}", root / "data")

    return _on_free_port(attempt, port)


def start_sshd(
    root: Path, authorized_key: str, port: int | None = None, tunnels: bool = False
) -> SshServer:
    """Starts an OpenSSH server that lets in the holder of `authorized_key`, a public key line.

    With `tunnels` it leads on to ports of this host's loopback.
    """
    program = process.find_program("sshd", "openssh-server")
    root = root.resolve()
    root.mkdir(parents=True, exist_ok=True)
    host_key = _host_key(root)
    authorized = root / "authorized_keys"
    authorized.write_text(authorized_key.strip() + "\n")
    if os.geteuid() == 0:
        # sshd will not start without the empty folder it drops its privileges into.
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    config = root / "sshd_config"

    def attempt(chosen: int) -> SshServer:
        config.write_text(_sshd_configuration(chosen, host_key, authorized, tunnels))
        service = process.start("sshd", [program, "-D", "-e", "-f", str(config)], root)
        _ready_or_end(service, chosen, _ssh_answers)
        public = " ".join(host_key.with_suffix(".pub").read_text().split()[:2])
        known = f"[{LOOPBACK}]:{chosen} {public}"
        return SshServer(service, LOOPBACK, chosen, getpass.getuser(), known)

    return _on_free_port(attempt, port)


def stop_leftovers(root: Path) -> None:
    """Ends whatever services an earlier run left under `root`, and only those."""
    for name in ("registry", "sshd", "vault"):
        process.end_leftover(name, root.resolve())
    stop_dockerd_leftover(root)


def _on_free_port(attempt: Callable[[int], T], port: int | None) -> T:
    """Another process may take a free port before the service does: then the next is tried."""
    for _ in range(ATTEMPTS_MAX - 1):
        try:
            return attempt(port or free_port())
        except Refused as error:
            if port is not None or "address already in use" not in error.message.lower():
                raise
    return attempt(port or free_port())


def _ready_or_end(service: process.Service, port: int, answers: Callable[[int], bool]) -> None:
    pid = service.identity.pid
    try:
        process.wait_ready(
            service, lambda: process.listens(pid, port) and answers(port), READY_TIMEOUT_S
        )
    except BaseException:
        service.stop()
        raise


def _registry_configuration(data: Path, port: int) -> dict[str, object]:
    return {
        "version": "0.1",
        "log": {"level": "warn", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": str(data)}, "delete": {"enabled": True}},
        "http": {"addr": f"{LOOPBACK}:{port}"},
    }


def _token_configuration(root: Path, token: TokenAuth) -> dict[str, str]:
    is_set = token.keys.lstrip().startswith("{")
    place = root / ("tokens.json" if is_set else "tokens.pem")
    place.write_text(token.keys)
    return {
        "realm": token.realm,
        "service": token.service,
        "issuer": token.issuer,
        "jwks" if is_set else "rootcertbundle": str(place),
    }


def _registry_answers(port: int) -> bool:
    try:
        url = f"http://{LOOPBACK}:{port}/v2/"
        answer = httpx.get(url, timeout=ASK_TIMEOUT_S, trust_env=False)
        return answer.status_code in (200, 401)
    except httpx.TransportError:
        return False


def _ssh_answers(port: int) -> bool:
    try:
        with socket.create_connection((LOOPBACK, port), timeout=ASK_TIMEOUT_S) as connection:
            return connection.recv(4) == b"SSH-"
    except OSError:
        return False


def _host_key(root: Path) -> Path:
    key = root / "host_key"
    if not key.exists():
        keygen = process.find_program("ssh-keygen", "openssh-client")
        process.run([keygen, "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(key)])
    return key


def _sshd_configuration(port: int, host_key: Path, authorized: Path, tunnels: bool) -> str:
    lines = (
        f"Port {port}",
        f"ListenAddress {LOOPBACK}",
        f'HostKey "{host_key}"',
        "PidFile none",
        f'AuthorizedKeysFile "{authorized}"',
        f"AllowUsers {getpass.getuser()}",
        "StrictModes no",
        "UsePAM no",
        "PasswordAuthentication no",
        "KbdInteractiveAuthentication no",
        "PermitRootLogin prohibit-password",
        f"AllowTcpForwarding {'local' if tunnels else 'no'}",
        f"PermitOpen {LOOPBACK}:*",
        "X11Forwarding no",
        "PrintMotd no",
        "LogLevel ERROR",
    )
    return "\n".join(lines) + "\n"
