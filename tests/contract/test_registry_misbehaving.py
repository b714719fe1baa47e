"""What `OciRegistry` makes of a registry that errs or lies. Every refusal shows its message."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from reconciler.adapters.registry_oci import OciRegistry
from reconciler.core.names import ArtifactKey, Digest
from reconciler.core.observed import ArtifactSeen
from reconciler.devkit.images import CONFIG_TYPE, INDEX_TYPE, MANIFEST_TYPE, OciImage
from reconciler.devkit.services import free_port
from reconciler.errors import GpuaasError, Refused, Transient
from reconciler.ports import RegistryEndpoint
from reconciler.settings import Settings
from tests.fakes.bad_registry import (
    BadRegistry,
    dripping,
    endless,
    hanging,
    serving,
    sizeless,
    truncated,
)
from tests.fakes.bad_server import Answer
from tests.services.oci import descriptor, document, index_of, small_image

REPOSITORY = "gpuaas/apps/research/site"
IMAGE = small_image("honest")
CONFIG = Digest.parse(json.loads(IMAGE.manifest)["config"]["digest"])
LAYER = Digest.parse(json.loads(IMAGE.manifest)["layers"][0]["digest"])
OTHER = small_image("other").manifest
MANIFEST_BYTES_MAX = 4096


@pytest.fixture
def registry() -> Iterator[BadRegistry]:
    with BadRegistry(dict(IMAGE.blobs)) as server:
        yield server


@pytest.fixture
def elsewhere() -> Iterator[BadRegistry]:
    with BadRegistry(dict(IMAGE.blobs)) as server:
        yield server


@pytest.fixture
def adapter() -> Iterator[OciRegistry]:
    settings = Settings(
        registry_timeout_s=0.3,
        manifest_bytes_max=MANIFEST_BYTES_MAX,
        registry_descriptors_max=3,
        registry_cache_entries_max=2,
    )
    built = OciRegistry(settings)
    yield built
    built.close()


@dataclass(frozen=True)
class Case:
    """`part` is what is answered badly: by which method, and whose digest."""

    part: tuple[str, Digest]
    answer: Answer
    family: type[GpuaasError]
    message: str
    """The whole of it after the address."""


MANIFEST = ("GET", IMAGE.manifest_digest)
CONFIG_BLOB = ("GET", CONFIG)
LAYER_BLOB = ("HEAD", LAYER)
LIE = "the registry serves something else than was asked for; do not trust it"

CASES = {
    "other bytes": Case(
        MANIFEST,
        serving(OTHER),
        Refused,
        f"digest_mismatch: its bytes hash to {Digest.of(OTHER)} ({LIE})",
    ),
    "other bytes, and their digest said": Case(
        MANIFEST,
        serving(OTHER, Docker_Content_Digest=str(Digest.of(OTHER))),
        Refused,
        f"digest_mismatch: its bytes hash to {Digest.of(OTHER)} ({LIE})",
    ),
    "another config": Case(
        CONFIG_BLOB,
        serving(b"{}"),
        Refused,
        f"digest_mismatch: its bytes hash to {Digest.of(b'{}')} ({LIE})",
    ),
    "hangs": Case(MANIFEST, hanging, Transient, "registry_timeout: no answer in 0.3 s"),
    "hangs at a layer": Case(
        LAYER_BLOB, hanging, Transient, "registry_timeout: no answer in 0.3 s"
    ),
    "drips": Case(MANIFEST, dripping, Transient, "registry_timeout: not read in 0.3 s"),
    "truncated": Case(
        MANIFEST,
        truncated,
        Transient,
        "registry_unreachable: peer closed connection without sending complete message body "
        "(received 1 bytes, expected 1000)",
    ),
    "endless": Case(MANIFEST, endless, Refused, "manifest_too_large: larger than 4096 bytes"),
    "endless config": Case(
        CONFIG_BLOB,
        endless,
        Refused,
        f"manifest_too_large: larger than {len(IMAGE.blobs[CONFIG])} bytes",
    ),
    "compressed": Case(
        MANIFEST,
        serving(IMAGE.manifest, Content_Encoding="gzip"),
        Refused,
        "registry_odd_answer: it is encoded, unasked",
    ),
    "500": Case(MANIFEST, serving(b"", 500), Transient, "registry_unavailable: answered 500"),
    "429": Case(MANIFEST, serving(b"", 429), Transient, "registry_unavailable: answered 429"),
    "401": Case(
        MANIFEST,
        serving(b"", 401),
        Refused,
        "registry_denied: answered 401 (it asks for a credential: see registry.auth in the "
        "Environment)",
    ),
    "418": Case(MANIFEST, serving(b"", 418), Refused, "registry_odd_answer: answered 418"),
    "206": Case(MANIFEST, serving(b"", 206), Refused, "registry_odd_answer: answered 206"),
    "a proxy's 404": Case(
        MANIFEST,
        serving(b"<h1>Not found</h1>", 404),
        Transient,
        "registry_unclear: 404 without a registry's error code: perhaps not the registry that "
        "answered",
    ),
    "layer gone": Case(
        LAYER_BLOB,
        serving(b"", 404),
        Refused,
        "artifact_incomplete: a layer that its manifest names is not in the registry "
        "(push it again)",
    ),
    "layer of another size": Case(
        LAYER_BLOB,
        serving(b"12345"),
        Refused,
        f"size_mismatch: 5 bytes, its descriptor says {len(IMAGE.blobs[LAYER])}",
    ),
    "layer of no size": Case(
        LAYER_BLOB,
        sizeless,
        Refused,
        "registry_odd_answer: it does not say the size",
    ),
    "config elsewhere, by another protocol": Case(
        CONFIG_BLOB,
        serving(b"", 307, Location="ftp://127.0.0.1/config"),
        Refused,
        "registry_redirected: to ftp, expected http or https",
    ),
    "config in a circle": Case(
        CONFIG_BLOB,
        serving(b"", 307, Location=f"/v2/{REPOSITORY}/blobs/{CONFIG}"),
        Refused,
        "registry_redirected: more than 3 redirects",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_bad_answers(registry: BadRegistry, adapter: OciRegistry, name: str) -> None:
    case = CASES[name]
    method, digest = case.part
    registry.answers[method, str(digest)] = case.answer
    with pytest.raises(GpuaasError) as raised:
        _look_up(adapter, registry, IMAGE.manifest_digest)
    assert type(raised.value) is case.family
    assert str(raised.value) == f"{registry.endpoint}/{REPOSITORY}@{digest}: {case.message}"


EMPTY = descriptor(b"", "text/plain")
DOCUMENTS: dict[str, tuple[bytes, str]] = {
    "no JSON": (b"{", "manifest_malformed: it is not JSON"),
    "too deep": (b"[" * 4000, "manifest_malformed: it is not JSON"),
    "no object": (b"[]", "manifest_malformed: it is not a JSON object"),
    "another type than served": (
        document({"mediaType": INDEX_TYPE, "manifests": []}),
        f"manifest_malformed: it calls itself '{INDEX_TYPE}' but was served as '{MANIFEST_TYPE}'",
    ),
    "both kinds at once": (
        document({"config": EMPTY, "layers": [], "manifests": []}),
        "manifest_malformed: it is both an index and a manifest, or neither",
    ),
    "neither kind": (
        document({"schemaVersion": 1, "fsLayers": []}),
        "manifest_malformed: it is both an index and a manifest, or neither",
    ),
    "an index served as a manifest": (
        document({"manifests": []}),
        f"manifest_malformed: its content is not what {MANIFEST_TYPE} stands for",
    ),
    "layers no list": (
        document({"config": EMPTY, "layers": {}}),
        "manifest_malformed: layers is not a list",
    ),
    "too many layers": (
        document({"config": EMPTY, "layers": [EMPTY] * 4}),
        "manifest_malformed: layers has 4 entries, 3 are allowed",
    ),
    "no config": (document({"layers": []}), "manifest_malformed: config is not a descriptor"),
    "no size": (
        document({"config": {**EMPTY, "size": True}, "layers": []}),
        "manifest_malformed: config has no size",
    ),
    "no media type": (
        document({"config": EMPTY, "layers": [{**EMPTY, "mediaType": 1}]}),
        "manifest_malformed: layers[0] has no media type",
    ),
    "no digest": (
        document({"config": {**EMPTY, "digest": "sha512:00"}, "layers": []}),
        "manifest_malformed: config: not a sha256 digest: 'sha512:00'",
    ),
}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_odd_manifests(registry: BadRegistry, adapter: OciRegistry, name: str) -> None:
    content, message = DOCUMENTS[name]
    digest = Digest.of(content)
    registry.blobs[digest] = content
    with pytest.raises(Refused) as refused:
        _look_up(adapter, registry, digest)
    assert str(refused.value) == f"{registry.endpoint}/{REPOSITORY}@{digest}: {message}"


def test_a_type_nobody_knows(registry: BadRegistry, adapter: OciRegistry) -> None:
    registry.answers["GET", str(IMAGE.manifest_digest)] = serving(b"{}", Content_Type="text/html")
    registry.blobs[Digest.of(b"{}")] = b"{}"
    registry.answers["GET", str(Digest.of(b"{}"))] = serving(b"{}", Content_Type="text/html")
    with pytest.raises(Refused, match="'text/html' is no OCI or Docker manifest or index"):
        _look_up(adapter, registry, Digest.of(b"{}"))


def test_a_config_larger_than_allowed(registry: BadRegistry, adapter: OciRegistry) -> None:
    config = b" " * (MANIFEST_BYTES_MAX + 1)
    _add(registry, image := small_image("large", config=descriptor(config, CONFIG_TYPE)))
    with pytest.raises(Refused, match="manifest_too_large: larger than 4096 bytes"):
        _look_up(adapter, registry, image.manifest_digest)


def test_a_config_without_platform(registry: BadRegistry, adapter: OciRegistry) -> None:
    registry.blobs[Digest.of(b"{}")] = b"{}"
    _add(registry, image := small_image("nowhere", config=descriptor(b"{}", CONFIG_TYPE)))
    with pytest.raises(Refused, match="config has no os and architecture"):
        _look_up(adapter, registry, image.manifest_digest)


def test_an_index_in_an_index(registry: BadRegistry, adapter: OciRegistry) -> None:
    inner = index_of({"linux/amd64": IMAGE})
    outer = index_of({"linux/amd64": inner})
    for index in (inner, outer):
        _add(registry, index)
        answer = serving(index.manifest, Content_Type=INDEX_TYPE)
        registry.answers["GET", str(index.manifest_digest)] = answer
    with pytest.raises(Refused, match="index_nested: an index inside an index is not supported"):
        _look_up(adapter, registry, outer.manifest_digest)


def test_an_index_of_more_than_a_pass_can_ask_for(
    registry: BadRegistry, adapter: OciRegistry
) -> None:
    """Attempted: hours of requests, by one artifact whose every document is within its limit."""
    images = {f"linux/{word}": small_image(word, word) for word in ("amd64", "arm64", "riscv64")}
    index = index_of(images)
    for image in (*images.values(), index):
        _add(registry, image)
        registry.blobs.update(image.blobs)
    answer = serving(index.manifest, Content_Type=INDEX_TYPE)
    registry.answers["GET", str(index.manifest_digest)] = answer
    with pytest.raises(Refused, match="artifact_too_large: more than 3 manifests, configs and lay"):
        _look_up(adapter, registry, index.manifest_digest)


def test_manifests_are_not_fetched_from_elsewhere(
    registry: BadRegistry, elsewhere: BadRegistry, adapter: OciRegistry
) -> None:
    there = f"http://{elsewhere.endpoint}/v2/{REPOSITORY}/manifests/{IMAGE.manifest_digest}"
    answer = serving(b"", 307, Location=there)
    registry.answers["GET", str(IMAGE.manifest_digest)] = answer
    with pytest.raises(Refused) as refused:
        _look_up(adapter, registry, IMAGE.manifest_digest)
    assert str(refused.value) == (
        f"{registry.endpoint}/{REPOSITORY}@{IMAGE.manifest_digest}: registry_redirected: "
        "manifests are taken from the registry itself, not from where it points "
        "(name the registry's final host in the Environment)"
    )
    assert elsewhere.requests == []


def test_blobs_may_be_elsewhere_since_their_hash_decides(
    registry: BadRegistry, elsewhere: BadRegistry, adapter: OciRegistry
) -> None:
    for method, digest in (CONFIG_BLOB, LAYER_BLOB):
        there = f"http://{elsewhere.endpoint}/store/{digest}"
        registry.answers[method, str(digest)] = serving(b"", 307, Location=there)
    assert _look_up(adapter, registry, IMAGE.manifest_digest).exists
    assert elsewhere.requests == [f"GET /store/{CONFIG}", f"HEAD /store/{LAYER}"]
    elsewhere.answers["GET", str(CONFIG)] = serving(b"{}")
    fresh = OciRegistry(Settings())
    with pytest.raises(Refused, match="digest_mismatch"):
        _look_up(fresh, registry, IMAGE.manifest_digest)
    fresh.close()


def test_a_wrong_digest_header_decides_nothing(registry: BadRegistry, adapter: OciRegistry) -> None:
    lie = serving(IMAGE.manifest, Docker_Content_Digest=str(CONFIG))
    for method in ("GET", "HEAD"):
        registry.answers[method, str(IMAGE.manifest_digest)] = lie
    seen = _look_up(adapter, registry, IMAGE.manifest_digest)
    assert seen.exists
    assert _look_up(adapter, registry, IMAGE.manifest_digest) == seen
    assert [line.split()[0] for line in registry.requests] == [
        *("GET", "GET", "HEAD"),
        *("HEAD", "GET", "GET", "HEAD"),
    ]


def test_a_second_look_costs_one_request(registry: BadRegistry, adapter: OciRegistry) -> None:
    first = _look_up(adapter, registry, IMAGE.manifest_digest)
    registry.requests.clear()
    assert _look_up(adapter, registry, IMAGE.manifest_digest) == first
    assert registry.requests == [f"HEAD /v2/{REPOSITORY}/manifests/{IMAGE.manifest_digest}"]


def test_a_failing_second_look_is_not_answered_from_memory(
    registry: BadRegistry, adapter: OciRegistry
) -> None:
    _look_up(adapter, registry, IMAGE.manifest_digest)
    registry.answers["HEAD", str(IMAGE.manifest_digest)] = serving(b"", 503, Retry_After="7")
    with pytest.raises(Transient) as raised:
        _look_up(adapter, registry, IMAGE.manifest_digest)
    assert raised.value.retry_after_s == 7.0


def test_memory_is_bounded(registry: BadRegistry, adapter: OciRegistry) -> None:
    kept = [small_image(word) for word in ("one", "two", "three")]
    for image in kept:
        _add(registry, image)
        _look_up(adapter, registry, image.manifest_digest)
    registry.requests.clear()
    for image in reversed(kept):
        _look_up(adapter, registry, image.manifest_digest)
    methods = [line.split()[0] for line in registry.requests]
    assert methods == ["HEAD", "HEAD", "GET", "GET", "HEAD"]


def test_nothing_of_ours_is_sent_but_what_is_wanted(
    registry: BadRegistry, adapter: OciRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{free_port()}")
    _look_up(adapter, registry, IMAGE.manifest_digest)
    for headers in registry.headers:
        assert set(headers) == {"Host", "Accept", "Accept-Encoding", "User-Agent"}


def test_what_a_registry_asks_to_be_told_again_is_not(
    registry: BadRegistry, adapter: OciRegistry
) -> None:
    answer = serving(IMAGE.manifest, Set_Cookie="who=this")
    registry.answers["GET", str(IMAGE.manifest_digest)] = answer
    _look_up(adapter, registry, IMAGE.manifest_digest)
    _look_up(adapter, registry, IMAGE.manifest_digest)
    assert len(registry.headers) > 2
    assert not any("Cookie" in headers for headers in registry.headers)


def test_nobody_listens(adapter: OciRegistry) -> None:
    endpoint = RegistryEndpoint(f"127.0.0.1:{free_port()}", plain_http=True)
    with pytest.raises(Transient, match=r"registry_unreachable: .*Connection refused"):
        adapter.look_up(endpoint, ArtifactKey(REPOSITORY, CONFIG))


def test_plain_http_where_tls_is_expected(registry: BadRegistry, adapter: OciRegistry) -> None:
    endpoint = RegistryEndpoint(registry.endpoint)
    with pytest.raises(Refused) as refused:
        adapter.look_up(endpoint, ArtifactKey(REPOSITORY, CONFIG))
    assert refused.value.code == "registry_tls"
    assert refused.value.hint == "install the registry's CA on this host, or set plain_http"


@pytest.mark.parametrize("endpoint", ["", "user:secret@host", "host/path", "host:port", "a b"])
def test_an_odd_endpoint_is_refused(adapter: OciRegistry, endpoint: str) -> None:
    with pytest.raises(Refused, match=r"endpoint_invalid: '.*' is not host:port"):
        adapter.look_up(RegistryEndpoint(endpoint), ArtifactKey(REPOSITORY, CONFIG))


@pytest.mark.parametrize("repository", ["", "../secrets", "a//../b", "Upper", "a?b", "a/"])
def test_an_odd_repository_is_refused(
    registry: BadRegistry, adapter: OciRegistry, repository: str
) -> None:
    with pytest.raises(Refused, match=r"repository_invalid: .* is no repository name"):
        adapter.look_up(RegistryEndpoint(registry.endpoint), ArtifactKey(repository, CONFIG))
    assert registry.requests == []


def _look_up(adapter: OciRegistry, registry: BadRegistry, digest: Digest) -> ArtifactSeen:
    endpoint = RegistryEndpoint(registry.endpoint, plain_http=True)
    return adapter.look_up(endpoint, ArtifactKey(REPOSITORY, digest))


def _add(registry: BadRegistry, image: OciImage) -> None:
    registry.blobs.update(image.blobs)
