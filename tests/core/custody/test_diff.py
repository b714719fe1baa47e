"""Drift in a Vault: what is the same in other words is none, and what differs is told."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.core.custody.desired import desired
from reconciler.core.custody.diff import (
    Change,
    FieldDrift,
    Found,
    compare,
    found_fields,
    is_foreign_policy,
    policy_words,
    text_of,
    to_apply,
    to_mend,
)
from reconciler.core.custody.layout import VaultLayout
from reconciler.core.custody.things import Key
from reconciler.core.custody.words import drift_lines, findings_of

LAYOUT = VaultLayout("gpuaas")
THINGS = desired(LAYOUT, 86400.0)
BY_KEY = {thing.key: thing for thing in THINGS}


def all_there() -> dict[Key, dict[str, str]]:
    return {thing.key: dict(thing.fields) for thing in THINGS}


def with_field(key: Key, field: str, text: str) -> dict[Key, dict[str, str]]:
    found = all_there()
    found[key][field] = text
    return found


def test_an_empty_vault_needs_everything_in_order() -> None:
    assert [(c.op, c.key) for c in compare(THINGS, {})] == [("create", t.key) for t in THINGS]


def test_a_whole_vault_needs_nothing() -> None:
    assert compare(THINGS, all_there()) == ()


@pytest.mark.parametrize(
    ("field", "value", "text"),
    [
        ("token_ttl", 3600, "3600s"),
        ("expiry", "72h", "259200s"),
        ("expiry", "1h30m0s", "5400s"),
        ("auto_rebuild_grace_period", "43200s", "43200s"),
        ("max_ttl", "one day", "one day"),
        ("delete_version_after", "0s", "0s"),
        ("token_num_uses", 0, "0"),
        ("exportable", False, "false"),
        ("enabled", True, "true"),
        ("token_policies", ["b", "a"], "a,b"),
        ("allowed_domains", None, ""),
        ("description", " x ", "x"),
        ("policy", " x\n", " x\n"),
    ],
)
def test_one_meaning_is_one_text(field: str, value: Any, text: str) -> None:
    assert text_of(field, value) == text


MOUNT: Mapping[str, Any] = {
    "type": "kv",
    "description": "gpuaas: secrets",
    "options": {"version": "2"},
    "config": {"default_lease_ttl": 0, "max_lease_ttl": 0, "force_no_cache": False},
}


def test_a_mount_is_read_as_it_is_declared() -> None:
    found = {**all_there(), ("mount", "gpuaas-kv"): found_fields("mount", MOUNT)}
    assert compare(THINGS, found) == ()


def test_a_mount_of_the_wrong_type_is_for_a_person_and_nothing_is_put_into_it() -> None:
    raw = {**MOUNT, "options": {"version": "1"}}
    found: Found = {("mount", "gpuaas-kv"): found_fields("mount", raw)}
    changes = [c for c in compare(THINGS, found) if "gpuaas-kv" in c.name]
    drift = FieldDrift("type", "kv", "kv-v2")
    assert changes == [Change("remake", "mount", "gpuaas-kv", (drift,))]


@pytest.mark.parametrize(
    ("key", "field", "text", "op"),
    [
        (("role", "gpuaas-ci"), "token_policies", "gpuaas-ci,root", "change"),
        (("role", "gpuaas-runtime"), "token_no_default_policy", "false", "change"),
        (("key", "tasks"), "deletion_allowed", "true", "change"),
        (("key", "tasks"), "exportable", "true", "remake"),
        (("key", "tasks"), "type", "ecdsa-p256", "remake"),
        (("root", "gpuaas-pki"), "common_name", "Evil CA", "remake"),
        (("pki role", "agent"), "allow_any_name", "true", "change"),
        (("mount", "gpuaas-kv"), "audit_non_hmac_request_keys", "value", "change"),
        (("mount", "gpuaas-kv"), "listing_visibility", "unauth", "change"),
        (("kv config", "gpuaas-kv"), "max_versions", "0", "change"),
    ],
)
def test_a_field_that_drifted_is_told_and_mended_where_it_can_be(
    key: Key, field: str, text: str, op: str
) -> None:
    (change,) = compare(THINGS, with_field(key, field, text))
    assert (change.op, change.key) == (op, key)
    assert change.fields == (FieldDrift(field, text, BY_KEY[key].fields[field]),)
    assert to_apply([change]) == ((change,) if op == "change" else ())
    (finding,) = findings_of([change])
    assert finding.code == "vault_drift"
    assert f"{field}: {text} → " in finding.message


def test_what_nobody_declared_is_shown_last_and_never_applied() -> None:
    found = {**all_there(), ("role", "evil"): {}, ("issuer", "123"): {}}
    changes = compare(THINGS, found)
    assert [(c.op, c.object) for c in changes] == [
        ("foreign", "issuer 123"),
        ("foreign", "role evil"),
    ]
    assert to_apply(changes) == ()
    assert {f.code for f in findings_of(changes)} == {"vault_foreign"}


def test_what_was_lost_is_not_made_anew_without_a_person() -> None:
    lost = {change.object for change in compare(THINGS, {})}
    mended = {change.object for change in to_mend(LAYOUT, THINGS, compare(THINGS, {}))}
    assert lost - mended == {
        "auth gpuaas-approle",
        "mount gpuaas-kv",
        "mount gpuaas-pki",
        "mount gpuaas-transit",
        "root gpuaas-pki",
        *(f"key {thing.name}" for thing in THINGS if thing.kind == "key"),
        "policy gpuaas-bootstrap",
        "role gpuaas-bootstrap",
    }


@pytest.mark.parametrize(
    ("name", "foreign"),
    [
        ("gpuaas-evil", True),
        ("gpuaas-runtime", False),
        ("gpuaas-east-runtime", False),
        ("gpuaasx", False),
        ("default", False),
    ],
)
def test_policies_of_another_control_plane_are_its_own(name: str, foreign: bool) -> None:
    assert is_foreign_policy(LAYOUT, name) is foreign


# --- policies ------------------------------------------------------------------------------------

POLICY = BY_KEY[("policy", "gpuaas-runtime")].fields["policy"]


@given(st.lists(st.sampled_from([" ", "\n", "\t", "# x\n", "// y {\n", "/* z */"]), max_size=4))
def test_white_space_and_comments_are_no_drift(between: list[str]) -> None:
    glue = " " + "".join(between) + " "
    assert policy_words(glue.join(policy_words(POLICY))) == policy_words(POLICY)


@pytest.mark.parametrize(
    "edited",
    [
        POLICY.replace('["read"]', '["read", "sudo"]', 1),
        POLICY.replace("gpuaas-kv/data/runtime/*", "gpuaas-kv/data/*"),
        POLICY + 'path "sys/*" { capabilities = ["root"] }\n',
        POLICY.replace('    "min_available_version" = []\n', "", 1),
        POLICY.replace('path "gpuaas-kv/config"', '# path "gpuaas-kv/config"'),
        POLICY.replace("gpuaas-kv/config", "gpuaas-kv/config # x"),
        "",
    ],
)
def test_another_grant_is_drift(edited: str) -> None:
    (change,) = compare(THINGS, with_field(("policy", "gpuaas-runtime"), "policy", edited))
    assert change.op == "change"


words = st.sampled_from(['path "a"', "{", "}", "[", "]", "=", ",", '"b c"', '"b  c"', "x", "#y\n"])


@given(st.lists(words), st.lists(words))
def test_policies_are_the_same_only_word_by_word(left: list[str], right: list[str]) -> None:
    kept = [[word for text in texts for word in _plain(text)] for texts in (left, right)]
    same = policy_words(" ".join(left)) == policy_words(" ".join(right))
    assert same == (kept[0] == kept[1])


def _plain(text: str) -> list[str]:
    if text.startswith("#"):
        return []
    return ["path", '"a"'] if text.startswith("path") else [text]


def test_of_a_policy_the_paths_are_told_that_differ() -> None:
    edited = POLICY.replace(
        'path "gpuaas-kv/config" {\n  capabilities = ["read"]\n}\n',
        'path "sys/raw/*" { capabilities = ["read", "sudo"] }\n',
    ).replace(
        'path "gpuaas-pki/revoke" {\n  capabilities = ["update"]',
        'path "gpuaas-pki/revoke" {\n  capabilities = ["create", "update"]',
    )
    assert drift_lines(FieldDrift("policy", edited, POLICY)) == (
        "gpuaas-kv/config: (none) → read",
        "gpuaas-pki/revoke: create, update → update",
        "sys/raw/*: read, sudo → (none)",
    )


@given(st.text())
def test_any_text_can_be_told_of(text: str) -> None:
    policy_words(text)
    assert all(len(line) < 500 for line in drift_lines(FieldDrift("x", text, "y")))
    drift_lines(FieldDrift("policy", text, POLICY))


# --- properties ----------------------------------------------------------------------------------

some_found = st.fixed_dictionaries(
    {},
    optional={
        thing.key: st.fixed_dictionaries(
            {name: st.sampled_from([text, "", "other"]) for name, text in thing.fields.items()}
        )
        for thing in THINGS
    },
)


@given(some_found)
def test_what_is_applied_is_what_is_left_out_the_next_time(
    found: dict[Key, dict[str, str]],
) -> None:
    changes = compare(THINGS, found)
    done = to_apply(changes)
    after = {key: dict(fields) for key, fields in found.items()}
    for change in done:
        wanted = BY_KEY[change.key].fields
        if change.op == "create":
            after[change.key] = dict(wanted)
        for drift in change.fields:
            after[change.key][drift.field] = wanted[drift.field]
    assert to_apply(compare(THINGS, after)) == ()
    stuck = [change for change in changes if change.op in ("remake", "foreign")]
    assert list(compare(THINGS, after)) == stuck


@given(some_found)
def test_the_same_vault_gives_the_same_changes_as_json(found: dict[Key, dict[str, str]]) -> None:
    again = dict(reversed(list(found.items())))
    assert compare(THINGS, found) == compare(THINGS, again)
    json.dumps([[vars(drift) for drift in change.fields] for change in compare(THINGS, found)])
