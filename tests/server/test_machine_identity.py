"""An instance proves who it is: from the secret its node fetches to a token, and to its end."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from node_agent import envelope
from node_agent.sealing import OneTimeKey
from node_agent.wire import (
    MACHINE_IDENTITY,
    SECRETS_REQUEST_TYPE,
    SECRETS_TYPE,
    Secrets,
    SecretsRequest,
)
from reconciler.core.names import InstanceKey, member_key
from reconciler.core.records import InstanceRecord, State
from reconciler.ports import Changes, Secret
from reconciler.use_cases.assertions import assertion
from tests.contract.test_store import a_record
from tests.server.auth_world import PATH, READ, ask, audit, claims_of, token
from tests.server.harness import NOW_MS, Agent, Plane, a_store, refusal, running

HELLO, NEW = InstanceKey("acme/research/hello"), InstanceKey("acme/research/renamed")
RECORD = a_record(HELLO, secrets=(MACHINE_IDENTITY, "token"))
PLACE = "instances/node-1/acme/research/hello/machine-identity"
REFUSED = (401, "assertion_refused", "no such account with such a key signed this")


def remember(plane: Plane, *records: InstanceRecord) -> None:
    plane.store.commit(Changes(records=records))


def fetched(plane: Plane, agent: Agent, instance: str = HELLO) -> dict[str, Any]:
    """The identity, as the node puts it into the instance's memory."""
    key = OneTimeKey()
    request = SecretsRequest(
        node=agent.node,
        sent_at_ms=plane.clock.ms,
        instance=instance,
        names=(MACHINE_IDENTITY,),
        public_key=key.public_key,
    )
    sealed = agent.seal(request.canonical(), SECRETS_REQUEST_TYPE)
    answer = plane.post("/v1/agent/secrets", sealed)
    assert answer.status_code == 200, answer.text
    payload, _ = envelope.unseal(answer.content, SECRETS_TYPE, plane.keys.verifier_keys("tasks"))
    values = key.open(Secrets.model_validate_json(payload), agent.node, instance)
    found = json.loads(values[MACHINE_IDENTITY])
    assert isinstance(found, dict)
    return found


def proved(plane: Plane, own: dict[str, Any], **changes: str) -> str:
    """The assertion that the instance makes of its file."""
    said = {**own, **changes}
    pem = said["private_key"].encode()
    return assertion(pem, said["account"], said["key_id"], said["audience"], plane.clock.ms)


def test_an_instance_gets_a_token(plane: Plane) -> None:
    agent = plane.enrol()
    remember(plane, RECORD)
    own = fetched(plane, agent)
    assert sorted(own) == ["account", "audience", "key_id", "private_key", "token_path"]
    assert (own["account"], own["audience"]) == (f"instance:{HELLO}", "gpuaas")
    assert own["token_path"] == PATH
    assert own["key_id"].endswith("-3")
    answer = ask(plane, proved(plane, own))
    assert answer.json()["scope"] == READ
    claims = claims_of(answer.json()["access_token"])
    assert (claims["sub"], claims["kind"]) == (f"instance:{HELLO}", "instance")
    assert (claims["project"], claims["kid"]) == ("acme/research", own["key_id"])
    (entry,) = (one for one in audit(plane.store) if one.action == "auth.token.issued")
    assert (entry.actor, entry.requester_type) == (f"instance/{HELLO}", "instance")


def test_it_is_for_this_control_plane(tmp_path: Path) -> None:
    with a_store("memory", tmp_path) as store, running(store, environment="prod") as plane:
        agent = plane.enrol()
        remember(plane, RECORD)
        own = fetched(plane, agent)
        assert own["audience"] == "gpuaas/prod"
        assert claims_of(token(plane, proved(plane, own)))["aud"] == "gpuaas/prod"
        said = "aud: expected gpuaas/prod, and nobody else"
        answer = ask(plane, proved(plane, own, audience="gpuaas/staging"))
        assert refusal(answer) == (400, "assertion_invalid", said)


def test_it_is_the_same_all_its_life(plane: Plane) -> None:
    agent = plane.enrol()
    remember(plane, RECORD)
    own = fetched(plane, agent)
    for state in (State.RUNNING, State.UPGRADING, State.ROLLING_BACK, State.FAILED):
        remember(plane, replace(RECORD, state=state, epoch=RECORD.epoch + 1))
        assert fetched(plane, agent) == own
        token(plane, proved(plane, own))


def test_a_further_member_has_its_own(plane: Plane) -> None:
    agent, member = plane.enrol(), member_key(HELLO, "worker-1")
    remember(plane, RECORD, replace(RECORD, key=member))
    first, second = fetched(plane, agent), fetched(plane, agent, member)
    assert second["account"] == f"instance:{member}"
    assert first["private_key"] != second["private_key"]
    assert claims_of(token(plane, proved(plane, second)))["project"] == "acme/research"
    assert refusal(ask(plane, proved(plane, first, account=second["account"]))) == REFUSED


def test_it_goes_with_the_instance(plane: Plane) -> None:
    agent = plane.enrol()
    remember(plane, RECORD)
    own = fetched(plane, agent)
    for state in (State.DECOMMISSIONING, State.DECOMMISSIONED):
        remember(plane, replace(RECORD, state=state))
        assert refusal(ask(plane, proved(plane, own))) == REFUSED
    plane.store.commit(Changes(forgotten=[HELLO]))
    assert refusal(ask(plane, proved(plane, own))) == REFUSED


def test_the_next_of_its_name_has_another(plane: Plane) -> None:
    agent = plane.enrol()
    remember(plane, RECORD)
    own = fetched(plane, agent)
    plane.keys.delete(PLACE)
    remember(plane, replace(RECORD, epoch=RECORD.epoch + 2))
    assert refusal(ask(plane, proved(plane, own))) == REFUSED
    second = fetched(plane, agent)
    assert second["key_id"].endswith("-5")
    assert refusal(ask(plane, proved(plane, own))) == REFUSED
    assert refusal(ask(plane, proved(plane, own, key_id=second["key_id"]))) == REFUSED
    token(plane, proved(plane, second))


def test_a_renamed_instance_goes_on_with_what_it_has(plane: Plane) -> None:
    """And is known by its new name; its namesake elsewhere is somebody else."""
    agent, elsewhere = plane.enrol("node-1"), plane.enrol("node-2")
    remember(plane, RECORD)
    own = fetched(plane, agent)
    moved = replace(RECORD, key=NEW, runtime_name=HELLO)
    plane.store.commit(Changes(records=[moved, replace(RECORD, node="node-2")]))
    other = fetched(plane, elsewhere)
    assert own["account"] == other["account"] == f"instance:{HELLO}"
    assert claims_of(token(plane, proved(plane, own)))["sub"] == f"instance:{NEW}"
    assert claims_of(token(plane, proved(plane, other)))["sub"] == f"instance:{HELLO}"
    assert refusal(ask(plane, proved(plane, own, account=f"instance:{NEW}"))) == REFUSED
    assert refusal(ask(plane, proved(plane, own, key_id=other["key_id"]))) == REFUSED


@pytest.mark.parametrize(
    "value",
    ["a word of its own", "{}", "[]", '{"key_id": "x"}', '{"key_id": "x", "private_key": "y"}',
     '{"key_id": "x", "private_key": 7}', ""],
)  # fmt: skip
def test_a_secret_of_that_name_that_is_no_identity(plane: Plane, value: str) -> None:
    agent = plane.enrol()
    remember(plane, RECORD)
    own = fetched(plane, agent)
    plane.keys.write(PLACE, Secret(value))
    assert refusal(ask(plane, proved(plane, own))) == REFUSED


def test_one_whose_workload_has_none(plane: Plane) -> None:
    """Launched before there were any: nobody can have made the secret for it."""
    agent = plane.enrol()
    remember(plane, RECORD)
    own = fetched(plane, agent)
    remember(plane, replace(RECORD, secrets=("token",)))
    assert refusal(ask(plane, proved(plane, own))) == REFUSED


def test_its_token_is_refused_at_once_when_it_goes(plane: Plane) -> None:
    agent = plane.enrol()
    remember(plane, RECORD)
    bearer = {"Authorization": f"Bearer {token(plane, proved(plane, fetched(plane, agent)))}"}
    assert whoami(plane, bearer).status_code == 200
    remember(plane, replace(RECORD, state=State.DECOMMISSIONING))
    said = f"instance:{HELLO} is not there any more"
    assert refusal(whoami(plane, bearer)) == (401, "account_gone", said)
    assert plane.clock.ms == NOW_MS


def whoami(plane: Plane, headers: dict[str, str]) -> httpx.Response:
    return plane.client.get("/v1/whoami", headers=headers)
