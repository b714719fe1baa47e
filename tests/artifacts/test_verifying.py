"""One look, and the next: what is remembered, and what an artifact can't say of itself."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.artifact_ports import Document, Unusable
from reconciler.artifacts.verifying import REJECTED_MAX, look
from reconciler.core.names import ArtifactKey, Digest
from reconciler.core.trust.evidence import Evidence, Rejected
from reconciler.core.trust.judge import judge
from reconciler.core.trust.rules import TrustRules
from reconciler.errors import Refused, Transient
from reconciler.ports import RegistryEndpoint
from tests.fakes.registry import FakeRegistry
from tests.services.attested import (
    Signer,
    classic,
    enveloped,
    provenance,
    rules,
    signature,
    statement,
)

ENDPOINT = RegistryEndpoint("registry.invalid")
KEY = ArtifactKey("acme/site", Digest.of(b"site"))
RELEASE, TEAM, STRANGER = Signer("release"), Signer("team"), Signer("stranger")
RULES = rules(RELEASE.key(), TEAM.key())
LATER = 5_000


def registry(*documents: Document) -> FakeRegistry:
    found = FakeRegistry()
    found.say(KEY)
    for document in documents:
        found.attach(ENDPOINT, KEY, document)
    return found


def seen(
    *documents: Document,
    rules: TrustRules = RULES,
    known: Evidence | None = None,
    now_ms: int = LATER,
) -> Evidence:
    return look(registry(*documents), ENDPOINT, KEY, rules, known, now_ms)


GOOD = (signature(KEY.digest, RELEASE), provenance(KEY.digest, RELEASE))


def test_a_first_look() -> None:
    found = seen(*GOOD)
    assert [(one.kind, one.first_seen_ms) for one in found.proofs] == [
        ("provenance", LATER),
        ("signature", LATER),
    ]
    assert (found.artifact, found.keys_hash, found.checked_at_ms) == (KEY, RULES.keys_hash, LATER)
    assert judge(RULES, "stable", found, LATER).good


def test_what_held_before_keeps_its_time() -> None:
    before = seen(signature(KEY.digest, RELEASE), now_ms=1_000)
    found = seen(*GOOD, known=before)
    assert {one.kind: one.first_seen_ms for one in found.proofs} == {
        "signature": 1_000,
        "provenance": LATER,
    }


def test_a_signature_survives_the_end_of_its_key_and_a_second_signer() -> None:
    """The manifest of classic signatures is another one as soon as somebody else signs."""
    ending = rules(RELEASE.key(valid_until_ms=2_000), TEAM.key(), provenance_required=False)
    before = seen(classic(KEY.digest, RELEASE), rules=ending, now_ms=1_000)
    moved = replace(before, proofs=(replace(before.proofs[0], document="sha256:before"),))
    after = seen(classic(KEY.digest, RELEASE), classic(KEY.digest, TEAM), rules=ending, known=moved)
    assert {one.key_id: one.first_seen_ms for one in after.proofs} == {
        "release": 1_000,
        "team": LATER,
    }
    assert judge(ending, "stable", after, LATER).good


def test_with_an_ended_key_nobody_signs_anew() -> None:
    ending = rules(RELEASE.key(valid_until_ms=2_000), provenance_required=False)
    found = seen(classic(KEY.digest, RELEASE), rules=ending)
    assert judge(ending, "stable", found, LATER).code == "key_expired"


def test_a_key_that_became_valid_since_counts_from_now() -> None:
    early = rules(RELEASE.key(valid_from_ms=3_000), provenance_required=False)
    before = seen(classic(KEY.digest, RELEASE), rules=early, now_ms=1_000)
    assert judge(early, "stable", before, 1_000).code == "key_expired"
    after = seen(classic(KEY.digest, RELEASE), rules=early, known=before)
    assert judge(early, "stable", after, LATER).good


def test_another_key_under_the_same_id_begins_anew() -> None:
    thief = Signer("release")
    before = seen(classic(KEY.digest, RELEASE), now_ms=1_000)
    theirs = rules(thief.key(), provenance_required=False)
    assert judge(theirs, "stable", before, LATER).code == "signature_not_trusted"
    after = seen(classic(KEY.digest, thief), rules=theirs, known=before)
    assert [one.first_seen_ms for one in after.proofs] == [LATER]
    assert judge(theirs, "stable", after, LATER).good


def test_what_was_first_seen_by_a_clock_that_was_ahead_is_first_seen_now() -> None:
    before = seen(classic(KEY.digest, RELEASE), now_ms=LATER + 1)
    after = seen(classic(KEY.digest, RELEASE), known=before)
    assert [one.first_seen_ms for one in after.proofs] == [LATER]


def test_what_is_gone_is_forgotten() -> None:
    before = seen(*GOOD)
    after = seen(known=before)
    assert after.proofs == ()
    assert judge(RULES, "stable", after, LATER).code == "unsigned"


def test_a_key_that_left_the_policies_proves_nothing() -> None:
    fewer = rules(TEAM.key())
    found = seen(*GOOD, rules=fewer, known=seen(*GOOD))
    assert found.proofs == ()
    assert judge(fewer, "stable", found, LATER).code == "signature_not_trusted"


def test_only_so_much_of_what_anybody_attaches_is_kept() -> None:
    strangers = [Signer(f"s{number}") for number in range(REJECTED_MAX + 5)]
    found = seen(*GOOD, *(signature(KEY.digest, one) for one in strangers))
    assert len(found.proofs) == 2
    assert len({one.document for one in found.rejected}) <= REJECTED_MAX


def test_what_can_not_be_used_is_rejected_with_why() -> None:
    at = registry(*GOOD)
    odd = "it is attached to \ud800"
    at.unusable[KEY] = (
        Unusable("sha256:x", "attached_too_large", "9 bytes"),
        Unusable("sha256:y", "attached_elsewhere", odd),
    )
    found = look(at, ENDPOINT, KEY, RULES, None, LATER)
    assert Rejected("sha256:x", "attached_too_large", "9 bytes") in found.rejected
    printable = r"it is attached to \ud800"
    assert Rejected("sha256:y", "attached_elsewhere", printable) in found.rejected
    assert judge(RULES, "stable", found, LATER).good


@pytest.mark.parametrize(
    "failure", [Transient("registry_timeout", "x"), Refused("registry_tls", "x")]
)
def test_a_registry_that_does_not_answer_gives_no_evidence(failure: Transient | Refused) -> None:
    at = registry(*GOOD)
    at.failure = failure
    with pytest.raises(type(failure)):
        look(at, ENDPOINT, KEY, RULES, seen(*GOOD), LATER)


documents = st.sampled_from(
    [
        *GOOD,
        classic(KEY.digest, RELEASE),
        classic(KEY.digest, STRANGER),
        signature(Digest.of(b"other"), RELEASE),
        provenance(KEY.digest),
        provenance(KEY.digest, STRANGER),
        provenance(KEY.digest, RELEASE, builder="https://evil.example"),
        enveloped(
            statement(KEY.digest, "https://gpuaas.dev/channel/stable", {"good": True}), STRANGER
        ),
        Document("bundle", b"{}"),
        Document("classic_signature", b"trust me", "AAAA"),
    ]
)


@given(st.lists(documents, max_size=5), st.lists(documents, max_size=3))
def test_fewer_documents_never_make_it_better(found: list[Document], more: list[Document]) -> None:
    if judge(RULES, "stable", seen(*found), LATER).good:
        assert judge(RULES, "stable", seen(*found, *more), LATER).good


words = st.text(max_size=30)


@given(st.lists(documents, max_size=3), words, words)
def test_an_artifacts_own_words_change_no_verdict(
    found: list[Document], digest: str, predicate_type: str
) -> None:
    """What annotations say of a document: its digest, its predicate, that it is good."""
    told = [replace(one, predicate_type=predicate_type, digest=digest) for one in found]
    said = judge(RULES, "stable", seen(*told), LATER)
    assert said.good is judge(RULES, "stable", seen(*found), LATER).good
