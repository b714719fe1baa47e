"""Renames: what runs goes on under its new name, and nothing is taken from anybody by a word."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node_agent.wire import Stray
from reconciler.core.accept import AcceptedState, to_desired
from reconciler.core.actions import Move, Precondition
from reconciler.core.desired import Desired, Guards, Term
from reconciler.core.health import HealthLimits, healths
from reconciler.core.lifecycle import begin
from reconciler.core.names import InstanceKey
from reconciler.core.observed import Known, NodeSeen, Observed
from reconciler.core.plan import Plan
from reconciler.core.plan.compute import compute_plan
from reconciler.core.plan.moves import runtime_names, under_our_names
from reconciler.core.records import Accepted, InstanceRecord, Intent, State, node_name
from reconciler.core.settle import settle_all
from reconciler.core.status import with_conditions
from renderers import CannotRender
from tests.core.fleet import (
    NODE,
    NOW_MS,
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

LOOSE = Guards(99, 100)
HELLO = target("hello")
HI = target("hi", moved_from="hello", called="hello")
BOTH_GONE = desired(guards=LOOSE)


def plan(
    want: Desired,
    see: Observed,
    records: Sequence[InstanceRecord] = (),
    intents: Sequence[Intent] = (),
    now_ms: int = NOW_MS,
) -> Plan:
    return compute_plan(want, see, inventory(*records), intents, now_ms)


def kinds(p: Plan) -> list[str]:
    return [
        f"{a.kind} {a.instance.rpartition('/')[2]}" + (f" {a.held.code}" if a.held else "")
        for a in p.actions
    ]


def moved(record: InstanceRecord) -> InstanceRecord:
    """The record of hello after its move to hi."""
    action = Move(key_of("hi"), record.key, NODE, record.epoch + 1, "renamed", Precondition(None))
    return begin(action, HI, record, desired().revision, NOW_MS)[0]


def test_the_record_is_moved_and_nothing_else() -> None:
    p = plan(desired(HI), observed(report(HELLO)), [running(HELLO)])
    assert kinds(p) == ["move hi"]
    (action,) = p.ready
    assert isinstance(action, Move)
    assert (action.moved_from, action.reason) == (
        key_of("hello"), "renamed from acme/research/hello; it runs on",
    )  # fmt: skip
    after = moved(running(HELLO))
    assert (after.key, node_name(after), after.state) == (
        key_of("hi"), key_of("hello"), State.RUNNING,
    )  # fmt: skip
    assert after.applied_hash == running(HELLO).applied_hash


def test_the_event_says_from_and_to_under_the_new_name() -> None:
    (action,) = plan(desired(HI), observed(report(HELLO)), [running(HELLO)]).ready
    record, (event,) = begin(action, HI, running(HELLO), desired().revision, NOW_MS)
    assert event.type == "apps.instance.moved"
    assert (event.instance, event.data["from"], event.data["to"]) == (
        key_of("hi"), key_of("hello"), key_of("hi"),
    )  # fmt: skip
    assert event.correlation_id == record.correlation_id


def test_afterwards_there_is_nothing_to_do() -> None:
    records = [moved(running(HELLO))]
    names = runtime_names({key_of("hi"): HI.instance}, inventory(*records), {})
    see = under_our_names(
        observed(report(HELLO)), {key_of("hi"): HI.instance}, inventory(*records), names
    )
    assert names == {key_of("hi"): key_of("hello")}
    p = plan(desired(HI), see, records)
    assert p.empty
    assert p.findings == ()
    again = under_our_names(see, {key_of("hi"): HI.instance}, inventory(*records), names)
    assert again == see


def test_a_name_and_a_version_at_once_are_two_steps() -> None:
    newer = target("hi", "1.1.0", moved_from="hello", called="hello")
    p = plan(desired(newer), observed(report(HELLO)), [running(HELLO)])
    assert kinds(p) == ["move hi"]
    assert p.actions[0].reason == "renamed from acme/research/hello; then version 1.0.0 → 1.1.0"
    see = Observed(
        observed().artifacts, {NODE: Known(_renamed(observed(report(HELLO)), "hello", "hi"))}
    )
    assert kinds(plan(desired(newer), see, [moved(running(HELLO))])) == ["replace hi"]


def test_moved_twice_keeps_the_first_name_on_its_node() -> None:
    second = target("hey", moved_from="hi", called="hello")
    p = plan(desired(second), observed(), [moved(running(HELLO))])
    (action,) = p.ready
    record = begin(action, second, moved(running(HELLO)), desired().revision, NOW_MS)[0]
    assert (record.key, record.runtime_name) == (key_of("hey"), key_of("hello"))
    third = target("hello", moved_from="hey")
    (back,) = plan(desired(third), observed(), [record]).ready
    assert begin(back, third, record, desired().revision, NOW_MS)[0].runtime_name == ""


@pytest.mark.parametrize("state", ["queued", "accepted"])
def test_it_waits_for_a_task_that_is_on_its_way(state: str) -> None:
    asked = intent(HELLO, "control", state=state)
    p = plan(desired(HI), observed(report(HELLO)), [running(HELLO)], [asked])
    assert kinds(p) == ["move hi operation_under_way"]
    late = NOW_MS + 30_000
    if state == "accepted":
        p = plan(desired(HI), observed(report(HELLO)), [running(HELLO)], [asked], late)
        assert kinds(p) == ["move hi"]


def test_a_held_move_keeps_the_old_one_as_it_is_and_says_why() -> None:
    term = Term("ada", "the demo", NOW_MS + 1)
    want = desired(HI, suspended={"acme/research": term})
    see, records = observed(report(HELLO)), [running(HELLO)]
    p = plan(want, see, records)
    assert kinds(p) == ["move hi suspended"]
    found = healths(inventory(*records), want, see, (), NOW_MS, HealthLimits())
    (record,) = with_conditions(inventory(*records), want, found, p, NOW_MS).values()
    assert [(c.type, c.status, c.reason) for c in record.conditions] == [
        ("Ready", "True", "Ready"), ("Converged", "False", "Suspended"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("want", "records", "expect", "code"),
    [
        (desired(HI, HELLO), [running(HELLO)], ["launch hi"], "nothing_to_move"),
        (desired(HI), [], ["launch hi"], "nothing_to_move"),
        (desired(target("hi", moved_from="hello"), guards=LOOSE),
         [running(HELLO), running(target("hi"))], ["remove hello"], "nothing_to_move"),
        (desired(HI, guards=LOOSE), [replace(running(HELLO), state=State.DECOMMISSIONING)],
         ["remove hello", "launch hi"], "nothing_to_move"),
        (desired(target("hi", moved_from="hello", run="decommissioned"), guards=LOOSE),
         [running(HELLO)], ["remove hello"], "nothing_to_move"),
        (desired(HI, held={key_of("hello"): "broken"}), [running(HELLO)], ["launch hi"],
         "nothing_to_move"),
        (desired(HI, held={key_of("hi"): "broken"}, guards=LOOSE), [running(HELLO)],
         [], "quarantined"),
    ],
    ids=["both there", "none there", "both run", "old one goes", "new one goes",
         "old in quarantine", "new in quarantine"],
)  # fmt: skip
def test_what_is_no_move(
    want: Desired, records: list[InstanceRecord], expect: list[str], code: str
) -> None:
    see = observed(report(HELLO), report(target("hi")))
    p = plan(want, see, records)
    assert [line.partition(" name")[0] for line in kinds(p)] == expect
    assert code in {f.code for f in p.findings}


def test_a_node_that_is_not_seen_may_well_run_it_under_its_former_name() -> None:
    """After the store is lost, whoever takes `moved_from` out would launch a second one."""
    p = plan(desired(HI), Observed(), [])
    assert {f.code for f in p.findings} == {"node_never_joined"}


def test_two_claims_move_it_once() -> None:
    twice = [target("b", moved_from="hello"), target("a", moved_from="hello", called="hello")]
    p = plan(desired(*twice), observed(report(HELLO)), [running(HELLO)])
    assert kinds(p) == ["move a", "launch b"]


def test_a_new_one_under_the_freed_name_waits_for_it() -> None:
    records = [moved(running(HELLO))]
    instances = {key_of("hi"): HI.instance, key_of("hello"): HELLO.instance}
    names = runtime_names(instances, inventory(*records), {})
    see = under_our_names(observed(report(HELLO)), instances, inventory(*records), names)
    p = plan(desired(HI, HELLO), see, records)
    assert kinds(p) == ["launch hello name_in_use_on_node"]
    assert p.actions[0].held is not None
    assert p.actions[0].held.message == (
        "acme/research/hi was renamed and is still called acme/research/hello on node-a; give this "
        "one another name, or wait until acme/research/hi has gone from there"
    )


def test_a_likely_rename_is_told() -> None:
    p = plan(desired(target("hi"), guards=LOOSE), observed(report(HELLO)), [running(HELLO)])
    assert kinds(p) == ["remove hello", "launch hi"]
    (finding,) = p.findings
    assert (finding.level, finding.code, finding.object) == (
        "info", "maybe_renamed", "AppInstance/acme/research/hi",
    )  # fmt: skip
    assert finding.hint == "to keep what runs, add moved_from: hello to its spec"
    more = [HELLO, target("hey")]
    p = plan(
        desired(target("hi"), guards=LOOSE), observed(*map(report, more)), [*map(running, more)]
    )
    assert p.findings == ()
    other = target("hi", version="1.1.0")
    p = plan(desired(other, guards=LOOSE), observed(report(HELLO)), [running(HELLO)])
    assert p.findings == ()


def test_a_lost_store_finds_it_under_either_name() -> None:
    instances = {key_of("hi"): HI.instance}
    see = observed(report(HELLO))
    names = runtime_names(instances, {}, see.nodes)
    assert names == {key_of("hi"): key_of("hello")}
    seen = under_our_names(see, instances, {}, names)
    assert runtime_names(instances, {}, seen.nodes) == names
    assert under_our_names(seen, instances, {}, names) == seen
    after = settle_all(desired(HI), seen, {}, NOW_MS).records
    record = after[key_of("hi")]
    assert (record.state, node_name(record)) == (State.RUNNING, key_of("hello"))
    assert compute_plan(desired(HI), seen, after, (), NOW_MS).empty
    gone = observed(removed(HELLO))
    assert runtime_names(instances, {}, gone.nodes) == {}
    new = observed(report(HELLO), report(target("hi")))
    assert runtime_names(instances, {}, new.nodes) == {}


def test_what_cannot_be_rendered_keeps_what_it_was() -> None:
    """Attempted: to lose an instance by a parameter that nothing can be made of."""
    state = AcceptedState(
        revision=desired().revision,
        accepted=Accepted(),
        instances={key_of("hi"): HI.instance},
        held={},
        problems=(),
        nodes=frozenset({NODE}),
        guards=LOOSE,
        environment=None,
    )
    want = to_desired(state, lambda _: CannotRender("invalid_workload", "too small"))
    assert want.held == {
        key_of("hi"): "invalid_workload: too small",
        key_of("hello"): "acme/research/hi takes its place, and is held",
    }
    assert plan(want, observed(report(HELLO)), [running(HELLO)]).actions == ()


def test_the_name_lasts_until_its_teardown_is_proved() -> None:
    ended = replace(moved(running(HELLO)), state=State.DECOMMISSIONED)
    assert runtime_names({key_of("hi"): HI.instance}, inventory(ended), {}) == {}


def test_what_is_called_otherwise_is_no_stray() -> None:
    seen = node(report(HELLO))
    assert isinstance(seen, Known)
    stray = Stray(name="gpuaas-x", instance=str(key_of("hello")), spec_hash=None)
    see = Observed(nodes={NODE: Known(replace(seen.value, workloads={}, strays=(stray,)))})
    assert plan(BOTH_GONE, see, [moved(running(HELLO))]).findings == ()


def _renamed(see: Observed, old: str, new: str) -> NodeSeen:
    seen = see.nodes[NODE]
    assert isinstance(seen, Known)
    (word,) = seen.value.workloads.values()
    assert word.instance == key_of(old)
    return replace(seen.value, workloads={key_of(new): word})


NAMES = st.sampled_from(["a", "b", "c", "d"])


@given(
    claims=st.dictionaries(NAMES, st.none() | NAMES),
    up=st.sets(NAMES),
)
def test_whatever_is_claimed_nothing_is_lost_and_it_ends(
    claims: dict[str, str | None], up: set[str]
) -> None:
    """Moves alone, over some passes: no record vanishes, none is doubled, and it comes to rest."""
    want = desired(*(target(name, moved_from=former) for name, former in claims.items()))
    records: dict[InstanceKey, InstanceRecord] = inventory(
        *(replace(running(target(name)), applied_version=name) for name in sorted(up))
    )
    lives = sorted(record.applied_version for record in records.values())
    for _ in range(4):
        moves = [a for a in compute_plan(want, Observed(), records, (), NOW_MS).ready
                 if isinstance(a, Move)]  # fmt: skip
        after = dict(records)
        for action in moves:
            record = records[action.moved_from]
            after.pop(action.moved_from)
            after[action.instance] = begin(action, None, record, want.revision, NOW_MS)[0]
        records = after
        assert sorted(record.applied_version for record in records.values()) == lives
    assert not [a for a in compute_plan(want, Observed(), records, (), NOW_MS).ready
                if isinstance(a, Move)]  # fmt: skip
