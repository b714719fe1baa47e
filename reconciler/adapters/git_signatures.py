"""What Git says of the signatures of commits: its own verification, in a room of its own.

Rules: Git gets a fresh folder for a repository, with the objects of the real one and nothing else
of it, so no configuration, graft, replacement or hook of anybody's has a say. gpg gets a fresh
keyring with just the keys that are given; no agent is started, nothing is looked up. Every run has
a deadline, and what is printed is read strictly. Whose key it is, and whether it is trusted, is
decided elsewhere: no SSH key is listed as allowed here, and any that fits is good.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import signal
import stat
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from reconciler.adapters.git_failures import shorten
from reconciler.adapters.git_raw import Armor
from reconciler.core.authority.facts import Signature
from reconciler.core.names import Revision
from reconciler.errors import Refused, Transient

_log = logging.getLogger(__name__)

_PROCESSES_MAX = 4
_BATCH_COMMITS_MAX = 64
_RUN_TIMEOUT_S = 60.0
_KEYS_MAX = 2000
_KEYS_BYTES_MAX = 64 * 1024 * 1024
_IMPORTS_MAX = 100
_MEMORY_BYTES_MAX = 64 * 1024 * 1024

_FIELDS = ("%H", "%G?", "%GF", "%GP", "%GK", "%GG")
_SSH_KEY = re.compile(r"SHA256:[+/0-9A-Za-z]{43}")
_OPENPGP_KEY = re.compile(r"[0-9A-F]{40}|[0-9A-F]{64}")
_KEY_ID = re.compile(r"[0-9A-F]{16,64}")
_PACKAGES = {"ssh-keygen": "openssh-client", "gpg": "gpg"}
_PROGRAMS: dict[Armor, str] = {"ssh": "ssh-keygen", "openpgp": "gpg"}
# Without trust-model gpg would want a trust database; without the rest, programs and the network.
_GPG_CONF = """batch
no-tty
no-autostart
no-auto-key-retrieve
no-auto-key-locate
disable-dirmngr
trust-model always
lock-never
"""
_DOES_NOT_FIT = "it does not fit the commit"
_OPENPGP_BAD = {
    "B": _DOES_NOT_FIT,
    "X": "the signature has expired",
    "Y": "the OpenPGP key has expired",
    "R": "the OpenPGP key is revoked",
}
_LINE = re.compile(
    r"([0-9a-f]{40}) (?:bad|good (SHA256:[+/0-9A-Za-z]{43}|[0-9A-F]{40}|[0-9A-F]{64}))"
)


@dataclass(frozen=True)
class Verified:
    """`lasts`: it would be the same at any time and with any keys given."""

    signature: Signature
    lasts: bool


def verify(
    objects: Path, armors: Mapping[Revision, Armor], openpgp_keys: Sequence[str]
) -> dict[Revision, Verified]:
    """What `git log` says of each commit in the object folder.

    Refused("signature_program_missing"), ("too_many_openpgp_keys"); Transient when Git fails or
    takes too long.
    """
    if not armors:
        return {}
    programs = {armor: _program(_PROGRAMS[armor]) for armor in sorted(set(armors.values()))}
    with _room(objects, programs) as room:
        if "openpgp" in programs:
            room.take_in(openpgp_keys)
        revisions = list(armors)
        processes = min(_PROCESSES_MAX, os.cpu_count() or 1)
        size = max(1, min(_BATCH_COMMITS_MAX, -(-len(revisions) // processes)))
        batches = [revisions[at : at + size] for at in range(0, len(revisions), size)]
        with ThreadPoolExecutor(processes) as pool:
            said = {one: row for rows in pool.map(room.ask, batches) for one, row in rows.items()}
    return {revision: _meaning(armors[revision], said[revision]) for revision in revisions}


@dataclass(frozen=True)
class _Said:
    """What Git printed of one commit."""

    state: str
    fingerprint: str
    primary: str
    key_id: str
    output: str


# ssh-keygen reads no further when it can't make sense of a signature, and a Git that still has
# much of the commit to tell it is ended by that.
_NOT_READ = _Said("P", "", "", "", "")


@dataclass(frozen=True)
class _Room:
    folder: Path
    environment: Mapping[str, str]
    options: Sequence[str]

    def take_in(self, openpgp_keys: Sequence[str]) -> None:
        """Imports keys, each from a file of its own: none is part of what is wrong with another.

        Where gpg doesn't come to an end, the one that stops it is looked for by halves. Who signed
        with a key that is left out would be a stranger, so at some point nothing is said at all.
        """
        keys = [key.strip() + "\n" for key in dict.fromkeys(openpgp_keys)]
        if len(keys) > _KEYS_MAX or sum(map(len, keys)) > _KEYS_BYTES_MAX:
            raise _too_many_keys(
                f"more than {_KEYS_MAX} keys, or {_KEYS_BYTES_MAX} bytes of them, are to be read"
            )
        names = [f"tmp/{number}.asc" for number in range(len(keys))]
        for name, key in zip(names, keys, strict=True):
            (self.folder / name).write_text(key, encoding="utf-8", errors="replace")
        runs, parts = 0, [names] if names else []
        while parts:
            part = parts.pop()
            runs += 1
            if runs > _IMPORTS_MAX:
                raise _too_many_keys("gpg fails at too many of the keys")
            if not self._import(part) and len(part) > 1:
                half = len(part) // 2
                parts += [part[half:], part[:half]]

    def ask(self, revisions: Sequence[Revision]) -> dict[Revision, _Said]:
        """By revision. Where Git fails, each is asked for alone, to learn whose fault it is."""
        form = "tformat:" + "%x00".join(_FIELDS)
        command = [
            _program("git"), *self.options, "log", "-z", "--no-walk=unsorted", "--no-color",
            f"--format={form}", "--stdin",
        ]  # fmt: skip
        given = "".join(f"{revision}\n" for revision in revisions).encode()
        code, output, errors = _run(command, given, self.environment, self.folder)
        values = output.decode("utf-8", "replace").split("\0")
        width = len(_FIELDS)
        rows = [values[at : at + width] for at in range(0, len(values) - 1, width)]
        if code != 0 or [row[0] for row in rows] != [*revisions] or len(rows[-1]) != width:
            if len(revisions) > 1:
                return {one: said for each in revisions for one, said in self.ask([each]).items()}
            if code == -signal.SIGPIPE:
                return {revisions[0]: _NOT_READ}
            raise _failed(shorten(errors.decode("utf-8", "replace")))
        return {Revision(row[0]): _Said(*row[1:]) for row in rows}

    def _import(self, names: Sequence[str]) -> bool:
        """Whether gpg looked at all of them, whatever it made of each."""
        command = [_program("gpg"), "--status-fd=1", "--import", *names]
        output = _run(command, b"", self.environment, self.folder)[1]
        return b"[GNUPG:] IMPORT_RES " in output


@contextmanager
def _room(objects: Path, programs: Mapping[Armor, str]) -> Iterator[_Room]:
    with tempfile.TemporaryDirectory(prefix="gpuaas-verify-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        for part in ("refs", "objects", "gnupg", "tmp"):
            (folder / part).mkdir(mode=0o700)
        (folder / "HEAD").write_text("ref: refs/heads/none\n")
        (folder / "allowed_signers").touch()
        (folder / "gnupg" / "gpg.conf").write_text(_GPG_CONF)
        config = {
            "core.commitGraph": "false",
            "gpg.minTrustLevel": "undefined",
            "gpg.ssh.allowedSignersFile": str(folder / "allowed_signers"),
            "gpg.ssh.program": programs.get("ssh", "false"),
            "gpg.openpgp.program": programs.get("openpgp", "false"),
            "gpg.x509.program": "false",
        }
        options = ["--no-pager"]
        for key, value in config.items():
            options += ["-c", f"{key}={value}"]
        yield _Room(folder, _environment(folder, objects.resolve()), options)


def _environment(folder: Path, objects: Path) -> dict[str, str]:
    return {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": str(folder),
        "XDG_CONFIG_HOME": str(folder),
        "GNUPGHOME": str(folder / "gnupg"),
        "TMPDIR": str(folder / "tmp"),
        "LC_ALL": "C",
        "GIT_DIR": str(folder),
        "GIT_OBJECT_DIRECTORY": str(objects),
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "GIT_NO_REPLACE_OBJECTS": "1",
        "GIT_NO_LAZY_FETCH": "1",
        "GIT_TERMINAL_PROMPT": "0",
    }


def _run(
    command: Sequence[str], given: bytes, environment: Mapping[str, str], folder: Path
) -> tuple[int, bytes, bytes]:
    with subprocess.Popen(
        command, env=dict(environment), cwd=folder, start_new_session=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        try:
            output, errors = process.communicate(given, _RUN_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            raise _failed(f"no end after {_RUN_TIMEOUT_S:g} s") from None
        finally:
            if process.poll() is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, output, errors


def _meaning(armor: Armor, said: _Said) -> Verified:
    return _ssh_meaning(said) if armor == "ssh" else _openpgp_meaning(said)


def _ssh_meaning(said: _Said) -> Verified:
    if said.state in ("G", "U") and _SSH_KEY.fullmatch(said.fingerprint):
        return Verified(Signature("good", said.fingerprint), lasts=True)
    if said.state == "B" and said.output.strip():
        # ssh-keygen spoke: it was there, and did not like the signature.
        return Verified(Signature("bad", detail=_DOES_NOT_FIT), lasts=True)
    if said is _NOT_READ:
        return Verified(Signature("bad", detail="ssh-keygen can't read it"), lasts=False)
    raise _failed("ssh-keygen said nothing")


def _openpgp_meaning(said: _Said) -> Verified:
    if said.state in ("G", "U") and _OPENPGP_KEY.fullmatch(said.primary):
        return Verified(Signature("good", said.primary), lasts=True)
    if said.state in _OPENPGP_BAD:
        return Verified(Signature("bad", detail=_OPENPGP_BAD[said.state]), lasts=False)
    if said.state == "E" and "No public key" in said.output and _KEY_ID.fullmatch(said.key_id):
        return Verified(Signature("no_key", said.key_id), lasts=False)
    return Verified(Signature("unsupported", detail="gpg can't read it"), lasts=False)


def _program(name: str) -> str:
    found = shutil.which(name)
    if found is not None:
        return str(Path(found).absolute())
    if name == "git":
        raise Refused(
            "git_missing", "there is no git on this host", hint="install git 2.34 or newer"
        )
    raise Refused(
        "signature_program_missing",
        f"there is no {name} on this host, and commits are signed with it",
        hint=f"apt install {_PACKAGES[name]}",
    )


def _too_many_keys(said: str) -> Refused:
    return Refused(
        "too_many_openpgp_keys",
        said,
        hint="take them off the identities in a commit signed with SSH, or set trust_root to it",
    )


def _failed(said: str) -> Transient:
    return Transient("git_verify_failed", f"signatures could not be checked: {said}")


class SignatureMemory:
    """What was found good or bad, in memory and in a file of lines that is only added to.

    The file is believed as the mirror is, and only if nobody else may write it. What does not read
    as a line of ours is passed over. Where it can't be written, the memory ends with the process.
    """

    def __init__(self, file: Path | None) -> None:
        self._file = file
        self._known: dict[Revision, Signature] | None = None
        self._lock = threading.Lock()

    def known(self, revisions: Sequence[Revision]) -> dict[Revision, Signature]:
        with self._lock:
            if self._known is None:
                self._known = self._read()
            return {one: self._known[one] for one in revisions if one in self._known}

    def remember(self, found: Mapping[Revision, Verified]) -> None:
        """Each has to last, and none may be known yet."""
        new = {revision: verified.signature for revision, verified in found.items()}
        if not new:
            return
        with self._lock:
            self._known = self._read() if self._known is None else self._known
            self._known.update(new)
            lines = "".join(_line(revision, said) for revision, said in new.items())
            try:
                self._append(lines.encode())
            except OSError as error:
                _log.warning("signatures_not_kept: %s: %s", self._file, error.strerror)

    def _read(self) -> dict[Revision, Signature]:
        if self._file is None:
            return {}
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            descriptor = os.open(self._file, flags)
        except OSError:
            return {}
        if not _is_ours(os.fstat(descriptor)):
            os.close(descriptor)
            return {}
        with os.fdopen(descriptor, encoding="utf-8", errors="replace") as lines:
            found = (_LINE.fullmatch(line.removesuffix("\n")) for line in lines)
            return {Revision(one[1]): _remembered(one[2]) for one in found if one}

    def _append(self, lines: bytes) -> None:
        """In one write, so that processes do not mix theirs; a torn line before it stays alone."""
        if self._file is None:
            return
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        with suppress(FileNotFoundError):
            if not _is_ours(os.lstat(self._file)):
                self._file.unlink()
        descriptor = os.open(self._file, flags, 0o600)
        try:
            os.write(descriptor, b"\n" + lines)
        finally:
            os.close(descriptor)


def _is_ours(status: os.stat_result) -> bool:
    alone = status.st_uid == os.geteuid() and not status.st_mode & 0o077
    return stat.S_ISREG(status.st_mode) and alone and status.st_size <= _MEMORY_BYTES_MAX


def _line(revision: Revision, said: Signature) -> str:
    return f"{revision} {said.state} {said.key}".rstrip() + "\n"


def _remembered(key: str | None) -> Signature:
    return Signature("good", key) if key else Signature("bad", detail=_DOES_NOT_FIT)
