"""Keys that sign commits, for the demo, benches and tests; the product itself never signs one.

Rules: a key lies where it is told to, has no passphrase, and ends with its folder. Git signs with
it by the options of one command, so nobody's own configuration or keyring is touched.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from reconciler.errors import Refused

_SSH_OPTIONS: Mapping[str, Sequence[str]] = {
    "ed25519": ("-t", "ed25519"),
    "rsa": ("-t", "rsa", "-b", "3072"),
    "ecdsa": ("-t", "ecdsa", "-b", "256"),
}


@dataclass(frozen=True)
class SigningKey:
    """`public_line` is what a manifest holds: an OpenSSH line, or an armored OpenPGP block.

    `fingerprint` is `SHA256:...`, or that of the OpenPGP primary key. `private` is the key's file,
    or the folder of gpg.
    """

    type: Literal["ssh", "openpgp"]
    public_line: str
    fingerprint: str
    private: Path

    @classmethod
    def ssh(cls, folder: Path, name: str, kind: str = "ed25519") -> SigningKey:
        """Makes one: ed25519, rsa or ecdsa."""
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / name
        _run(["ssh-keygen", "-q", *_SSH_OPTIONS[kind], "-N", "", "-C", name, "-f", str(file)])
        public = file.with_name(file.name + ".pub")
        fingerprint = _run(["ssh-keygen", "-l", "-f", str(public)]).split()[1]
        return cls("ssh", public.read_text().strip(), fingerprint, file)

    @classmethod
    def openpgp(
        cls, folder: Path, name: str, email: str, *, kind: str = "ed25519", subkey: str = ""
    ) -> SigningKey:
        """Makes one; with `subkey` (`rsa3072`) the primary key only certifies, and that one signs.

        `close` ends the agent that gpg starts for it.
        """
        home = folder / name
        home.mkdir(parents=True, mode=0o700)
        usage = "cert" if subkey else "sign"
        gpg = [*_gpg(home), "--passphrase", ""]
        _run([*gpg, "--quick-generate-key", f"{name} <{email}>", kind, usage, "0"])
        listed = _run([*gpg, "--with-colons", "--list-keys"])
        fingerprint = re.findall(r"^fpr:+([0-9A-F]+):", listed, re.MULTILINE)[0]
        if subkey:
            _run([*gpg, "--quick-add-key", fingerprint, subkey, "sign", "0"])
        armored = _run([*gpg, "--armor", "--export", fingerprint])
        # Without it, gpg could not tell a folder of its own from one with another program's path.
        program = home / "gpg"
        program.write_text(f'#!/bin/sh\nexec {shlex.join(_gpg(home))} "$@"\n')
        program.chmod(0o700)
        return cls("openpgp", armored, fingerprint, home)

    def identity_key(self, key_id: str) -> dict[str, str]:
        """An entry of `keys` in an Identity's manifest."""
        entry = {"id": key_id, "type": self.type, "public_key": self.public_line}
        return entry | ({"fingerprint": self.fingerprint} if self.type == "openpgp" else {})

    def close(self) -> None:
        """Ends what runs for the key; it can be used again."""
        if self.type == "openpgp":
            _run(["gpgconf", "--homedir", str(self.private), "--kill", "all"])


def git_config(key: SigningKey) -> list[str]:
    """Options of git, before its command: whatever that commits, it signs with this key."""
    config = {"gpg.format": key.type, "commit.gpgSign": "true"}
    if key.type == "ssh":
        config |= {"gpg.ssh.program": "ssh-keygen", "user.signingKey": str(key.private)}
    else:
        program = str(key.private / "gpg")
        config |= {"gpg.openpgp.program": program, "user.signingKey": key.fingerprint}
    return [word for name, value in config.items() for word in ("-c", f"{name}={value}")]


def _gpg(home: Path) -> list[str]:
    return ["gpg", "--homedir", str(home), "--batch", "--quiet", "--no-tty"]


def _run(command: Sequence[str]) -> str:
    environment = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"}
    try:
        done = subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
    except FileNotFoundError:
        raise Refused("signing_failed", f"there is no {command[0]} here") from None
    if done.returncode != 0:
        raise Refused("signing_failed", done.stderr.strip(), where=command[0])
    return done.stdout
