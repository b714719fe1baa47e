"""An artifact store in memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from reconciler.artifact_ports import BlobPart
from reconciler.core.names import Digest
from reconciler.errors import Refused, Transient

PIECE_BYTES = 64 * 1024


@dataclass
class MemoryBlobs:
    """`room_bytes`: how much it takes. `away`: nothing answers. `addresses`: what `address` gives.

    `read_pieces` counts what readers took.
    """

    blobs: dict[Digest, bytes] = field(default_factory=dict)
    parts: dict[str, bytearray] = field(default_factory=dict)
    done: dict[str, Digest] = field(default_factory=dict)
    room_bytes: int = 2**40
    away: bool = False
    addresses: dict[Digest, str] = field(default_factory=dict)
    read_pieces: int = 0
    claims: set[tuple[str, Digest]] = field(default_factory=set)

    def put(self, content: bytes, *sources: str) -> Digest:
        """As if it had been published as each of these."""
        digest = Digest.of(content)
        self.blobs[digest] = content
        self.claims.update((source, digest) for source in sources)
        return digest

    def close(self) -> None:
        """Nothing is held."""

    def size_bytes(self, digest: Digest) -> int | None:
        self._refuse_away()
        found = self.blobs.get(digest)
        return None if found is None else len(found)

    def read(self, digest: Digest, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        self._refuse_away()
        if digest not in self.blobs:
            raise Refused("no_such_blob", "there is no such blob", where=str(digest))
        return self._pieces(self.blobs[digest][start:end])

    def address(self, digest: Digest, ttl_s: float) -> str | None:
        return self.addresses.get(digest)

    def part(self, upload: str) -> BlobPart:
        self._refuse_away()
        if upload in self.done:
            return BlobPart(len(self.blobs[self.done[upload]]))
        return BlobPart(len(self.parts.get(upload, b"")))

    def append(self, upload: str, offset: int, pieces: Iterable[bytes]) -> BlobPart:
        self._refuse_away()
        if upload in self.done:
            raise Refused("upload_finished", "this upload was finished")
        kept = self.parts.setdefault(upload, bytearray())
        if len(kept) != offset:
            raise Refused("wrong_offset", f"{len(kept)} bytes are kept, not {offset}")
        for piece in pieces:
            room = self.room_bytes - len(kept)
            kept += piece[:room]
            if room < len(piece):
                raise Transient("blob_store_full", "there is no room left for blobs")
        return BlobPart(len(kept))

    def finish(self, upload: str, digest: Digest) -> int:
        self._refuse_away()
        if upload not in self.done:
            if upload not in self.parts:
                raise Refused("no_such_upload", "nothing was uploaded under this name")
            content = bytes(self.parts.pop(upload))
            if Digest.of(content) != digest:
                raise Refused("digest_mismatch", f"they hash to {Digest.of(content)}")
            self.blobs[digest] = content
            self.done[upload] = digest
        elif self.done[upload] != digest:
            raise Refused("digest_mismatch", f"they hash to {self.done[upload]}")
        return len(self.blobs[digest])

    def discard(self, upload: str) -> None:
        self.parts.pop(upload, None)
        self.done.pop(upload, None)

    def claim(self, source: str, digest: Digest) -> None:
        self._refuse_away()
        self.claims.add((source, digest))

    def claimed(self, source: str, digest: Digest) -> bool:
        self._refuse_away()
        return (source, digest) in self.claims

    def delete(self, digest: Digest) -> None:
        self.blobs.pop(digest, None)

    def _pieces(self, content: bytes) -> Iterator[bytes]:
        for start in range(0, len(content), PIECE_BYTES):
            self.read_pieces += 1
            yield content[start : start + PIECE_BYTES]

    def _refuse_away(self) -> None:
        if self.away:
            raise Transient("blob_store_unreachable", "the artifact store does not answer")
