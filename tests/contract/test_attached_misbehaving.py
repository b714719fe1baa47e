"""What is made of a registry, or of somebody who may push there, that attaches nonsense and lies.

Nothing here is believed, nothing is read without a bound, and one bad document takes no good one
with it. What can't be asked for is an error, never "nothing is attached".
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from reconciler.adapters import registry_attached
from reconciler.adapters.registry_attached import (
    DSSE_TYPE,
    SIGNATURE_ANNOTATION,
    SIMPLE_SIGNING_TYPE,
    Collecting,
)
from reconciler.adapters.registry_http import Bounds, Remote, bounds_of, open_client
from reconciler.adapters.registry_oci import OciRegistry
from reconciler.adapters.registry_references import WithoutReferrers, referrer_indexes
from reconciler.artifact_ports import Attached, Document
from reconciler.core.names import ArtifactKey, Digest
from reconciler.core.trust.statements import BUNDLE_TYPE
from reconciler.devkit.images import CONFIG_TYPE, INDEX_TYPE, MANIFEST_TYPE
from reconciler.errors import GpuaasError, Refused, Transient
from reconciler.ports import RegistryEndpoint
from reconciler.settings import Settings
from tests.fakes.bad_server import Answer, BadServer, Request
from tests.services.oci import descriptor, document, index_of, small_image

IMAGE = small_image("attached to")
SUBJECT = IMAGE.manifest_digest
SIG_TAG = f"{str(SUBJECT).replace(':', '-')}.sig"
BOUNDS = Bounds(1.0, 100_000, 200)
BUNDLE = b'{"bundle":1}'
OTHER = Digest.of(b"another artifact")


@dataclass
class Memory:
    """A registry in memory that may be told to lie."""

    manifests: dict[Digest, tuple[bytes, str]] = field(default_factory=dict)
    blobs: dict[Digest, bytes] = field(default_factory=dict)
    tags: dict[str, tuple[bytes, str]] = field(default_factory=dict)
    pages: list[bytes] = field(default_factory=list)
    where = "memory"

    def manifest(self, digest: Digest) -> tuple[bytes, str] | None:
        if digest == SUBJECT and digest not in self.manifests:
            return IMAGE.manifest, MANIFEST_TYPE
        return self.manifests.get(digest)

    def blob(self, digest: Digest, size_bytes: int) -> bytes | None:
        content = self.blobs.get(digest)
        if content is not None and len(content) > size_bytes:
            raise Refused("manifest_too_large", "larger than it may be")
        return content

    def tagged(self, tag: str) -> tuple[bytes, str] | None:
        return self.tags.get(tag)

    def referrer_indexes(self, subject: Digest) -> Iterator[bytes]:
        assert subject == SUBJECT
        return iter(self.pages)

    # --- what is put there ---

    def add(self, content: bytes, **entry: Any) -> Digest:
        """A manifest, and an entry in the list of referrers; `entry` replaces what that says."""
        digest = Digest.of(content)
        self.manifests[digest] = (content, MANIFEST_TYPE)
        said = {**descriptor(content, MANIFEST_TYPE, artifactType=BUNDLE_TYPE), **entry}
        self.pages.append(
            document({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": [said]})
        )
        return digest

    def collect(self) -> Attached:
        return Collecting(self, SUBJECT, BOUNDS).run()


def carrying(
    memory: Memory,
    content: bytes = BUNDLE,
    media_type: str = BUNDLE_TYPE,
    layer: dict[str, Any] | None = None,
    **fields: Any,
) -> bytes:
    """A manifest with one document; `layer` and `fields` replace what an honest one says."""
    memory.blobs[Digest.of(content)] = content
    return document(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "artifactType": BUNDLE_TYPE,
            "config": descriptor(b"{}", CONFIG_TYPE),
            "layers": [{**descriptor(content, media_type), **(layer or {})}],
            "subject": descriptor(IMAGE.manifest, MANIFEST_TYPE),
            **fields,
        }
    )


def test_an_honest_bundle_is_found_whatever_its_list_calls_it() -> None:
    """Fallback indexes carry wrong types: the manifest says itself what it is."""
    for said in (BUNDLE_TYPE, "application/vnd.oci.empty.v1+json", None, 7):
        memory = Memory()
        digest = memory.add(carrying(memory), artifactType=said)
        (found,) = memory.collect().documents
        assert (found.form, found.content, found.digest) == ("bundle", BUNDLE, str(digest))


def test_a_document_that_its_manifest_brings_along_is_not_asked_for() -> None:
    memory = Memory()
    memory.add(carrying(memory, layer={"data": base64.b64encode(BUNDLE).decode()}))
    memory.blobs.clear()
    (found,) = memory.collect().documents
    assert found.content == BUNDLE


@pytest.mark.parametrize(
    "data", [base64.b64encode(b'{"bundle":2}').decode(), "", "no base64", "\u00e9", None, 7]
)
def test_what_a_manifest_brings_along_under_another_digest_is_none(data: object) -> None:
    memory = Memory()
    memory.add(carrying(memory, layer={"data": data}))
    (found,) = memory.collect().documents
    assert found.content == BUNDLE
    memory.blobs.clear()
    assert [one.code for one in memory.collect().unusable] == ["attached_missing"]


def test_what_a_manifest_brings_along_is_no_larger_than_it_says() -> None:
    memory = Memory()
    brought = {"data": base64.b64encode(BUNDLE).decode(), "size": len(BUNDLE) - 1}
    memory.add(carrying(memory, layer=brought))
    assert [one.code for one in memory.collect().unusable] == ["attached_too_large"]


def _subject(memory: Memory, value: object) -> None:
    memory.add(carrying(memory, subject=value))


def _other_artifact(memory: Memory) -> None:
    _subject(memory, {**descriptor(IMAGE.manifest, MANIFEST_TYPE), "digest": str(OTHER)})


def _forged_digest(memory: Memory) -> None:
    honest = carrying(memory)
    memory.manifests[memory.add(honest)] = (honest + b" ", MANIFEST_TYPE)


def _forged_document(memory: Memory) -> None:
    memory.add(carrying(memory))
    memory.blobs[Digest.of(BUNDLE)] = b'{"bundle":2}'


def _huge(memory: Memory) -> None:
    memory.add(carrying(memory, layer={"size": 5 * 1024 * 1024}))


def _understated(memory: Memory) -> None:
    memory.add(carrying(memory, layer={"size": 3}))


def _gone(memory: Memory) -> None:
    memory.add(carrying(memory))
    memory.blobs.clear()


def _unlisted(memory: Memory) -> None:
    memory.manifests.pop(memory.add(carrying(memory)))


def _twice(memory: Memory) -> None:
    text = carrying(memory)[:-1] + b', "subject": {"digest": "' + str(SUBJECT).encode() + b'"}}'
    memory.add(text)


def _lying_type(memory: Memory) -> None:
    memory.add(carrying(memory, media_type="application/octet-stream"))


def _page(memory: Memory) -> None:
    memory.pages.append(b"<h1>referrers</h1>")


def _endless_index(memory: Memory) -> None:
    entry = descriptor(b"x", MANIFEST_TYPE)
    memory.pages.append(
        document({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": [entry] * 201})
    )


REJECTED: dict[str, tuple[Callable[[Memory], None], str, str]] = {
    "of another artifact": (_other_artifact, "attached_elsewhere", f"it is attached to {OTHER}"),
    "of nothing": (lambda m: _subject(m, None), "attached_elsewhere", "it is attached to None"),
    "of a word": (lambda m: _subject(m, "x"), "attached_elsewhere", "it is attached to None"),
    "other bytes than its digest": (
        _forged_digest,
        "digest_mismatch",
        "its bytes hash to ",
    ),
    "another document": (_forged_document, "digest_mismatch", "its bytes hash to "),
    "a huge document": (
        _huge,
        "attached_too_large",
        f"5242880 bytes; {registry_attached.DOCUMENT_BYTES_MAX} each and "
        f"{registry_attached.PLACE_BYTES_MAX} together are read",
    ),
    "a document larger than it says": (
        _understated,
        "attached_too_large",
        "larger than its descriptor says",
    ),
    "a document that is gone": (
        _gone,
        "attached_missing",
        "the document that its manifest names is not there",
    ),
    "a manifest that is gone": (
        _unlisted,
        "attached_missing",
        "a list names it, and it is not there",
    ),
    "two subjects": (_twice, "manifest_malformed", "a name is given twice in one object"),
    "a type that it is not": (
        _lying_type,
        "attached_malformed",
        "nothing in it is a signature or attestation",
    ),
    "no list": (_page, "referrers_malformed", "it is not JSON"),
    "an endless list": (
        _endless_index,
        "referrers_malformed",
        "manifests has 201 entries, 200 are allowed",
    ),
}


@pytest.mark.parametrize("name", REJECTED)
def test_a_lie_is_told_and_takes_nothing_good_with_it(name: str) -> None:
    act, code, message = REJECTED[name]
    memory = Memory()
    act(memory)
    found = memory.collect()
    assert found.documents == ()
    ((told,),) = [found.unusable]
    assert told.code == code
    assert told.message.startswith(message)
    good = b'{"good":1}'
    memory.add(carrying(memory, good))
    assert [one.content for one in memory.collect().documents] == [good]


def test_an_attestation_inside_an_index_is_anybody_s_word() -> None:
    """As BuildKit puts it there: its index names it, and nobody signed it."""
    image = index_of({"linux/amd64": small_image("site"), "unknown/unknown": small_image("sbom")})
    memory = Memory({image.manifest_digest: (image.manifest, INDEX_TYPE)})
    found = Collecting(_About(memory, image.manifest_digest), image.manifest_digest, BOUNDS).run()
    assert [(one.code, one.message) for one in found.unusable] == [
        ("provenance_unsigned", "an attestation inside the index, that nobody signed")
    ]


@dataclass
class _About:
    """The same of another artifact, to which nothing else is attached."""

    memory: Memory
    subject: Digest
    where = "memory"

    def manifest(self, digest: Digest) -> tuple[bytes, str] | None:
        return self.memory.manifests.get(digest)

    def blob(self, digest: Digest, size_bytes: int) -> bytes | None:
        return self.memory.blob(digest, size_bytes)

    def tagged(self, tag: str) -> tuple[bytes, str] | None:
        return self.memory.tagged(tag)

    def referrer_indexes(self, subject: Digest) -> Iterator[bytes]:
        assert subject == self.subject
        return iter(())


def test_classic_signatures_are_layers_and_a_bad_one_hides_no_other() -> None:
    memory = Memory()
    contents = [b'{"payload":1}', b'{"gone":1}', b'{"payload":2}']
    layers = [
        descriptor(one, SIMPLE_SIGNING_TYPE, annotations={SIGNATURE_ANNOTATION: f"s{number}"})
        for number, one in enumerate(contents)
    ]
    layers.append(descriptor(b"x", "application/octet-stream"))
    memory.blobs = {Digest.of(one): one for one in (contents[0], contents[2])}
    memory.tags[SIG_TAG] = (carrying(Memory(), layers=layers), MANIFEST_TYPE)
    found = memory.collect()
    assert [(one.form, one.signature) for one in found.documents] == [
        ("classic_signature", "s0"),
        ("classic_signature", "s2"),
    ]
    assert [one.code for one in found.unusable] == ["attached_missing"]


def test_annotations_that_are_no_text_are_none() -> None:
    memory = Memory()
    layer = {"annotations": {SIGNATURE_ANNOTATION: ["x"], "predicateType": 1}}
    memory.add(carrying(memory, media_type=DSSE_TYPE, layer=layer, annotations=7))
    (found,) = memory.collect().documents
    assert (found.signature, found.predicate_type) == ("", "")


def test_only_so_many_are_opened_and_those_that_say_bundle_first() -> None:
    memory = Memory()
    for number in range(registry_attached.MANIFESTS_MAX + 20):
        memory.add(
            carrying(memory, b'{"sbom":%d}' % number, "application/spdx+json", artifactType="x"),
            artifactType="application/spdx+json",
        )
    memory.add(carrying(memory))
    found = memory.collect()
    assert [one.content for one in found.documents] == [BUNDLE]
    assert [(one.code, one.message) for one in found.unusable] == [
        ("too_many_attached", "more than 64 manifests: the rest is not looked at")
    ]


def test_other_referrers_are_nobody_s_business() -> None:
    memory = Memory()
    memory.add(carrying(memory, b"sbom", "application/spdx+json", artifactType="x"))
    assert memory.collect() == Attached()


# --- over HTTP ------------------------------------------------------------------------------------

KEY = ArtifactKey("acme/site", SUBJECT)


class _Lying(BadServer):
    """Serves the image; what else is asked for is answered by the test, or is not there."""

    def __init__(self) -> None:
        super().__init__()
        self.answers: dict[str, Answer] = {}

    def answer_to(self, request: Request) -> Answer:
        tail = request.path.removeprefix("/v2/acme/site/")
        return self.answers.get(tail.partition("?")[0], _honest)


def _honest(request: Request) -> None:
    if request.path.endswith(f"/manifests/{SUBJECT}"):
        request.reply(200, IMAGE.manifest, Content_Type=MANIFEST_TYPE)
        return
    request.reply(404, b'{"errors":[{"code":"MANIFEST_UNKNOWN"}]}')


def answering(status: int, body: bytes = b"", **headers: str) -> Answer:
    return lambda request: request.reply(status, body, **headers)


EMPTY = document({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": []})
REFERRERS = f"referrers/{SUBJECT}"
HTTP_CASES: dict[str, tuple[str, Answer, type[GpuaasError], str, str]] = {
    "a list elsewhere": (
        REFERRERS,
        answering(307, Location="http://127.0.0.1:1/v2/x"),
        Refused,
        "registry_redirected",
        "manifests are taken from the registry itself, not from where it points",
    ),
    "a next page elsewhere": (
        REFERRERS,
        answering(200, EMPTY, Link='<http://127.0.0.1:1/v2/x>; rel="next"'),
        Refused,
        "registry_redirected",
        "its next page is elsewhere",
    ),
    "a next page of another artifact": (
        REFERRERS,
        answering(200, EMPTY, Link=f'</v2/acme/site/referrers/{OTHER}>; rel="next"'),
        Refused,
        "registry_redirected",
        "its next page is elsewhere",
    ),
    "pages without end": (
        REFERRERS,
        answering(200, EMPTY, Link=f'</v2/acme/site/{REFERRERS}?n=1>; rel="next"'),
        Refused,
        "registry_odd_answer",
        "more than 20 pages of referrers",
    ),
    "a list that never ends": (
        REFERRERS,
        answering(200, b" " * 5000),
        Refused,
        "manifest_too_large",
        "larger than 4096 bytes",
    ),
    "no word on the list": (
        REFERRERS,
        answering(503),
        Transient,
        "registry_unavailable",
        "answered 503",
    ),
    "a stranger's 404 on a tag": (
        f"manifests/{SIG_TAG}",
        answering(404, b"<h1>Not found</h1>"),
        Transient,
        "registry_unclear",
        "404 without a registry's error code: perhaps not the registry that answered",
    ),
    "a denied tag": (
        f"manifests/{SIG_TAG}",
        answering(401),
        Refused,
        "registry_denied",
        "answered 401",
    ),
    "another artifact": (
        f"manifests/{SUBJECT}",
        answering(200, small_image("other").manifest, Content_Type=MANIFEST_TYPE),
        Refused,
        "digest_mismatch",
        f"its bytes hash to {small_image('other').manifest_digest}",
    ),
}


@pytest.fixture
def adapter() -> Iterator[OciRegistry]:
    registry = OciRegistry(Settings(registry_timeout_s=5.0, manifest_bytes_max=4096))
    yield registry
    registry.close()


@pytest.mark.parametrize("name", HTTP_CASES)
def test_what_can_not_be_asked_for_is_never_nothing(adapter: OciRegistry, name: str) -> None:
    path, answer, family, code, message = HTTP_CASES[name]
    with _Lying() as server:
        endpoint = RegistryEndpoint(server.endpoint, plain_http=True)
        assert adapter.attached(endpoint, KEY) == Attached(), "as long as it answers as it should"
        server.answers[path] = answer
        with pytest.raises(family) as refused:
            adapter.attached(endpoint, KEY)
    assert (refused.value.code, refused.value.message) == (code, message)


def test_an_upload_goes_nowhere_else(adapter: OciRegistry) -> None:
    with _Lying() as server:
        endpoint = RegistryEndpoint(server.endpoint, plain_http=True)
        server.answers["blobs/uploads/"] = answering(202, Location="http://127.0.0.1:1/take")
        with pytest.raises(Refused) as refused:
            adapter.attach(endpoint, KEY, Document("bundle", BUNDLE))
    assert str(refused.value).endswith(
        "registry_redirected: it takes uploads elsewhere "
        "(name the registry's final host in the Environment)"
    )


def test_a_registry_without_the_api_is_not_asked_for_it_each_time() -> None:
    """Once its clients were seen to keep a list instead; for a while, as it may get the API."""
    now_s = 100.0
    without = WithoutReferrers(lambda: now_s)
    settings = Settings()
    with _Lying() as server, open_client(settings) as client:
        endpoint = RegistryEndpoint(server.endpoint, plain_http=True)
        remote = Remote(client, endpoint, "acme/site", bounds_of(settings))

        def asked() -> list[str]:
            server.requests.clear()
            list(referrer_indexes(remote, SUBJECT, without))
            return [one.rpartition("/")[0].rpartition("/")[2] for one in server.requests]

        both = ["referrers", "manifests"]
        assert asked() == both
        assert asked() == both, "a registry without any list may have the API tomorrow"
        tag = f"manifests/{str(SUBJECT).replace(':', '-')}"
        server.answers[tag] = answering(200, EMPTY, Content_Type=INDEX_TYPE)
        assert asked() == both
        assert asked() == ["manifests"]
        now_s += 600
        assert asked() == both
