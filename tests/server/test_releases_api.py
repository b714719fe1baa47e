"""Releases over HTTP: what is published, its bytes in any pieces, and every refusal."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from dataclasses import replace

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reconciler.use_cases.releases import releases_of
from tests.fakes.blobs import MemoryBlobs
from tests.server.harness import refusal
from tests.server.releases_world import (
    ACCEPTED,
    BLOBS,
    CLI,
    CLI_PATH,
    IMAGE,
    SDK,
    digest_of,
    serving,
)


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    with serving() as client:
        yield client


def test_what_is_published_newest_first(client: httpx.Client) -> None:
    found = client.get("/v1/releases").json()["releases"]
    assert [one["version"] for one in found] == ["0.11.0-rc.1", "0.10.0", "0.9.0"]
    found = client.get("/v1/releases", params={"channel": "stable"}).json()["releases"]
    assert [one["version"] for one in found] == ["0.10.0", "0.9.0"]
    assert client.get("/v1/releases", params={"channel": "none"}).json() == {"releases": []}


def test_the_manifest_of_one(client: httpx.Client) -> None:
    found = client.get("/v1/releases/0.10.0").json()
    builds = {(one["component"], one["platform"]): one for one in found.pop("builds")}
    assert found == {
        "version": "0.10.0",
        "channel": "stable",
        "released_at": "2026-11-02T08:30:00Z",
        "notes": "better",
    }
    assert builds["cli", "linux/amd64"] == {
        "component": "cli",
        "platform": "linux/amd64",
        "kind": "blob",
        "digest": digest_of(CLI),
        "size_bytes": len(CLI),
        "media_type": None,
        "file_name": "gpuaas-0.10.0-linux-amd64.tar.gz",
        "path": CLI_PATH,
        "reference": None,
    }
    assert builds["sdk", "any"]["file_name"] == "gpuaas-sdk-0.10.0-any"
    image = builds["agent", "linux/amd64"]
    assert (image["path"], image["reference"]) == (None, f"{IMAGE}@{digest_of(b'x')}")
    assert client.get(builds["sdk", "any"]["path"]).content == SDK


def test_the_whole_of_it_with_what_it_is(client: httpx.Client) -> None:
    answer = client.get(CLI_PATH)
    assert (answer.status_code, answer.content) == (200, CLI)
    raw = base64.b64encode(hashlib.sha256(CLI).digest()).decode()
    told = {name: answer.headers[name] for name in ("ETag", "Repr-Digest", "Content-Length")}
    assert told == {
        "ETag": f'"{digest_of(CLI)}"',
        "Repr-Digest": f"sha-256=:{raw}:",
        "Content-Length": str(len(CLI)),
    }
    assert "gpuaas-0.10.0-linux-amd64.tar.gz" in answer.headers["Content-Disposition"]
    head = client.head(CLI_PATH)
    assert (head.status_code, head.content) == (200, b"")
    assert {name: head.headers[name] for name in told} == told


def test_one_that_runs_everywhere_is_given_to_all(client: httpx.Client) -> None:
    assert client.get("/v1/releases/0.10.0/sdk/darwin/arm64").content == SDK


@given(st.integers(0, len(CLI) - 1), st.integers(0, len(CLI)))
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_part_of_it(client: httpx.Client, start: int, length: int) -> None:
    last = start + length
    answer = client.get(CLI_PATH, headers={"Range": f"bytes={start}-{last}"})
    assert (answer.status_code, answer.content) == (206, CLI[start : last + 1])
    end = min(last, len(CLI) - 1)
    assert answer.headers["Content-Range"] == f"bytes {start}-{end}/{len(CLI)}"


@pytest.mark.parametrize(
    ("headers", "status", "content"),
    [
        ({"Range": "bytes=-5"}, 206, CLI[-5:]),
        ({"Range": "bytes=5-"}, 206, CLI[5:]),
        ({"Range": "bytes=5-", "If-Range": f'"{digest_of(CLI)}"'}, 206, CLI[5:]),
        ({"Range": "bytes=5-", "If-Range": '"another"'}, 200, CLI),
        ({"Range": "lines=5-"}, 200, CLI),
        ({"If-None-Match": f'"{digest_of(CLI)}"'}, 304, b""),
    ],
)
def test_ranges(client: httpx.Client, headers: dict[str, str], status: int, content: bytes) -> None:
    answer = client.get(CLI_PATH, headers=headers)
    assert (answer.status_code, answer.content) == (status, content)


REFUSALS = {
    "no such release": (
        "/v1/releases/0.10.1", 404,
        "no_such_release: there is no release '0.10.1' (did you mean 0.10.0?)",
    ),
    "withdrawn": (
        "/v1/releases/0.8.0", 410,
        "release_withdrawn: release 0.8.0 was withdrawn: it leaks (the newest of channel stable is "
        "0.10.0)",
    ),
    "a build of one withdrawn": (
        "/v1/releases/0.8.0/cli/linux/amd64", 410,
        "release_withdrawn: release 0.8.0 was withdrawn: it leaks (the newest of channel stable is "
        "0.10.0)",
    ),
    "no build for it": (
        "/v1/releases/0.10.0/cli/windows/amd64", 404,
        "no_such_build: release 0.10.0 has no cli for windows/amd64 (there are: linux/amd64, "
        "linux/arm64)",
    ),
    "no such component": (
        "/v1/releases/0.10.0/gui/linux/amd64", 404,
        "no_such_build: release 0.10.0 has no gui for linux/amd64 (it has agent, cli, sdk)",
    ),
    "an image": (
        "/v1/releases/0.10.0/agent/linux/amd64", 409,
        f"release_in_registry: {IMAGE}@{digest_of(b'x')} is an image: it comes from the registry "
        f"(gpuaas intent pull {IMAGE}@{digest_of(b'x')} gives a credential for it (POST "
        f'/v1/intents/pull with artifact "{IMAGE}@{digest_of(b"x")}"))',
    ),
    "bytes that nobody uploaded": (
        "/v1/releases/0.10.0/cli/linux/arm64", 404,
        "no_such_blob: this blob is not in the artifact store as what its source says (publish it "
        "from the project that its source names: gpuaas intent publish --kind blob)",
    ),
    "a parameter that is not known": (
        "/v1/releases?chanel=x", 422,
        "unknown_parameter: a parameter that is not known here; those known: channel",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals(client: httpx.Client, case: str) -> None:
    path, status, words = REFUSALS[case]
    found = refusal(client.get(path))
    assert (found[0], f"{found[1]}: {found[2]}") == (status, words)


def test_a_range_behind_its_end(client: httpx.Client) -> None:
    answer = client.get(CLI_PATH, headers={"Range": f"bytes={len(CLI)}-"})
    assert refusal(answer)[:2] == (416, "range_not_satisfiable")
    assert answer.headers["Content-Range"] == f"bytes */{len(CLI)}"


def test_who_shows_no_token_where_one_is_asked_for() -> None:
    with serving(require_tokens=True) as client:
        for path in ("/v1/releases", "/v1/releases/0.10.0", CLI_PATH):
            assert refusal(client.get(path))[:2] == (401, "token_required")


def test_a_server_without_an_artifact_store() -> None:
    with serving(None) as client:
        assert refusal(client.get(CLI_PATH))[:2] == (409, "no_blob_store")
        assert client.get("/v1/releases/0.10.0").status_code == 200


def test_what_was_published_as_something_else_is_not_there() -> None:
    with serving(MemoryBlobs(dict(BLOBS.blobs))) as client:
        assert refusal(client.get(CLI_PATH))[:2] == (404, "no_such_blob")


def test_an_artifact_store_that_is_away() -> None:
    with serving(MemoryBlobs(away=True)) as client:
        assert refusal(client.get(CLI_PATH))[:2] == (503, "blob_store_unreachable")


def test_it_is_sent_on_to_the_stores_own_address() -> None:
    blobs = MemoryBlobs(dict(BLOBS.blobs), claims=BLOBS.claims)
    blobs.addresses = dict.fromkeys(blobs.blobs, "https://s3.example/x?sig=1")
    with serving(blobs) as client:
        answer = client.get(CLI_PATH)
        assert answer.status_code == 307
        assert answer.headers["Location"] == "https://s3.example/x?sig=1"
        assert client.head(CLI_PATH).status_code == 200


def test_what_was_accepted_once_and_can_be_read_no_more_is_left_out() -> None:
    ref = "PlatformRelease/0.9.0"
    broken = replace(ACCEPTED.objects[ref], document_json="{}")
    found = releases_of(replace(ACCEPTED, objects={**ACCEPTED.objects, ref: broken}))
    assert [one.version for one in found] == ["0.11.0-rc.1", "0.10.0"]
