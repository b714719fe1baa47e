"""Reads artifacts from a registry, or from an OCI image-layout folder, and believes nothing.

Rules:
- Every manifest and config is hashed here; what a registry says about a digest decides nothing.
- Manifests come from the named origin only. Blobs may be redirected to a store, which is given no
  header of ours, because their hash decides.
- Sizes, counts and time are bounded. Nothing comes from the environment: no proxy, no .netrc.
- `exists=False` needs a registry's own word for it; a bare 404 may come from anything in between.
- A layer is asked for, not read: the engine that pulls it hashes it.
"""

from __future__ import annotations

import json
import os
import re
import ssl
import stat
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import httpx

from reconciler.adapters.oci_documents import (
    CONFIG_TYPES,
    INDEX_TYPES,
    MANIFEST_TYPES,
    Descriptor,
    ImageIndex,
    ImageManifest,
    parse_config_platform,
    parse_manifest,
)
from reconciler.core.names import ArtifactKey, Digest
from reconciler.core.observed import ArtifactSeen
from reconciler.errors import Refused, Transient
from reconciler.ports import RegistryEndpoint
from reconciler.settings import Settings

_ENDPOINT = re.compile(
    r"(?:[A-Za-z0-9](?:[-.A-Za-z0-9]*[A-Za-z0-9])?|\[[0-9A-Fa-f:]+\])(?::\d{1,5})?"
)
_WORD = r"[a-z0-9]+(?:(?:\.|_{1,2}|-+)[a-z0-9]+)*"
_REPOSITORY = re.compile(rf"{_WORD}(?:/{_WORD})*")
_ACCEPT = ", ".join(sorted(MANIFEST_TYPES | INDEX_TYPES))
_REDIRECTS_MAX = 3
_ERROR_BYTES_MAX = 64 * 1024
_RETRY_AFTER_S_MAX = 300.0


@dataclass(frozen=True)
class _Bounds:
    timeout_s: float
    manifest_bytes_max: int
    descriptors_max: int


class _Source(Protocol):
    """One repository of one registry, or one layout. None stands for a clear "not there"."""

    @property
    def where(self) -> str: ...

    def has_manifest(self, digest: Digest) -> bool: ...

    def manifest(self, digest: Digest) -> tuple[bytes, str] | None:
        """Its bytes, not yet hashed, and the media type it was served as, if any."""
        ...

    def blob(self, digest: Digest, size_bytes: int) -> bytes | None: ...

    def blob_size_bytes(self, digest: Digest) -> int | None: ...


class OciRegistry:
    """Implements `ports.Registry`. Safe to use from several threads.

    Facts about a digest never change, so they are kept; whether the registry still has it is asked
    again each time, with one HEAD.
    """

    def __init__(self, settings: Settings) -> None:
        self._bounds = _Bounds(
            settings.registry_timeout_s,
            settings.manifest_bytes_max,
            settings.registry_descriptors_max,
        )
        self._entries_max = settings.registry_cache_entries_max
        self._cache: OrderedDict[tuple[RegistryEndpoint, ArtifactKey], ArtifactSeen] = OrderedDict()
        self._lock = threading.Lock()
        self._client = httpx.Client(
            timeout=settings.registry_timeout_s,
            verify=ssl.create_default_context(),
            trust_env=False,
            follow_redirects=False,
            headers={"Accept-Encoding": "identity", "User-Agent": "gpuaas"},
        )

    def close(self) -> None:
        self._client.close()

    def look_up(self, endpoint: RegistryEndpoint, key: ArtifactKey) -> ArtifactSeen:
        """Transient when the registry does not answer, Refused when what it serves is wrong."""
        source = self._source(endpoint, key)
        kept = self._kept(endpoint, key)
        if kept is not None and source.has_manifest(key.digest):
            return kept
        seen = _look_up(source, key.digest, self._bounds)
        self._keep(endpoint, key, seen)
        return seen

    def _source(self, endpoint: RegistryEndpoint, key: ArtifactKey) -> _Source:
        if not _REPOSITORY.fullmatch(key.repository):
            raise Refused("repository_invalid", f"{key.repository[:100]!r} is no repository name")
        if endpoint.layout_path is not None:
            return _Layout(Path(endpoint.layout_path), self._bounds)
        if not _ENDPOINT.fullmatch(endpoint.endpoint):
            raise Refused("endpoint_invalid", f"{endpoint.endpoint[:100]!r} is not host:port")
        return _Remote(self._client, endpoint, key.repository, self._bounds)

    def _kept(self, endpoint: RegistryEndpoint, key: ArtifactKey) -> ArtifactSeen | None:
        with self._lock:
            if (endpoint, key) in self._cache:
                self._cache.move_to_end((endpoint, key))
            return self._cache.get((endpoint, key))

    def _keep(self, endpoint: RegistryEndpoint, key: ArtifactKey, seen: ArtifactSeen) -> None:
        with self._lock:
            self._cache.pop((endpoint, key), None)
            if seen.exists:
                self._cache[endpoint, key] = seen
            if len(self._cache) > self._entries_max:
                self._cache.popitem(last=False)


# --- what is decided -----------------------------------------------------------------------------


def _look_up(source: _Source, digest: Digest, bounds: _Bounds) -> ArtifactSeen:
    document = _manifest(source, digest, bounds)
    if document is None:
        return ArtifactSeen(exists=False)
    content_size, found = document
    sizes = {digest: content_size}
    if isinstance(found, ImageManifest):
        platforms = {_complete(source, found, bounds, sizes)}
    else:
        platforms = {_child(source, child, bounds, sizes) for child in found.manifests}
    return ArtifactSeen(
        exists=True,
        media_type=found.media_type,
        size_bytes=sum(sizes.values()),
        platforms=tuple(sorted(platforms - {""})),
    )


def _manifest(
    source: _Source, digest: Digest, bounds: _Bounds
) -> tuple[int, ImageManifest | ImageIndex] | None:
    answer = source.manifest(digest)
    if answer is None:
        return None
    content, served_type = answer
    where = f"{source.where}@{digest}"
    _check(content, digest, where)
    return len(content), parse_manifest(content, served_type, bounds.descriptors_max, where)


def _child(source: _Source, child: Descriptor, bounds: _Bounds, sizes: dict[Digest, int]) -> str:
    """Checks one manifest of an index and returns its platform; adds what it weighs to `sizes`."""
    if child.platform.startswith("unknown/"):
        return ""  # An attestation beside the images: no engine pulls it.
    where = f"{source.where}@{child.digest}"
    document = _manifest(source, child.digest, bounds)
    if document is None:
        raise _incomplete("a manifest that its index names", where)
    content_size, found = document
    if isinstance(found, ImageIndex):
        raise Refused("index_nested", "an index inside an index is not supported", where=where)
    if content_size != child.size_bytes:
        raise _wrong_size(child, content_size, where)
    sizes[child.digest] = content_size
    platform = _complete(source, found, bounds, sizes)
    return child.platform or platform


def _complete(
    source: _Source, manifest: ImageManifest, bounds: _Bounds, sizes: dict[Digest, int]
) -> str:
    """Checks that config and layers are there and returns the platform, "" for no image."""
    config = manifest.config
    where = f"{source.where}@{config.digest}"
    if config.size_bytes > bounds.manifest_bytes_max:
        raise _too_large(bounds.manifest_bytes_max, where)
    content = source.blob(config.digest, config.size_bytes)
    if content is None:
        raise _incomplete("the config that its manifest names", where)
    _check(content, config.digest, where)
    if len(content) != config.size_bytes:
        raise _wrong_size(config, len(content), where)
    sizes[config.digest] = len(content)
    for layer in manifest.layers:
        if layer.digest not in sizes:
            # All images of an index count together: each layer is a request that a pass waits for.
            if len(sizes) >= bounds.descriptors_max:
                what = f"more than {bounds.descriptors_max} manifests, configs and layers"
                raise Refused("artifact_too_large", what, where=source.where)
            _check_layer(source, layer)
            sizes[layer.digest] = layer.size_bytes
    return parse_config_platform(content, where) if config.media_type in CONFIG_TYPES else ""


def _check_layer(source: _Source, layer: Descriptor) -> None:
    where = f"{source.where}@{layer.digest}"
    size = source.blob_size_bytes(layer.digest)
    if size is None:
        raise _incomplete("a layer that its manifest names", where)
    if size != layer.size_bytes:
        raise _wrong_size(layer, size, where)


def _check(content: bytes, digest: Digest, where: str) -> None:
    actual = Digest.of(content)
    if actual != digest:
        raise Refused(
            "digest_mismatch",
            f"its bytes hash to {actual}",
            where=where,
            hint="the registry serves something else than was asked for; do not trust it",
        )


def _incomplete(what: str, where: str) -> Refused:
    return Refused(
        "artifact_incomplete", f"{what} is not in the registry", where=where, hint="push it again"
    )


def _wrong_size(descriptor: Descriptor, actual: int, where: str) -> Refused:
    return Refused(
        "size_mismatch", f"{actual} bytes, its descriptor says {descriptor.size_bytes}", where=where
    )


def _too_large(limit: int, where: str) -> Refused:
    return Refused("manifest_too_large", f"larger than {limit} bytes", where=where)


# --- a registry over HTTP ------------------------------------------------------------------------


@dataclass(frozen=True)
class _Remote:
    """One repository, by the distribution API."""

    client: httpx.Client
    endpoint: RegistryEndpoint
    repository: str
    bounds: _Bounds

    @property
    def where(self) -> str:
        return f"{self.endpoint.endpoint}/{self.repository}"

    def has_manifest(self, digest: Digest) -> bool:
        """False as well when a HEAD alone can't tell: the caller then asks with a GET."""
        with self._ask("HEAD", self._url("manifests", digest), f"{self.where}@{digest}") as answer:
            if answer.status_code == 404:
                return False
            _accept_status(answer, f"{self.where}@{digest}")
            return bool(answer.headers.get("Docker-Content-Digest", str(digest)) == str(digest))

    def manifest(self, digest: Digest) -> tuple[bytes, str] | None:
        where = f"{self.where}@{digest}"
        with self._ask("GET", self._url("manifests", digest), where) as answer:
            if answer.status_code == 404:
                self._check_clearly_missing(answer, where)
                return None
            _accept_status(answer, where)
            content = self._read(answer, self.bounds.manifest_bytes_max, where)
            served_type = answer.headers.get("Content-Type", "").partition(";")[0].strip()
            return content, served_type

    def blob(self, digest: Digest, size_bytes: int) -> bytes | None:
        where = f"{self.where}@{digest}"
        with self._ask_store("GET", self._url("blobs", digest), where) as answer:
            if answer.status_code == 404:
                return None
            _accept_status(answer, where)
            return self._read(answer, size_bytes, where)

    def blob_size_bytes(self, digest: Digest) -> int | None:
        where = f"{self.where}@{digest}"
        with self._ask_store("HEAD", self._url("blobs", digest), where) as answer:
            if answer.status_code == 404:
                return None
            _accept_status(answer, where)
            length = answer.headers.get("Content-Length", "")
            if not re.fullmatch(r"\d{1,18}", length):
                raise Refused("registry_odd_answer", "it does not say the size", where=where)
            return int(length)

    def _url(self, what: str, digest: Digest) -> httpx.URL:
        scheme = "http" if self.endpoint.plain_http else "https"
        path = f"/v2/{self.repository}/{what}/{digest}"
        return httpx.URL(f"{scheme}://{self.endpoint.endpoint}{path}")

    @contextmanager
    def _ask(self, method: str, url: httpx.URL, where: str) -> Iterator[httpx.Response]:
        """One request, no redirect; the library's errors leave as Transient."""
        try:
            with self.client.stream(method, url, headers={"Accept": _ACCEPT}) as answer:
                yield answer
        except httpx.TimeoutException:
            raise Transient(
                "registry_timeout", f"no answer in {self.bounds.timeout_s:g} s", where=where
            ) from None
        except httpx.HTTPError as error:
            if "[SSL" in str(error):
                raise Refused(
                    "registry_tls",
                    str(error),
                    where=where,
                    hint="install the registry's CA on this host, or set plain_http",
                ) from None
            raise Transient(
                "registry_unreachable", str(error) or type(error).__name__, where=where
            ) from None

    @contextmanager
    def _ask_store(self, method: str, url: httpx.URL, where: str) -> Iterator[httpx.Response]:
        """One request for a blob, through a few redirects at most."""
        for _ in range(_REDIRECTS_MAX):
            with self._ask(method, url, where) as answer:
                if not answer.has_redirect_location:
                    yield answer
                    return
                url = self._redirected(answer, where)
        raise Refused("registry_redirected", f"more than {_REDIRECTS_MAX} redirects", where=where)

    def _redirected(self, answer: httpx.Response, where: str) -> httpx.URL:
        try:
            target = answer.request.url.join(answer.headers["Location"])
        except httpx.InvalidURL:
            raise Refused("registry_redirected", "to what is no address", where=where) from None
        schemes = ("http", "https") if self.endpoint.plain_http else ("https",)
        if target.scheme not in schemes or not target.host:
            raise Refused(
                "registry_redirected",
                f"to {target.scheme or 'no scheme'}, expected {' or '.join(schemes)}",
                where=where,
            )
        return target

    def _read(self, answer: httpx.Response, limit: int, where: str) -> bytes:
        """The body as sent, up to `limit` bytes and within the time allowed, however it drips."""
        if answer.headers.get("Content-Encoding", "identity") != "identity":
            raise Refused("registry_odd_answer", "it is encoded, unasked", where=where)
        deadline = time.monotonic() + self.bounds.timeout_s
        content = bytearray()
        for piece in answer.iter_raw():
            content += piece
            if len(content) > limit:
                raise _too_large(limit, where)
            if time.monotonic() > deadline:
                raise Transient(
                    "registry_timeout", f"not read in {self.bounds.timeout_s:g} s", where=where
                )
        return bytes(content)

    def _check_clearly_missing(self, answer: httpx.Response, where: str) -> None:
        content = self._read(answer, _ERROR_BYTES_MAX, where)
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


def _accept_status(answer: httpx.Response, where: str) -> None:
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
        raise Refused(
            "registry_denied", f"answered {status}", where=where, hint="it asks for a credential"
        )
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


# --- an image layout -----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Layout:
    """A folder in the OCI image-layout form. It has no repositories: content alone is asked for."""

    folder: Path
    bounds: _Bounds

    def __post_init__(self) -> None:
        if not (self.folder / "oci-layout").is_file():
            raise Refused("layout_missing", "there is no OCI image layout", where=str(self.folder))

    @property
    def where(self) -> str:
        return str(self.folder)

    def has_manifest(self, digest: Digest) -> bool:
        return self.blob_size_bytes(digest) is not None

    def manifest(self, digest: Digest) -> tuple[bytes, str] | None:
        content = self._read(digest, self.bounds.manifest_bytes_max)
        return None if content is None else (content, "")

    def blob(self, digest: Digest, size_bytes: int) -> bytes | None:
        return self._read(digest, size_bytes)

    def blob_size_bytes(self, digest: Digest) -> int | None:
        with self._errors(digest):
            try:
                found = self._path(digest).lstat()
            except FileNotFoundError:
                return None
            if not stat.S_ISREG(found.st_mode):
                raise Refused("layout_odd", "not a plain file", where=f"{self.where}@{digest}")
            return found.st_size

    def _path(self, digest: Digest) -> Path:
        return self.folder / "blobs" / "sha256" / digest.value.removeprefix("sha256:")

    def _read(self, digest: Digest, limit: int) -> bytes | None:
        if self.blob_size_bytes(digest) is None:
            return None
        with self._errors(digest), self._path(digest).open("rb") as file:
            content = file.read(limit + 1)
        if len(content) > limit:
            raise _too_large(limit, f"{self.where}@{digest}")
        return content

    @contextmanager
    def _errors(self, digest: Digest) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise Transient(
                "layout_unreadable", os.strerror(error.errno or 0), where=f"{self.where}@{digest}"
            ) from None
