"""What may be tried on the way of artifacts in and out, over real HTTP: each with what stops it."""

from __future__ import annotations

import base64
import select
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from reconciler.core.names import Digest, ObjectRef
from reconciler.server import blobs_api
from tests.core.authority.trust_builders import manifest
from tests.fakes.blobs import MemoryBlobs
from tests.fakes.registry import FakeRegistry
from tests.server.auth_world import accept
from tests.server.harness import NOW_MS, Plane, a_store, refusal, running
from tests.server.intents_world import (
    IMAGE,
    REPOSITORY,
    SETTINGS,
    artifact,
    opened,
    publish,
    pull,
    shows,
    unwrap,
    world,
)
from tests.services.blob_plane import DOWNLOAD, PASSWORD, UPLOAD, a_transfer, raw_patch

TOKEN = "/v1/registry/token"
UPLOADS = f"/v1/blobs/uploads/{UPLOAD}"
CONTENT = bytes(range(256)) * 4
BLOB = Digest.of(CONTENT)
SOURCE = "artifact_store://projects/acme/lab/artifacts/notebook/1.0.0/weights"


@pytest.fixture
def registry() -> FakeRegistry:
    found = FakeRegistry()
    found.publish(REPOSITORY, IMAGE)
    return found


@pytest.fixture
def blobs() -> MemoryBlobs:
    return MemoryBlobs()


@pytest.fixture
def plane(
    tmp_path: Path, registry: FakeRegistry, blobs: MemoryBlobs
) -> Iterator[Plane]:
    with (
        a_store("sqlite", tmp_path) as store,
        running(store, registry=registry, blobs=blobs, **SETTINGS) as plane,
    ):
        accept(store, *world())
        yield plane


def token(plane: Plane, intent: str, password: str) -> httpx.Response:
    return plane.client.get(TOKEN, params={"service": "registry"}, auth=(intent, password))


# --- who guesses ---------------------------------------------------------------------------------


def test_who_knows_no_intent_keeps_nobody_out(plane: Plane) -> None:
    """Behind a proxy all come from one address."""
    found = opened(publish(plane))
    password = unwrap(plane, found)
    plane.store.save_transfer(a_transfer(now_ms=NOW_MS))
    for number in range(40):
        last = token(plane, f"guess-{number}", "guess")
    assert refusal(last)[:2] == (429, "rate_limited")
    blob = plane.client.get(UPLOADS, auth=("guess", "guess"))
    for _ in range(40):
        blob = plane.client.get(UPLOADS, auth=("guess", "guess"))
    assert refusal(blob)[:2] == (429, "rate_limited")
    assert token(plane, found["id"], password).status_code == 200
    assert plane.client.get(UPLOADS, auth=(UPLOAD, PASSWORD)).status_code == 200


NO_NAMES = ["", "\0", "t\0", "../" + UPLOAD, UPLOAD + "\n", UPLOAD.upper() + "a", "é" * 300, "%"]


@pytest.mark.parametrize("name", NO_NAMES)
def test_what_is_no_intent_opens_nothing(plane: Plane, name: str) -> None:
    plane.store.save_transfer(a_transfer(now_ms=NOW_MS))
    word = base64.b64encode(f"{name}:{PASSWORD}".encode()).decode()
    for path in (TOKEN, UPLOADS):
        answer = plane.client.get(path, headers={"Authorization": f"Basic {word}"})
        assert refusal(answer)[:2] == (401, "credential_refused")


# --- what was open before it was withdrawn -------------------------------------------------------


@pytest.mark.parametrize("state", ["revoked", "retired"])
def test_an_intent_that_is_open_gives_nothing_of_what_is_withdrawn_since(
    plane: Plane, blobs: MemoryBlobs, state: str
) -> None:
    def registered(state: str) -> None:
        weights = {"kind": "blob", "source": SOURCE, "digest": str(BLOB), "state": state}
        ref = ObjectRef("Artifact", ("acme", "lab", "notebook", "1.0.0", "weights"))
        image = artifact("acme/lab/notebook/1.0.0/image", state=state)
        accept(plane.store, *world(image, (ref, manifest("Artifact", "weights", weights))))

    blobs.put(CONTENT, SOURCE)
    registered("promoted")
    image = opened(pull(plane, "acme/lab", who="nils"))
    blob = opened(pull(plane, "acme/lab", f"{SOURCE}@{BLOB}", who="nils"))
    logins = [(one["id"], unwrap(plane, one)) for one in (image, blob)]

    def asked() -> list[int]:
        download = plane.client.get(f"/v1/blobs/{BLOB}", auth=logins[1])
        return [token(plane, *logins[0]).status_code, download.status_code]

    assert asked() == [200, 200]
    registered(state)
    assert asked() == [401, 401]


def test_nor_of_what_is_not_shown_to_its_project_any_more(
    plane: Plane, registry: FakeRegistry
) -> None:
    accept(plane.store, *world(artifact("acme/lab/notebook/1.0.0/image", visibility="platform")))
    found = opened(pull(plane, "globex/lab", who="gus"))
    login = found["id"], unwrap(plane, found)
    assert token(plane, *login).status_code == 200
    accept(plane.store, *world(artifact("acme/lab/notebook/1.0.0/image", visibility="tenant")))
    assert token(plane, *login).status_code == 401


# --- uploads -------------------------------------------------------------------------------------


def test_a_body_that_only_trickles_does_not_outlast_its_intent(
    plane: Plane, blobs: MemoryBlobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would keep its place, of which there are few, for as long as it likes."""
    monkeypatch.setattr(blobs_api, "BATCH_AGE_S", 0.0)
    plane.store.save_transfer(a_transfer(now_ms=NOW_MS))
    with raw_patch(plane.client.base_url, b"0123456789", length=1000) as sender:
        deadline = time.monotonic() + 30
        while len(blobs.parts.get(UPLOAD, b"")) < 10:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        plane.store.save_transfer(replace(a_transfer(now_ms=NOW_MS), state="closed"))
        # One batch is stored while the next one comes in: it is told with the one after that.
        while not select.select([sender], [], [], 0.05)[0]:
            sender.sendall(b"x")
        assert b" 401 " in sender.recv(65536)
    assert bytes(blobs.parts[UPLOAD]) == b"0123456789"


def test_two_who_finish_the_same_upload_are_both_told(
    plane: Plane, blobs: MemoryBlobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a client does whose proxy gave up on its first request."""
    plane.store.save_transfer(a_transfer(now_ms=NOW_MS))
    blobs.append(UPLOAD, 0, [CONTENT])
    both, finish, asked = threading.Event(), blobs.finish, []
    unchanged = blobs_api.BlobsApi._hashed

    def slow(upload: str, digest: Digest) -> int:
        assert both.wait(30)
        return finish(upload, digest)

    def counted(api: blobs_api.BlobsApi, upload: str, digest: Digest) -> object:
        found = unchanged(api, upload, digest)
        asked.append(upload)
        if len(asked) == 2:
            both.set()
        return found

    monkeypatch.setattr(blobs, "finish", slow)
    monkeypatch.setattr(blobs_api.BlobsApi, "_hashed", counted)

    def ask(_: int) -> httpx.Response:
        body = {"digest": str(BLOB)}
        return plane.client.post(f"{UPLOADS}/finish", json=body, auth=(UPLOAD, PASSWORD))

    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(ask, range(2)))
    assert [one.json() for one in answers] == [{"digest": str(BLOB), "size_bytes": 1024}] * 2


BODIES = {
    "a digest of another kind": b'{"digest": "sha512:%s"}' % (b"a" * 128),
    "in capitals": b'{"digest": "SHA256:%s"}' % (b"a" * 64),
    "hex in capitals": b'{"digest": "sha256:%s"}' % (b"A" * 64),
    "with a line's end": b'{"digest": "sha256:%s\\n"}' % (b"a" * 64),
    "digits of another script": '{{"digest": "sha256:{}"}}'.format("\u0663" * 64).encode(),
    "deep": b'{"digest": ' + b"[" * 400 + b"]" * 400 + b"}",
    "with more beside it": b'{"digest": "sha256:%s", "x": 1}' % (b"a" * 64),
}


@pytest.mark.parametrize("name", BODIES)
def test_what_is_no_digest_finishes_nothing(plane: Plane, blobs: MemoryBlobs, name: str) -> None:
    plane.store.save_transfer(a_transfer(now_ms=NOW_MS))
    blobs.append(UPLOAD, 0, [CONTENT])
    path = f"{UPLOADS}/finish"
    answer = plane.client.post(path, content=BODIES[name], auth=(UPLOAD, PASSWORD))
    assert refusal(answer)[:2] == (400, "invalid_message")
    found = opened(publish(plane))
    path = f"/v1/intents/{found['id']}/complete"
    answer = plane.client.post(path, content=BODIES[name], headers=shows(plane))
    assert refusal(answer)[:2] in {(422, "digest_invalid"), (422, "wish_invalid")}
    assert bytes(blobs.parts[UPLOAD]) == CONTENT


# --- downloads -----------------------------------------------------------------------------------


@pytest.mark.parametrize("wanted", ["bytes=9999999-", "bytes=-0", "bytes=0-0", "bytes=5-2,0-1"])
def test_a_range_means_nothing_to_head(plane: Plane, blobs: MemoryBlobs, wanted: str) -> None:
    """What goes in front of GET has to learn from HEAD what is there."""
    plane.store.save_transfer(a_transfer("pull", str(BLOB), NOW_MS))
    blobs.put(CONTENT, a_transfer().repository)
    path, login = f"/v1/blobs/{BLOB}", (DOWNLOAD, PASSWORD)
    told = plane.client.head(path, auth=login, headers={"Range": wanted})
    plain = plane.client.head(path, auth=login)
    assert (told.status_code, told.headers["Content-Length"]) == (200, "1024")
    varying = {"date", "x-correlation-id"}
    assert {k: v for k, v in told.headers.items() if k not in varying} == {
        k: v for k, v in plain.headers.items() if k not in varying
    }


@pytest.mark.parametrize(
    "path",
    [
        "/v1/blobs/sha256:../../etc/passwd",
        "/v1/blobs/..%2f..%2fetc%2fpasswd",
        f"/v1/blobs/%2e%2e/{BLOB}",
        f"/v1/blobs/{str(BLOB).upper()}",
        f"/v1/blobs/{BLOB}%0a",
        f"/v1/blobs/{BLOB}%00",
        f"/v1/blobs//{BLOB}",
        "/v1/blobs/uploads/..%2f..%2fx",
        f"/v1/blobs/uploads/{UPLOAD}%00",
        f"/v1/blobs/uploads/{UPLOAD}%2f..",
    ],
)
def test_no_spelling_of_a_path_leads_to_anything_else(
    plane: Plane, blobs: MemoryBlobs, path: str
) -> None:
    plane.store.save_transfer(a_transfer("pull", str(BLOB), NOW_MS))
    plane.store.save_transfer(a_transfer(now_ms=NOW_MS))
    blobs.put(CONTENT, a_transfer().repository)
    login = (DOWNLOAD if "uploads" not in path else UPLOAD, PASSWORD)
    assert plane.client.get(path, auth=login).status_code in {403, 404}
