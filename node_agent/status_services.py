"""How the services of a topology are reported. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from node_agent.flaps import altered_words
from node_agent.service_standing import (
    Standing,
    Standings,
    hopeless,
    how_lost,
    standings,
    waiting_words,
)
from node_agent.steps import Fault, Progress
from node_agent.units import Unit
from node_agent.wire import FailureReason, ServicePhase, Workload

WORDS_MAX = 4
"""Of how many services a message tells."""
_Phase = Literal["waiting", "starting", "ready", "completed", "degraded", "failed", "stopped"]


def service_phases(workload: Workload, unit: Unit, progress: Progress) -> tuple[ServicePhase, ...]:
    """Those of what is in force, in the order of their names."""
    ones = standings(workload, unit, progress)
    stopped = unit.status != "running"
    return tuple(_service_phase(ones[name], ones, stopped=stopped) for name in sorted(ones))


def services_fault(workload: Workload, unit: Unit, progress: Progress) -> Fault | None:
    """What is wrong with some of them, or None when they are ready or on their way."""
    ones = standings(workload, unit, progress)
    bad = [one for one in service_phases(workload, unit, progress) if _is_bad(one)]
    if not bad:
        return None
    bad.sort(key=lambda one: (not one.vital, one.name))
    told = [f"{one.name}: {one.detail}" for one in bad[:WORDS_MAX]]
    more = f" and {len(bad) - WORDS_MAX} more" if len(bad) > WORDS_MAX else ""
    # Who only fails its probe may do so because of what another one is.
    lost = [one for one in bad if not ones[one.name].running or ones[one.name].seen.altered]
    first = ones[(lost or bad)[0].name]
    fault = Fault(_reason(first, ones), "; ".join(told) + more)
    return replace(fault, exit_code=_exit_code(first))


def all_well(phases: Sequence[ServicePhase]) -> bool:
    return bool(phases) and all(one.phase in {"ready", "completed"} for one in phases)


def _exit_code(one: Standing) -> int | None:
    """Engines say 0 of what never ran, too."""
    return one.seen.exit_code if one.seen.status == "exited" else None


def _is_bad(one: ServicePhase) -> bool:
    return one.phase in {"degraded", "failed"}


def _service_phase(one: Standing, ones: Standings, *, stopped: bool) -> ServicePhase:
    done = one.job and one.completed
    stays: tuple[_Phase, str] = ("stopped", "")
    phase, detail = stays if stopped and not done else _phase(one, ones)
    return ServicePhase(
        name=one.name,
        phase=phase,
        vital=one.service.vital,
        detail=detail,
        restarts=one.known.restarts,
        exit_code=_exit_code(one),
        image_digest=one.seen.image_digest,
    )


def _phase(one: Standing, ones: Standings) -> tuple[_Phase, str]:
    if one.seen.altered:
        return "degraded", altered_words(one.seen)
    if one.completed:
        return "completed", ""
    return _running_phase(one) if one.running else _down_phase(one, ones)


def _running_phase(one: Standing) -> tuple[_Phase, str]:
    known = one.known
    if one.ready and not one.job:
        return "ready", ""
    if one.job and (one.ready or one.service.readiness.probe is None):
        return "starting", "has to end first"
    failing = known.probe_failures >= one.service.readiness.failures_max
    if not one.trial and (failing or known.restarts):
        words = f": {known.probe_detail}" if known.probe_detail else ""
        return "degraded", f"not ready{words}"
    return "starting", known.probe_detail


def _down_phase(one: Standing, ones: Standings) -> tuple[_Phase, str]:
    fault = hopeless(one, ones)
    if fault is not None:
        return "failed", fault.message
    waits = waiting_words(one, ones)
    if not one.lost:
        return ("waiting" if waits else "starting"), waits
    words = how_lost(one)
    then = waits or "will be started again"
    return ("starting" if one.trial else "degraded"), f"{words}, {then}"


def _reason(one: Standing, ones: Standings) -> FailureReason:
    if one.seen.altered:
        return FailureReason.ALTERED
    fault = hopeless(one, ones)
    if fault is not None:
        return fault.reason
    if one.running:
        return FailureReason.NOT_READY_IN_TIME
    if one.lost and one.seen.status == "missing" and not one.trial:
        return FailureReason.ALTERED
    return FailureReason.OUT_OF_MEMORY if one.seen.out_of_memory else FailureReason.EXITED
