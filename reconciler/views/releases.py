"""Releases for machines, and their rows for people. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from reconciler.core.kinds.platform_release import Build
from reconciler.use_cases.releases import ANY, Release, file_name

RELEASES = "/v1/releases"


def releases_document(found: Iterable[Release]) -> dict[str, Any]:
    return {"releases": [release_document(one) for one in found]}


def release_document(found: Release) -> dict[str, Any]:
    """The manifest of one version: every build with its digest, and where it comes from."""
    return {
        "version": found.version,
        "channel": found.spec.channel,
        "released_at": found.spec.released_at,
        "notes": found.spec.notes,
        "builds": [
            _build_document(found, component, platform, build)
            for (component, platform), build in found.builds.items()
        ],
    }


def _build_document(found: Release, component: str, platform: str, build: Build) -> dict[str, Any]:
    """`path` is where its bytes are given; None for an image, which the registry gives."""
    is_blob = build.kind == "blob"
    place = f"{ANY}/{ANY}" if platform == ANY else platform
    return {
        "component": component,
        "platform": platform,
        "kind": build.kind,
        "digest": build.digest,
        "size_bytes": build.size_bytes,
        "media_type": build.media_type,
        "file_name": file_name(found, component, platform, build) if is_blob else None,
        "path": f"{RELEASES}/{found.version}/{component}/{place}" if is_blob else None,
        "reference": None if is_blob else f"{build.repository}@{build.digest}",
    }


def release_rows(document: Mapping[str, Any]) -> Iterator[tuple[str, str, str, str, str]]:
    """(component, platform, size, digest, file or reference) of each build."""
    for one in document["builds"]:
        yield (
            one["component"],
            one["platform"],
            size_text(one["size_bytes"]),
            one["digest"],
            one["file_name"] or one["reference"],
        )


def size_text(size_bytes: int) -> str:
    """12 MiB; small ones in KiB."""
    if size_bytes < 1024 * 1024:
        return f"{max(1, round(size_bytes / 1024))} KiB"
    return f"{size_bytes / (1024 * 1024):.1f} MiB"


def platforms_of(document: Mapping[str, Any]) -> dict[str, list[str]]:
    """Component → what it is built for."""
    found: dict[str, list[str]] = {}
    for one in document["builds"]:
        found.setdefault(one["component"], []).append(one["platform"])
    return found
