"""OCI and Docker manifests, indexes and image configs: from bytes that were hashed to plain values.

Rules: no network, no disk. Odd content is Refused with what is odd; nothing is guessed. So is what
another reader may take otherwise: a name given twice, or in other capitals, which engines in Go
take for the same.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from reconciler.core.names import Digest
from reconciler.errors import Refused

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST_TYPES = frozenset(
    {
        OCI_MANIFEST,
        "application/vnd.docker.distribution.manifest.v2+json",
    }
)
INDEX_TYPES = frozenset(
    {
        OCI_INDEX,
        "application/vnd.docker.distribution.manifest.list.v2+json",
    }
)
CONFIG_TYPES = frozenset(
    {
        "application/vnd.oci.image.config.v1+json",
        "application/vnd.docker.container.image.v1+json",
    }
)
_NAMES = {
    name.casefold(): name
    for name in (
        *("schemaVersion", "mediaType", "artifactType", "config", "layers", "manifests", "subject"),
        *("digest", "size", "platform", "urls", "data", "annotations"),
    )
}
_PLATFORM_WORD = re.compile(r"[A-Za-z0-9][-._A-Za-z0-9]{0,63}")


@dataclass(frozen=True)
class Descriptor:
    """A reference by content. `platform` is `os/architecture[/variant]` if an index gives one."""

    media_type: str
    digest: Digest
    size_bytes: int
    platform: str = ""


@dataclass(frozen=True)
class ImageManifest:
    media_type: str
    config: Descriptor
    layers: tuple[Descriptor, ...]


@dataclass(frozen=True)
class ImageIndex:
    media_type: str
    manifests: tuple[Descriptor, ...]


def parse_manifest(
    content: bytes, served_type: str, descriptors_max: int, where: str
) -> ImageManifest | ImageIndex:
    """`served_type` is what the registry said it is; empty when nobody said, as in a layout.

    A document that can be read as two kinds, or that names another kind than it was served as, is
    refused: two readers would take it for two different images.
    """
    document = _object(content, where)
    _check_names(document, "the manifest", where)
    media_type = _media_type(document, served_type, where)
    if ("manifests" in document) == ("config" in document or "layers" in document):
        raise _odd("it is both an index and a manifest, or neither", where)
    if (media_type in INDEX_TYPES) != ("manifests" in document):
        raise _odd(f"its content is not what {media_type} stands for", where)
    if media_type in INDEX_TYPES:
        return ImageIndex(
            media_type, _descriptors(document["manifests"], "manifests", descriptors_max, where)
        )
    return ImageManifest(
        media_type,
        _descriptor(document.get("config"), "config", where),
        _descriptors(document.get("layers"), "layers", descriptors_max, where),
    )


def parse_config_platform(content: bytes, where: str) -> str:
    """`os/architecture[/variant]` of an image config."""
    return _platform(_object(content, where), "config", where)


class _Twice(ValueError):
    pass


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _Twice
    return found


def _check_names(document: dict[str, Any], what: str, where: str) -> None:
    for name in document:
        meant = _NAMES.get(name.casefold(), name)
        if name != meant:
            raise _odd(f"{what} has {name[:40]!r}, which some read as {meant}", where)


def _object(content: bytes, where: str) -> dict[str, Any]:
    try:
        document = json.loads(content, object_pairs_hook=_once)
    except _Twice:
        raise _odd("a name is given twice in one object", where) from None
    except (ValueError, RecursionError):
        raise _odd("it is not JSON", where) from None
    if not isinstance(document, dict):
        raise _odd("it is not a JSON object", where)
    return document


def _media_type(document: dict[str, Any], served_type: str, where: str) -> str:
    said = document.get("mediaType", "")
    if not isinstance(said, str) or (said and served_type and said != served_type):
        raise _odd(
            f"it calls itself {str(said)[:100]!r} but was served as {served_type[:100]!r}", where
        )
    media_type = said or served_type or (OCI_INDEX if "manifests" in document else OCI_MANIFEST)
    if media_type not in MANIFEST_TYPES | INDEX_TYPES:
        raise Refused(
            "manifest_type_unknown",
            f"{media_type[:100]!r} is no OCI or Docker manifest or index",
            where=where,
            hint="push it as an OCI image or artifact",
        )
    return media_type


def _descriptors(
    value: object, name: str, descriptors_max: int, where: str
) -> tuple[Descriptor, ...]:
    if not isinstance(value, list):
        raise _odd(f"{name} is not a list", where)
    if len(value) > descriptors_max:
        raise _odd(f"{name} has {len(value)} entries, {descriptors_max} are allowed", where)
    return tuple(
        _descriptor(entry, f"{name}[{number}]", where) for number, entry in enumerate(value)
    )


def _descriptor(value: object, name: str, where: str) -> Descriptor:
    if not isinstance(value, dict):
        raise _odd(f"{name} is not a descriptor", where)
    _check_names(value, name, where)
    media_type, size = value.get("mediaType"), value.get("size")
    if not isinstance(media_type, str) or not media_type:
        raise _odd(f"{name} has no media type", where)
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise _odd(f"{name} has no size", where)
    try:
        digest = Digest.parse(str(value.get("digest")))
    except ValueError as error:
        raise _odd(f"{name}: {error}", where) from None
    given = value.get("platform")
    platform = _platform(given, f"{name}.platform", where) if given is not None else ""
    return Descriptor(media_type, digest, size, platform)


def _platform(value: object, name: str, where: str) -> str:
    words = [value.get(key) for key in ("os", "architecture")] if isinstance(value, dict) else []
    if not words or not all(isinstance(word, str) and word for word in words):
        raise _odd(f"{name} has no os and architecture", where)
    variant = value.get("variant") if isinstance(value, dict) else None
    if isinstance(variant, str) and variant:
        words.append(variant)
    if not all(map(_PLATFORM_WORD.fullmatch, map(str, words))):
        raise _odd(f"{name} names no os and architecture that there are", where)
    return "/".join(map(str, words))


def _odd(message: str, where: str) -> Refused:
    return Refused("manifest_malformed", message, where=where)
