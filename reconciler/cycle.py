"""One pass: what is accepted, seen and remembered goes in; queued tasks and a summary come out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from reconciler import execute, record
from reconciler.artifacts.looking import keep, looked_now
from reconciler.core.accept import (
    AcceptedState,
    AcceptMemo,
    accept,
    parse_accepted,
    to_desired,
)
from reconciler.core.actions import Move
from reconciler.core.audit import entries_of, instance_entries
from reconciler.core.authority.attribution import signed
from reconciler.core.authority.facts import Walked
from reconciler.core.authority.walk import last_candidate, under_authority
from reconciler.core.convergence import Arrival, followed
from reconciler.core.desired import Candidate, Desired
from reconciler.core.health import HealthLimits, HealthSeen, healths
from reconciler.core.names import InstanceKey, Revision
from reconciler.core.observed import Observed
from reconciler.core.plan import Finding, Plan, moves
from reconciler.core.plan.blobs import finished_pulls
from reconciler.core.plan.compute import compute_plan
from reconciler.core.plan.keys import unbelievable
from reconciler.core.plan.settling import with_unsettled
from reconciler.core.plan.stuck import with_stuck
from reconciler.core.problems import Problem
from reconciler.core.promotion_steps import COMMITS_MAX
from reconciler.core.records import Accepted, Event, InstanceRecord, Intent, PassSummary, StepBack
from reconciler.core.schema import SchemaSet
from reconciler.core.settle import Settled, finished_intents, settle_all
from reconciler.core.source import Snapshot
from reconciler.core.ssh_access import Doubt
from reconciler.core.status import with_conditions
from reconciler.core.step_back import NOTHING_DECIDED, Decided, StepMemo, decided, due, stepped_back
from reconciler.core.steps_taken import Bounds, CommitsSince, uses_of
from reconciler.core.trust.standing import standings
from reconciler.core.validate import ValidateMemo, located, validate
from reconciler.custody.away import is_away, wrong_custody
from reconciler.custody.ssh_keys import SshKept, SshMemo, keep_ssh_keys
from reconciler.errors import GpuaasError
from reconciler.forget import forget_secrets
from reconciler.observe import ReportMemo, see_nodes, with_keys, with_supplies, with_trust
from reconciler.ports import Ports
from reconciler.settings import Settings
from reconciler.watch import Watch
from renderers import render

Records = Mapping[InstanceKey, InstanceRecord]
StepBacks = Mapping[str, StepBack]
_NONE_BACK: StepBacks = {}


@dataclass(frozen=True)
class Pass:
    """What one pass saw, decided and did."""

    plan: Plan
    observed: Observed
    summary: PassSummary
    events: tuple[Event, ...] = ()
    nodes: frozenset[str] = frozenset()
    """Nodes that have something new waiting: tasks, or other keys to believe."""
    arrivals: tuple[Arrival, ...] = ()
    """Commits that came true in this pass."""
    restarts: int = 0
    """How often nodes started what had ended, since the pass before."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """How long its phases took."""

    @property
    def error(self) -> str:
        """Why nothing could be carried out; empty when it was."""
        return self.summary.message


@dataclass
class LoadMemo:
    """Held by whoever loads one revision after another and makes pass after pass: it makes that
    cheap, and changes nothing.

    Not for several threads at once.
    """

    validated: ValidateMemo = field(default_factory=ValidateMemo)
    accepted: AcceptMemo = field(default_factory=AcceptMemo)
    reports: ReportMemo = field(default_factory=ReportMemo)
    ssh: SshMemo = field(default_factory=SshMemo)
    stepped: StepMemo = field(default_factory=StepMemo)


def load(
    snapshot: Snapshot,
    schemas: SchemaSet,
    ports: Ports,
    settings: Settings,
    memo: LoadMemo | None = None,
    walked: Walked | None = None,
) -> AcceptedState:
    """A revision as it is accepted, object by object. Reads the store, changes nothing.

    `walked` is what its commits come to, where signatures count.
    """
    store = ports.store
    last, records = store.accepted(), store.records()
    state = load_from(
        snapshot,
        schemas,
        last,
        records,
        settings,
        memo,
        walked,
        commits_since=lambda since: ports.source.commits_since(
            since, snapshot.revision, COMMITS_MAX
        ),
    )
    if walked is None:
        return state
    if state.accepted is last:
        return state  # Nothing of the revision counts; the next one is walked to from there again.
    accepted = signed(state.accepted, walked)
    if memo is not None:
        memo.accepted.forms.replaced(accepted)
    audit = entries_of(walked, ports.clock.now_ms(), last.refused)
    return replace(state, accepted=accepted, audit=audit)


def load_last(
    head: Revision,
    problem: Problem,
    ports: Ports,
    settings: Settings,
    memo: LoadMemo | None = None,
) -> AcceptedState:
    """What was accepted last, while the newest revision can't be trusted, or read, at all."""
    last = ports.store.accepted()
    memo = memo or LoadMemo()
    candidate, records = last_candidate(last, problem), ports.store.records()
    state = _accepted(candidate, last, records, settings, memo, storing=False)
    return replace(state, rejected=head)


def load_from(
    snapshot: Snapshot,
    schemas: SchemaSet,
    last: Accepted,
    records: Records,
    settings: Settings,
    memo: LoadMemo | None = None,
    walked: Walked | None = None,
    *,
    storing: bool = True,
    commits_since: CommitsSince | None = None,
) -> AcceptedState:
    """The same on what was accepted and remembered at some time; `storing` as in `accept`.

    Without `walked` the changes that were refused at that time stay refused. `commits_since` as in
    `core.steps_taken`.
    """
    memo = memo or LoadMemo()
    candidate = validate(snapshot, schemas, settings.parse_limits, memo.validated)
    if walked is None and last.refused:
        walked = Walked(candidate.revision, refused=last.refused)
    if walked is not None:
        candidate = under_authority(candidate, walked, last)
    bounds = Bounds(uses_of(records), commits_since)
    state = _accepted(candidate, last, records, settings, memo, storing=storing, bounds=bounds)
    problems = located(state.problems, snapshot, settings.parse_limits)
    return replace(state, problems=problems)


def _accepted(
    candidate: Candidate,
    last: Accepted,
    records: Records,
    settings: Settings,
    memo: LoadMemo,
    *,
    storing: bool,
    bounds: Bounds | None = None,
) -> AcceptedState:
    return accept(
        candidate,
        last,
        parse_accepted,
        settings.environment,
        moves.holding(candidate.objects.values(), records),
        memo.accepted,
        storing=storing,
        bounds=bounds,
    )


@dataclass(frozen=True)
class _View:
    """All that a plan is made from, and the plan."""

    desired: Desired
    observed: Observed
    settled: Settled
    closed: tuple[InstanceKey, ...]
    intents: Sequence[Intent]
    plan: Plan
    canaries: Decided = NOTHING_DECIDED


def preview(
    state: AcceptedState,
    ports: Ports,
    settings: Settings,
    approved: frozenset[str] = frozenset(),
) -> tuple[Plan, Desired]:
    """The plan of now. Changes nothing: it stops before `execute`."""
    now_ms = ports.clock.now_ms()
    view = _look(state, ports, settings, now_ms, approved)
    found = _healths(view, view.settled.records, view.intents, settings, now_ms)
    return with_stuck(view.plan, found, view.desired, now_ms), view.desired


def plan_from(
    state: AcceptedState,
    observed: Observed,
    records: Records,
    intents: Sequence[Intent],
    now_ms: int,
    approved: frozenset[str] = frozenset(),
    step_backs: StepBacks = _NONE_BACK,
) -> tuple[Plan, Desired]:
    """The plan for what was seen at some time, without asking anything of anybody.

    `observed` may be under the nodes' names or ours; `intents` are those that were open then.
    """
    desired, seen = wanted(state, observed, records, step_backs)
    return plan_of(desired, seen, records, intents, now_ms, approved), desired


def plan_of(
    desired: Desired,
    observed: Observed,
    records: Records,
    intents: Sequence[Intent],
    now_ms: int,
    approved: frozenset[str] = frozenset(),
) -> Plan:
    """The same for what is wanted and seen as `wanted` gives it."""
    return _decided(desired, observed, records, intents, now_ms, approved).plan


def reconcile(
    state: AcceptedState,
    ports: Ports,
    settings: Settings,
    fetch_error: GpuaasError | None = None,
    approved: frozenset[str] = frozenset(),
    manual: bool = False,
    memo: LoadMemo | None = None,
    watch: Watch | None = None,
    holder: str = "",
    told: Sequence[Finding] = (),
) -> Pass:
    """One pass on an accepted revision; `fetch_error` says why there may be a newer one unseen.

    `approved` are ids of plans to carry out where changes wait for that, as they do if `manual`.
    With `holder` nothing is stored once somebody else has the lease. `told` is what others found
    and the pass has to tell.
    """
    watch = watch or Watch()
    now_ms = ports.clock.now_ms()
    with watch.phase("write"):
        ports.store.save_accepted(state.accepted, holder, state.audit)
    view = _look(state, ports, settings, now_ms, approved, manual, memo, watch)
    desired, settled = view.desired, view.settled
    with watch.phase("write"):
        keep(ports.store, looked_now(view.observed.trust, now_ms))
        settled, outcome = _carried_out(state, view, ports, settings, now_ms, holder)
        ssh = _ssh_keys(state, view, outcome, ports, now_ms, memo)
    with watch.phase("plan"):
        plan = with_unsettled(view.plan, desired, view.observed, outcome.records, now_ms)
        plan = _after_rotation(plan, outcome, now_ms)
        intents = (*view.intents, *outcome.intents)
        found = _healths(view, outcome.records, intents, settings, now_ms)
        plan = with_stuck(plan, found, desired, now_ms)
        told = [*ssh.findings, *(one for one in told if one.code != _code(outcome.error))]
        plan = replace(plan, findings=(*plan.findings, *told)) if told else plan
        trust = standings(desired, view.observed, outcome.records, now_ms)
        after: Records = with_conditions(outcome.records, desired, found, plan, now_ms, trust)
        seen_ms = now_ms if watch.revision_seen_ms is None else watch.revision_seen_ms
        after, arrivals = followed(after, plan.actions, desired, seen_ms, now_ms)
    problems = (*state.problems, *_unfetched(fetch_error))
    ended_at_ms = ports.clock.now_ms()
    summary = record.summary_of(plan, problems, outcome.error, now_ms, ended_at_ms)
    summary = replace(summary, rejected=state.rejected)
    begun = [action for action in view.plan.ready if isinstance(action, Move)]
    audit = (*instance_entries(outcome.intents, after, state.accepted, now_ms, begun), *ssh.audit)
    with watch.phase("write"):
        record.write(
            ports, after, settled, outcome, view.closed, summary, audit, holder, view.canaries
        )
    return Pass(
        plan,
        view.observed,
        summary,
        (*settled.events, *view.canaries.events, *outcome.events),
        outcome.nodes | (view.observed.nodes.keys() if outcome.keys else set()),
        arrivals,
        _restarts(settled),
        watch.seconds,
    )


def _carried_out(
    state: AcceptedState, view: _View, ports: Ports, settings: Settings, now_ms: int, holder: str
) -> tuple[Settled, execute.Outcome]:
    """What needs custody is left for later where it is away, or not the one that is meant."""
    plan, desired, records = view.plan, view.desired, view.settled.records
    wrong = wrong_custody(state.environment, settings)
    if wrong is not None:
        outcome = execute.Outcome(records, error=wrong)
    else:
        outcome = execute.execute(
            plan, desired, view.observed, records, ports, settings, now_ms, holder
        )
    barred = outcome.error if wrong or is_away(outcome.error) else None
    return forget_secrets(ports.secrets, view.settled, outcome, barred)


def _ssh_keys(
    state: AcceptedState,
    view: _View,
    outcome: execute.Outcome,
    ports: Ports,
    now_ms: int,
    memo: LoadMemo | None,
) -> SshKept:
    """Where custody failed for the plan it is not asked again."""
    if outcome.error is not None:
        return SshKept()
    known, seen = memo.ssh if memo is not None else None, view.observed
    unsure = bool(state.rejected) or state.environment is None
    doubt = Doubt(state.problems, state.unread, unsure)
    return keep_ssh_keys(ports.secrets, state.accepted, outcome.records, seen, now_ms, known, doubt)


def _code(error: GpuaasError | None) -> str:
    return error.code if error is not None else ""


def _after_rotation(plan: Plan, outcome: execute.Outcome, now_ms: int) -> Plan:
    """What comes of a new version is seen to at once, in a pass of its own."""
    if not outcome.keys and not outcome.findings:
        return plan
    found = (*plan.findings, *outcome.findings)
    return replace(plan, findings=found, wake_at_ms=now_ms if outcome.keys else plan.wake_at_ms)


def _look(
    state: AcceptedState,
    ports: Ports,
    settings: Settings,
    now_ms: int,
    approved: frozenset[str],
    manual: bool = False,
    memo: LoadMemo | None = None,
    watch: Watch | None = None,
) -> _View:
    """Observes, settles in memory and plans: the same for `plan` and for a pass."""
    watch = watch or Watch()
    with watch.phase("observe"):
        records, known = ports.store.records(), ports.store.step_backs()
        reports = see_nodes(ports, settings, now_ms, memo.reports if memo else None)
        asked = ports.store.open_intents(now_ms)

    def planned(step_backs: StepBacks) -> _View:
        with watch.phase("observe"):
            desired, seen = wanted(state, reports, records, step_backs, memo)
            seen = with_supplies(ports, desired, seen)
            asking, recheck_s = (ports.store, ports.registry), settings.trust_recheck_s
            seen = with_trust(*asking, desired, seen, records, now_ms, recheck_s)
            observed = with_keys(ports.secrets, desired, seen)
        if manual:
            desired = replace(desired, guards=replace(desired.guards, manual=True))
        with watch.phase("plan"):
            return _decided(desired, observed, records, asked, now_ms, approved)

    view = planned(known)
    new = due(state, view.settled.records, known, now_ms)
    if new:
        # What is about to go back is not launched anywhere before it does.
        view = planned({**known, **{one.promotion: one for one in new}})
    return replace(view, canaries=decided(state, view.settled.records, known, new, now_ms))


def _healths(
    view: _View, records: Records, intents: Sequence[Intent], settings: Settings, now_ms: int
) -> dict[InstanceKey, HealthSeen]:
    queued = {intent.instance for intent in intents if intent.state == "queued"}
    moved = {a.instance: a.moved_from for a in view.plan.ready if isinstance(a, Move)}
    limits = HealthLimits(
        pull_ms=int(settings.stuck_pull_s * 1000),
        queued_ms=int(settings.stuck_queued_s * 1000),
        removal_ms=int(settings.stuck_removal_s * 1000),
        degraded_ms=int(settings.stuck_degraded_s * 1000),
    )
    return healths(records, view.desired, view.observed, queued, now_ms, limits, moved)


def _restarts(settled: Settled) -> int:
    before = settled.before
    changed = (r for key, r in settled.records.items() if before.get(key) is not r)
    return sum(max(0, r.restarts - before[r.key].restarts) for r in changed if r.key in before)


def wanted(
    state: AcceptedState,
    observed: Observed,
    records: Records,
    step_backs: StepBacks = _NONE_BACK,
    memo: LoadMemo | None = None,
) -> tuple[Desired, Observed]:
    """What is wanted, under the names that nodes know, and what they report, under ours."""
    state = stepped_back(state, step_backs, records, memo.stepped if memo else None)
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
    pulled = finished_pulls(desired.prefetch, observed, asked, now_ms)
    closed = tuple(sorted({*closed, *pulled, *unbelievable(observed, asked)}))
    intents = [intent for intent in asked if intent.instance not in closed]
    plan = compute_plan(desired, observed, settled.records, intents, now_ms, approved)
    return _View(desired, observed, settled, closed, intents, plan)


def _unfetched(error: GpuaasError | None) -> tuple[Problem, ...]:
    if error is None:
        return ()
    return (Problem(error.where, 0, 0, error.code, error.message, hint=error.hint),)
