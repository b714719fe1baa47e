"""A repository whose commits are signed, well or not, with keys of every sort."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from reconciler.adapters.git_chain import GitCommitLog
from reconciler.core.authority.facts import Signature
from reconciler.core.names import Revision
from reconciler.devkit.signing import SigningKey, git_config
from reconciler.settings import Settings
from tests.services.git_repo import GitRepo

SSH_KINDS = ("ed25519", "rsa", "ecdsa")
PAST = ("--faked-system-time", "20200101T000000!")


@dataclass
class Keys:
    by_name: Mapping[str, SigningKey]
    folder: Path

    def __getitem__(self, name: str) -> SigningKey:
        return self.by_name[name]

    @property
    def openpgp(self) -> list[str]:
        return [key.public_line for key in self.by_name.values() if key.type == "openpgp"]

    def sign_ssh(self, payload: bytes, name: str = "ed25519", namespace: str = "git") -> bytes:
        private = str(self[name].private)
        return output(["ssh-keygen", "-Y", "sign", "-n", namespace, "-f", private], payload)

    def sign_openpgp(self, payload: bytes, name: str = "openpgp", *options: str) -> bytes:
        gpg = ["gpg", "--homedir", str(self[name].private), "--batch", "--armor", *options]
        return output([*gpg, "--detach-sign"], payload)


def output(command: Sequence[str], given: bytes = b"") -> bytes:
    """What a program printed; it has to exit with 0."""
    return subprocess.run(command, input=given, capture_output=True, check=True).stdout


@contextmanager
def signing_keys(folder: Path) -> Iterator[Keys]:
    """One of each sort, and two OpenPGP keys past their use."""
    made = {kind: SigningKey.ssh(folder / "ssh", kind, kind) for kind in SSH_KINDS}
    made["openpgp"] = SigningKey.openpgp(folder, "openpgp", "ada@acme.example", kind="rsa3072")
    made["subkey"] = SigningKey.openpgp(folder, "subkey", "ben@acme.example", subkey="ed25519")
    made["expired"] = _expired(folder / "expired")
    made["revoked"] = _revoked(folder)
    yield Keys(made, folder)
    for key in made.values():
        key.close()


def _expired(home: Path) -> SigningKey:
    """A key that was good for a year from 2020 on."""
    home.mkdir(mode=0o700)
    gpg = ["gpg", "--homedir", str(home), "--batch", "--passphrase", ""]
    output([*gpg, *PAST, "--quick-generate-key", "old@acme.example", "ed25519", "sign", "1y"])
    listed = output([*gpg, "--with-colons", "--list-keys"]).decode()
    fingerprint = listed.partition("\nfpr:::::::::")[2].partition(":")[0]
    armored = output([*gpg, "--armor", "--export"]).decode()
    return SigningKey("openpgp", armored, fingerprint, home)


def _revoked(folder: Path) -> SigningKey:
    """A key that signs on, as it does not know that it was revoked; what is public says so."""
    key = SigningKey.openpgp(folder, "revoked", "eve@acme.example")
    other = folder / "revoking"
    other.mkdir(mode=0o700)
    gpg = ["gpg", "--homedir", str(other), "--batch", "--no-autostart"]
    made = (key.private / f"openpgp-revocs.d/{key.fingerprint}.rev").read_bytes()
    revocation = made.replace(b":-----BEGIN", b"-----BEGIN")
    for part in (key.public_line.encode(), revocation):
        output([*gpg, "--import"], part)
    return replace(key, public_line=output([*gpg, "--armor", "--export"]).decode())


class SignedRepo:
    """A repository, the keys, and ways to make commits that Git itself would not make."""

    def __init__(self, repo: GitRepo, keys: Keys) -> None:
        self.repo = repo
        self.keys = keys
        self.first = repo.commit({"a.yaml": "1"}, "first", "--no-gpg-sign")

    def commit(self, name: str, *options: str, message: str = "change") -> Revision:
        options = (*git_config(self.keys[name]), *options)
        self.repo.git(*options, "commit", "--quiet", "--allow-empty", "--message", message)
        return self.repo.head()

    def raw(self, revision: Revision) -> bytes:
        command = ["git", "-C", str(self.repo.folder), "cat-file", "commit", revision]
        return output(command)

    def write(self, raw: bytes) -> Revision:
        command = ("hash-object", "-t", "commit", "-w", "--literally", "--stdin")
        return Revision(self.repo.git(*command, given=raw).strip())

    def payload(self, message: bytes = b"by hand\n", header: bytes = b"") -> bytes:
        tree = self.repo.git("rev-parse", f"{self.first}^{{tree}}").strip()
        who = b"Ada <ada@acme.example> 1700000000 +0000\n"
        head = f"tree {tree}\nparent {self.first}\n".encode()
        return head + b"author " + who + b"committer " + who + header + b"\n" + message

    def with_signature(
        self, payload: bytes, signature: bytes, name: bytes = b"gpgsig"
    ) -> Revision:
        head, _, message = payload.partition(b"\n\n")
        value = signature.rstrip(b"\n").replace(b"\n", b"\n ")
        return self.write(head + b"\n" + name + b" " + value + b"\n\n" + message)

    def altered(self, name: str, old: bytes, new: bytes) -> Revision:
        raw = self.raw(self.commit(name, message="as it was"))
        assert old in raw
        return self.write(raw.replace(old, new))

    def of_another(self) -> Revision:
        """A commit with the signature of another one."""
        return self.with_signature(self.payload(b"two\n"), self.keys.sign_ssh(self.payload()))

    def git_agrees(self, revision: Revision) -> bool:
        """Whether `git verify-commit` says that it is well signed by anybody at all."""
        allowed, home = self.keys.folder / "allowed", self.keys.folder / "ring"
        environment = {
            "PATH": os.environ["PATH"], "HOME": str(home), "GNUPGHOME": str(home),
            "GIT_NO_REPLACE_OBJECTS": "1", "GIT_CONFIG_NOSYSTEM": "1",
        }  # fmt: skip
        if not home.exists():
            ssh_keys = [self.keys[kind].public_line for kind in SSH_KINDS]
            allowed.write_text("".join(f"* {line}\n" for line in ssh_keys))
            home.mkdir(mode=0o700)
            ring = "".join(self.keys.openpgp).encode()
            output(["gpg", "--homedir", str(home), "--batch", "--no-autostart", "--import"], ring)
        command = ["git", "-c", f"gpg.ssh.allowedSignersFile={allowed}", "verify-commit", revision]
        done = subprocess.run(
            command, cwd=self.repo.folder, env=environment, capture_output=True, check=False
        )
        return done.returncode == 0

    def log(self) -> GitCommitLog:
        return GitCommitLog(self.repo.folder / ".git", Settings())

    def signature(self, revision: Revision) -> Signature:
        return self.log().signatures([revision], self.keys.openpgp)[revision]


def programs(folder: Path, *names: str, **scripts: str) -> str:
    """A PATH with these programs of this host, and these scripts."""
    folder.mkdir()
    for name in names:
        found = output(["sh", "-c", f"command -v {name}"]).decode().strip()
        (folder / name).symlink_to(found)
    for name, text in scripts.items():
        place = folder / name.replace("_", "-")
        place.write_text(f"#!/bin/sh\n{text}\n")
        place.chmod(0o755)
    return str(folder)
