"""The life of an instance: every transition, its events, and ids that survive a crash."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node_agent.wire import Endpoint, FailureReason, Phase, Proof, WorkloadReport
from reconciler.core import lifecycle
from reconciler.core.actions import Action, Launch, Move, Precondition, Remove, Replace
from reconciler.core.desired import Target
from reconciler.core.lifecycle import TRANSITIONS, Trigger, begin, next_epoch, request, settle
from reconciler.core.names import InstanceKey, Revision
from reconciler.core.observed import Known, Observed, Unknown
from reconciler.core.records import Event, InstanceRecord, Intent, State
from reconciler.core.settle import finished_intents, settle_all
from tests.core.fleet import (
    CLEAN,
    NEXT_REVISION,
    NOW_MS,
    REVISION,
    deploying,
    desired,
    intent,
    inventory,
    observed,
    removed,
    report,
    running,
    target,
)

OLD, NEW = target(version="1.0.0"), target(version="1.1.0")
THEN_MS = NOW_MS + 5_000


def names(events: tuple[Event, ...]) -> list[str]:
    return [event.type.removeprefix("apps.instance.") for event in events]


def launch(of: Target, record: InstanceRecord | None) -> Launch:
    return Launch(
        of.instance.key, "node-a", of.workload, of.instance.version, next_epoch(record), "why",
        Precondition(None),
    )  # fmt: skip


def change(of: Target, record: InstanceRecord, direction: str = "upgrade") -> Replace:
    return Replace(
        of.instance.key, "node-a", of.workload, of.instance.version, record.applied_version,
        "upgrade" if direction == "upgrade" else "rollback", next_epoch(record), "why",
        Precondition(None),
    )  # fmt: skip


def removal(record: InstanceRecord) -> Remove:
    return Remove(
        record.key, record.node, record.target_version, next_epoch(record), "why",
        Precondition(None),
    )  # fmt: skip


def see(record: InstanceRecord, word: WorkloadReport) -> tuple[InstanceRecord, list[str]]:
    moved, events = settle(record, Known(word), THEN_MS)
    return moved, names(events)


def do(
    action: Action, of: Target | None, record: InstanceRecord | None, revision: Revision = REVISION
) -> tuple[InstanceRecord, list[str]]:
    moved, events = begin(action, of, record, revision, THEN_MS)
    return moved, names(events)


def test_launch_to_running() -> None:
    record, events = do(launch(OLD, None), OLD, None)
    assert (record.state, events) == (State.DEPLOYING, ["requested", "deploying"])
    record, events = see(record, report(OLD, Phase.PULLING))
    assert (record.state, events) == (State.DEPLOYING, [])
    record, events = see(record, report(OLD))
    assert (record.state, events) == (State.RUNNING, ["running"])
    assert (record.applied_version, record.applied_hash) == ("1.0.0", OLD.workload.spec_hash)
    assert see(record, report(OLD)) == (record, [])


def test_upgrade_then_rollback() -> None:
    record, events = do(change(NEW, running(OLD)), NEW, running(OLD), NEXT_REVISION)
    assert (record.state, events) == (State.UPGRADING, ["upgrade_requested"])
    record, events = see(record, report(NEW))
    assert (record.state, events) == (State.RUNNING, ["upgraded"])
    assert (record.applied_version, record.previous_version) == ("1.1.0", "1.0.0")
    record, events = do(change(OLD, record, "rollback"), OLD, record)
    assert (record.state, events) == (State.ROLLING_BACK, ["rollback_requested"])
    record, events = see(record, report(OLD))
    assert (record.state, events) == (State.RUNNING, ["rolled_back"])
    assert (record.applied_version, record.previous_version) == ("1.0.0", "1.1.0")


def test_a_move_changes_the_name_and_nothing_of_how_it_stands() -> None:
    for state in (State.RUNNING, State.FAILED, State.UPGRADING):
        before = replace(running(OLD), state=state, reason="exited", attempts=3)
        action = Move(
            InstanceKey("acme/research/hi"), before.key, before.node, 2, "renamed",
            Precondition(None),
        )  # fmt: skip
        after, events = do(action, None, before)
        assert events == ["moved"]
        assert (after.key, after.runtime_name) == (action.instance, before.key)
        assert replace(
            after, key=before.key, runtime_name="", epoch=before.epoch,
            correlation_id=before.correlation_id, told=before.told,
        ) == before  # fmt: skip


def test_upgrade_that_falls_back_by_itself() -> None:
    record, _ = do(change(NEW, running(OLD)), NEW, running(OLD))
    word = report(
        NEW, Phase.FAILED, runs=OLD, reason=FailureReason.NOT_READY_IN_TIME, retained=True
    )
    moved, events = settle(record, Known(word), THEN_MS)
    assert names(events) == ["failed", "rollback_requested", "rolled_back"]
    assert moved.state is State.RUNNING
    assert (moved.applied_version, moved.reason) == ("1.0.0", "not_ready_in_time")
    assert [e.data["version"] for e in events] == ["1.1.0", "1.0.0", "1.0.0"]
    assert see(moved, word) == (moved, [])


def test_a_fall_back_that_takes_a_while_ends_the_same() -> None:
    record, _ = do(change(NEW, running(OLD)), NEW, running(OLD))
    down = report(NEW, Phase.FAILED, reason=FailureReason.EXITED)
    record, events = see(record, down.model_copy(update={"running_hash": None}))
    assert (record.state, record.attempts, events) == (State.FAILED, 1, ["failed"])
    back = report(NEW, Phase.FAILED, runs=OLD, reason=FailureReason.EXITED, retained=True)
    record, told = settle(record, Known(back), THEN_MS)
    assert names(told) == ["rollback_requested", "rolled_back"]
    assert [event.data["version"] for event in told] == ["1.0.0", "1.0.0"]
    assert (record.state, record.attempts, record.reason) == (State.RUNNING, 1, "exited")
    assert see(record, back) == (record, [])


def test_a_rollback_that_fails_is_not_told_as_rolled_back() -> None:
    before = running(NEW, previous="1.0.0")
    record, _ = do(change(OLD, before, "rollback"), OLD, before)
    record, events = see(record, report(OLD, Phase.FAILED, reason=FailureReason.EXITED))
    assert (record.state, events) == (State.FAILED, ["failed"])
    back = report(OLD, Phase.FAILED, runs=NEW, reason=FailureReason.EXITED, retained=True)
    record, events = see(record, back)
    assert (record.state, record.applied_version, events) == (State.RUNNING, "1.1.0", [])


def test_failed_launch_and_recovery() -> None:
    word = report(OLD, Phase.FAILED, reason=FailureReason.OUT_OF_MEMORY)
    record, events = see(deploying(OLD), word)
    assert (record.state, events) == (State.FAILED, ["failed"])
    assert (record.reason, record.attempts) == ("out_of_memory", 1)
    assert see(record, word) == (record, [])
    again, events = do(launch(OLD, record), OLD, record)
    assert (again.state, again.attempts, again.reason) == (State.DEPLOYING, 1, "")
    assert events == ["deploying"]
    twice, _ = see(again, word)
    assert twice.attempts == 2
    well, events = see(again, report(OLD))
    assert (well.state, well.attempts, events) == (State.RUNNING, 0, ["running"])


def test_decommissioned_on_a_clean_proof_only() -> None:
    record, events = do(removal(running(OLD)), None, running(OLD))
    assert (record.state, events) == (State.DECOMMISSIONING, ["decommission_requested"])
    dirty = Proof(checked_at_ms=NOW_MS, containers=1, networks=0, volumes=0, paths=0)
    for word in (report(OLD, Phase.REMOVING), removed(OLD, None), removed(OLD, dirty)):
        assert see(record, word) == (record, [])
    assert settle(record, Known(None), THEN_MS) == (record, ())
    gone, events = see(record, removed(OLD, CLEAN))
    assert (gone.state, events) == (State.DECOMMISSIONED, ["decommissioned"])


def test_incomplete_teardown_is_told_once_and_stays_ours() -> None:
    record, _ = do(removal(running(OLD)), None, running(OLD))
    word = report(OLD, Phase.FAILED, reason=FailureReason.TEARDOWN_INCOMPLETE)
    told, events = see(record, word)
    assert (told.state, told.reason, events) == (
        State.DECOMMISSIONING, "teardown_incomplete", ["failed"],
    )  # fmt: skip
    assert see(told, word) == (told, [])


def test_requested_while_held_keeps_its_correlation() -> None:
    record, events = request(OLD, None, REVISION, NOW_MS)
    assert (record.state, names(events)) == (State.REQUESTED, ["requested"])
    assert request(OLD, record, NEXT_REVISION, NOW_MS) == (record, ())
    begun, more = begin(launch(OLD, record), OLD, record, NEXT_REVISION, THEN_MS)
    assert names(more) == ["deploying"]
    assert begun.correlation_id == record.correlation_id


def test_withdrawn_before_it_was_begun() -> None:
    record, _ = request(OLD, None, REVISION, NOW_MS)
    result = settle_all(desired(), observed(), inventory(record), THEN_MS)
    assert names(result.events) == ["decommission_requested", "decommissioned"]
    assert result.changed[0].state is State.DECOMMISSIONED


def test_a_request_for_another_node_is_withdrawn_where_it_was() -> None:
    record, _ = request(OLD, None, REVISION, NOW_MS)
    elsewhere = replace(OLD, instance=replace(OLD.instance, node="node-b"))
    (moved,) = settle_all(desired(elsewhere), observed(), inventory(record), THEN_MS).changed
    assert (moved.state, moved.node) == (State.DECOMMISSIONED, "node-a")


def test_what_its_node_has_is_not_withdrawn() -> None:
    """The store was lost: requested is all we know, and yet it runs."""
    record, _ = request(OLD, None, REVISION, NOW_MS)
    kept = settle_all(desired(), observed(report(NEW)), inventory(record), THEN_MS)
    assert kept.records[record.key].state is State.REQUESTED
    assert kept.events == ()
    gone = settle_all(desired(), observed(removed(NEW)), inventory(record), THEN_MS)
    assert gone.records[record.key].state is State.DECOMMISSIONED


def test_a_quarantined_request_is_not_withdrawn() -> None:
    record, _ = request(OLD, None, REVISION, NOW_MS)
    held = desired(held={record.key: "broken"})
    assert settle_all(held, observed(), inventory(record), THEN_MS).changed == ()


REFUSED = intent(OLD, state="refused", correlation_id=deploying(OLD).correlation_id)
IDLE = target(version="1.0.0", run="stopped")


def test_a_refused_launch_of_what_is_to_be_stopped_is_called_back() -> None:
    record, records = deploying(OLD), inventory(deploying(OLD))
    result = settle_all(desired(IDLE), observed(), records, THEN_MS, [REFUSED])
    (idle,) = result.changed
    assert (idle.state, idle.gpu_uuids, result.events) == (State.REQUESTED, (), ())
    closed = finished_intents(result.records, [REFUSED], desired(IDLE), observed())
    assert closed == (record.key,)
    begun, told = begin(launch(OLD, idle), OLD, idle, NEXT_REVISION, THEN_MS)
    assert begun.correlation_id != record.correlation_id
    assert names(told) == ["deploying"]


@pytest.mark.parametrize(
    ("wanted", "said", "open_intents"),
    [
        pytest.param(OLD, observed(), [REFUSED], id="wanted running"),
        pytest.param(IDLE, observed(report(OLD)), [REFUSED], id="its node has it"),
        pytest.param(IDLE, Observed({}, {}), [REFUSED], id="its node is silent"),
        pytest.param(IDLE, observed(), [intent(OLD)], id="its node may yet take it"),
        pytest.param(IDLE, observed(), [intent(OLD, state="accepted")], id="its node took it"),
    ],
)
def test_a_launch_that_may_still_be_is_not_called_back(
    wanted: Target, said: Observed, open_intents: list[Intent]
) -> None:
    result = settle_all(desired(wanted), said, inventory(deploying(OLD)), THEN_MS, open_intents)
    assert result.records[OLD.instance.key].state is not State.REQUESTED


def test_an_unknown_node_changes_nothing() -> None:
    record = deploying(OLD)
    assert settle(record, Unknown("node_offline", "silent"), THEN_MS) == (record, ())


def test_a_stale_report_changes_nothing() -> None:
    record, _ = do(change(NEW, running(OLD)), NEW, running(OLD))
    assert see(record, report(OLD)) == (record, [])


def test_adopts_what_runs_as_desired_when_the_store_was_lost() -> None:
    result = settle_all(desired(OLD), observed(report(OLD)), {}, THEN_MS)
    (record,) = result.changed
    assert (record.state, record.applied_version) == (State.RUNNING, "1.0.0")
    assert names(result.events) == ["running"]
    assert settle_all(desired(OLD), observed(report(NEW)), {}, THEN_MS).changed == ()


@pytest.mark.parametrize("state", [State.REQUESTED, State.DECOMMISSIONED])
def test_adopts_what_was_noted_before_its_node_came_back(state: State) -> None:
    """A pass between the loss of the store and the new join has written a record already."""
    record = replace(request(OLD, None, REVISION, NOW_MS)[0], state=state)
    result = settle_all(desired(OLD), observed(report(OLD)), inventory(record), THEN_MS)
    (adopted,) = result.changed
    assert (adopted.state, adopted.applied_version) == (State.RUNNING, "1.0.0")
    assert names(result.events) == ["running"]


def test_a_report_older_than_the_retry_is_not_taken_for_its_end() -> None:
    """Attempted: a pass between a retry and the node's next word, which still tells the failure."""
    failed = replace(running(OLD), state=State.FAILED, applied_hash="", attempts=1)
    retry, _ = do(launch(OLD, failed), OLD, failed)
    word = observed(report(OLD, Phase.FAILED, reason=FailureReason.EXITED))
    queued = intent(OLD, correlation_id=retry.correlation_id)
    early = settle_all(desired(OLD), word, inventory(retry), THEN_MS, [queued])
    assert (early.changed, early.events) == ((), ())
    taken = replace(queued, state="accepted")
    late = settle_all(desired(OLD), word, inventory(retry), THEN_MS, [taken])
    assert names(late.events) == ["failed"]
    assert late.records[retry.key].attempts == 2


def test_new_life_after_decommission_has_ids_of_its_own() -> None:
    first, told = begin(launch(OLD, None), OLD, None, REVISION, NOW_MS)
    gone = replace(first, state=State.DECOMMISSIONED)
    second, again = begin(launch(OLD, gone), OLD, gone, REVISION, NOW_MS)
    assert names(again) == ["requested", "deploying"]
    assert second.epoch == 2
    assert {e.event_id for e in told}.isdisjoint(e.event_id for e in again)


def test_same_step_twice_gives_the_same_ids() -> None:
    once = begin(launch(OLD, None), OLD, None, REVISION, NOW_MS)[1]
    later = begin(launch(OLD, None), OLD, None, REVISION, THEN_MS)[1]
    assert [e.event_id for e in once] == [e.event_id for e in later]


def test_finished_intents_are_those_whose_operation_ended() -> None:
    record = running(OLD)
    done = intent(OLD, state="accepted", correlation_id=record.correlation_id)
    seen = (desired(OLD), observed(report(OLD)))
    assert finished_intents(inventory(record), [done], *seen) == (record.key,)
    assert finished_intents(inventory(record), [replace(done, state="queued")], *seen) == ()
    assert finished_intents(inventory(deploying(OLD)), [done], *seen) == ()
    # One of an earlier operation is over once a later one has come to rest, and not before.
    earlier = replace(done, correlation_id="x")
    assert finished_intents(inventory(record), [earlier], *seen) == (record.key,)
    assert finished_intents(inventory(deploying(OLD)), [earlier], *seen) == ()


def test_a_stop_is_finished_when_the_node_says_stopped() -> None:
    stopped, record = target(version="1.0.0", run="stopped"), running(OLD)
    asked = intent(OLD, "control", state="accepted", correlation_id=record.correlation_id)
    want = desired(stopped)

    def finished(word: WorkloadReport | None) -> bool:
        seen = observed(word) if word else observed()
        return bool(finished_intents(inventory(record), [asked], want, seen))

    assert not finished(report(OLD))
    # Its agent lost track of it, and nothing of it runs.
    assert finished(None)
    assert finished(report(OLD, Phase.STOPPED))
    assert finished_intents(inventory(record), [asked], desired(), observed()) == (record.key,)


def test_every_state_can_be_left_and_reached() -> None:
    reached = {step.to for step in TRANSITIONS.values()}
    left = {state for state, _ in TRANSITIONS if state is not None}
    assert reached == set(State)
    assert left == set(State)
    assert all(lifecycle.allowed(state, trigger) for state, trigger in TRANSITIONS)


WORDS = st.sampled_from(
    [report(OLD, phase) for phase in Phase]
    + [report(NEW, phase) for phase in Phase]
    + [
        removed(OLD),
        report(NEW, Phase.FAILED, runs=OLD, reason=FailureReason.EXITED, retained=True),
        report(OLD, Phase.FAILED, reason=FailureReason.TEARDOWN_INCOMPLETE),
    ]
)


@given(st.lists(st.one_of(WORDS, st.sampled_from(["old", "new", "remove"])), max_size=25))
def test_any_story_keeps_events_unique_and_states_legal(
    story: list[WorkloadReport | str],
) -> None:
    record: InstanceRecord | None = None
    events: list[Event] = []
    for step in story:
        moved: tuple[InstanceRecord, tuple[Event, ...]] | None = None
        if isinstance(step, WorkloadReport):
            moved = settle(record, Known(step), NOW_MS) if record else None
        elif step == "remove":
            if record and lifecycle.allowed(record.state, Trigger.DECOMMISSION):
                moved = begin(removal(record), None, record, REVISION, NOW_MS)
        else:
            of = OLD if step == "old" else NEW
            if lifecycle.allowed(record.state if record else None, Trigger.DEPLOY):
                moved = begin(launch(of, record), of, record, REVISION, NOW_MS)
        if moved is not None:
            record = moved[0]
            events += moved[1]
    ids = [event.event_id for event in events]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("state", [s for s in State if s is not State.DECOMMISSIONED])
def test_whatever_was_begun_can_be_decommissioned(state: State) -> None:
    assert lifecycle.allowed(state, Trigger.DECOMMISSION)


def test_what_is_stopped_answers_nowhere() -> None:
    port = Endpoint(name="http", container=80, host_ip="127.0.0.1", host_port=20001)
    up = report(OLD).model_copy(update={"endpoints": (port,)})
    down = report(OLD, Phase.STOPPED).model_copy(update={"endpoints": (port,)})
    assert settle(running(OLD), Known(up), THEN_MS)[0].endpoints == (port,)
    assert settle(running(OLD), Known(down), THEN_MS)[0].endpoints == ()
