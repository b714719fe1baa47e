"""The forms of topologies on the node's disk: which there are, and which one is in force.

Rules:
- `<project>/<16 hex of the spec hash>.json` is one form, `<project>/in-force.json` says which one
  the containers are made from and whether they should run, `<project>/compose.json` is what Compose
  is shown. Each is replaced whole, as in `disk`: whenever the machine dies, a reader finds the old
  one or the new one.
- Folders are 0700, files 0600: the settings of apps are in them. Nothing is followed or opened that
  is not ours.
- What can't be read as one of these, or was changed since it was written, is moved aside and said,
  and then there is no such form. What can't be read at all is never taken for nothing.
- Who changes anything of a project holds its lock, and whom he starts inherits it. So a Compose
  that outlived its agent is waited for, and two are never at the same project.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import stat
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from node_agent.engines.base import DISK_FULL_NUMBERS, EngineFailure
from node_agent.wire import FailureReason

FORM_BYTES_MAX = 8 * 1024 * 1024
LOCK_POLL_S = 0.02
_IN_FORCE, _SHOWN, _LOCK = "in-force.json", "compose.json", ".lock"
_ASIDE = ".corrupt-"
_PROJECT = re.compile(r"[a-z0-9][-a-z0-9]{0,62}")
_FORM = re.compile(r"[0-9a-f]{16}\.json")
_SPEC_HASH = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True)
class Form:
    """One form of a topology. `document`: its Compose file; `image_digest`: its main service's."""

    instance: str
    spec_hash: str
    image_digest: str
    document: Mapping[str, Any]
    created_at_ms: int = 0


@dataclass(frozen=True)
class InForce:
    spec_hash: str
    run: bool


@dataclass(frozen=True)
class Forms:
    """Of one project. `in_force` is None too when the form that it names is not there."""

    forms: tuple[Form, ...] = ()
    in_force: InForce | None = None

    def form(self, spec_hash: str) -> Form | None:
        return next((one for one in self.forms if one.spec_hash == spec_hash), None)

    @property
    def form_in_force(self) -> Form | None:
        return self.form(self.in_force.spec_hash) if self.in_force is not None else None


class FormFiles:
    """Those under `root`. Raises EngineFailure, and nothing else."""

    def __init__(self, root: Path) -> None:
        self._root = root.absolute()

    @property
    def home(self) -> Path:
        """An empty folder for what a program keeps in its home; made when it is not there."""
        with _said(self._root):
            return self._made(self._root / ".home")

    def folder(self, project: str) -> Path:
        if _PROJECT.fullmatch(project) is None:
            message = f"{project[:80]!r} is no name of a project"
            raise EngineFailure(FailureReason.CREATE_REFUSED, message)
        return self._root / project

    def projects(self) -> tuple[str, ...]:
        with _said(self._root):
            try:
                found = [one.name for one in os.scandir(self._root) if one.is_dir()]
            except FileNotFoundError:
                return ()
        return tuple(sorted(name for name in found if _PROJECT.fullmatch(name)))

    def read(self, project: str) -> Forms:
        folder = self.folder(project)
        with _said(folder):
            try:
                names = sorted(os.listdir(folder))
            except FileNotFoundError:
                return Forms()
            _check_ours(folder)
            found = [_form(folder / name) for name in names if _FORM.fullmatch(name)]
            forms = tuple(one for one in found if one is not None)
            in_force = _in_force(folder / _IN_FORCE)
        if in_force is None or all(one.spec_hash != in_force.spec_hash for one in forms):
            return Forms(forms)
        return Forms(forms, in_force)

    def write(self, project: str, form: Form) -> None:
        content = {
            "instance": form.instance,
            "spec_hash": form.spec_hash,
            "image_digest": form.image_digest,
            "file": form.document,
        }
        sealed = {**content, "sha256": _digest(content)}
        self._write(project, _form_name(form.spec_hash), json.dumps(sealed, sort_keys=True))

    def put_in_force(self, project: str, spec_hash: str, *, run: bool) -> None:
        said = {"spec_hash": spec_hash, "run": run}
        self._write(project, _IN_FORCE, json.dumps(said, sort_keys=True))

    def show(self, project: str, text: str) -> Path:
        """Writes what Compose is to read, and says where."""
        return self._write(project, _SHOWN, text)

    def remove(self, project: str, spec_hash: str) -> None:
        self._unlink(project, _form_name(spec_hash))

    def remove_in_force(self, project: str) -> None:
        """What says which form is. The form itself stays."""
        self._unlink(project, _IN_FORCE)
        self._unlink(project, _SHOWN)

    def clear(self, project: str) -> None:
        """All of a project, also what was moved aside."""
        folder = self.folder(project)
        with _said(folder):
            with contextlib.suppress(FileNotFoundError):
                _check_ours(folder)
                shutil.rmtree(folder)
            self._lock_path(project).unlink(missing_ok=True)

    def count(self, project: str) -> int:
        """How many files and folders of a project there are."""
        folder = self.folder(project)
        with _said(folder):
            inside = [*folder.rglob("*")] if folder.is_dir() else []
            own = (folder, self._lock_path(project))
            return len(inside) + sum(os.path.lexists(one) for one in own)

    @contextlib.contextmanager
    def hold(self, project: str, limit_s: float) -> Iterator[int]:
        """The lock of a project, as a file that who is started may inherit."""
        path = self._lock_path(project)
        deadline_s = time.monotonic() + limit_s
        while True:
            with _said(path):
                self._made(self._root)
                lock = _locked(path)
            if lock is not None:
                break
            if time.monotonic() > deadline_s:
                message = f"{project} is waited for: {_holders(path)}"
                raise EngineFailure(FailureReason.ENGINE_UNAVAILABLE, message, transient=True)
            time.sleep(LOCK_POLL_S)
        try:
            yield lock
        finally:
            os.close(lock)

    def _lock_path(self, project: str) -> Path:
        folder = self.folder(project)
        return folder.with_name(f"{folder.name}{_LOCK}")

    def _write(self, project: str, name: str, text: str) -> Path:
        folder = self.folder(project)
        path = folder / name
        with _said(path):
            self._made(self._root)
            self._made(folder)
            _check_ours(folder)
            _replace(path, text)
        return path

    def _unlink(self, project: str, name: str) -> None:
        folder = self.folder(project)
        with _said(folder), contextlib.suppress(FileNotFoundError):
            (folder / name).unlink()
            _flush(folder)

    def _made(self, folder: Path) -> Path:
        if not folder.is_dir():
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            _flush(folder.parent)
        return folder


@contextlib.contextmanager
def _said(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = FailureReason.ENGINE_UNAVAILABLE
        if error.errno in DISK_FULL_NUMBERS:
            reason = FailureReason.DISK_FULL
        message = f"{path.name}: {error.strerror or type(error).__name__}"
        raise EngineFailure(reason, message, transient=True) from None


def _check_ours(folder: Path) -> None:
    seen = folder.lstat()
    if not stat.S_ISDIR(seen.st_mode) or seen.st_uid != os.geteuid():
        raise OSError(errno.EPERM, "not a folder of this agent's")
    if seen.st_mode & 0o077:
        folder.chmod(0o700)


def _locked(path: Path) -> int | None:
    """None while somebody has it, and for a file that who had it took away with the project: who
    comes next makes another one, and would hold that.
    """
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    held = False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        held = os.path.samestat(os.fstat(lock), path.lstat())
    except OSError as error:
        if error.errno not in {errno.EWOULDBLOCK, errno.EACCES, errno.ENOENT}:
            raise
    finally:
        if not held:
            os.close(lock)
    return lock if held else None


def _holders(path: Path) -> str:
    """In words, for who has to end one that hangs, since no agent is left that would."""
    found = set()
    for entry in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):
            if entry.readlink() == path:
                found.add(int(entry.parts[2]))
    others = sorted(found - {os.getpid()})
    told = " and ".join(f"process {number}" for number in others) or "unknown which"
    return f"a Compose that was started earlier is still at it ({told}); end that if it hangs"


def _form_name(spec_hash: str) -> str:
    if _SPEC_HASH.fullmatch(spec_hash) is None:
        raise EngineFailure(FailureReason.CREATE_REFUSED, f"{spec_hash[:80]!r} is no spec hash")
    return f"{spec_hash.removeprefix('sha256:')[:16]}.json"


def _form(path: Path) -> Form | None:
    document = _content(path)
    if document is None:
        return None
    seal = document.pop("sha256", None)
    texts = [document.get(key) for key in ("instance", "spec_hash", "image_digest")]
    file = document.get("file")
    if (
        seal != _digest(document)
        or not all(isinstance(text, str) for text in texts)
        or not isinstance(file, dict)
        or _SPEC_HASH.fullmatch(str(texts[1])) is None
        or _form_name(str(texts[1])) != path.name
    ):
        _move_aside(path)
        return None
    made_ms = path.lstat().st_mtime_ns // 1_000_000
    return Form(str(texts[0]), str(texts[1]), str(texts[2]), file, made_ms)


def _in_force(path: Path) -> InForce | None:
    document = _content(path)
    if document is None:
        return None
    spec_hash, run = document.get("spec_hash"), document.get("run")
    if not isinstance(spec_hash, str) or not isinstance(run, bool):
        _move_aside(path)
        return None
    return InForce(spec_hash, run)


def _content(path: Path) -> dict[str, Any] | None:
    """None where there is none, and for what had to be moved aside."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        _move_aside(path)
        return None
    with os.fdopen(handle, "rb") as file:
        regular = stat.S_ISREG(os.fstat(file.fileno()).st_mode)
        raw = file.read(FORM_BYTES_MAX + 1) if regular else b""
    try:
        document = json.loads(raw) if len(raw) <= FORM_BYTES_MAX else None
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        _move_aside(path)
        return None
    return document


def _move_aside(path: Path) -> None:
    aside = path.with_name(f"{path.name}{_ASIDE}{time.time_ns() // 1_000_000}")
    path.rename(aside)
    _flush(path.parent)
    structlog.get_logger().warning(
        "form of a topology moved aside", project=path.parent.name, file=aside.name
    )


def _digest(content: Mapping[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    with os.fdopen(os.open(temporary, flags, 0o600), "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
    _flush(path.parent)


def _flush(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
