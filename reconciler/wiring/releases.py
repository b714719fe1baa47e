"""The catalog of releases, of a control plane elsewhere or of this host, and its downloads."""

from __future__ import annotations

import hashlib
import os
import platform
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from reconciler.adapters.part_file import open_part
from reconciler.artifact_ports import NO_SUCH_BLOB, PUBLISH_IT
from reconciler.core.names import Digest
from reconciler.core.records import Accepted
from reconciler.errors import Refused
from reconciler.ports import BlobStore, Secret
from reconciler.settings import Settings
from reconciler.use_cases.releases import refuse_bytes, release_of, releases_of
from reconciler.views.releases import RELEASES, release_document, releases_document
from reconciler.wiring.blobs import open_blob_store
from reconciler.wiring.ports import open_ports

Document = dict[str, Any]
Told = Callable[[int, int], None]
_SYSTEMS = {"linux": "linux", "darwin": "darwin", "win32": "windows"}
_MACHINES = {"x86_64": "amd64", "amd64": "amd64", "aarch64": "arm64", "arm64": "arm64"}
_PIECE_BYTES = 1024 * 1024


class Catalog(Protocol):
    """What is published. `fetch` brings a build (one of `release`'s) to a place, checked."""

    def releases(self, channel: str) -> Document: ...

    def release(self, version: str) -> Document: ...

    def fetch(self, version: str, build: Mapping[str, Any], place: Path, told: Told) -> None: ...


@contextmanager
def open_catalog(settings: Settings, server: str | None, token: Secret | None) -> Iterator[Catalog]:
    """That of the control plane at `server`, else of the one that keeps its state on this host."""
    if server is not None:
        yield _Elsewhere(settings, server, token)
        return
    with open_ports(settings, make=False) as ports:
        yield _Here(ports.store.accepted(), open_blob_store(settings))


class _Elsewhere:
    def __init__(self, settings: Settings, server: str, token: Secret | None) -> None:
        self._timeout_s = settings.fetch_timeout_s
        self._server = server
        self._token = token

    def releases(self, channel: str) -> Document:
        return self._ask(RELEASES, {"channel": channel} if channel else {})

    def release(self, version: str) -> Document:
        return self._ask(f"{RELEASES}/{version}", {})

    def fetch(self, version: str, build: Mapping[str, Any], place: Path, told: Told) -> None:
        from reconciler.adapters.blob_http import BlobServer, download  # noqa: PLC0415 - loads HTTP

        server = BlobServer(self._server, "", self._token or Secret(""), self._timeout_s)
        system = build["platform"] if "/" in build["platform"] else "any/any"
        path = f"{RELEASES}/{version}/{build['component']}/{system}"
        download(server, Digest.parse(build["digest"]), place, told, path)

    def _ask(self, path: str, query: dict[str, str]) -> Document:
        from reconciler.adapters.release_http import ask_catalog  # noqa: PLC0415 - loads HTTP

        return ask_catalog(self._server, path, query, self._token, self._timeout_s)


class _Here:
    def __init__(self, accepted: Accepted, blobs: BlobStore) -> None:
        self._accepted = accepted
        self._blobs = blobs

    def releases(self, channel: str) -> Document:
        return releases_document(releases_of(self._accepted, channel))

    def release(self, version: str) -> Document:
        return release_document(release_of(self._accepted, version))

    def fetch(self, version: str, build: Mapping[str, Any], place: Path, told: Told) -> None:
        found = release_of(self._accepted, version).builds[build["component"], build["platform"]]
        refuse_bytes(found)
        digest = Digest.parse(found.digest)
        if not self._blobs.claimed(found.source or "", digest):
            raise Refused("no_such_blob", NO_SUCH_BLOB, where=str(digest), hint=PUBLISH_IT)
        copied(self._blobs, digest, place, told)


def copied(blobs: BlobStore, digest: Digest, place: Path, told: Told) -> None:
    """A blob of this host's store, in place of the file that was there once it hashed right.

    Refused: no_such_blob, blob_damaged, not_written.
    """
    part = place.with_name(f"{place.name}.{digest.short}.part")
    total = blobs.size_bytes(digest)
    if total is None:
        raise Refused("no_such_blob", "this blob is not in the artifact store", where=str(digest))
    running, done = hashlib.sha256(), 0
    try:
        with open_part(part, _PIECE_BYTES) as file:
            file.truncate()
            for piece in blobs.read(digest):
                file.write(piece)
                running.update(piece)
                done += len(piece)
                told(done, total)
        if f"sha256:{running.hexdigest()}" != digest.value:
            part.unlink()
            message = "what the store has does not hash to it"
            raise Refused("blob_damaged", message, where=str(digest), hint="it was dropped")
        os.replace(part, place)
    except OSError as error:
        raise Refused("not_written", f"{error.strerror}", where=str(place)) from None


def is_there(place: Path, digest: str) -> bool:
    """Whether the file has this content already."""
    try:
        with place.open("rb") as file:
            return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}" == digest
    except OSError:
        return False


def this_platform() -> str:
    """os/arch of this host, as releases name it; what they don't know stays as it is called."""
    machine = platform.machine().lower()
    return f"{_SYSTEMS.get(sys.platform, sys.platform)}/{_MACHINES.get(machine, machine)}"
