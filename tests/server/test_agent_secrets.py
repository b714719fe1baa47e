"""A node asks for the secrets of its instances, over real HTTP; and everybody else does."""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from node_agent import envelope
from node_agent.sealing import OneTimeKey
from node_agent.wire import SECRETS_REQUEST_TYPE, SECRETS_TYPE, Secrets, SecretsRequest
from reconciler.core.names import InstanceKey
from reconciler.core.records import InstanceRecord, State
from reconciler.errors import Transient
from reconciler.ports import Changes, Secret
from reconciler.server.instance_secrets import Once
from tests.contract.test_store import a_record
from tests.server.harness import NOW_MS, Agent, Plane, a_store, refusal, running

SECRETS = "/v1/agent/secrets"
HELLO = InstanceKey("acme/research/hello")
RECORD = a_record(HELLO, secrets=("admin", "token"))
NOT_PLACED = (403, "not_placed", "no such instance is placed on this node")

OURS = ["handover/mac-key", "webhook/git"]
"""What the control plane keeps for itself: of no instance a secret is made in passing."""


@pytest.fixture(params=["memory", "sqlite"])
def plane(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    with a_store(request.param, tmp_path) as store, running(store) as plane:
        yield plane


def remember(plane: Plane, *records: InstanceRecord) -> None:
    plane.store.commit(Changes(records=records))


def request_of(key: OneTimeKey, **changes: Any) -> SecretsRequest:
    fields = {
        "node": "node-1", "sent_at_ms": NOW_MS, "instance": HELLO, "names": ("token",),
        "public_key": key.public_key, **changes,
    }  # fmt: skip
    return SecretsRequest(**fields)


def ask(plane: Plane, agent: Agent, key: OneTimeKey | None = None, **changes: Any) -> Any:
    request = request_of(key or OneTimeKey(), **changes)
    return plane.post(SECRETS, agent.seal(request.canonical(), SECRETS_REQUEST_TYPE))


def values(plane: Plane, agent: Agent, **changes: Any) -> dict[str, str]:
    """What the agent gets, after all the checks that it makes."""
    key = OneTimeKey()
    answer = ask(plane, agent, key, **changes)
    assert answer.status_code == 200, answer.text
    payload, _ = envelope.unseal(answer.content, SECRETS_TYPE, plane.keys.verifier_keys("tasks"))
    return key.open(
        Secrets.model_validate_json(payload), agent.node, changes.get("instance", HELLO)
    )


def test_a_node_gets_the_secrets_of_its_instance(plane: Plane) -> None:
    agent = plane.enrol()
    remember(plane, RECORD)
    found = values(plane, agent, names=("token", "admin", "token"))
    assert sorted(found) == ["admin", "token"]
    assert found["admin"] != found["token"]
    assert all(re.fullmatch(r"[-\w]{43}", value, re.ASCII) for value in found.values())
    assert (
        plane.keys.secrets["instances/node-1/acme/research/hello/token"].reveal()
        == (found["token"])
    )


def test_the_value_is_the_same_each_time(plane: Plane) -> None:
    agent = plane.enrol()
    remember(plane, RECORD)
    first = values(plane, agent)
    for state in (State.RUNNING, State.UPGRADING, State.ROLLING_BACK, State.FAILED):
        remember(plane, replace(RECORD, state=state, epoch=RECORD.epoch + 1))
        assert values(plane, agent) == first


def test_of_many_who_ask_at_once_all_get_the_same(plane: Plane) -> None:
    agent = plane.enrol()
    remember(plane, RECORD)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: values(plane, agent)["token"], range(16)))
    assert len(set(found)) == 1


def test_each_instance_has_its_own(plane: Plane) -> None:
    agent = plane.enrol()
    other = InstanceKey("acme/research/other")
    remember(plane, RECORD, replace(RECORD, key=other))
    assert values(plane, agent) != values(plane, agent, instance=other)


def test_a_renamed_instance_keeps_its_value_and_its_namesake_has_another(plane: Plane) -> None:
    """By the name its node knows, which another instance may bear on another node meanwhile."""
    agent, elsewhere = plane.enrol("node-1"), plane.enrol("node-2")
    remember(plane, RECORD)
    first = values(plane, agent)
    moved = replace(RECORD, key=InstanceKey("acme/research/renamed"), runtime_name=HELLO)
    namesake = replace(RECORD, node="node-2")
    plane.store.commit(Changes(records=(moved, namesake)))
    assert values(plane, agent) == first
    assert values(plane, elsewhere, node="node-2") != first
    assert refusal(ask(plane, agent, instance="acme/research/renamed")) == NOT_PLACED


def test_nobody_reads_the_answer_on_its_way(plane: Plane) -> None:
    agent = plane.enrol()
    remember(plane, RECORD)
    answer = ask(plane, agent)
    value = plane.keys.secrets["instances/node-1/acme/research/hello/token"].reveal()
    payload = json.loads(answer.content)["payload"]
    assert value not in answer.text + payload + str(answer.headers)
    assert answer.headers["Cache-Control"] == "no-store"


class TestRefused:
    def test_another_nodes_instance(self, plane: Plane) -> None:
        plane.enrol("node-1")
        other = plane.enrol("node-2")
        remember(plane, RECORD)
        assert refusal(ask(plane, other, node="node-2")) == NOT_PLACED
        assert sorted(plane.keys.secrets) == OURS

    def test_an_instance_that_nobody_knows(self, plane: Plane) -> None:
        agent = plane.enrol()
        remember(plane, RECORD)
        assert refusal(ask(plane, agent, instance="acme/research/none")) == NOT_PLACED

    @pytest.mark.parametrize(
        "state", [State.REQUESTED, State.DECOMMISSIONING, State.DECOMMISSIONED]
    )
    def test_an_instance_that_is_not_to_be_there(self, plane: Plane, state: State) -> None:
        """Else a value could be made after the last one was forgotten."""
        agent = plane.enrol()
        remember(plane, replace(RECORD, state=state))
        assert refusal(ask(plane, agent)) == NOT_PLACED
        assert sorted(plane.keys.secrets) == OURS

    def test_a_secret_that_the_instance_has_not(self, plane: Plane) -> None:
        agent = plane.enrol()
        remember(plane, RECORD)
        for name in ("none", "../../../webhook/git", ""):
            assert refusal(ask(plane, agent, names=("token", name))) == (
                403,
                "no_such_secret",
                f"acme/research/hello has no secret {name!r}",
            )
        assert sorted(plane.keys.secrets) == OURS

    def test_in_the_name_of_another_node(self, plane: Plane) -> None:
        plane.enrol("node-1")
        other = plane.enrol("node-2")
        remember(plane, RECORD)
        assert refusal(ask(plane, other, node="node-1")) == (
            403,
            "wrong_node",
            "this key belongs to node node-2, not the sender",
        )

    def test_a_node_that_never_joined(self, plane: Plane) -> None:
        plane.enrol()
        remember(plane, RECORD)
        assert refusal(ask(plane, Agent())) == (
            401,
            "unknown_node",
            "no enrolled node has this key: join first",
        )

    def test_a_changed_request(self, plane: Plane) -> None:
        """Somebody on the way puts in a key of his own."""
        agent = plane.enrol()
        remember(plane, RECORD)
        signed = agent.seal(request_of(OneTimeKey()).canonical(), SECRETS_REQUEST_TYPE)
        other = agent.seal(request_of(OneTimeKey()).canonical(), SECRETS_REQUEST_TYPE)
        forged = {**signed, "payload": other["payload"]}
        assert refusal(plane.post(SECRETS, forged)) == (
            401,
            "bad_signature",
            "the signature does not match the payload",
        )

    def test_another_message_of_the_same_node(self, plane: Plane) -> None:
        agent = plane.enrol()
        assert refusal(plane.post(SECRETS, agent.poll())) == (
            400,
            "wrong_type",
            f"expected {SECRETS_REQUEST_TYPE}",
        )

    @pytest.mark.parametrize("skew_ms", [-60_001, 60_001])
    def test_a_request_from_another_time(self, plane: Plane, skew_ms: int) -> None:
        agent = plane.enrol()
        remember(plane, RECORD)
        assert refusal(ask(plane, agent, sent_at_ms=NOW_MS + skew_ms)) == (
            422,
            "not_fresh",
            "sent more than 60 s from now by the control plane's clock: check the clocks",
        )

    def test_a_copy_of_a_request(self, plane: Plane) -> None:
        agent = plane.enrol()
        remember(plane, RECORD)
        signed = agent.seal(
            request_of(OneTimeKey(), sent_at_ms=NOW_MS + 60_000).canonical(), SECRETS_REQUEST_TYPE
        )
        assert plane.post(SECRETS, signed).status_code == 200
        for later_ms in (0, 1, 119_999):
            plane.clock.ms = NOW_MS + later_ms
            assert refusal(plane.post(SECRETS, signed)) == (
                409,
                "replayed_request",
                "this very request was made before: make a new one",
            )
        plane.clock.ms = NOW_MS + 120_001
        assert refusal(plane.post(SECRETS, signed))[1] == "not_fresh"

    def test_a_key_that_seals_nothing(self, plane: Plane) -> None:
        agent = plane.enrol()
        remember(plane, RECORD)
        assert refusal(ask(plane, agent, public_key="0" * 64)) == (
            422,
            "bad_key",
            "public_key: not a usable X25519 key",
        )

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ({"names": ()}, "names: Tuple should have at least 1 item"),
            ({"public_key": "short"}, "public_key: String should match pattern '^[0-9a-f]{64}$'"),
            ({"more": 1}, "more: Extra inputs are not permitted"),
        ],
    )
    def test_an_invalid_request(self, plane: Plane, change: dict[str, Any], said: str) -> None:
        agent = plane.enrol()
        sent = {**request_of(OneTimeKey()).model_dump(mode="json"), **change}
        answer = plane.post(SECRETS, agent.seal(json.dumps(sent).encode(), SECRETS_REQUEST_TYPE))
        status, code, message = refusal(answer)
        assert (status, code) == (422, "invalid_message")
        assert message.startswith(said)

    def test_a_request_that_is_too_large(self, plane: Plane) -> None:
        agent = plane.enrol()
        names = tuple(f"name-{number}" for number in range(10_000))
        assert refusal(ask(plane, agent, names=names)) == (
            413,
            "too_large",
            "the body is larger than 65536 bytes",
        )

    def test_a_secret_store_that_is_away(self, plane: Plane) -> None:
        agent = plane.enrol()
        remember(plane, RECORD)
        plane.keys.failure = Transient("sealed", "the vault is sealed", retry_after_s=7.2)
        answer = ask(plane, agent)
        assert refusal(answer) == (503, "sealed", "the vault is sealed")
        assert answer.headers["Retry-After"] == "8"

    def test_one_that_holds_a_value_is_not_made_anew(self, plane: Plane) -> None:
        agent = plane.enrol()
        remember(plane, RECORD)
        plane.keys.secrets["instances/node-1/acme/research/hello/token"] = Secret("given")
        assert values(plane, agent) == {"token": "given"}


def test_only_so_many_requests_are_remembered() -> None:
    once = Once(window_ms=100, known_max=2)
    assert [once.is_first(word, 0) for word in "abca"] == [True, True, True, True]
    assert not once.is_first("a", 99)
    assert once.is_first("a", 100)
