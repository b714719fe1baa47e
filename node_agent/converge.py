"""What to do next for one instance, and what was learnt from doing it.

Rules:
- Pure: no I/O, clock, randomness, environment or logging. Time is an argument.
- Level-based: the next step follows from the target, what is seen and the progress, never from
  which event came in. So a crash between any two steps is harmless.
- Never two running: a unit is started only when no other of its instance is alive.
- `Progress.committed` is the last workload that passed its gate. An attempt that fails is given up,
  and what was committed is what should run again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from node_agent.steps import (
    PROBE_FIRST_MS,
    Absent,
    Commit,
    Create,
    Done,
    Failed,
    Fault,
    GiveUp,
    Outcome,
    Present,
    ProbeReady,
    Progress,
    Prove,
    Pull,
    Remove,
    Settled,
    Start,
    Step,
    Stop,
    Sweep,
    TakeNote,
    Target,
    Wait,
)
from node_agent.units import Probed, Unit
from node_agent.wire import FailureReason, Proof, Workload

STARTS_MAX = 3
"""How often a workload on trial may be started before its exits count as failure."""
COMMAND_CODES = frozenset({126, 127})
"""How shells and Docker's init say that there was nothing to run."""
STABLE_MS = 300_000
"""A workload that ran this long starts its restart backoff afresh. Well above the longest delay, so
that waiting is not taken for running."""
RESTART_DELAY_MAX_MS = 60_000
RETRY_DELAY_MAX_MS = 30_000


def renewed(target: Target, progress: Progress, now_ms: int) -> Progress:
    """The progress with which a newer task starts: what was committed stays, nothing else.

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
        ready_hash=progress.ready_hash if serving else "",
        stopped_by_us=True,
    )


# --- deciding ------------------------------------------------------------------------------------


def next_step(target: Target, units: Sequence[Unit], progress: Progress, now_ms: int) -> Step:
    """The one next thing to do. `units` are all of this instance on this node, on any engine."""
    if isinstance(target, Absent):
        return _tear_down(target, units, progress, now_ms)
    wanted = wanted_workload(target, progress)
    surplus = _surplus(units, wanted, progress)
    if surplus is not None:
        return _unless_waiting(Stop(surplus, target.workload.stop_grace_ms), progress, now_ms)
    if wanted is None:
        return _hold_still(target, units, progress, now_ms)
    if _on_trial(wanted, progress):
        return _attempt(wanted, units, progress, now_ms)
    return _keep(wanted, units, progress, now_ms)


def wanted_workload(target: Present, progress: Progress) -> Workload | None:
    """What should run now: the one on trial, what was committed before, or nothing."""
    if not target.run:
        return None
    return progress.committed if progress.failure is not None else target.workload


def preferred(units: Sequence[Unit], wanted: Workload | None) -> Unit | None:
    """The unit of the wanted workload: one that is alive before others, then the oldest."""
    if wanted is None:
        return None
    ours = [
        unit
        for unit in units
        if unit.spec_hash == wanted.spec_hash and unit.engine == wanted.engine
    ]
    return min(ours, key=_seniority, default=None)


def _seniority(unit: Unit) -> tuple[bool, int, str]:
    return (not unit.alive, unit.created_at_ms, unit.unit_id)


def _on_trial(wanted: Workload, progress: Progress) -> bool:
    return progress.committed is None or progress.committed.spec_hash != wanted.spec_hash


def _surplus(units: Sequence[Unit], wanted: Workload | None, progress: Progress) -> Unit | None:
    """Of several that are alive, one that must not be: somebody else started a second one."""
    alive = sorted((unit for unit in units if unit.alive), key=_seniority)
    if len(alive) < 2:
        return None
    keep = preferred(alive, wanted) or preferred(alive, progress.committed) or alive[0]
    return next(unit for unit in alive if unit.unit_id != keep.unit_id)


def _unless_waiting(step: Step, progress: Progress, now_ms: int) -> Step:
    return Wait(progress.retry_at_ms) if now_ms < progress.retry_at_ms else step


def _hold_still(target: Present, units: Sequence[Unit], progress: Progress, now_ms: int) -> Step:
    """Nothing should run: stopped on purpose, or given up with nothing to go back to.

    What failed last stays there, not running, so that an operator can read its log.
    """
    kept = {target.workload.spec_hash}
    if progress.committed is not None:
        kept.add(progress.committed.spec_hash)
    for unit in sorted(units, key=_seniority):
        if unit.alive:
            return _unless_waiting(Stop(unit, target.workload.stop_grace_ms), progress, now_ms)
        if unit.spec_hash not in kept:
            return _unless_waiting(Remove(unit), progress, now_ms)
    return Settled()


def _attempt(wanted: Workload, units: Sequence[Unit], progress: Progress, now_ms: int) -> Step:
    if progress.fault is not None and progress.fault.final:
        return GiveUp(progress.fault)
    if now_ms < progress.retry_at_ms:
        return Wait(progress.retry_at_ms)
    current = preferred(units, wanted)
    if current is None:
        return _pull_or_create(wanted, progress)
    if current.status == "running":
        return _gate(current, wanted, progress, now_ms)
    if progress.recreate or (current.status == "exited" and progress.starts == 0):
        return Remove(current)
    verdict = _exit_verdict(current, progress) if current.status == "exited" else None
    if verdict is not None:
        return GiveUp(verdict)
    return _start_on_trial(current, wanted, units, progress, now_ms)


def _start_on_trial(
    current: Unit, wanted: Workload, units: Sequence[Unit], progress: Progress, now_ms: int
) -> Step:
    restart_at_ms = progress.started_at_ms + _trial_delay_ms(progress.starts)
    if current.status == "exited" and now_ms < restart_at_ms:
        return Wait(restart_at_ms)
    other = next((unit for unit in units if unit.alive and unit != current), None)
    if other is not None:
        return Stop(other, wanted.stop_grace_ms)
    return Start(current, wanted)


def _pull_or_create(wanted: Workload, progress: Progress) -> Step:
    return Create(wanted) if progress.pulled == wanted.image.reference else Pull(wanted)


def _exit_verdict(current: Unit, progress: Progress) -> Fault | None:
    if current.out_of_memory:
        message = "killed for using more memory than its limit"
        return Fault(FailureReason.OUT_OF_MEMORY, message, current.exit_code, final=True)
    if current.exit_code in COMMAND_CODES:
        message = f"exited with {current.exit_code}: the command is not there or can't be run"
        reason = FailureReason.COMMAND_NOT_FOUND
        return Fault(reason, message, current.exit_code, final=True)
    if progress.starts >= STARTS_MAX:
        message = f"exited {progress.starts} times before it was ready"
        return Fault(FailureReason.EXITED, message, current.exit_code, final=True)
    return None


def _gate(current: Unit, wanted: Workload, progress: Progress, now_ms: int) -> Step:
    readiness = wanted.readiness
    if progress.gate_since_ms == 0:
        return TakeNote(current)
    if progress.ready_hash == wanted.spec_hash:
        return Commit(wanted)
    deadline_ms = progress.gate_since_ms + readiness.start_budget_ms
    if readiness.probe is None:
        return _probe_when_due(current, wanted, progress, now_ms)
    if now_ms >= deadline_ms and progress.probe_failures:
        message = f"not ready within {readiness.start_budget_ms} ms: {progress.probe_detail}"
        return GiveUp(Fault(FailureReason.NOT_READY_IN_TIME, message, final=True))
    if now_ms >= min(progress.next_probe_ms, deadline_ms):
        return ProbeReady(current, wanted)
    return Wait(min(progress.next_probe_ms, deadline_ms))


def _keep(wanted: Workload, units: Sequence[Unit], progress: Progress, now_ms: int) -> Step:
    """Keeps what passed its gate running, and nothing beside it."""
    current = preferred(units, wanted)
    others = [unit for unit in units if current is None or unit.unit_id != current.unit_id]
    if now_ms < progress.retry_at_ms:
        return Wait(progress.retry_at_ms)
    intruder = next((other for other in others if other.alive), None)
    if intruder is not None:
        return Stop(intruder, wanted.stop_grace_ms)
    if current is None or current.status != "running":
        return _bring_back(wanted, current, progress, now_ms)
    if progress.gate_since_ms == 0:
        return TakeNote(current)
    if others:
        return Remove(others[0])
    return _probe_when_due(current, wanted, progress, now_ms)


def _probe_when_due(current: Unit, wanted: Workload, progress: Progress, now_ms: int) -> Step:
    readiness = wanted.readiness
    due_ms = progress.next_probe_ms
    if readiness.probe is None:
        if progress.ready_hash == wanted.spec_hash:
            return Settled()
        # With nothing to ask, having stayed up for one interval is the only evidence there is.
        due_ms = progress.started_at_ms + min(readiness.interval_ms, readiness.start_budget_ms)
    return ProbeReady(current, wanted) if now_ms >= due_ms else Wait(due_ms)


def _bring_back(wanted: Workload, current: Unit | None, progress: Progress, now_ms: int) -> Step:
    restart_at_ms = progress.started_at_ms + _restart_delay_ms(progress, now_ms)
    if not progress.stopped_by_us and now_ms < restart_at_ms:
        return Wait(restart_at_ms)
    if current is None:
        return _pull_or_create(wanted, progress)
    return Remove(current) if progress.recreate else Start(current, wanted)


def _tear_down(target: Absent, units: Sequence[Unit], progress: Progress, now_ms: int) -> Step:
    if now_ms < progress.retry_at_ms:
        return Wait(progress.retry_at_ms)
    for unit in sorted(units, key=_seniority):
        return Stop(unit, target.stop_grace_ms) if unit.alive else Remove(unit)
    if progress.proof is not None:
        return Settled()
    return Prove(target.instance) if progress.swept else Sweep(target.instance)


def _trial_delay_ms(starts: int) -> int:
    return 0 if starts == 0 else int(250 * 2 ** (starts - 1))


def _restart_delay_ms(progress: Progress, now_ms: int) -> int:
    """None for a workload that ran well, then 1 s, 2 s, 4 s … for one that keeps dying."""
    if progress.starts <= 1 or now_ms - progress.started_at_ms >= STABLE_MS:
        return 0
    return int(min(1_000 * 2 ** min(progress.starts - 2, 16), RESTART_DELAY_MAX_MS))


# --- learning ------------------------------------------------------------------------------------


def learn(
    target: Target, progress: Progress, step: Step, outcome: Outcome, now_ms: int
) -> Progress:
    """The progress after `step` ended with `outcome`."""
    if isinstance(outcome, Failed):
        return _learn_failure(target, progress, step, outcome, now_ms)
    if isinstance(step, ProbeReady) and isinstance(outcome, Probed):
        return _learn_probe(progress, step.workload, outcome, now_ms)
    # A teardown counts its tries until the proof is clean: sweeping well is not yet success.
    tries = progress.tries if isinstance(target, Absent) else 0
    after = replace(progress, retry_at_ms=0, tries=tries)
    return _learn_done(target, after, step, outcome, now_ms)


def _learn_done(
    target: Target, after: Progress, step: Step, outcome: Outcome, now_ms: int
) -> Progress:
    match step:
        case Pull(workload):
            after = replace(after, pulled=workload.image.reference, fault=None)
        case Start(_, workload):
            after = _learn_start(after, workload, now_ms)
        case TakeNote(_):
            after = _watching(replace(after, gate_since_ms=now_ms, stopped_by_us=False), now_ms)
        case Stop(unit, _):
            still = "" if unit.spec_hash == after.ready_hash else after.ready_hash
            after = replace(after, ready_hash=still, stopped_by_us=True)
        case Remove(_):
            after = replace(after, recreate=False, swept=False)
        case Commit(workload):
            after = replace(after, committed=workload, fault=None, restarts=0, starts=1)
        case GiveUp(fault):
            after = replace(renewed(target, after, now_ms), failure=replace(fault, final=True))
        case Sweep(_):
            after = replace(after, swept=True)
        case Prove(_) if isinstance(outcome, Done) and outcome.proof is not None:
            after = _learn_proof(after, outcome.proof, now_ms)
        case _:
            pass
    return after


def _learn_start(after: Progress, workload: Workload, now_ms: int) -> Progress:
    lost = not _on_trial(workload, after) and not after.stopped_by_us
    calm = after.starts > 0 and now_ms - after.started_at_ms >= STABLE_MS
    started = replace(
        after,
        starts=1 if calm else after.starts + 1,
        restarts=after.restarts + 1 if lost else after.restarts,
        gate_since_ms=(after.gate_since_ms if _on_trial(workload, after) else 0) or now_ms,
        stopped_by_us=False,
        fault=None,
        ready_hash="",
    )
    return _watching(started, now_ms)


def _watching(progress: Progress, now_ms: int) -> Progress:
    return replace(
        progress, started_at_ms=now_ms, next_probe_ms=now_ms, probe_gap_ms=PROBE_FIRST_MS,
        probe_failures=0,
    )  # fmt: skip


def _learn_probe(progress: Progress, workload: Workload, outcome: Probed, now_ms: int) -> Progress:
    readiness = workload.readiness
    if outcome.ready:
        return replace(
            progress, ready_hash=workload.spec_hash, probe_failures=0, probe_detail="",
            fault=None, next_probe_ms=now_ms + readiness.interval_ms,
        )  # fmt: skip
    failures = progress.probe_failures + 1
    was_ready = progress.ready_hash == workload.spec_hash
    gap_ms = min(progress.probe_gap_ms, readiness.interval_ms)
    wait_ms = readiness.interval_ms if was_ready else gap_ms
    return replace(
        progress,
        probe_failures=failures,
        probe_detail=outcome.detail,
        ready_hash="" if failures >= readiness.failures_max else progress.ready_hash,
        next_probe_ms=now_ms + wait_ms,
        probe_gap_ms=min(gap_ms * 3 // 2, readiness.interval_ms),
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
    tries = progress.tries + 1
    after = replace(progress, tries=tries, retry_at_ms=now_ms + _retry_delay_ms(tries))
    fault = Fault(outcome.reason, outcome.message)
    if isinstance(target, Absent):
        reason = FailureReason.TEARDOWN_INCOMPLETE if not outcome.transient else outcome.reason
        return replace(after, fault=replace(fault, reason=reason))
    if isinstance(step, Start) and outcome.reason is FailureReason.PORT_IN_USE:
        return _learn_port_in_use(after, step.workload, fault)
    final = isinstance(step, Pull | Create | Start) and not outcome.transient
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


def _retry_delay_ms(tries: int) -> int:
    return int(min(200 * 2 ** min(tries - 1, 16), RETRY_DELAY_MAX_MS))
