"""Who asks Vault: a fixed token, or an AppRole whose role id and secret id lie in files.

Rules:
- The files are read at each login, so that new ones take effect without a restart.
- The secret id's file is for its owner alone. It may hold a token that wraps the secret id: that is
  checked to come from where secret ids are made, unwrapped once, and replaced by the secret id.
- A token is renewed at half its life. One that is refused, or at its end, is replaced by a login.
- A login that was refused is not tried again for a while, unless a file changed. The same goes for
  one that found the secret id's folder held by another process.
"""

from __future__ import annotations

import fcntl
import os
import random
import re
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from reconciler.adapters.secret_paths import wrap_foreign, wrap_spent
from reconciler.adapters.vault_http import Answer, VaultHttp
from reconciler.errors import Refused, Transient
from reconciler.ports import Secret

REFUSED_PAUSE_S = 5.0
ROLE_CHANGED_S = 60.0
"""A token older than this may lack what its role was given since."""
CREDENTIAL_BYTES_MAX = 4096
FOLDER_WAIT_S = 10.0
"""Longer than another process needs to ask Vault twice."""
FOLDER_LOOK_S = 0.05

_WRAPPING = re.compile(r"(?:hv)?s\.[A-Za-z0-9_.-]{10,}")
_CREDENTIAL = re.compile(r"[\x21-\x7e]+")
_TOKEN = re.compile(r"[A-Za-z0-9_.-]{1,2048}")
_HINT = "put a fresh secret id of that role into the file"
_WRAP_REFUSALS = {
    "wrap_spent": (
        "the wrapped secret id in it was taken out before, or waited too long",
        f"destroy that secret id in case somebody else has it, and {_HINT}",
    ),
    "wrap_foreign": ("what it wraps is no secret id of the role", _HINT),
}


class _FolderHeld(Transient):
    """Another process has the secret id's folder, and does not give it back."""


class Identity(Protocol):
    """Gives the token to ask with."""

    def token(self) -> str: ...

    def replaced(self, refused: str) -> bool:
        """Whether there is another token to ask with than this one, which was refused."""
        ...


class StaticToken:
    """A token that somebody brought along."""

    def __init__(self, token: Secret) -> None:
        if not _TOKEN.fullmatch(token.reveal()):
            raise Refused("custody_login_refused", "not a token")
        self._token = token

    def token(self) -> str:
        return self._token.reveal()

    def replaced(self, refused: str) -> bool:  # noqa: ARG002
        return False


@dataclass(frozen=True)
class _Login:
    token: Secret
    made_s: float
    lease_s: float
    renew_s: float
    ends_s: float


class AppRoleLogin:
    """Logs in at `login_path`. `secret_id_path`: the creation path of tokens that wrap secret ids.

    Raises what VaultHttp does, Refused("custody_login_refused") and Refused("secrets_exposed").
    """

    def __init__(
        self,
        http: VaultHttp,
        login_path: str,
        secret_id_path: str,
        role_id_file: Path | None,
        secret_id_file: Path | None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._http = http
        self._login_path = login_path
        self._secret_id_path = secret_id_path
        self._files = (role_id_file, secret_id_file)
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._login: _Login | None = None
        self._refusal: tuple[Refused | _FolderHeld, float, object] | None = None

    def token(self) -> str:
        with self._lock:
            login, now = self._login, self._monotonic()
            if login is None or now >= login.ends_s:
                login = self._log_in()
            elif now >= login.renew_s:
                login = self._renewed(login)
            self._login = login
            return login.token.reveal()

    def replaced(self, refused: str) -> bool:
        """A new login, where the token no longer counts or its role may have changed since."""
        with self._lock:
            login = self._login
            if login is not None and login.token.reveal() != refused:
                return True
            if login is not None and self._monotonic() - login.made_s < ROLE_CHANGED_S:
                look = self._http.ask("GET", "auth/token/lookup-self", token=refused, again=True)
                if look.ok:
                    return False
            self._login = None
            self._login = self._log_in()
            return True

    def _renewed(self, login: _Login) -> _Login:
        try:
            answer = self._http.ask(
                "POST", "auth/token/renew-self", token=login.token.reveal(), body={}, again=True
            )
        except Transient:
            # It is still good for the other half of its life.
            return login
        renewed = self._made(answer) if answer.ok else None
        # Close to the end of all renewals the leases get short.
        if renewed is None or renewed.lease_s < login.lease_s / 2:
            return self._log_in()
        return _Login(login.token, login.made_s, login.lease_s, renewed.renew_s, renewed.ends_s)

    def _log_in(self) -> _Login:
        stamp = tuple(_stamp(file) for file in self._files)
        if self._refusal is not None:
            error, until, of = self._refusal
            if of == stamp and self._monotonic() < until:
                raise error
        self._refusal = None
        try:
            return self._once()
        except (Refused, _FolderHeld) as error:
            until = self._monotonic() + random.uniform(0.5, 1.0) * REFUSED_PAUSE_S  # noqa: S311
            stamp = tuple(_stamp(file) for file in self._files)
            self._refusal = error, until, stamp
            raise

    def _once(self) -> _Login:
        role_file, secret_file = self._files
        if role_file is None or secret_file is None:
            raise Refused(
                "custody_login_refused",
                "there is nothing to log in to Vault with",
                hint="set vault_role_id_file and vault_secret_id_file",
            )
        role_id = _credential(role_file, _read_file(role_file, private=False))
        body = {"role_id": role_id, "secret_id": self._secret_id(secret_file)}
        answer = self._http.ask("POST", self._login_path, body=body)
        login = self._made(answer) if answer.ok else None
        if login is None:
            message = "Vault does not know this role id with this secret id, or no longer"
            raise Refused("custody_login_refused", message, where=str(secret_file), hint=_HINT)
        return login

    def _made(self, answer: Answer) -> _Login | None:
        token, lease_s = answer.auth.get("client_token"), answer.auth.get("lease_duration")
        if not isinstance(token, str) or not _TOKEN.fullmatch(token):
            return None
        now = self._monotonic()
        if not isinstance(lease_s, int) or isinstance(lease_s, bool) or lease_s <= 0:
            return _Login(Secret(token), now, 0.0, float("inf"), float("inf"))
        return _Login(Secret(token), now, float(lease_s), now + lease_s / 2, now + lease_s)

    def _secret_id(self, file: Path) -> str:
        found = _credential(file, _read_file(file, private=True))
        if not _WRAPPING.fullmatch(found):
            return found
        with _alone(file.parent, self._monotonic):
            # Another process may have unwrapped it meanwhile.
            found = _credential(file, _read_file(file, private=True))
            return self._unwrapped(file, found) if _WRAPPING.fullmatch(found) else found

    def _unwrapped(self, file: Path, token: str) -> str:
        # What can fail here fails before the one unwrapping there is.
        with _replacement(file) as write:
            try:
                data = unwrap(self._http, token, self._secret_id_path, str(file)).data
            except Refused as error:
                message, hint = _WRAP_REFUSALS.get(error.code, ("", ""))
                if not message:
                    raise
                code = "custody_login_refused"
                raise Refused(code, message, where=str(file), hint=hint) from None
            found = data.get("secret_id")
            if not isinstance(found, str):
                code, message = "custody_malformed", "it unwrapped to no secret id"
                raise Refused(code, message, where=str(file), hint=_HINT)
            write(found)
        return found


def unwrap(http: VaultHttp, token: str, creation_path: str, where: str) -> Answer:
    """What a wrapping token holds, once, if it was made at `creation_path`.

    Refused (wrap_spent, wrap_foreign), and then it was not spent here.
    """
    if not _TOKEN.fullmatch(token):
        raise wrap_spent(where)
    look = http.ask("POST", "sys/wrapping/lookup", body={"token": token}, again=True)
    if not look.ok:
        raise wrap_spent(where)
    if look.data.get("creation_path") != creation_path:
        raise wrap_foreign(where)
    # The wrapping token is its own permission.
    answer = http.ask("POST", "sys/wrapping/unwrap", token=token)
    if not answer.ok:
        raise wrap_spent(where)
    return answer


def _credential(file: Path, content: bytes) -> str:
    text = content.decode("ascii", "replace").strip()
    if not _CREDENTIAL.fullmatch(text):
        message = "it holds no role id or secret id"
        raise Refused("custody_login_refused", message, where=str(file), hint=_HINT)
    return text


def _read_file(file: Path, *, private: bool) -> bytes:
    try:
        with file.open("rb") as handle:
            mode = os.fstat(handle.fileno()).st_mode
            if private and mode & 0o077:
                raise Refused(
                    "secrets_exposed",
                    f"others may reach it (mode {mode & 0o777:o})",
                    where=str(file),
                    hint=f"chmod 600 {file}, and put a new secret id into it",
                )
            return handle.read(CREDENTIAL_BYTES_MAX)
    except OSError as error:
        message = f"it can't be read: {error.strerror}"
        raise Refused("custody_login_refused", message, where=str(file), hint=_HINT) from None


def _stamp(file: Path | None) -> object:
    try:
        found = file.stat() if file else None
    except OSError:
        return None
    return found and (found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_size)


@contextmanager
def _alone(folder: Path, monotonic: Callable[[], float]) -> Iterator[None]:
    """Whoever may read the folder may hold it as long as they like: nobody waits for that."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        message = f"its folder can't be read: {error.strerror}"
        raise Refused("custody_login_refused", message, where=str(folder), hint=_HINT) from None
    try:
        deadline = monotonic() + FOLDER_WAIT_S
        while not _held(descriptor):
            if monotonic() >= deadline:
                raise _FolderHeld(
                    "custody_timeout",
                    f"another process has had this folder locked for {FOLDER_WAIT_S:g} s",
                    where=str(folder),
                    hint=f"`lslocks` shows which, or `fuser -v {folder}`",
                )
            time.sleep(FOLDER_LOOK_S)
        yield
    finally:
        os.close(descriptor)


def _held(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def _replacement(file: Path) -> Iterator[Callable[[str], Any]]:
    """Gives a function that puts a text in the file's place, whole or not at all, mode 0600."""
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{file.name}-", dir=file.parent)
    except OSError as error:
        message = f"the secret id can't be written beside it: {error.strerror}"
        hint = "let this user write to the folder, or put the secret id itself into the file"
        raise Refused("custody_login_refused", message, where=str(file), hint=hint) from None
    with os.fdopen(descriptor, "w") as handle:

        def write(text: str) -> None:
            handle.write(text + "\n")
            handle.flush()
            os.fsync(descriptor)
            os.replace(name, file)

        try:
            yield write
        finally:
            Path(name).unlink(missing_ok=True)
