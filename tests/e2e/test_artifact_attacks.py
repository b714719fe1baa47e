"""What somebody who may publish, and a registry that lies, try on a real registry."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from reconciler.adapters.registry_attach import index_of_entries
from reconciler.adapters.registry_attached import DOCUMENTS_MAX
from reconciler.adapters.registry_oci import OciRegistry
from reconciler.artifact_ports import Document
from reconciler.core.names import ArtifactKey, Digest
from reconciler.devkit.images import MANIFEST_TYPE, OciImage
from reconciler.settings import Settings
from tests.contract.test_registry_copy import (
    BUNDLE_TYPE,
    Place,
    fallback,
    layers_of,
    referrer_of,
    signature_of,
    tag_of,
)
from tests.services.oci import descriptor, document, small_image
from tests.services.token_registry import TokenRegistry

LARGE = "x" * 30_000
"""An annotation that may be kept as it is; a registry takes 4 MiB of them."""
HUGE = "x" * 3_000_000


@pytest.fixture
def place(token_registry: TokenRegistry) -> Iterator[Place]:
    word = uuid.uuid4().hex[:12]
    registry = OciRegistry(Settings(), token_registry.tokens.bearer)
    names = (f"gpuaas/intents/{word}", f"gpuaas/apps/acme/lab/{word}")
    yield Place(token_registry.address, token_registry, registry, *names)
    registry.close()


def crowd(subject: Digest, count: int, text: str) -> OciImage:
    """Signatures that are none, each with a long annotation."""
    made = signature_of(subject, "crowd")
    whole = json.loads(made.manifest)
    (layer,) = whole["layers"]
    signed = layer["annotations"]
    whole["layers"] = [
        {**layer, "annotations": {**signed, "x": text, "number": str(number)}}
        for number in range(count)
    ]
    content = document(whole)
    return OciImage({**made.blobs, Digest.of(content): content}, Digest.of(content))


@pytest.mark.parametrize(
    ("count", "text"), [(130, LARGE), (1, HUGE)], ids=["many large ones", "a huge one"]
)
def test_who_fills_a_place_with_bytes_keeps_no_signature_out(
    place: Place, count: int, text: str
) -> None:
    """By number it was bounded before: what a registry refuses as too large is full as well."""
    image = small_image(uuid.uuid4().hex)
    digest = place.put(image)
    tag = f"{tag_of(digest)}.sig"
    for word in ("crowd", "first"):
        place.put(signature_of(digest, word), tag)
    place.copy(digest)
    for more in ("", "y"):
        crowded = crowd(digest, count, text + more)
        whole = place.ask("PUT", place.source, f"manifests/{tag}", crowded.manifest, MANIFEST_TYPE)
        assert whole.status_code == 201, whole.text
        place.copy(digest)
    place.put(signature_of(digest, "new"), tag)
    place.copy(digest)
    key = ArtifactKey(place.target, digest)
    place.registry.attach(place.endpoint, key, Document("classic_signature", b"{}", "newest"))
    kept = layers_of(place.at(tag))
    assert (kept[0], kept[-2:]) == ("sig-first", ["sig-new", "newest"])
    assert len(place.at(tag)) < 2**21 + 2**16
    read = [one.signature for one in place.registry.attached(place.endpoint, key).documents]
    assert {"sig-first", "sig-new", "newest"} <= set(read)


def test_nor_out_of_the_list_of_what_refers_to_it(place: Place) -> None:
    image = small_image(uuid.uuid4().hex)
    digest = place.put(image)

    def listed(*bundles: OciImage) -> None:
        place.put(fallback(*bundles), tag_of(digest))
        place.copy(digest)

    def crowded(word: str) -> OciImage:
        made = referrer_of(image, word)
        content = document({**json.loads(made.manifest), "annotations": {"x": HUGE}})
        return OciImage({**made.blobs, Digest.of(content): content}, Digest.of(content))

    first, new = referrer_of(image, "first"), referrer_of(image, "new")
    listed(first)
    listed(crowded("a"), crowded("b"))
    listed(new)
    key = ArtifactKey(place.target, digest)
    newest = Document("bundle", b"newest", predicate_type="p")
    attached = place.registry.attach(place.endpoint, key, newest)
    entries = json.loads(place.at(tag_of(digest)))["manifests"]
    kept = [one["digest"] for one in entries]
    assert kept[0] == str(first.manifest_digest)
    assert kept[-2:] == [str(new.manifest_digest), attached]
    assert {one.get("artifactType") for one in entries} == {BUNDLE_TYPE}
    read = {one.digest for one in place.registry.attached(place.endpoint, key).documents}
    assert {str(first.manifest_digest), str(new.manifest_digest), attached} <= read


def entry(number: int, text: str) -> dict[str, Any]:
    described = descriptor(b"%d" % number, MANIFEST_TYPE, artifactType=BUNDLE_TYPE)
    return {**described, "annotations": {"x": text}}


@pytest.mark.parametrize(
    ("count", "text", "kept"),
    [(512, "", 512), (513, "", 512), (512, LARGE, 69), (70, LARGE, 69), (512, HUGE[:40_000], 512)],
)
def test_of_what_no_registry_would_take_both_ends_stay(
    place: Place, count: int, text: str, kept: int
) -> None:
    remote = place.registry.remote(place.endpoint, place.target)
    entries = [entry(number, text) for number in range(count)]
    made = index_of_entries(remote, entries)["manifests"]
    digests = [one["digest"] for one in entries]
    newest = (kept + 1) // 2
    assert [one["digest"] for one in made] == (
        digests[: kept - newest] + digests[count - newest :]
    )
    assert kept >= DOCUMENTS_MAX
    assert len(json.dumps(made)) < 2**21 + 2**16
