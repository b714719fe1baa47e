"""Blobs in and out over real HTTP: what is kept, who may, and what is refused with which words."""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from reconciler.core.names import Digest
from reconciler.core.transfers import Transfer, hash_of
from reconciler.errors import Transient
from reconciler.server import blobs_api, upload_slots
from tests.fakes.blobs import MemoryBlobs
from tests.fakes.store import MemoryStore
from tests.server.harness import NOW_MS, Plane, running
from tests.services.blob_plane import DOWNLOAD, PASSWORD, UPLOAD, a_transfer, raw_patch
from tests.waiting import wait_until

CONTENT = bytes(range(256)) * 40
DIGEST = Digest.of(CONTENT)
SOURCE = a_transfer().repository
UPLOADS = f"/v1/blobs/uploads/{UPLOAD}"
BODY_TIMEOUT_S = 0.5
BYTES_MAX = 50_000


class World:
    """A control plane with a publish and a pull transfer, both open."""

    def __init__(self, plane: Plane, blobs: MemoryBlobs) -> None:
        self.plane, self.blobs = plane, blobs
        self.save(a_transfer("publish", now_ms=NOW_MS))
        self.save(a_transfer("pull", str(DIGEST), NOW_MS))

    def save(self, transfer: Transfer) -> None:
        self.plane.store.save_transfer(transfer)

    def ask(self, method: str, path: str, intent: str = UPLOAD, **given: Any) -> httpx.Response:
        given.setdefault("auth", (intent, PASSWORD))
        return self.plane.client.request(method, path, **given)

    def patch(self, offset: int, content: Any, **given: Any) -> httpx.Response:
        headers = {"Upload-Offset": str(offset), **given.pop("headers", {})}
        return self.ask("PATCH", UPLOADS, content=content, headers=headers, **given)

    def finish(self, digest: Digest = DIGEST) -> httpx.Response:
        return self.ask("POST", f"{UPLOADS}/finish", json={"digest": str(digest)})

    def get(self, method: str = "GET", **headers: str) -> httpx.Response:
        return self.ask(method, f"/v1/blobs/{DIGEST}", DOWNLOAD, headers=headers)


@pytest.fixture
def world() -> Iterator[World]:
    blobs = MemoryBlobs()
    with running(
        MemoryStore(), blobs=blobs, body_timeout_s=BODY_TIMEOUT_S, blob_bytes_max=BYTES_MAX
    ) as plane:
        yield World(plane, blobs)


def told(answer: httpx.Response) -> tuple[int, str, str]:
    error = answer.json()["error"]
    return answer.status_code, error["code"], error["message"]


# --- up ------------------------------------------------------------------------------------------


def test_an_upload_goes_on_where_it_was(world: World) -> None:
    assert world.ask("HEAD", UPLOADS).headers["Upload-Offset"] == "0"
    first = world.patch(0, CONTENT[:1234])
    assert (first.status_code, first.headers["Upload-Offset"]) == (204, "1234")
    assert world.ask("HEAD", UPLOADS).headers["Upload-Offset"] == "1234"
    assert world.ask("GET", UPLOADS).json() == {"bytes_done": 1234}
    assert world.patch(1234, CONTENT[1234:]).headers["Upload-Offset"] == str(len(CONTENT))
    for _ in range(2):
        answer = world.finish()
        assert answer.status_code == 200
        assert answer.json() == {"digest": str(DIGEST), "size_bytes": len(CONTENT)}
    assert world.blobs.blobs[DIGEST] == CONTENT


def test_an_empty_blob_is_a_blob(world: World) -> None:
    assert world.patch(0, b"").status_code == 204
    assert world.finish(Digest.of(b"")).json()["size_bytes"] == 0


def test_a_body_of_many_batches_and_no_length_is_kept_whole(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blobs_api, "BATCH_BYTES", 1000)
    pieces = (CONTENT[start : start + 777] for start in range(0, len(CONTENT), 777))
    assert world.patch(0, pieces).status_code == 204
    assert world.finish().status_code == 200


@pytest.mark.parametrize("offset", [0, 11, 4711])
def test_another_offset_than_what_is_kept_is_told(world: World, offset: int) -> None:
    world.patch(0, CONTENT[:10])
    answer = world.patch(offset, CONTENT[offset:])
    assert told(answer) == (409, "wrong_offset", "10 bytes are kept, not " + str(offset))
    assert answer.headers["Upload-Offset"] == "10"


@pytest.mark.parametrize("offset", ["", "-1", "1.5", "٣", "9" * 19])
def test_what_is_no_offset_is_refused(world: World, offset: str) -> None:
    answer = world.patch(0, b"x", headers={"Upload-Offset": offset.encode()})
    assert told(answer) == (400, "invalid_message", "Upload-Offset: expected a number of bytes")


def test_other_content_is_dropped(world: World) -> None:
    world.patch(0, CONTENT[:-1])
    answer = world.finish()
    assert told(answer)[:2] == (422, "digest_mismatch")
    assert told(world.finish())[:2] == (404, "no_such_upload")
    assert world.ask("HEAD", UPLOADS).headers["Upload-Offset"] == "0"


def test_nothing_is_added_to_what_is_finished(world: World) -> None:
    world.patch(0, CONTENT)
    world.finish()
    assert told(world.patch(len(CONTENT), b"x"))[:2] == (409, "upload_finished")


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{}", b'{"digest": 5}', b'{"digest": "sha256:00"}', b"{" * 500]
)
def test_what_names_no_digest_is_refused(world: World, body: bytes) -> None:
    answer = world.ask("POST", f"{UPLOADS}/finish", content=body)
    assert told(answer) == (400, "invalid_message", 'expected {"digest": "sha256:…"}')


def test_too_large_a_blob_is_refused_before_and_while_it_comes(world: World) -> None:
    wanted = (413, "too_large", f"a blob has no more than {BYTES_MAX} bytes here")
    assert told(world.patch(0, bytes(BYTES_MAX + 1))) == wanted
    assert told(world.patch(BYTES_MAX + 1, b"")) == wanted
    assert told(world.patch(0, iter([bytes(BYTES_MAX), b"x"]))) == wanted
    assert world.ask("HEAD", UPLOADS).headers["Upload-Offset"] == "0"


def test_a_slow_sender_is_cut_off_and_what_came_is_kept(world: World) -> None:
    with raw_patch(world.plane.client.base_url, CONTENT[:60], length=100) as sender:
        answer = b"".join(iter(lambda: sender.recv(65536), b""))
    assert b" 408 " in answer
    assert b"nothing came for 0.5 s; what came before is kept" in answer
    assert world.ask("HEAD", UPLOADS).headers["Upload-Offset"] == "60"


def slots(world: World, monkeypatch: pytest.MonkeyPatch, in_all: int, of_one: int) -> None:
    monkeypatch.setattr(upload_slots, "SLOTS_MAX", in_all)
    monkeypatch.setattr(upload_slots, "SLOTS_OF_ONE", of_one)
    for number in range(4):
        owner = "globex/lab" if number == 3 else "acme/lab"
        world.save(a_transfer(id=str(number) * 26, owner=owner, now_ms=NOW_MS))


def one_byte(world: World, number: int) -> httpx.Response:
    upload = str(number) * 26
    headers = {"Upload-Offset": "0"}
    return world.ask("PATCH", f"/v1/blobs/uploads/{upload}", upload, content=b"x", headers=headers)


def test_one_body_of_an_upload_is_taken_at_a_time(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blobs_api, "BATCH_BYTES", 50)
    with raw_patch(world.plane.client.base_url, CONTENT[:50], length=100) as sender:
        until_kept(world, 50)
        answer = world.patch(50, CONTENT[50:])
        assert told(answer) == (409, "upload_busy", "another request is at this upload")
        assert answer.headers["Retry-After"] == "1"
        sender.sendall(CONTENT[50:100])
        assert b" 204 " in sender.recv(65536)
    assert world.patch(100, CONTENT[100:]).status_code == 204
    assert world.finish().status_code == 200


@pytest.mark.parametrize(("in_all", "of_one"), [(1, 9), (9, 1)], ids=["of all", "of a project"])
def test_few_bodies_are_taken_at_once(
    world: World, monkeypatch: pytest.MonkeyPatch, in_all: int, of_one: int
) -> None:
    """Else each would take its memory."""
    slots(world, monkeypatch, in_all, of_one)
    monkeypatch.setattr(blobs_api, "BATCH_BYTES", 50)
    with raw_patch(world.plane.client.base_url, CONTENT[:50], length=100):
        until_kept(world, 50)
        message = "1 uploads are under way: wait for one of them, then retry"
        assert told(one_byte(world, 2)) == (503, "too_many_uploads", message)
        assert one_byte(world, 3).status_code == (503 if in_all == 1 else 204)
    until_done = time.monotonic() + 30
    while one_byte(world, 2).status_code != 204:
        assert time.monotonic() < until_done
        time.sleep(0.01)


def test_a_wrong_offset_is_told_before_the_body_is_read(world: World) -> None:
    world.patch(0, CONTENT[:10])
    with raw_patch(world.plane.client.base_url, b"", length=10_000) as sender:
        assert b" 409 " in sender.recv(65536)


@pytest.mark.parametrize("change", [{"state": "closed"}, {"expires_at_ms": NOW_MS}])
def test_nothing_is_stored_any_more_once_the_intent_is_over(
    world: World, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    """Also for a body that began before: what was discarded does not come back."""
    monkeypatch.setattr(blobs_api, "BATCH_BYTES", 50)
    with raw_patch(world.plane.client.base_url, CONTENT[:50], length=100) as sender:
        until_kept(world, 50)
        world.save(replace(a_transfer(now_ms=NOW_MS), **change))
        world.blobs.discard(UPLOAD)
        sender.sendall(CONTENT[50:100])
        assert b" 401 " in sender.recv(65536)
    assert world.blobs.parts == {}


def test_what_came_before_a_sender_went_away_is_kept(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blobs_api, "BATCH_BYTES", 50)
    with raw_patch(world.plane.client.base_url, CONTENT[:50], length=100) as sender:
        # What comes together with the end of a connection that nobody reads yet is lost with it.
        until_kept(world, 50)
        sender.sendall(CONTENT[50:60])
    until_kept(world, 60)


def until_kept(world: World, size_bytes: int) -> None:
    deadline = time.monotonic() + 30
    while world.ask("HEAD", UPLOADS).headers["Upload-Offset"] != str(size_bytes):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_full_store_says_so_and_keeps_what_fitted(world: World) -> None:
    world.blobs.room_bytes = 100
    answer = world.patch(0, CONTENT)
    assert told(answer) == (507, "blob_store_full", "there is no room left for blobs")
    world.blobs.room_bytes = 2**20
    assert world.ask("HEAD", UPLOADS).headers["Upload-Offset"] == "100"


def test_what_hashes_for_long_is_asked_for_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blobs_api, "FINISH_WAIT_S", 0.05)
    finish, is_told = world.blobs.finish, threading.Event()
    calls = []

    def slow(upload: str, digest: Digest) -> int:
        calls.append(upload)
        is_told.wait(60)
        return finish(upload, digest)

    monkeypatch.setattr(world.blobs, "finish", slow)
    world.patch(0, CONTENT)
    answers = [world.finish()]
    assert (answers[0].status_code, answers[0].headers["Retry-After"]) == (202, "1")
    is_told.set()
    while answers[-1].status_code == 202:
        answers.append(world.finish())
    assert answers[-1].json()["digest"] == str(DIGEST)
    assert calls == [UPLOAD]


# --- down ----------------------------------------------------------------------------------------


def test_a_blob_is_given_whole_and_named(world: World) -> None:
    world.blobs.put(CONTENT, SOURCE)
    for method in ("GET", "HEAD"):
        answer = world.get(method)
        assert answer.status_code == 200
        assert answer.content == (CONTENT if method == "GET" else b"")
        assert answer.headers["Content-Length"] == str(len(CONTENT))
        assert answer.headers["ETag"] == f'"{DIGEST}"'
        assert answer.headers["Accept-Ranges"] == "bytes"
        raw = base64.b64encode(bytes.fromhex(DIGEST.value[7:])).decode()
        assert answer.headers["Repr-Digest"] == f"sha-256=:{raw}:"


@pytest.mark.parametrize(
    ("asked", "start", "end"), [("bytes=5000-", 5000, None), ("bytes=5-9", 5, 10)]
)
def test_a_blob_is_given_from_any_byte_on(
    world: World, asked: str, start: int, end: int | None
) -> None:
    world.blobs.put(CONTENT, SOURCE)
    answer = world.get(Range=asked, If_Range="")
    assert (answer.status_code, answer.content) == (206, CONTENT[start:end])
    last = (end or len(CONTENT)) - 1
    assert answer.headers["Content-Range"] == f"bytes {start}-{last}/{len(CONTENT)}"
    assert world.get(**{"Range": asked, "If-Range": '"other"'}).status_code == 200
    assert world.get(**{"If-None-Match": f'"x", "{DIGEST}"'}).status_code == 304


def test_a_range_behind_the_end_is_refused(world: World) -> None:
    world.blobs.put(CONTENT, SOURCE)
    answer = world.get(Range=f"bytes={len(CONTENT)}-")
    assert told(answer)[:2] == (416, "range_not_satisfiable")
    assert answer.headers["Content-Range"] == f"bytes */{len(CONTENT)}"


def test_a_store_with_addresses_is_sent_on_to(world: World) -> None:
    world.blobs.put(CONTENT, SOURCE)
    world.blobs.addresses[DIGEST] = "https://s3.invalid/bucket/blob?signed"
    answer = world.get()
    assert answer.status_code == 307
    assert answer.headers["Location"] == "https://s3.invalid/bucket/blob?signed"
    assert world.get("HEAD").headers["Content-Length"] == str(len(CONTENT))


def test_what_another_project_published_is_as_if_it_were_not_there(world: World) -> None:
    world.blobs.put(CONTENT, "artifact_store://projects/globex/lab/artifacts/llm/1.0.0/weights")
    assert told(world.get())[:2] == (404, "no_such_blob")
    assert world.get("HEAD").status_code == 404


def test_a_blob_that_is_not_there_is_not_found(world: World) -> None:
    missing = (
        404,
        "no_such_blob",
        "this blob is not in the artifact store as what its source says (publish it from the "
        "project that its source names: gpuaas intent publish --kind blob)",
    )
    assert told(world.get()) == missing
    answer = world.ask("GET", "/v1/blobs/latest", DOWNLOAD)
    assert told(answer) == (404, "no_such_blob", "that is no digest of a blob")


def test_an_answer_that_is_cut_off_in_the_store_ends_early(world: World) -> None:
    world.blobs.put(CONTENT, SOURCE)

    def broken(digest: Digest, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        yield CONTENT[:100]
        raise Transient("blob_store_unreachable", "the artifact store does not answer")

    world.blobs.read = broken  # type: ignore[method-assign]
    with pytest.raises(httpx.RemoteProtocolError):
        world.get()


def test_a_store_that_is_away_is_said(world: World) -> None:
    world.blobs.away = True
    for answer in (world.get(), world.ask("GET", UPLOADS), world.patch(0, b"x")):
        wanted = (503, "blob_store_unreachable", "the artifact store does not answer")
        assert told(answer) == wanted
        assert answer.headers["Retry-After"] == "5"


def test_a_control_plane_without_a_store_says_so() -> None:
    with running(MemoryStore()) as plane:
        plane.store.save_transfer(a_transfer(now_ms=NOW_MS))
        answer = plane.client.get(UPLOADS, auth=(UPLOAD, PASSWORD))
        assert told(answer) == (409, "no_blob_store", "this control plane keeps no blobs")


# --- who may -------------------------------------------------------------------------------------

ROUTES = [
    ("GET", UPLOADS), ("PATCH", UPLOADS), ("POST", f"{UPLOADS}/finish"),
    ("GET", f"/v1/blobs/{DIGEST}"), ("HEAD", f"/v1/blobs/{DIGEST}"),
]  # fmt: skip


@pytest.mark.parametrize(("method", "path"), ROUTES)
@pytest.mark.parametrize(
    "auth",
    [None, (UPLOAD, "wrong"), ("nobody", PASSWORD), ("", ""), (DOWNLOAD, "")],
    ids=["nobody", "wrong password", "unknown intent", "empty", "no password"],
)
def test_nothing_moves_without_the_credential(
    world: World, method: str, path: str, auth: tuple[str, str] | None
) -> None:
    world.blobs.put(CONTENT, SOURCE)
    answer = world.ask(method, path, auth=auth)
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"] == 'Basic realm="gpuaas"'
    if method != "HEAD":
        assert told(answer)[1] == "credential_refused"
        assert PASSWORD not in answer.text


@pytest.mark.parametrize(
    "change",
    [{"state": "closed"}, {"state": "completed"}, {"expires_at_ms": NOW_MS}],
    ids=["closed", "completed", "expired"],
)
@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_a_transfer_that_is_over_opens_nothing(
    world: World, method: str, path: str, change: dict[str, Any]
) -> None:
    world.blobs.put(CONTENT, SOURCE)
    for kind, digest in (("publish", ""), ("pull", str(DIGEST))):
        world.save(replace(a_transfer(kind, digest, NOW_MS), **change))  # type: ignore[arg-type]
    intent = UPLOAD if "uploads" in path else DOWNLOAD
    assert world.ask(method, path, intent).status_code == 401


OTHER = "f" * 26
FOREIGN = [
    ("another upload", a_transfer(id=OTHER), "GET", UPLOADS),
    ("a pull intent uploads", a_transfer("pull", str(DIGEST), id=OTHER), "PATCH",
     f"/v1/blobs/uploads/{OTHER}"),
    ("an intent for images uploads", a_transfer(id=OTHER, content="oci"), "PATCH",
     f"/v1/blobs/uploads/{OTHER}"),
    ("another upload is finished", a_transfer(id=OTHER), "POST", f"{UPLOADS}/finish"),
    ("a publish intent downloads", a_transfer(id=OTHER, digest=str(DIGEST)), "GET",
     f"/v1/blobs/{DIGEST}"),
    ("another blob", a_transfer("pull", str(Digest.of(b"mine")), id=OTHER), "GET",
     f"/v1/blobs/{DIGEST}"),
    ("an intent for images downloads", a_transfer("pull", str(DIGEST), id=OTHER, content="oci"),
     "GET", f"/v1/blobs/{DIGEST}"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("transfer", "method", "path"), [row[1:] for row in FOREIGN], ids=[row[0] for row in FOREIGN]
)
def test_a_credential_opens_what_its_transfer_says_and_nothing_else(
    world: World, transfer: Transfer, method: str, path: str
) -> None:
    world.blobs.put(CONTENT, SOURCE)
    world.save(replace(transfer, created_at_ms=NOW_MS, expires_at_ms=NOW_MS + 1000))
    answer = world.ask(method, path, OTHER, headers={"Upload-Offset": "0"})
    assert told(answer)[:2] == (403, "blob_not_opened")
    assert not world.blobs.parts


def test_whoever_guesses_has_to_wait_and_keeps_nobody_out_for_long(world: World) -> None:
    codes = {world.ask("GET", UPLOADS, auth=(UPLOAD, "guess")).status_code for _ in range(60)}
    assert codes == {401, 429}
    assert world.ask("GET", UPLOADS).status_code == 429
    world.plane.clock.ms += 60_000
    for _ in range(100):
        assert world.ask("GET", UPLOADS).status_code == 200


def test_the_password_is_in_no_log(world: World, capfd: pytest.CaptureFixture[str]) -> None:
    world.ask("GET", UPLOADS, auth=(UPLOAD, "a-wrong-password"))
    world.patch(9, b"x")
    said: list[str] = []

    def told_of_both() -> bool:
        # The line of a request may come after its answer.
        said.extend(capfd.readouterr())
        return "".join(said).count(Path(UPLOADS).name) >= 2

    wait_until(told_of_both)
    for secret in (PASSWORD, "a-wrong-password", hash_of(PASSWORD)):
        assert secret not in "".join(said)
