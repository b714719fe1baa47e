"""What one instance's progress becomes when a step ends.

Rules:
- Pure, as `converge` is: no I/O, clock, randomness, environment or logging.
- Only a step's outcome changes the progress; nothing is learnt from merely looking.
"""

from __future__ import annotations

from dataclasses import replace
from zlib import crc32

from node_agent.converge import on_trial, wanted_workload
from node_agent.flaps import STABLE_MS, already_counted, altered_words, with_loss
from node_agent.learning_services import (
    kept_services,
    learn_service_failure,
    learn_service_probe,
    learn_services,
    learn_unmended,
    mends,
    put_in_force,
    stopped,
    taken_note,
)
from node_agent.restarts import STARTS_MAX
from node_agent.steps import (
    PROBE_FIRST_MS,
    Absent,
    Apply,
    Commit,
    Create,
    Done,
    Failed,
    Fault,
    GiveUp,
    NoteJobs,
    Outcome,
    Present,
    ProbeReady,
    ProbeService,
    Progress,
    Prove,
    Pull,
    Remove,
    Repair,
    Start,
    StartServices,
    Step,
    Stop,
    Sweep,
    TakeNote,
    Target,
    Tolerate,
    pulled_as,
)
from node_agent.units import Probed, Unit
from node_agent.wire import FailureReason, Proof, Workload

RETRY_DELAY_MAX_MS = 30_000
RETRY_DELAY_DISK_FULL_MAX_MS = 300_000
"""What was pulled up to there may be pulled again each time."""
TOLERATED_MAX = 32


def renewed(target: Target, progress: Progress, now_ms: int) -> Progress:
    """The progress with which a newer task starts: what was committed stays, and little else.

    A removal forgets that too, so that a launch that overtakes it can't bring it back.
    """
    if isinstance(target, Absent):
        return Progress(attempt_since_ms=now_ms)
    committed = progress.committed
    serving = committed is not None and progress.ready_hash == committed.spec_hash
    return Progress(
        committed=committed,
        restarts=progress.restarts,
        attempt_since_ms=now_ms,
        tolerated=progress.tolerated,
        jobs=progress.jobs,
        ready_hash=progress.ready_hash if serving else "",
        ready_since_ms=progress.ready_since_ms if serving else 0,
        stopped_by_us=True,
        services=kept_services(progress) if serving else (),
    )


def learn(
    target: Target, progress: Progress, step: Step, outcome: Outcome, now_ms: int
) -> Progress:
    """The progress after `step` ended with `outcome`."""
    if isinstance(outcome, Failed):
        return _learn_failure(target, progress, step, outcome, now_ms)
    if isinstance(step, NoteJobs):
        return replace(progress, jobs=step.jobs)
    if isinstance(outcome, Probed):
        return _learn_probed(progress, step, outcome, now_ms)
    # A teardown counts its tries until the proof is clean: sweeping well is not yet success.
    tries = progress.tries if isinstance(target, Absent) else 0
    fresh = isinstance(step, Create | Apply) or (
        isinstance(step, Start) and step.workload.topology is not None
    )
    after = replace(progress, retry_at_ms=0, tries=tries, fresh=fresh)
    return _learn_done(target, after, step, outcome, now_ms)


def _learn_probed(progress: Progress, step: Step, outcome: Probed, now_ms: int) -> Progress:
    if isinstance(step, ProbeService):
        return learn_service_probe(progress, step, outcome, now_ms)
    if isinstance(step, ProbeReady):
        return _learn_probe(progress, step.workload, outcome, now_ms)
    return progress


def _learn_done(
    target: Target, after: Progress, step: Step, outcome: Outcome, now_ms: int
) -> Progress:
    match step:
        case Commit(workload):
            return replace(
                after, committed=workload, fault=None, restarts=0, starts=1, losses_ms=(),
                ready_hash=workload.spec_hash, ready_since_ms=after.ready_since_ms or now_ms,
            )  # fmt: skip
        case GiveUp(fault):
            return _learn_given_up(target, after, fault, now_ms)
        case Sweep(_):
            return replace(after, swept=True)
        case Prove(_) if isinstance(outcome, Done) and outcome.proof is not None:
            return _learn_proof(after, outcome.proof, now_ms)
        case _:
            return _learn_done_to_unit(target, after, step, now_ms)


def _learn_done_to_unit(target: Target, after: Progress, step: Step, now_ms: int) -> Progress:
    match step:
        case Pull(workload):
            starts = 1 if mends(after, workload) else after.starts
            return replace(after, pulled=pulled_as(workload), fault=_altered(after), starts=starts)
        case Create(_):
            # A topology's form is written anew where it is; a container had to go before.
            return replace(after, recreate=False)
        case Start(_, workload):
            begin = _learn_start if workload.topology is None else put_in_force
            return begin(after, workload, _altered(after), now_ms)
        case TakeNote(unit):
            after = _watching(replace(after, gate_since_ms=now_ms, stopped_by_us=False), now_ms)
            return taken_note(after, unit, now_ms)
        case Stop(unit, _):
            return _learn_stop(target, after, unit, now_ms)
        case Remove(_):
            return replace(after, recreate=False, swept=False)
        case Repair(unit, workload):
            return _learn_repair(after, unit, workload, now_ms)
        case _:
            after = _learn_tolerated(after, step.unit) if isinstance(step, Tolerate) else after
            return learn_services(after, step, _altered(after), now_ms)


def _learn_tolerated(after: Progress, unit: Unit) -> Progress:
    of_services = (line for one in unit.services for line in one.altered)
    lines = sorted({*after.tolerated, *unit.altered, *of_services})
    return replace(after, tolerated=tuple(lines[:TOLERATED_MAX]))


def _learn_stop(target: Target, after: Progress, unit: Unit, now_ms: int) -> Progress:
    if unit.services:
        again = isinstance(target, Present) and target.run
        after = stopped(after, unit, _workload_of(target, after, unit) if again else None, now_ms)
    if unit.spec_hash != after.ready_hash:
        return replace(after, stopped_by_us=True)
    return replace(after, stopped_by_us=True, ready_hash="", ready_since_ms=0)


def _workload_of(target: Target, progress: Progress, unit: Unit) -> Workload | None:
    known = [progress.committed, target.workload if isinstance(target, Present) else None]
    return next((one for one in known if one and one.spec_hash == unit.spec_hash), None)


def _learn_given_up(target: Target, after: Progress, fault: Fault, now_ms: int) -> Progress:
    given_up = replace(renewed(target, after, now_ms), failure=replace(fault, final=True))
    wanted = wanted_workload(target, after) if isinstance(target, Present) else None
    if wanted is None or on_trial(wanted, after):
        return given_up
    if after.failure is not None:
        # It is the version before, which was put back when the newer one failed.
        message = f"{after.failure.message}; and the version before was {fault.message}"
        given_up = replace(given_up, failure=replace(fault, message=message))
    return replace(given_up, committed=None, ready_hash="", ready_since_ms=0)


def _learn_repair(after: Progress, unit: Unit, workload: Workload, now_ms: int) -> Progress:
    losses_ms = after.losses_ms
    if not on_trial(workload, after):
        losses_ms = with_loss(after, workload, now_ms)
    return replace(
        after,
        losses_ms=losses_ms,
        fault=Fault(FailureReason.ALTERED, altered_words(unit)),
        ready_hash="",
        ready_since_ms=0,
        stopped_by_us=True,
    )


def _altered(progress: Progress) -> Fault | None:
    """That a unit was altered is said until the new one is ready."""
    fault = progress.fault
    return fault if fault is not None and fault.reason is FailureReason.ALTERED else None


def _learn_start(
    after: Progress, workload: Workload, altered: Fault | None, now_ms: int
) -> Progress:
    lost = not on_trial(workload, after) and not after.stopped_by_us
    losses_ms = after.losses_ms
    if lost and not already_counted(after):
        losses_ms = with_loss(after, workload, now_ms)
    calm = after.starts > 0 and now_ms - after.started_at_ms >= STABLE_MS
    started = replace(
        after,
        starts=1 if calm else after.starts + 1,
        restarts=after.restarts + 1 if lost or altered is not None else after.restarts,
        losses_ms=losses_ms,
        gate_since_ms=(after.gate_since_ms if on_trial(workload, after) else 0) or now_ms,
        stopped_by_us=False,
        fault=altered,
        ready_hash="",
        ready_since_ms=0,
    )
    return _watching(started, now_ms)


def _watching(progress: Progress, now_ms: int) -> Progress:
    return replace(progress, started_at_ms=now_ms, next_probe_ms=now_ms, probe_failures=0)


def _learn_probe(progress: Progress, workload: Workload, outcome: Probed, now_ms: int) -> Progress:
    readiness = workload.readiness
    was_ready = progress.ready_hash == workload.spec_hash
    if outcome.ready:
        return replace(
            progress, ready_hash=workload.spec_hash, probe_failures=0, probe_detail="",
            fault=None, next_probe_ms=now_ms + readiness.interval_ms,
            ready_since_ms=progress.ready_since_ms if was_ready else now_ms,
        )  # fmt: skip
    failures = progress.probe_failures + 1
    if was_ready and failures >= readiness.failures_max and not on_trial(workload, progress):
        losses_ms = with_loss(progress, workload, now_ms)
        progress = replace(progress, losses_ms=losses_ms, ready_hash="", ready_since_ms=0)
    # A tenth of the time so far: that it is ready is noticed in time, however long it takes.
    gap_ms = max(PROBE_FIRST_MS, (now_ms - progress.started_at_ms) // 10)
    wait_ms = readiness.interval_ms if was_ready else min(gap_ms, readiness.interval_ms)
    return replace(
        progress,
        probe_failures=failures,
        probe_detail=outcome.detail,
        ready_hash="" if failures >= readiness.failures_max else progress.ready_hash,
        next_probe_ms=now_ms + wait_ms,
    )


def _learn_proof(after: Progress, proof: Proof, now_ms: int) -> Progress:
    if proof.clean:
        return replace(after, proof=proof, fault=None, committed=None)
    message = (
        f"found again after teardown: {proof.containers} containers, {proof.networks} networks, "
        f"{proof.volumes} volumes, {proof.paths} paths"
    )
    tries = after.tries + 1
    return replace(
        after,
        fault=Fault(FailureReason.TEARDOWN_INCOMPLETE, message),
        swept=False,
        tries=tries,
        retry_at_ms=now_ms + _retry_delay_ms(tries),
    )


def _learn_failure(
    target: Target, progress: Progress, step: Step, outcome: Failed, now_ms: int
) -> Progress:
    if isinstance(step, StartServices) and isinstance(target, Present):
        learnt = learn_service_failure(progress, step, outcome, now_ms)
        if learnt is not None:
            return learnt
    away = outcome.reason is FailureReason.ENGINE_UNAVAILABLE
    if isinstance(step, Pull | Apply) and not away and mends(progress, step.workload):
        return learn_unmended(progress, outcome, now_ms)
    tries = progress.tries + 1
    delay_ms = _retry_delay_ms(tries, outcome.reason)
    if isinstance(step, Pull | Create | Start | Apply | StartServices):
        delay_ms = _spread_ms(delay_ms, outcome.reason, step.workload.instance)
    after = replace(progress, tries=tries, retry_at_ms=now_ms + delay_ms)
    fault = Fault(outcome.reason, outcome.message)
    if isinstance(target, Absent):
        reason = FailureReason.TEARDOWN_INCOMPLETE if not outcome.transient else outcome.reason
        return replace(after, fault=replace(fault, reason=reason))
    if isinstance(step, Start) and outcome.reason is FailureReason.PORT_IN_USE:
        return _learn_port_in_use(after, step.workload, fault)
    made = isinstance(step, Create | Apply) or (
        isinstance(step, Start) and step.workload.topology is not None
    )
    if made and outcome.reason is FailureReason.IMAGE_NOT_FOUND:
        # It was pulled, and somebody cleared it away since.
        return replace(after, pulled="", fault=fault)
    starts = isinstance(step, Start | StartServices)
    if (made or starts) and outcome.reason is FailureReason.BLOB_UNAVAILABLE:
        # It was there, and somebody changed it since: what may take long is the next pull's to do.
        recreate = after.recreate or starts
        return replace(after, pulled="", recreate=recreate, fault=fault)
    final = isinstance(step, Pull | Create | Start | Apply) and not outcome.transient
    if isinstance(step, Pull) and outcome.reason is FailureReason.IMAGE_PULL_FAILED:
        spent_ms = now_ms - progress.attempt_since_ms
        final = final or spent_ms >= step.workload.readiness.start_budget_ms
    return replace(after, fault=replace(fault, final=final))


def _learn_port_in_use(after: Progress, workload: Workload, fault: Fault) -> Progress:
    """A port the agent picked itself can be picked anew; a port that was asked for can not."""
    starts = after.starts + 1
    floating = any(port.host is None for port in workload.ports)
    final = not floating or starts >= STARTS_MAX
    return replace(after, starts=starts, recreate=floating, fault=replace(fault, final=final))


def _retry_delay_ms(tries: int, reason: FailureReason | None = None) -> int:
    disk_full = reason is FailureReason.DISK_FULL
    max_ms = RETRY_DELAY_DISK_FULL_MAX_MS if disk_full else RETRY_DELAY_MAX_MS
    return int(min(200 * 2 ** min(tries - 1, 16), max_ms))


def _spread_ms(delay_ms: int, reason: FailureReason, instance: str) -> int:
    """Between half of it and all of it, by the instance's name: what waits for the same service
    does not ask it all at once.
    """
    if reason not in {FailureReason.SECRET_UNAVAILABLE, FailureReason.BLOB_UNAVAILABLE}:
        return delay_ms
    return delay_ms * (50 + crc32(instance.encode()) % 51) // 100
