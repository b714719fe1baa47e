"""A real sshd on the loopback, and what a client needs to be let in (with spaces on purpose)."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from reconciler.devkit.services import SshServer, start_sshd


@dataclass(frozen=True)
class Sshd:
    """The server, the client's key and the known-hosts file that trusts the server."""

    server: SshServer
    client_key: Path
    known_hosts: Path

    def url(self, path: Path) -> str:
        return f"ssh://{self.server.user}@{self.server.host}:{self.server.port}{path}"


def new_key(path: Path) -> str:
    """Makes an ed25519 key pair; returns the public line."""
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", str(path)], check=True
    )
    return path.with_name(path.name + ".pub").read_text()


@contextmanager
def sshd(folder: Path, tunnels: bool = False) -> Iterator[Sshd]:
    """Runs until the block ends."""
    key = folder / "client key"
    with start_sshd(folder / "server", new_key(key), tunnels=tunnels) as server:
        known_hosts = folder / "known hosts"
        known_hosts.write_text(server.known_hosts + "\n")
        yield Sshd(server, key, known_hosts)
