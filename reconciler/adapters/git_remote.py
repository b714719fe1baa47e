"""Where the state repo is, taken apart before Git sees it.

Rules: text in, a `Remote` out; no disk but one look whether a local path exists, no network.
A credential in a URL is split off here, so that argv, logs and errors never hold it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NoReturn
from urllib.parse import SplitResult, unquote, urlsplit

from reconciler.errors import Refused
from reconciler.ports import Secret

Transport = Literal["file", "ssh", "http"]

_TRANSPORTS: dict[str, Transport] = {"file": "file", "ssh": "ssh", "http": "http", "https": "http"}
_HELPER = re.compile(r"[A-Za-z0-9][A-Za-z0-9+._-]*::")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_USER_INFO = re.compile(r"(://)[^/\s@]*@")


@dataclass(frozen=True)
class Remote:
    """A remote Git may be pointed at. `url` holds no credential; `user` may be a token, too."""

    url: str
    transport: Transport
    user: str = field(default="", repr=False)
    password: Secret | None = None

    @property
    def origin(self) -> str:
        """scheme://host[:port] of an HTTP remote: the only place its credential is sent to."""
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc}"


def mask_credentials(text: str, *secrets: str) -> str:
    """`text` without the user part of any URL in it and without the given secrets."""
    for secret in secrets:
        if secret:
            text = text.replace(secret, "***")
    return _USER_INFO.sub(r"\1***@", text)


def parse_remote(text: str) -> Remote:
    """A path, file://, ssh://, user@host:path, http:// or https:// URL; Refused for all else."""
    if not text or _CONTROL.search(text):
        _refuse(text, "it is empty or holds a control character")
    if text.startswith("-"):
        _refuse(text, "it begins with '-', which Git would read as an option")
    if _HELPER.match(text):
        _refuse(text, "remote helpers such as ext:: run commands")
    if scheme := _SCHEME.match(text):
        return _from_url(text, scheme.group(1).lower())
    host, colon, path = text.partition(":")
    if colon and "/" not in host and not Path(text).exists():
        return _from_scp(text, host, path)
    return Remote(str(Path(text).absolute()), "file")


def _from_url(text: str, scheme: str) -> Remote:
    if scheme not in _TRANSPORTS:
        _refuse(text, f"{scheme}:// is not one of {', '.join(sorted(_TRANSPORTS))}")
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        _refuse(text, "it is not a URL")
    transport = _TRANSPORTS[scheme]
    if transport == "file":
        if parts.netloc not in ("", "localhost"):
            _refuse(text, "file:// reaches this host only")
        return Remote("file://" + parts.path, "file")
    host = parts.hostname or ""
    if not host or host.startswith("-") or not parts.path.strip("/"):
        _refuse(text, "it needs a host and a path")
    return _over_ssh(text, parts) if transport == "ssh" else _over_http(text, parts, host, port)


def _over_ssh(text: str, parts: SplitResult) -> Remote:
    if parts.password is not None:
        _refuse(text, "ssh takes keys, not passwords")
    if (parts.username or "").startswith("-") or parts.path.startswith("/-"):
        _refuse(text, "a part of it begins with '-'")
    return Remote(text, "ssh")


def _over_http(text: str, parts: SplitResult, host: str, port: int | None) -> Remote:
    if parts.fragment or parts.query:
        _refuse(text, "a repository URL has no query")
    user, password = unquote(parts.username or ""), unquote(parts.password or "")
    if _CONTROL.search(user + password):
        _refuse(text, "its credential holds a control character")
    name = f"[{host}]" if ":" in host else host
    place = name if port is None else f"{name}:{port}"
    url = f"{parts.scheme}://{place}{parts.path}"
    return Remote(url, "http", user, Secret(password) if password else None)


def _from_scp(text: str, host: str, path: str) -> Remote:
    user, _, name = host.rpartition("@")
    if not name or not path or any(part.startswith("-") for part in (user, name, path)):
        _refuse(text, "user@host:path needs a host and a path, and no part may begin with '-'")
    return Remote(text, "ssh")


def _refuse(text: str, why: str) -> NoReturn:
    raise Refused(
        "git_url_refused",
        f"not a repository address: {why}",
        where=_CONTROL.sub("?", mask_credentials(text[:200])),
        hint="use a path, file://, ssh://, user@host:path, http:// or https://",
    )
