"""A node asks for blobs, over real HTTP; and everybody else does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx
import pytest

from node_agent.artifact_wire import BLOB_REQUEST_TYPE, BlobRequest
from reconciler.core.names import Digest, InstanceKey
from reconciler.ports import Changes
from tests.contract.test_store import a_record
from tests.core.authority.trust_builders import Written
from tests.fakes.blobs import MemoryBlobs
from tests.fakes.store import MemoryStore
from tests.server.auth_world import accept
from tests.server.harness import NOW_MS, Agent, Plane, an_intent, refusal, running, shows
from tests.server.intents_world import artifact

PATH = "/v1/agent/blob"
CONTENT = bytes(range(256)) * 20
DIGEST = Digest.of(CONTENT)
SOURCE = "artifact_store://projects/acme/research/artifacts/llm/1.0.0/weights"
HELLO = InstanceKey("acme/research/hello")
NOT_FOR_IT = (
    403,
    "blob_not_for_node",
    "nothing on this node reads that blob, and it was not asked to pull it",
)


@pytest.fixture
def blobs() -> MemoryBlobs:
    blobs = MemoryBlobs()
    blobs.put(CONTENT, SOURCE)
    return blobs


@pytest.fixture
def plane(blobs: MemoryBlobs) -> Iterator[Plane]:
    with running(MemoryStore(), blobs=blobs) as plane:
        plane.store.commit(Changes(records=[a_record(HELLO, blobs=(str(DIGEST),))]))
        accept(plane.store, registered("acme/research/llm/1.0.0/weights"))
        yield plane


def registered(path: str, digest: Digest = DIGEST, **spec: Any) -> Written:
    project, (app, version, name) = "/".join(path.split("/")[:2]), path.split("/")[2:]
    ref, document = artifact(path, str(digest), **spec)
    fields = {**document["spec"], "kind": "blob"}
    del fields["repository"]
    fields["source"] = f"artifact_store://projects/{project}/artifacts/{app}/{version}/{name}"
    return ref, {**document, "spec": fields}


def ask(plane: Plane, agent: Agent, **changes: Any) -> httpx.Response:
    fields = {
        "node": "node-1",
        "sent_at_ms": NOW_MS,
        "source": SOURCE,
        "digest": str(DIGEST),
        **changes,
    }
    payload = BlobRequest(**fields).canonical()
    return plane.post(PATH, agent.seal(payload, BLOB_REQUEST_TYPE))


@pytest.mark.parametrize("offset", [0, 1, 4000, len(CONTENT) - 1])
def test_what_an_instance_reads_comes_from_any_byte_on(plane: Plane, offset: int) -> None:
    answer = ask(plane, plane.enrol(), offset=offset)
    assert (answer.status_code, answer.content) == (206 if offset else 200, CONTENT[offset:])
    assert answer.headers["ETag"] == f'"{DIGEST}"'
    assert answer.headers["Content-Length"] == str(len(CONTENT) - offset)
    if offset:
        span = f"bytes {offset}-{len(CONTENT) - 1}/{len(CONTENT)}"
        assert answer.headers["Content-Range"] == span


def test_whoever_has_all_of_it_gets_none(plane: Plane) -> None:
    answer = ask(plane, plane.enrol(), offset=len(CONTENT))
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["Content-Range"] == f"bytes */{len(CONTENT)}"
    beyond = ask(plane, Agent("node-1", plane_key(plane)), offset=len(CONTENT) + 1)
    assert refusal(beyond)[:2] == (416, "wrong_offset")


def plane_key(plane: Plane) -> Any:
    return plane.enrol().key


def test_what_it_was_asked_to_pull_comes(plane: Plane, blobs: MemoryBlobs) -> None:
    agent = plane.enrol()
    ahead = blobs.put(b"pulled ahead", SOURCE)
    accept(plane.store, registered("acme/research/llm/1.0.0/weights", ahead, prefetch=True))
    assert refusal(ask(plane, agent, digest=str(ahead))) == NOT_FOR_IT
    asked = replace(an_intent(1), kind="pull_blob", target_hash=str(ahead))
    plane.store.commit(Changes(intents=[asked]))
    assert ask(plane, agent, digest=str(ahead)).content == b"pulled ahead"


def test_a_store_with_addresses_is_sent_on_to(plane: Plane, blobs: MemoryBlobs) -> None:
    blobs.addresses[DIGEST] = "https://s3.invalid/blob?signed"
    answer = ask(plane, plane.enrol())
    assert (answer.status_code, answer.headers["Location"]) == (
        307,
        "https://s3.invalid/blob?signed",
    )


def test_nobody_gets_what_his_node_has_no_use_for(plane: Plane, blobs: MemoryBlobs) -> None:
    """Not another node's, and not what is not there: the two can't be told apart."""
    plane.enrol()
    other = plane.enrol("node-2")
    assert refusal(ask(plane, other, node="node-2")) == NOT_FOR_IT
    blobs.delete(DIGEST)
    assert refusal(ask(plane, other, node="node-2")) == NOT_FOR_IT
    assert refusal(ask(plane, other))[:2] == (403, "wrong_node")


FOREIGN = "artifact_store://projects/globex/lab/artifacts/llm/1.0.0/mine"


def test_registering_anothers_digest_gives_nobody_its_bytes(
    plane: Plane, blobs: MemoryBlobs
) -> None:
    """Globex registers what acme published as its own, and has an instance that reads it."""
    agent = plane.enrol()
    accept(
        plane.store,
        registered("acme/research/llm/1.0.0/weights"),
        registered("globex/lab/llm/1.0.0/mine"),
    )
    theirs = InstanceKey("globex/lab/hello")
    plane.store.commit(
        Changes(records=[a_record(HELLO, blobs=()), a_record(theirs, blobs=(str(DIGEST),))])
    )
    assert refusal(ask(plane, agent, source=FOREIGN))[:2] == (404, "no_such_blob")
    # Nor does a node that names acme's: nobody on it may see that.
    assert refusal(ask(plane, agent)) == NOT_FOR_IT
    blobs.claim(FOREIGN, DIGEST)
    assert ask(plane, agent, source=FOREIGN).content == CONTENT


def test_what_was_removed_is_not_given_any_more(plane: Plane) -> None:
    agent = plane.enrol()
    assert ask(plane, agent).status_code == 200
    plane.store.commit(Changes(records=[a_record(HELLO, blobs=())]))
    assert refusal(ask(plane, agent)) == NOT_FOR_IT


def test_a_blob_that_is_gone_is_said(plane: Plane, blobs: MemoryBlobs) -> None:
    blobs.delete(DIGEST)
    missing = (
        404,
        "no_such_blob",
        "this blob is not in the artifact store as what its source says (publish it from the "
        "project that its source names: gpuaas intent publish --kind blob)",
    )
    assert refusal(ask(plane, plane.enrol())) == missing


def test_it_is_as_strict_as_any_message_of_an_agent(plane: Plane) -> None:
    agent = plane.enrol()
    assert refusal(ask(plane, Agent()))[:2] == (401, "unknown_node")
    assert refusal(ask(plane, agent, sent_at_ms=NOW_MS - 3_600_000))[:2] == (422, "not_fresh")
    payload = BlobRequest(
        node="node-1", sent_at_ms=NOW_MS, source=SOURCE, digest=str(DIGEST)
    ).canonical()
    sealed = agent.seal(payload, BLOB_REQUEST_TYPE)
    answer = plane.post(PATH, sealed, shows(Agent().public_key))
    assert refusal(answer)[:2] == (403, "certificate_of_another")
    answer = plane.post(PATH, agent.seal(payload, "application/other"))
    assert refusal(answer)[:2] == (400, "wrong_type")
    plane.store.revoke_node("node-1", "stolen", NOW_MS)
    assert refusal(ask(plane, agent))[:2] == (403, "node_revoked")
