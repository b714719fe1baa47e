"""`gpuaas service-account`: what is written, what stays as it was, what is refused."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from reconciler.cli.service_account import create, delete, disable, enable, list_, rotate
from reconciler.cli.validate import validate
from reconciler.devkit.signing import SigningKey
from reconciler.errors import Refused
from tests.cli.signed_state import SignedState, binding, dumped
from tests.cli.state_repo import Done, run

CI = "acme/research/ci"
FILE = "tenants/acme/projects/research/service-accounts/ci.yaml"
WRITTEN = """# The pipeline of the assistant.
apiVersion: gpuaas.dev/v1
kind: ServiceAccount
metadata: {{name: ci}}
spec:
  roles: [viewer]   # for now
  public_keys:
    # From the old pipeline.
    - id: ci-1
      scheme: ed25519
      public_key: {hex}   # by hand
{more}  token_ttl_s: 600  # short
"""
HEX = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SignedState:
    monkeypatch.chdir(tmp_path)
    return SignedState(tmp_path)


def written(state: SignedState, more: str = "") -> str:
    text = WRITTEN.format(hex=HEX, more=more)
    (state.folder / FILE).write_text(text)
    return text


def do(command: Any, state: SignedState, *args: str | Path) -> Done:
    return run(command, *args, "--repo", state.folder)


def refusal(command: Any, state: SignedState, *args: str | Path) -> str:
    with pytest.raises(Refused) as refused:
        do(command, state, *args)
    return str(refused.value)


def test_create_with_a_new_key(state: SignedState, tmp_path: Path) -> None:
    private = tmp_path / "ci.pem"
    done = do(create, state, CI, "--role", "app-operator", "--generate-key", private)
    assert done.code == 0
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    assert load_pem_private_key(private.read_bytes(), None)
    assert "PRIVATE" not in done.output + (state.folder / FILE).read_text()
    assert done.output.splitlines() == [
        f"wrote {state.folder / FILE}: roles app-operator, key ci-1",
        f"wrote {private}: its private key, readable by you alone",
        "Review, commit and sign it; until that is merged nothing changes.",
    ]
    assert run(validate, state.folder).code == 0


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa"])
def test_create_with_a_key_of_ones_own(state: SignedState, tmp_path: Path, kind: str) -> None:
    key = SigningKey.ssh(tmp_path / "mine", "ci", kind)
    public = f"{key.private}.pub"
    more = ("--display-name", "CI: of #1", "--key", public, "--key-id", "mine")
    assert do(create, state, CI, "--role", "viewer", *more).code == 0
    found = do(list_, state, "--format", "json").document["accounts"]
    (account,) = (one for one in found if one["account"] == CI)
    assert (account["display_name"], account["roles"]) == ("CI: of #1", ["viewer"])
    assert [key["id"] for key in account["keys"]] == ["mine"]
    assert run(validate, state.folder).code == 0


def test_rotate_leaves_the_rest_as_it_was(state: SignedState, tmp_path: Path) -> None:
    before = written(state)
    done = do(rotate, state, CI, "--generate-key", tmp_path / "ci-2.pem", "--overlap", "7d")
    after = (state.folder / FILE).read_text()
    new = [line for line in after.splitlines() if line not in before.splitlines()]
    assert [line for line in before.splitlines() if line not in after.splitlines()] == []
    assert new[0].startswith('      valid_until: "20')
    assert new[1:4] == [
        '    - id: "ci-2"',
        "      public_key: |",
        "        -----BEGIN PUBLIC KEY-----",
    ]
    assert "key ci-1 ends at 20" in done.output
    assert run(validate, state.folder).code == 0


def test_a_key_that_ends_sooner_or_is_revoked_stays(state: SignedState, tmp_path: Path) -> None:
    written(state, '      valid_until: "2020-01-01T00:00:00Z"\n')
    done = do(rotate, state, CI, "--generate-key", tmp_path / "k", "--format", "json")
    assert done.document["changes"] == ["new key ci-2"]


def test_disable_and_enable(state: SignedState) -> None:
    before = written(state)
    assert do(disable, state, CI).code == 0
    assert (state.folder / FILE).read_text() == before + "  disabled: true\n"
    assert "nothing_to_change: ServiceAccount/acme/research/ci is disabled already" in refusal(
        disable, state, CI
    )
    assert do(enable, state, CI).code == 0
    assert (state.folder / FILE).read_text() == before + "  disabled: false\n"


def test_a_file_that_can_not_be_edited_in_place(state: SignedState, tmp_path: Path) -> None:
    """Flow style: that document is written anew, and only that one."""
    one = (
        "{apiVersion: gpuaas.dev/v1, kind: ServiceAccount, metadata: {name: ci}, "
        "spec: {roles: [viewer]}}\n"
    )
    (state.folder / FILE).write_text(one)
    do(rotate, state, CI, "--generate-key", tmp_path / "k")
    assert (state.folder / FILE).read_text().startswith("apiVersion: gpuaas.dev/v1\nkind: Serv")
    assert run(validate, state.folder).code == 0


def test_delete_says_who_names_it(state: SignedState) -> None:
    written(state)
    role = binding("ci", "nobody", "viewer", {"project": "acme/research"})
    role["spec"]["subjects"] = [{"service_account": CI}]
    (state.folder / "platform/iam/ci.yaml").write_text(dumped(role))
    done = do(delete, state, CI)
    assert not (state.folder / FILE).exists()
    assert done.output.splitlines()[:2] == [
        f"removed from {state.folder / FILE}: deleted",
        "Still named by RoleBinding/ci: change these too",
    ]


def test_list(state: SignedState) -> None:
    written(state)
    do(disable, state, CI)
    assert do(list_, state).output.splitlines() == [
        "acme/research/bot  app-operator  no key",
        "acme/research/ci  viewer (disabled)  ci-1 valid",
    ]


def test_what_is_refused(state: SignedState, tmp_path: Path) -> None:
    written(state)
    role, new = ("--role", "viewer"), ("--generate-key", tmp_path / "new.pem")
    assert "account_exists: ServiceAccount/acme/research/ci is there already (gpuaas service-" in (
        refusal(create, state, CI, *role, *new)
    )
    assert not (tmp_path / "new.pem").exists()
    assert "bad_account: no name of an account: 'ci'" in refusal(disable, state, "ci")
    said = refusal(disable, state, "acme/research/cj")
    assert "no_such_account: ServiceAccount/acme/research/cj is not in this checkout (did" in said
    said = refusal(rotate, state, CI, *new, "--key-id", "ci-1")
    assert "key_id_taken: ServiceAccount/acme/research/ci has a key ci-1 already" in said
    inside = state.folder / "ci.pem"
    said = refusal(rotate, state, CI, "--generate-key", inside)
    assert "key_in_checkout: a private key in a checkout is soon" in said
    assert not inside.exists()
    said = refusal(create, state, "acme/research/Bad", *role)
    assert "Bad" in said


def test_a_private_key_is_never_written_over(state: SignedState, tmp_path: Path) -> None:
    written(state)
    private = tmp_path / "mine.pem"
    private.write_text("mine")
    said = refusal(rotate, state, CI, "--generate-key", private)
    assert "not_written: File exists (name a new file, outside of the state repo)" in said
    assert private.read_text() == "mine"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("ssh-rsa AAAA\n", "key_unreadable: no such public key is in there (an ed25519 or"),
        ("-----BEGIN PRIVATE KEY-----\n", "key_private: this is a private key (openssl pkey"),
    ],
)
def test_keys_that_no_account_can_have(
    state: SignedState, tmp_path: Path, text: str, says: str
) -> None:
    (tmp_path / "key").write_text(text)
    assert says in refusal(create, state, CI, "--role", "viewer", "--key", tmp_path / "key")


def test_a_link_that_leads_out_of_the_checkout(state: SignedState, tmp_path: Path) -> None:
    """Attempted: a commit that has the next one to run this write somewhere else."""
    (tmp_path / "elsewhere").mkdir()
    folder = state.folder / "tenants/acme/projects/research/service-accounts"
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()
    folder.symlink_to(tmp_path / "elsewhere")
    said = refusal(create, state, CI, "--role", "viewer")
    assert "not_written: a link in the checkout leads out of it" in said
    assert [*(tmp_path / "elsewhere").iterdir()] == []


def test_a_document_that_can_not_be_read(state: SignedState) -> None:
    (state.folder / FILE).write_text("kind: [ci\n")
    assert "account_unreadable: ServiceAccount/acme/research/ci can't be read" in refusal(
        disable, state, CI
    )
