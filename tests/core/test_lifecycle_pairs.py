"""Every pair of a state and a trigger stands in the table, or is impossible for a stated reason."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import product

import pytest

from docs.impossible import IMPOSSIBLE
from node_agent.compose_wire import ServicePhase
from node_agent.wire import FailureReason, Phase, WorkloadReport
from reconciler.core.actions import Launch, Precondition, Remove, Replace
from reconciler.core.lifecycle import (
    EVENT,
    TRANSITIONS,
    Trigger,
    begin,
    next_epoch,
    settle,
)
from reconciler.core.names import Revision
from reconciler.core.observed import Known
from reconciler.core.plan.instances import RETRY_MAX_MS, retry_pause_ms
from reconciler.core.records import Change, Event, InstanceRecord, State
from tests.core.fleet import (
    CLEAN,
    NOW_MS,
    REVISION,
    deploying,
    removed,
    report,
    running,
    target,
)

OLD, NEW = target(version="1.0.0"), target(version="1.1.0")
STATES: tuple[State | None, ...] = (None, *State)
LATER_MS = NOW_MS + 60_000


def impossible() -> list[tuple[State | None, Trigger]]:
    return [pair for states, triggers, _ in IMPOSSIBLE for pair in product(states, triggers)]


def test_every_pair_has_its_one_place() -> None:
    places = Counter([*TRANSITIONS, *impossible()])
    assert {pair: places[pair] for pair in product(STATES, Trigger) if places[pair] != 1} == {}
    assert places.keys() <= set(product(STATES, Trigger))


def test_every_reason_is_said() -> None:
    reasons = [why for _, _, why in IMPOSSIBLE]
    assert len(set(reasons)) == len(reasons)
    assert all(len(why.split()) > 3 for why in reasons)


WORDS = [
    *(report(OLD, phase, reason=reason) for phase in Phase for reason in (None, *FailureReason)),
    *(
        report(OLD, Phase.FAILED, runs=NEW, reason=FailureReason.EXITED, retained=kept)
        for kept in (False, True)
    ),
    removed(OLD),
    removed(OLD, CLEAN.model_copy(update={"volumes": 1})),
]


@pytest.mark.parametrize("state", State)
def test_no_report_leads_where_the_table_does_not(state: State) -> None:
    """Whatever a node says, in whatever state: `settle` takes a step of the table, or none."""
    known = {(start, step.to) for (start, _), step in TRANSITIONS.items()}
    for word, applied in product(WORDS, ("", OLD.workload.spec_hash, NEW.workload.spec_hash)):
        before = replace(running(OLD), state=state, applied_hash=applied)
        after, events = settle(before, Known(word), LATER_MS)
        assert after.state is state or (state, after.state) in known
        made = {step.events for (start, _), step in TRANSITIONS.items() if start is state}
        assert tuple(e.type.removeprefix(EVENT) for e in events) in made | {()}


# --- both sides of a change ----------------------------------------------------------------------


def upgrade(record: InstanceRecord, back: bool = False) -> Replace:
    of = OLD if back else NEW
    return Replace(
        record.key, record.node, of.workload, of.instance.version, record.applied_version,
        "rollback" if back else "upgrade", next_epoch(record), "why", Precondition(None),
    )  # fmt: skip


VERSIONS = {str(of.workload.image.digest): of.instance.version for of in (OLD, NEW)}


def sides(event: Event) -> tuple[str, str, str, str]:
    """What happened, from which version, to which, why; digests have to belong to the versions."""
    data = event.data
    named = (data.get("version_from", "-"), data.get("version", "-"))
    assert named == tuple(
        VERSIONS.get(data.get(name, ""), "-") for name in ("digest_from", "digest")
    )
    return event.type.removeprefix(EVENT), *named, data.get("reason", "")


def test_an_upgrade_and_the_way_back_name_both_sides() -> None:
    record, told = begin(upgrade(running(OLD)), NEW, running(OLD), REVISION, NOW_MS)
    record, more = settle(record, Known(report(NEW)), LATER_MS)
    assert [sides(e) for e in (*told, *more)] == [
        ("upgrade_requested", "1.0.0", "1.1.0", ""),
        ("upgraded", "1.0.0", "1.1.0", ""),
    ]
    record, told = begin(upgrade(record, back=True), OLD, record, REVISION, NOW_MS)
    record, more = settle(record, Known(report(OLD)), LATER_MS)
    assert [sides(e) for e in (*told, *more)] == [
        ("rollback_requested", "1.1.0", "1.0.0", ""),
        ("rolled_back", "1.1.0", "1.0.0", ""),
    ]


@pytest.mark.parametrize("at_once", [True, False])
def test_the_automatic_return_names_both_sides_and_why(at_once: bool) -> None:
    """Whether the failure is heard of together with the return, or before it."""
    record, _ = begin(upgrade(running(OLD)), NEW, running(OLD), REVISION, NOW_MS)
    why = FailureReason.NOT_READY_IN_TIME
    told: tuple[Event, ...] = ()
    if not at_once:
        record, told = settle(record, Known(report(NEW, Phase.FAILED, reason=why)), LATER_MS)
    back: WorkloadReport = report(NEW, Phase.FAILED, runs=OLD, reason=why, retained=True)
    record, more = settle(record, Known(back), LATER_MS)
    assert [sides(e) for e in (*told, *more)] == [
        ("failed", "1.0.0", "1.1.0", "not_ready_in_time"),
        ("rollback_requested", "1.1.0", "1.0.0", "not_ready_in_time"),
        ("rolled_back", "1.1.0", "1.0.0", "not_ready_in_time"),
    ]
    assert (record.state, record.reason) == (State.RUNNING, "not_ready_in_time")
    assert (record.applied_version, record.target_version) == ("1.0.0", "1.1.0")


def test_a_first_launch_comes_from_nothing() -> None:
    action = Launch(OLD.instance.key, "node-a", OLD.workload, "1.0.0", 1, "why", Precondition(None))
    record, told = begin(action, OLD, None, REVISION, NOW_MS)
    _, more = settle(record, Known(report(OLD)), LATER_MS)
    assert [sides(e) for e in (*told, *more)] == [
        ("requested", "-", "1.0.0", ""),
        ("deploying", "-", "1.0.0", ""),
        ("running", "-", "1.0.0", ""),
    ]


def test_an_event_tells_when_its_commit_was_seen() -> None:
    change = Change(REVISION, NOW_MS - 500, "x")
    record = replace(deploying(OLD), change=change)
    (event,) = settle(record, Known(report(OLD)), LATER_MS)[1]
    assert event.data["revision_seen_ms"] == str(NOW_MS - 500)
    other = replace(record, change=replace(change, revision=Revision("f" * 40)))
    (event,) = settle(other, Known(report(OLD)), LATER_MS)[1]
    assert "revision_seen_ms" not in event.data


# --- since when ----------------------------------------------------------------------------------


def test_asking_again_for_the_same_does_not_start_the_clock() -> None:
    record = deploying(OLD)
    launch = Launch(record.key, "node-a", OLD.workload, "1.0.0", 2, "why", Precondition(None))
    again, _ = begin(launch, OLD, record, REVISION, LATER_MS)
    assert (again.sought_since_ms, again.since_ms) == (NOW_MS, LATER_MS)
    other, _ = begin(replace(launch, workload=NEW.workload), NEW, record, REVISION, LATER_MS)
    assert other.sought_since_ms == LATER_MS
    failed = replace(record, state=State.FAILED)
    assert begin(launch, OLD, failed, REVISION, LATER_MS)[0].sought_since_ms == LATER_MS
    drifted = running(OLD)
    assert begin(launch, OLD, drifted, REVISION, LATER_MS)[0].sought_since_ms == LATER_MS


def test_a_removal_asked_for_again_goes_on_from_when_it_began() -> None:
    action = Remove(OLD.instance.key, "node-a", "1.0.0", 2, "why", Precondition(None))
    going, _ = begin(action, None, running(OLD), REVISION, NOW_MS)
    again, _ = begin(replace(action, epoch=3), None, going, REVISION, LATER_MS)
    assert (again.sought_since_ms, again.since_ms) == (NOW_MS, LATER_MS)


@pytest.mark.parametrize("reason", [FailureReason.FLAPPING, FailureReason.EXITED])
def test_what_ran_and_failed_has_the_longest_pause_and_a_commit_ends_it(
    reason: FailureReason,
) -> None:
    services = (ServicePhase(name="api", phase="failed", vital=True),)
    word = report(OLD, Phase.FAILED, reason=reason).model_copy(update={"services": services})
    tripped, (event,) = settle(running(OLD), Known(word), LATER_MS)
    assert (tripped.state, event.data["reason"]) == (State.FAILED, reason.value)
    assert retry_pause_ms(tripped.attempts) == RETRY_MAX_MS
    mended, _ = begin(upgrade(tripped), NEW, tripped, REVISION, LATER_MS)
    assert mended.attempts == 0
