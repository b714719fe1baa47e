"""What to do next for the services of a topology that is in force, and how each of them stands.

Rules:
- Pure, and level-based, as `converge` is: how a service stands is seen. What is remembered of it
  (`ServiceProgress`) says when it was started, whether it is ready, and how often it was lost.
- A service is started only while what it depends on is as it has to be. What becomes of that
  afterwards stops nobody who runs.
- A job is what others wait for the end of. Once it ended well it is not run again, over restarts of
  the topology, of the agent and of the host, until it is another service (see `jobs`).
- Of what passed its gate, a vital service that ends and is never to be started again is the end of
  all of it. A job is not: what waited for it runs.
- On trial a vital service that fails takes the whole attempt with it. What is not vital is waited
  for in its time; then `other_failure` says what becomes of the attempt.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from node_agent.flaps import FLAPS_MAX, STABLE_MS, altered_words, recent_losses, too_many
from node_agent.jobs import done_jobs
from node_agent.restarts import STARTS_MAX, exit_verdict, restart_delay_ms, trial_delay_ms
from node_agent.service_standing import (
    Standing,
    Standings,
    already_counted,
    down_for_good,
    hopeless,
    how_lost,
    standings,
    unmet,
    waiting_words,
)
from node_agent.steps import (
    Apply,
    Commit,
    Fault,
    GiveUp,
    GiveUpService,
    NoteJobs,
    NoteReady,
    ProbeService,
    Progress,
    Pull,
    RepairServices,
    StartServices,
    Step,
    Stop,
    Tolerate,
    Wait,
    pulled_as,
)
from node_agent.units import Unit
from node_agent.wire import FailureReason, Topology, Workload


@dataclass(frozen=True)
class _Case:
    """All that is looked at to find the next step."""

    wanted: Workload
    topology: Topology
    unit: Unit
    progress: Progress
    ones: Standings
    now_ms: int
    trial: bool

    @property
    def gate_ends_ms(self) -> int:
        return self.progress.gate_since_ms + self.wanted.readiness.start_budget_ms

    def since_ms(self, one: Standing) -> int:
        """Since when it runs, as far as is known."""
        return one.known.started_at_ms or self.progress.started_at_ms


def service_step(wanted: Workload, unit: Unit, progress: Progress, now_ms: int) -> Step | None:
    """The next step for a topology that is in force and was taken note of.

    None where all is as it has to be, or can't be helped.
    """
    topology = wanted.topology
    if topology is None:
        return None
    ones = standings(wanted, unit, progress)
    trial = next(iter(ones.values())).trial
    case = _Case(wanted, topology, unit, progress, ones, now_ms, trial)
    return (
        _jobs_noted(case)
        or (_judged(case) if trial else _flapped(case) or _ended(case))
        or _given_up(case)
        or _put_right(case)
        or _made(case)
        or _all_again(case)
        or _started(case)
        or (_committed(case) if trial else _noted(case))
        or _probed(case)
        or _waiting(case)
    )


def _jobs_noted(case: _Case) -> Step | None:
    """Before anything is started: whatever ends the agent, what is written down is true."""
    seen = [one.seen for one in case.ones.values() if one.job]
    jobs = done_jobs(seen, case.unit, case.progress.jobs)
    return NoteJobs(jobs) if jobs != case.progress.jobs else None


def _judged(case: _Case) -> Step | None:
    """On trial: whether the attempt as a whole has failed."""
    for one in case.ones.values():
        counts = one.service.vital or case.topology.other_failure == "roll_back"
        fault = _late(one, case) if counts else None
        if fault is not None:
            message = f"{one.name}: {fault.message}"
            return GiveUp(Fault(fault.reason, message, fault.exit_code, final=True))
    return None


def _late(one: Standing, case: _Case) -> Fault | None:
    """Why a service on trial is not waited for any longer."""
    if one.seen.altered and one.known.starts >= STARTS_MAX:
        message = f"altered again each time before it was ready: {altered_words(one.seen)}"
        return Fault(FailureReason.ALTERED, message, final=True)
    if one.well:
        return None
    fault = hopeless(one, case.ones)
    if fault is None and one.lost:
        fault = _failed_trial(one)
    return fault or _overdue(one, case)


def _failed_trial(one: Standing) -> Fault | None:
    starts, seen = one.known.starts, one.seen
    if seen.status == "exited":
        return exit_verdict(seen.exit_code, starts, out_of_memory=seen.out_of_memory)
    if starts >= STARTS_MAX:
        message = f"tried {starts} times before it was ready, last: {how_lost(one)}"
        return Fault(FailureReason.EXITED, message, seen.exit_code, final=True)
    return None


def _overdue(one: Standing, case: _Case) -> Fault | None:
    readiness = one.service.readiness
    budget_ms, all_over = case.wanted.readiness.start_budget_ms, case.now_ms >= case.gate_ends_ms
    if not one.running:
        why = waiting_words(one, case.ones) or how_lost(one)
        message = f"not ready within {budget_ms} ms: {why}"
        return Fault(FailureReason.NOT_READY_IN_TIME, message) if all_over else None
    own_over = case.now_ms >= case.since_ms(one) + readiness.start_budget_ms
    if not (own_over or all_over) or not (one.known.probe_failures or not _is_probed(one)):
        return None
    why = one.known.probe_detail or "it has not ended"
    budget_ms = readiness.start_budget_ms if own_over else budget_ms
    message = f"not ready within {budget_ms} ms: {why}"
    return Fault(FailureReason.NOT_READY_IN_TIME, message)


def _flapped(case: _Case) -> Step | None:
    """After its gate: whether vital services were lost too often."""
    progress = case.progress
    vital = [one for one in case.ones.values() if one.service.vital and not one.job]
    anew = [one for one in vital if one.lost or one.seen.altered]
    counted = all(already_counted(progress, one.known) for one in anew)
    losses = len(recent_losses(progress, case.wanted, case.now_ms)) + (not counted)
    last = anew[0] if anew else next((one for one in vital if not one.well), None)
    how = f"{last.name} {how_lost(last)}" if last is not None else "no more is known"
    fault = too_many(losses, case.wanted, how, last.seen.exit_code if last else None)
    return GiveUp(fault) if fault is not None else None


def _ended(case: _Case) -> Step | None:
    """After its gate: whether a vital service ended for good.

    While all of it is being started again, one that was stopped for that did not end.
    """
    if _culprits(case):
        return None
    for one in case.ones.values():
        fault = down_for_good(one)
        if fault is not None and _is_over(one):
            return GiveUp(replace(fault, message=f"{one.name}: {fault.message}", final=True))
    return None


def _is_over(one: Standing) -> bool:
    """Whether its end is that of all."""
    return one.service.vital and not one.job and down_for_good(one) is not None


def _put_right(case: _Case) -> Step | None:
    altered = [one for one in case.ones.values() if one.seen.altered]
    if not altered:
        return None
    if case.progress.fresh and all(one.seen.status == "created" for one in altered):
        return Tolerate(case.unit)
    if any(one.seen.alive for one in altered) and not _is_pulled(case):
        # What runs, however altered, is not stopped for one that can't be made.
        return Pull(case.wanted) if case.now_ms >= _made_at_ms(case) else None
    return RepairServices(case.unit, case.wanted, _names(altered))


def _given_up(case: _Case) -> Step | None:
    for one in case.ones.values():
        known = one.known
        if one.service.vital or known.failed is not None or not (one.lost or one.seen.altered):
            continue
        ran_well = case.now_ms - known.started_at_ms >= STABLE_MS
        if known.starts >= FLAPS_MAX and not ran_well:
            message = f"tried {known.starts} times, last: {how_lost(one)}"
            fault = Fault(FailureReason.FLAPPING, message, one.seen.exit_code, final=True)
            return GiveUpService(one.name, fault, one.seen.form)
    return None


def _made(case: _Case) -> Step | None:
    if not _missing(case) or case.now_ms < _made_at_ms(case):
        return None
    return Apply(case.unit, case.wanted) if _is_pulled(case) else Pull(case.wanted)


def _missing(case: _Case) -> list[Standing]:
    return [
        one
        for one in case.ones.values()
        if one.seen.status == "missing" and one.known.failed is None and not one.completed
    ]


def _made_at_ms(case: _Case) -> int:
    progress = case.progress
    delay_ms = restart_delay_ms(progress.starts, progress.started_at_ms, case.now_ms)
    return progress.started_at_ms + delay_ms


def _all_again(case: _Case) -> Step | None:
    """Where the end of a vital service is the end of all, the others are stopped first."""
    culprits = _culprits(case)
    if not culprits or case.now_ms < min(_start_at_ms(one, case) for one in culprits):
        return None
    return Stop(case.unit, case.wanted.stop_grace_ms)


def _culprits(case: _Case) -> list[Standing]:
    ones = case.ones.values()
    # Who is never started again by itself is, with all: but only once all of it was stopped.
    needed = any(one.seen.alive or _is_over(one) for one in ones)
    if not needed or case.topology.vital_failure != "restart_all":
        return []
    lost = [one for one in ones if one.lost and one.service.vital and not one.job]
    return [one for one in lost if down_for_good(one) is None]


def _started(case: _Case) -> Step | None:
    turn = [
        one
        for one in case.ones.values()
        if _may_start(one, case.ones) and case.now_ms >= _start_at_ms(one, case)
    ]
    # After a failure one at a time: so it is known whose it is, and the others go on.
    names = tuple(one.name for one in turn)
    names = names[:1] if case.progress.tries else names
    return StartServices(case.unit, case.wanted, names) if names else None


def _may_start(one: Standing, ones: Standings) -> bool:
    there = one.down and one.seen.status != "missing" and not one.seen.altered
    return there and down_for_good(one) is None and not unmet(one, ones)


def _start_at_ms(one: Standing, case: _Case) -> int:
    known = one.known
    if one.trial:
        return known.started_at_ms + trial_delay_ms(known.starts)
    return known.started_at_ms + restart_delay_ms(known.starts, known.started_at_ms, case.now_ms)


def _committed(case: _Case) -> Step | None:
    for one in case.ones.values():
        spared = not one.service.vital and case.topology.other_failure == "degrade"
        if not one.well and not (spared and _late(one, case) is not None):
            return None
    return Commit(case.wanted)


def _noted(case: _Case) -> Step | None:
    progress = case.progress
    standing = progress.ready_hash == case.wanted.spec_hash
    said = progress.fault is None or bool(_missing(case))
    if (standing and said) or not vital_well(case.ones.values()):
        return None
    return NoteReady(case.wanted)


def vital_well(ones: Iterable[Standing]) -> bool:
    """Whether all that is vital serves. One that has ended for good does not."""
    return all(one.well for one in ones if one.service.vital)


def _probed(case: _Case) -> Step | None:
    due = {name: _probe_at_ms(one, case) for name, one in case.ones.items()}
    asked = {name: at_ms for name, at_ms in due.items() if at_ms is not None}
    if not asked:
        return None
    first = min(asked, key=lambda name: (asked[name], name))
    if case.now_ms < asked[first]:
        return None
    return ProbeService(case.unit, case.wanted, first)


def _probe_at_ms(one: Standing, case: _Case) -> int | None:
    if not one.running or not _is_probed(one):
        return None
    readiness = one.service.readiness
    if readiness.probe is not None:
        return one.known.next_probe_ms
    if one.known.ready:
        return None
    # With nothing to ask, having stayed up for one interval is the only evidence there is.
    up_ms = case.since_ms(one) + min(readiness.interval_ms, readiness.start_budget_ms)
    return max(up_ms, one.known.next_probe_ms)


def _is_probed(one: Standing) -> bool:
    """What a job without a probe comes to shows when it ends."""
    return not one.job or one.service.readiness.probe is not None


def _waiting(case: _Case) -> Step | None:
    later_ms = [at_ms for at_ms in _moments(case) if at_ms > case.now_ms]
    return Wait(min(later_ms)) if later_ms else None


def _moments(case: _Case) -> Iterable[int]:
    """When something may have to be done though nothing changes."""
    if case.trial:
        yield case.gate_ends_ms
    if _missing(case) or any(one.seen.altered for one in case.ones.values()):
        yield _made_at_ms(case)
    for one in case.ones.values():
        probe_at_ms = _probe_at_ms(one, case)
        if probe_at_ms is not None:
            yield probe_at_ms
        if case.trial and one.running and not one.well:
            yield case.since_ms(one) + one.service.readiness.start_budget_ms
        if _may_start(one, case.ones):
            yield _start_at_ms(one, case)


def _is_pulled(case: _Case) -> bool:
    return case.progress.pulled == pulled_as(case.wanted)


def _names(ones: Iterable[Standing]) -> tuple[str, ...]:
    return tuple(sorted(one.name for one in ones))
