"""Writes down what a pass learned and decided, in one transaction.

Rule: states, their events, the tasks that follow, and how the pass ended are stored together or not
at all. After a crash the next pass starts from the same place and comes to the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from reconciler.core.names import InstanceKey
from reconciler.core.plan import Plan
from reconciler.core.plan.guards import IGNORED, NEEDS_A_PERSON
from reconciler.core.plan.keys import NOT_ROTATED
from reconciler.core.problems import Problem
from reconciler.core.records import AuditEntry, InstanceRecord, PassResult, PassSummary
from reconciler.core.settle import Settled
from reconciler.core.step_back import NOTHING_DECIDED, Decided
from reconciler.custody.away import is_away
from reconciler.errors import GpuaasError
from reconciler.execute import Outcome
from reconciler.ports import Changes, Ports

Records = Mapping[InstanceKey, InstanceRecord]


def write(
    ports: Ports,
    after: Records,
    settled: Settled,
    outcome: Outcome,
    closed: Sequence[InstanceKey],
    summary: PassSummary,
    audit: Sequence[AuditEntry] = (),
    holder: str = "",
    canaries: Decided = NOTHING_DECIDED,
) -> None:
    """Stores what is different `after` the pass, and everything that goes with it."""
    before = settled.before
    forgotten = sorted(before.keys() - after.keys())
    ports.store.commit(
        Changes(
            records=[after[key] for key in sorted(after) if _differs(before.get(key), after[key])],
            events=(*settled.events, *canaries.events, *outcome.events),
            intents=outcome.intents,
            forgotten=forgotten,
            closed=(*closed, *(key for key in forgotten if key not in closed)),
            summary=summary,
            audit=(*audit, *canaries.audit),
            step_backs=canaries.new,
            steps_over=canaries.over,
            holder=holder,
        )
    )


def _differs(before: InstanceRecord | None, after: InstanceRecord) -> bool:
    return before is not after and before != after


def summary_of(
    plan: Plan,
    problems: Sequence[Problem],
    error: GpuaasError | None,
    started_at_ms: int,
    ended_at_ms: int,
) -> PassSummary:
    """How the pass ended."""
    return PassSummary(
        result=result_of(plan, problems, error),
        revision=plan.revision,
        started_at_ms=started_at_ms,
        duration_ms=max(0, ended_at_ms - started_at_ms),
        actions=len(plan.ready) + len(plan.ready_keys) + len(plan.ready_blobs),
        held=len(plan.holds),
        waiting=len(plan.waiting),
        blocked=blocked(plan),
        message=str(error) if error else "",
        findings=(
            *({"type": "problem", **asdict(p), "where": p.where} for p in problems),
            *({"type": "finding", **asdict(f)} for f in plan.findings),
        ),
    )


def blocked(plan: Plan) -> dict[str, int]:
    """Held actions and instances on their way, by code, sorted."""
    held = (held.code for held in plan.holds)
    return dict(sorted(Counter([*held, *(item.code for item in plan.waiting)]).items()))


def result_of(plan: Plan, problems: Sequence[Problem], error: GpuaasError | None) -> PassResult:
    """failed: our own services did not answer; stalled: a person must act; waiting: under way, or
    for custody to come back.

    What waits for an approval ends in stalled, so that nobody waits for it without being told; what
    waits for a moment (a window, the end of a suspension) is waiting. Ignored drift is neither.
    """
    if error is not None:
        return "waiting" if is_away(error) else "failed"
    held = {one.code for one in plan.holds} - {IGNORED, NOT_ROTATED}
    if plan.ready or plan.ready_keys or plan.ready_blobs or plan.waiting or held - NEEDS_A_PERSON:
        return "waiting"
    return "stalled" if plan.stalled or problems or held else "done"
