"""Outcomes become conditions here, and only here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from node_agent.wire import Phase, WorkloadReport
from reconciler.core.actions import Action, Move, subject_of
from reconciler.core.desired import Desired
from reconciler.core.names import InstanceKey
from reconciler.core.observed import Observed, Seen, Unknown
from reconciler.core.plan import Finding, Plan, Waiting
from reconciler.core.records import Condition, InstanceRecord, State

Truth = Literal["True", "False", "Unknown"]


@dataclass(frozen=True)
class Judgement:
    """A condition before it is compared with the one before."""

    type: str
    status: Truth
    reason: str
    message: str


def with_conditions(
    records: Mapping[InstanceKey, InstanceRecord],
    desired: Desired,
    observed: Observed,
    plan: Plan,
    now_ms: int,
) -> dict[InstanceKey, InstanceRecord]:
    """Every record with its conditions of now; `last_transition_ms` moves with the status only."""
    actions = {subject_of(action): action for action in plan.actions}
    actions |= {action.instance: action for action in plan.actions}
    moved = {a.instance: a.moved_from for a in plan.ready if isinstance(a, Move)}
    waiting = {item.instance: item for item in plan.waiting}
    findings = {f.object.partition("/")[2]: f for f in plan.stalled}
    result = {}
    for key, record in sorted(records.items()):
        judgements = (
            _ready(record, observed.workload(record.node, moved.get(key, key))),
            _converged(key, record, desired, actions.get(key), waiting.get(key), findings.get(key)),
        )
        now = tuple(_stamp(j, record, desired.revision, now_ms) for j in judgements)
        result[key] = record if now == record.conditions else replace(record, conditions=now)
    return result


def _ready(record: InstanceRecord, seen: Seen[WorkloadReport | None]) -> Judgement:
    if record.state is State.DECOMMISSIONED:
        return Judgement("Ready", "False", "Decommissioned", record.message)
    if isinstance(seen, Unknown):
        return Judgement("Ready", "Unknown", _camel(seen.code), seen.reason)
    report = seen.value
    if report is None:
        return Judgement("Ready", "False", "NotOnNode", "its node does not have it")
    if report.phase is Phase.READY or (report.retained and report.phase is Phase.FAILED):
        return Judgement("Ready", "True", "Ready", "")
    return Judgement("Ready", "False", _camel(report.phase.value), report.message)


def _converged(
    key: InstanceKey,
    record: InstanceRecord,
    desired: Desired,
    action: Action | None,
    waiting: Waiting | None,
    finding: Finding | None,
) -> Judgement:
    if key in desired.held:
        return Judgement("Converged", "False", "Quarantined", desired.held[key])
    if finding is not None:
        return Judgement("Converged", "False", _camel(finding.code), finding.message)
    if action is not None and action.held is not None:
        return Judgement("Converged", "False", _camel(action.held.code), action.held.message)
    if action is not None or record.state in _MOVING:
        message = waiting.message if waiting else (action.reason if action else "")
        return Judgement("Converged", "False", "Progressing", message)
    if waiting is not None:
        return Judgement("Converged", "False", _camel(waiting.code), waiting.message)
    if record.state is State.FAILED:
        return Judgement("Converged", "False", _camel(record.reason or "failed"), record.message)
    return Judgement("Converged", "True", "AsDesired", "")


_MOVING = (State.DEPLOYING, State.UPGRADING, State.ROLLING_BACK, State.DECOMMISSIONING)


def _stamp(new: Judgement, record: InstanceRecord, revision: str, now_ms: int) -> Condition:
    before = next((c for c in record.conditions if c.type == new.type), None)
    if before and (before.status, before.reason, before.message) == (
        new.status,
        new.reason,
        new.message,
    ):
        return before
    same = before is not None and before.status == new.status
    since = before.last_transition_ms if before is not None and same else now_ms
    return Condition(new.type, new.status, new.reason, new.message, revision, since)


def _camel(code: str) -> str:
    return "".join(part.capitalize() for part in code.split("_"))
