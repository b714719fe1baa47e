"""A registry, or somebody who may push there, that would stop whoever looks: by text that can't be
kept, by answers that raise, by answers that never end, by junk in front of what counts.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest

from reconciler.adapters import registry_attached
from reconciler.adapters.registry_attached import (
    SIGNATURE_ANNOTATION,
    SIMPLE_SIGNING_TYPE,
    Collecting,
    both_ends,
)
from reconciler.adapters.registry_http import Bounds, address_of, open_client
from reconciler.adapters.registry_login import login_bearer
from reconciler.adapters.registry_oci import OciRegistry
from reconciler.artifact_ports import Attached, Document
from reconciler.core.names import ArtifactKey, Digest
from reconciler.core.trust.statements import BUNDLE_TYPE
from reconciler.devkit.images import CONFIG_TYPE, INDEX_TYPE, MANIFEST_TYPE
from reconciler.errors import Refused, Transient
from reconciler.ports import RegistryEndpoint, Secret
from reconciler.settings import Settings
from tests.fakes.bad_registry import BadRegistry, serving
from tests.fakes.bad_server import Answer, BadServer, Request
from tests.services.oci import descriptor, document, small_image

IMAGE = small_image("hostile")
SUBJECT = IMAGE.manifest_digest
TAG = str(SUBJECT).replace(":", "-")
CONFIG = Digest.parse(json.loads(IMAGE.manifest)["config"]["digest"])
KEY = ArtifactKey("gpuaas/apps/research/site", SUBJECT)
BOUNDS = Bounds(1.0, 1_000_000, 512)


class Memory:
    """A registry in memory. `lists` are its indexes of referrers."""

    where = "memory"

    def __init__(self, top: bytes = IMAGE.manifest) -> None:
        self.subject = Digest.of(top)
        self.manifests = {self.subject: top}
        self.blobs: dict[Digest, bytes] = {}
        self.tags: dict[str, bytes] = {}
        self.entries: list[dict[str, object]] = []

    def manifest(self, digest: Digest) -> tuple[bytes, str] | None:
        found = self.manifests.get(digest)
        return None if found is None else (found, "")

    def blob(self, digest: Digest, size_bytes: int) -> bytes | None:
        return self.blobs.get(digest)

    def tagged(self, tag: str) -> tuple[bytes, str] | None:
        found = self.tags.get(tag)
        return None if found is None else (found, "")

    def referrer_indexes(self, subject: Digest) -> Iterator[bytes]:
        if self.entries:
            yield document({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": self.entries})

    # --- what is put there ---

    def layer(self, content: bytes, media_type: str = SIMPLE_SIGNING_TYPE) -> dict[str, object]:
        self.blobs[Digest.of(content)] = content
        return descriptor(content, media_type, annotations={SIGNATURE_ANNOTATION: "AAAA"})

    def bundle(self, *contents: bytes, said: object = BUNDLE_TYPE) -> None:
        layers = [self.layer(content, BUNDLE_TYPE) for content in contents]
        content = manifest(layers, artifactType=said, subject={"digest": str(self.subject)})
        self.manifests[Digest.of(content)] = content
        self.entries.append(descriptor(content, MANIFEST_TYPE, artifactType=said))

    def collect(self) -> Attached:
        return Collecting(self, self.subject, BOUNDS).run()

    def contents(self) -> set[bytes]:
        return {one.content for one in self.collect().documents}


def manifest(layers: list[dict[str, object]], **more: object) -> bytes:
    return document(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": descriptor(b"{}", CONFIG_TYPE),
            "layers": layers,
            **more,
        }
    )


# --- text that can't be kept ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("\ud800", "\\ud800"),
        ("\x1b[2Jgood\r\n", "\\x1b[2Jgood\\r\\n"),
        ("\u202egood", "\\u202egood"),
    ],
)
def test_what_is_said_there_is_shown_as_text_of_others(said: str, shown: str) -> None:
    """Attempted: a subject that no store can encode, so that no pass comes to its end."""
    memory = Memory()
    memory.tags[f"{TAG}.sig"] = manifest([memory.layer(b"x")], subject={"digest": said})
    (told,) = memory.collect().unusable
    assert (told.code, told.message) == ("attached_elsewhere", f"it is attached to {shown}")
    assert told.message.encode()


def test_a_platform_is_a_word() -> None:
    config = document({"os": "\ud800", "architecture": "amd64"})
    image = small_image("odd platform", config=descriptor(config, CONFIG_TYPE))
    blobs = {**image.blobs, Digest.of(config): config}
    with BadRegistry(blobs) as server, pytest.raises(Refused) as refused:
        look(server, Settings(), image.manifest_digest)
    assert refused.value.message == "config names no os and architecture that there are"


def test_a_type_is_told_shortly() -> None:
    whole = manifest([], mediaType="x" * 50_000)
    with BadRegistry({Digest.of(whole): whole}) as server, pytest.raises(Refused) as refused:
        look(server, Settings(), Digest.of(whole))
    assert refused.value.code == "manifest_malformed"
    assert len(refused.value.message) < 300


# --- answers that raise ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("odd", "message"),
    [
        (b'"schemaVersion":2,"schemaVersion":2', "a name is given twice in one object"),
        (b'"annotations":{"x":NaN}', "NaN is no number"),
    ],
)
def test_an_odd_index_is_refused(odd: bytes, message: str) -> None:
    memory = Memory(b'{%s,"mediaType":"%s","manifests":[]}' % (odd, INDEX_TYPE.encode()))
    with pytest.raises(Refused) as refused:
        memory.collect()
    assert (refused.value.code, refused.value.message) == ("manifest_malformed", message)


@pytest.mark.parametrize("said", [["a"], {"a": 1}, 7, None])
def test_a_type_that_is_no_text_is_none(said: object) -> None:
    memory = Memory()
    memory.bundle(b"honest", said=said)
    other = manifest([], artifactType=said, subject={"digest": str(SUBJECT)})
    memory.manifests[Digest.of(other)] = other
    memory.entries.append(descriptor(other, MANIFEST_TYPE, artifactType=said))
    assert memory.contents() == {b"honest"}
    assert memory.collect().unusable == ()


LONG = "a" * 64
NO_ADDRESSES = [
    "http://a..b/", f"http://{LONG}.example/", "http://xn--a/", "http://h:99999/", "http://%00/",
    "http://.x/",
]  # fmt: skip


@pytest.mark.parametrize("location", NO_ADDRESSES)
def test_a_redirect_to_what_is_no_address_is_refused(location: str) -> None:
    with BadRegistry(dict(IMAGE.blobs)) as server:
        server.answers["GET", str(CONFIG)] = serving(b"", 307, Location=location)
        with pytest.raises(Refused) as refused:
            look(server, Settings())
    assert refused.value.code == "registry_redirected"
    assert refused.value.message == "to what is no address"


def test_addresses() -> None:
    good = ["http://h/", "https://10.0.0.1:5000/x", "http://[::1]:1/", "http://a.b.example./"]
    assert all(address_of(text) is not None for text in good)
    assert [text for text in NO_ADDRESSES if address_of(text) is not None] == []


@pytest.mark.parametrize("endpoint", ["a..b:5000", "registry:99999", f"{LONG}.example"])
def test_an_endpoint_that_nobody_can_look_up_is_refused(endpoint: str) -> None:
    registry = OciRegistry(Settings())
    with pytest.raises(Refused, match="endpoint_invalid"):
        registry.look_up(RegistryEndpoint(endpoint), KEY)
    registry.close()


# --- answers that never end -----------------------------------------------------------------------


def _dripping(head: bytes, drop: bytes) -> Answer:
    """Each drop soon enough for a read, the whole never."""

    def answer(request: Request) -> None:
        try:
            request.wfile.write(head)
            while not request.stopped.wait(0.02):
                request.wfile.write(drop)
        except OSError:
            return

    return answer


_OK = b"HTTP/1.1 200 OK\r\n"
ENDLESS: dict[str, Answer] = {
    "headers": _dripping(_OK, b"X: 1\r\n"),
    "one header": _dripping(_OK + b"X: ", b"1"),
    "interim answers": _dripping(b"", b"HTTP/1.1 103 Early Hints\r\n\r\n"),
    "a chunk's extension": _dripping(_OK + b"Transfer-Encoding: chunked\r\n\r\n1;", b"a"),
    "trailers": _dripping(_OK + b"Transfer-Encoding: chunked\r\n\r\n0\r\n", b"X: 1\r\n"),
}


@pytest.mark.parametrize("name", ENDLESS)
def test_a_look_ends_in_its_time_whatever_drips(name: str) -> None:
    settings = Settings(registry_timeout_s=30.0, registry_look_timeout_s=0.3)
    with BadRegistry(dict(IMAGE.blobs)) as server:
        server.answers["GET", str(SUBJECT)] = ENDLESS[name]
        with pytest.raises(Transient) as raised:
            look(server, settings)
        assert (raised.value.code, raised.value.message) == (
            "registry_timeout",
            "not done in 0.3 s",
        )
        del server.answers["GET", str(SUBJECT)]
        assert look(server, Settings())


CALLS: dict[str, Callable[[OciRegistry, RegistryEndpoint], object]] = {
    "attached": lambda registry, at: registry.attached(at, KEY),
    "copy": lambda registry, at: registry.copy(at, KEY, "gpuaas/apps/research/other"),
    "attach": lambda registry, at: registry.attach(at, KEY, Document("bundle", b"{}")),
}


@pytest.mark.parametrize("name", CALLS)
def test_so_do_the_others(name: str) -> None:
    registry = OciRegistry(Settings(registry_timeout_s=30.0, registry_look_timeout_s=0.3))
    with _Always(ENDLESS["headers"]) as server, pytest.raises(Transient) as raised:
        CALLS[name](registry, RegistryEndpoint(server.endpoint, plain_http=True))
    registry.close()
    assert str(raised.value).endswith(": registry_timeout: not done in 0.3 s")


# --- junk in front of what counts -----------------------------------------------------------------

JUNK = [b"junk %d" % number for number in range(registry_attached.DOCUMENTS_MAX + 6)]


def _filled(memory: Memory, *, first: bytes = b"", last: bytes = b"") -> None:
    contents = [*filter(None, [first]), *JUNK, *filter(None, [last])]
    memory.tags[f"{TAG}.sig"] = manifest([memory.layer(one) for one in contents])


def test_a_place_that_is_full_hides_nothing_in_another() -> None:
    memory = Memory()
    _filled(memory)
    memory.bundle(b"honest bundle")
    memory.tags[f"{TAG}.att"] = manifest([memory.layer(b"honest attestation")])
    assert {b"honest bundle", b"honest attestation"} <= memory.contents()
    told = memory.collect().unusable
    assert [(one.code, one.message) for one in told] == [
        ("too_many_attached", "70 documents, of which 64 are read")
    ]


@pytest.mark.parametrize("place", ["first", "last"])
def test_neither_the_first_nor_the_newest_is_pushed_out(place: str) -> None:
    memory = Memory()
    _filled(memory, **{place: b"honest"})
    assert b"honest" in memory.contents()


def test_a_few_large_ones_leave_room_for_small_ones() -> None:
    memory = Memory()
    size = registry_attached.DOCUMENT_BYTES_MAX
    large = [b"%d" % number * (size // 2) for number in range(10, 25)]
    memory.tags[f"{TAG}.sig"] = manifest([memory.layer(one) for one in (*large, b"honest")])
    assert b"honest" in memory.contents()


def test_one_that_refers_brings_one_document() -> None:
    memory = Memory()
    memory.bundle(*JUNK)
    memory.bundle(b"honest")
    assert b"honest" in memory.contents()
    assert [one.code for one in memory.collect().unusable] == ["too_many_attached"]


def test_what_a_list_calls_bundles_leaves_room_for_what_it_does_not() -> None:
    """Lists that clients keep are known to call bundles something else."""
    memory = Memory()
    for content in JUNK:
        memory.bundle(content)
    memory.bundle(b"honest", said="application/vnd.oci.empty.v1+json")
    assert b"honest" in memory.contents()


def test_both_ends() -> None:
    assert both_ends([1, 2, 3], 3) == [1, 2, 3]
    assert both_ends([1, 2, 3, 4, 5], 3) == [1, 4, 5]
    assert both_ends([1, 2, 3], 1) == [3]


# --- a password for whoever the registry names ----------------------------------------------------


class _Always(BadServer):
    def __init__(self, answer: Answer) -> None:
        super().__init__()
        self.answer = answer

    def answer_to(self, request: Request) -> Answer:
        return self.answer


def _challenging(realm: str) -> Answer:
    def answer(request: Request) -> None:
        said = f'Bearer realm="{realm}",service="registry"'
        request.reply(401, b"", WWW_Authenticate=said)

    return answer


def _login(realm: str, **token: object) -> tuple[str, list[str]]:
    """The token that is got, and what a token server here was asked."""
    with (
        _Always(lambda request: request.reply(200, document({"token": "t", **token}))) as tokens,
        _Always(_challenging(realm.format(tokens.endpoint))) as server,
        open_client(Settings(registry_timeout_s=5.0)) as client,
    ):
        endpoint = RegistryEndpoint(server.endpoint, plain_http=True)
        bearer = login_bearer(client, endpoint, "ci", Secret("a-password"))
        return bearer({"a/b": ("pull",)}).reveal(), tokens.requests


def test_a_token_server_on_this_host_is_asked() -> None:
    token, asked = _login("http://{}/token")
    assert token == "t"
    assert asked == ["GET /token?service=registry&account=ci&scope=repository%3Aa%2Fb%3Apull"]


@pytest.mark.parametrize(
    ("realm", "message"),
    [
        (
            "http://elsewhere.example/token",
            "it would have the password sent to elsewhere.example, in the clear",
        ),
        ("http://10.1.2.3/", "it would have the password sent to 10.1.2.3, in the clear"),
        ("ftp://127.0.0.1/", "its token server is not asked over http or https"),
        ("http://xn--a/", "its token server is not asked over http or https"),
    ],
)
def test_a_password_goes_to_no_stranger_in_the_clear(realm: str, message: str) -> None:
    with pytest.raises(Refused) as refused:
        _login(realm)
    assert (refused.value.code, refused.value.message) == ("token_server_unsafe", message)


@pytest.mark.parametrize("ends", [float("nan"), float("inf"), -1])
def test_a_token_of_any_age_is_a_token(ends: float) -> None:
    assert _login("http://{}/token", expires_in=ends)[0] == "t"


def test_a_token_of_no_age_is_none() -> None:
    with pytest.raises(Refused, match="registry_odd_answer: answered 200, and no token"):
        _login("http://{}/token", expires_in=10**400)


def look(server: BadRegistry, settings: Settings, digest: Digest = SUBJECT) -> bool:
    registry = OciRegistry(settings)
    try:
        at = RegistryEndpoint(server.endpoint, plain_http=True)
        return registry.look_up(at, ArtifactKey(KEY.repository, digest)).exists
    finally:
        registry.close()
