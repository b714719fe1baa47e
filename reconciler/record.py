"""Writes down what a pass learned and decided, in one transaction.

Rule: states, their events, the tasks that follow, and how the pass ended are stored together or not
at all. After a crash the next pass starts from the same place and comes to the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict

from reconciler.core.names import InstanceKey
from reconciler.core.plan import Plan
from reconciler.core.problems import Problem
from reconciler.core.records import InstanceRecord, PassResult, PassSummary
from reconciler.core.settle import Settled
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
) -> None:
    """Stores what is different `after` the pass, and everything that goes with it."""
    before = settled.before
    ports.store.commit(
        Changes(
            records=[record for key, record in sorted(after.items()) if before.get(key) != record],
            events=(*settled.events, *outcome.events),
            intents=outcome.intents,
            closed=closed,
            summary=summary,
        )
    )


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
        actions=len(plan.ready),
        held=len(plan.held),
        waiting=len(plan.waiting),
        message=str(error) if error else "",
        findings=(
            *({"type": "problem", **asdict(p), "where": p.where} for p in problems),
            *({"type": "finding", **asdict(f)} for f in plan.findings),
        ),
    )


def result_of(plan: Plan, problems: Sequence[Problem], error: GpuaasError | None) -> PassResult:
    """failed: our own services did not answer; stalled: a person must act; waiting: under way."""
    if error is not None:
        return "failed"
    if plan.ready or plan.waiting or plan.held:
        return "waiting"
    return "stalled" if plan.stalled or problems else "done"
