"""One suite for what is kept beside artifacts: the fake, docker-registry, and a registry that lists
referrers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from reconciler.adapters.registry_oci import OciRegistry
from reconciler.artifact_ports import Attached, Document
from reconciler.core.names import ArtifactKey, Digest
from reconciler.core.trust.statements import BUNDLE_TYPE
from reconciler.devkit import images
from reconciler.devkit.images import MANIFEST_TYPE, OciImage
from reconciler.errors import Refused
from reconciler.ports import Registry, RegistryEndpoint
from reconciler.settings import Settings
from tests.fakes.registry import FakeRegistry
from tests.services.oci import descriptor, document, index_of, small_image
from tests.services.referrers_registry import referrers_registry
from tests.services.token_registry import TokenRegistry

REPOSITORY = "gpuaas/apps/research/attached"
SIGNATURE = Document("classic_signature", b'{"a":1}', "c2ln")
ATTESTATION = Document("classic_attestation", b'{"b":1}', predicate_type="https://slsa.dev/p")
BUNDLE = Document("bundle", b'{"c":1}', predicate_type="https://slsa.dev/p")


class Kept:
    """A registry with `publish`, and what it says is attached."""

    def __init__(
        self, registry: Registry, endpoint: RegistryEndpoint, publish: Callable[[OciImage], None]
    ) -> None:
        self.registry, self.endpoint, self.publish = registry, endpoint, publish

    def key(self, word: str) -> ArtifactKey:
        image = small_image(word)
        self.publish(image)
        return ArtifactKey(REPOSITORY, image.manifest_digest)

    def attach(self, key: ArtifactKey, made: Document) -> str:
        return self.registry.attach(self.endpoint, key, made)

    def found(self, key: ArtifactKey) -> list[tuple[str, bytes, str, str]]:
        attached = self.registry.attached(self.endpoint, key)
        assert attached.unusable == ()
        return sorted(
            (one.form, one.content, one.signature, one.predicate_type) for one in attached.documents
        )


@pytest.fixture
def adapter() -> Iterator[OciRegistry]:
    registry = OciRegistry(Settings())
    yield registry
    registry.close()


@pytest.fixture
def fake() -> Kept:
    registry = FakeRegistry()
    endpoint = RegistryEndpoint("registry.invalid")
    return Kept(registry, endpoint, lambda image: registry.publish(REPOSITORY, image))


@pytest.fixture
def distribution(adapter: OciRegistry, registry_endpoint: str) -> Kept:
    return _real(adapter, registry_endpoint)


@pytest.fixture(scope="module")
def listing_endpoint(service_root: Path) -> Iterator[str]:
    with referrers_registry(service_root / "referrers") as endpoint:
        yield endpoint


@pytest.fixture
def listing(adapter: OciRegistry, listing_endpoint: str) -> Kept:
    return _real(adapter, listing_endpoint)


def _real(adapter: OciRegistry, endpoint: str) -> Kept:
    def publish(image: OciImage) -> None:
        images.push(image, endpoint, REPOSITORY, "latest")

    return Kept(adapter, RegistryEndpoint(endpoint, plain_http=True), publish)


@pytest.fixture
def asking(token_registry: TokenRegistry) -> Iterator[Kept]:
    """One that asks for tokens: to look takes one that may pull, to attach one that may push."""
    registry = OciRegistry(Settings(), token_registry.tokens.bearer)

    def publish(image: OciImage) -> None:
        token = token_registry.push_token(REPOSITORY)
        images.push(image, token_registry.endpoint, REPOSITORY, "latest", token)

    yield Kept(registry, token_registry.address, publish)
    registry.close()


REAL = [
    pytest.param(name, marks=[pytest.mark.real]) for name in ("distribution", "listing", "asking")
]


@pytest.fixture(params=["fake", *REAL])
def kept(request: pytest.FixtureRequest) -> Kept:
    found: Kept = request.getfixturevalue(request.param)
    return found


def test_nothing_is_attached_at_first(kept: Kept) -> None:
    assert kept.found(kept.key("bare")) == []


def test_what_was_attached_is_found(kept: Kept) -> None:
    key = kept.key("signed")
    for made in (SIGNATURE, ATTESTATION, BUNDLE):
        assert Digest.parse(kept.attach(key, made))
    assert kept.found(key) == [
        ("bundle", b'{"c":1}', "", "https://slsa.dev/p"),
        ("classic_attestation", b'{"b":1}', "", "https://slsa.dev/p"),
        ("classic_signature", b'{"a":1}', "c2ln", ""),
    ]
    assert kept.found(kept.key("another")) == [], "it is of one artifact"


@pytest.mark.real
def test_a_small_bundle_comes_with_its_manifest(distribution: Kept) -> None:
    """A request less for who looks; a large one stays beside it."""
    key = distribution.key("brings it along")
    large = Document("bundle", b'{"e":"%s"}' % (b"x" * 64 * 1024))
    manifests = [distribution.attach(key, made) for made in (BUNDLE, large)]
    base = f"http://{distribution.endpoint.endpoint}/v2/{REPOSITORY}/manifests"
    accepted = {"Accept": "application/vnd.oci.image.manifest.v1+json"}
    layers = [
        httpx.get(f"{base}/{one}", headers=accepted, trust_env=False).json()["layers"][0]
        for one in manifests
    ]
    assert [one.get("data") for one in layers] == ["eyJjIjoxfQ==", None]
    assert [one[1] for one in distribution.found(key)] == [BUNDLE.content, large.content]


def test_what_is_there_stays_and_comes_once(kept: Kept) -> None:
    key = kept.key("signed by two")
    other = Document("classic_signature", b'{"a":1}', "b3RoZXI=")
    more = Document("bundle", b'{"d":1}')
    for made in (SIGNATURE, BUNDLE, other, more, SIGNATURE, BUNDLE):
        kept.attach(key, made)
    assert [one[1:3] for one in kept.found(key)] == [
        (b'{"c":1}', ""),
        (b'{"d":1}', ""),
        (b'{"a":1}', "b3RoZXI="),
        (b'{"a":1}', "c2ln"),
    ]


def test_nothing_is_attached_to_what_is_not_there(kept: Kept) -> None:
    key = ArtifactKey(REPOSITORY, Digest.of(b"never pushed"))
    for made in (SIGNATURE, BUNDLE):
        with pytest.raises(Refused) as refused:
            kept.attach(key, made)
        assert refused.value.code == "artifact_missing"
    with pytest.raises(Refused) as refused:
        kept.registry.attached(kept.endpoint, key)
    assert refused.value.code == "artifact_missing"


def test_where_a_registry_lists_referrers_no_list_is_kept_beside_it(
    listing: Kept, distribution: Kept
) -> None:
    for at, status in ((listing, 404), (distribution, 200)):
        key = at.key("listed")
        at.attach(key, BUNDLE)
        tag = str(key.digest).replace(":", "-")
        url = f"http://{at.endpoint.endpoint}/v2/{REPOSITORY}/manifests/{tag}"
        accept = {"Accept": "application/vnd.oci.image.index.v1+json"}
        assert httpx.get(url, headers=accept, trust_env=False).status_code == status


def test_what_stands_in_the_way_is_not_overwritten(distribution: Kept) -> None:
    """A tag that somebody gave to an index where signatures go."""
    key = distribution.key("in the way")
    image = index_of({})
    tag = f"{str(key.digest).replace(':', '-')}.sig"
    url = f"http://{distribution.endpoint.endpoint}/v2/{REPOSITORY}/manifests/{tag}"
    kind = {"Content-Type": "application/vnd.oci.image.index.v1+json"}
    httpx.put(url, content=image.manifest, headers=kind, trust_env=False).raise_for_status()
    with pytest.raises(Refused) as refused:
        distribution.attach(key, SIGNATURE)
    assert refused.value.code == "attach_in_the_way"
    found = distribution.registry.attached(distribution.endpoint, key)
    assert [(one.code, one.message) for one in found.unusable] == [
        ("attached_malformed", "an index where signatures should be")
    ]


def test_an_image_layout_is_looked_through_and_never_written(
    adapter: OciRegistry, tmp_path: Path
) -> None:
    image = small_image("in a folder")
    images.write_layout(image, tmp_path, "site")
    key = ArtifactKey(REPOSITORY, image.manifest_digest)
    endpoint = RegistryEndpoint("", layout_path=str(tmp_path))
    assert adapter.attached(endpoint, key) == Attached()
    about = descriptor(image.manifest, MANIFEST_TYPE)
    layer = descriptor(BUNDLE.content, BUNDLE_TYPE)
    manifest = document(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": descriptor(b"{}", "application/vnd.oci.empty.v1+json"),
            "layers": [layer],
            "subject": about,
        }
    )
    for content in (manifest, BUNDLE.content):
        name = str(Digest.of(content)).removeprefix("sha256:")
        (tmp_path / "blobs" / "sha256" / name).write_bytes(content)
    index = json.loads((tmp_path / "index.json").read_bytes())
    index["manifests"].append(descriptor(manifest, MANIFEST_TYPE))
    (tmp_path / "index.json").write_bytes(document(index))
    (found,) = adapter.attached(endpoint, key).documents
    assert (found.form, found.content) == ("bundle", BUNDLE.content)
    with pytest.raises(Refused) as refused:
        adapter.attach(endpoint, key, SIGNATURE)
    assert refused.value.code == "layout_read_only"
