"""How an instance is, in one word: every word, every limit, and what a person is told to do."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node_agent.wire import FailureReason, Phase, WorkloadReport
from reconciler.core.desired import Guards, IgnoreRule, Term
from reconciler.core.health import (
    Circumstances,
    Health,
    HealthLimits,
    HealthSeen,
    health_of,
    healths,
    told_health,
)
from reconciler.core.names import InstanceKey
from reconciler.core.observed import Known, Seen, Unknown
from reconciler.core.plan import Finding, Plan
from reconciler.core.plan.stuck import with_stuck
from reconciler.core.records import Condition, InstanceRecord, State
from tests.core.fleet import (
    NOW_MS,
    REVISION,
    deploying,
    desired,
    inventory,
    observed,
    removed,
    report,
    running,
    target,
)

OLD, NEW = target(version="1.0.0"), target(version="1.1.0")
LIMITS = HealthLimits(pull_ms=600_000, queued_ms=120_000, removal_ms=300_000, degraded_ms=400_000)
BUDGET = Circumstances(start_budget_ms=60_000)
QUEUED = Circumstances(start_budget_ms=60_000, queued=True)
STARTS_MS = 660_000
"""Start budget and pull together."""
AWAY = Unknown("node_offline", "node node-a last reported 80 s ago")

UP = running(OLD)
UPGRADING = replace(UP, state=State.UPGRADING, target_hash=NEW.workload.spec_hash)
GOING = replace(UP, state=State.DECOMMISSIONING, sought_since_ms=NOW_MS)
GONE = replace(UP, state=State.DECOMMISSIONED, message="teardown proved")
BROKEN = replace(UP, state=State.FAILED, reason="exited", message="exited 3 times")
REQUESTED = replace(deploying(OLD), state=State.REQUESTED)
DOWN = replace(UP, conditions=(Condition("Ready", "False", "Degraded", "no", REVISION, NOW_MS),))
EXITED = FailureReason.EXITED

CASES: dict[str, tuple[InstanceRecord, WorkloadReport | Unknown | None, int, Health, str]] = {
    "ready": (UP, report(OLD), 0, Health.READY, ""),
    "kept after a failed upgrade": (
        UP, report(NEW, Phase.FAILED, runs=OLD, reason=EXITED, retained=True), 0, Health.READY, "",
    ),
    "task on its way": (deploying(OLD), None, 0, Health.STARTING, "node-a does not have it"),
    "pulling": (deploying(OLD), report(OLD, Phase.PULLING), 0, Health.STARTING, "pulling"),
    "the old one serves on": (UPGRADING, report(OLD), 0, Health.STARTING, "ready"),
    "last moment": (
        deploying(OLD), report(OLD, Phase.PULLING), STARTS_MS - 1, Health.STARTING, "pulling",
    ),
    "pulls for ever": (
        deploying(OLD), report(OLD, Phase.PULLING), STARTS_MS, Health.STUCK,
        "deploying since 2027-01-15T08:00:00Z without an outcome; last heard: pulling",
    ),
    "failed": (BROKEN, report(OLD, Phase.FAILED, reason=EXITED), 0, Health.FAILED, "exited"),
    "failed, forgotten by its node": (BROKEN, None, 0, Health.FAILED, "node-a does not have it"),
    "failure not settled yet": (
        deploying(OLD), report(OLD, Phase.FAILED, reason=EXITED), STARTS_MS,
        Health.FAILED, "exited",
    ),
    "degraded": (UP, report(OLD, Phase.DEGRADED, reason=EXITED), 9, Health.DEGRADED, "exited"),
    "drift": (UP, None, 0, Health.DEGRADED, "node-a does not have it"),
    "degraded for a while": (
        DOWN, report(OLD, Phase.STARTING), 399_999, Health.DEGRADED, "starting",
    ),
    "degraded for long": (
        DOWN, report(OLD, Phase.STARTING), 400_000, Health.STUCK,
        "was ready, and is not since 2027-01-15T08:00:00Z: starting",
    ),
    "started after a long stop": (
        replace(DOWN, sought_since_ms=NOW_MS + 400_000), report(OLD, Phase.STARTING), 400_000,
        Health.DEGRADED, "starting",
    ),
    "stopped": (UP, report(OLD, Phase.STOPPED), 10**9, Health.STOPPED, "told to stop"),
    "requested": (REQUESTED, None, 10**9, Health.STOPPED, "requested, not yet handed to its node"),
    "going": (GOING, report(OLD, Phase.REMOVING), 299_999, Health.STOPPED, "being removed"),
    "going for long": (
        GOING, report(OLD, Phase.REMOVING), 300_000, Health.STUCK,
        "being removed since 2027-01-15T08:00:00Z without proof that it is gone",
    ),
    "no proof": (
        GOING, removed(OLD, None), 300_000, Health.STUCK,
        "being removed since 2027-01-15T08:00:00Z without proof that it is gone",
    ),
    "gone": (GONE, None, 10**9, Health.STOPPED, "teardown proved"),
    "nobody can see": (UP, AWAY, 10**9, Health.UNKNOWN, AWAY.reason),
    "nobody can see it go": (GOING, AWAY, 10**9, Health.UNKNOWN, AWAY.reason),
}  # fmt: skip


def seen(word: WorkloadReport | Unknown | None) -> Seen[WorkloadReport | None]:
    return word if isinstance(word, Unknown) else Known(word)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_one_word(
    case: tuple[InstanceRecord, WorkloadReport | Unknown | None, int, Health, str],
) -> None:
    record, word, after_ms, health, why = case
    found = health_of(record, seen(word), NOW_MS + after_ms, LIMITS, BUDGET)
    assert (found.health, found.why) == (health, why)
    assert bool(found.hint) == (health is Health.STUCK)


def test_every_word_has_a_case() -> None:
    assert {case[3] for case in CASES.values()} == set(Health)


@pytest.mark.parametrize("record", [deploying(OLD), GOING], ids=["launch", "removal"])
@pytest.mark.parametrize(("after_ms", "stuck"), [(119_999, False), (120_000, True)])
def test_a_task_that_its_node_leaves(record: InstanceRecord, after_ms: int, stuck: bool) -> None:
    word = Known(report(OLD) if record is GOING else None)
    found = health_of(record, word, NOW_MS + after_ms, LIMITS, QUEUED)
    assert (found.health is Health.STUCK) == stuck
    if stuck:
        assert found.why == (
            "node-a reports, but has not taken its task since 2027-01-15T08:00:00Z"
        )
    taken = report(OLD, Phase.REMOVING if record is GOING else Phase.PULLING)
    assert health_of(record, Known(taken), NOW_MS + after_ms, LIMITS, QUEUED).health in (
        Health.STARTING, Health.STOPPED,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("state", "attempts", "stuck"),
    [
        (State.FAILED, 1, True),
        (State.DEPLOYING, 2, True),
        (State.DEPLOYING, 0, False),
        (State.RUNNING, 0, False),
        (State.DECOMMISSIONED, 1, False),
    ],
)
def test_waiting_for_what_failed(state: State, attempts: int, stuck: bool) -> None:
    """Also while that is tried again, so that the word does not come and go with each try."""
    other = replace(running(target("db")), state=state, attempts=attempts)
    waits = replace(REQUESTED, depends_on=(other.key,))
    found = healths(inventory(waits, other), desired(OLD), observed(), (), NOW_MS, LIMITS)[
        waits.key
    ]
    assert (found.health is Health.STUCK) == stuck
    if stuck:
        assert found.why == "it waits for acme/research/db, which failed"
        assert found.hint == "mend that one: gpuaas status acme/research/db"


def test_what_should_not_run_and_is_not_there_is_stopped() -> None:
    want = desired(target(version="1.0.0", run="stopped"))
    (found,) = healths(inventory(DOWN), want, observed(), (), NOW_MS + 10**9, LIMITS).values()
    assert found.health is Health.STOPPED


def test_the_budget_is_that_of_the_version() -> None:
    slow = OLD.workload.readiness.model_copy(update={"start_budget_ms": 3_600_000})
    loading = replace(OLD, workload=OLD.workload.model_copy(update={"readiness": slow}))
    record = deploying(loading)
    word = report(loading, Phase.STARTING)
    at_ms = NOW_MS + 3_600_000
    (found,) = healths(
        inventory(record), desired(loading), observed(word), (), at_ms, LIMITS
    ).values()
    assert found.health is Health.STARTING


def test_a_finding_for_what_is_stuck_unless_another_speaks_of_it() -> None:
    key, other = InstanceKey("acme/research/a"), InstanceKey("acme/research/b")
    stuck = HealthSeen(Health.STUCK, NOW_MS, "for ever", "do something")
    told = Finding("stalled", "exited", f"AppInstance/{other}", "given up")
    plan = Plan(REVISION, "base", findings=(told,))
    after = with_stuck(plan, {key: stuck, other: stuck}, desired(), NOW_MS)
    assert after.findings == (
        told,
        Finding("stalled", "stuck", f"AppInstance/{key}", "for ever", "do something"),
    )
    assert (after.plan_id, after.actions) == (plan.plan_id, ())
    assert with_stuck(plan, {}, desired(), NOW_MS) is plan


def test_a_rule_of_the_environment_silences_it() -> None:
    key = InstanceKey("acme/research/a")
    term = Term("ada", "known", NOW_MS + 1)
    rule = IgnoreRule(("AppInstance/acme/*",), frozenset({"stuck"}), term)
    want = desired(guards=Guards(ignore=(rule,)))
    after = with_stuck(
        Plan(REVISION, "base"), {key: HealthSeen(Health.STUCK, 0, "x", "y")}, want, NOW_MS
    )
    assert (after.findings, [one.code for one in after.ignored]) == ((), ["stuck"])


@pytest.mark.parametrize(
    ("status", "reason", "health"),
    [
        ("True", "Ready", Health.READY),
        ("False", "Stuck", Health.STUCK),
        ("Unknown", "NodeOffline", Health.UNKNOWN),
        ("False", "Pulling", Health.UNKNOWN),
    ],
)
def test_what_the_last_pass_told(status: str, reason: str, health: Health) -> None:
    ready = Condition("Ready", status, reason, "why", REVISION, 7)  # type: ignore[arg-type]
    assert told_health(replace(UP, conditions=(ready,))) == HealthSeen(health, 7, "why")
    assert told_health(UP).health is Health.UNKNOWN


def test_what_failed_is_failed_since_then_and_not_since_it_began() -> None:
    ready = Condition("Ready", "False", "Failed", "why", REVISION, 7)
    down = replace(UP, state=State.FAILED, since_ms=12, conditions=(ready,))
    assert told_health(down).since_ms == 12


def test_what_is_gone_is_stopped() -> None:
    assert told_health(GONE).health is Health.STOPPED


WORDS = st.one_of(
    st.none(),
    st.just(AWAY),
    st.builds(
        report,
        st.sampled_from([OLD, NEW]),
        st.sampled_from(Phase),
        reason=st.sampled_from([None, *FailureReason]),
        retained=st.booleans(),
    ),
)


@given(
    st.sampled_from([UP, UPGRADING, GOING, GONE, BROKEN, REQUESTED, DOWN, deploying(OLD)]),
    WORDS,
    st.integers(0, 10**7),
    st.booleans(),
)
def test_it_says_the_same_as_time_goes_on(
    record: InstanceRecord, word: WorkloadReport | Unknown | None, after_ms: int, queued: bool
) -> None:
    """Time may make one stuck, and changes neither the words before that nor those after it."""
    around = replace(BUDGET, queued=queued)
    before = health_of(record, seen(word), NOW_MS + after_ms, LIMITS, around)
    after = health_of(record, seen(word), NOW_MS + after_ms + 10_000, LIMITS, around)
    if after.health is before.health:
        assert (after.why, after.hint) == (before.why, before.hint)
    else:
        assert after.health is Health.STUCK
    if isinstance(word, Unknown) and record.state not in (State.REQUESTED, State.DECOMMISSIONED):
        assert before.health is Health.UNKNOWN
