"""OCI content for tests that the product itself never builds."""

from __future__ import annotations

import json
from collections.abc import Mapping

from reconciler.core.names import Digest
from reconciler.devkit.images import CONFIG_TYPE, INDEX_TYPE, LAYER_TYPE, MANIFEST_TYPE, OciImage


def document(value: object) -> bytes:
    return json.dumps(value, sort_keys=True).encode()


def descriptor(content: bytes, media_type: str, **more: object) -> dict[str, object]:
    return {
        "mediaType": media_type,
        "digest": str(Digest.of(content)),
        "size": len(content),
        **more,
    }


def small_image(word: str, architecture: str = "amd64", **manifest: object) -> OciImage:
    """An image of a few bytes. `manifest` replaces fields of its manifest."""
    layer = f"layer of {word}".encode()
    config = document({"os": "linux", "architecture": architecture, "word": word})
    content = document(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": descriptor(config, CONFIG_TYPE),
            "layers": [descriptor(layer, LAYER_TYPE)],
            **manifest,
        }
    )
    return OciImage({Digest.of(one): one for one in (layer, config, content)}, Digest.of(content))


def index_of(images: Mapping[str, OciImage]) -> OciImage:
    """An index of images by `os/architecture`."""
    entries = []
    blobs: dict[Digest, bytes] = {}
    for platform, image in images.items():
        system, _, architecture = platform.partition("/")
        entries.append(
            descriptor(
                image.manifest,
                MANIFEST_TYPE,
                platform={"os": system, "architecture": architecture},
            )
        )
        blobs.update(image.blobs)
    content = document({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": entries})
    return OciImage({**blobs, Digest.of(content): content}, Digest.of(content))
