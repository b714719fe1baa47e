"""Who has an account, with which keys, and whether he may act with one: tables of cases."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.core.authority.accounts import (
    Account,
    AccountKey,
    Subject,
    account_of,
    audience,
    next_change_ms,
    standing,
)
from reconciler.core.authority.grants import FOREVER_MS
from reconciler.core.times import parse_time_ms
from tests.core.authority.trust_builders import (
    AT_MS,
    DEPLOYER,
    LATER,
    PAST,
    SOON,
    account,
    binding,
    ed25519,
    identity,
    ssh,
    stand_in,
    trust,
)

MACHINE, PERSON = Subject("service_account", DEPLOYER), Subject("user", "ada")


@pytest.mark.parametrize(
    ("text", "found", "home"),
    [
        (DEPLOYER, MACHINE, ("acme", "lab")),
        ("identity:ada", PERSON, ()),
        ("instance:a/b/c", Subject("instance", "a/b/c"), ("a", "b")),
        ("instance:a/b/c.d-1", Subject("instance", "a/b/c.d-1"), ("a", "b")),
    ],
)
def test_who_a_name_is(text: str, found: Subject, home: tuple[str, ...]) -> None:
    assert Subject.parse(text) == found
    assert str(found) == text
    assert found.home == home


@pytest.mark.parametrize(
    "text",
    ["", ":", "a", "a/b", "a/b/c/d", "a//c", "a/b/c.d", "identity:", "identity:a/b", "user:a",
     "instance:a/b", "instance:a/b/c.d.e", "instance:a/b/c.", "identity:ada ", "identity:ada\n",
     "A/b/c", "a/b/-c", "service_account:a/b/c", "identity:identity:ada", "../../../a"],
)  # fmt: skip
def test_what_is_no_name(text: str) -> None:
    assert Subject.parse(text) is None


@given(st.text(max_size=40))
def test_a_name_is_read_as_it_is_written(text: str) -> None:
    found = Subject.parse(text)
    assert found is None or str(found) == text


def test_whom_a_token_is_for() -> None:
    assert audience("prod") == "gpuaas/prod"
    assert audience("") == "gpuaas"


def keys_of(subject: Subject, *written: Any) -> dict[str, str]:
    found = account_of(subject, trust(*written))
    assert found is not None
    return {key.id: key.algorithm for key in found.keys.values()}


def test_a_service_account() -> None:
    found = account_of(MACHINE, trust(account(public_keys=[ed25519("k")], token_ttl_s=60)))
    assert found is not None
    assert (found.token_ttl_s, found.disabled) == (60, False)
    assert str(found.actor("k")) == f"service_account/{DEPLOYER}"
    assert keys_of(MACHINE, account(public_keys=[ed25519("k")])) == {"k": "EdDSA"}


def test_a_person_has_those_of_his_ssh_keys_that_fit() -> None:
    types = {
        "ed": "ssh-ed25519 AAAAx",
        "p256": "ecdsa-sha2-nistp256 AAAAx",
        "rsa": "ssh-rsa AAAAx a comment",
        "p384": "ecdsa-sha2-nistp384 AAAAx",
        "hardware": "sk-ssh-ed25519@openssh.com AAAAx",
    }
    keys = [{**ssh(name), "public_key": line} for name, line in types.items()]
    found = keys_of(PERSON, identity("ada", keys=keys))
    assert found == {"ed": "EdDSA", "p256": "ES256", "rsa": "RS256"}


@pytest.mark.parametrize(
    ("subject", "written"),
    [
        (MACHINE, []),
        (PERSON, []),
        (PERSON, [stand_in("ada", DEPLOYER)]),
        (PERSON, [identity("ada", "forge", vouches_for_author=True)]),
        (MACHINE, [account("acme/lab/other")]),
        (Subject("instance", DEPLOYER), [account()]),
        (Subject("instance", "ada"), [identity("ada")]),
    ],
)
def test_nobody(subject: Subject, written: list[Any]) -> None:
    assert account_of(subject, trust(*written)) is None


def test_a_key_id_that_stands_twice_is_nobodys() -> None:
    written = account(public_keys=[ed25519("k"), {**ed25519("x"), "id": "k"}, ed25519("y")])
    assert keys_of(MACHINE, written) == {"y": "EdDSA"}


REVOKED = {"revoked": {"at": LATER, "reason": "lost"}}
NO_DAY = "2026-02-31T00:00:00Z"


@pytest.mark.parametrize(
    ("key", "code"),
    [
        ({}, None),
        ({"valid_from": PAST, "valid_until": SOON}, None),
        ({"valid_from": "2026-06-01T00:00:00Z"}, None),
        ({"valid_until": "2026-06-01T00:00:00Z"}, "key_expired"),
        ({"valid_until": PAST}, "key_expired"),
        ({"valid_from": SOON}, "key_not_yet_valid"),
        ({"valid_from": NO_DAY}, "key_not_yet_valid"),
        ({"valid_until": NO_DAY}, "key_expired"),
        (REVOKED, "key_revoked"),
        ({**REVOKED, "valid_until": PAST}, "key_revoked"),
    ],
    ids=str,
)
def test_whether_a_key_counts_now(key: dict[str, Any], code: str | None) -> None:
    found = account_of(MACHINE, trust(account(public_keys=[ed25519("k", **key)])))
    assert found is not None
    problem = standing(found, "k", AT_MS)
    assert (problem.code if problem else None) == code
    assert problem is None or DEPLOYER in problem.message


def test_a_disabled_account_and_a_key_that_is_gone() -> None:
    account_ = Account(MACHINE, {"k": AccountKey("k", "EdDSA", "")}, disabled=True)
    problem = standing(account_, "k", AT_MS)
    assert problem is not None
    assert (problem.code, problem.message) == ("account_disabled", f"{DEPLOYER} is disabled")
    problem = standing(Account(MACHINE), "k", AT_MS)
    assert problem is not None
    assert (problem.code, problem.message) == ("key_unknown", f"{DEPLOYER} has this key no more")


def test_when_rights_change_by_themselves() -> None:
    bound = [
        binding(f"b-{number}", "viewer", "acme", "ada", **({"until": end} if end else {}))
        for number, end in enumerate((LATER, PAST, SOON, None, NO_DAY))
    ]
    found = trust(identity("ada"), *bound)
    assert next_change_ms(found, AT_MS) == parse_time_ms(SOON)
    assert next_change_ms(found, parse_time_ms(SOON)) == parse_time_ms(LATER)
    assert next_change_ms(found, parse_time_ms(LATER)) == FOREVER_MS
