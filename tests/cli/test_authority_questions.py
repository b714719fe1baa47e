"""`gpuaas whoami`, `can`, `history`, `explain`: who somebody is, what he may, whose it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from reconciler.cli.can import can
from reconciler.cli.explain import explain
from reconciler.cli.history import history
from reconciler.cli.whoami import whoami
from reconciler.devkit.signing import SigningKey
from reconciler.errors import Refused
from tests.cli.signed_state import (
    ADMIN,
    MORE_CORES,
    MORE_MEMORY,
    ONE,
    OPERATOR,
    PEOPLE,
    ROLES,
    SignedState,
    dumped,
    identity,
)
from tests.cli.state_repo import Done, run
from tests.core.builders import INSTANCE_FILE


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SignedState:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    monkeypatch.chdir(tmp_path)
    return SignedState(tmp_path)


def signs_with(state: SignedState, key: SigningKey) -> None:
    state.repo.git("config", "gpg.format", "ssh")
    state.repo.git("config", "user.signingKey", f"{key.private}.pub")


def may(state: SignedState, *args: str) -> Done:
    return run(can, *args, "--repo", state.folder)


# --- whoami --------------------------------------------------------------------------------------


def test_who_signs_here(state: SignedState) -> None:
    signs_with(state, state.keys[OPERATOR])
    done = run(whoami, "--repo", state.folder)
    assert done.code == 0
    assert done.output.splitlines() == [
        "user/olga  Olga",
        f"  ssh {state.keys[OPERATOR].fingerprint} (user.signingKey)",
        "  key olga-1  valid  ← this one",
        "  may apps.instance.create, apps.instance.delete, apps.instance.read, "
        "apps.instance.suspend, apps.instance.update in acme/research: "
        "RoleBinding/operators (app-operator)",
    ]


@pytest.mark.parametrize("form", ["{key}.pub", "{key}", "key::{line}", "{line}"])
def test_every_way_to_tell_git_the_key(state: SignedState, form: str) -> None:
    key = state.keys[OPERATOR]
    state.repo.git("config", "gpg.format", "ssh")
    value = form.format(key=key.private, line=key.public_line)
    state.repo.git("config", "user.signingKey", value)
    assert run(whoami, "--repo", state.folder).output.startswith("user/olga  Olga\n")


def test_a_key_that_nobody_has_says_what_to_add(state: SignedState) -> None:
    signs_with(state, state.keys["eve"])
    done = run(whoami, "--repo", state.folder)
    assert done.code == 1
    line = " ".join(state.keys["eve"].public_line.split()[:2])
    assert done.output.splitlines()[:2] == [
        "error: signer_unknown: a commit made now is signed with "
        f"{state.keys['eve'].fingerprint}, a key that no Identity has",
        "To be let in, have somebody with platform.iam.edit add to platform/iam/:",
    ]
    assert f"        public_key: {line}" in done.output.splitlines()
    json = run(whoami, "--repo", state.folder, "--format", "json")
    assert (json.code, json.document["actor"]) == (1, None)
    assert json.document["code"] == "signer_unknown"


def test_a_key_that_ended(state: SignedState) -> None:
    key = state.keys[OPERATOR].identity_key("olga-1") | {"valid_until": "2024-01-01T00:00:00Z"}
    people = [identity(ADMIN, state.keys[ADMIN]), identity(OPERATOR, state.keys[OPERATOR])]
    people[1]["spec"]["keys"] = [key]
    state.commit(ADMIN, {PEOPLE: dumped(*people)})
    signs_with(state, state.keys[OPERATOR])
    done = run(whoami, "--repo", state.folder)
    assert done.code == 1
    assert done.output.startswith(
        "error: key_expired: a commit made now is signed with olga-1 of olga, which was valid "
        "until 2024-01-01T00:00:00Z"
    )
    before = run(whoami, "--repo", state.folder, "--ref", "main", "--format", "json")
    assert before.document["keys"] == [
        {
            "id": "olga-1",
            "state": "valid",
            "valid_from": None,
            "valid_until": None,
            "revoked": False,
        }
    ]


def test_who_signed_a_commit(state: SignedState) -> None:
    revision = state.edit(OPERATOR, *MORE_MEMORY)
    done = run(whoami, "--repo", state.folder, "--commit", "HEAD")
    assert done.output.splitlines()[:2] == ["user/olga  Olga", f"  signed commit {revision[:12]}"]
    state.edit("", INSTANCE_FILE, "memory_gib: 5", "memory_gib: 6")
    done = run(whoami, "--repo", state.folder, "--commit", "HEAD")
    assert (done.code, "commit_unsigned" in done.output) == (1, True)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({}, "key_not_set: Git is not told which key to sign with (git config user.signingKey"),
        ({"gpg.format": "x509"}, "key_unsupported: gpg.format is x509"),
        ({"gpg.format": "ssh", "user.signingKey": "/none.pub"}, "/none.pub: key_unreadable"),
    ],
)
def test_a_git_that_can_not_say(state: SignedState, config: dict[str, str], says: str) -> None:
    for name, value in config.items():
        state.repo.git("config", name, value)
    with pytest.raises(Refused) as refused:
        run(whoami, "--repo", state.folder)
    assert says in str(refused.value)


# --- can -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "code"),
    [
        (("olga", "apps.instance.create", "acme/research"), 0),
        (("olga", "apps.instance.create", "acme"), 1),
        (("olga", "apps.instance.create"), 1),
        (("ada", "platform.iam.edit", "platform"), 0),
        (("olga", "update", ONE), 0),
        (("olga", "update", "acme/research/one"), 0),
        (("olga", "delete", ONE), 0),
        (("olga", "create", "acme/research/two"), 0),
        (("olga", "create", "acme/lab/two"), 1),
        (("olga", "update", "Node/gpu-1"), 1),
        (("olga", "create", "Identity/x"), 1),
        (("ada", "create", "Identity/x"), 0),
        (("ada", "create", "RoleBinding/x"), 0),
        (("acme/research/bot", "update", ONE), 0),
        (("acme/research/bot", "delete", "AppInstance/acme/lab/x"), 1),
        (("acme/research/bot", "update", "Node/gpu-1"), 1),
    ],
)
def test_may_he(state: SignedState, asked: tuple[str, ...], code: int) -> None:
    assert may(state, *asked).code == code


def test_why_not_and_who_can(state: SignedState) -> None:
    done = may(state, "olga", "update", ONE, "Node/gpu-1")
    assert done.code == 1
    assert done.output.splitlines() == [
        "yes  update AppInstance/acme/research/one",
        "no   update Node/gpu-1",
        "     change_not_allowed: user/olga may not change Node/gpu-1: fleet.node.edit is missing "
        "on the platform",
        "     roles with fleet.node.edit: platform-admin",
        "     who can: user/ada",
        "2 objects, 1 of them not by user/olga",
    ]
    (answer,) = may(state, "olga", "fleet.node.edit", "--format", "json").document["answers"]
    assert (answer["may"], answer["who_can"]) == (False, ["user/ada"])


def test_all_that_differs(state: SignedState) -> None:
    for path, text in state.edited(*MORE_MEMORY).items():
        (state.folder / path).write_text(text)
    assert (
        may(state, "olga", "--diff", "HEAD").output == "yes  change AppInstance/acme/research/one\n"
    )
    state.edit(ADMIN, *MORE_CORES)
    done = may(state, "olga", "--diff", "main")
    assert done.code == 1
    assert "no   change Node/gpu-1" in done.output.splitlines()
    assert may(state, "ada", "--diff", "main", "--ref", "topic").code == 0
    assert may(state, "olga", "--diff", "HEAD").output == "Nothing differs from HEAD.\n"


def test_what_can_not_be_read_is_nobodys(state: SignedState) -> None:
    (state.folder / INSTANCE_FILE).write_text("kind: [\n")
    done = may(state, "ada", "--diff", "HEAD")
    assert done.code == 1
    assert "     unread_change: AppInstance/acme/research/one can't be read on both sides" in (
        done.output
    )


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (("ada",), "name a change, or pass --diff"),
        ((), "Missing argument 'ACTOR'"),
        (("ada", "update"), "update what?"),
        (("olg", "update", ONE), "no_such_identity: nobody is called olg (did you mean olga?)"),
        (("acme/research/bt", "update", ONE), "(did you mean acme/research/bot?)"),
        (("ada", "updte", ONE), "no_such_verb: neither a verb nor a permission: updte (did you"),
        (("ada", "apps.instance.mak"), "no_such_permission: there is no permission apps.instance"),
        (("ada", "apps.instance.create", "a/b/c"), "bad_scope: no scope: 'a/b/c'"),
        (("ada", "update", "Nod/x"), "did you mean Node/x?"),
    ],
)
def test_what_can_not_be_asked(state: SignedState, asked: tuple[str, ...], says: str) -> None:
    done = CliRunner().invoke(can, [*asked, "--repo", str(state.folder)], standalone_mode=False)
    assert done.return_value == 2
    assert says in " ".join(done.output.split())


# --- whose it was --------------------------------------------------------------------------------


def test_history_says_who_signed(state: SignedState) -> None:
    state.edit(OPERATOR, *MORE_MEMORY, "One")
    state.edit("eve", INSTANCE_FILE, "memory_gib: 5", "memory_gib: 6", "Two")
    state.edit("", INSTANCE_FILE, "memory_gib: 6", "memory_gib: 7", "Three")
    state.commit(ADMIN, {PEOPLE: dumped(identity(ADMIN, state.keys[ADMIN])), ROLES: None})
    done = run(history, ONE, "--repo", state.folder)
    told = [line.rpartition("  ")[2] for line in done.output.splitlines() if "Ada Admin" in line]
    assert told == [
        "(unsigned)",
        "(signed, but signer_unknown)",
        "(signed by user/olga)",
        "(signed by user/ada)",
    ]
    found = run(history, ONE, "--repo", state.folder, "--format", "json").document["commits"]
    assert [(one["signature"], one["signed_by"]) for one in found] == [
        ("absent", None),
        ("signer_unknown", None),
        ("verified", "user/olga"),
        ("verified", "user/ada"),
    ]


def test_explain_a_file_of_a_repo_alone(state: SignedState) -> None:
    done = run(explain, PEOPLE, "--repo", state.folder)
    assert done.output.splitlines() == [
        PEOPLE,
        "  no control plane state here: this is what the state repo alone comes to",
        "Identity/ada",
        "Identity/olga",
    ]
    objects: Any = run(explain, PEOPLE, "--repo", state.folder, "--format", "json").document
    assert [one["object"] for one in objects["objects"]] == ["Identity/ada", "Identity/olga"]
