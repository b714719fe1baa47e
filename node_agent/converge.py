"""What to do next for one instance. What is learnt from doing it is in `learning`.

Rules:
- Pure: no I/O, clock, randomness, environment or logging. Time is an argument.
- Level-based: the next step follows from the target, what is seen and the progress, never from
  which event came in. So a crash between any two steps is harmless.
- Never two running: a unit is started only when no other of its instance is alive. Of two forms of
  one topology the next takes the place of the one before, service by service, by being started.
- `Progress.committed` is the last workload that passed its gate. An attempt that fails is given up,
  and what was committed is what should run again. What is committed and lost again and again is
  given up too, and then nothing runs (see `flaps`).
- A unit that is not as it was asked for is made anew. It is the same workload, so it needs no gate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from node_agent.flaps import altered_words, flapping
from node_agent.restarts import STARTS_MAX, exit_verdict, restart_delay_ms, trial_delay_ms
from node_agent.service_standing import ended_unclearly
from node_agent.services import service_step
from node_agent.steps import (
    Absent,
    Commit,
    Create,
    Fault,
    GiveUp,
    Present,
    ProbeReady,
    Progress,
    Prove,
    Pull,
    Remove,
    Repair,
    RepairServices,
    Settled,
    Start,
    Step,
    Stop,
    Sweep,
    TakeNote,
    Target,
    Tolerate,
    Wait,
    pulled_as,
)
from node_agent.units import Unit
from node_agent.wire import FailureReason, Workload

PIP_FAILED_CODE = 97
PACKAGES_WORDS = {
    95: "there is no room or right to write pip_packages to",
    96: "pip_packages need python3 with pip in the image",
    PIP_FAILED_CODE: "pip could not put pip_packages in",
}
"""How the start script of a workload with packages ends; see `engines.put_in`."""


def next_step(target: Target, units: Sequence[Unit], progress: Progress, now_ms: int) -> Step:
    """The one next thing to do. `units` are all of this instance on this node, on any engine."""
    if isinstance(target, Absent):
        return _tear_down(target, units, progress, now_ms)
    units = tolerating(units, progress)
    wanted = wanted_workload(target, progress)
    surplus = _surplus(units, wanted, progress)
    if surplus is not None:
        return _unless_waiting(Stop(surplus, target.workload.stop_grace_ms), progress, now_ms)
    if wanted is None:
        return _hold_still(target, units, progress, now_ms)
    if on_trial(wanted, progress):
        return _attempt(wanted, units, progress, now_ms)
    return _keep(wanted, units, progress, now_ms)


def wanted_workload(target: Present, progress: Progress) -> Workload | None:
    """What should run now: the one on trial, what was committed before, or nothing."""
    if not target.run:
        return None
    return progress.committed if progress.failure is not None else target.workload


def tolerating(units: Sequence[Unit], progress: Progress) -> Sequence[Unit]:
    """The units, altered only in what the engine does not do by itself."""
    if not progress.tolerated:
        return units
    return [_tolerating(unit, progress.tolerated) for unit in units]


def _tolerating(unit: Unit, tolerated: Sequence[str]) -> Unit:
    services = tuple(
        replace(one, altered=_without(one.altered, tolerated)) for one in unit.services
    )
    return replace(unit, altered=_without(unit.altered, tolerated), services=services)


def _without(lines: tuple[str, ...], tolerated: Sequence[str]) -> tuple[str, ...]:
    return tuple(line for line in lines if line not in tolerated)


def preferred(units: Sequence[Unit], wanted: Workload | None) -> Unit | None:
    """The unit of the wanted workload: as asked for, then alive, then the oldest before others."""
    if wanted is None:
        return None
    ours = [
        unit
        for unit in units
        if unit.spec_hash == wanted.spec_hash and unit.engine == wanted.engine
    ]
    return min(ours, key=_seniority, default=None)


def _seniority(unit: Unit) -> tuple[bool, bool, int, str]:
    return (bool(unit.altered), not unit.alive, unit.created_at_ms, unit.unit_id)


def on_trial(wanted: Workload, progress: Progress) -> bool:
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
        if unit.spec_hash not in kept and not _flapped(progress):
            return _unless_waiting(Remove(unit), progress, now_ms)
    return Settled()


def _flapped(progress: Progress) -> bool:
    """Then what was committed is among what failed last."""
    return progress.failure is not None and progress.failure.reason is FailureReason.FLAPPING


def _attempt(wanted: Workload, units: Sequence[Unit], progress: Progress, now_ms: int) -> Step:
    if progress.fault is not None and progress.fault.final:
        return GiveUp(progress.fault)
    if now_ms < progress.retry_at_ms:
        return Wait(progress.retry_at_ms)
    current = preferred(units, wanted)
    if current is None:
        return _pull_or_create(wanted, progress)
    if wanted.topology is not None:
        return _topology(current, wanted, units, progress, now_ms)
    return _attempt_unit(current, wanted, units, progress, now_ms)


def _attempt_unit(
    current: Unit, wanted: Workload, units: Sequence[Unit], progress: Progress, now_ms: int
) -> Step:
    if current.altered:
        return _put_right_on_trial(current, wanted, progress)
    if current.status == "running":
        return _gate(current, wanted, progress, now_ms)
    if progress.recreate or (current.status == "exited" and progress.starts == 0):
        return Remove(current)
    verdict = _exit_verdict(current, wanted, progress) if current.status == "exited" else None
    if verdict is not None:
        return GiveUp(verdict)
    return _start_on_trial(current, wanted, units, progress, now_ms)


def _put_right_on_trial(current: Unit, wanted: Workload, progress: Progress) -> Step:
    if progress.starts >= STARTS_MAX:
        message = f"altered again each time before it was ready: {altered_words(current)}"
        return GiveUp(Fault(FailureReason.ALTERED, message, final=True))
    return _put_right(current, wanted, progress)


def _put_right(current: Unit, wanted: Workload, progress: Progress) -> Step:
    if progress.fresh and current.status == "created":
        return Tolerate(current)
    if current.alive and progress.pulled != pulled_as(wanted):
        # What runs, however altered, is not stopped for one that can't be made.
        return Pull(wanted)
    return Repair(current, wanted)


def _start_on_trial(
    current: Unit, wanted: Workload, units: Sequence[Unit], progress: Progress, now_ms: int
) -> Step:
    restart_at_ms = progress.started_at_ms + trial_delay_ms(progress.starts)
    if current.status == "exited" and now_ms < restart_at_ms:
        return Wait(restart_at_ms)
    other = next((unit for unit in units if unit.alive and unit != current), None)
    if other is not None:
        return Stop(other, wanted.stop_grace_ms)
    return Start(current, wanted)


def _pull_or_create(wanted: Workload, progress: Progress) -> Step:
    return Create(wanted) if progress.pulled == pulled_as(wanted) else Pull(wanted)


def _exit_verdict(current: Unit, wanted: Workload, progress: Progress) -> Fault | None:
    packages = packages_fault(current, wanted)
    if packages is not None:
        again = current.exit_code == PIP_FAILED_CODE and progress.starts < STARTS_MAX
        return None if again else replace(packages, final=True)
    return exit_verdict(current.exit_code, progress.starts, out_of_memory=current.out_of_memory)


def packages_fault(unit: Unit, workload: Workload) -> Fault | None:
    """What an exit says of packages that could not be put in. pip's own words are in the log only:
    they may quote what an index or a build says.
    """
    why = PACKAGES_WORDS.get(unit.exit_code or 0)
    if workload.packages is None or why is None or unit.status != "exited" or unit.out_of_memory:
        return None
    where = f"docker logs {unit.name}" if unit.engine == "docker" else f"the log of {unit.name}"
    message = f"{why}; on the node see: {where}"
    return Fault(FailureReason.PACKAGES_FAILED, message, unit.exit_code)


def _gate(current: Unit, wanted: Workload, progress: Progress, now_ms: int) -> Step:
    readiness = wanted.readiness
    if progress.gate_since_ms == 0:
        return TakeNote(current)
    if progress.ready_hash == wanted.spec_hash:
        return Commit(wanted)
    deadline_ms = progress.gate_since_ms + readiness.start_budget_ms
    if now_ms >= deadline_ms and progress.probe_failures:
        message = f"not ready within {readiness.start_budget_ms} ms: {progress.probe_detail}"
        return GiveUp(Fault(FailureReason.NOT_READY_IN_TIME, message, final=True))
    if readiness.probe is None:
        return _probe_when_due(current, wanted, progress, now_ms)
    if now_ms >= min(progress.next_probe_ms, deadline_ms):
        return ProbeReady(current, wanted)
    return Wait(min(progress.next_probe_ms, deadline_ms))


def _keep(wanted: Workload, units: Sequence[Unit], progress: Progress, now_ms: int) -> Step:
    """Keeps what passed its gate running, and nothing beside it."""
    current = preferred(units, wanted)
    others = [unit for unit in units if current is None or unit.unit_id != current.unit_id]
    if now_ms < progress.retry_at_ms:
        return Wait(progress.retry_at_ms)
    if wanted.topology is not None:
        return _keep_topology(wanted, current, others, progress, now_ms)
    intruder = next((other for other in others if other.alive), None)
    if intruder is not None:
        return Stop(intruder, wanted.stop_grace_ms)
    return _keep_unit(wanted, current, others, progress, now_ms)


def _keep_unit(
    wanted: Workload,
    current: Unit | None,
    others: Sequence[Unit],
    progress: Progress,
    now_ms: int,
) -> Step:
    fault = flapping(current, wanted, progress, now_ms)
    if fault is not None:
        return GiveUp(fault)
    if current is not None and current.altered:
        return _put_right(current, wanted, progress)
    if current is None or current.status != "running":
        return _bring_back(wanted, current, progress, now_ms)
    if progress.gate_since_ms == 0:
        return TakeNote(current)
    if others:
        return Remove(others[0])
    return _probe_when_due(current, wanted, progress, now_ms)


def _keep_topology(
    wanted: Workload,
    current: Unit | None,
    others: Sequence[Unit],
    progress: Progress,
    now_ms: int,
) -> Step:
    if current is None:
        return _pull_or_create(wanted, progress)
    step = _topology(current, wanted, others, progress, now_ms)
    quiet = isinstance(step, Wait | Settled) and current.status == "running"
    return Remove(others[0]) if others and quiet else step


def _topology(
    current: Unit, wanted: Workload, units: Sequence[Unit], progress: Progress, now_ms: int
) -> Step:
    """On trial or committed: puts a topology whose form is there in force, and sees to it.

    What is in force before is not stopped for it, only what runs by another engine.
    """
    other = next((one for one in units if one.alive and one.engine != wanted.engine), None)
    pulled = progress.pulled == pulled_as(wanted)
    if progress.recreate or (current.status != "running" and not pulled):
        return _pull_or_create(wanted, progress)
    if other is not None:
        return Stop(other, wanted.stop_grace_ms)
    if current.status != "running":
        return _put_in_force(current, wanted, progress, now_ms)
    if progress.gate_since_ms == 0:
        unclear = ended_unclearly(wanted, current)
        return RepairServices(current, wanted, unclear) if unclear else TakeNote(current)
    return service_step(wanted, current, progress, now_ms) or Settled()


def _put_in_force(current: Unit, wanted: Workload, progress: Progress, now_ms: int) -> Step:
    delay_ms = restart_delay_ms(progress.starts, progress.started_at_ms, now_ms)
    if not progress.stopped_by_us and now_ms < progress.started_at_ms + delay_ms:
        return Wait(progress.started_at_ms + delay_ms)
    unclear = ended_unclearly(wanted, current)
    return RepairServices(current, wanted, unclear) if unclear else Start(current, wanted)


def _probe_when_due(current: Unit, wanted: Workload, progress: Progress, now_ms: int) -> Step:
    readiness = wanted.readiness
    due_ms = progress.next_probe_ms
    if readiness.probe is None:
        if progress.ready_hash == wanted.spec_hash:
            return Settled()
        # With nothing to ask, having stayed up for one interval is the only evidence there is.
        up_ms = progress.started_at_ms + min(readiness.interval_ms, readiness.start_budget_ms)
        due_ms = max(up_ms, due_ms)
    return ProbeReady(current, wanted) if now_ms >= due_ms else Wait(due_ms)


def _bring_back(wanted: Workload, current: Unit | None, progress: Progress, now_ms: int) -> Step:
    delay_ms = restart_delay_ms(progress.starts, progress.started_at_ms, now_ms)
    restart_at_ms = progress.started_at_ms + delay_ms
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
