"""Which secrets that somebody put there a node may have, and which it asks for in vain."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from node_agent import envelope
from node_agent.sealing import OneTimeKey
from node_agent.wire import SECRETS_TYPE, ConfigSeen, Secrets, SecretsRequest
from reconciler.core.names import InstanceKey
from reconciler.core.records import InstanceRecord, State
from reconciler.errors import Transient
from reconciler.ports import TASK_KEY, Changes, Secret
from reconciler.server.errors import ApiError
from reconciler.server.instance_secrets import InstanceSecrets
from tests.contract.test_store import a_record
from tests.fakes.secrets import FakeSecrets
from tests.fakes.store import MemoryStore
from tests.server.harness import NOW_MS, Agent

HELLO = InstanceKey("acme/research/hello")
PROJECT, TENANT = "hf-token=secret://project/hf-token", "license=secret://tenant/license"
RECORD = a_record(HELLO, secrets=(PROJECT, TENANT, "token"))
PATHS = {
    "projects/acme/research/hf-token": "ours",
    "projects/acme/other/hf-token": "another project's",
    "projects/borealis/research/hf-token": "another tenant's",
    "tenants/acme/license": "our tenant's",
    "tenants/borealis/license": "another tenant's license",
    "webhook/git": "the webhook's",
    "instances/node-1/acme/research/other/token": "another instance's",
}


class Plane:
    """The answering side, over a store with one record and a custody with many secrets."""

    def __init__(self, *records: InstanceRecord) -> None:
        self.store, self.secrets = MemoryStore(), FakeSecrets()
        self.store.commit(Changes(records=records or (RECORD,)))
        for path, value in PATHS.items():
            self.secrets.write(path, Secret(value))
        self.secrets.ensure_signing_key(TASK_KEY)
        self._answers = InstanceSecrets(self.store, self.secrets, "plane")
        self.agent = Agent()
        self.store.add_join_token("x", "node-1", NOW_MS + 1)
        self.store.redeem_join_token("x", "node-1", self.agent.public_key, NOW_MS)

    def envelope(self, key: OneTimeKey, *names: str, **fields: Any) -> dict[str, Any]:
        given = {"node": "node-1", "instance": HELLO, **fields}
        request = SecretsRequest(sent_at_ms=NOW_MS, names=names, public_key=key.public_key, **given)
        return self._answers.answer(request)

    def values(self, *names: str, instance: str = HELLO) -> dict[str, str]:
        key = OneTimeKey()
        sealed = self.envelope(key, *names, instance=instance)
        known = self.secrets.verifier_keys(TASK_KEY)
        payload, _ = envelope.unseal(json.dumps(sealed).encode(), SECRETS_TYPE, known)
        return key.open(Secrets.model_validate_json(payload), "node-1", instance)

    def refusal(self, *names: str, **fields: Any) -> tuple[int, str, str]:
        with pytest.raises(ApiError) as refused:
            self.envelope(OneTimeKey(), *names, **fields)
        return refused.value.status, refused.value.code, refused.value.message


def test_what_the_instance_refers_to_comes_by_the_name_it_was_asked_with() -> None:
    found = Plane().values(PROJECT, TENANT, "token")
    assert (found[PROJECT], found[TENANT]) == ("ours", "our tenant's")
    assert len(found["token"]) == 43


def test_a_member_gets_those_of_its_instance() -> None:
    member = InstanceKey("acme/research/hello.worker-1")
    assert Plane(replace(RECORD, key=member)).values(PROJECT, instance=member) == {PROJECT: "ours"}


def test_what_was_renamed_is_still_of_its_project() -> None:
    moved = replace(RECORD, key=InstanceKey("acme/research/renamed"), runtime_name=HELLO)
    assert Plane(moved).values(PROJECT) == {PROJECT: "ours"}


def test_the_value_is_the_one_of_now() -> None:
    plane = Plane()
    plane.secrets.write("projects/acme/research/hf-token", Secret("rotated"))
    assert plane.values(PROJECT) == {PROJECT: "rotated"}


@pytest.mark.parametrize(
    "asked",
    [
        "hf-token",
        "hf-token=",
        "other=secret://project/hf-token",
        "hf-token=secret://project/other",
        "hf-token=secret://tenant/license",
        "hf-token=secret://acme/other/hf-token",
        "hf-token=secret://project/../other/hf-token",
        "hf-token=secret://project/hf-token=",
        "hf-token=projects/acme/other/hf-token",
        "=secret://project/hf-token",
        "token=secret://project/hf-token",
        "../other/token",
        "../../../webhook/git",
    ],
)
def test_a_node_can_not_ask_for_what_the_record_does_not_name(asked: str) -> None:
    plane = Plane()
    before = dict(plane.secrets.secrets)
    assert plane.refusal(PROJECT, asked) == (
        403,
        "no_such_secret",
        f"{HELLO} has no secret {asked!r}",
    )
    assert plane.secrets.secrets == before


@pytest.mark.parametrize(
    "key", ["acme/other/hello", "borealis/research/hello", "acme/research/other"]
)
def test_another_instance_is_not_answered_for(key: str) -> None:
    assert Plane().refusal(PROJECT, instance=key)[:2] == (403, "not_placed")


def test_a_forged_record_leads_nowhere_else() -> None:
    """Were the store written to, a reference would still not leave its project and tenant."""
    for reference in ("secret://acme/other/hf-token", "secret://project/../other/hf-token", "x"):
        asked = f"hf-token={reference}"
        assert Plane(replace(RECORD, secrets=(asked,))).refusal(asked) == (
            404,
            "secret_missing",
            f"there is no {reference}",
        )


def test_one_that_is_missing_is_not_made() -> None:
    plane = Plane()
    plane.secrets.delete("projects/acme/research/hf-token")
    assert plane.refusal(PROJECT) == (
        404,
        "secret_missing",
        "there is no secret://project/hf-token: gpuaas secret set acme/research/hf-token",
    )
    assert plane.secrets.seen("projects/acme/research/hf-token") is None


@pytest.mark.parametrize("state", [State.REQUESTED, State.DECOMMISSIONING, State.DECOMMISSIONED])
def test_an_instance_that_is_not_to_be_there_gets_none(state: State) -> None:
    assert Plane(replace(RECORD, state=state)).refusal(PROJECT)[:2] == (403, "not_placed")


def test_with_the_secret_store_away_it_is_to_be_asked_again() -> None:
    plane = Plane()
    plane.secrets.failure = Transient("custody_sealed", "Vault is sealed")
    with pytest.raises(Transient, match="custody_sealed"):
        plane.values(PROJECT)


@pytest.mark.parametrize(("known", "signs"), [(None, 1), (1, 1), (2, 2)])
def test_it_is_signed_with_a_version_that_the_agent_knows(known: int | None, signs: int) -> None:
    plane = Plane()
    plane.secrets.rotate(TASK_KEY)
    config = ConfigSeen(digest="d", newest_version=known, min_version=1) if known else None
    report = plane.agent.make_report(1, config=config)
    plane.store.save_report("node-1", report.canonical().decode(), 1, 0, NOW_MS)
    sealed = plane.envelope(OneTimeKey(), PROJECT)
    (signature,) = sealed["signatures"]
    by_id = {key.key_id: key.version for key in plane.secrets.verifier_keys(TASK_KEY)}
    assert by_id[signature["keyid"]] == signs
