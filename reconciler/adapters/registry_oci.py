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

import threading
from collections import OrderedDict
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from reconciler.adapters.oci_documents import (
    CONFIG_TYPES,
    Descriptor,
    ImageIndex,
    ImageManifest,
    parse_config_platform,
    parse_manifest,
)
from reconciler.adapters.oci_layout import Layout
from reconciler.adapters.registry_attach import Attaching
from reconciler.adapters.registry_attached import Collecting
from reconciler.adapters.registry_copy import Copying
from reconciler.adapters.registry_http import (
    ENDPOINT,
    REPOSITORY,
    Bearer,
    Bounds,
    Remote,
    address_of,
    bounds_of,
    open_client,
    too_large,
)
from reconciler.adapters.registry_references import References, WithoutReferrers
from reconciler.artifact_ports import Attached, Document
from reconciler.core.names import ArtifactKey, Digest
from reconciler.core.observed import ArtifactSeen
from reconciler.errors import Refused
from reconciler.ports import RegistryEndpoint
from reconciler.settings import Settings


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

    def __init__(self, settings: Settings, bearer: Bearer | None = None) -> None:
        self._bounds = bounds_of(settings)
        self._entries_max = settings.registry_cache_entries_max
        self._cache: OrderedDict[tuple[RegistryEndpoint, ArtifactKey], ArtifactSeen] = OrderedDict()
        self._lock = threading.Lock()
        self._client = open_client(settings)
        self._look_timeout_s = settings.registry_look_timeout_s
        self._bearer = bearer
        self._without = WithoutReferrers()

    def close(self) -> None:
        self._client.close()

    def look_up(self, endpoint: RegistryEndpoint, key: ArtifactKey) -> ArtifactSeen:
        """Transient when the registry does not answer, Refused when what it serves is wrong."""
        source = self._source(endpoint, key.repository)
        kept = self._kept(endpoint, key)
        with self._in_time():
            if kept is not None and source.has_manifest(key.digest):
                return kept
            seen = _look_up(source, key.digest, self._bounds)
        self._keep(endpoint, key, seen)
        return seen

    def copy(self, endpoint: RegistryEndpoint, key: ArtifactKey, to: str, tag: str = "") -> None:
        source = self.remote(endpoint, key.repository)
        target = self.remote(endpoint, to)
        target = replace(target, actions=("pull", "push"), more=(key.repository,))
        with self._in_time():
            Copying(source, target).run(key.digest, tag)

    def attached(self, endpoint: RegistryEndpoint, key: ArtifactKey) -> Attached:
        source = self._source(endpoint, key.repository)
        places = References(source, self._without) if isinstance(source, Remote) else source
        with self._in_time():
            return Collecting(places, key.digest, self._bounds).run()

    def attach(self, endpoint: RegistryEndpoint, key: ArtifactKey, document: Document) -> str:
        remote = replace(self.remote(endpoint, key.repository), actions=("pull", "push"))
        with self._in_time():
            return Attaching(remote, key.digest).run(document)

    def remote(self, endpoint: RegistryEndpoint, repository: str) -> Remote:
        """A repository to ask and to push to. Refused("layout_read_only") for a folder."""
        found = self._source(endpoint, repository)
        if not isinstance(found, Remote):
            raise Refused("layout_read_only", "a folder is only read", where=found.where)
        return found

    def _in_time(self) -> AbstractContextManager[None]:
        """All that one call asks, in the time of one look."""
        return self._client.within(self._look_timeout_s)

    def _source(self, endpoint: RegistryEndpoint, repository: str) -> Remote | Layout:
        if not REPOSITORY.fullmatch(repository):
            raise Refused("repository_invalid", f"{repository[:100]!r} is no repository name")
        if endpoint.layout_path is not None:
            return Layout(Path(endpoint.layout_path), self._bounds)
        host = endpoint.endpoint
        if not ENDPOINT.fullmatch(host) or address_of(f"http://{host}") is None:
            raise Refused("endpoint_invalid", f"{endpoint.endpoint[:100]!r} is not host:port")
        return Remote(self._client, endpoint, repository, self._bounds, self._bearer)

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


def _look_up(source: _Source, digest: Digest, bounds: Bounds) -> ArtifactSeen:
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
    source: _Source, digest: Digest, bounds: Bounds
) -> tuple[int, ImageManifest | ImageIndex] | None:
    answer = source.manifest(digest)
    if answer is None:
        return None
    content, served_type = answer
    where = f"{source.where}@{digest}"
    _check(content, digest, where)
    return len(content), parse_manifest(content, served_type, bounds.descriptors_max, where)


def _child(source: _Source, child: Descriptor, bounds: Bounds, sizes: dict[Digest, int]) -> str:
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
    source: _Source, manifest: ImageManifest, bounds: Bounds, sizes: dict[Digest, int]
) -> str:
    """Checks that config and layers are there and returns the platform, "" for no image."""
    config = manifest.config
    where = f"{source.where}@{config.digest}"
    if config.size_bytes > bounds.manifest_bytes_max:
        raise too_large(bounds.manifest_bytes_max, where)
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
