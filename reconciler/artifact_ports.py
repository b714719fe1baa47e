"""What the control plane needs of registries and of the artifact store. Part of `ports`.

Every method may raise `errors.Transient` or `errors.Refused`, and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

from reconciler.core.names import ArtifactKey, Digest
from reconciler.core.observed import ArtifactSeen

NO_SUCH_BLOB = "this blob is not in the artifact store as what its source says"
PUBLISH_IT = "publish it from the project that its source names: gpuaas intent publish --kind blob"
"""What is told of a blob that is not there, and of one that somebody else published alone: nobody
can tell the two apart.
"""

AttachedForm = Literal["classic_signature", "classic_attestation", "bundle"]


@dataclass(frozen=True)
class Document:
    """A signature or attestation as it is kept in a registry.

    classic_signature: `content` is the simple-signing payload and `signature` its base64 signature.
    classic_attestation: `content` is a DSSE envelope. bundle: `content` is a bundle v0.3.
    `digest` is that of the manifest it was found in, empty for one that is to be attached.
    """

    form: AttachedForm
    content: bytes
    signature: str = ""
    digest: str = ""
    predicate_type: str = ""


@dataclass(frozen=True)
class Unusable:
    """Something attached that can't be used, with why."""

    digest: str
    code: str
    message: str


@dataclass(frozen=True)
class Attached:
    documents: tuple[Document, ...] = ()
    unusable: tuple[Unusable, ...] = ()


@dataclass(frozen=True)
class BlobPart:
    """An upload that goes on: what of it is kept already."""

    bytes_done: int


class BlobStore(Protocol):
    """Blobs by content. A blob is there once all of its bytes hashed to its digest, never before.

    A blob is shared by all who publish the same bytes, and who may have it is not: `claim` notes
    that somebody sent these very bytes for that source, and nothing is given without.

    Upload names are words of ours (`core.transfers.Transfer.id`). Raises Transient
    (`blob_store_unreachable`, `blob_store_full`) and Refused.
    """

    def size_bytes(self, digest: Digest) -> int | None:
        """None when it is not there."""
        ...

    def read(self, digest: Digest, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """Bytes start..end (excluded), in pieces. Refused("no_such_blob")."""
        ...

    def address(self, digest: Digest, ttl_s: float) -> str | None:
        """A URL that gives it to whoever has it, for that long; None where there is none."""
        ...

    def part(self, upload: str) -> BlobPart: ...

    def append(self, upload: str, offset: int, pieces: Iterable[bytes]) -> BlobPart:
        """Adds to an upload. Refused("wrong_offset") unless `offset` is what is kept; what came
        before `pieces` ended early is kept.
        """
        ...

    def finish(self, upload: str, digest: Digest) -> int:
        """Hashes what was uploaded and keeps it; its size. Refused("digest_mismatch") drops it."""
        ...

    def discard(self, upload: str) -> None:
        """Drops what was uploaded. Transient("upload_busy") while somebody is at it."""
        ...

    def claim(self, source: str, digest: Digest) -> None:
        """Notes that this blob was published as `source` (`artifact_store://…`), for good."""
        ...

    def claimed(self, source: str, digest: Digest) -> bool: ...

    def delete(self, digest: Digest) -> None: ...


@dataclass(frozen=True)
class RegistryEndpoint:
    """host:port of a registry, or a folder with an OCI image layout when `layout_path` is set."""

    endpoint: str
    plain_http: bool = False
    layout_path: str | None = None
    token_auth: bool = False


class Registry(Protocol):
    """Reads artifacts by digest and hashes every byte. `exists=False` only on a clear 404."""

    def look_up(self, endpoint: RegistryEndpoint, key: ArtifactKey) -> ArtifactSeen: ...

    def attached(self, endpoint: RegistryEndpoint, key: ArtifactKey) -> Attached:
        """Signatures and attestations that are kept beside the artifact, every byte hashed."""
        ...

    def copy(self, endpoint: RegistryEndpoint, key: ArtifactKey, to: str, tag: str = "") -> None:
        """The artifact, and what is attached to it, into repository `to` of the same registry.

        No layer passes through here: Refused("mount_unsupported") where the registry can't.
        """
        ...

    def attach(self, endpoint: RegistryEndpoint, key: ArtifactKey, document: Document) -> str:
        """Puts a signature or attestation beside the artifact; the digest it has there."""
        ...


@dataclass(frozen=True)
class Carried:
    """What an export sent; what the target had already is not in it."""

    blobs: int
    size_bytes: int


class Exporter(Protocol):
    """Two registries, each with its own way in."""

    @property
    def source(self) -> Registry: ...

    @property
    def target(self) -> Registry: ...

    def carry(
        self,
        source: RegistryEndpoint,
        key: ArtifactKey,
        target: RegistryEndpoint,
        to: str,
        tag: str,
    ) -> Carried:
        """The artifact and what is attached to it into repository `to` of the target."""
        ...
