"""What the simulator found, each as small as it gets; the seeds: tests/sim/regressions.txt."""

from __future__ import annotations

from dataclasses import replace

from node_agent.wire import Phase, Stray
from reconciler.core import lifecycle
from reconciler.core.names import InstanceKey
from reconciler.core.observed import Known, Observed
from reconciler.core.plan.compute import compute_plan
from reconciler.core.plan.instances import ACCEPTED_SHOWS_MS
from reconciler.core.plan.moves import holding, runtime_names, under_our_names
from reconciler.core.records import State
from reconciler.core.settle import finished_intents, settle_all
from tests.core.fleet import (
    NODE,
    NOW_MS,
    REVISION,
    deploying,
    desired,
    intent,
    inventory,
    key_of,
    node,
    observed,
    removed,
    report,
    running,
    target,
)

HELLO = target("hello")


def test_the_tombstone_of_a_former_life_does_not_hide_who_was_renamed_to_its_name() -> None:
    renamed = replace(running(HELLO), key=key_of("hi"), runtime_name=key_of("hello"))
    hi = target("hi", called="hello")
    records, instances = inventory(renamed), {key_of("hi"): hi.instance}
    see = observed(report(HELLO), removed(target("hi")))
    names = runtime_names(instances, records, see.nodes)
    seen = under_our_names(see, instances, records, names)
    told = seen.workload(NODE, key_of("hi"))
    assert isinstance(told, Known)
    assert told.value is not None
    assert told.value.phase is Phase.READY
    assert compute_plan(desired(hi), seen, records, (), NOW_MS).empty


def test_what_a_workload_had_is_held_until_the_next_one_is_ready() -> None:
    large, small = target("hello", gpus=("GPU-1",)), target("hello", version="1.1.0")
    action = compute_plan(
        desired(small), observed(report(large)), inventory(running(large)), (), NOW_MS
    ).ready[0]
    begun, _ = lifecycle.begin(action, small, running(large), REVISION, NOW_MS)
    other = target("other", gpus=("GPU-1",))
    plan = compute_plan(
        desired(small, other), observed(report(large)), inventory(begun), (), NOW_MS
    )
    launch = next(a for a in plan.actions if a.instance == key_of("other"))
    assert launch.held is not None
    assert launch.held.code == "resource_in_use"
    ready, _ = lifecycle.settle(begun, Known(report(small)), NOW_MS)
    assert ready.state is State.RUNNING
    assert (ready.gpu_uuids, ready.former_gpu_uuids) == ((), ())


def test_the_tasks_of_one_stopped_before_it_was_ready_are_closed() -> None:
    stopped = target("hello", run="stopped")
    record = deploying(HELLO)
    asked = intent(HELLO, "launch", state="accepted", correlation_id=record.correlation_id)
    seen = observed(report(HELLO, Phase.STOPPED))
    assert finished_intents(inventory(record), [asked], desired(stopped), seen) == (record.key,)
    assert finished_intents(inventory(record), [asked], desired(HELLO), seen) == ()


def test_on_another_node_a_renamed_instance_has_its_own_name() -> None:
    renamed = replace(running(HELLO), key=key_of("hi"), runtime_name=key_of("hello"))
    moved = target("hi", node="node-b")
    records, instances = inventory(renamed), {key_of("hi"): moved.instance}
    assert runtime_names(instances, records, {}) == {}
    here = {key_of("hi"): target("hi").instance}
    assert runtime_names(here, records, {}) == {key_of("hi"): key_of("hello")}


def test_nobody_is_launched_under_the_name_of_one_that_is_there() -> None:
    hi = target("hi", called="hello", node="node-b")
    there = replace(running(HELLO), node="node-b")
    at_b = {"node-b": node(report(HELLO), name="node-b")}
    see = Observed(artifacts=observed().artifacts, nodes=at_b)
    want = desired(target("hello", node="node-b"), hi, nodes=frozenset({"node-b"}))
    plan = compute_plan(want, see, inventory(there), (), NOW_MS)
    launch = next(a for a in plan.actions if a.instance == key_of("hi"))
    assert launch.held is not None
    assert launch.held.code == "name_in_use_on_node"


def test_what_has_gone_holds_nothing() -> None:
    gone = replace(running(HELLO), state=State.DECOMMISSIONED)
    assert holding((), inventory(gone)) == {}
    assert holding((), inventory(running(HELLO))) == {InstanceKey(key_of("hello")): ()}


def test_a_rename_waits_for_the_former_bearer_of_the_name_to_be_gone() -> None:
    hi = target("hi", moved_from="hello")
    leaving = replace(running(target("hi")), state=State.DECOMMISSIONING)
    seen = observed(report(HELLO), report(target("hi"), Phase.REMOVING))
    records = inventory(running(HELLO), leaving)
    plan = compute_plan(desired(hi), seen, records, (), NOW_MS)
    assert [action.instance for action in plan.actions] == []
    assert {one.instance for one in plan.waiting} == {key_of("hi"), key_of("hello")}
    gone = inventory(running(HELLO), replace(leaving, state=State.DECOMMISSIONED))
    after = compute_plan(desired(hi), observed(report(HELLO)), gone, (), NOW_MS)
    assert [action.kind for action in after.actions] == ["move"]


def test_two_that_want_one_name_on_a_node_do_not_both_get_it() -> None:
    """One was called so before it was renamed; its teardown was proved in this very pass."""
    gone = replace(running(HELLO), key=key_of("hi"), state=State.DECOMMISSIONED)
    plan = compute_plan(
        desired(target("hi", called="hello"), HELLO), observed(), inventory(gone), (), NOW_MS
    )
    assert {a.instance: a.held and a.held.code for a in plan.actions} == {
        key_of("hello"): None,
        key_of("hi"): "name_in_use_on_node",
    }


def test_what_a_node_refused_is_closed_once_its_instance_rests_without_it() -> None:
    record, see = running(HELLO), observed(report(HELLO))
    for state in ("refused", "accepted"):
        old = replace(intent(HELLO), state=state, correlation_id="of an earlier operation")
        assert finished_intents(inventory(record), [old], desired(HELLO), see) == (record.key,)
    waiting = replace(intent(HELLO), state="queued")
    assert finished_intents(inventory(record), [old, waiting], desired(HELLO), see) == ()
    failed = replace(record, state=State.FAILED)
    refused = replace(intent(HELLO), state="refused")
    assert finished_intents(inventory(failed), [refused], desired(HELLO), see) == ()


def test_a_launch_in_the_middle_of_which_its_instance_was_renamed_is_closed() -> None:
    taken = replace(intent(HELLO), state="accepted")
    hi = target("hi", called="hello")
    renamed = replace(
        deploying(HELLO), key=key_of("hi"), runtime_name=key_of("hello"),
        correlation_id=taken.correlation_id,
    )  # fmt: skip
    see = observed(report(hi))
    assert finished_intents(inventory(renamed), [taken], desired(hi), see) == ()
    for rests in (
        replace(renamed, state=State.RUNNING),
        replace(renamed, state=State.DECOMMISSIONED, correlation_id="of its removal"),
        replace(running(hi), correlation_id="of a later operation"),
    ):
        closed = finished_intents(inventory(rests), [taken], desired(hi), see)
        assert closed == (HELLO.instance.key,)
    for other in (replace(taken, state="queued"), replace(taken, kind="pull_blob")):
        assert finished_intents(inventory(running(hi)), [other], desired(hi), see) == ()


def test_what_rests_and_its_agent_forgot_needs_nobody_to_stop_it() -> None:
    stopped = target("hello", run="stopped")
    records, seen = inventory(running(HELLO)), node()
    assert isinstance(seen, Known)
    told = intent(HELLO, "control", state="refused")
    for alive in (True, False):
        stray = Stray(name="x", instance=str(key_of("hello")), spec_hash=None, alive=alive)
        see = Observed(nodes={NODE: Known(replace(seen.value, strays=(stray,)))})
        done = finished_intents(records, [told], desired(stopped), see)
        assert done == (() if alive else (key_of("hello"),))
        assert finished_intents(records, [told], desired(HELLO), see) == ()


def test_a_launch_that_its_node_lost_is_recalled_where_it_is_to_be_stopped() -> None:
    want, record = desired(target("hello", run="stopped")), deploying(HELLO)
    taken = intent(HELLO, "launch", state="accepted", correlation_id=record.correlation_id)
    stray = Stray(name="x", instance=str(record.key), spec_hash=None, alive=True)

    def state(late_ms: int, *strays: Stray) -> State:
        seen = node()
        assert isinstance(seen, Known)
        see = Observed(nodes={NODE: Known(replace(seen.value, strays=strays))})
        now_ms = taken.created_at_ms + late_ms
        settled = settle_all(want, see, inventory(record), now_ms, [taken])
        return settled.records[record.key].state

    assert state(ACCEPTED_SHOWS_MS) is State.REQUESTED
    assert state(ACCEPTED_SHOWS_MS - 1) is State.DEPLOYING
    assert state(ACCEPTED_SHOWS_MS, stray) is State.DEPLOYING
