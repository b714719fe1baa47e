"""Whose a signed commit is, and what is told of one that is nobody's."""

from __future__ import annotations

from typing import Any

import pytest

from reconciler.core.authority.facts import Actor, CommitFacts, Signature
from reconciler.core.authority.grants import Trust, is_root
from reconciler.core.authority.signers import resolve_signer
from reconciler.core.names import Revision
from reconciler.core.problems import Problem
from tests.core.authority.chains import OPERATOR, key_of
from tests.core.authority.trust_builders import (
    AT,
    AT_MS,
    DEPLOYER,
    LATER,
    PAST,
    SOON,
    account,
    identity,
    ssh,
    stand_in,
    trust,
)

COMMIT = Revision("a" * 40)
REVOKED = {"at": PAST, "reason": "stolen"}


def signer(
    known: Trust, key: str = "ada", email: str = "", at_ms: int = AT_MS, **more: Any
) -> Actor | Problem:
    facts = CommitFacts(COMMIT, (), "Ada", email, at_ms, "Raise a limit\n\nbody")
    signature = Signature("good", key_of(key))
    return resolve_signer(signature, facts, known, at_ms, **more)


def ada(**key: Any) -> Trust:
    return trust(identity("ada", keys=[ssh("ada", **key)]))


def test_a_known_key_is_its_identity() -> None:
    assert signer(ada()) == Actor("user", "ada", "ada")


def test_an_openpgp_key_is_known_by_its_fingerprint() -> None:
    armored = (
        "-----BEGIN PGP PUBLIC KEY BLOCK-----\n\nmDMEZQ==\n-----END PGP PUBLIC KEY BLOCK-----\n"
    )
    key = {"id": "pgp", "type": "openpgp", "public_key": armored, "fingerprint": "AB" * 20}
    known = trust(identity("ada", keys=[key]))
    facts = CommitFacts(COMMIT, (), "Ada", "", AT_MS, "x")
    found = resolve_signer(Signature("good", "AB" * 20), facts, known, AT_MS)
    assert found == Actor("user", "ada", "pgp")


def test_the_comment_of_a_key_line_says_nothing() -> None:
    line = ssh("ada")["public_key"].removesuffix("ada") + "grace@elsewhere\n"
    assert signer(ada(public_key=line)) == Actor("user", "ada", "ada")


def test_an_admin_key_is_the_operator_while_it_counts() -> None:
    found = signer(trust(), "operator", admin_keys=(OPERATOR,))
    assert isinstance(found, Actor)
    assert is_root(found)
    assert found.key_id == key_of("operator")
    assert code(signer(trust(), "operator")) == "signer_unknown"
    assert code(signer(trust(), "operator", admin_keys=("no key",))) == "signer_unknown"


def code(found: Actor | Problem) -> str:
    assert isinstance(found, Problem), found
    return found.code


@pytest.mark.parametrize(
    ("known", "expected", "said"),
    [
        (trust(), "signer_unknown", "a key that no Identity has"),
        (ada(valid_until=AT), "key_expired", f"ada of ada, which was valid until {AT}"),
        (ada(valid_until="2026-02-31T00:00:00Z"), "key_expired", "2026-02-31"),
        (ada(valid_from=SOON), "key_not_yet_valid", f"valid from {SOON} on only"),
        (ada(valid_from="2026-02-31T00:00:00Z"), "key_not_yet_valid", "2026-02-31"),
        (ada(revoked=REVOKED), "key_revoked", "revoked: stolen"),
        (ada(revoked={"at": LATER, "reason": "x"}), "key_revoked", "ada of ada"),
        (trust(identity("ada", disabled=True)), "signer_disabled", "ada, who is disabled"),
        (
            trust(identity("ada"), identity("eve", keys=[ssh("ada", id="eve")])),
            "signer_ambiguous",
            "ada, listed more than once (of ada, eve)",
        ),
        (
            trust(identity("ada"), identity("eve", keys=[ssh("eve", id="ada")])),
            "signer_ambiguous",
            "listed more than once",
        ),
        (
            trust(identity("ada", keys=[ssh("ada", revoked=REVOKED), ssh("ada", id="again")])),
            "signer_ambiguous",
            "listed more than once",
        ),
        (
            trust(identity("ada", "service_account")),
            "signer_unknown",
            "stands for no service account",
        ),
        (
            trust(stand_in("ada", DEPLOYER), account(disabled=True)),
            "signer_disabled",
            "who is disabled",
        ),
    ],
)
def test_a_key_that_does_not_count(known: Trust, expected: str, said: str) -> None:
    found = signer(known)
    assert code(found) == expected
    assert isinstance(found, Problem)
    assert said in found.message
    assert f"commit {'a' * 12} (Raise a limit)" in found.message
    assert found.hint
    assert found.path == ("platform/iam/all.yaml" if known else "")


def test_a_key_counts_between_its_ends() -> None:
    known = ada(valid_from=AT, valid_until=SOON)
    assert signer(known) == Actor("user", "ada", "ada")
    assert code(signer(known, at_ms=AT_MS - 1)) == "key_not_yet_valid"


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ("none", "commit_unsigned"),
        ("bad", "signature_bad"),
        ("unsupported", "signature_unsupported"),
        ("too_large", "commit_too_large"),
        ("no_key", "signer_unknown"),
    ],
)
def test_a_signature_that_does_not_hold(state: Any, expected: str) -> None:
    facts = CommitFacts(COMMIT, (), "Ada", "", AT_MS, "Raise\x1b[31m")
    found = resolve_signer(Signature(state, key_of("ada"), "why\x07"), facts, ada(), AT_MS)
    assert code(found) == expected
    assert isinstance(found, Problem)
    assert "\\x1b" in found.message
    assert "why\\x07" in found.message
    assert found.message.isprintable()
    assert found.hint


def test_a_long_subject_is_cut() -> None:
    facts = CommitFacts(COMMIT, (), "Ada", "", AT_MS, "x" * 5000)
    found = resolve_signer(Signature("none"), facts, ada(), AT_MS)
    assert isinstance(found, Problem)
    assert len(found.message) < 150


def test_a_stand_in_acts_as_its_service_account() -> None:
    found = signer(trust(stand_in("bot", DEPLOYER), account()), "bot")
    assert found == Actor("service_account", DEPLOYER, "bot")


def forge(*more: Any, **spec: Any) -> Trust:
    known = {"vouches_for_author": True, **spec}
    return trust(
        identity("forge", "forge", **known),
        identity("ada", emails=["Ada.K@acme.example"]),
        *more,
    )


@pytest.mark.parametrize("email", ["Ada.K@acme.example", "ada.k@ACME.example"])
def test_a_forge_that_vouches_names_the_author(email: str) -> None:
    assert signer(forge(), "forge", email) == Actor("user", "ada", "forge", "forge")


def test_a_forge_that_does_not_vouch_is_nobody_else() -> None:
    known = trust(identity("forge", "forge"), identity("ada", emails=["ada@acme.example"]))
    assert signer(known, "forge", "ada@acme.example") == Actor("forge", "forge", "forge")


def test_the_author_says_nothing_without_a_forge() -> None:
    known = trust(identity("ada", emails=["ada@acme.example"]), identity("zoe"))
    assert signer(known, "zoe", "ada@acme.example") == Actor("user", "zoe", "zoe")


@pytest.mark.parametrize(
    ("known", "email", "expected"),
    [
        (forge(), "eve@acme.example", "forge_author_unknown"),
        (forge(), "", "forge_author_unknown"),
        (forge(), "ada.\u212a@acme.example", "forge_author_unknown"),
        (forge(), "\u0430da.k@acme.example", "forge_author_unknown"),
        (forge(), "ada.k@acme.example\u202e", "forge_author_unknown"),
        (forge(), " ada.k@acme.example", "forge_author_unknown"),
        (forge(identity("eve", emails=["ada.k@acme.example"])), "ada.k@acme.example",
         "signer_ambiguous"),
        (forge(identity("eve", emails=["eve@acme.example"], disabled=True)), "eve@acme.example",
         "signer_disabled"),
        (forge(identity("other", "forge", emails=["f@acme.example"])), "f@acme.example",
         "forge_author_unknown"),
        (forge(disabled=True), "ada.k@acme.example", "signer_disabled"),
    ],
)  # fmt: skip
def test_an_author_that_a_forge_can_t_vouch_for(known: Trust, email: str, expected: str) -> None:
    found = signer(known, "forge", email)
    assert code(found) == expected
    assert isinstance(found, Problem)
    assert found.message.isprintable()


def test_a_machine_merges_in_a_forge_as_itself() -> None:
    known = forge(stand_in("bot", DEPLOYER, emails=["bot@acme.example"]), account())
    found = signer(known, "forge", "bot@acme.example")
    assert found == Actor("service_account", DEPLOYER, "forge", "forge")
