"""What trust holds back, what it marks, and what it leaves alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node_agent.wire import Phase
from reconciler.core.actions import Control, Launch, Replace
from reconciler.core.desired import Target
from reconciler.core.health import HealthLimits, healths
from reconciler.core.names import ArtifactKey
from reconciler.core.observed import Known, Observed, Seen, Unknown
from reconciler.core.plan import Plan
from reconciler.core.plan.compute import compute_plan
from reconciler.core.plan.guards import NEEDS_A_PERSON
from reconciler.core.records import InstanceRecord
from reconciler.core.status import with_conditions
from reconciler.core.trust.evidence import Evidence, Proof
from reconciler.core.trust.judge import LOOK_AGAIN_MS, due_at_ms
from reconciler.core.trust.rules import ChannelNeeds, TrustedKey, TrustRules
from reconciler.core.trust.standing import (
    CODES,
    asked_of,
    entry_of,
    must_look,
    standings,
)
from tests.core import fleet

NOW_MS = fleet.NOW_MS
DAY_MS = 24 * 3600 * 1000
KEY = TrustedKey("ci", "ecdsa-p256", "PEM")
NEEDS = ChannelNeeds(
    policy="artifacts",
    signature_required=True,
    scheme="ecdsa-p256",
    accepted_keys=frozenset(),
    provenance_required=False,
    predicate_types=frozenset(),
    builders=frozenset(),
)
RULES = TrustRules({"ci": KEY}, {}, {"stable": (NEEDS,)})
REVOKED = replace(RULES, keys={"ci": replace(KEY, revoked="a laptop was lost")})


def trusted(name: str = "hello", version: str = "1.0.0", channel: str = "stable") -> Target:
    one = fleet.target(name, version)
    return Target(replace(one.instance, channel=channel, promotion="active"), one.workload)


HELLO = trusted()
NEWER = trusted(version="1.1.0")
ARTIFACT = HELLO.instance.artifact


def evidence(key: ArtifactKey = ARTIFACT, *, signed: bool = True) -> Evidence:
    proof = Proof(
        "signature", "classic", "ci", "ecdsa-p256", "sha256:0", NOW_MS, key_hash=KEY.fingerprint
    )
    found = (proof,) if signed else ()
    return Evidence(key, RULES.keys_hash, NOW_MS, found, asked=("stable/active",))


def seen(observed: Observed, *known: Evidence) -> Observed:
    return replace(observed, trust={one.artifact: Known(one) for one in known})


def planned(
    want: Target, world: Observed, *records: InstanceRecord, rules: TrustRules = RULES
) -> Plan:
    desired = fleet.desired(want, trust=rules)
    return compute_plan(desired, world, fleet.inventory(*records), (), NOW_MS)


def running(*known: Evidence) -> Observed:
    return seen(fleet.observed(fleet.report(HELLO)), *known)


# --- what is to be launched ----------------------------------------------------------------------


def test_what_is_good_is_launched() -> None:
    (action,) = planned(HELLO, seen(fleet.observed(), evidence())).actions
    assert isinstance(action, Launch)
    assert action.held is None


NOT_ASKED = trusted(channel="")
HELD: Mapping[str, tuple[TrustRules, Mapping[ArtifactKey, Seen[Evidence]], str, str]] = {
    "nobody signed it": (
        RULES,
        {ARTIFACT: Known(evidence(signed=False))},
        "unsigned",
        f"{ARTIFACT} is not good for stable: stable needs a signature, and there is none; "
        "sign it: gpuaas sign REPOSITORY@DIGEST",
    ),
    "its key was revoked": (
        REVOKED,
        {ARTIFACT: Known(evidence())},
        "key_revoked",
        f"{ARTIFACT} is not good for stable: its signature is by ci, which is revoked: "
        "a laptop was lost; build it anew and sign that",
    ),
    "no such channel": (
        replace(RULES, channels={}),
        {ARTIFACT: Known(evidence())},
        "channel_unknown",
        f"{ARTIFACT} is not good for stable: no TrustPolicy says what the channel stable needs; "
        "describe it under channels of a TrustPolicy",
    ),
    "the registry is away": (
        RULES,
        {ARTIFACT: Unknown("registry_timeout", "registry.example: no answer in 10 s")},
        "registry_timeout",
        f"{ARTIFACT}: registry.example: no answer in 10 s",
    ),
    "nobody looked": (RULES, {}, "not_observed", f"{ARTIFACT}: nobody looked at its signatures"),
}


@pytest.mark.parametrize("case", HELD)
def test_what_is_not_known_to_be_good_is_held(case: str) -> None:
    rules, trust, code, message = HELD[case]
    world = replace(fleet.observed(), trust=trust)
    (action,) = planned(HELLO, world, rules=rules).actions
    assert action.held is not None
    assert (action.held.code, action.held.message) == (code, message)


def test_where_no_channel_is_asked_for_nothing_is_held() -> None:
    (action,) = planned(NOT_ASKED, fleet.observed(), rules=REVOKED).actions
    assert action.held is None


def test_an_upgrade_waits_and_what_runs_goes_on() -> None:
    world = running(evidence(), evidence(NEWER.instance.artifact, signed=False))
    plan = planned(NEWER, world, fleet.running(HELLO))
    (action,) = plan.actions
    assert isinstance(action, Replace)
    assert action.held is not None
    assert action.held.code == "unsigned"
    assert plan.ready == ()


def test_who_signs_it_has_it_launched_without_a_commit() -> None:
    before = seen(fleet.observed(), evidence(signed=False))
    after = seen(fleet.observed(), evidence())
    assert planned(HELLO, before).ready == ()
    assert len(planned(HELLO, after).ready) == 1
    assert before.fingerprint != after.fingerprint


STOPPED = fleet.report(HELLO, Phase.STOPPED)


@pytest.mark.parametrize(("rules", "held"), [(RULES, ""), (REVOKED, "key_revoked")])
def test_what_was_stopped_starts_unless_it_is_known_to_be_bad(rules: TrustRules, held: str) -> None:
    world = seen(fleet.observed(STOPPED), evidence())
    (action,) = planned(HELLO, world, fleet.running(HELLO), rules=rules).actions
    assert isinstance(action, Control)
    assert (action.held.code if action.held else "") == held
    (unseen,) = planned(HELLO, fleet.observed(STOPPED), fleet.running(HELLO)).actions
    assert unseen.held is None


def test_a_person_has_to_do_something_about_every_verdict() -> None:
    assert CODES <= NEEDS_A_PERSON
    plan = planned(HELLO, seen(fleet.observed(), evidence(signed=False)))
    assert [finding.code for finding in plan.stalled] == ["unsigned"]


# --- what runs -----------------------------------------------------------------------------------


@pytest.mark.parametrize("rules", [REVOKED, replace(RULES, keys={}), replace(RULES, channels={})])
def test_what_runs_is_never_stopped_for_it(rules: TrustRules) -> None:
    plan = planned(HELLO, running(evidence()), fleet.running(HELLO), rules=rules)
    assert plan.empty
    (finding,) = plan.findings
    assert (finding.level, finding.code) == ("info", "no_longer_trusted")
    assert finding.object == f"AppInstance/{HELLO.instance.key}"


def test_what_is_told_of_it() -> None:
    (finding,) = planned(HELLO, running(evidence()), fleet.running(HELLO), rules=REVOKED).findings
    assert finding.message == (
        "what runs is trusted no more (key_revoked): its signature is by ci, which is revoked: "
        "a laptop was lost"
    )
    assert finding.hint == "it runs on; build it anew and sign that"


def test_a_revoked_artifact_is_told_of_wherever_it_runs() -> None:
    asked, not_asked = trusted("asked"), trusted("other", channel="")
    digest = str(asked.instance.artifact.digest)
    revoker = "Artifact/acme/research/hello/1.0.0/image"
    revoked = {(digest, asked.instance.app, ""): revoker}
    records = fleet.inventory(fleet.running(asked), fleet.running(not_asked))
    held = fleet.desired(trust=RULES, revoked=revoked, held=dict.fromkeys(records, "revoked"))
    found = standings(held, fleet.observed(), records, NOW_MS)
    assert found.keys() == records.keys()
    for verdict in found.values():
        assert verdict is not None
        assert (verdict.good, verdict.code) == (False, "artifact_revoked")
        assert verdict.message == f"{revoker} is revoked"


@pytest.mark.parametrize(
    ("app", "project", "marked"),
    [("hello", "", True), ("hello", "acme/research", True), ("hello", "acme/other", False),
     ("other", "", False)],
)  # fmt: skip
def test_a_revocation_binds_the_app_and_the_projects_it_is_for(
    app: str, project: str, marked: bool
) -> None:
    revoked = {(str(ARTIFACT.digest), app, project): "Artifact/acme/research/hello/1.0.0/image"}
    records = fleet.inventory(fleet.running(HELLO))
    held = fleet.desired(trust=RULES, revoked=revoked, held=dict.fromkeys(records, "revoked"))
    assert bool(standings(held, fleet.observed(), records, NOW_MS)) is marked


def test_what_does_not_run_yet_is_neither() -> None:
    want = fleet.desired(HELLO, trust=REVOKED)
    records = fleet.inventory(fleet.deploying(HELLO))
    assert standings(want, running(evidence()), records, NOW_MS) == {}


def conditions(record: InstanceRecord, world: Observed, rules: TrustRules) -> InstanceRecord:
    want, records = fleet.desired(HELLO, trust=rules), fleet.inventory(record)
    plan = compute_plan(want, world, records, (), NOW_MS)
    limits = HealthLimits(1, 1, 1, 1)
    found = healths(records, want, world, set(), NOW_MS, limits)
    trust = standings(want, world, records, NOW_MS)
    (after,) = with_conditions(records, want, found, plan, NOW_MS, trust).values()
    return after


def trusted_condition(record: InstanceRecord) -> tuple[str, str, str] | None:
    found = [(c.status, c.reason, c.message) for c in record.conditions if c.type == "Trusted"]
    assert len(found) <= 1
    return found[0] if found else None


def test_its_condition_says_whether_it_is_good() -> None:
    good = conditions(fleet.running(HELLO), running(evidence()), RULES)
    assert trusted_condition(good) == ("True", "Verified", "good for stable, signed by ci")
    bad = conditions(good, running(evidence()), REVOKED)
    assert trusted_condition(bad) == (
        "False",
        "KeyRevoked",
        "its signature is by ci, which is revoked: a laptop was lost; build it anew and sign that",
    )
    converged = next(c for c in bad.conditions if c.type == "Converged")
    assert converged.status == "True"
    again = conditions(bad, running(evidence()), REVOKED)
    assert again is bad
    mended = conditions(bad, running(evidence()), RULES)
    assert trusted_condition(mended) == trusted_condition(good)


def test_the_same_digest_elsewhere_tells_nothing_of_ours() -> None:
    other = replace(ARTIFACT, repository="zzz/elsewhere")
    record = fleet.running(HELLO)
    beside = running(evidence(), evidence(other, signed=False))
    assert trusted_condition(conditions(record, beside, RULES)) == (
        "True", "Verified", "good for stable, signed by ci"
    )  # fmt: skip
    assert trusted_condition(conditions(record, running(evidence(other)), RULES)) is None


def test_what_runs_is_not_trusted_for_a_key_that_another_took_the_id_of() -> None:
    swapped = replace(RULES, keys={"ci": replace(KEY, public_key="ANOTHER PEM")})
    bad = conditions(fleet.running(HELLO), running(evidence()), swapped)
    assert trusted_condition(bad) == (
        "False",
        "SignatureNotTrusted",
        "the signature is by another key than the one that is now called ci; "
        "sign it with a key that is accepted",
    )


def test_while_nobody_can_look_the_last_word_stands() -> None:
    good = conditions(fleet.running(HELLO), running(evidence()), RULES)
    silent = replace(
        fleet.observed(fleet.report(HELLO)), trust={ARTIFACT: Unknown("registry_timeout", "slow")}
    )
    assert conditions(good, silent, RULES) is good
    unknown = conditions(fleet.running(HELLO), silent, RULES)
    assert trusted_condition(unknown) is None


def test_where_nobody_asks_it_has_no_such_condition() -> None:
    want = fleet.desired(NOT_ASKED)
    records = fleet.inventory(fleet.running(NOT_ASKED))
    assert standings(want, fleet.observed(fleet.report(NOT_ASKED)), records, NOW_MS) == {}


def test_that_nothing_is_asked_for_is_told_once() -> None:
    others = [trusted(name, channel="") for name in ("one", "two")]
    desired = fleet.desired(*others, trust=RULES, unverified="prod")
    plan = compute_plan(desired, fleet.observed(), {}, (), NOW_MS)
    (finding,) = [one for one in plan.findings if one.code == "trust_not_asked"]
    assert (finding.level, finding.object) == ("info", "Environment/prod")


# --- when it is looked at again ------------------------------------------------------------------

ASKED = frozenset({"stable/active"})
AGAIN_MS = due_at_ms(evidence(), LOOK_AGAIN_MS) - NOW_MS
LOOKS = [
    (None, ASKED, RULES, 0, True, "never looked at"),
    (evidence(), ASKED, RULES, DAY_MS - 1, False, "kept and fresh"),
    (evidence(), ASKED, RULES, DAY_MS, True, "too old"),
    (evidence(signed=False), ASKED, RULES, AGAIN_MS - 1, False, "not good a moment ago"),
    (evidence(signed=False), ASKED, RULES, AGAIN_MS, True, "it may have been signed since"),
    (replace(evidence(signed=False), asked=()), ASKED, RULES, 0, True, "it was signed just now"),
    (evidence(), ASKED, REVOKED, AGAIN_MS - 1, False, "no longer good, a moment ago"),
    (evidence(), ASKED, REVOKED, AGAIN_MS, True, "no longer good"),
    (evidence(), ASKED, RULES, -1, True, "the clock was ahead"),
    (evidence(), ASKED, replace(RULES, keys={**RULES.keys, "new": KEY}), 0, True, "other keys"),
    (evidence(), frozenset({"stable/canary"}), RULES, 0, True, "its version moved on"),
    (evidence(), ASKED | {"beta/canary"}, RULES, 0, True, "one more channel"),
]


@pytest.mark.parametrize(("known", "asked", "rules", "age_ms", "looks", "_why"), LOOKS)
def test_what_does_for_a_launch(
    known: Evidence | None,
    asked: frozenset[str],
    rules: TrustRules,
    age_ms: int,
    looks: bool,
    _why: str,
) -> None:
    assert must_look(rules, asked, known, NOW_MS + age_ms, DAY_MS) is looks


def test_what_is_asked_is_asked_once_an_artifact() -> None:
    instances = [
        HELLO.instance,
        trusted("two").instance,
        replace(HELLO.instance, channel="beta", promotion="canary"),
        replace(NEWER.instance, run="decommissioned"),
        NOT_ASKED.instance,
    ]
    assert asked_of(instances) == {ARTIFACT: frozenset({"stable/active", "beta/canary"})}


@given(st.binary(), st.integers(4_000, 10 * DAY_MS))
def test_each_has_its_turn_before_it_is_too_old_and_not_much_sooner(
    name: bytes, recheck_ms: int
) -> None:
    key = ArtifactKey("gpuaas/apps/platform/hello", fleet.digest_of(name.hex()))
    due_ms = due_at_ms(evidence(key), recheck_ms) - NOW_MS
    assert recheck_ms * 3 // 4 <= due_ms <= recheck_ms


def test_what_was_launched_together_has_its_turn_at_different_times() -> None:
    keys = [ArtifactKey("a", fleet.digest_of(str(number))) for number in range(100)]
    assert len({due_at_ms(evidence(key), DAY_MS) for key in keys}) > 90


# --- what is told of a look ----------------------------------------------------------------------


def test_a_look_that_finds_the_same_is_not_told() -> None:
    later = replace(evidence(), checked_at_ms=NOW_MS + 5)
    assert entry_of(evidence(), later) is None


def test_a_look_that_finds_something_else_is() -> None:
    first = entry_of(None, evidence())
    assert first is not None
    assert (first.action, first.object) == ("artifacts.evidence.changed", str(ARTIFACT))
    assert (first.before, first.reason) == ("", "signature by ci")
    gone = entry_of(evidence(), evidence(signed=False))
    assert gone is not None
    assert gone.before == first.after
    assert gone.reason == "no signature of a known key"


def test_a_plan_is_called_what_it_was_where_nothing_is_asked_for() -> None:
    world = fleet.observed(fleet.report(HELLO))
    assert replace(world, trust={}).fingerprint == world.fingerprint
    later = replace(evidence(), checked_at_ms=NOW_MS + 5, keys_hash="other")
    assert running(evidence()).fingerprint == running(later).fingerprint
    assert running(evidence()).fingerprint != running(evidence(signed=False)).fingerprint
    assert running(evidence()).fingerprint != world.fingerprint
