"""An artifact from one registry into another, with what is attached to it.

Rules:
- Bytes pass through the host that exports, in pieces, hashed on the way; a blob that is not what
  its digest says never becomes one of the target.
- What the target has already is not sent again: an export that broke off goes on with what is left.
- Manifests and what is attached are brought as a copy within one registry brings them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from reconciler.adapters.oci_documents import Descriptor
from reconciler.adapters.registry_copy import Copying
from reconciler.adapters.registry_http import accept_status
from reconciler.adapters.registry_oci import OciRegistry
from reconciler.adapters.registry_references import accept, upload_place
from reconciler.artifact_ports import Carried, RegistryEndpoint
from reconciler.core.names import ArtifactKey, Digest
from reconciler.errors import Refused

Moved = Callable[[Digest, int], None]
"""Told of every blob that was sent, with its size in bytes."""


def _untold(_digest: Digest, _size_bytes: int) -> None:
    """Where nobody wants to hear of it."""


@dataclass(frozen=True)
class RegistryExporter:
    """Implements `artifact_ports.Exporter`; `moved` hears of each blob that was sent."""

    source: OciRegistry
    target: OciRegistry
    moved: Moved = _untold

    def carry(
        self,
        source: RegistryEndpoint,
        key: ArtifactKey,
        target: RegistryEndpoint,
        to: str,
        tag: str,
    ) -> Carried:
        sizes: list[int] = []

        def moved(digest: Digest, size_bytes: int) -> None:
            sizes.append(size_bytes)
            self.moved(digest, size_bytes)

        place = replace(self.target.remote(target, to), actions=("pull", "push"))
        Exporting(self.source.remote(source, key.repository), place, moved=moved).run(
            key.digest, tag
        )
        return Carried(len(sizes), sum(sizes))


@dataclass(frozen=True)
class Exporting(Copying):
    """`source` and `target` are of two registries; `moved` hears of each blob that was sent."""

    moved: Moved = _untold

    def bring(self, blobs: Iterable[Descriptor]) -> None:
        for blob in blobs:
            if blob.digest not in self.there:
                self._send(blob)
                self.there.add(blob.digest)

    def _send(self, blob: Descriptor) -> None:
        if self.target.blob_size_bytes(blob.digest) == blob.size_bytes:
            return
        where = f"{self.target.where}@{blob.digest}"
        place = upload_place(self.target, where).copy_merge_params({"digest": str(blob.digest)})
        headers = {
            "Content-Type": "application/octet-stream",
            "Content-Length": str(blob.size_bytes),
        }
        pieces = self._pieces(blob)
        with self.target.ask("PUT", place, where, content=pieces, headers=headers) as answer:
            accept(answer, where, 201)
        self.moved(blob.digest, blob.size_bytes)

    def _pieces(self, blob: Descriptor) -> Iterator[bytes]:
        """The source's bytes. What is wrong ends the request before its last byte, so that the
        target never hears of a whole blob.
        """
        where = f"{self.source.where}@{blob.digest}"
        hashed, left = hashlib.sha256(), blob.size_bytes
        url = self.source.url(f"blobs/{blob.digest}")
        with self.source.ask_store("GET", url, where) as answer:
            accept_status(answer, where)
            if answer.headers.get("Content-Encoding", "identity") != "identity":
                raise Refused("registry_odd_answer", "it is encoded, unasked", where=where)
            last = b""
            for piece in answer.iter_raw():
                hashed.update(piece)
                left -= len(piece)
                if left < 0:
                    raise Refused("size_mismatch", "more than its descriptor says", where=where)
                yield last
                last = piece
        if left or f"sha256:{hashed.hexdigest()}" != str(blob.digest):
            message = f"its bytes hash to sha256:{hashed.hexdigest()}"
            hint = "the registry serves something else than was asked for; do not trust it"
            raise Refused("digest_mismatch", message, where=where, hint=hint)
        yield last
