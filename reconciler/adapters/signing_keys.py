"""The key that somebody signs commits with: from a file, or as the local Git is set up.

Rules: only public halves are read, and no passphrase is asked for. An OpenPGP key is looked at by
the gpg of this host, in a home of its own where it comes from a file.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from reconciler.adapters.git_local import LocalGit
from reconciler.core.authority.public_key import ARMOR, PublicKey, ssh_public_key
from reconciler.errors import Refused, Transient

_FILE_BYTES_MAX = 64 * 1024
_TIMEOUT_S = 30.0
_NOT_SET = "git config user.signingKey FILE.pub, and git config gpg.format ssh"


def read_public_key(path: Path) -> PublicKey:
    """An OpenSSH public key, or an armored OpenPGP one; Refused for anything else.

    The name of an OpenSSH private key stands for the public half beside it.
    """
    text = _text(path)
    if "PRIVATE KEY" in text[:100]:
        beside = path.with_name(path.name + ".pub")
        if not beside.is_file():
            hint = f"ssh-keygen -y -f {path} > {beside} writes the public half; then name that"
            raise Refused("key_private", "this is a private key", where=str(path), hint=hint)
        text = _text(beside)
    if ARMOR in text:
        return _from_armor(text[text.index(ARMOR) :].replace("\r\n", "\n").rstrip() + "\n", path)
    found = ssh_public_key(text)
    if found is None:
        hint = "an OpenSSH public key (id_ed25519.pub), or gpg --armor --export ADDRESS > FILE"
        raise Refused("key_unreadable", "no public key is in there", where=str(path), hint=hint)
    return found


def local_signing_key(folder: Path) -> PublicKey:
    """The key that a commit made in this repository would be signed with.

    Refused where Git is not told which, or with one that we don't read.
    """
    git = LocalGit(folder)
    kind = git.run("config", "--default=openpgp", "gpg.format").strip()
    name = git.run("config", "--default=", "user.signingKey").strip()
    if kind not in ("ssh", "openpgp"):
        message = f"gpg.format is {kind[:40]}, which is not read here"
        raise Refused("key_unsupported", message, hint="sign with ssh or openpgp")
    if not name:
        raise Refused("key_not_set", "Git is not told which key to sign with", hint=_NOT_SET)
    if kind == "openpgp":
        return _from_keyring(name)
    literal = ssh_public_key(name.removeprefix("key::"))
    if literal is not None:
        return literal
    return read_public_key(Path(name).expanduser())


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(_FILE_BYTES_MAX).decode("utf-8", "replace")
    except OSError as error:
        raise Refused("key_unreadable", f"{error.strerror}", where=str(path)) from None


# --- OpenPGP -------------------------------------------------------------------------------------


def _from_armor(armor: str, path: Path) -> PublicKey:
    with tempfile.TemporaryDirectory(prefix="gpuaas-gpg-") as home:
        shown = _gpg("--homedir", home, "--show-keys", given=armor)
    return PublicKey("openpgp", armor, _primary(shown, str(path)))


def _from_keyring(name: str) -> PublicKey:
    shown = _gpg("--list-keys", "--", name)
    fingerprint = _primary(shown, f"user.signingKey {name[:80]}")
    armor = _gpg("--armor", "--export", "--", fingerprint)
    return PublicKey("openpgp", armor, fingerprint)


def _primary(shown: str, where: str) -> str:
    """The fingerprint of the one primary key that gpg listed."""
    found: list[str] = []
    last = ""
    for line in shown.splitlines():
        fields = line.split(":")
        if fields[0] == "fpr" and last in ("pub", "sec"):
            found.append(fields[9].upper())
        last = fields[0]
    if len(found) != 1:
        message = f"it holds {len(found)} OpenPGP keys, where one is wanted"
        hint = "gpg --armor --export FINGERPRINT > FILE picks one"
        raise Refused("key_unreadable", message, where=where, hint=hint)
    return found[0]


def _gpg(*args: str, given: str = "") -> str:
    command: Sequence[str] = ("gpg", "--batch", "--no-tty", "--with-colons", *args)
    try:
        done = subprocess.run(
            command, input=given.encode(), capture_output=True, timeout=_TIMEOUT_S, check=False
        )
    except FileNotFoundError:
        hint = "install GnuPG, or sign with an SSH key"
        raise Refused("gpg_missing", "there is no gpg on this host", hint=hint) from None
    except subprocess.TimeoutExpired:
        raise Transient("gpg_timeout", f"gpg did not end after {_TIMEOUT_S:g} s") from None
    if done.returncode != 0:
        said = " ".join(done.stderr.decode("utf-8", "replace").split())[:300]
        raise Refused("key_unreadable", said or "gpg can't read it", where="gpg")
    return done.stdout.decode("utf-8", "replace")
