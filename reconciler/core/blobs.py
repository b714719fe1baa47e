"""Blobs of versions and of nodes: which are read, and which are to be on which node ahead. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from functools import lru_cache

from node_agent.wire import BlobFile
from reconciler.core.desired import BlobWish
from reconciler.core.kinds.app_version import AppVersionSpec, RuntimeProfile
from reconciler.core.world import Path, World

BLOBS_POINTER = "/spec/runtime_profile/blobs"
_GOOD = frozenset(("published", "promoted", "deprecated"))
"""States of an Artifact in which it is brought to nodes ahead."""


def blob_refs(spec: AppVersionSpec) -> tuple[tuple[str, str], ...]:
    """(pointer, `artifact_store://…@digest`) of every blob that the version reads."""
    blobs = spec.runtime_profile.blobs
    return tuple((f"{BLOBS_POINTER}/{index}/ref", blob.ref) for index, blob in enumerate(blobs))


def blob_files(profile: RuntimeProfile) -> tuple[BlobFile, ...]:
    """As a workload has them, by name."""
    return tuple(sorted((_file(blob.name, blob.ref) for blob in profile.blobs), key=_name_of))


def wishes_of(world: World) -> tuple[BlobWish, ...]:
    """A blob with `prefetch` on every node where its project has an active allocation, sorted."""
    wanted = [e for e in world.artifacts.values() if e.spec.prefetch and e.spec.state in _GOOD]
    nodes = _nodes_of_projects(world) if wanted else {}
    found = {
        BlobWish(node, entry.spec.digest, entry.spec.source or "", str(entry.ref))
        for entry in wanted
        for node in nodes.get(entry.path[:2], ())
    }
    return tuple(sorted(found))


def _nodes_of_projects(world: World) -> Mapping[Path, set[str]]:
    nodes: dict[Path, set[str]] = defaultdict(set)
    for lease in world.allocations.values():
        if lease.spec.state == "active" and (lease.spec.node,) in world.nodes:
            nodes[lease.path[:2]].add(lease.spec.node)
    return nodes


@lru_cache(maxsize=4096)
def _file(name: str, ref: str) -> BlobFile:
    source, _, digest = ref.rpartition("@")
    return BlobFile(name=name, source=source, digest=digest)


def _name_of(blob: BlobFile) -> str:
    return blob.name
