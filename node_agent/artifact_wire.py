"""What crosses the wire about artifacts: blobs by digest, and credentials to pull images with."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from node_agent.wire_base import Wire

PULL_TOKEN_REQUEST_TYPE = "application/vnd.gpuaas.pull-token-request.v1+json"  # noqa: S105
BLOB_REQUEST_TYPE = "application/vnd.gpuaas.blob-request.v1+json"
BLOBS_PATH = "/run/gpuaas/blobs"
"""Where a workload finds its blobs, one read-only file each."""
BLOB_DIGEST = r"^sha256:[0-9a-f]{64}$"


class BlobFile(Wire):
    """A file that the workload reads at `BLOBS_PATH/name`: content that hashes to `digest`.

    `source` is where it is kept, `artifact_store://…`; it decides nothing once the hash is right.
    """

    name: str = Field(pattern=r"^[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?$")
    source: str
    digest: str = Field(pattern=BLOB_DIGEST)


class BlobSeen(Wire):
    """A blob on a node: `ready` once every byte of it was hashed there.

    Before, `bytes_done` are there already and `error` says why the last try ended, code and
    message, empty while it goes on.
    """

    digest: str = Field(pattern=BLOB_DIGEST)
    state: Literal["ready", "pulling", "failed"]
    bytes_done: int = 0
    size_bytes: int | None = None
    error: str = ""


class PullTokenRequest(Wire):
    """Asks for a token to pull the image of one instance of this node, signed by its agent."""

    node: str
    sent_at_ms: int
    instance: str
    repository: str
    digest: str = Field(pattern=BLOB_DIGEST)


class PullToken(Wire):
    """A registry's bearer token for that repository, to pull with; empty: it asks for none."""

    token: str = ""
    expires_at_ms: int = 0


class BlobRequest(Wire):
    """Asks for a blob that a task of this node named, signed by its agent; from `offset` on."""

    node: str
    sent_at_ms: int
    source: str
    digest: str = Field(pattern=BLOB_DIGEST)
    offset: int = Field(default=0, ge=0)
