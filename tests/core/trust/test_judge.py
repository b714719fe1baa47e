"""What suffices for a channel. Tables of cases, and what holds for any evidence."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.core.names import ArtifactKey, Digest
from reconciler.core.trust.evidence import Evidence, Proof, Rejected, Verdict
from reconciler.core.trust.judge import LOOK_AGAIN_MS, is_due, judge
from reconciler.core.trust.rules import ChannelNeeds, TrustedKey, TrustRules
from reconciler.core.trust.statements import SLSA_V02, SLSA_V1

NOW = 1_000_000
DAY = 86_400_000
ARTIFACT = ArtifactKey("acme/site", Digest.of(b"site"))
BUILDER = "https://ci.acme.example/builders/gpu-apps@v1"
SOURCE = "git+https://git.acme.example/apps/site@refs/heads/main"
PREFIX = "https://git.acme.example/apps/"

KEY = TrustedKey("release", "ecdsa-p256", "pem")
OTHER = TrustedKey("team", "ecdsa-p256", "pem of team")
EDWARDS = TrustedKey("edwards", "ed25519", "pem of edwards")
REVOKED = TrustedKey("stolen", "ecdsa-p256", "pem of stolen", revoked="a runner was broken into")
SPENT = TrustedKey("spent", "ecdsa-p256", "pem of spent", valid_until_ms=NOW - 10)
EARLY = TrustedKey("early", "ecdsa-p256", "pem of early", valid_from_ms=NOW + 10)
KEYS = {key.id: key for key in (KEY, OTHER, EDWARDS, REVOKED, SPENT, EARLY)}

NEED = ChannelNeeds(
    policy="artifacts",
    signature_required=True,
    scheme="ecdsa-p256",
    accepted_keys=frozenset(),
    provenance_required=True,
    predicate_types=frozenset({SLSA_V1}),
    builders=frozenset(),
)
RULES = TrustRules(KEYS, {BUILDER: frozenset({PREFIX})}, {"stable": (NEED,)})
SIGNED = Proof(
    "signature",
    "bundle",
    "release",
    "ecdsa-p256",
    "sha256:1",
    NOW,
    key_hash=KEY.fingerprint,
)
BUILT = replace(
    SIGNED,
    kind="provenance",
    document="sha256:2",
    predicate_type=SLSA_V1,
    builder=BUILDER,
    sources=(SOURCE,),
)


def by(key: TrustedKey, proof: Proof = SIGNED, **more: object) -> Proof:
    told = {"key_id": key.id, "scheme": key.scheme, "key_hash": key.fingerprint, **more}
    return replace(proof, **told)  # type: ignore[arg-type]


def asking(**more: object) -> TrustRules:
    return replace(RULES, channels={"stable": (replace(NEED, **more),)})  # type: ignore[arg-type]


def evidence(*proofs: Proof, rejected: tuple[Rejected, ...] = ()) -> Evidence:
    return Evidence(ARTIFACT, RULES.keys_hash, NOW, proofs, rejected)


@dataclass(frozen=True)
class Case:
    """`message` is the whole of it; empty code: good."""

    proofs: tuple[Proof, ...]
    code: str
    message: str = ""
    rules: TrustRules = RULES
    rejected: tuple[Rejected, ...] = ()


CASES = {
    "all there is to want": Case((SIGNED, BUILT), ""),
    "nothing": Case((), "unsigned", "stable needs a signature, and there is none"),
    "only a provenance": Case((BUILT,), "unsigned", "stable needs a signature, and there is none"),
    "only an attestation": Case(
        (replace(BUILT, kind="attestation"),),
        "unsigned",
        "stable needs a signature, and there is none",
    ),
    "signed by nobody we know": Case(
        (),
        "signature_not_trusted",
        "no key of the policies signed it: a signature that no key of the policies made",
        rejected=(
            Rejected("", "signature_not_trusted", "a signature that no key of the policies made"),
        ),
    ),
    "a key that is not accepted": Case(
        (by(OTHER), BUILT),
        "signature_not_trusted",
        "the signature is by team; artifacts takes release",
        asking(accepted_keys=frozenset({"release"})),
    ),
    "another scheme": Case(
        (by(EDWARDS), BUILT),
        "signature_not_trusted",
        "the signature is by edwards; artifacts takes a key of scheme ecdsa-p256",
    ),
    "the scheme that is asked for": Case(
        (by(EDWARDS), by(EDWARDS, BUILT)), "", rules=asking(scheme="ed25519")
    ),
    "a proof of another scheme than its key": Case(
        (replace(SIGNED, scheme="ed25519"), BUILT),
        "signature_not_trusted",
        "the signature is by release; artifacts takes a key of scheme ecdsa-p256",
    ),
    "a key that is no more in the policies": Case(
        (replace(SIGNED, key_id="gone"), BUILT),
        "signature_not_trusted",
        "the signature is by gone; artifacts takes a key of scheme ecdsa-p256",
    ),
    "another key under an id that was used before": Case(
        (replace(SIGNED, key_hash=OTHER.fingerprint), BUILT),
        "signature_not_trusted",
        "the signature is by another key than the one that is now called release",
    ),
    "a revoked key": Case(
        (by(REVOKED), BUILT),
        "key_revoked",
        "its signature is by stolen, which is revoked: a runner was broken into",
    ),
    "a revoked key beside a good one": Case((by(REVOKED), SIGNED, BUILT), ""),
    "first seen after the key's end": Case(
        (by(SPENT), BUILT),
        "key_expired",
        "its signature is by spent, which was not valid when it was first seen here",
    ),
    "first seen before the key's end": Case((by(SPENT, first_seen_ms=NOW - 11), BUILT), ""),
    "first seen before the key's beginning": Case(
        (by(EARLY), BUILT),
        "key_expired",
        "its signature is by early, which was not valid when it was first seen here",
    ),
    "first seen in a future that a wrong clock made": Case(
        (by(EARLY, first_seen_ms=NOW + 20), BUILT),
        "key_expired",
        "its signature is by early, which was not valid when it was first seen here",
    ),
    "no provenance": Case((SIGNED,), "no_provenance", "stable needs provenance, and there is none"),
    "no provenance, none needed": Case((SIGNED,), "", rules=asking(provenance_required=False)),
    "no signature, none needed": Case((BUILT,), "", rules=asking(signature_required=False)),
    "nothing, nothing needed": Case(
        (), "", rules=asking(signature_required=False, provenance_required=False)
    ),
    "another attestation": Case(
        (SIGNED, replace(BUILT, kind="attestation", predicate_type="https://spdx.dev/Document")),
        "no_provenance",
        "stable needs provenance; attested is https://spdx.dev/Document",
    ),
    "an unsigned provenance": Case(
        (SIGNED,),
        "provenance_unsigned",
        "nobody trusted signed its provenance: an attestation inside the index",
        rejected=(Rejected("", "provenance_unsigned", "an attestation inside the index"),),
    ),
    "provenance by a key that is not accepted": Case(
        (SIGNED, by(OTHER, BUILT)),
        "provenance_unsigned",
        "the provenance is by team; artifacts takes release",
        asking(accepted_keys=frozenset({"release"})),
    ),
    "provenance by a revoked key": Case(
        (SIGNED, by(REVOKED, BUILT)),
        "key_revoked",
        "its provenance is by stolen, which is revoked: a runner was broken into",
    ),
    "provenance v0.2, not asked for": Case(
        (SIGNED, replace(BUILT, predicate_type=SLSA_V02)),
        "predicate_not_accepted",
        f"its provenance is of type {SLSA_V02}; artifacts does not take it",
    ),
    "provenance v0.2, asked for": Case(
        (SIGNED, replace(BUILT, predicate_type=SLSA_V02)),
        "",
        rules=asking(predicate_types=frozenset({SLSA_V1, SLSA_V02})),
    ),
    "another builder": Case(
        (SIGNED, replace(BUILT, builder="https://evil.example")),
        "builder_not_trusted",
        "it was built by https://evil.example; artifacts does not trust that",
    ),
    "a builder whose name begins alike": Case(
        (SIGNED, replace(BUILT, builder=BUILDER + "0")),
        "builder_not_trusted",
        f"it was built by {BUILDER}0; artifacts does not trust that",
    ),
    "no builder": Case(
        (SIGNED, replace(BUILT, builder="")),
        "builder_not_trusted",
        "it was built by nobody named; artifacts does not trust that",
    ),
    "a builder of another channel": Case(
        (SIGNED, BUILT),
        "builder_not_trusted",
        f"it was built by {BUILDER}; artifacts does not trust that",
        asking(builders=frozenset({"https://other.example"})),
    ),
    "another source": Case(
        (SIGNED, replace(BUILT, sources=("https://git.acme.example/evil/site",))),
        "source_not_trusted",
        "it was built from https://git.acme.example/evil/site, outside of what "
        f"{BUILDER} may build from",
    ),
    "a good and a bad source": Case(
        (SIGNED, replace(BUILT, sources=(SOURCE, "https://evil.example/x"))),
        "source_not_trusted",
        f"it was built from {SOURCE}, https://evil.example/x, outside of what "
        f"{BUILDER} may build from",
    ),
    "no source": Case(
        (SIGNED, replace(BUILT, sources=())),
        "source_not_trusted",
        f"it was built from nothing named, outside of what {BUILDER} may build from",
    ),
    "a bad provenance beside a good one": Case(
        (SIGNED, replace(BUILT, builder="https://evil.example"), BUILT), ""
    ),
    "two policies, one satisfied": Case(
        (SIGNED, BUILT),
        "signature_not_trusted",
        "the signature is by release; strict takes team",
        replace(
            RULES,
            channels={
                "stable": (
                    NEED,
                    replace(NEED, policy="strict", accepted_keys=frozenset({"team"})),
                )
            },
        ),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_verdict(name: str) -> None:
    case = CASES[name]
    found = judge(case.rules, "stable", evidence(*case.proofs, rejected=case.rejected), NOW)
    assert (found.code, found.message) == (case.code, case.message)
    assert found.good is (case.code == "")
    assert bool(found.hint) is not found.good


def test_a_channel_that_nobody_describes_takes_nothing() -> None:
    found = judge(RULES, "beta", evidence(SIGNED, BUILT), NOW)
    assert found.code == "channel_unknown"
    assert found.message == "no TrustPolicy says what the channel beta needs"


def test_without_a_channel_nothing_is_asked() -> None:
    assert judge(TrustRules(), "", None, NOW) == Verdict(True)


def test_no_evidence_is_no_proof() -> None:
    assert judge(RULES, "stable", None, NOW).code == "unsigned"


@pytest.mark.parametrize(
    ("known", "now_ms", "due"),
    [
        (None, NOW, True),
        (evidence(SIGNED, BUILT), NOW, False),
        (evidence(SIGNED, BUILT), NOW + DAY - 1, False),
        (evidence(SIGNED, BUILT), NOW + DAY, True),
        (evidence(SIGNED, BUILT), NOW - 1, True),
        (replace(evidence(SIGNED, BUILT), keys_hash="others"), NOW, True),
        (evidence(SIGNED), NOW, False),
        (evidence(SIGNED), NOW + LOOK_AGAIN_MS, True),
    ],
    ids=[
        "never",
        "just now",
        "nearly old",
        "old",
        "clock set back",
        "other keys",
        "not good a moment ago",
        "not good for a while",
    ],
)
def test_when_to_look_again(known: Evidence | None, now_ms: int, due: bool) -> None:
    assert is_due(RULES, ["stable"], known, now_ms, DAY) is due


# --- what holds for any evidence ------------------------------------------------------------------

proofs = st.builds(
    Proof,
    st.sampled_from(["signature", "provenance", "attestation"]),
    st.sampled_from(["classic", "bundle"]),
    st.sampled_from([*KEYS, "nobody's"]),
    st.sampled_from(["ecdsa-p256", "ed25519"]),
    st.sampled_from(["sha256:1", "sha256:2"]),
    st.integers(NOW - 20, NOW + 20),
    st.sampled_from(["", SLSA_V1, SLSA_V02, "https://spdx.dev/Document"]),
    st.sampled_from(["", BUILDER, "https://evil.example"]),
    st.sampled_from(
        [(), (SOURCE,), (SOURCE, "https://evil.example/x"), ("https://evil.example/",)]
    ),
    st.sampled_from(["", *(key.fingerprint for key in KEYS.values())]),
) | st.builds(by, st.sampled_from([*KEYS.values()]), st.sampled_from([SIGNED, BUILT]))
rejections = st.builds(
    Rejected,
    st.text(max_size=10),
    st.sampled_from(["signature_not_trusted", "provenance_unsigned", "signature_malformed", ""]),
    st.text(max_size=20),
)
channels = st.builds(
    asking,
    signature_required=st.booleans(),
    provenance_required=st.booleans(),
    scheme=st.sampled_from(["ecdsa-p256", "ed25519"]),
    accepted_keys=st.frozensets(st.sampled_from([*KEYS])),
    predicate_types=st.sampled_from(
        [frozenset({SLSA_V1}), frozenset({SLSA_V02}), frozenset({SLSA_V1, SLSA_V02})]
    ),
    builders=st.sampled_from([frozenset(), frozenset({BUILDER})]),
)


@given(channels, st.lists(proofs, max_size=6), st.data())
def test_without_a_proof_no_verdict_gets_better(
    rules: TrustRules, found: list[Proof], data: st.DataObject
) -> None:
    fewer = [proof for proof in found if data.draw(st.booleans())]
    if judge(rules, "stable", evidence(*fewer), NOW).good:
        assert judge(rules, "stable", evidence(*found), NOW).good


@given(channels, st.lists(proofs, max_size=4), st.lists(rejections, max_size=4))
def test_what_anybody_may_attach_changes_no_verdict(
    rules: TrustRules, found: list[Proof], said: list[Rejected]
) -> None:
    alone = judge(rules, "stable", evidence(*found), NOW)
    beside = judge(rules, "stable", evidence(*found, rejected=tuple(said)), NOW)
    assert beside.good is alone.good


@given(channels, st.lists(proofs, max_size=4), st.sampled_from(sorted(KEYS)))
def test_revoking_a_key_makes_no_verdict_better(
    rules: TrustRules, found: list[Proof], name: str
) -> None:
    stricter = replace(rules, keys={**rules.keys, name: replace(KEYS[name], revoked="stolen")})
    if judge(stricter, "stable", evidence(*found), NOW).good:
        assert judge(rules, "stable", evidence(*found), NOW).good


@given(channels, st.lists(proofs, max_size=5), st.randoms())
def test_the_order_of_what_was_found_says_nothing(
    rules: TrustRules, found: list[Proof], random: object
) -> None:
    shuffled = list(found)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    one = judge(rules, "stable", evidence(*found), NOW)
    assert judge(rules, "stable", evidence(*shuffled), NOW).code == one.code


@given(st.lists(proofs, max_size=6))
def test_good_means_signed_and_built_by_who_is_trusted(found: list[Proof]) -> None:
    if judge(RULES, "stable", evidence(*found), NOW).good:
        known = [p for p in found if p.key_id in KEYS and p.scheme == "ecdsa-p256"]
        fine = [
            p
            for p in known
            if p.key_hash == KEYS[p.key_id].fingerprint and not KEYS[p.key_id].revoked
        ]
        assert any(p.kind == "signature" for p in fine)
        assert any(
            p.kind == "provenance" and p.builder == BUILDER and p.sources == (SOURCE,) for p in fine
        )
