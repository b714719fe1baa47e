"""One pass: what is accepted, seen and remembered goes in; queued tasks and a summary come out."""

from __future__ import annotations

from dataclasses import dataclass, replace

from reconciler import execute, record
from reconciler.core.accept import AcceptedState, accept, parse_accepted, to_desired
from reconciler.core.desired import Desired
from reconciler.core.names import InstanceKey
from reconciler.core.observed import Observed
from reconciler.core.plan import Plan
from reconciler.core.plan.compute import compute_plan
from reconciler.core.problems import Problem
from reconciler.core.records import Event, PassSummary
from reconciler.core.schema import SchemaSet
from reconciler.core.settle import Settled, finished_intents, settle_all
from reconciler.core.source import Snapshot
from reconciler.core.status import with_conditions
from reconciler.core.validate import located, validate
from reconciler.errors import GpuaasError
from reconciler.observe import observe
from reconciler.ports import Ports
from reconciler.settings import Settings
from renderers import render


@dataclass(frozen=True)
class Pass:
    """What one pass saw, decided and did."""

    plan: Plan
    observed: Observed
    summary: PassSummary
    events: tuple[Event, ...] = ()
    nodes: frozenset[str] = frozenset()
    """Nodes that have new tasks waiting."""


def load(snapshot: Snapshot, schemas: SchemaSet, ports: Ports, settings: Settings) -> AcceptedState:
    """A revision as it is accepted, object by object. Reads the store, changes nothing."""
    candidate = validate(snapshot, schemas, settings.parse_limits)
    holding = {key: record.gpu_uuids for key, record in ports.store.records().items()}
    last = ports.store.accepted()
    state = accept(candidate, last, parse_accepted, settings.environment, holding)
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


def preview(state: AcceptedState, ports: Ports, settings: Settings) -> tuple[Plan, Desired]:
    """The plan of now. Changes nothing: it stops before `execute`."""
    view = _look(state, ports, settings, ports.clock.now_ms())
    return view.plan, view.desired


def reconcile(
    state: AcceptedState, ports: Ports, settings: Settings, fetch_error: GpuaasError | None = None
) -> Pass:
    """One pass on an accepted revision; `fetch_error` says why there may be a newer one unseen."""
    now_ms = ports.clock.now_ms()
    ports.store.save_accepted(state.accepted)
    view = _look(state, ports, settings, now_ms)
    desired, observed, plan, settled = view.desired, view.observed, view.plan, view.settled
    outcome = execute.execute(plan, desired, settled.records, ports, settings, now_ms)

    after = with_conditions(outcome.records, desired, observed, plan, now_ms)
    problems = (*state.problems, *_unfetched(fetch_error))
    ended_at_ms = ports.clock.now_ms()
    summary = record.summary_of(plan, problems, outcome.error, now_ms, ended_at_ms)
    record.write(ports, after, settled, outcome, view.closed, summary)
    return Pass(plan, observed, summary, (*settled.events, *outcome.events), outcome.nodes)


def _look(state: AcceptedState, ports: Ports, settings: Settings, now_ms: int) -> _View:
    """Observes, settles in memory and plans: the same for `plan` and for a pass."""
    desired = to_desired(state, render)
    observed = observe(ports, settings, desired, now_ms)
    asked = ports.store.open_intents(now_ms)
    settled = settle_all(desired, observed, ports.store.records(), now_ms, asked)
    closed = finished_intents(settled.records, asked, desired, observed)
    intents = [intent for intent in asked if intent.instance not in closed]
    plan = compute_plan(desired, observed, settled.records, intents, now_ms)
    return _View(desired, observed, settled, closed, plan)


def _unfetched(error: GpuaasError | None) -> tuple[Problem, ...]:
    if error is None:
        return ()
    return (Problem(error.where, 0, 0, error.code, error.message, hint=error.hint),)
