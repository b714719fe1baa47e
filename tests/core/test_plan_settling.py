"""Whether a plan would ever come to rest, found out in memory."""

from __future__ import annotations

from dataclasses import replace

import pytest

from node_agent.wire import Phase
from reconciler.core.desired import Desired, Guards
from reconciler.core.lifecycle import begin
from reconciler.core.names import InstanceKey
from reconciler.core.observed import Observed
from reconciler.core.plan import Plan
from reconciler.core.plan.compute import compute_plan
from reconciler.core.plan.settling import Records, with_unsettled
from reconciler.core.records import InstanceRecord
from tests.core.fleet import (
    NOW_MS,
    desired,
    inventory,
    node,
    observed,
    report,
    running,
    target,
)

OLD, NEW = target(version="1.0.0"), target(version="1.1.0")
LOOSE = Guards(99, 100)


def begun(p: Plan, want: Desired, records: Records) -> dict[InstanceKey, InstanceRecord]:
    after = dict(records)
    for action in p.ready:
        known = records.get(getattr(action, "moved_from", action.instance))
        if known is not None:
            after.pop(known.key)
        made, _ = begin(action, want.targets.get(action.instance), known, want.revision, NOW_MS)
        after[made.key] = made
    return after


MOVED = target("hi", "1.1.0", node="node-b", moved_from="hello", called="hello")
TWO_NODES = replace(
    observed(report(OLD)), nodes={**observed(report(OLD)).nodes, "node-b": node(name="node-b")}
)


@pytest.mark.parametrize(
    ("want", "see", "records"),
    [
        (desired(OLD), observed(), []),
        (desired(NEW), observed(report(OLD)), [running(OLD)]),
        (desired(target(run="stopped")), observed(report(OLD)), [running(OLD)]),
        (desired(target(version="1.1.0", run="stopped")), observed(report(OLD)), [running(OLD)]),
        (desired(OLD), observed(report(OLD, Phase.STOPPED)), [running(OLD)]),
        (desired(guards=LOOSE), observed(report(OLD)), [running(OLD)]),
        (desired(MOVED, guards=LOOSE), TWO_NODES, [running(OLD)]),
        (desired(target(node="node-b"), guards=LOOSE), TWO_NODES, [running(OLD)]),
        (desired(OLD, guards=Guards(manual=True)), observed(), []),
    ],
    ids=["launch", "replace", "stop", "change and stop", "start", "remove",
         "rename, change and move", "move", "held"],
)  # fmt: skip
def test_what_is_planned_settles(
    want: Desired, see: Observed, records: list[InstanceRecord]
) -> None:
    p = compute_plan(want, see, inventory(*records), (), NOW_MS)
    after = begun(p, want, inventory(*records))
    assert with_unsettled(p, want, see, after, NOW_MS) == p


def test_what_never_comes_to_rest_is_told() -> None:
    """A planner that wants the other version each time it looks."""
    want, see = desired(NEW), observed(report(OLD))
    first = compute_plan(want, see, inventory(running(OLD)), (), NOW_MS)
    turn = [OLD, NEW, OLD, NEW]

    def restless(want: Desired, see: Observed, records: Records, _: tuple[()], now_ms: int) -> Plan:
        other = turn.pop(0)
        return compute_plan(
            replace(want, targets={other.instance.key: other}), see, records, (), now_ms
        )

    after = begun(first, want, inventory(running(OLD)))
    (finding,) = with_unsettled(first, want, see, after, NOW_MS, restless).findings
    assert (finding.level, finding.code, finding.object) == (
        "stalled", "not_settling", "AppInstance/acme/research/hello",
    )  # fmt: skip
    assert finding.message.startswith("would never come to rest: replace on node-a (version 1.1.0")
    assert " is followed by replace on node-a (" in finding.message
