"""One suite for every artifact store: the fake, a folder, a bucket of a real S3 service."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from reconciler.adapters import blobs_s3
from reconciler.adapters.blobs_folder import FolderBlobs
from reconciler.adapters.blobs_s3 import S3Blobs
from reconciler.artifact_ports import BlobStore
from reconciler.core.names import Digest
from reconciler.errors import Refused
from tests.fakes.blobs import MemoryBlobs
from tests.services.s3_server import S3Server, s3_server

PART = 5 * 1024 * 1024
"""The smallest part that S3 takes: a blob of several is no large one here."""
LARGE = random.Random(8).randbytes(3 * PART + 123_457)
SMALL = b"weights of nothing much\n" * 100
NAME = "01k9upload"


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with s3_server(tmp_path_factory.mktemp("s3") / "buckets") as server:
        yield server


class Place:
    """A store, and how another process sees it."""

    def __init__(self, kind: str, folder: Path, s3: S3Server | None) -> None:
        self.kind, self.folder, self.s3 = kind, folder, s3
        self.memory = MemoryBlobs()

    def open(self) -> BlobStore:
        if self.s3 is not None:
            return S3Blobs(self.s3.place, self.s3.key, self.folder)
        return self.memory if self.kind == "memory" else FolderBlobs(self.folder)


@pytest.fixture(params=["memory", "folder", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    s3 = request.getfixturevalue("s3") if request.param == "s3" else None
    monkeypatch.setattr(blobs_s3, "_FIRST_PART_BYTES", PART)
    return Place(request.param, tmp_path / "blobs", s3)


@pytest.fixture
def store(place: Place) -> BlobStore:
    return place.open()


def put(store: BlobStore, content: bytes, name: str = NAME) -> Digest:
    store.append(name, 0, [content])
    digest = Digest.of(content)
    assert store.finish(name, digest) == len(content)
    return digest


def code_of(refused: pytest.ExceptionInfo[Refused]) -> str:
    return refused.value.code


@pytest.mark.parametrize("content", [b"", SMALL, LARGE], ids=["empty", "small", "large"])
def test_what_was_uploaded_is_there_whole(store: BlobStore, content: bytes) -> None:
    store.delete(Digest.of(content))
    assert store.size_bytes(Digest.of(content)) is None
    digest = put(store, content, f"{NAME}-{len(content)}")
    assert store.size_bytes(digest) == len(content)
    assert b"".join(store.read(digest)) == content


@pytest.mark.parametrize(
    ("start", "end"), [(0, 1), (7, None), (len(SMALL) - 1, None), (5, 5), (3, 10**9)]
)
def test_any_range_is_read(store: BlobStore, start: int, end: int | None) -> None:
    digest = put(store, SMALL)
    assert b"".join(store.read(digest, start, end)) == SMALL[start:end]


def test_an_upload_goes_on_at_any_byte_also_after_a_restart(place: Place) -> None:
    """Each piece in another process: nothing but what is stored tells how far it got."""
    cuts = sorted(random.Random(3).sample(range(1, len(LARGE)), 6))
    cuts = sorted({*cuts, PART - 1, PART, PART + 1, 2 * PART})
    done = 0
    for cut in [*cuts, len(LARGE)]:
        store = place.open()
        assert store.part(NAME).bytes_done == done
        assert store.append(NAME, done, [LARGE[done:cut]]).bytes_done == cut
        done = cut
    digest = Digest.of(LARGE)
    assert place.open().finish(NAME, digest) == len(LARGE)
    assert hashlib.sha256(b"".join(place.open().read(digest))).digest() == bytes.fromhex(
        digest.value[7:]
    )


def test_what_came_before_the_pieces_ended_early_is_kept(store: BlobStore) -> None:
    def broken() -> Iterator[bytes]:
        yield SMALL[:700]
        raise ConnectionResetError

    with pytest.raises(Exception):  # noqa: B017, PT011 - what, is the caller's own
        store.append(NAME, 0, broken())
    assert store.part(NAME).bytes_done == 700
    store.append(NAME, 700, [SMALL[700:]])
    assert store.finish(NAME, Digest.of(SMALL)) == len(SMALL)


@pytest.mark.parametrize("offset", [0, 9, 11, 10**12])
def test_another_offset_than_what_is_kept_is_refused(store: BlobStore, offset: int) -> None:
    store.append(NAME, 0, [SMALL[:10]])
    with pytest.raises(Refused) as refused:
        store.append(NAME, offset, [b"more"])
    assert code_of(refused) == "wrong_offset"
    assert "10 bytes are kept" in refused.value.message
    assert store.part(NAME).bytes_done == 10


@pytest.mark.parametrize("content", [SMALL, LARGE], ids=["small", "large"])
def test_other_content_is_dropped(place: Place, content: bytes) -> None:
    store, wanted = place.open(), Digest.of(b"something else")
    store.append(NAME, 0, [content])
    with pytest.raises(Refused) as refused:
        store.finish(NAME, wanted)
    assert code_of(refused) == "digest_mismatch"
    assert str(Digest.of(content)) in refused.value.message
    assert place.open().part(NAME).bytes_done == 0
    assert store.size_bytes(wanted) is None
    with pytest.raises(Refused, match="nothing was uploaded"):
        store.finish(NAME, wanted)


@pytest.mark.parametrize("content", [SMALL, LARGE], ids=["small", "large"])
def test_finishing_again_is_harmless_in_any_process(place: Place, content: bytes) -> None:
    digest = put(place.open(), content)
    assert place.open().finish(NAME, digest) == len(content)
    assert place.open().part(NAME).bytes_done == len(content)
    with pytest.raises(Refused) as refused:
        place.open().finish(NAME, Digest.of(b"something else"))
    assert code_of(refused) == "digest_mismatch"
    with pytest.raises(Refused) as refused:
        place.open().append(NAME, len(content), [b"more"])
    assert code_of(refused) == "upload_finished"


def test_nobody_gets_hold_of_a_blob_by_naming_its_digest(store: BlobStore) -> None:
    """An upload without these very bytes proves nothing, though they are there already."""
    digest = put(store, SMALL)
    with pytest.raises(Refused) as refused:
        store.finish("01k9thief", digest)
    assert code_of(refused) == "no_such_upload"
    store.append("01k9thief", 0, [SMALL[:-1]])
    with pytest.raises(Refused) as refused:
        store.finish("01k9thief", digest)
    assert code_of(refused) == "digest_mismatch"
    assert store.size_bytes(digest) == len(SMALL)


def test_a_blob_is_claimed_by_each_source_for_itself(place: Place) -> None:
    store, digest = place.open(), Digest.of(SMALL)
    one, other = (f"artifact_store://projects/{name}/artifacts/a/1/w" for name in ("a/b", "c/d"))
    assert not store.claimed(one, digest)
    for _ in range(2):
        store.claim(one, digest)
    again = place.open()
    assert again.claimed(one, digest)
    assert not again.claimed(other, digest)
    assert not again.claimed(one, Digest.of(LARGE))
    assert not again.claimed(one + "/", digest)


def test_the_same_content_twice_is_kept_once(store: BlobStore) -> None:
    assert put(store, LARGE, "01k9first") == put(store, LARGE, "01k9second")
    assert b"".join(store.read(Digest.of(LARGE), 0, 100)) == LARGE[:100]


@pytest.mark.parametrize("content", [SMALL, LARGE], ids=["small", "large"])
def test_a_discarded_upload_leaves_nothing(place: Place, content: bytes) -> None:
    store = place.open()
    store.discard("01k9never")
    store.append(NAME, 0, [content])
    store.discard(NAME)
    assert store.part(NAME).bytes_done == 0
    assert place.open().part(NAME).bytes_done == 0
    left = (
        [one for one in place.folder.rglob("*") if one.is_file()] if place.folder.is_dir() else []
    )
    assert left == []


def test_an_upload_begun_anew_elsewhere_is_hashed_by_what_it_is_now(place: Place) -> None:
    """What this process remembers of the upload before must not vouch for other bytes."""
    here, there = place.open(), place.open()
    here.append(NAME, 0, [LARGE[:PART]])
    there.discard(NAME)
    there.append(NAME, 0, [bytes(PART)])
    with pytest.raises(Refused) as refused:
        here.finish(NAME, Digest.of(LARGE[:PART]))
    assert code_of(refused) == "digest_mismatch"


def test_deleting_is_harmless_when_there_is_none(store: BlobStore) -> None:
    digest = put(store, SMALL)
    store.delete(digest)
    store.delete(digest)
    assert store.size_bytes(digest) is None
    with pytest.raises(Refused) as refused:
        store.read(digest)
    assert code_of(refused) == "no_such_blob"


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "x" * 81, "a b"])
def test_no_name_leads_out_of_the_store(place: Place, name: str) -> None:
    if place.kind == "memory":
        return
    for refused in (
        lambda: place.open().append(name, 0, [b"x"]),
        lambda: place.open().finish(name, Digest.of(b"x")),
        lambda: place.open().part(name),
        lambda: place.open().discard(name),
    ):
        with pytest.raises(Refused) as told:
            refused()
        assert code_of(told) == "no_such_upload"
