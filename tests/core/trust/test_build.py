"""What TrustPolicies come to: they add up, and no key hides behind another."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from reconciler.core.kinds.trust_policy import TrustPolicySpec
from reconciler.core.trust.build import rules_of
from reconciler.core.trust.rules import TrustedKey
from reconciler.core.trust.statements import SLSA_V1
from tests.services.attested import Signer

RELEASE, TEAM = Signer("release"), Signer("team")
EDWARDS = Signer("edwards", Ed25519PrivateKey.generate())
REVOKED = {"at": "2026-01-01T00:00:00Z", "reason": "stolen"}
CI = "https://ci.acme.example/b"


def key(signer: Signer, **more: Any) -> dict[str, Any]:
    scheme = signer.key().scheme
    return {"id": signer.id, "scheme": scheme, "public_key": signer.pem, **more}


def policy(**fields: Any) -> TrustPolicySpec:
    return TrustPolicySpec.model_validate(fields)


def test_policies_add_up() -> None:
    rules = rules_of(
        [
            ("b", policy(signing_keys=[key(TEAM)], builders=[{"id": CI}])),
            (
                "a",
                policy(
                    signing_keys=[key(RELEASE, valid_from="2026-01-01T00:00:00Z")],
                    builders=[{"id": CI, "source_prefixes": ["https://git.acme.example/apps/"]}],
                    channels={"stable": {"signing_key": "release", "accepted_keys": ["release"]}},
                ),
            ),
        ]
    )
    assert list(rules.keys) == ["release", "team"]
    assert rules.keys["release"].valid_from_ms == 1_767_225_600_000
    (need,) = rules.channels["stable"]
    assert (need.policy, need.signing_key, need.accepted_keys) == (
        "a",
        "release",
        frozenset({"release"}),
    )
    assert need.predicate_types == frozenset({SLSA_V1})
    assert need.provenance_required
    assert rules.builders == {CI: frozenset()}, "one policy lets it build from anywhere"


def test_the_prefixes_of_a_builder_add_up() -> None:
    one, two = "https://git.acme.example/apps/", "https://git.acme.example/tools/"
    named = [policy(builders=[{"id": CI, "source_prefixes": [place]}]) for place in (one, two)]
    rules = rules_of([("a", named[0]), ("b", named[1])])
    assert rules.builders == {CI: frozenset({one, two})}


def test_a_channel_of_two_policies_asks_for_both() -> None:
    channels: dict[str, Any] = {"stable": {}}
    rules = rules_of([("b", policy(channels=channels)), ("a", policy(channels=channels))])
    assert [need.policy for need in rules.channels["stable"]] == ["a", "b"]


def test_a_revoked_key_is_revoked_under_every_id() -> None:
    alias = Signer("alias", RELEASE.private)
    rules = rules_of(
        [
            ("a", policy(signing_keys=[key(RELEASE, revoked=REVOKED)])),
            ("b", policy(signing_keys=[key(alias)])),
        ]
    )
    assert {one.id: one.revoked for one in rules.keys.values()} == {
        "release": "stolen",
        "alias": "stolen",
    }


def test_an_id_with_two_keys_is_believed_for_neither() -> None:
    other = Signer("release")
    rules = rules_of(
        [("a", policy(signing_keys=[key(RELEASE)])), ("b", policy(signing_keys=[key(other)]))]
    )
    assert rules.keys["release"].revoked == "two different keys have this id"


def test_a_day_that_is_none_makes_no_key_valid() -> None:
    rules = rules_of(
        [("a", policy(signing_keys=[key(RELEASE, valid_until="2026-02-30T00:00:00Z")]))]
    )
    assert rules.keys["release"].revoked == "its times can't be read"


def test_an_ed25519_key_may_be_hex_and_is_one_key() -> None:
    private = EDWARDS.private
    assert isinstance(private, Ed25519PrivateKey)
    text = private.public_key().public_bytes_raw().hex()
    rules = rules_of([("a", policy(signing_keys=[key(EDWARDS, public_key=text)]))])
    assert rules.keys["edwards"].public_key == EDWARDS.pem


def test_with_other_keys_the_hash_is_another() -> None:
    one = rules_of([("a", policy(signing_keys=[key(RELEASE)]))])
    two = rules_of([("a", policy(signing_keys=[key(RELEASE), key(TEAM)]))])
    again = rules_of(
        [("b", policy(signing_keys=[key(RELEASE)], blob_sources=["https://w.example/"]))]
    )
    assert one.keys_hash != two.keys_hash
    assert one.keys_hash == again.keys_hash


def test_a_key_is_the_same_however_it_is_named_and_wrapped() -> None:
    key = TrustedKey("ci", "ecdsa-p256", "-----BEGIN PUBLIC KEY-----\nAAAA\nBBBB\n-----END\n")
    wrapped = replace(key, id="other", public_key=key.public_key.replace("A\nB", "AB"))
    assert wrapped.fingerprint == key.fingerprint
    assert replace(key, public_key="other").fingerprint != key.fingerprint
