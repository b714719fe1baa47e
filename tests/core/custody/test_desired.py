"""What a Vault has to hold: whole, in order, and with no more rights than a class needs."""

from __future__ import annotations

import pytest

from reconciler.core.custody.desired import SIGNING_KEYS, desired
from reconciler.core.custody.diff import policy_words
from reconciler.core.custody.grants import ISSUED_BY_BOOTSTRAP, Rule, policy_text, rules
from reconciler.core.custody.layout import CLASSES, VaultLayout
from reconciler.core.custody.paths import CLASS_OF, SecretClass
from reconciler.core.custody.things import create_steps, read_parameters, read_path
from reconciler.ports import ARTIFACT_KEY, KEY_KINDS, REGISTRY_KEY, TASK_KEY
from reconciler.server.tokens import TOKEN_KEY
from reconciler.use_cases.audit import AUDIT_KEY
from reconciler.use_cases.saved_plan import PLAN_KEY
from reconciler.use_cases.snapshot import SNAPSHOT_KEY

LAYOUT = VaultLayout("acme-east")
THINGS = desired(LAYOUT, 86400.0)


def rules_of(secret_class: SecretClass) -> dict[str, Rule]:
    return {rule.path: rule for rule in rules(LAYOUT, secret_class, THINGS)}


def test_every_key_that_is_signed_with_is_declared() -> None:
    others = {TOKEN_KEY, AUDIT_KEY, PLAN_KEY, SNAPSHOT_KEY}
    assert set(SIGNING_KEYS) == {TASK_KEY, ARTIFACT_KEY, REGISTRY_KEY} | others
    assert {name: SIGNING_KEYS[name] for name in KEY_KINDS} == KEY_KINDS


def test_things_have_names_of_their_own_and_come_after_what_they_are_in() -> None:
    keys = [thing.key for thing in THINGS]
    assert len(keys) == len(set(keys))
    for index, thing in enumerate(THINGS):
        if thing.within:
            assert ("mount", thing.within) in keys[:index]
        if thing.kind == "role":
            assert ("policy", thing.fields["token_policies"]) in keys[:index]
            assert ("auth", LAYOUT.approle_mount) in keys[:index]


def test_everything_with_a_name_of_its_own_is_under_the_prefix() -> None:
    for thing in THINGS:
        if thing.kind in ("policy", "mount", "auth", "role"):
            assert thing.name.startswith("acme-east-")


def test_no_key_may_leave_or_be_deleted() -> None:
    for thing in THINGS:
        if thing.kind == "key":
            for field in ("exportable", "allow_plaintext_backup", "deletion_allowed"):
                assert thing.fields[field] == "false"


@pytest.mark.parametrize("secret_class", CLASSES)
def test_a_class_reaches_its_own_prefix_and_its_own_token_only(secret_class: SecretClass) -> None:
    for path, rule in rules_of(secret_class).items():
        assert "sudo" not in rule.capabilities
        assert "root" not in rule.capabilities
        assert path.startswith(
            (
                "acme-east-",
                "auth/acme-east-approle/",
                "auth/token/",
                "sys/policies/acl/acme-east-",
                "sys/mounts/acme-east-",
                "sys/mounts/auth/acme-east-approle/",
                "sys/wrapping/",
            )
        ), path
        assert "*" not in path.removesuffix("/*"), path
        if path.startswith("auth/token/"):
            assert path.endswith("-self")


@pytest.mark.parametrize("secret_class", CLASSES)
def test_a_glob_never_reaches_beyond_the_words_of_secrets(secret_class: SecretClass) -> None:
    globs = [path for path in rules_of(secret_class) if path.endswith("/*")]
    assert all(path.startswith(f"{LAYOUT.kv_mount}/") for path in globs)


def test_bootstrap_reads_no_secret_and_signs_nothing() -> None:
    for path in rules_of("bootstrap"):
        assert not path.startswith(f"{LAYOUT.kv_mount}/data")
        assert not path.startswith(f"{LAYOUT.transit_mount}/sign")
        assert not path.startswith(f"{LAYOUT.pki_mount}/sign")


def test_bootstrap_writes_exactly_what_is_declared() -> None:
    found = rules_of("bootstrap")
    for thing in THINGS:
        for step in create_steps(LAYOUT, thing):
            own = thing.name == LAYOUT.policy("bootstrap")
            if own or step.path.startswith("sys/auth/"):
                assert step.path not in found or "update" not in found[step.path].capabilities
                continue
            for name, text in step.parameters.items():
                assert text in found[step.path].allowed[name]
    written = [rule for rule in found.values() if "create" in rule.capabilities]
    assert written
    assert all(values for rule in written for values in rule.allowed.values())


def test_bootstrap_sends_all_of_a_thing_to_write_it_and_to_read_it_where_it_writes() -> None:
    found = rules_of("bootstrap")
    for thing in THINGS:
        rule = found[read_path(LAYOUT, thing)]
        sent = read_parameters(LAYOUT, thing)
        if rule.whole:
            assert {name: (text,) for name, text in sent.items()} == rule.allowed
    parts = {path for path, rule in found.items() if rule.allowed and not rule.whole}
    policies = {LAYOUT.policy(name) for name in CLASSES if name != "bootstrap"}
    assert parts == {f"sys/policies/acl/{name}" for name in policies}


def test_a_policy_that_wants_a_thing_whole_says_so() -> None:
    text = policy_text([Rule("p/config", ("update",), {"b": ("2",), "a": ()}, whole=True)])
    assert text == (
        'path "p/config" {\n'
        '  capabilities = ["update"]\n'
        '  required_parameters = ["a", "b"]\n'
        "  allowed_parameters = {\n"
        '    "a" = []\n'
        '    "b" = ["2"]\n'
        "  }\n"
        "}\n"
    )


def test_a_control_plane_asks_the_ca_for_a_name_a_key_and_a_life_and_nothing_else() -> None:
    for role in ("agent", "server"):
        rule = rules_of("runtime")[LAYOUT.pki_sign_path(role)]
        assert sorted(rule.allowed) == ["common_name", "csr", "format", "ttl"]


def test_bootstrap_hands_out_wrapped_logins_and_none_of_its_own() -> None:
    found = rules_of("bootstrap")
    for secret_class in CLASSES:
        path = LAYOUT.secret_id_path(secret_class)
        assert (path in found) == (secret_class in ISSUED_BY_BOOTSTRAP)
        assert path not in found or (found[path].wrapped and found[path].bare)
    assert "bootstrap" not in ISSUED_BY_BOOTSTRAP


def test_only_ci_signs_artifacts() -> None:
    path = LAYOUT.sign_path("artifacts")
    assert [name for name in CLASSES if path in rules_of(name)] == ["ci"]


def test_operators_see_that_a_value_is_there_and_not_what_it_says() -> None:
    for path, rule in rules_of("operator").items():
        own = f"{LAYOUT.kv_mount}/data/operator/*"
        if path.startswith(f"{LAYOUT.kv_mount}/data/") and path != own:
            assert "read" not in rule.capabilities


def test_no_class_has_a_path_twice() -> None:
    for thing in THINGS:
        if thing.kind == "policy":
            words = policy_words(thing.fields["policy"])
            paths = [words[i + 1] for i, word in enumerate(words) if word == "path"]
            assert len(paths) == len(set(paths))


def test_a_secret_lies_under_its_class() -> None:
    assert LAYOUT.kv_data_path("projects/a/b/c") == "acme-east-kv/data/runtime/projects/a/b/c"
    assert LAYOUT.kv_metadata_path("ci/x") == "acme-east-kv/metadata/ci/ci/x"
    assert LAYOUT.creation_path("joins/n/1") == "acme-east-kv/data/bootstrap/joins/n/1"
    assert {LAYOUT.secret_name(f"{word}/x") for word in CLASS_OF} == {
        f"{secret_class}/{word}/x" for word, secret_class in CLASS_OF.items()
    }
    for path in ("nobody/x", "", "/x", "Projects/x"):
        assert LAYOUT.kv_data_path(path) is None


def test_the_longest_certificate_is_what_the_settings_say() -> None:
    found = {t.name: t.fields["max_ttl"] for t in desired(LAYOUT, 90.5) if t.kind == "pki role"}
    assert found == {"agent": "91s", "server": "91s"}
