"""What the progress of a topology becomes when a step for some of its services ends.

Rules:
- Pure, as `converge` is.
- A loss of a vital service after the gate is a loss of the whole (see `flaps`); several services
  lost in one incident are one. What is stopped on purpose is none, and a job can't be lost.
- What fails of one service delays that service, not the others, unless the engine itself is away.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from node_agent.converge import on_trial
from node_agent.flaps import STABLE_MS, altered_words, with_loss
from node_agent.restarts import STARTS_MAX
from node_agent.service_standing import already_counted, job_names, released, standings
from node_agent.steps import (
    PROBE_FIRST_MS,
    Apply,
    Failed,
    Fault,
    GiveUpService,
    NoteReady,
    ProbeService,
    Progress,
    RepairServices,
    ServiceProgress,
    StartServices,
    Step,
)
from node_agent.units import Probed, Unit
from node_agent.wire import FailureReason, Workload

_OF_ALL = frozenset(
    {
        FailureReason.ENGINE_UNAVAILABLE,
        FailureReason.SECRET_UNAVAILABLE,
        FailureReason.BLOB_UNAVAILABLE,
        FailureReason.DISK_FULL,
    }
)
"""Why a start fails for all services alike."""


def learn_services(after: Progress, step: Step, altered: Fault | None, now_ms: int) -> Progress:
    """After a step for services was done; `altered` is the fault that goes on being told."""
    match step:
        case Apply(_, _):
            return replace(_counted_start(after, now_ms), stopped_by_us=False, fault=altered)
        case StartServices(_, _, _):
            return _learn_started(replace(after, fault=altered), step, now_ms)
        case RepairServices(_, _, _):
            return _learn_repaired(after, step, now_ms)
        case GiveUpService(name, fault, form):
            return _with(after, [replace(_known(after, name), failed=fault, form=form)])
        case NoteReady(workload):
            return replace(
                after, ready_hash=workload.spec_hash, fault=None,
                ready_since_ms=after.ready_since_ms or now_ms,
            )  # fmt: skip
        case _:
            return after


def put_in_force(
    after: Progress, workload: Workload, altered: Fault | None, now_ms: int
) -> Progress:
    """Nothing is known of its services yet, beyond who was given up, and how often one was started
    that is stopped.
    """
    since_ms = after.gate_since_ms if on_trial(workload, after) else 0
    return replace(
        _counted_start(after, now_ms),
        gate_since_ms=since_ms or now_ms,
        stopped_by_us=False,
        fault=altered,
        ready_hash="",
        ready_since_ms=0,
        services=tuple(
            _afresh(one) for one in after.services if one.failed or not one.started_at_ms
        ),
    )


def taken_note(after: Progress, unit: Unit, now_ms: int) -> Progress:
    """Of what runs, and after the gate of what should: as far as is known, it did."""
    committed = after.committed
    kept = committed is not None and committed.spec_hash == unit.spec_hash
    known = {one.name for one in after.services}
    ran = [
        ServiceProgress(seen.name, started_at_ms=now_ms, next_probe_ms=now_ms)
        for seen in unit.services
        if seen.name not in known and (seen.alive or (kept and seen.status != "created"))
    ]
    return _with(after, ran)


def stopped(after: Progress, unit: Unit, workload: Workload | None, now_ms: int) -> Progress:
    """`workload`: what was stopped so that all of it is started again; None: on purpose."""
    if workload is None:
        return replace(after, services=())
    ones = standings(workload, unit, after)
    lost = [one for one in ones.values() if one.lost]
    after = _with_losses(after, workload, [one.known for one in lost], now_ms)
    again = [
        replace(
            _afresh(one.known),
            starts=one.known.starts if one.lost else 0,
            restarts=one.known.restarts + one.lost,
        )
        for one in ones.values()
    ]
    return _with(after, again)


def kept_services(progress: Progress) -> tuple[ServiceProgress, ...]:
    """What a newer task finds: who was given up may try again."""
    return tuple(
        replace(one, starts=min(one.starts, 1), failed=None, form="") for one in progress.services
    )


def mends(progress: Progress, workload: Workload) -> bool:
    """Whether a pull or new containers are for what is in force and passed its gate."""
    there = progress.gate_since_ms > 0 and not progress.recreate
    return workload.topology is not None and there and not on_trial(workload, progress)


def learn_unmended(progress: Progress, outcome: Failed, now_ms: int) -> Progress:
    """The missing services wait, and the others are looked after meanwhile."""
    gone = {FailureReason.IMAGE_NOT_FOUND, FailureReason.BLOB_UNAVAILABLE}
    return replace(
        _counted_start(progress, now_ms),
        pulled="" if outcome.reason in gone else progress.pulled,
        fault=Fault(outcome.reason, outcome.message),
    )


# --- starting ------------------------------------------------------------------------------------


def _learn_started(after: Progress, step: StartServices, now_ms: int) -> Progress:
    known = [released(_known(after, name)) for name in step.names]
    after = _with_losses(after, step.workload, [one for one in known if one.started_at_ms], now_ms)
    return _with(after, [_begun(one, now_ms) for one in known])


def _begun(known: ServiceProgress, now_ms: int) -> ServiceProgress:
    calm = known.starts > 0 and now_ms - known.started_at_ms >= STABLE_MS
    return replace(
        _afresh(known),
        started_at_ms=now_ms,
        next_probe_ms=now_ms,
        starts=1 if calm and known.started_at_ms else known.starts + 1,
        restarts=known.restarts + (known.started_at_ms > 0),
    )


def _afresh(known: ServiceProgress) -> ServiceProgress:
    return ServiceProgress(
        known.name, starts=known.starts, restarts=known.restarts, failed=known.failed,
        form=known.form,
    )  # fmt: skip


def learn_service_failure(
    progress: Progress, step: StartServices, outcome: Failed, now_ms: int
) -> Progress | None:
    """When services could not be started. None: it is nothing that one of them is to blame for."""
    if outcome.reason in _OF_ALL:
        return None
    if len(step.names) > 1:
        return _learn_some_failed(progress, step, now_ms)
    topology, (name,) = step.workload.topology, step.names
    service = topology.service(name) if topology is not None else None
    if topology is None or service is None:
        return None
    words = outcome.message.removeprefix(f"{name}: ")
    known = released(_known(progress, name))
    known = replace(known, starts=known.starts + 1, started_at_ms=now_ms, probe_detail=words)
    hosts = {port.name: port.host for port in step.workload.ports}
    picked = any(hosts[port] is None for port in service.ports)
    again = outcome.reason is FailureReason.PORT_IN_USE and picked
    after = replace(_with(progress, [known]), tries=0, recreate=progress.recreate or again)
    trial = on_trial(step.workload, progress)
    if not service.vital and not (trial and topology.other_failure == "roll_back"):
        return after
    final = trial and (known.starts >= STARTS_MAX or not (again or outcome.transient))
    return replace(after, fault=Fault(outcome.reason, f"{name}: {words}", final=final))


def _learn_some_failed(progress: Progress, step: StartServices, now_ms: int) -> Progress:
    """One at a time from here on. Others may run by now, and none is what it was."""
    known = [released(_known(progress, name)) for name in step.names]
    lost = [one for one in known if one.started_at_ms]
    after = _with_losses(progress, step.workload, lost, now_ms, restarted=False)
    begun = [
        replace(
            _afresh(one),
            starts=one.starts + 1,
            next_probe_ms=now_ms,
            started_at_ms=now_ms if one in lost else 0,
        )
        for one in known
    ]
    return replace(_with(after, begun), tries=progress.tries + 1)


def _counted_start(progress: Progress, now_ms: int) -> Progress:
    calm = progress.starts > 0 and now_ms - progress.started_at_ms >= STABLE_MS
    return replace(progress, starts=1 if calm else progress.starts + 1, started_at_ms=now_ms)


# --- probing, repairing, losing ------------------------------------------------------------------


def learn_service_probe(
    progress: Progress, step: ProbeService, outcome: Probed, now_ms: int
) -> Progress:
    service = step.workload.topology.service(step.name) if step.workload.topology else None
    if service is None:
        return progress
    readiness, known = service.readiness, _known(progress, step.name)
    # One that ran before its topology was put in force, and may be lost as any other.
    known = replace(known, started_at_ms=known.started_at_ms or progress.started_at_ms)
    if outcome.ready:
        ready = replace(
            known, ready=True, ready_since_ms=known.ready_since_ms if known.ready else now_ms,
            probe_failures=0, probe_detail="", next_probe_ms=now_ms + readiness.interval_ms,
        )  # fmt: skip
        return _with(progress, [ready])
    failures = known.probe_failures + 1
    if known.ready and failures >= readiness.failures_max:
        progress = _with_losses(progress, step.workload, [known], now_ms, restarted=False)
    # A tenth of the time so far: that it is ready is noticed in time, however long it takes.
    gap_ms = max(PROBE_FIRST_MS, (now_ms - known.started_at_ms) // 10)
    wait_ms = readiness.interval_ms if known.ready else min(gap_ms, readiness.interval_ms)
    ready_still = known.ready and failures < readiness.failures_max
    failing = replace(
        known, ready=ready_still, ready_since_ms=known.ready_since_ms if ready_still else 0,
        probe_failures=failures, probe_detail=outcome.detail, next_probe_ms=now_ms + wait_ms,
    )  # fmt: skip
    return _with(progress, [failing])


def _learn_repaired(after: Progress, step: RepairServices, now_ms: int) -> Progress:
    altered = [one for one in step.unit.services if one.name in step.names and one.altered]
    known = [_known(after, one.name) for one in altered]
    lost = _with_losses(after, step.workload, known, now_ms)
    if lost.ready_hash != after.ready_hash or on_trial(step.workload, after):
        said = "; ".join(f"{one.name}: {altered_words(one)}" for one in altered)
        lost = replace(lost, fault=Fault(FailureReason.ALTERED, said) if said else lost.fault)
    words = {one.name: f"it was altered: {altered_words(one)}" for one in altered}
    known = [_afresh(_known(after, name)) for name in step.names]
    again = [
        replace(one, probe_detail=words[one.name], restarts=one.restarts + 1)
        if one.name in words
        else one
        for one in known
    ]
    return _with(lost, again)


def _with_losses(
    progress: Progress,
    workload: Workload,
    lost: Iterable[ServiceProgress],
    now_ms: int,
    *,
    restarted: bool = True,
) -> Progress:
    """Counts what was lost of a workload that passed its gate, once an incident."""
    lost = [*lost]
    if not lost or on_trial(workload, progress) or workload.topology is None:
        return progress
    jobs = job_names(workload.topology)
    vital = {one.name for one in workload.topology.services if one.vital} - jobs
    progress = replace(progress, restarts=progress.restarts + restarted)
    of_all = [one for one in lost if one.name in vital]
    if not of_all:
        return progress
    losses_ms = progress.losses_ms
    if not all(already_counted(progress, one) for one in of_all):
        losses_ms = with_loss(progress, workload, now_ms)
    return replace(progress, losses_ms=losses_ms, ready_hash="", ready_since_ms=0)


# --- what is remembered --------------------------------------------------------------------------


def _known(progress: Progress, name: str) -> ServiceProgress:
    return next((one for one in progress.services if one.name == name), ServiceProgress(name))


def _with(progress: Progress, changed: Iterable[ServiceProgress]) -> Progress:
    services = {one.name: one for one in (*progress.services, *changed)}
    return replace(progress, services=tuple(services[name] for name in sorted(services)))
