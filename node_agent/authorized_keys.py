"""Keys for tunnels in the authorized_keys of users of this host.

Rules:
- What is ours is one block of lines between two marker comments. Every other byte of a file stays
  as it is, and with the last key the file is as it was before us.
- Markers that are not as we wrote them are nobody's to guess about: the file is left alone, and it
  is said.
- No link is followed and no file touched that is not the user's (or root's) own; an agent that is
  root must not be led elsewhere by whoever owns the home. A user that is root, or may use the
  Docker Engine's socket, gets no key: a tunnel to that socket is root.
- A line can't keep its holder from Unix sockets, of which sshd alone knows: what it lets him do is
  said, and the key stays.
- In whose files we wrote is noted before we do, so that it can be taken back later. Nothing raises.
"""

from __future__ import annotations

import contextlib
import grp
import json
import os
import pwd
import re
import secrets
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from node_agent.membership import SshKey

FILE_BYTES_MAX = 1024 * 1024
USERS_MAX = 1000
BEGIN = b"# gpuaas tunnels: begin, written by gpuaas-agent, do not edit"
END = b"# gpuaas tunnels: end"
_MARK = b"# gpuaas tunnels:"
_UNENDED = b" (the line before had no end)"
_OURS = b" (so is the file)"
_BEGINS = (BEGIN, BEGIN + _UNENDED, BEGIN + _OURS)
_DOCKER_SOCKETS = (Path("/run/docker.sock"), Path("/var/run/docker.sock"))

_USER = re.compile(r"[a-z_][-a-z0-9_]{0,31}")
_ID = re.compile(r"[-a-z0-9]{1,63}/[-a-z0-9]{1,63}/[1-9][0-9]{0,8}")
_PUBLIC = re.compile(r"ssh-ed25519 [+/0-9A-Za-z]{68}")
_OPENING = re.compile(r"(?:[0-9]{1,3}(?:\.[0-9]{1,3}){3}|\[[0-9a-fA-F:.]{2,45}\]):[0-9]{1,5}")
_SAID = "echo gpuaas: this key opens tunnels and nothing else, use ssh -N >&2; exit 1"
"""What runs in place of any command or shell."""
_NO_LISTENING = "127.0.0.1:1"
"""Where a key may have the host listen: at a port that no user but root may open."""


@dataclass(frozen=True)
class User:
    """A user of this host: `groups` are the ids of all groups it is in."""

    name: str
    uid: int
    home: Path
    groups: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Installed:
    """The ids of the keys that are in force, sorted, and what is wrong, with them or the others."""

    ids: tuple[str, ...] = ()
    error: str = ""


class _Left(Exception):
    """A file is left as it is; says why."""


def find_user(name: str) -> User | None:
    """From the host's user database; None when there is no such user, or nobody can say."""
    try:
        found = pwd.getpwnam(name)
        groups = os.getgrouplist(name, found.pw_gid)
    except (KeyError, OSError):
        return None
    return User(name, found.pw_uid, Path(found.pw_dir), frozenset(groups))


class AuthorizedKeys:
    """`memory` is a file in the agent's own folder: the users in whose files a block is.
    `sshd_warning` says of a user what sshd lets a key do that should not; empty for nothing.

    For one thread at a time.
    """

    def __init__(
        self,
        memory: Path,
        find: Callable[[str], User | None] = find_user,
        docker_sockets: Sequence[Path] = _DOCKER_SOCKETS,
        sshd_warning: Callable[[str], str] = lambda _: "",
    ) -> None:
        self._memory = memory
        self._find = find
        self._docker_sockets = docker_sockets
        self._sshd_warning = sshd_warning

    def converge(self, keys: Sequence[SshKey]) -> Installed:
        """Has these keys in the files of their users, and none of ours anywhere else."""
        wrong: list[str] = []
        by_user: dict[str, list[SshKey]] = {}
        for key in keys:
            why = _unfit(key)
            if why:
                wrong.append(f"key {key.id[:200]!r}: {why}")
            else:
                by_user.setdefault(key.user, []).append(key)
        noted = self._noted(wrong)
        if {*by_user} - noted and not self._note(noted | {*by_user}, wrong):
            by_user = {name: keys for name, keys in by_user.items() if name in noted}
        ids: list[str] = []
        left = set(noted)
        for name in sorted(noted | {*by_user}):
            wanted = by_user.get(name, [])
            try:
                self._put(name, wanted)
            except _Left as why:
                wrong.append(f"user {name}: {why}")
                continue
            except OSError as error:
                wrong.append(f"user {name}: {error.strerror or type(error).__name__}")
                continue
            ids += (key.id for key in wanted)
            warning = self._sshd_warning(name) if wanted else ""
            wrong += [f"user {name}: {warning}"] if warning else []
            left -= set() if wanted else {name}
        self._forget(noted | {*by_user}, left | {*by_user}, wrong)
        return Installed(tuple(sorted(ids)), "; ".join(wrong))

    def _put(self, name: str, keys: Sequence[SshKey]) -> None:
        user = self._find(name)
        if user is None:
            if keys:
                raise _Left("there is no such user on this host")
            return
        if keys:
            try:
                self._refuse_mighty(user)
            except _Left:
                # What was let in before must not stay.
                with contextlib.suppress(_Left, OSError):
                    self._write(user, [])
                raise
        self._write(user, keys)

    def _write(self, user: User, keys: Sequence[SshKey]) -> None:
        lines = [line_of(key).encode() for key in sorted(keys, key=lambda key: key.id)]
        with _folder(user, make=bool(lines)) as folder:
            if folder is not None:
                _rewrite(folder, user, lines)

    def _refuse_mighty(self, user: User) -> None:
        if user.uid == 0:
            raise _Left("a tunnel never ends at root: name another user in ssh_user")
        if os.geteuid() not in (0, user.uid):
            raise _Left("an agent that is not root writes for its own user alone")
        for place in self._docker_sockets:
            with contextlib.suppress(FileNotFoundError):
                if _may_write(user, os.stat(place)):
                    group = _group_name(os.stat(place).st_gid)
                    raise _Left(
                        f"it may use {place} (group {group}), and a tunnel there is root: name a "
                        "user in ssh_user that is in no such group"
                    )

    # --- who has a block -------------------------------------------------------------------------

    def _noted(self, wrong: list[str]) -> frozenset[str]:
        try:
            found = json.loads(self._memory.read_text())
            return frozenset(name for name in found[:USERS_MAX] if _USER.fullmatch(name))
        except FileNotFoundError:
            return frozenset()
        except (OSError, ValueError, TypeError):
            wrong.append("the note of whose files have keys of ours can't be read")
            return frozenset()

    def _note(self, users: Iterable[str], wrong: list[str]) -> bool:
        temporary = self._memory.with_suffix(".tmp")
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
            with os.fdopen(os.open(temporary, flags, 0o600), "w") as file:
                json.dump(sorted(users), file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self._memory)
        except OSError as error:
            wrong.append(f"whose files have keys of ours can't be noted: {error.strerror}")
            return False
        return True

    def _forget(self, before: Iterable[str], users: Iterable[str], wrong: list[str]) -> None:
        if {*before} != {*users}:
            self._note(users, wrong)


# --- what a key looks like -----------------------------------------------------------------------


def line_of(key: SshKey) -> str:
    """Its line. Whoever holds it may open these tunnels: no shell, no command, no port back."""
    # `restrict` alone leaves commands; with no port named, `port-forwarding` would open them all.
    may = ["restrict", f'command="{_SAID}"']
    if key.permit_open:
        may += ["port-forwarding", f'permitlisten="{_NO_LISTENING}"']
        may += (f'permitopen="{opening}"' for opening in sorted(key.permit_open))
    return f"{','.join(may)} {key.public_key} gpuaas:{key.id}"


def _unfit(key: SshKey) -> str:
    """Why no line is written for it; empty for one that is well-formed."""
    if not _USER.fullmatch(key.user):
        return "its user is no name of a user"
    if not _ID.fullmatch(key.id):
        return "its id is none"
    if not _PUBLIC.fullmatch(key.public_key):
        return "its public key is no ed25519 key"
    if not all(_OPENING.fullmatch(opening) for opening in key.permit_open):
        return "what it opens is no address and port"
    return ""


# --- what a file looks like ----------------------------------------------------------------------


def rewritten(content: bytes | None, lines: Sequence[bytes]) -> bytes | None:
    """What a file should hold, None for no file at all. ValueError when its markers are broken."""
    if content is None:
        return _block(BEGIN + _OURS, lines) if lines else None
    found = _split(content)
    if found is None:
        if not lines:
            return content
        unended = content and not content.endswith(b"\n")
        glue = b"\n" if unended else b""
        return content + glue + _block(BEGIN + _UNENDED if unended else BEGIN, lines)
    before, begin, after = found
    if lines:
        return before + _block(begin, lines) + after
    if begin == BEGIN + _UNENDED and not after:
        return before.removesuffix(b"\n")
    return None if begin == BEGIN + _OURS and not before and not after else before + after


def _block(begin: bytes, lines: Sequence[bytes]) -> bytes:
    return b"\n".join((begin, *lines, END, b""))


def _split(content: bytes) -> tuple[bytes, bytes, bytes] | None:
    """What is before our block, its first line, and what is after; None when there is none."""
    # Whatever looks like a marker has to be one: also indented, with a line end of another system,
    # or with something behind it.
    if _MARK not in content:
        return None
    # Lines as sshd reads them: a carriage return ends none.
    rows = re.findall(rb"[^\n]*\n|[^\n]+", content)
    marked = [number for number, row in enumerate(rows) if _MARK in row]
    if len(marked) != 2:
        raise ValueError(f"{len(marked)} marker lines of ours, and there should be two")
    first, last = rows[marked[0]], rows[marked[1]]
    if first.removesuffix(b"\n") not in _BEGINS or last.removesuffix(b"\n") != END:
        raise ValueError("a marker line of ours was changed")
    after = b"".join(rows[marked[1] + 1 :])
    return b"".join(rows[: marked[0]]), first.removesuffix(b"\n"), after


# --- where it lies -------------------------------------------------------------------------------

_FOLDER, _FILE = ".ssh", "authorized_keys"
_OPEN_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


@contextlib.contextmanager
def _folder(user: User, *, make: bool) -> Iterator[int | None]:
    """The user's .ssh, open; None when there is none and none is to be made."""
    with _opened(os.open(user.home, _OPEN_FOLDER)) as home:
        if os.fstat(home).st_uid != user.uid:
            raise _Left("its home belongs to somebody else")
        try:
            folder = os.open(_FOLDER, _OPEN_FOLDER | os.O_NOFOLLOW, dir_fd=home)
        except FileNotFoundError:
            if not make:
                yield None
                return
            folder = _make_folder(user, home)
        except NotADirectoryError:
            raise _Left("its .ssh is a link, or no folder") from None
        with _opened(folder):
            _refuse_foreign(user, os.fstat(folder), "its .ssh")
            yield folder


def _make_folder(user: User, home: int) -> int:
    os.mkdir(_FOLDER, 0o700, dir_fd=home)
    folder = os.open(_FOLDER, _OPEN_FOLDER | os.O_NOFOLLOW, dir_fd=home)
    try:
        # Who owns the home may have put another folder there by now: one that is not empty, or not
        # ours, is not given away.
        if os.fstat(folder).st_uid != user.uid:
            if os.fstat(folder).st_uid != os.geteuid() or os.listdir(folder):
                raise _Left("its .ssh was changed while it was made")
            os.fchown(folder, user.uid, -1)
        os.fchmod(folder, 0o700)
    except BaseException:
        os.close(folder)
        raise
    return folder


def _rewrite(folder: int, user: User, lines: Sequence[bytes]) -> None:
    """Makes the file what it should be, in one step, with the owner and mode that it has."""
    found = _read(folder, user)
    content, owner = found if found is not None else (None, None)
    try:
        wanted = rewritten(content, lines)
    except ValueError as why:
        raise _Left(f"its authorized_keys is left as it is: {why}; mend or remove them") from None
    if wanted == content:
        return
    if wanted is None:
        os.unlink(_FILE, dir_fd=folder)
    else:
        _replace(folder, wanted, user, owner)
    os.fsync(folder)


def _read(folder: int, user: User) -> tuple[bytes, os.stat_result] | None:
    # O_NONBLOCK, since to open a pipe would wait for somebody who writes.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(_FILE, flags, dir_fd=folder)
    except FileNotFoundError:
        return None
    except OSError as error:
        if stat.S_ISLNK(os.stat(_FILE, dir_fd=folder, follow_symlinks=False).st_mode):
            raise _Left("its authorized_keys is a link") from None
        raise _Left(f"its authorized_keys: {error.strerror}") from None
    with os.fdopen(descriptor, "rb") as file:
        seen = os.fstat(descriptor)
        _refuse_foreign(user, seen, "its authorized_keys")
        if not stat.S_ISREG(seen.st_mode) or seen.st_nlink != 1:
            raise _Left("its authorized_keys is no file, or has a second name")
        if seen.st_size > FILE_BYTES_MAX:
            raise _Left(f"its authorized_keys is larger than {FILE_BYTES_MAX} bytes")
        return file.read(FILE_BYTES_MAX + 1), seen


def _replace(folder: int, content: bytes, user: User, owner: os.stat_result | None) -> None:
    name = f".{_FILE}.{secrets.token_hex(8)}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(name, flags, 0o600, dir_fd=folder)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            if owner is not None:
                _same_owner(descriptor, owner)
                os.fchmod(descriptor, stat.S_IMODE(owner.st_mode))
            elif os.fstat(descriptor).st_uid != user.uid:
                os.fchown(descriptor, user.uid, -1)
            file.flush()
            os.fsync(descriptor)
        os.rename(name, _FILE, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name, dir_fd=folder)
        raise


def _same_owner(descriptor: int, owner: os.stat_result) -> None:
    mine = os.fstat(descriptor)
    if (mine.st_uid, mine.st_gid) != (owner.st_uid, owner.st_gid):
        os.fchown(descriptor, owner.st_uid, owner.st_gid)


def _refuse_foreign(user: User, seen: os.stat_result, what: str) -> None:
    if seen.st_uid not in (user.uid, 0):
        raise _Left(f"{what} belongs to somebody else")


def _may_write(user: User, seen: os.stat_result) -> bool:
    return bool(
        (seen.st_uid == user.uid and seen.st_mode & stat.S_IWUSR)
        or (seen.st_gid in user.groups and seen.st_mode & stat.S_IWGRP)
        or seen.st_mode & stat.S_IWOTH
    )


def _group_name(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except (KeyError, OSError):
        return str(gid)


@contextlib.contextmanager
def _opened(descriptor: int) -> Iterator[int]:
    try:
        yield descriptor
    finally:
        os.close(descriptor)
