"""Would it end? What nodes report if all goes well, and the plan for that: there should be none.

Rules:
- In memory only, for the instances that something is done about, and for so many of them.
- A few steps on the way are none too many: a rename, then a removal, then a launch elsewhere. What
  wants something done after that would want it for ever.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from node_agent.wire import Phase, Proof, WorkloadReport
from reconciler.core import lifecycle
from reconciler.core.actions import Action, Control, Launch, Move, Remove, Replace, subject_of
from reconciler.core.desired import Desired, Guards
from reconciler.core.names import InstanceKey
from reconciler.core.observed import Known, NodeSeen, Observed
from reconciler.core.plan import Finding, Plan
from reconciler.core.plan.compute import compute_plan
from reconciler.core.records import InstanceRecord
from reconciler.core.settle import settle_all

STEPS_MAX = 4
CHECKED_MAX = 200
"""Instances looked at in one pass; in a fleet that starts at once the others have their turn as
they go on, and whatever does not settle comes up again in every pass."""

Records = Mapping[InstanceKey, InstanceRecord]
Compute = Callable[[Desired, Observed, Records, tuple[()], int], Plan]

_NO_GUARDS = Guards(removals_max=CHECKED_MAX, removals_max_percent=100)


def with_unsettled(
    plan: Plan,
    desired: Desired,
    observed: Observed,
    records: Records,
    now_ms: int,
    compute: Compute = compute_plan,
) -> Plan:
    """The plan with a finding for each instance it would never come to rest with.

    `records` are those after the plan's ready actions began.
    """
    found = unsettled(plan.ready[:CHECKED_MAX], desired, observed, records, now_ms, compute)
    return replace(plan, findings=(*plan.findings, *found)) if found else plan


def unsettled(
    begun: Sequence[Action],
    desired: Desired,
    observed: Observed,
    records: Records,
    now_ms: int,
    compute: Compute,
) -> list[Finding]:
    if not begun:
        return []
    keys = {action.instance for action in begun}
    wanted = {key: target for key, target in desired.targets.items() if key in keys}
    part = replace(desired, targets=wanted, guards=_NO_GUARDS, held={}, suspended={})
    seen = _only(observed, {*keys, *map(subject_of, begun)}, {action.node for action in begun})
    after = {key: record for key, record in records.items() if key in keys}
    actions: Sequence[Action] = begun
    before: Mapping[InstanceKey, Action] = {}
    for _ in range(STEPS_MAX):
        seen = predict(seen, actions, now_ms)
        after = dict(settle_all(part, seen, after, now_ms).records)
        before = {action.instance: action for action in actions}
        actions = compute(part, seen, after, (), now_ms).ready
        if not actions:
            return []
        after = _begun(actions, part, after, now_ms)
    return [_finding(before.get(action.instance, action), action) for action in actions]


def predict(observed: Observed, actions: Iterable[Action], now_ms: int) -> Observed:
    """What nodes would report, under our names, once every action had the success it hopes for."""
    nodes = dict(observed.nodes)
    for action in actions:
        seen = nodes.get(action.node)
        if not isinstance(seen, Known):
            continue
        workloads = dict(seen.value.workloads)
        report = workloads.pop(subject_of(action), None)
        predicted = _predicted(action, report, now_ms)
        if predicted is not None:
            workloads[action.instance] = predicted
        nodes[action.node] = Known(replace(seen.value, workloads=workloads))
    return replace(observed, nodes=nodes)


def _predicted(action: Action, report: WorkloadReport | None, now_ms: int) -> WorkloadReport | None:
    if isinstance(action, Launch | Replace):
        wanted = action.workload.spec_hash
        return WorkloadReport(
            instance=action.workload.instance,
            target_hash=wanted,
            running_hash=wanted,
            phase=Phase.READY,
        )
    if isinstance(action, Remove):
        return WorkloadReport(
            instance=action.instance,
            target_hash=None,
            running_hash=None,
            phase=Phase.REMOVED,
            proof=Proof(checked_at_ms=now_ms, containers=0, networks=0, volumes=0, paths=0),
        )
    if isinstance(action, Control) and report is not None:
        phase = Phase.READY if action.run else Phase.STOPPED
        return report.model_copy(update={"phase": phase})
    return report


def _begun(
    actions: Iterable[Action], desired: Desired, records: Records, now_ms: int
) -> dict[InstanceKey, InstanceRecord]:
    after = dict(records)
    for action in actions:
        target, known = desired.targets.get(action.instance), records.get(subject_of(action))
        after[action.instance] = lifecycle.begin(action, target, known, desired.revision, now_ms)[0]
        if isinstance(action, Move):
            after.pop(action.moved_from, None)
    return after


def _only(observed: Observed, keys: set[InstanceKey], nodes: set[str]) -> Observed:
    """As much of what was seen as the instances need; where they go to is seen as well."""
    found = dict(observed.nodes)
    for name in sorted(nodes):
        seen = found.get(name)
        if isinstance(seen, Known):
            found[name] = Known(_reporting_only(seen.value, keys))
    return replace(observed, nodes=found)


def _reporting_only(node: NodeSeen, keys: set[InstanceKey]) -> NodeSeen:
    workloads = {key: report for key, report in node.workloads.items() if key in keys}
    return replace(node, workloads=workloads, strays=())


def _finding(first: Action, second: Action) -> Finding:
    return Finding(
        "stalled",
        "not_settling",
        f"AppInstance/{second.instance}",
        f"would never come to rest: {first.kind} on {first.node} ({first.reason}) is followed by "
        f"{second.kind} on {second.node} ({second.reason}), and so on",
        "suspend it, and report this: the plan should be empty once it is carried out",
    )
