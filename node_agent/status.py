"""What to report about one instance. Pure: everything follows from target, units and progress."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from node_agent.converge import packages_fault, preferred, tolerating
from node_agent.flaps import altered_words
from node_agent.status_services import all_well, service_phases, services_fault
from node_agent.steps import Absent, Fault, Present, Progress, Pull, Step
from node_agent.units import Unit
from node_agent.wire import (
    LABEL_APP,
    LABEL_VERSION,
    FailureReason,
    Origin,
    Phase,
    ServicePhase,
    Workload,
    WorkloadReport,
)

_UNDER_WAY = (Phase.PENDING, Phase.PULLING, Phase.STARTING, Phase.REMOVING)


@dataclass(frozen=True)
class _Standing:
    phase: Phase
    fault: Fault | None = None


def workload_report(
    target: Present | Absent, units: Sequence[Unit], progress: Progress, step: Step | None
) -> WorkloadReport:
    """The report without `since_ms`. `step` is what the agent is doing or will do next."""
    if isinstance(target, Absent):
        return _absent(target, progress)
    units = tolerating(units, progress)
    running = _running(target, units, progress)
    dead = _dead(target, units, progress)
    standing = _standing(target, running, dead, progress, step)
    shown = running or preferred(units, target.workload)
    fault = standing.fault
    exit_code = fault.exit_code if fault is not None and fault.exit_code is not None else None
    return WorkloadReport(
        instance=target.workload.instance,
        target_hash=target.workload.spec_hash,
        running_hash=None if running is None else running.spec_hash,
        phase=standing.phase,
        reason=None if fault is None else fault.reason,
        message="" if fault is None else fault.message,
        retained=_retained(target, running, progress),
        image_digest=None if shown is None else shown.image_digest,
        endpoints=() if shown is None else shown.endpoints,
        restarts=progress.restarts,
        exit_code=exit_code if exit_code is not None or dead is None else dead.exit_code,
        origin=origin_of(target.workload),
        services=_services(target, units, progress),
    )


def tombstone(target: Present | Absent, progress: Progress) -> WorkloadReport:
    """The report on what is proved gone, since when it is."""
    report = workload_report(target, (), progress, None)
    proof = progress.proof
    return report.model_copy(update={"since_ms": proof.checked_at_ms if proof else 0})


def is_progress(report: WorkloadReport) -> bool:
    """Whether it only says how far something got: what comes of it will be told."""
    return report.reason is None and report.phase in _UNDER_WAY


def origin_of(workload: Workload) -> Origin:
    """What a manifest would have to say for this workload to come of it."""
    return Origin(
        app=workload.labels.get(LABEL_APP, ""),
        version=workload.labels.get(LABEL_VERSION, ""),
        image=workload.image,
        limits=workload.limits,
        ports=workload.ports,
    )


def _absent(target: Absent, progress: Progress) -> WorkloadReport:
    proved = progress.proof is not None
    fault = None if proved else progress.fault
    return WorkloadReport(
        instance=target.instance,
        target_hash=None,
        running_hash=None,
        phase=Phase.REMOVED if proved else Phase.REMOVING,
        reason=None if fault is None else fault.reason,
        message="" if fault is None else fault.message,
        proof=progress.proof,
    )


def _running(target: Present, units: Sequence[Unit], progress: Progress) -> Unit | None:
    """What serves; an intruder that is about to be stopped only when there is nothing of ours."""
    alive = [unit for unit in units if unit.status == "running"]
    ours = preferred(alive, target.workload) or preferred(alive, progress.committed)
    return ours or next(iter(alive), None)


def _dead(target: Present, units: Sequence[Unit], progress: Progress) -> Unit | None:
    current = preferred(units, target.workload) or preferred(units, progress.committed)
    return current if current is not None and current.status == "exited" else None


def _services(
    target: Present, units: Sequence[Unit], progress: Progress
) -> tuple[ServicePhase, ...]:
    """Those of the form in force, or of none when that is not known any more."""
    known = {one.spec_hash: one for one in (progress.committed, target.workload) if one is not None}
    for unit in units:
        if unit.services and unit.spec_hash in known:
            return service_phases(known[unit.spec_hash], unit, progress)
    return ()


def _retained(target: Present, running: Unit | None, progress: Progress) -> bool:
    """Whether something older than the target runs and serves."""
    return (
        running is not None
        and running.spec_hash != target.workload.spec_hash
        and progress.ready_hash == running.spec_hash
    )


def _standing(
    target: Present, running: Unit | None, dead: Unit | None, progress: Progress, step: Step | None
) -> _Standing:
    if progress.failure is not None:
        return _Standing(Phase.FAILED, progress.failure)
    if not target.run and running is None:
        return _Standing(Phase.STOPPED)
    if _is_committed(target.workload, progress):
        return _kept(target, running, dead, progress)
    if running is not None and running.spec_hash == target.workload.spec_hash:
        return _Standing(Phase.STARTING, progress.fault)
    if isinstance(step, Pull):
        return _Standing(Phase.PULLING, progress.fault)
    untouched = progress.starts == 0 and progress.pulled == ""
    return _Standing(Phase.PENDING if untouched else Phase.STARTING, progress.fault)


def _kept(
    target: Present, running: Unit | None, dead: Unit | None, progress: Progress
) -> _Standing:
    if target.workload.topology is not None and running is not None:
        return _kept_topology(target.workload, running, progress)
    shown = running or dead
    if shown is not None and shown.altered and shown.spec_hash == target.workload.spec_hash:
        return _Standing(Phase.DEGRADED, Fault(FailureReason.ALTERED, altered_words(shown)))
    if running is not None and progress.ready_hash == target.workload.spec_hash:
        return _Standing(Phase.READY)
    if running is None:
        fault = progress.fault
        if fault is None and dead is not None and not progress.stopped_by_us:
            exited = Fault(FailureReason.EXITED, "exited, will be started again", dead.exit_code)
            fault = packages_fault(dead, target.workload) or exited
        return _Standing(Phase.STARTING if fault is None else Phase.DEGRADED, fault)
    if progress.probe_failures >= target.workload.readiness.failures_max:
        message = f"the readiness probe fails: {progress.probe_detail}"
        return _Standing(Phase.DEGRADED, Fault(FailureReason.NOT_READY_IN_TIME, message))
    return _Standing(Phase.STARTING, progress.fault)


def _kept_topology(workload: Workload, running: Unit, progress: Progress) -> _Standing:
    if running.spec_hash != workload.spec_hash:
        return _Standing(Phase.STARTING, progress.fault)
    if all_well(service_phases(workload, running, progress)):
        return _Standing(Phase.READY)
    fault = services_fault(workload, running, progress)
    if fault is None:
        return _Standing(Phase.STARTING, progress.fault)
    return _Standing(Phase.DEGRADED, fault)


def _is_committed(workload: Workload, progress: Progress) -> bool:
    return progress.committed is not None and progress.committed.spec_hash == workload.spec_hash
