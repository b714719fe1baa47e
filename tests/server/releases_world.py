"""A control plane with a few releases, one of them withdrawn, and an artifact store."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from queue import SimpleQueue
from typing import Any

import httpx

from reconciler.artifact_ports import BlobStore
from reconciler.core.records import Accepted
from reconciler.server.app import ServerDeps, Signal, build_app
from reconciler.server.metrics import Metrics
from reconciler.server.serve import serve
from tests.core import builders as b
from tests.fakes.blobs import MemoryBlobs
from tests.fakes.store import MemoryStore
from tests.server.harness import Keys, StillClock, settings_of

CLI = bytes(range(256)) * 1200
SDK = b"a wheel"
GONE = b"nobody put this into the store"
IMAGE = "gpuaas/platform/agent"


def digest_of(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()


def blob(content: bytes, source: str) -> dict[str, Any]:
    return {
        "kind": "blob",
        "source": f"artifact_store://platform/releases/{source}",
        "digest": digest_of(content),
        "size_bytes": len(content),
    }


def documents() -> b.Documents:
    image = {"kind": "oci", "repository": IMAGE, "digest": digest_of(b"x"), "size_bytes": 9}
    components = {
        "cli": {
            "linux/amd64": blob(CLI, "0.10.0/gpuaas-0.10.0-linux-amd64.tar.gz"),
            "linux/arm64": blob(GONE, "0.10.0/gone.tar.gz"),
        },
        "sdk": {"any": blob(SDK, "0.10.0/")},
        "agent": {"linux/amd64": image},
    }
    found: b.Documents = {}
    for version, fields in {
        "0.9.0": {"channel": "stable"},
        "0.10.0": {"channel": "stable", "released_at": "2026-11-02T08:30:00Z", "notes": "better"},
        "0.11.0-rc.1": {"channel": "next"},
        "0.8.0": {"channel": "stable", "state": "withdrawn", "reason": "it leaks"},
    }.items():
        spec = {"state": "published", "components": components, **fields}
        b.add(found, f"platform/releases/{version}.yaml", spec, version)
    return found


ACCEPTED: Accepted = b.accepted(documents())
BLOBS = MemoryBlobs()
BLOBS.put(CLI, blob(CLI, "0.10.0/gpuaas-0.10.0-linux-amd64.tar.gz")["source"])
BLOBS.put(SDK, blob(SDK, "0.10.0/")["source"])
CLI_PATH = "/v1/releases/0.10.0/cli/linux/amd64"


@contextmanager
def serving(blobs: BlobStore | None = BLOBS, **fields: Any) -> Iterator[httpx.Client]:
    store, chosen = MemoryStore(), settings_of(**fields)
    store.save_accepted(ACCEPTED)
    woken: SimpleQueue[str] = SimpleQueue()
    deps = ServerDeps(store, Keys(), StillClock(), chosen, woken.put, Signal(), Metrics())
    deps = replace(deps, blobs=blobs)
    with serve(build_app(deps), chosen) as url, httpx.Client(base_url=url, timeout=60) as client:
        yield client
