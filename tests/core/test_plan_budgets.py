"""How much is removed at once, per pass, node and kind, and what an approval releases."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.core.actions import Remove
from reconciler.core.desired import Approval, Budget, Desired, Guards, Target
from reconciler.core.names import Revision
from reconciler.core.observed import Observed
from reconciler.core.plan import Plan
from reconciler.core.plan.budgets import removal_budget
from reconciler.core.plan.compute import compute_plan
from reconciler.core.records import InstanceRecord, State
from tests.core.fleet import (
    NEXT_REVISION,
    NODE,
    NOW_MS,
    desired,
    inventory,
    node,
    observed,
    report,
    running,
    target,
)

LATER_MS = NOW_MS + 60_000
TIGHT = Guards(3, 30)


def fleet(count: int, where: str = NODE) -> list[Target]:
    return [target(f"i{number}", node=where) for number in range(count)]


def plan(
    want: Desired, there: Sequence[Target], records: Sequence[InstanceRecord] | None = None
) -> Plan:
    nodes = sorted({one.instance.node for one in there})
    reports = {name: [report(one) for one in there if one.instance.node == name] for name in nodes}
    see = Observed(nodes={name: node(*reports[name], name=name) for name in nodes})
    known = [*map(running, there)] if records is None else records
    return compute_plan(want, see, inventory(*known), (), NOW_MS)


def held(p: Plan) -> dict[str, str]:
    """Name → code of what holds its removal; empty for those that go ahead."""
    return {
        a.instance.rpartition("/")[2]: a.held.code if a.held else ""
        for a in p.actions
        if isinstance(a, Remove)
    }


def approving(removals: str, until_ms: int = LATER_MS, guards: Guards = TIGHT) -> Guards:
    return replace(guards, approvals=(Approval(removals, "the project ended", until_ms),))


@pytest.mark.parametrize(
    ("budget", "owned", "count"),
    [
        (Budget(5, 30), 1, 1),
        (Budget(5, 30), 10, 3),
        (Budget(5, 30), 100, 5),
        (Budget(5, 0), 9, 1),
        (Budget(0, 100), 9, 0),
    ],
)
def test_the_lower_counts_and_a_fleet_of_one_can_shrink(
    budget: Budget, owned: int, count: int
) -> None:
    assert removal_budget(budget, owned) == count


def test_beyond_the_budget_all_are_held_and_it_says_what_to_write() -> None:
    p = plan(desired(guards=TIGHT), fleet(10))
    assert set(held(p).values()) == {"removal_budget"}
    assert p.ready == ()
    first = p.actions[0].held
    assert first is not None
    assert first.message == (
        "10 removals exceed the budget of 3 at once (the lower of 3 and 30 % of 10); "
        "if all are meant, approve set "
        f"{p.removals_id} in the Environment"
    )
    (finding,) = p.findings
    assert (finding.level, finding.code) == ("stalled", "removal_budget")
    assert finding.hint == (
        "under spec.guards.approvals of the Environment: "
        f'- {{removals: "{p.removals_id}", reason: <why>, until: <when, RFC 3339>}}; '
        "what is to stay gets its file back"
    )
    assert len(p.removals_id) == 16


def test_an_approval_releases_that_set_in_the_revision_it_comes_with() -> None:
    there = fleet(10)
    before = plan(desired(guards=TIGHT), there)
    committed = desired(guards=approving(before.removals_id), revision=NEXT_REVISION)
    after = plan(committed, there)
    assert after.removals_id == before.removals_id
    assert after.removals_approved
    assert len(after.ready) == 10


@pytest.mark.parametrize("count", [9, 11])
def test_another_set_is_not_approved(count: int) -> None:
    approved = plan(desired(guards=TIGHT), fleet(10)).removals_id
    other = plan(desired(guards=approving(approved)), fleet(count))
    assert other.removals_id != approved
    assert other.ready == ()


def test_an_approval_ends() -> None:
    approved = plan(desired(guards=TIGHT), fleet(10)).removals_id
    lapsed = plan(desired(guards=approving(approved, NOW_MS)), fleet(10))
    assert lapsed.removals_id == approved
    assert lapsed.ready == ()


def test_what_was_approved_stays_so_while_something_else_holds_it() -> None:
    """Attempted: to approve a set of which a part can go only later, when the set is another."""
    there = fleet(10)
    approved = plan(desired(guards=TIGHT), there).removals_id
    records = [replace(one, approved_removals=approved) for one in map(running, there)]
    records[0] = replace(records[0], state=State.DECOMMISSIONING)
    assert set(held(plan(desired(guards=approving(approved)), there, records)).values()) == {""}
    lapsed = plan(desired(guards=approving(approved, NOW_MS)), there, records)
    assert set(held(lapsed).values()) == {"", "removal_budget"}


def test_removals_under_way_count() -> None:
    there = fleet(4)
    records = [*map(running, there)]
    records[0] = replace(records[0], state=State.DECOMMISSIONING)
    p = plan(desired(*there[2:], guards=Guards(1, 100)), there, records)
    assert held(p) == {"i0": "", "i1": "removal_budget"}


def test_the_budget_of_a_node_holds_what_is_on_it() -> None:
    here = [target(f"a{number}") for number in range(4)]
    elsewhere = [target(f"b{number}", node="node-b") for number in range(4)]
    guards = Guards(9, 100, per_node=Budget(1, 100))
    p = plan(desired(*here[2:], *elsewhere[1:], guards=guards), [*here, *elsewhere])
    assert held(p) == {"a0": "removal_budget", "a1": "removal_budget", "b0": ""}
    message = p.held[0].held.message if p.held[0].held else ""
    assert message.startswith(
        "2 removals on node node-a exceed the budget of 1 at once (the lower of 1 and 100 %"
    )


def test_the_budget_of_a_kind() -> None:
    guards = Guards(9, 100, per_kind={"AppInstance": Budget(2, 100)})
    p = plan(desired(guards=guards), fleet(3))
    assert set(held(p).values()) == {"removal_budget"}
    assert p.held[0].held is not None
    assert "3 removals of kind AppInstance exceed the budget of 2" in p.held[0].held.message
    assert held(plan(desired(guards=guards), fleet(2))) == {"i0": "", "i1": ""}


def test_a_rename_is_no_removal() -> None:
    there = fleet(3)
    renamed = [
        target(f"new{number}", moved_from=f"i{number}", called=f"i{number}") for number in range(3)
    ]
    p = plan(desired(*renamed, guards=Guards(0, 0)), there)
    assert [a.kind for a in p.ready] == ["move"] * 3
    assert p.removals_id == ""


def test_the_id_is_of_the_set_alone() -> None:
    there = fleet(3)
    ids = {
        plan(desired(guards=guards, revision=Revision(revision * 40)), there[::order]).removals_id
        for guards in (TIGHT, Guards(0, 0))
        for revision in ("c", "d")
        for order in (1, -1)
    }
    assert len(ids) == 1
    assert plan(desired(*there), there).removals_id == ""
    again = [replace(one, epoch=7) for one in map(running, there)]
    assert plan(desired(), there, again).removals_id not in ids


@given(
    guards=st.builds(
        Guards,
        removals_max=st.integers(0, 8),
        removals_max_percent=st.integers(0, 100),
        per_node=st.none() | st.builds(Budget, st.integers(0, 4), st.integers(0, 100)),
    ),
    states=st.lists(
        st.sampled_from([State.RUNNING, State.FAILED, State.DECOMMISSIONING]), max_size=10
    ),
    kept=st.sets(st.integers(0, 9)),
    elsewhere=st.sets(st.integers(0, 9)),
)
def test_no_more_than_the_budget_is_ever_under_way(
    guards: Guards, states: list[State], kept: set[int], elsewhere: set[int]
) -> None:
    there = [
        target(f"i{number}", node="node-b" if number in elsewhere else NODE)
        for number in range(len(states))
    ]
    records = [replace(running(one), state=s) for one, s in zip(there, states, strict=True)]
    want = desired(*(one for number, one in enumerate(there) if number in kept), guards=guards)
    p = plan(want, there, records)
    fresh = [
        a for a in p.ready
        if isinstance(a, Remove) and states[int(a.instance[-1])] is not State.DECOMMISSIONING
    ]  # fmt: skip
    if fresh:
        leaving = [record for record in records if record.state is State.DECOMMISSIONING]
        assert len(fresh) + len(leaving) <= removal_budget(guards, len(records))
        for name in {removal.node for removal in fresh} if guards.per_node else ():
            assert guards.per_node is not None
            count = sum(removal.node == name for removal in fresh)
            count += sum(record.node == name for record in leaving)
            owned = sum(record.node == name for record in records)
            assert count <= removal_budget(guards.per_node, owned)


def test_tombstones() -> None:
    """A file that is gone removes nothing; what was decommissioned, or is going, goes."""
    guards = Guards(9, 100, tombstones=True)
    gone, done, going, moved = (target(name) for name in ("gone", "done", "going", "moved"))
    want = desired(
        target("done", run="decommissioned"), target("moved", node="node-b"), guards=guards
    )
    records = inventory(
        running(gone), running(done), running(moved),
        replace(running(going), state=State.DECOMMISSIONING),
    )  # fmt: skip
    see = observed(*map(report, (gone, done, going, moved)))
    see = replace(see, nodes={**see.nodes, "node-b": node(name="node-b")})
    p = compute_plan(want, see, records, (), NOW_MS)
    assert held(p) == {"done": "", "gone": "tombstone_missing", "going": "", "moved": ""}
    message = next(a.held.message for a in p.held if a.held)
    assert message == (
        "its manifest was removed, but nothing said to decommission it: put "
        "tenants/acme/projects/research/instances/gone.yaml back with desired: decommissioned, "
        "and remove it once that is done"
    )
    assert ("stalled", "tombstone_missing") in [(f.level, f.code) for f in p.findings]
