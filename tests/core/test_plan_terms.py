"""Suspensions, windows, manual mode and known drift: what they hold, and that they end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from node_agent.wire import FailureReason, Phase
from reconciler.core.actions import action_id
from reconciler.core.desired import Desired, Guards, IgnoreRule, Term, Window
from reconciler.core.health import HealthLimits, healths
from reconciler.core.observed import Observed
from reconciler.core.plan import Plan
from reconciler.core.plan.compute import compute_plan
from reconciler.core.records import InstanceRecord, PassResult, State
from reconciler.core.status import with_conditions
from reconciler.record import result_of
from tests.core.fleet import (
    NEXT_REVISION,
    NOW_MS,
    desired,
    inventory,
    observed,
    report,
    running,
    target,
)

OLD, NEW = target(version="1.0.0"), target(version="1.1.0")
UNTIL_MS = NOW_MS + 3_600_000
TERM = Term("ada", "the demo is on", UNTIL_MS)
ENDED = replace(TERM, until_ms=NOW_MS)
SHUT = Window("never-now", "deny", frozenset(range(7)), 0, 1440, "UTC")
DRIFTED, UP = observed(), observed(report(OLD))


def plan(want: Desired, see: Observed, records: Sequence[InstanceRecord], **rest: Any) -> Plan:
    return compute_plan(want, see, inventory(*records), (), rest.pop("now_ms", NOW_MS), **rest)


def only(p: Plan) -> tuple[str, str, str, int | None]:
    """(kind, cause, code of what holds it, until when) of the one action."""
    (action,) = p.actions
    held = action.held
    return (
        action.kind, action.cause, held.code if held else "", held.until_ms if held else None,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("want", "what"),
    [
        (desired(OLD, guards=Guards(suspend=TERM)), "the environment"),
        # An instance has the term of its project, too.
        (desired(target(suspend=TERM), suspended={"acme/research": TERM}), "project acme/research"),
        (desired(target(suspend=TERM)), "the instance"),
        (
            desired(
                target(suspend=TERM), guards=Guards(suspend=replace(TERM, until_ms=NOW_MS + 1))
            ),
            "the instance",
        ),
    ],
    ids=["environment", "project", "instance", "the last to end"],
)
def test_a_suspension_shows_drift_and_leaves_it(want: Desired, what: str) -> None:
    p = plan(want, DRIFTED, [running(OLD)])
    assert only(p) == ("launch", "drift", "suspended", UNTIL_MS)
    assert p.wake_at_ms == UNTIL_MS
    held = p.actions[0].held
    assert held is not None
    assert held.message == (
        f"{what} is suspended by ada until 2027-01-15T09:00:00Z: the demo is on"
    )
    after = plan(want, DRIFTED, [running(OLD)], now_ms=UNTIL_MS)
    assert only(after) == ("launch", "drift", "", None)


def test_a_suspension_beats_every_other_reason() -> None:
    want = desired(target(suspend=TERM))
    assert only(plan(want, Observed(), [])) == ("launch", "change", "suspended", UNTIL_MS)
    failed = observed(report(OLD, Phase.FAILED, reason=FailureReason.EXITED))
    record = replace(running(OLD), state=State.FAILED, attempts=1, applied_hash="")
    assert only(plan(want, failed, [record])) == ("launch", "retry", "suspended", UNTIL_MS)


def test_a_suspended_project_keeps_what_its_files_no_longer_name() -> None:
    p = plan(desired(suspended={"acme/research": TERM}), UP, [running(OLD)])
    assert only(p) == ("remove", "change", "suspended", UNTIL_MS)
    p = plan(desired(suspended={"acme/serving": TERM}), UP, [running(OLD)])
    assert only(p) == ("remove", "change", "", None)


@pytest.mark.parametrize(
    "guards",
    [
        Guards(suspend=ENDED),
        Guards(windows=(SHUT,), break_glass=TERM),
        Guards(ignore=(IgnoreRule(("AppInstance/*",), frozenset({"drift"}), ENDED),)),
    ],
    ids=["suspension ended", "break glass", "rule ended"],
)
def test_what_has_ended_holds_nothing(guards: Guards) -> None:
    assert only(plan(desired(NEW, guards=guards), UP, [running(OLD)]))[2] == ""


def test_windows_hold_changes_and_let_repairs_and_retries_through() -> None:
    guards = Guards(windows=(SHUT,))
    change = plan(desired(NEW, guards=guards), UP, [running(OLD)])
    assert only(change)[:3] == ("replace", "change", "inside_deny_window")
    drift = plan(desired(OLD, guards=guards), DRIFTED, [running(OLD)])
    assert only(drift) == ("launch", "drift", "", None)
    failed = observed(report(OLD, Phase.FAILED, reason=FailureReason.EXITED))
    again = replace(running(OLD), state=State.FAILED, attempts=1, since_ms=0)
    assert only(plan(desired(OLD, guards=guards), failed, [again])) == ("launch", "retry", "", None)
    going = replace(running(OLD), state=State.DECOMMISSIONING)
    assert only(plan(desired(guards=guards), UP, [going])) == ("remove", "retry", "", None)


def test_a_change_does_not_pass_for_drift() -> None:
    """Attempted: to change a version outside the window by removing the container first."""
    p = plan(desired(NEW, guards=Guards(windows=(SHUT,))), DRIFTED, [running(OLD)])
    assert only(p)[:3] == ("launch", "change", "inside_deny_window")


def test_broken_glass_is_shown_and_budgets_hold() -> None:
    guards = Guards(0, 0, windows=(SHUT,), break_glass=TERM)
    p = plan(desired(guards=guards), UP, [running(OLD)])
    assert p.break_glass == TERM
    assert only(p)[2] == "removal_budget"
    ended = replace(guards, break_glass=ENDED)
    assert plan(desired(guards=ended), UP, [running(OLD)]).break_glass is None


def test_known_drift_is_left_alone_and_changes_are_not() -> None:
    rule = IgnoreRule(("AppInstance/acme/*",), frozenset({"drift"}), TERM)
    guards = Guards(ignore=(rule,))
    p = plan(desired(OLD, guards=guards), DRIFTED, [running(OLD)])
    assert only(p) == ("launch", "drift", "ignored", UNTIL_MS)
    assert p.actions[0].held is not None
    assert p.actions[0].held.message.startswith("left alone for ada until 2027-01-15T09:00:00Z")
    assert result_of(p, (), None) == "done"
    assert only(plan(desired(NEW, guards=guards), UP, [running(OLD)]))[2] == ""
    elsewhere = replace(rule, objects=("AppInstance/other/*",))
    p = plan(desired(OLD, guards=Guards(ignore=(elsewhere,))), DRIFTED, [running(OLD)])
    assert only(p)[2] == ""


def test_a_rule_silences_a_finding_and_frees_nothing() -> None:
    rule = IgnoreRule(("AppInstance/*/research/h?llo",), frozenset({"quarantined"}), TERM)
    held = {OLD.instance.key: "its version is missing"}
    want = desired(held=held, guards=Guards(ignore=(rule,)))
    p = plan(want, UP, [running(OLD)])
    assert (p.findings, p.actions) == ((), ())
    assert [f.code for f in p.ignored] == ["quarantined"]
    over = plan(want, UP, [running(OLD)], now_ms=UNTIL_MS)
    assert [f.code for f in over.findings] == ["quarantined"]


def test_manual_mode_waits_for_the_plan_and_repairs_all_the_same() -> None:
    want = desired(NEW, guards=Guards(manual=True))
    p = plan(want, UP, [running(OLD)])
    assert only(p) == ("replace", "change", "awaiting_apply", None)
    assert p.actions[0].held is not None
    message = p.actions[0].held.message
    assert message == f"changes are applied by hand here: gpuaas apply {p.plan_id}"
    applied = plan(want, UP, [running(OLD)], approved=frozenset({p.plan_id}))
    assert only(applied)[2] == ""
    assert (applied.plan_id, applied.approved, p.approved) == (p.plan_id, True, False)
    drift = plan(desired(OLD, guards=Guards(manual=True)), DRIFTED, [running(OLD)])
    assert only(drift) == ("launch", "drift", "", None)


def test_an_old_plan_is_not_carried_out() -> None:
    guards = Guards(manual=True)
    old = plan(desired(NEW, guards=guards), UP, [running(OLD)]).plan_id
    now = desired(NEW, guards=guards, revision=NEXT_REVISION)
    p = plan(now, UP, [running(OLD)], approved=frozenset({old}))
    assert only(p)[2] == "awaiting_apply"
    (outdated,) = (f for f in p.findings if f.code == "plan_outdated")
    assert outdated.object == f"Plan/{old}"
    assert outdated.message == (
        f"what it was made from has changed since: the plan is {p.plan_id} now"
    )


def test_what_was_applied_stays_so_while_something_else_holds_it() -> None:
    want = desired(NEW, guards=Guards(manual=True))
    (action,) = plan(want, UP, [running(OLD)]).actions
    agreed = replace(running(OLD), approved=action_id(action))
    assert only(plan(want, UP, [agreed]))[2] == ""


def test_the_plan_keeps_its_id_whatever_holds_it() -> None:
    first, second = target("a", "1.1.0", gpus=("GPU-1",)), target("b", gpus=("GPU-1",))
    records = [running(target("a", gpus=("GPU-2",))), running(target("c", gpus=("GPU-1",)))]
    see = observed(report(target("a", gpus=("GPU-2",))), report(target("c", gpus=("GPU-1",))))
    all_guards = (
        Guards(9, 100), Guards(0, 0), Guards(manual=True), Guards(suspend=TERM),
        Guards(windows=(SHUT,)), Guards(tombstones=True),
    )  # fmt: skip
    ids = {
        plan(desired(first, second, guards=guards), see, records).plan_id for guards in all_guards
    }
    assert len(ids) == 1
    want = desired(first, second, guards=Guards(9, 100, manual=True))
    p = plan(want, see, records, approved=frozenset(ids))
    assert p.approved
    assert {a.held.code for a in p.held if a.held} == {"resource_in_use"}


def test_the_earliest_moment_wakes() -> None:
    soon = replace(TERM, until_ms=NOW_MS + 5)
    want = desired(target("a", suspend=TERM), target("b", suspend=soon))
    assert plan(want, observed(), []).wake_at_ms == NOW_MS + 5
    assert plan(desired(OLD), UP, [running(OLD)]).wake_at_ms is None


@pytest.mark.parametrize(
    ("want", "see", "result", "reason"),
    [
        (desired(target(suspend=TERM)), DRIFTED, "waiting", "Suspended"),
        (desired(NEW, guards=Guards(windows=(SHUT,))), UP, "waiting", "InsideDenyWindow"),
        (desired(NEW, guards=Guards(manual=True)), UP, "stalled", "AwaitingApply"),
        (desired(guards=Guards(0, 0)), UP, "stalled", "RemovalBudget"),
        (desired(guards=Guards(tombstones=True)), UP, "stalled", "TombstoneMissing"),
        (desired(OLD), UP, "done", "AsDesired"),
    ],
    ids=["suspended", "window", "manual", "budget", "tombstone", "converged"],
)
def test_how_a_pass_ends_and_what_its_instance_says(
    want: Desired, see: Observed, result: PassResult, reason: str
) -> None:
    """What only a person can settle ends a wait at once; what a moment settles is waited for."""
    records = [running(OLD)]
    p = plan(want, see, records)
    assert result_of(p, (), None) == result
    found = healths(inventory(*records), want, see, (), NOW_MS, HealthLimits())
    (after,) = with_conditions(inventory(*records), want, found, p, NOW_MS).values()
    converged = next(c for c in after.conditions if c.type == "Converged")
    assert converged.reason == reason
