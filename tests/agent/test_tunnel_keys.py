"""Keys for tunnels as a real sshd understands them."""

from __future__ import annotations

import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from node_agent.membership import SshKey
from reconciler.devkit.services import LOOPBACK, SshServer, free_port, start_sshd
from tests.agent.homes import Homes
from tests.services.sshd import new_key
from tests.waiting import wait_until

WORDS = b"from the instance\n"


@dataclass(frozen=True)
class Host:
    """A server whose AuthorizedKeysFile is the one that the agent converges. `served` is the port
    of an instance, `other` that of something else; both say WORDS to whoever comes.
    """

    homes: Homes
    server: SshServer
    folder: Path
    served: int
    other: int

    def lets_in(self, *names: tuple[str, int]) -> None:
        """These keys, of this version, and no others of ours."""
        keys = [
            SshKey(
                user="tunnel",
                id=f"acme/lab/{version}",
                public_key=" ".join(self.public(name).split()[:2]),
                permit_open=(f"{LOOPBACK}:{self.served}",),
            )
            for name, version in names
        ]
        assert self.homes.converge(*keys).error == ""

    def public(self, name: str) -> str:
        key = self.folder / name
        return key.with_suffix(".pub").read_text() if key.exists() else new_key(key)

    def ssh(self, name: str, *arguments: str) -> list[str]:
        known = self.folder / "known_hosts"
        known.write_text(self.server.known_hosts + "\n")
        options = {
            "BatchMode": "yes",
            "IdentitiesOnly": "yes",
            "UserKnownHostsFile": known,
            "ExitOnForwardFailure": "yes",
            "LogLevel": "ERROR",
        }
        given = [word for option, value in options.items() for word in ("-o", f"{option}={value}")]
        given += ["-i", str(self.folder / name), "-p", str(self.server.port)]
        return ["ssh", "-F", "none", *given, *arguments, f"{self.server.user}@{self.server.host}"]

    def said(self, name: str, to: int) -> bytes:
        """What who has this key hears through a tunnel to that port; nothing where it is shut."""
        here = free_port()
        tunnel = self.ssh(name, "-N", "-L", f"{LOOPBACK}:{here}:{LOOPBACK}:{to}")
        client = subprocess.Popen(tunnel, stderr=subprocess.PIPE)
        try:
            found: list[bytes] = []

            def heard() -> bool:
                if client.poll() is not None:
                    return True
                try:
                    with socket.create_connection((LOOPBACK, here), timeout=10) as connection:
                        found.append(connection.makefile("rb").read())
                except ConnectionRefusedError:
                    return False
                except ConnectionResetError:
                    found.append(b"")
                return True

            wait_until(heard)
            return b"".join(found)
        finally:
            # SIGTERM right before it waits for the server is lost on it until it next wakes up,
            # for which Debian's gives itself 300 s.
            client.kill()
            client.communicate()

    def run(self, name: str, *command: str) -> subprocess.CompletedProcess[str]:
        full = [*self.ssh(name), *command]
        return subprocess.run(full, capture_output=True, text=True, timeout=60, check=False)


@contextmanager
def speaking() -> Iterator[int]:
    """A port that says WORDS to each who connects."""
    with closing(socket.create_server((LOOPBACK, 0))) as listener:

        def answer() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    connection.sendall(WORDS)

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    """Where an operator has a key of his own, that was there before."""
    homes, folder = Homes(tmp_path), tmp_path / "clients"
    folder.mkdir()
    ssh = homes.home / ".ssh"
    ssh.mkdir(mode=0o700)
    with (
        speaking() as served,
        speaking() as other,
        start_sshd(ssh, new_key(folder / "operator"), tunnels=True) as server,
    ):
        homes.give(ssh)
        homes.give(homes.file)
        yield Host(homes, server, folder, served, other)


def test_a_key_opens_its_tunnel_and_nothing_else(host: Host) -> None:
    assert host.said("operator", host.served) == WORDS
    host.lets_in(("lab", 1))
    assert host.said("lab", host.served) == WORDS
    assert host.said("lab", host.other) == b""
    ran = host.run("lab", "id")
    assert (ran.returncode, ran.stdout) == (1, "")
    assert "this key opens tunnels and nothing else, use ssh -N" in ran.stderr
    assert host.run("lab").returncode == 1, "no shell either"
    back = host.run("lab", "-N", "-R", f"{free_port()}:{LOOPBACK}:{host.other}")
    assert back.returncode != 0


def test_other_keys_go_on_and_a_rotated_one_stops(host: Host) -> None:
    host.lets_in(("lab", 1), ("newer", 2))
    assert [host.said(name, host.served) for name in ("lab", "newer")] == [WORDS, WORDS]
    host.lets_in(("newer", 2))
    assert [host.said(name, host.served) for name in ("lab", "newer")] == [b"", WORDS]
    assert host.said("operator", host.other) == WORDS
    assert host.run("operator", "echo", "still me").stdout == "still me\n"
    host.lets_in()
    assert [host.said(name, host.served) for name in ("newer", "operator")] == [b"", WORDS]
