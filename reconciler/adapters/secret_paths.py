"""What may be the path of a secret and the name of a key, the same in every custody."""

from __future__ import annotations

import re

from reconciler.core.custody.paths import CLASS_OF, SecretClass, class_of
from reconciler.errors import Refused
from reconciler.ports import Secret

PATH_LENGTH_MAX = 400
SECRET_BYTES_MAX = 64 * 1024

_NAME = re.compile(r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?")
_TOKEN = re.compile(r"[A-Za-z0-9_.-]{1,2048}")
_SEGMENT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


def check_path(path: str) -> SecretClass:
    """The class of the path. Refused("secret_path_refused") for what is none, or of no class."""
    words = path.split("/")
    if len(path) > PATH_LENGTH_MAX or not all(_SEGMENT.fullmatch(word) for word in words):
        raise Refused(
            "secret_path_refused",
            f"not a secret's path: {path[:80]!r}",
            hint="words of letters, digits, '_', '.' and '-', with '/' between them",
        )
    found = class_of(path)
    if found is None:
        raise Refused(
            "secret_path_refused",
            f"no secret begins with {words[0][:80]!r}",
            hint="begin with " + ", ".join(sorted(CLASS_OF)),
        )
    return found


def check_value(path: str, value: Secret) -> None:
    """Refused("secret_too_large") for more than `SECRET_BYTES_MAX` bytes as UTF-8."""
    if len(value.reveal().encode()) > SECRET_BYTES_MAX:
        raise Refused("secret_too_large", f"more than {SECRET_BYTES_MAX} bytes", where=path)


def check_key_name(name: str) -> None:
    """Refused("key_name_refused")."""
    if not _NAME.fullmatch(name):
        raise Refused("key_name_refused", f"not a key's name: {name[:80]!r}")


def no_secret(path: str) -> Refused:
    return Refused("no_secret", "there is no such secret", where=path)


def check_token(token: Secret, path: str) -> str:
    """A wrapping token as text. Refused("wrap_spent") for what none can be: nobody gave it out."""
    if not _TOKEN.fullmatch(token.reveal()):
        raise wrap_spent(path)
    return token.reveal()


def wrap_spent(path: str) -> Refused:
    """Whoever holds the token can't tell which of the two it is, and has to assume the worse."""
    return Refused(
        "wrap_spent",
        "somebody has unwrapped it already, or it is too old",
        where=path,
        hint="if it was not you, replace the secret: somebody else may have it",
    )


def wrap_foreign(path: str) -> Refused:
    return Refused(
        "wrap_foreign",
        "this token does not hold that secret",
        where=path,
        hint="ask for a new one, and find out who gave you this one",
    )


def no_signing_key(name: str) -> Refused:
    return Refused("no_signing_key", f"there is no signing key {name!r}")


def wrong_key_type(name: str, kind: str) -> Refused:
    return Refused("wrong_key_type", f"it is no {kind} key", where=name)


def key_version_unknown(name: str, version: int) -> Refused:
    return Refused("key_version_unknown", f"the signing key has no version {version}", where=name)
