"""One pass: what is accepted, seen and remembered goes in; queued tasks and a summary come out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from reconciler import execute, record
from reconciler.core.accept import (
    AcceptedState,
    AcceptMemo,
    accept,
    parse_accepted,
    to_desired,
)
from reconciler.core.desired import Desired
from reconciler.core.names import InstanceKey
from reconciler.core.observed import Observed
from reconciler.core.plan import Plan, moves
from reconciler.core.plan.compute import compute_plan
from reconciler.core.plan.settling import with_unsettled
from reconciler.core.problems import Problem
from reconciler.core.records import Accepted, Event, InstanceRecord, Intent, PassSummary
from reconciler.core.schema import SchemaSet
from reconciler.core.settle import Settled, finished_intents, settle_all
from reconciler.core.source import Snapshot
from reconciler.core.status import with_conditions
from reconciler.core.validate import ValidateMemo, located, validate
from reconciler.errors import GpuaasError
from reconciler.observe import ReportMemo, see_nodes, with_artifacts
from reconciler.ports import Ports
from reconciler.settings import Settings
from renderers import render

Records = Mapping[InstanceKey, InstanceRecord]


@dataclass(frozen=True)
class Pass:
    """What one pass saw, decided and did."""

    plan: Plan
    observed: Observed
    summary: PassSummary
    events: tuple[Event, ...] = ()
    nodes: frozenset[str] = frozenset()
    """Nodes that have new tasks waiting."""


@dataclass
class LoadMemo:
    """Held by whoever loads one revision after another and makes pass after pass: it makes that
    cheap, and changes nothing.

    Not for several threads at once.
    """

    validated: ValidateMemo = field(default_factory=ValidateMemo)
    accepted: AcceptMemo = field(default_factory=AcceptMemo)
    reports: ReportMemo = field(default_factory=ReportMemo)


def load(
    snapshot: Snapshot,
    schemas: SchemaSet,
    ports: Ports,
    settings: Settings,
    memo: LoadMemo | None = None,
) -> AcceptedState:
    """A revision as it is accepted, object by object. Reads the store, changes nothing."""
    store = ports.store
    return load_from(snapshot, schemas, store.accepted(), store.records(), settings, memo)


def load_from(
    snapshot: Snapshot,
    schemas: SchemaSet,
    last: Accepted,
    records: Records,
    settings: Settings,
    memo: LoadMemo | None = None,
) -> AcceptedState:
    """The same on top of what was accepted and remembered at some time."""
    memo = memo or LoadMemo()
    candidate = validate(snapshot, schemas, settings.parse_limits, memo.validated)
    holding = moves.holding(candidate.objects.values(), records)
    state = accept(candidate, last, parse_accepted, settings.environment, holding, memo.accepted)
    problems = located(state.problems, snapshot, settings.parse_limits)
    return replace(state, problems=problems)


@dataclass(frozen=True)
class _View:
    """All that a plan is made from, and the plan."""

    desired: Desired
    observed: Observed
    settled: Settled
    closed: tuple[InstanceKey, ...]
    plan: Plan


def preview(
    state: AcceptedState,
    ports: Ports,
    settings: Settings,
    approved: frozenset[str] = frozenset(),
) -> tuple[Plan, Desired]:
    """The plan of now. Changes nothing: it stops before `execute`."""
    view = _look(state, ports, settings, ports.clock.now_ms(), approved)
    return view.plan, view.desired


def plan_from(
    state: AcceptedState,
    observed: Observed,
    records: Records,
    intents: Sequence[Intent],
    now_ms: int,
    approved: frozenset[str] = frozenset(),
) -> tuple[Plan, Desired]:
    """The plan for what was seen at some time, without asking anything of anybody.

    `observed` may be under the nodes' names or ours; `intents` are those that were open then.
    """
    desired, seen = wanted(state, observed, records)
    view = _decided(desired, seen, records, intents, now_ms, approved)
    return view.plan, view.desired


def reconcile(
    state: AcceptedState,
    ports: Ports,
    settings: Settings,
    fetch_error: GpuaasError | None = None,
    approved: frozenset[str] = frozenset(),
    manual: bool = False,
    memo: LoadMemo | None = None,
) -> Pass:
    """One pass on an accepted revision; `fetch_error` says why there may be a newer one unseen.

    `approved` are ids of plans to carry out where changes wait for that, as they do if `manual`.
    """
    now_ms = ports.clock.now_ms()
    ports.store.save_accepted(state.accepted)
    view = _look(state, ports, settings, now_ms, approved, manual, memo)
    desired, observed, settled = view.desired, view.observed, view.settled
    outcome = execute.execute(view.plan, desired, settled.records, ports, settings, now_ms)
    plan = with_unsettled(view.plan, desired, observed, outcome.records, now_ms)

    after = with_conditions(outcome.records, desired, observed, plan, now_ms)
    problems = (*state.problems, *_unfetched(fetch_error))
    ended_at_ms = ports.clock.now_ms()
    summary = record.summary_of(plan, problems, outcome.error, now_ms, ended_at_ms)
    record.write(ports, after, settled, outcome, view.closed, summary)
    return Pass(plan, observed, summary, (*settled.events, *outcome.events), outcome.nodes)


def _look(
    state: AcceptedState,
    ports: Ports,
    settings: Settings,
    now_ms: int,
    approved: frozenset[str],
    manual: bool = False,
    memo: LoadMemo | None = None,
) -> _View:
    """Observes, settles in memory and plans: the same for `plan` and for a pass."""
    records = ports.store.records()
    reports = see_nodes(ports, settings, now_ms, memo.reports if memo else None)
    desired, seen = wanted(state, reports, records)
    observed = with_artifacts(ports, desired, seen)
    asked = ports.store.open_intents(now_ms)
    if manual:
        desired = replace(desired, guards=replace(desired.guards, manual=True))
    return _decided(desired, observed, records, asked, now_ms, approved)


def wanted(state: AcceptedState, observed: Observed, records: Records) -> tuple[Desired, Observed]:
    """What is wanted, under the names that nodes know, and what they report, under ours."""
    names = moves.runtime_names(state.instances, records, observed.nodes)
    seen = moves.under_our_names(observed, state.instances, records, names)
    return to_desired(state, render, names), seen


def _decided(
    desired: Desired,
    observed: Observed,
    records: Records,
    asked: Sequence[Intent],
    now_ms: int,
    approved: frozenset[str],
) -> _View:
    settled = settle_all(desired, observed, records, now_ms, asked)
    closed = finished_intents(settled.records, asked, desired, observed)
    intents = [intent for intent in asked if intent.instance not in closed]
    plan = compute_plan(desired, observed, settled.records, intents, now_ms, approved)
    return _View(desired, observed, settled, closed, plan)


def _unfetched(error: GpuaasError | None) -> tuple[Problem, ...]:
    if error is None:
        return ()
    return (Problem(error.where, 0, 0, error.code, error.message, hint=error.hint),)
