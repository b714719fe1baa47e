"""Homes of users that this host does not have: nobody's where the tests are root, else our own."""

from __future__ import annotations

import base64
import os
from dataclasses import dataclass, field
from pathlib import Path

from node_agent.authorized_keys import AuthorizedKeys, Installed, User
from node_agent.membership import SshKey

NOT_ROOT = os.geteuid() or 65534


def public_key(number: int) -> str:
    """An OpenSSH line that is well-formed."""
    blob = b"\0\0\0\x0bssh-ed25519\0\0\0\x20" + bytes([number]) * 32
    return "ssh-ed25519 " + base64.b64encode(blob).decode()


def a_key(project: str = "acme/lab", version: int = 1, *opens: str, user: str = "tunnel") -> SshKey:
    return SshKey(
        user=user,
        id=f"{project}/{version}",
        public_key=public_key(version),
        permit_open=opens or ("127.0.0.1:8080",),
    )


@dataclass
class Homes:
    """A host with one user, `tunnel`, and whoever else is put into `users`."""

    folder: Path
    users: dict[str, User] = field(default_factory=dict)
    sockets: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        self.home = self.add("tunnel")

    def add(self, name: str) -> Path:
        home = self.folder / "home" / name
        home.mkdir(parents=True)
        self.give(home)
        self.users[name] = User(name, NOT_ROOT, home, frozenset({4711}))
        return home

    def give(self, path: Path, uid: int = NOT_ROOT) -> Path:
        """To a user; whoever is not root gives nothing away."""
        if os.geteuid() == 0:
            os.chown(path, uid, -1, follow_symlinks=False)
        return path

    @property
    def file(self) -> Path:
        return self.home / ".ssh" / "authorized_keys"

    @property
    def memory(self) -> Path:
        return self.folder / "ssh-users.json"

    def holds(self, content: bytes, mode: int = 0o600) -> None:
        """The user's own file."""
        self.file.parent.mkdir(mode=0o700, exist_ok=True)
        self.give(self.file.parent)
        self.file.write_bytes(content)
        self.file.chmod(mode)
        self.give(self.file)

    def converge(self, *keys: SshKey) -> Installed:
        """As an agent does that has just started."""
        return AuthorizedKeys(self.memory, self.users.get, self.sockets).converge(keys)
