"""`gpuaas vault`, at a real Vault: what it says, its exit codes, and where tokens never are."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from reconciler.cli.vault import vault as command
from reconciler.errors import GpuaasError, Refused, Transient
from tests.contract.vault_prefixes import Vault, VaultPrefix, vault_prefix

Run = Callable[..., Result]


@pytest.fixture
def empty(vault: Vault) -> Iterator[VaultPrefix]:
    with vault_prefix(vault, made=False) as found:
        yield found


@pytest.fixture
def run(empty: VaultPrefix, monkeypatch: pytest.MonkeyPatch) -> Run:
    """As somebody whose VAULT_TOKEN may do anything."""
    monkeypatch.setenv("GPUAAS_VAULT_ADDRESS", empty.vault.address)
    monkeypatch.setenv("GPUAAS_VAULT_PREFIX", empty.layout.prefix)
    monkeypatch.setenv("VAULT_TOKEN", empty.vault.root_token)

    def run(*arguments: str) -> Result:
        done = CliRunner().invoke(command, arguments, standalone_mode=False)
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        assert empty.vault.root_token not in done.output
        return done

    return run


def test_plan_bootstrap_plan(empty: VaultPrefix, run: Run) -> None:
    name = empty.layout.prefix
    before = run("plan")
    assert before.return_value == 2
    lines = before.output.splitlines()
    assert lines[0] == f"{empty.vault.address}, everything named {name}-…"
    assert lines[1:5] == [
        f"+ policy {name}-{c}" for c in ("runtime", "operator", "ci", "bootstrap")
    ]
    assert lines[-1] == f"{len(empty.wanted)} to create"

    made = run("bootstrap")
    assert made.return_value == 0
    assert made.output == "\n".join(lines[:-1]) + "\n"
    assert run("bootstrap").output == lines[0] + "\nnothing to do\n"
    after = run("plan")
    assert (after.return_value, after.output) == (0, lines[0] + "\nall is as it should be\n")


def test_drift_is_shown_field_by_field_and_put_right(empty: VaultPrefix, run: Run) -> None:
    run("bootstrap")
    name, approle = empty.layout.prefix, empty.layout.approle_mount
    empty.as_root("POST", f"auth/{approle}/role/{name}-ci", {"token_ttl": "30m"})
    empty.as_root("POST", f"auth/{approle}/role/evil", {"token_policies": "root"})
    key = f"{empty.layout.transit_mount}/keys/tasks/config"
    empty.as_root("POST", key, {"exportable": True})
    path = f"sys/policies/acl/{name}-ci"
    text = str(empty.as_root("GET", path).data["policy"])
    widened = (
        text.replace('["list"]', '["list", "read"]') + 'path "sys/*" { capabilities = ["sudo"] }'
    )
    empty.as_root("POST", path, {"policy": widened})

    shown = run("plan")
    assert shown.return_value == 2
    assert shown.output.splitlines()[1:] == [
        f"~ policy {name}-ci",
        "    sys/*: sudo → (none)",
        f"    {empty.layout.kv_mount}/metadata/ci/*: list, read → list",
        "! key tasks",
        "    exportable: true → false",
        "    it can't be changed where it is; if it was not you, take it for compromised: rotate "
        "what depends on it",
        f"~ role {name}-ci",
        "    token_ttl: 1800s → 900s",
        "? role evil",
        "    if nobody knows it, remove it with Vault's own tools",
        "2 to change, 1 for a person, 1 not declared",
    ]
    assert run("bootstrap").return_value == 2
    document = json.loads(run("plan", "--format", "json").output)
    assert document["format"] == "gpuaas.dev/vault-plan/v1"
    assert [(c["op"], c["kind"], c["name"]) for c in document["changes"]] == [
        ("remake", "key", "tasks"),
        ("foreign", "role", "evil"),
    ]
    assert document["changes"][0]["fields"] == [
        {"field": "exportable", "found": "true", "wanted": "false"}
    ]


def test_logins_are_handed_out_into_private_files(
    empty: VaultPrefix, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "logins"
    done = run("bootstrap", "--issue", "runtime", "--issue", "bootstrap", "--out", str(folder))
    assert done.return_value == 0
    names = sorted(file.name for file in folder.iterdir())
    assert names == [
        "bootstrap-role-id",
        "bootstrap-secret-id",
        "runtime-role-id",
        "runtime-secret-id",
    ]
    for file in folder.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert file.read_text().strip() not in done.output
    assert f"login of runtime: {folder}/runtime-role-id {folder}/runtime-secret-id" in done.output

    # From now on no token of a person is needed to look, nor to mend.
    monkeypatch.delenv("VAULT_TOKEN")
    monkeypatch.setenv("GPUAAS_VAULT_ROLE_ID_FILE", str(folder / "runtime-role-id"))
    monkeypatch.setenv("GPUAAS_VAULT_SECRET_ID_FILE", str(folder / "runtime-secret-id"))
    assert run("plan").return_value == 0
    with pytest.raises(Refused, match="who are you to Vault"):
        run("bootstrap")
    monkeypatch.setenv("GPUAAS_VAULT_BOOTSTRAP_ROLE_ID_FILE", str(folder / "bootstrap-role-id"))
    monkeypatch.setenv("GPUAAS_VAULT_BOOTSTRAP_SECRET_ID_FILE", str(folder / "bootstrap-secret-id"))
    assert "nothing to do" in run("bootstrap").output
    again = run("bootstrap", "--issue", "ci", "--out", str(folder))
    assert again.return_value == 0
    with pytest.raises(Refused, match="custody_forbidden"):
        run("bootstrap", "--issue", "bootstrap", "--out", str(folder))


def test_a_token_comes_from_a_file_or_the_environment_and_never_as_an_argument(
    empty: VaultPrefix, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VAULT_TOKEN", "hvs.nobody-at-all")
    with pytest.raises(Refused, match="custody_forbidden") as refused:
        run("plan")
    assert "nobody-at-all" not in str(refused.value)
    file = tmp_path / "token"
    file.write_text(empty.vault.root_token + "\n")
    file.chmod(0o600)
    assert run("plan", "--token-file", str(file)).return_value == 2
    file.chmod(0o644)
    assert "chmod 600" in run("plan", "--token-file", str(file)).output
    for command_ in command.commands.values():
        assert "--token" not in [name for option in command_.params for name in option.opts]


def test_what_is_missing_is_asked_for(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def refusal(*arguments: str) -> GpuaasError:
        with pytest.raises(GpuaasError) as error:
            run(*arguments)
        return error.value

    monkeypatch.setenv("GPUAAS_VAULT_ADDRESS", "http://127.0.0.1:1")
    away = refusal("plan")
    assert isinstance(away, Transient)
    assert away.code == "custody_unreachable"
    monkeypatch.delenv("VAULT_TOKEN")
    assert refusal("plan").code == "no_vault_token"
    assert "VAULT_TOKEN" in refusal("bootstrap").hint
    monkeypatch.delenv("GPUAAS_VAULT_ADDRESS")
    assert refusal("plan").code == "vault_not_configured"
    assert "GPUAAS_VAULT_ADDRESS" in refusal("plan").hint
