"""A real Vault made as it has to be, and kept so: runs that break off, drift, and who mends it."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from reconciler.adapters.vault_admin import VaultAdmin
from reconciler.adapters.vault_http import Answer
from reconciler.core.custody.diff import Change
from reconciler.core.custody.things import Key
from reconciler.errors import Refused, Transient
from reconciler.use_cases.vault import bootstrap, differences, mend
from reconciler.wiring.vault import custody_watch, hand_out
from tests.contract.vault_prefixes import Vault, VaultPrefix, vault_prefix


@pytest.fixture
def prefix(vault: Vault) -> Iterator[VaultPrefix]:
    with vault_prefix(vault) as found:
        yield found


@pytest.fixture
def empty(vault: Vault) -> Iterator[VaultPrefix]:
    with vault_prefix(vault, made=False) as found:
        yield found


def test_a_second_run_finds_nothing_to_do(empty: VaultPrefix) -> None:
    first = bootstrap(empty.admin, empty.wanted)
    assert len(first.done) == len(empty.wanted)
    assert first.left == ()
    told: list[Change] = []
    again = bootstrap(empty.admin, empty.wanted, told.append)
    assert (again.done, again.left, told) == ((), (), [])


@pytest.mark.parametrize("secret_class", ["runtime", "bootstrap"])
def test_who_may_look_sees_that_all_is_well(prefix: VaultPrefix, secret_class: Any) -> None:
    assert differences(prefix.admin_of(secret_class), prefix.wanted) == ()


class Dies:
    """A client that dies after some writes, before or after the last one reached Vault."""

    def __init__(self, client: Any, writes: int, *, answer_lost: bool) -> None:
        self._client, self._left, self._answer_lost = client, writes, answer_lost

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def post(self, path: str, body: dict[str, Any], **more: Any) -> Answer:
        self._left -= 1
        if self._left < 0 or (self._left == 0 and not self._answer_lost):
            raise Transient("custody_unreachable", "gone")
        answer: Answer = self._client.post(path, body, **more)
        if self._left == 0:
            raise Transient("custody_unreachable", "gone")
        return answer


@pytest.mark.parametrize("answer_lost", [True, False])
def test_a_run_that_broke_off_anywhere_is_finished_by_the_next(
    empty: VaultPrefix, answer_lost: bool
) -> None:
    """Each run gets one write further than the one before, so that each write is the last once."""
    client = empty.client(empty.vault.root_token)
    writes_each = 1 if answer_lost else 2
    runs = 0
    while runs < 200:
        runs += 1
        dying: Any = Dies(client, writes_each, answer_lost=answer_lost)
        try:
            bootstrap(VaultAdmin(dying, empty.layout), empty.wanted)
        except Transient:
            continue
        break
    assert runs > len(empty.wanted)
    assert differences(empty.admin, empty.wanted) == ()
    issuers = empty.as_root("GET", f"{empty.layout.pki_mount}/issuers?list=true")
    assert len(issuers.data["keys"]) == 1


def test_the_root_is_as_declared_and_its_key_stays(prefix: VaultPrefix) -> None:
    found = prefix.as_root("GET", f"{prefix.layout.pki_mount}/cert/ca")
    made = x509.load_pem_x509_certificate(found.data["certificate"].encode())
    assert made.subject.rfc4514_string() == f"CN={prefix.layout.prefix} CA"
    assert isinstance(made.public_key(), ec.EllipticCurvePublicKey)
    assert made.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


DRIFTS: tuple[tuple[str, str, dict[str, Any], Key, str], ...] = (
    (
        "a policy is widened",
        "sys/policies/acl/P-runtime",
        {"policy": 'path "*" { capabilities = ["read", "sudo"] }'},
        ("policy", "P-runtime"),
        "policy",
    ),
    (
        "a role gets another policy",
        "auth/P-approle/role/P-ci",
        {"token_policies": ["P-ci", "P-runtime"]},
        ("role", "P-ci"),
        "token_policies",
    ),
    (
        "a login lasts longer",
        "auth/P-approle/role/P-operator",
        {"token_max_ttl": "720h"},
        ("role", "P-operator"),
        "token_max_ttl",
    ),
    (
        "a key may be deleted",
        "P-transit/keys/tasks/config",
        {"deletion_allowed": True},
        ("key", "tasks"),
        "deletion_allowed",
    ),
    (
        "a key rotates by itself",
        "P-transit/keys/tasks/config",
        {"auto_rotate_period": "24h"},
        ("key", "tasks"),
        "auto_rotate_period",
    ),
    (
        "values get into the audit log",
        "sys/mounts/P-kv/tune",
        {"audit_non_hmac_request_keys": "data"},
        ("mount", "P-kv"),
        "audit_non_hmac_request_keys",
    ),
    (
        "the login mount is listed",
        "sys/mounts/auth/P-approle/tune",
        {"listing_visibility": "unauth"},
        ("auth", "P-approle"),
        "listing_visibility",
    ),
    (
        "all versions of secrets stay",
        "P-kv/config",
        {"max_versions": 99},
        ("kv config", "P-kv"),
        "max_versions",
    ),
    (
        "the list of revoked certificates is off",
        "P-pki/config/crl",
        {"disable": True},
        ("crl", "P-pki"),
        "disable",
    ),
    (
        "nothing is tidied",
        "P-pki/config/auto-tidy",
        {"enabled": False},
        ("tidy", "P-pki"),
        "enabled",
    ),
    (
        "agents may be servers",
        "P-pki/roles/agent",
        {"server_flag": True, "allow_any_name": True, "client_flag": True},
        ("pki role", "agent"),
        "server_flag",
    ),
)


def _named(prefix: VaultPrefix, text: str) -> str:
    return text.replace("P-", f"{prefix.layout.prefix}-")


def _edit(prefix: VaultPrefix, path: str, body: dict[str, Any]) -> None:
    def named(value: Any) -> Any:
        if isinstance(value, list):
            return [named(one) for one in value]
        return _named(prefix, value) if isinstance(value, str) else value

    prefix.as_root("POST", _named(prefix, path), {name: named(text) for name, text in body.items()})


def test_what_is_edited_behind_our_back_is_seen_by_a_login_that_reads(prefix: VaultPrefix) -> None:
    prefix.login("runtime")
    for what, path, body, key, field in DRIFTS[1:]:
        _edit(prefix, path, body)
        changes = differences(prefix.admin_of("runtime"), prefix.wanted)
        seen = {(c.key, drift.field) for c in changes for drift in c.fields if c.op == "change"}
        assert ((key[0], _named(prefix, key[1])), field) in seen, what


def test_the_bootstrap_class_mends_all_of_it(prefix: VaultPrefix) -> None:
    mender = prefix.admin_of("bootstrap")
    for _, path, body, _, _ in DRIFTS:
        _edit(prefix, path, body)
    for path in ("P-pki/roles/server", "auth/P-approle/role/P-ci", "sys/policies/acl/P-operator"):
        prefix.as_root("DELETE", _named(prefix, path))
    made = mend(mender, prefix.layout, prefix.wanted)
    assert len(made.done) == len({d[3] for d in DRIFTS} | {1, 2})
    assert made.left == ()
    assert differences(prefix.admin, prefix.wanted) == ()


def test_its_own_policy_and_login_are_not_its_to_write(prefix: VaultPrefix) -> None:
    own = prefix.layout.policy("bootstrap")
    mender = prefix.admin_of("bootstrap")
    _edit(prefix, f"auth/P-approle/role/{own}", {"token_max_ttl": "9h"})
    made = mend(mender, prefix.layout, prefix.wanted)
    assert made.done == ()
    assert [change.object for change in made.left] == [f"role {own}"]
    with pytest.raises(Refused) as refused:
        bootstrap(mender, prefix.wanted)
    assert refused.value.code == "custody_forbidden"
    assert f"/role/{own}" in refused.value.message
    assert [c.object for c in bootstrap(prefix.admin, prefix.wanted).done] == [f"role {own}"]


def test_what_nobody_declared_is_shown_and_stays(prefix: VaultPrefix) -> None:
    approle = prefix.layout.approle_mount
    _edit(prefix, f"auth/{approle}/role/evil", {"token_policies": "P-runtime"})
    _edit(prefix, "P-transit/keys/mine", {"type": "ed25519"})
    _edit(prefix, "P-pki/root/generate/internal", {"common_name": "Evil CA", "issuer_name": "evil"})
    _edit(prefix, "sys/policies/acl/P-evil", {"policy": 'path "x" { capabilities = ["read"] }'})
    left = bootstrap(prefix.admin, prefix.wanted).left
    assert [(c.op, c.kind) for c in left] == [
        ("foreign", "issuer"),
        ("foreign", "key"),
        ("foreign", "policy"),
        ("foreign", "role"),
    ]
    names = {change.name for change in left}
    assert {"evil", "mine", f"{prefix.layout.prefix}-evil"} <= names
    prefix.as_root("GET", f"auth/{approle}/role/evil")
    prefix.as_root("DELETE", f"sys/policies/acl/{prefix.layout.prefix}-evil")


def test_an_exported_key_and_another_ca_are_for_a_person(prefix: VaultPrefix) -> None:
    _edit(prefix, "P-transit/keys/tasks/config", {"exportable": True})
    prefix.as_root("DELETE", f"{prefix.layout.pki_mount}/root")
    _edit(prefix, "P-pki/root/generate/internal", {"common_name": "Evil CA", "ttl": "87600h"})
    made = bootstrap(prefix.admin, prefix.wanted)
    assert made.done == ()
    assert {(c.op, c.kind, c.fields[0].field) for c in made.left} == {
        ("remake", "key", "exportable"),
        ("remake", "root", "common_name"),
    }


def test_a_login_is_handed_out_wrapped_and_works_once(prefix: VaultPrefix, tmp_path: Path) -> None:
    folder = tmp_path / "logins"
    role_file, secret_file = hand_out(prefix.admin, "runtime", folder, 60.0)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(f.stat().st_mode) for f in (role_file, secret_file)} == {0o600}
    token = secret_file.read_text().strip()
    look = prefix.http.ask("POST", "sys/wrapping/lookup", body={"token": token})
    assert look.data["creation_path"] == prefix.layout.secret_id_path("runtime")

    watch = custody_watch(_with_files(prefix, role_file, secret_file))
    assert watch.check(leading=True, now_ms=0) == ()
    assert watch.findings() == ()
    assert secret_file.read_text().strip() != token

    secret_file.write_text(token + "\n")
    spent = custody_watch(_with_files(prefix, role_file, secret_file))
    spent.check(leading=True, now_ms=0)
    assert [f.code for f in spent.findings()] == ["custody_login_refused"]
    assert token not in str(spent.findings())


def _with_files(prefix: VaultPrefix, role_file: Path, secret_file: Path, **more: Any) -> Any:
    files = {"vault_role_id_file": role_file, "vault_secret_id_file": secret_file}
    return prefix.settings.model_copy(update={**files, **more})


def test_the_control_plane_sees_drift_and_mends_it_with_a_login_for_that(
    prefix: VaultPrefix, tmp_path: Path
) -> None:
    runtime = hand_out(prefix.admin, "runtime", tmp_path / "r", 60.0)
    seer = custody_watch(_with_files(prefix, *runtime))
    own = {"policy": 'path "nothing" { capabilities = ["read"] }'}
    _edit(prefix, "auth/P-approle/role/P-ci", {"token_policies": "P-runtime"})

    seer.check(leading=True, now_ms=0)
    (finding,) = seer.findings()
    assert (finding.code, finding.level) == ("vault_drift", "info")
    ci = prefix.layout.policy("ci")
    assert finding.object == f"role {ci}"
    assert f"token_policies: {prefix.layout.policy('runtime')} → {ci}" in finding.message
    assert "gpuaas vault bootstrap" in finding.hint

    # Its own right to look is taken away: that is told, and not taken for drift.
    _edit(prefix, "sys/policies/acl/P-runtime", own)
    seer.check(leading=True, now_ms=0)
    assert [f.code for f in seer.findings()] == ["custody_forbidden"]

    mender = hand_out(prefix.admin, "bootstrap", tmp_path / "b", 60.0)
    files = dict(
        zip(("vault_bootstrap_role_id_file", "vault_bootstrap_secret_id_file"), mender, strict=True)
    )
    both = custody_watch(_with_files(prefix, *runtime, **files))
    assert both.check(leading=False, now_ms=0) == ()
    entries = both.check(leading=True, now_ms=7)
    assert {entry.object for entry in entries} == {
        f"policy {prefix.layout.policy('runtime')}",
        f"role {ci}",
    }
    assert {(e.action, e.actor, e.at_ms) for e in entries} == {
        ("custody.vault.mended", "system", 7)
    }
    assert both.findings() == ()
    assert both.check(leading=True, now_ms=8) == ()


def test_a_token_that_is_none_is_told_so(prefix: VaultPrefix) -> None:
    for token in ("hvs.nobody", "x y"):
        with pytest.raises(Refused) as refused:
            differences(VaultAdmin(prefix.client(token), prefix.layout), prefix.wanted)
        assert refused.value.code in ("custody_forbidden", "custody_login_refused")
        assert token not in str(refused.value)


def test_a_write_vault_does_not_take_is_told_without_its_values(prefix: VaultPrefix) -> None:
    role = next(t for t in prefix.wanted if t.kind == "role")
    bad = type(role)(role.kind, role.name, {"token_ttl": "canary"}, role.within)
    with pytest.raises(Refused) as refused:
        prefix.admin.make(bad, Change("change", role.kind, role.name))
    assert refused.value.code == "vault_write_refused"
    assert "token_ttl" in refused.value.message
    assert "canary" not in str(refused.value)
