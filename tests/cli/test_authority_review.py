"""`gpuaas validate --base` on signed commits: who may do what, before it is merged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from reconciler.cli.validate import validate
from reconciler.devkit.signing import SigningKey
from reconciler.errors import Refused
from tests.cli.signed_state import (
    ADMIN,
    MORE_CORES,
    MORE_MEMORY,
    OPERATOR,
    PEOPLE,
    ROLES,
    SignedState,
    binding,
    dumped,
    identity,
)
from tests.core.builders import INSTANCE_FILE


@pytest.fixture(autouse=True)
def _signatures_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUAAS_SIGNATURES", "required")


@pytest.fixture
def state(tmp_path: Path) -> SignedState:
    return SignedState(tmp_path)


def run(state: SignedState, *args: str) -> Result:
    words = [str(state.folder), "--base", "main", *args]
    return CliRunner().invoke(validate, words, standalone_mode=False)


def problems(state: SignedState, *args: str) -> dict[str, dict[str, object]]:
    done = run(state, "--format", "json", *args)
    assert done.exception is None, done.exception
    found = json.loads(done.output)["problems"]
    assert all(one["new"] for one in found)
    return {one["code"]: one for one in found}


def test_who_may_may(state: SignedState) -> None:
    state.edit(OPERATOR, *MORE_MEMORY)
    state.edit(ADMIN, *MORE_CORES)
    assert run(state).return_value == 0


def test_a_change_its_signer_may_not_make_is_a_problem_at_the_object(state: SignedState) -> None:
    revision = state.edit(OPERATOR, *MORE_CORES)
    done = run(state)
    assert done.return_value == 1
    title, first, hint, *_ = done.output.splitlines()
    assert title == "Introduced here:"
    assert first == (
        "platform/nodes/gpu-1.yaml:1:1: change_not_allowed: user/olga may not change Node/gpu-1: "
        f"fleet.node.edit is missing on the platform (commit {revision[:12]})"
    )
    assert hint == "    roles with fleet.node.edit: platform-admin"


@pytest.mark.parametrize(
    ("who", "code", "says"),
    [
        ("", "commit_unsigned", "is not signed"),
        ("eve", "signer_unknown", "a key that no Identity has"),
    ],
)
def test_a_commit_of_nobody_known_fails_as_a_whole(
    state: SignedState, who: str, code: str, says: str
) -> None:
    revision = state.edit(who, *MORE_MEMORY, "More memory")
    found = problems(state)
    assert [*found] == [code]
    assert found[code]["where"] == f"commit {revision[:12]}"
    assert says in str(found[code]["message"])
    assert found[code]["hint"]


def test_trust_is_that_of_the_base(state: SignedState) -> None:
    """Attempted: a pull request that lets its own author in."""
    eve = dumped(
        identity("eve", state.keys["eve"]),
        binding("eves", "eve", "platform-admin", {"platform": True}),
    )
    state.commit("eve", {"platform/iam/eve.yaml": eve})
    state.edit("eve", *MORE_CORES)
    assert [*problems(state)] == ["signer_unknown"]


def test_who_was_let_in_by_an_admin_may_go_on_in_the_same_request(state: SignedState) -> None:
    state.commit(ADMIN, {"platform/iam/eve.yaml": dumped(identity("eve", state.keys["eve"]))})
    state.edit("eve", *MORE_MEMORY)
    assert [*problems(state)] == ["change_not_allowed"]
    roles = binding("eves", "eve", "app-operator", {"tenant": "acme"})
    state.repo.git("reset", "--quiet", "--hard", "HEAD~1")
    state.commit(ADMIN, {"platform/iam/eves.yaml": dumped(roles)})
    state.edit("eve", *MORE_MEMORY)
    assert problems(state) == {}


def test_main_merged_into_the_branch_since(state: SignedState) -> None:
    state.edit(OPERATOR, *MORE_MEMORY)
    state.repo.git("checkout", "--quiet", "main")
    state.edit(ADMIN, *MORE_CORES)
    state.repo.git("checkout", "--quiet", "topic")
    key = state.keys[OPERATOR].private
    options = ["-c", "gpg.format=ssh", "-c", f"user.signingKey={key}"]
    state.repo.record(*options, "merge", "--quiet", "-S", "--no-edit", "main")
    assert problems(state) == {}


def test_a_test_merge_of_a_forge_is_nobodys_commit(state: SignedState) -> None:
    """GitHub checks out a merge of its own, unsigned, of the request with what main is by now."""
    request = state.edit(OPERATOR, *MORE_MEMORY)
    state.repo.git("checkout", "--quiet", "main")
    state.edit(ADMIN, *MORE_CORES)
    state.repo.git("checkout", "--quiet", "--detach")
    state.repo.record("merge", "--quiet", "--no-gpg-sign", "--no-edit", "topic")
    assert [*problems(state)] == ["commit_unsigned"]
    assert problems(state, "--commits", request) == {}
    state.repo.git("checkout", "--quiet", "topic")
    request = state.edit("eve", "catalog/hello/app.yaml", "owner: platform", "owner: eve")
    state.repo.git("checkout", "--quiet", "--detach", "main")
    state.repo.record("merge", "--quiet", "--no-gpg-sign", "--no-edit", "topic")
    assert [*problems(state, "--commits", request)] == ["signer_unknown"]


def test_a_removed_object_is_told_where_it_was(state: SignedState) -> None:
    state.commit(OPERATOR, {"platform/nodes/gpu-1.yaml": None})
    found = problems(state)["change_not_allowed"]
    assert (found["where"], found["object"]) == ("platform/nodes/gpu-1.yaml", "Node/gpu-1")


def test_the_last_admin(state: SignedState) -> None:
    text = dumped(identity(OPERATOR, state.keys[OPERATOR]))
    roles = dumped(binding("operators", OPERATOR, "app-operator", {"project": "acme/research"}))
    state.commit(ADMIN, {PEOPLE: text, ROLES: roles})
    assert "last_admin" in problems(state)
    assert "last_admin" in problems(state, "--as", ADMIN)


# --- asked for, or not ---------------------------------------------------------------------------


def test_off(state: SignedState, monkeypatch: pytest.MonkeyPatch) -> None:
    state.edit("", *MORE_CORES)
    assert run(state, "--authority", "off").return_value == 0
    monkeypatch.setenv("GPUAAS_SIGNATURES", "off")
    assert run(state).return_value == 0
    assert run(state, "--authority", "require").return_value == 1


def test_auto_asks_only_where_the_base_knows_somebody(tmp_path: Path) -> None:
    state = SignedState(tmp_path)
    state.repo.git("checkout", "--quiet", "--orphan", "bare")
    state.commit("", {PEOPLE: None, ROLES: None})
    state.repo.git("branch", "--quiet", "--force", "main", "bare")
    state.edit("", *MORE_MEMORY)
    assert run(state).return_value == 0
    error = run(state, "--authority", "require").exception
    assert isinstance(error, Refused)
    base = state.repo.head("main")[:12]
    assert str(error) == (
        f"{base}: no_identities: the base has no Identity, so that nobody's signature could count "
        "(gpuaas init --existing adds the first one; or --authority auto)"
    )


def test_as_somebody_judges_the_whole_difference(state: SignedState) -> None:
    """As a forge does that squashes: who made the commits does not matter, and may be nobody."""
    state.edit("", *MORE_CORES)
    state.edit("", *MORE_MEMORY)
    assert run(state, "--as", ADMIN).return_value == 0
    found = problems(state, "--as", OPERATOR)
    assert [one["object"] for one in found.values()] == ["Node/gpu-1"]
    assert found["change_not_allowed"]["where"] == "platform/nodes/gpu-1.yaml:1:1"
    machine = problems(state, "--as", "acme/research/bot")
    assert machine["needs_human"]["object"] == "Node/gpu-1"


def test_as_counts_what_is_not_committed(state: SignedState) -> None:
    for path, text in state.edited(*MORE_CORES).items():
        (state.folder / path).write_text(text)
    assert run(state, "--as", OPERATOR).return_value == 1
    assert run(state).return_value == 0


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("--as", "olgа"), "no_such_identity: nobody is called"),
        (("--as", "olg"), r"no_such_identity: nobody is called olg (did you mean olga?)"),
    ],
)
def test_as_nobody(state: SignedState, args: tuple[str, ...], says: str) -> None:
    error = run(state, *args).exception
    assert isinstance(error, Refused)
    assert says in str(error)


def test_options_that_need_each_other(state: SignedState) -> None:
    alone = CliRunner().invoke(validate, [str(state.folder), "--as", ADMIN])
    assert "--as, --commits and --authority need --base" in alone.output
    both = CliRunner().invoke(
        validate, [str(state.folder), "--base", "main", "--as", ADMIN, "--authority", "off"]
    )
    assert "--as asks for authority, --authority off for none" in both.output


# --- formats -------------------------------------------------------------------------------------


def test_commits_in_every_format(tmp_path: Path) -> None:
    state = SignedState(tmp_path, "platform state")
    revision = state.edit("", *MORE_MEMORY)
    where = f"commit {revision[:12]}"
    annotation = run(state, "--format", "github").output.splitlines()[0]
    assert annotation.startswith(f"::error file={where},title=commit_unsigned::commit ")
    sarif = json.loads(run(state, "--format", "sarif").output)
    (result,) = sarif["runs"][0]["results"]
    place = result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]
    assert (result["ruleId"], place) == ("commit_unsigned", where.replace(" ", "%20"))
    assert where + ": commit_unsigned: " in run(state).output


def test_a_state_repo_in_a_folder_of_a_repository(tmp_path: Path) -> None:
    state = SignedState(tmp_path, "platform state")
    state.edit(OPERATOR, *MORE_MEMORY)
    assert problems(state) == {}
    state.edit(OPERATOR, *MORE_CORES)
    assert problems(state)["change_not_allowed"]["object"] == "Node/gpu-1"


def test_a_shallow_clone_says_how_to_deepen_it(state: SignedState, tmp_path: Path) -> None:
    for number in range(4):
        state.edit(
            OPERATOR, INSTANCE_FILE, f"memory_gib: {4 + number}", f"memory_gib: {5 + number}"
        )
    clone, url = tmp_path / "clone", f"file://{state.repo.folder}"
    state.repo.git("branch", "--quiet", "--force", "main", "HEAD~1")
    state.repo.git("clone", "--quiet", "--depth=3", "--no-single-branch", url, str(clone))
    done = CliRunner().invoke(
        validate, [str(clone), "--base", "origin/main"], standalone_mode=False
    )
    error = done.exception
    assert isinstance(error, Refused)
    assert "history_incomplete: the clone is shallow" in str(error)
    assert "git fetch --unshallow, or in CI fetch-depth: 0 (GitHub)" in str(error)
    words = [str(clone), "--base", "origin/main", "--as", OPERATOR]
    assert CliRunner().invoke(validate, words, standalone_mode=False).return_value == 0


def test_openpgp(state: SignedState, tmp_path: Path) -> None:
    key = SigningKey.openpgp(tmp_path / "gpg", "pia", "pia@acme.example")
    state.keys["pia"] = key
    try:
        pia = identity("pia", key)
        roles = binding("pias", "pia", "app-operator", {"project": "acme/research"})
        state.commit(ADMIN, {"platform/iam/pia.yaml": dumped(pia, roles)})
        state.repo.git("branch", "--quiet", "--force", "main", "HEAD")
        state.edit("pia", *MORE_MEMORY)
        assert problems(state) == {}
        state.edit("pia", *MORE_CORES)
        assert problems(state)["change_not_allowed"]["object"] == "Node/gpu-1"
    finally:
        key.close()


def test_an_object_that_is_approved(state: SignedState) -> None:
    state.edit(OPERATOR, *MORE_CORES)
    state.commit(ADMIN, {}, "Agreed\n\nApproves: Node/gpu-1")
    assert problems(state) == {}
