"""Attacks by machines: a service account keeps to its project and to what machines may do."""

from __future__ import annotations

import time
from importlib.resources.abc import Traversable
from typing import Any

import httpx
import pytest

from reconciler.devkit.state_repo import example_root
from reconciler.server.auth_api import GRANT_TYPE
from reconciler.use_cases.assertions import assertion
from tests.cli.signed_state import binding, dumped
from tests.core import builders
from tests.e2e.authority.red_team import (
    ADMIN,
    BOT,
    DEVELOPER,
    ENTITLEMENT,
    ENTITLEMENT_FILE,
    FORGE,
    INSTANCE,
    INSTANCE_FILE,
    LAB_INSTANCE,
    LAB_ONE,
    MACHINE,
    MACHINES,
    RedTeam,
    by_forge,
    changed_identity,
    more_memory,
    service_account,
)

BOT_NAME = "service_account/acme/research/bot"
TRUST_POLICY = "platform/trust/artifacts.yaml"
ACCOUNT, SPY = "acme/research/bot", "acme/lab/spy"


def humans_only(words: str, permission: str) -> str:
    return f"{BOT_NAME} may not {words}: {permission} is for humans"


def trust_policy() -> str:
    place: Traversable = example_root().joinpath(*TRUST_POLICY.split("/"))
    return place.read_text()


def entitlement(team: RedTeam) -> dict[str, str]:
    return team.edited(ENTITLEMENT_FILE, "enabled: true", "enabled: false")


def other_instance(team: RedTeam) -> dict[str, str]:
    return team.edited(LAB_INSTANCE, "memory_gib: 4", "memory_gib: 5")


def own_account(team: RedTeam) -> dict[str, str]:
    roles = ["app-operator", "artifact-publisher"]
    return {BOT: dumped(service_account("bot", [team.pairs["bot"]], roles=roles))}


def own_identity(team: RedTeam) -> dict[str, str]:
    keys = [team.keys[MACHINE].identity_key("bot-1"), team.keys["eve"].identity_key("bot-2")]
    return {MACHINES: changed_identity(team.text(MACHINES), MACHINE, keys=keys)}


def own_binding(_: RedTeam) -> dict[str, str]:
    mine = binding("mine", MACHINE, "platform-admin", {"platform": True})
    mine["spec"]["subjects"] = [{"service_account": ACCOUNT}]
    return {"platform/iam/mine.yaml": dumped(mine)}


def which_artifacts_are_trusted(_: RedTeam) -> dict[str, str]:
    return {TRUST_POLICY: trust_policy()}


ATTACKS: dict[str, tuple[Any, str, str, str]] = {
    "entitlement": (
        entitlement,
        ENTITLEMENT,
        "needs_human",
        humans_only(f"change {ENTITLEMENT}", "tenants.entitlement.edit"),
    ),
    "other project": (
        other_instance,
        LAB_ONE,
        "outside_own_project",
        f"{BOT_NAME} may not change {LAB_ONE}: it acts in acme/research only",
    ),
    "own account": (
        own_account,
        "ServiceAccount/acme/research/bot",
        "needs_human",
        humans_only("change ServiceAccount/acme/research/bot", "tenants.service_account.edit"),
    ),
    "own identity": (
        own_identity,
        "Identity/bot",
        "needs_human",
        humans_only("change Identity/bot", "platform.iam.edit"),
    ),
    "own binding": (
        own_binding,
        "RoleBinding/mine",
        "needs_human",
        humans_only("change RoleBinding/mine", "platform.iam.edit"),
    ),
    "trust policy": (
        which_artifacts_are_trusted,
        "TrustPolicy/artifacts",
        "needs_human",
        humans_only("change TrustPolicy/artifacts", "platform.trust.edit"),
    ),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_machine_does_what_is_not_for_machines(team: RedTeam, attack: str) -> None:
    files, subject, code, message = ATTACKS[attack]
    made = team.commit(MACHINE, files(team) | more_memory(team))
    team.push()
    team.refused(made, subject, code, message)
    assert team.done_by(made) == {(BOT_NAME, INSTANCE)}


@pytest.mark.parametrize("attack", ["entitlement", "other project", "own identity"])
@pytest.mark.parametrize("author", [("Dora", "dora@acme.example"), ("Ada", "ada@acme.example")])
def test_merged_by_somebody_in_the_forge(
    team: RedTeam, attack: str, author: tuple[str, str]
) -> None:
    """Merging makes nothing good that a machine may not do, whoever merges."""
    files, subject, code, message = ATTACKS[attack]
    team.repo.git("checkout", "--quiet", "-B", "topic")
    side = team.commit(MACHINE, files(team))
    team.repo.git("checkout", "--quiet", "main")
    made = team.merge_in_forge(author, "topic")
    team.push()
    where = f" (in {side[:12]}, which the merge brings in)"
    team.refused(made, subject, code, message + where)


def test_a_binding_gives_a_machine_no_more_than_machines_may(team: RedTeam) -> None:
    """Not even by the admin's own hand: what is for humans stays theirs."""
    much = binding("much", MACHINE, "platform-admin", {"platform": True})
    team.send(ADMIN, {"platform/iam/much.yaml": dumped(much)})
    team.note()
    made = team.commit(MACHINE, entitlement(team) | other_instance(team))
    team.push()
    _, subject, code, message = ATTACKS["entitlement"]
    team.refused(made, subject, code, message)
    _, subject, code, message = ATTACKS["other project"]
    team.refused(made, subject, code, message)


def test_a_machine_that_is_disabled_signs_nothing(team: RedTeam) -> None:
    off = dumped(service_account("bot", [team.pairs["bot"]], disabled=True))
    team.send(ADMIN, {BOT: off})
    team.note()
    made = team.commit(MACHINE, more_memory(team))
    team.push()
    what = f"commit {made[:12]} (edit) is signed by bot, who is disabled"
    team.rejected("signer_disabled", what)


def test_a_machine_in_a_web_merge_names_itself_as_the_admin(team: RedTeam) -> None:
    """A signature of its own key, and the words of a forge: the key is what counts."""
    made = team.commit(MACHINE, entitlement(team), **by_forge(("Ada Admin", "ada@acme.example")))
    team.push()
    _, subject, code, message = ATTACKS["entitlement"]
    team.refused(made, subject, code, message)


# --- tokens --------------------------------------------------------------------------------------


def asked(team: RedTeam, given: str) -> httpx.Response:
    form = {"grant_type": GRANT_TYPE, "assertion": given}
    return httpx.post(f"http://{team.listen}/v1/auth/token", data=form, trust_env=False)


def asserted(team: RedTeam, name: str, account: str) -> str:
    key = team.pairs[name]
    audience = f"gpuaas/{builders.ENVIRONMENT}"
    return assertion(key.pem, account, key.id, audience, int(time.time() * 1000))


def shown(team: RedTeam, token: str, path: str) -> httpx.Response:
    headers = {"Authorization": f"Bearer {token}"}
    return httpx.get(f"http://{team.listen}{path}", headers=headers, trust_env=False)


def problem(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, str(answer.json()["error"]["code"])


def token_of(team: RedTeam, name: str, account: str) -> str:
    answer = asked(team, asserted(team, name, account))
    assert answer.status_code == 200, answer.text
    return str(answer.json()["access_token"])


def test_an_assertion_that_is_sent_again(team: RedTeam) -> None:
    given = asserted(team, "bot", ACCOUNT)
    assert asked(team, given).status_code == 200
    answer = asked(team, given)
    assert problem(answer) == (401, "assertion_replayed")
    rows = [(e.actor, e.action, e.result) for e in team.audit() if e.action.startswith("auth.")]
    assert rows == [
        (BOT_NAME, "auth.token.issued", "done"),
        (BOT_NAME, "auth.token.refused", "assertion_replayed"),
    ]


def test_an_assertion_signed_by_another_machine(team: RedTeam) -> None:
    key = team.pairs["spy"]
    audience = f"gpuaas/{builders.ENVIRONMENT}"
    given = assertion(key.pem, ACCOUNT, team.pairs["bot"].id, audience, int(time.time() * 1000))
    answer = asked(team, given)
    assert problem(answer) == (401, "assertion_refused")
    (row,) = [e for e in team.audit() if e.action == "auth.token.refused"]
    assert (row.actor, row.object) == ("unproved", ACCOUNT)


def test_a_token_ends_with_its_account(team: RedTeam) -> None:
    """At once, and not when the token does."""
    token = token_of(team, "bot", ACCOUNT)
    assert shown(team, token, "/v1/instances").status_code == 200
    off = dumped(service_account("bot", [team.pairs["bot"]], disabled=True))
    team.send(ADMIN, {BOT: off})
    answer = shown(team, token, "/v1/instances")
    assert problem(answer) == (401, "account_disabled")
    refused = asked(team, asserted(team, "bot", ACCOUNT))
    assert problem(refused) == (403, "account_disabled")


def test_a_token_outlives_a_change_that_was_refused(team: RedTeam) -> None:
    """Who may not disable a machine has not."""
    token = token_of(team, "bot", ACCOUNT)
    off = dumped(service_account("bot", [team.pairs["bot"]], disabled=True))
    team.send(DEVELOPER, {BOT: off})
    assert list(team.accepted().refused) == ["ServiceAccount/acme/research/bot"]
    assert shown(team, token, "/v1/instances").status_code == 200


def test_a_token_of_another_project_sees_nothing(team: RedTeam) -> None:
    """Not even that there is something to see."""
    token = token_of(team, "spy", SPY)
    listed = shown(team, token, "/v1/instances")
    assert {one["project"] for one in listed.json()["instances"]} <= {"lab"}
    foreign = shown(team, token, "/v1/instances/acme/research/one")
    nothing = shown(team, token, "/v1/instances/acme/research/nine")
    assert problem(foreign) == problem(nothing)
    assert foreign.status_code == 404
    assert problem(shown(team, token, "/v1/status")) == (403, "not_permitted")
    assert token not in team.log()


def test_a_token_of_a_rejected_revision(team: RedTeam) -> None:
    """An account that an unsigned commit brings in is nobody."""
    new = team.pairs["spy"]
    made = team.commit("", {BOT.replace("bot", "new"): dumped(service_account("new", [new]))})
    team.push()
    team.rejected("commit_unsigned", f"commit {made[:12]} (edit) is not signed")
    answer = asked(team, asserted(team, "spy", "acme/research/new"))
    assert problem(answer) == (401, "assertion_refused")


# --- what they are there for ---------------------------------------------------------------------


def test_a_machine_deploys_in_its_own_project(team: RedTeam) -> None:
    made = team.send(MACHINE, more_memory(team), "Deploy")
    assert team.done_by(made) == {(BOT_NAME, INSTANCE)}
    assert team.made_by(INSTANCE) == BOT_NAME


def test_a_machine_s_branch_is_merged_in_the_forge(team: RedTeam) -> None:
    team.repo.git("checkout", "--quiet", "-B", "topic")
    team.commit(MACHINE, more_memory(team), "Deploy")
    team.repo.git("checkout", "--quiet", "main")
    made = team.merge_in_forge(("Dora", "dora@acme.example"), "topic")
    team.push()
    team.wait_accepted(made)
    assert not team.accepted().refused
    (row,) = [e for e in team.audit() if e.object == INSTANCE and e.action.startswith("state.")]
    assert (row.actor, row.via, row.result) == ("user/dora", FORGE, "done")
    assert INSTANCE_FILE in team.accepted().objects[INSTANCE].path
