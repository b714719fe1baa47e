"""One repository of a registry, by the distribution API: what is asked, and what counts as answer.

Rules:
- Every request goes to the named origin. Only blobs may be redirected, to a store that gets no
  header of ours, because their hash decides.
- Sizes and time are bounded, however an answer drips. Nothing comes from the environment.
- What an answer says is text of others: it is shown as such, and what of it can't be read is
  refused. No error but ours leaves here.
- A token is sent where one is asked for: minted here, for this repository, or none at all.
"""

from __future__ import annotations

import json
import re
import ssl
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import httpx

from reconciler.adapters.oci_documents import INDEX_TYPES, MANIFEST_TYPES
from reconciler.adapters.registry_time import LookTimeout, TimedClient
from reconciler.core.names import Digest
from reconciler.core.printable import printable
from reconciler.errors import Refused, Transient
from reconciler.ports import RegistryEndpoint, Secret
from reconciler.settings import Settings

ENDPOINT = re.compile(
    r"(?:[A-Za-z0-9](?:[-.A-Za-z0-9]*[A-Za-z0-9])?|\[[0-9A-Fa-f:]+\])(?::\d{1,5})?"
)
_WORD = r"[a-z0-9]+(?:(?:\.|_{1,2}|-+)[a-z0-9]+)*"
REPOSITORY = re.compile(rf"{_WORD}(?:/{_WORD})*")
ACCEPT = ", ".join(sorted(MANIFEST_TYPES | INDEX_TYPES))
_REDIRECTS_MAX = 3
_ERROR_BYTES_MAX = 64 * 1024
_RETRY_AFTER_S_MAX = 300.0
_MESSAGE_CHARS_MAX = 300
_LABEL = re.compile(r"[-_A-Za-z0-9]{1,63}")
_PORT_MAX = 65535

Bearer = Callable[[Mapping[str, tuple[str, ...]]], Secret]
"""Repository → actions (`pull`, `push`), to a token that allows them (`artifacts.registry_tokens`).
"""


@dataclass(frozen=True)
class Bounds:
    timeout_s: float
    manifest_bytes_max: int
    descriptors_max: int


def bounds_of(settings: Settings) -> Bounds:
    return Bounds(
        settings.registry_timeout_s,
        settings.manifest_bytes_max,
        settings.registry_descriptors_max,
    )


def open_client(settings: Settings) -> TimedClient:
    return TimedClient(
        settings.registry_timeout_s,
        ssl.create_default_context(),
        {"Accept-Encoding": "identity", "User-Agent": "gpuaas"},
    )


@dataclass(frozen=True)
class Remote:
    """One repository, by the distribution API."""

    client: TimedClient
    endpoint: RegistryEndpoint
    repository: str
    bounds: Bounds
    bearer: Bearer | None = None
    more: tuple[str, ...] = ()
    """Other repositories that are read in passing (a copy's source)."""
    actions: tuple[str, ...] = ("pull",)

    @property
    def where(self) -> str:
        return f"{self.endpoint.endpoint}/{self.repository}"

    def has_manifest(self, digest: Digest) -> bool:
        """False as well when a HEAD alone can't tell: the caller then asks with a GET."""
        with self.ask("HEAD", self._url("manifests", digest), f"{self.where}@{digest}") as answer:
            if answer.status_code == 404:
                return False
            accept_status(answer, f"{self.where}@{digest}")
            return bool(answer.headers.get("Docker-Content-Digest", str(digest)) == str(digest))

    def manifest(self, digest: Digest) -> tuple[bytes, str] | None:
        where = f"{self.where}@{digest}"
        with self.ask("GET", self._url("manifests", digest), where) as answer:
            if answer.status_code == 404:
                self.check_clearly_missing(answer, where)
                return None
            accept_status(answer, where)
            content = self.read(answer, self.bounds.manifest_bytes_max, where)
            served_type = answer.headers.get("Content-Type", "").partition(";")[0].strip()
            return content, served_type

    def blob(self, digest: Digest, size_bytes: int) -> bytes | None:
        where = f"{self.where}@{digest}"
        with self.ask_store("GET", self._url("blobs", digest), where) as answer:
            if answer.status_code == 404:
                return None
            accept_status(answer, where)
            return self.read(answer, size_bytes, where)

    def blob_size_bytes(self, digest: Digest) -> int | None:
        where = f"{self.where}@{digest}"
        with self.ask_store("HEAD", self._url("blobs", digest), where) as answer:
            if answer.status_code == 404:
                return None
            accept_status(answer, where)
            length = answer.headers.get("Content-Length", "")
            if not re.fullmatch(r"\d{1,18}", length):
                raise Refused("registry_odd_answer", "it does not say the size", where=where)
            return int(length)

    def url(self, path: str) -> httpx.URL:
        """Of `path` below the repository, such as `manifests/sha256:…`."""
        return httpx.URL(f"{self._origin}/v2/{self.repository}/{path}")

    @property
    def _origin(self) -> str:
        return f"{'http' if self.endpoint.plain_http else 'https'}://{self.endpoint.endpoint}"

    def _url(self, what: str, digest: Digest) -> httpx.URL:
        return self.url(f"{what}/{digest}")

    def _authorization(self, url: httpx.URL) -> dict[str, str]:
        """Where a blob is redirected to, nothing of ours is sent."""
        if self.bearer is None or not self.endpoint.token_auth or not self._is_ours(url):
            return {}
        scopes = {self.repository: self.actions, **dict.fromkeys(self.more, ("pull",))}
        return {"Authorization": f"Bearer {self.bearer(scopes).reveal()}"}

    def _is_ours(self, url: httpx.URL) -> bool:
        ours = httpx.URL(self._origin)
        return (url.scheme, url.host, url.port) == (ours.scheme, ours.host, ours.port)

    @contextmanager
    def ask(
        self,
        method: str,
        url: httpx.URL,
        where: str,
        *,
        content: bytes | Iterable[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Iterator[httpx.Response]:
        """One request, no redirect; the library's errors leave as Transient."""
        sent = {"Accept": ACCEPT, **(headers or {}), **self._authorization(url)}
        try:
            with self.client.stream(method, url, headers=sent, content=content) as answer:
                yield answer
        except LookTimeout as error:
            raise Transient("registry_timeout", str(error), where=where) from None
        except httpx.TimeoutException:
            raise Transient(
                "registry_timeout", f"no answer in {self.bounds.timeout_s:g} s", where=where
            ) from None
        except httpx.HTTPError as error:
            if "[SSL" in str(error):
                raise Refused(
                    "registry_tls",
                    shown(str(error)),
                    where=where,
                    hint="install the registry's CA on this host, or set plain_http",
                ) from None
            raise Transient(
                "registry_unreachable", shown(str(error)) or type(error).__name__, where=where
            ) from None
        except (UnicodeError, httpx.InvalidURL):
            # Of a redirect that the library looks at although it follows none.
            raise no_address(where) from None

    @contextmanager
    def ask_store(self, method: str, url: httpx.URL, where: str) -> Iterator[httpx.Response]:
        """One request for a blob, through a few redirects at most."""
        for _ in range(_REDIRECTS_MAX):
            with self.ask(method, url, where) as answer:
                if not answer.has_redirect_location:
                    yield answer
                    return
                url = self._redirected(answer, where)
        raise Refused("registry_redirected", f"more than {_REDIRECTS_MAX} redirects", where=where)

    def _redirected(self, answer: httpx.Response, where: str) -> httpx.URL:
        target = address_of(answer.headers["Location"], answer.request.url)
        if target is None:
            raise no_address(where)
        schemes = ("http", "https") if self.endpoint.plain_http else ("https",)
        if target.scheme not in schemes or not target.host:
            raise Refused(
                "registry_redirected",
                f"to {target.scheme or 'no scheme'}, expected {' or '.join(schemes)}",
                where=where,
            )
        return target

    def read(self, answer: httpx.Response, limit: int, where: str) -> bytes:
        """The body as sent, up to `limit` bytes and within the time allowed, however it drips."""
        if answer.headers.get("Content-Encoding", "identity") != "identity":
            raise Refused("registry_odd_answer", "it is encoded, unasked", where=where)
        deadline = time.monotonic() + self.bounds.timeout_s
        content = bytearray()
        for piece in answer.iter_raw():
            content += piece
            if len(content) > limit:
                raise too_large(limit, where)
            if time.monotonic() > deadline:
                raise Transient(
                    "registry_timeout", f"not read in {self.bounds.timeout_s:g} s", where=where
                )
        return bytes(content)

    def check_clearly_missing(self, answer: httpx.Response, where: str) -> None:
        content = self.read(answer, _ERROR_BYTES_MAX, where)
        try:
            errors = json.loads(content)["errors"]
            clear = bool(errors) and all(isinstance(error["code"], str) for error in errors)
        except (ValueError, KeyError, TypeError, RecursionError):
            clear = False
        if not clear:
            raise Transient(
                "registry_unclear",
                "404 without a registry's error code: perhaps not the registry that answered",
                where=where,
            )


def address_of(text: str, base: httpx.URL | None = None) -> httpx.URL | None:
    """What `text` from a registry is an address of; None for what nobody can look up."""
    try:
        found = base.join(text) if base is not None else httpx.URL(text)
        host = found.host
    except (httpx.InvalidURL, ValueError):
        return None
    name = found.raw_host.decode("ascii").removesuffix(".")
    odd = ":" not in host and not all(map(_LABEL.fullmatch, name.split(".")))
    # Whether there has to be a host, the caller knows.
    return None if (host and odd) or (found.port or 0) > _PORT_MAX else found


def no_address(where: str) -> Refused:
    return Refused("registry_redirected", "to what is no address", where=where)


def shown(text: str) -> str:
    """What a registry said, fit to be told, kept and sent on."""
    return printable(text[:_MESSAGE_CHARS_MAX])


def accept_status(answer: httpx.Response, where: str) -> None:
    status = answer.status_code
    if status == 200:
        return
    if status in (408, 429) or status >= 500:
        raise Transient(
            "registry_unavailable",
            f"answered {status}",
            where=where,
            retry_after_s=_retry_after_s(answer.headers.get("Retry-After", "")),
        )
    if status in (401, 403):
        hint = "it asks for a credential: see registry.auth in the Environment"
        raise Refused("registry_denied", f"answered {status}", where=where, hint=hint)
    if answer.has_redirect_location:
        raise Refused(
            "registry_redirected",
            "manifests are taken from the registry itself, not from where it points",
            where=where,
            hint="name the registry's final host in the Environment",
        )
    raise Refused("registry_odd_answer", f"answered {status}", where=where)


def _retry_after_s(header: str) -> float:
    return min(float(header), _RETRY_AFTER_S_MAX) if re.fullmatch(r"\d{1,9}", header) else 5.0


def too_large(limit: int, where: str) -> Refused:
    return Refused("manifest_too_large", f"larger than {limit} bytes", where=where)
