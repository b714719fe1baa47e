"""A node asks for a token to pull an image with, over real HTTP and both stores."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from typing import Any

import jwt
import pytest

from node_agent.artifact_wire import PULL_TOKEN_REQUEST_TYPE, PullTokenRequest
from node_agent.wire import Image, LaunchTask, Service, Topology, Workload
from reconciler.core.names import ActionId, InstanceKey, Revision
from reconciler.core.records import Accepted, AcceptedObject, InstanceRecord, Intent, State
from reconciler.ports import Changes
from tests.contract.test_store import a_record
from tests.server.harness import NOW_MS, Agent, Plane, an_intent, refusal, settings_of

PATH = "/v1/agent/pull-token"
REGISTRY = "registry.example:5000"
HELLO = InstanceKey("acme/research/hello")
REPOSITORY = "gpuaas/apps/acme/research/hello"
OLD, NEW, NEWER = ("sha256:" + letter * 64 for letter in "abc")
RECORD = replace(a_record(HELLO), state=State.UPGRADING, target_digest=NEW, applied_digest=OLD)
NOT_ITS = (403, "not_its_image", f"{HELLO} was never told to run that image here")
NOT_PLACED = (403, "not_placed", "no such instance is placed on this node")


def launched(number: int, digest: str, node: str = "node-1", **image: Any) -> Intent:
    given = {"registry": REGISTRY, "repository": REPOSITORY, "digest": digest, **image}
    workload = Workload(instance=HELLO, engine="docker", image=Image(**given))
    task = LaunchTask(
        task_id=f"t-{number}", node=node, seq=number, issued_at_ms=NOW_MS, instance=HELLO,
        expires_at_ms=NOW_MS + 1, correlation_id="c", workload=workload,
    )  # fmt: skip
    payload = base64.b64encode(task.canonical()).decode()
    intent = an_intent(number, node, json.dumps({"payload": payload, "signatures": []}))
    return replace(intent, instance=HELLO, action_id=ActionId(f"a-{number}"))


@pytest.fixture
def agent(plane: Plane) -> Agent:
    """That of node-1, where the instance is upgraded."""
    accept_environment(plane, auth="token")
    remember(plane, RECORD)
    plane.store.commit(Changes(intents=(launched(1, OLD), launched(2, NEW))))
    return plane.enrol()


def remember(plane: Plane, *records: InstanceRecord) -> None:
    plane.store.commit(Changes(records=records))


def accept_environment(plane: Plane, **registry: str) -> None:
    spec = {"registry": {"endpoint": REGISTRY, **registry}}
    document = json.dumps({"kind": "Environment", "spec": spec})
    revision = Revision("1" * 40)
    name = f"Environment/{settings_of().environment}"
    found = AcceptedObject(name, "environments/dev.yaml", 1, document, revision)
    plane.store.save_accepted(Accepted(revision, {name: found}))


def ask(plane: Plane, agent: Agent, digest: str = NEW, **changes: Any) -> Any:
    fields = {
        "node": agent.node, "sent_at_ms": NOW_MS, "instance": HELLO, "repository": REPOSITORY,
        "digest": digest, **changes,
    }  # fmt: skip
    payload = PullTokenRequest(**fields).canonical()
    return plane.post(PATH, agent.seal(payload, PULL_TOKEN_REQUEST_TYPE))


@pytest.mark.parametrize("digest", [OLD, NEW])
def test_a_node_gets_one_for_what_its_instance_runs_and_may_go_back_to(
    plane: Plane, agent: Agent, digest: str
) -> None:
    answer = ask(plane, agent, digest)
    assert answer.status_code == 200, answer.text
    claims = jwt.decode(answer.json()["token"], options={"verify_signature": False})
    assert claims["sub"] == "node/node-1"
    assert claims["access"] == [{"type": "repository", "name": REPOSITORY, "actions": ["pull"]}]
    assert answer.json()["expires_at_ms"] == claims["exp"] * 1000 == NOW_MS + 1_800_000


@pytest.mark.parametrize(
    "changes",
    [
        {"digest": NEWER},
        {"repository": "gpuaas/apps/borealis/vision/hello"},
        {"repository": ""},
    ],
)
def test_not_for_another_image(plane: Plane, agent: Agent, changes: dict[str, str]) -> None:
    assert refusal(ask(plane, agent, **changes)) == NOT_ITS


def test_not_for_one_that_its_instance_ran_long_ago(plane: Plane, agent: Agent) -> None:
    remember(plane, replace(RECORD, applied_digest=NEW))
    assert refusal(ask(plane, agent, OLD)) == NOT_ITS


def test_not_for_an_instance_of_another_node(plane: Plane, agent: Agent) -> None:
    other = plane.enrol("node-2")
    assert refusal(ask(plane, other)) == NOT_PLACED
    assert refusal(ask(plane, other, node="node-1"))[:2] == (403, "wrong_node")


def test_not_for_what_another_node_was_told(plane: Plane, agent: Agent) -> None:
    """It was moved there, and nothing was handed to its new node yet."""
    other = plane.enrol("node-2")
    remember(plane, replace(RECORD, node="node-2"))
    assert refusal(ask(plane, other)) == NOT_ITS
    assert refusal(ask(plane, agent)) == NOT_PLACED


@pytest.mark.parametrize("state", [State.DECOMMISSIONING, State.DECOMMISSIONED, State.REQUESTED])
def test_not_for_what_is_to_go(plane: Plane, agent: Agent, state: State) -> None:
    remember(plane, replace(RECORD, state=state))
    assert refusal(ask(plane, agent)) == NOT_PLACED


def test_a_revoked_node_gets_none(plane: Plane, agent: Agent) -> None:
    plane.store.revoke_node("node-1", "sold", NOW_MS)
    assert refusal(ask(plane, agent))[:2] == (403, "node_revoked")


def test_a_request_gets_old(plane: Plane, agent: Agent) -> None:
    assert refusal(ask(plane, agent, sent_at_ms=NOW_MS - 10**7))[:2] == (422, "not_fresh")


@pytest.mark.parametrize("registry", [{}, {"auth": "none"}, {"auth": "token", "endpoint": "x:1"}])
def test_there_is_none_for_a_registry_that_asks_for_none_or_is_another(
    plane: Plane, agent: Agent, registry: dict[str, str]
) -> None:
    accept_environment(plane, **registry)
    answer = ask(plane, agent)
    assert (answer.status_code, answer.json()) == (200, {"token": "", "expires_at_ms": 0})


def test_a_renamed_instance_pulls_by_the_name_its_node_knows(plane: Plane, agent: Agent) -> None:
    moved = replace(RECORD, key=InstanceKey("acme/research/renamed"), runtime_name=HELLO)
    plane.store.commit(Changes(records=(moved,), forgotten=(HELLO,)))
    assert ask(plane, agent).status_code == 200


# --- several services ----------------------------------------------------------------------------

DB, FOREIGN = "gpuaas/apps/acme/research/db", "gpuaas/apps/borealis/vision/db"


def launched_services(number: int, digests: dict[str, str]) -> Intent:
    """Its main service is the image at REPOSITORY."""
    services = tuple(
        Service(name=f"s{at}", image=Image(registry=REGISTRY, repository=place, digest=digest))
        for at, (place, digest) in enumerate(sorted(digests.items()))
    )
    own = Image(registry=REGISTRY, repository=REPOSITORY, digest=digests[REPOSITORY])
    workload = Workload(
        instance=HELLO, engine="compose", image=own, topology=Topology(services=services)
    )
    task = LaunchTask(
        kind="compose.launch", task_id=f"t-{number}", node="node-1", seq=number,
        issued_at_ms=NOW_MS, instance=HELLO, expires_at_ms=NOW_MS + 1, correlation_id="c",
        workload=workload,
    )  # fmt: skip
    payload = base64.b64encode(task.canonical()).decode()
    intent = an_intent(number, "node-1", json.dumps({"payload": payload, "signatures": []}))
    return replace(intent, instance=HELLO, action_id=ActionId(f"a-{number}"))


@pytest.fixture
def composed(plane: Plane) -> Agent:
    """That of node-1, where the instance goes from one form of two services to another."""
    accept_environment(plane, auth="token")
    new, old = ((f"{DB}@{digest}",) for digest in (NEW, OLD))
    remember(plane, replace(RECORD, target_images=new, applied_images=old))
    told = ({REPOSITORY: OLD, DB: OLD}, {REPOSITORY: NEW, DB: NEW})
    plane.store.commit(
        Changes(intents=[launched_services(at, one) for at, one in enumerate(told, 1)])
    )
    return plane.enrol()


@pytest.mark.parametrize("repository", [REPOSITORY, DB])
@pytest.mark.parametrize("digest", [OLD, NEW])
def test_a_node_gets_one_for_each_service_of_its_instance(
    plane: Plane, composed: Agent, repository: str, digest: str
) -> None:
    answer = ask(plane, composed, digest, repository=repository)
    assert answer.status_code == 200, answer.text
    claims = jwt.decode(answer.json()["token"], options={"verify_signature": False})
    assert claims["access"] == [{"type": "repository", "name": repository, "actions": ["pull"]}]


@pytest.mark.parametrize(
    "changes",
    [{"repository": FOREIGN}, {"repository": DB, "digest": NEWER}, {"repository": f"{DB}x"}],
)
def test_and_for_no_other_image(plane: Plane, composed: Agent, changes: dict[str, str]) -> None:
    assert refusal(ask(plane, composed, **changes)) == NOT_ITS


def test_nor_for_one_that_a_service_ran_long_ago(plane: Plane, composed: Agent) -> None:
    new = (f"{DB}@{NEW}",)
    remember(plane, replace(RECORD, applied_digest=NEW, target_images=new, applied_images=new))
    assert refusal(ask(plane, composed, OLD, repository=DB)) == NOT_ITS
