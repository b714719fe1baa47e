"""Copies from repository to repository: on a real docker-registry that asks for tokens, and with
the referrers API before one.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from reconciler.adapters.registry_oci import OciRegistry
from reconciler.artifact_ports import Document
from reconciler.core.names import ArtifactKey, Digest
from reconciler.devkit.images import INDEX_TYPE, MANIFEST_TYPE, OciImage, write_layout
from reconciler.errors import Refused
from reconciler.ports import RegistryEndpoint, Secret
from reconciler.settings import Settings
from tests.services.oci import descriptor, document, index_of, small_image
from tests.services.referrers import with_referrers
from tests.services.token_registry import TokenRegistry

EMPTY = b"{}"
EMPTY_TYPE = "application/vnd.oci.empty.v1+json"
BUNDLE_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"


@dataclass
class Place:
    """A registry, and two repositories of it that nobody else uses."""

    endpoint: RegistryEndpoint
    tokens: TokenRegistry
    registry: OciRegistry
    source: str
    target: str

    def ask(
        self, method: str, repository: str, path: str, content: bytes = b"", kind: str = ""
    ) -> httpx.Response:
        token = self.tokens.push_token(repository)
        headers = {"Authorization": f"Bearer {token}", "Accept": f"{MANIFEST_TYPE}, {INDEX_TYPE}"}
        if kind:
            headers["Content-Type"] = kind
        url = f"http://{self.endpoint.endpoint}/v2/{repository}/{path}"
        return httpx.request(method, url, content=content, headers=headers, trust_env=False)

    def put(self, image: OciImage, tag: str = "", repository: str = "") -> Digest:
        """All of an image or index; at `tag`, or at its digest."""
        repository = repository or self.source
        whole = json.loads(image.manifest)
        for entry in whole.get("manifests", ()):
            self.put(OciImage(image.blobs, Digest.parse(entry["digest"])), repository=repository)
        for entry in (*whole.get("layers", ()), *filter(None, [whole.get("config")])):
            self.put_blob(image.blobs[Digest.parse(entry["digest"])], repository)
        reference = tag or str(image.manifest_digest)
        kind = whole["mediaType"]
        answer = self.ask("PUT", repository, f"manifests/{reference}", image.manifest, kind)
        assert answer.status_code == 201, answer.text
        return image.manifest_digest

    def put_blob(self, content: bytes, repository: str) -> None:
        started = self.ask("POST", repository, "blobs/uploads/")
        place = httpx.URL(started.headers["Location"]).copy_merge_params(
            {"digest": str(Digest.of(content))}
        )
        token = self.tokens.push_token(repository)
        headers = {"Authorization": f"Bearer {token}"}
        url = place.copy_with(scheme="http", netloc=self.endpoint.endpoint.encode())
        put = httpx.put(url, content=content, headers=headers, trust_env=False)
        assert put.status_code == 201, put.text

    def copy(self, digest: Digest, tag: str = "", source: str = "") -> None:
        key = ArtifactKey(source or self.source, digest)
        self.registry.copy(self.endpoint, key, self.target, tag)

    def at(self, reference: str) -> bytes:
        answer = self.ask("GET", self.target, f"manifests/{reference}")
        assert answer.status_code == 200, answer.text
        return answer.content

    def has(self, reference: str) -> bool:
        return self.ask("HEAD", self.target, f"manifests/{reference}").status_code == 200


@pytest.fixture(params=["distribution", "with referrers"])
def place(request: pytest.FixtureRequest, token_registry: TokenRegistry) -> Iterator[Place]:
    word = uuid.uuid4().hex[:12]
    registry = OciRegistry(Settings(), token_registry.tokens.bearer)
    names = (f"gpuaas/intents/{word}", f"gpuaas/apps/acme/lab/{word}")
    if request.param == "distribution":
        yield Place(token_registry.address, token_registry, registry, *names)
    else:
        with with_referrers(token_registry.endpoint, page=1) as endpoint:
            address = RegistryEndpoint(endpoint, plain_http=True, token_auth=True)
            yield Place(address, token_registry, registry, *names)
    registry.close()


def signature_of(subject: Digest, *words: str) -> OciImage:
    """As classic cosign keeps signatures: one layer each."""
    layers = [f"signature {word} of {subject}".encode() for word in words]
    described = [
        descriptor(
            one,
            "application/vnd.dev.cosign.simplesigning.v1+json",
            annotations={"dev.cosignproject.cosign/signature": f"sig-{word}"},
        )
        for one, word in zip(layers, words, strict=True)
    ]
    image = small_image("signatures", layers=described)
    return OciImage({**image.blobs, **{Digest.of(one): one for one in layers}},
                    image.manifest_digest)  # fmt: skip


def referrer_of(subject: OciImage, word: str, about: Digest | None = None) -> OciImage:
    """As cosign keeps bundles: a manifest with a subject."""
    layer = f"bundle {word}".encode()
    content = document(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "artifactType": BUNDLE_TYPE,
            "config": descriptor(EMPTY, EMPTY_TYPE),
            "layers": [descriptor(layer, BUNDLE_TYPE)],
            "subject": {
                **descriptor(subject.manifest, MANIFEST_TYPE),
                "digest": str(about or subject.manifest_digest),
            },
        }
    )
    blobs = {Digest.of(one): one for one in (EMPTY, layer, content)}
    return OciImage(blobs, Digest.of(content))


def fallback(*entries: OciImage) -> OciImage:
    listed = [descriptor(one.manifest, MANIFEST_TYPE, artifactType=BUNDLE_TYPE) for one in entries]
    index = document({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": listed})
    blobs = {digest: content for one in entries for digest, content in one.blobs.items()}
    return OciImage({**blobs, Digest.of(index): index}, Digest.of(index))


def tag_of(digest: Digest) -> str:
    return str(digest).replace(":", "-")


def layers_of(manifest: bytes) -> list[str]:
    return [
        layer["annotations"]["dev.cosignproject.cosign/signature"]
        for layer in json.loads(manifest)["layers"]
    ]


# --- the artifact --------------------------------------------------------------------------------


def test_an_image_comes_over_whole_by_digest_and_tag(place: Place) -> None:
    image = small_image(uuid.uuid4().hex)
    place.put(image)
    place.copy(image.manifest_digest, "1.0.0")
    assert place.at("1.0.0") == place.at(str(image.manifest_digest)) == image.manifest
    seen = place.registry.look_up(place.endpoint, ArtifactKey(place.target, image.manifest_digest))
    assert seen.exists
    assert seen.platforms == ("linux/amd64",)
    place.copy(image.manifest_digest, "1.0.0")


def test_without_a_tag_none_is_made(place: Place) -> None:
    image = small_image(uuid.uuid4().hex)
    place.put(image)
    place.copy(image.manifest_digest)
    answer = place.ask("GET", place.target, "tags/list")
    assert answer.status_code == 404 or not answer.json()["tags"]


def test_of_an_index_all_its_images_come_over_with_their_signatures(place: Place) -> None:
    word = uuid.uuid4().hex
    parts = {
        f"linux/{name}": small_image(f"{word} {name}", architecture=name)
        for name in ("amd64", "arm64")
    }
    # Of a build's attestations nothing is believed, and an index that names them needs them.
    parts["unknown/unknown"] = small_image(f"{word} attestation", architecture="unknown")
    whole = index_of(parts)
    place.put(whole)
    arm = parts["linux/arm64"].manifest_digest
    place.put(signature_of(arm, "arm"), f"{tag_of(arm)}.sig")
    place.copy(whole.manifest_digest, "1.0.0")
    assert place.at("1.0.0") == whole.manifest
    assert all(place.at(str(one.manifest_digest)) == one.manifest for one in parts.values())
    assert layers_of(place.at(f"{tag_of(arm)}.sig")) == ["sig-arm"]
    key = ArtifactKey(place.target, whole.manifest_digest)
    assert place.registry.look_up(place.endpoint, key).platforms == ("linux/amd64", "linux/arm64")


def test_what_is_not_there_is_refused(place: Place) -> None:
    missing = Digest.of(uuid.uuid4().bytes)
    with pytest.raises(Refused, match="artifact_incomplete: it is not in the registry"):
        place.copy(missing)


def test_bytes_of_another_digest_are_refused_and_nothing_is_written(place: Place) -> None:
    """A tag that was moved, or a registry that lies: what is copied is what was named."""
    image, other = small_image(uuid.uuid4().hex), small_image(uuid.uuid4().hex)
    place.put(image, "1.0.0")
    place.put(other, "1.0.0")
    place.copy(image.manifest_digest, "1.0.0")
    assert place.at("1.0.0") == image.manifest


def test_a_registry_that_wants_the_bytes_is_refused(place: Place) -> None:
    """Mounting from where the layers are not is what a registry does that can't mount."""
    image = small_image(uuid.uuid4().hex)
    place.put(image)
    blobs = [entry["digest"] for entry in json.loads(image.manifest)["layers"]]
    data = place.ask("DELETE", place.source, f"blobs/{blobs[0]}")
    allowed = place.tokens.mint({place.source: ("delete",)})
    url = f"http://{place.endpoint.endpoint}/v2/{place.source}/blobs/{blobs[0]}"
    if data.status_code != 202:
        httpx.delete(url, headers={"Authorization": f"Bearer {allowed}"}, trust_env=False)
    with pytest.raises(Refused, match="mount_unsupported: the registry does not mount"):
        place.copy(image.manifest_digest, "1.0.0")
    assert not place.has("1.0.0")


def test_a_folder_is_only_read(place: Place, tmp_path: Path) -> None:
    write_layout(small_image("first"), tmp_path, "first")
    folder = RegistryEndpoint("", layout_path=str(tmp_path))
    with pytest.raises(Refused, match="layout_read_only: a folder is only read"):
        place.registry.copy(folder, ArtifactKey("a/b", Digest.of(b"")), "c/d")


def test_a_token_for_other_repositories_copies_nothing(place: Place) -> None:
    image = small_image(uuid.uuid4().hex)
    place.put(image)

    def bearer(scopes: object) -> Secret:
        return Secret(place.tokens.push_token("gpuaas/intents/another"))

    registry = OciRegistry(Settings(), bearer)
    with pytest.raises(Refused, match="registry_denied"):
        registry.copy(
            place.endpoint, ArtifactKey(place.source, image.manifest_digest), place.target
        )
    registry.close()


# --- what is attached ----------------------------------------------------------------------------


def test_classic_signatures_and_attestations_come_along(place: Place) -> None:
    image = small_image(uuid.uuid4().hex)
    digest = place.put(image)
    place.put(signature_of(digest, "one"), f"{tag_of(digest)}.sig")
    place.put(signature_of(digest, "att"), f"{tag_of(digest)}.att")
    place.copy(digest)
    assert layers_of(place.at(f"{tag_of(digest)}.sig")) == ["sig-one"]
    assert layers_of(place.at(f"{tag_of(digest)}.att")) == ["sig-att"]


def test_signatures_that_are_there_stay(place: Place) -> None:
    """Whoever publishes a digest again adds to what was attached, and takes nothing away."""
    image = small_image(uuid.uuid4().hex)
    digest = place.put(image)
    place.put(signature_of(digest, "one"), f"{tag_of(digest)}.sig")
    place.copy(digest)
    place.put(signature_of(digest, "two"), f"{tag_of(digest)}.sig")
    place.copy(digest)
    assert layers_of(place.at(f"{tag_of(digest)}.sig")) == ["sig-one", "sig-two"]
    place.copy(digest)
    assert layers_of(place.at(f"{tag_of(digest)}.sig")) == ["sig-one", "sig-two"]


def test_referrers_come_along_and_are_found(place: Place) -> None:
    image = small_image(uuid.uuid4().hex)
    digest = place.put(image)
    words = ("one", "two", "three")
    bundles = [referrer_of(image, f"{word} {digest}") for word in words]
    for bundle in bundles:
        place.put(bundle)
    place.put(fallback(*bundles), tag_of(digest))
    place.copy(digest)
    listed = place.ask("GET", place.target, f"referrers/{digest}")
    if listed.status_code == 404:
        entries = json.loads(place.at(tag_of(digest)))["manifests"]
        assert [one["artifactType"] for one in entries] == [BUNDLE_TYPE] * 3
        assert [one["digest"] for one in entries] == [str(one.manifest_digest) for one in bundles]
    else:
        assert not place.has(tag_of(digest)), "a registry with the API needs no index by tag"
    assert all(place.at(str(one.manifest_digest)) == one.manifest for one in bundles)


def test_referrers_add_up_in_the_index_by_tag(place: Place) -> None:
    image = small_image(uuid.uuid4().hex)
    digest = place.put(image)
    first, second = (referrer_of(image, f"{word} {digest}") for word in ("first", "second"))
    place.put(fallback(first), tag_of(digest))
    place.copy(digest)
    place.put(fallback(second), tag_of(digest))
    place.copy(digest)
    assert place.has(str(first.manifest_digest))
    assert place.has(str(second.manifest_digest))
    if place.ask("GET", place.target, f"referrers/{digest}").status_code == 404:
        entries = json.loads(place.at(tag_of(digest)))["manifests"]
        assert len(entries) == 2


def test_what_only_claims_to_be_about_it_does_not(place: Place) -> None:
    image, other = small_image(uuid.uuid4().hex), small_image(uuid.uuid4().hex)
    digest = place.put(image)
    foreign = referrer_of(image, f"foreign {digest}", about=other.manifest_digest)
    place.put(fallback(foreign), tag_of(digest))
    place.copy(digest)
    assert not place.has(str(foreign.manifest_digest))
    assert not place.has(tag_of(digest))


# --- what others would do with it ----------------------------------------------------------------


def test_a_foreign_manifest_never_gets_to_a_tag_for_signatures(place: Place) -> None:
    """Attempted: one that says that it is of another artifact, so that what is added to it is."""
    image = small_image(uuid.uuid4().hex)
    digest = place.put(image)
    layers = json.loads(signature_of(digest, "one").manifest)["layers"]
    layers[0] |= {"urls": ["http://elsewhere.example/"]}
    poison = small_image(
        "poison", layers=layers, subject={"digest": "another"}, annotations={"x": "y"}
    )
    blobs = {**signature_of(digest, "one").blobs, **poison.blobs}
    place.put(OciImage(blobs, poison.manifest_digest), f"{tag_of(digest)}.sig")
    for _ in range(2):
        place.copy(digest)
        kept = json.loads(place.at(f"{tag_of(digest)}.sig"))
        assert sorted(kept) == ["config", "layers", "mediaType", "schemaVersion"]
        assert [sorted(one) for one in kept["layers"]] == [
            ["annotations", "digest", "mediaType", "size"]
        ]
    found = place.registry.attached(place.endpoint, ArtifactKey(place.target, digest))
    assert [one.signature for one in found.documents] == ["sig-one"]
    assert found.unusable == ()


@pytest.mark.parametrize("end", ["", ".sig", ".att", ".sbom"])
def test_nothing_is_copied_to_a_tag_for_signatures(place: Place, end: str) -> None:
    """Attempted: to take another artifact's signatures away by the hint of a publish intent."""
    signed, other = small_image("victim"), small_image("other")
    place.put(signed)
    place.put(signature_of(signed.manifest_digest, "good"), f"{tag_of(signed.manifest_digest)}.sig")
    place.put(other)
    place.copy(signed.manifest_digest, "1.0.0")
    tag = f"{tag_of(signed.manifest_digest)}{end}"
    before = place.has(tag) and place.at(tag)
    with pytest.raises(Refused, match="tag_reserved: signatures are kept at tags like this one"):
        place.copy(other.manifest_digest, tag)
    assert (place.has(tag) and place.at(tag)) == before
    assert not place.has(str(other.manifest_digest))


def test_two_who_signed_the_same_words_both_come_along(place: Place) -> None:
    image = small_image(uuid.uuid4().hex)
    digest = place.put(image)
    made = signature_of(digest, "one")
    (layer,) = json.loads(made.manifest)["layers"]
    other = {**layer, "annotations": {"dev.cosignproject.cosign/signature": "sig-other"}}
    both = small_image("both", layers=[layer, other])
    place.put(OciImage({**made.blobs, **both.blobs}, both.manifest_digest), f"{tag_of(digest)}.sig")
    place.copy(digest)
    assert layers_of(place.at(f"{tag_of(digest)}.sig")) == ["sig-one", "sig-other"]


def test_a_full_place_keeps_out_neither_what_was_first_nor_what_is_new(place: Place) -> None:
    image = small_image(uuid.uuid4().hex)
    digest = place.put(image)
    tag = f"{tag_of(digest)}.sig"
    small = OciRegistry(Settings(registry_descriptors_max=4), place.tokens.tokens.bearer)
    for words in (("first",), ("a", "b", "c"), ("new",)):
        place.put(signature_of(digest, *words), tag)
        small.copy(place.endpoint, ArtifactKey(place.source, digest), place.target)
    assert layers_of(place.at(tag)) == ["sig-first", "sig-a", "sig-c", "sig-new"]
    key = ArtifactKey(place.target, digest)
    small.attach(place.endpoint, key, Document("classic_signature", b"{}", "newest"))
    assert layers_of(place.at(tag)) == ["sig-first", "sig-a", "sig-new", "newest"]
    small.close()


def test_of_too_many_that_refer_it_says_what_to_do(place: Place) -> None:
    image = small_image(uuid.uuid4().hex)
    digest = place.put(image)
    bundles = [referrer_of(image, f"{number} {digest}") for number in range(3)]
    for bundle in bundles:
        place.put(bundle)
    small = OciRegistry(Settings(registry_descriptors_max=2), place.tokens.tokens.bearer)
    key = ArtifactKey(place.source, digest)
    if place.ask("GET", place.source, f"referrers/{digest}").status_code == 200:
        with pytest.raises(Refused, match="delete what nobody needs of what refers to it there"):
            small.copy(place.endpoint, key, place.target)
    else:
        for some in (bundles[:1], bundles[1:]):
            place.put(fallback(*some), tag_of(digest))
            small.copy(place.endpoint, key, place.target)
        entries = json.loads(place.at(tag_of(digest)))["manifests"]
        kept = [str(bundles[number].manifest_digest) for number in (0, 2)]
        assert [one["digest"] for one in entries] == kept, "the first and the newest"
    small.close()
