"""Who may read what over HTTP.

Rules:
- Who sends credentials is judged by them: a token that is not good is refused, also where none
  would have been needed.
- Without a token only this very host reads: the server listens on its loopback, the caller uses an
  address or a name of ours (else any page in a browser here could read along, by letting its own
  name point to us: DNS rebinding), and no proxy says that it passes somebody else on.
- What is of another project can't be told from what is not there; not even where a message about
  something of one's own mentions it.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from starlette.requests import Request

from reconciler.core.authority.grants import FOREVER_MS, Grant, Scope
from reconciler.core.kind_places import PLACE_OF
from reconciler.core.names import NAME, InstanceKey
from reconciler.ports import Clock
from reconciler.server.deps import Threads
from reconciler.server.errors import ApiError
from reconciler.server.tokens import Bearer, Tokens
from reconciler.settings import Settings

ARTIFACT_REGISTER = "apps.artifact.register"
INSTANCE_READ = "apps.instance.read"
NODE_READ = "fleet.node.read"
AUDIT_READ = "platform.audit.read"
STATUS_READ = "platform.status.read"
READS = (INSTANCE_READ, NODE_READ, AUDIT_READ, STATUS_READ)

PLATFORM: Scope = ()
_PASSED_ON = ("forwarded", "via", "x-forwarded-for", "x-real-ip")
_NOBODY: Scope = ("", "")


@dataclass(frozen=True)
class Reader:
    """Who asks. `actor` is `local` for who needs no token, and then nothing expires."""

    actor: str
    type: str
    holds: Callable[[str, Scope], bool]
    grants: tuple[Grant, ...] = ()
    expires_at_ms: int | None = None

    @property
    def sees_all(self) -> bool:
        return self.holds(INSTANCE_READ, PLATFORM)

    def sees(self, key: InstanceKey) -> bool:
        """Whether he may read this instance."""
        return self.holds(INSTANCE_READ, project_of(key))


def grant_document(grant: Grant) -> dict[str, Any]:
    return {
        "permission": grant.permission,
        "scope": "/".join(grant.scope),
        "until_ms": None if grant.until_ms >= FOREVER_MS else grant.until_ms,
        "why": grant.why,
    }


def reader_of(bearer: Bearer) -> Reader:
    return Reader(str(bearer.actor), bearer.type, bearer.holds, bearer.grants, bearer.expires_at_ms)


def local_reader() -> Reader:
    """Who reads on this very host, and has its files besides."""
    grants = tuple(Grant(one, PLATFORM, "reads on this host") for one in READS)
    return Reader("local", "local", lambda permission, _: permission in READS, grants)


NOBODY = Reader("", "nobody", lambda *_: False)
"""Who calls what anybody may."""


class Access:
    """Finds out who asks, and refuses whom it can't tell."""

    def __init__(
        self,
        settings: Settings,
        tokens: Tokens,
        clock: Clock,
        threads: Threads,
    ) -> None:
        self._tokens = tokens
        self._clock = clock
        self._threads = threads
        self._to_all = settings.allow_remote_read
        host = urlsplit(f"//{settings.listen}").hostname or ""
        self._names = {"localhost", host, *map(str.lower, settings.allowed_hosts)}
        here = settings.allow_remote_read or is_loopback(host)
        self._without_token = here and not settings.require_tokens

    async def reader(self, request: Request) -> Reader:
        """Who asks. ApiError 401 for a token that is not good, or missing; 421 for a caller who
        needs none and calls us by a name that is not ours.
        """
        given = request.headers.getlist("authorization")
        if given:
            now_ms = self._clock.now_ms()
            return reader_of(await self._threads.run(self._tokens.check, ", ".join(given), now_ms))
        passed_on = not self._to_all and any(name in request.headers for name in _PASSED_ON)
        if not self._without_token or passed_on:
            headers = {"WWW-Authenticate": "Bearer"}
            message = "reading needs a token: send Authorization: Bearer TOKEN"
            raise ApiError(401, "token_required", message, headers)
        if not self._to_all:
            check_host(request.headers.get("host", ""), self._names)
        return local_reader()


def may_read(reader: Reader, permission: str) -> None:
    """Raises ApiError 403 for who does not hold it for the platform."""
    if not reader.holds(permission, PLATFORM):
        message = f"{reader.actor} may not read this: it needs {permission} for the platform"
        raise ApiError(403, "not_permitted", message)


def is_loopback(host: str) -> bool:
    """False for any name but localhost, wherever that leads today."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_host(header: str, names: Collection[str]) -> None:
    """Raises ApiError 421 unless a Host header holds an IP address or one of `names`."""
    try:
        host = urlsplit(f"//{header}").hostname or ""
        if host in names or ipaddress.ip_address(host):
            return
    except ValueError:
        pass  # Neither a host nor an address: refused like any name that is not ours.
    message = "this host is not called so: use its address, or name it in allowed_hosts"
    raise ApiError(421, "wrong_host", message)


def project_of(key: str) -> Scope:
    """(tenant, project) of an instance's key; nobody's for what is no key."""
    parts = key.split("/")
    return (parts[0], parts[1]) if len(parts) == 3 and all(parts) else _NOBODY


# --- names of others in what is one's own --------------------------------------------------------

FOREIGN = "(another project's)"
_IN_PROJECTS = frozenset(
    kind for kind, place in PLACE_OF.items() if place.path.startswith("tenants/{tenant}/")
)
_WORD = r"[0-9A-Za-z](?:[-+.0-9A-Za-z]*[0-9A-Za-z])?"
_NAMED = re.compile(
    rf"(?<![-./\w@])(?:(?P<kind>[A-Z][A-Za-z]+)/)?"
    rf"(?P<tenant>{NAME})/(?P<project>{NAME})(?![-\w])(?:/{_WORD})*"
)


def without_foreign_names(document: Any, reader: Reader, keys: Iterable[InstanceKey]) -> Any:
    """The document with `FOREIGN` wherever a text names an object of a project that the reader may
    not read: a manifest by its ref, or one of `keys`.
    """
    if reader.sees_all:
        return document
    projects = {project_of(key) for key in keys}

    def hidden(found: re.Match[str]) -> str:
        project = (found["tenant"], found["project"])
        meant = found["kind"] in _IN_PROJECTS if found["kind"] else project in projects
        return FOREIGN if meant and not reader.holds(INSTANCE_READ, project) else found[0]

    def over(value: Any) -> Any:
        if isinstance(value, str):
            return _NAMED.sub(hidden, value) if "/" in value else value
        if isinstance(value, dict):
            return {name: over(one) for name, one in value.items()}
        return [over(one) for one in value] if isinstance(value, list | tuple) else value

    return over(document)
