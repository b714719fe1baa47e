"""How the services of a topology in force stand, by themselves and to each other. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from node_agent.compose_wire import Dependency, starting_order
from node_agent.flaps import altered_words
from node_agent.jobs import is_done
from node_agent.restarts import exit_words
from node_agent.steps import Fault, Progress, ServiceProgress
from node_agent.units import ServiceSeen, Unit
from node_agent.wire import FailureReason, Service, Topology, Workload


@dataclass(frozen=True)
class Standing:
    """One service: as wanted, as seen, as remembered. `job`: others wait for its end. `done`: that
    job ended well, by what was written down of it, and its container is gone.
    """

    service: Service
    seen: ServiceSeen
    known: ServiceProgress
    job: bool
    trial: bool
    done: bool

    @property
    def name(self) -> str:
        return self.service.name

    @property
    def running(self) -> bool:
        return self.seen.status == "running"

    @property
    def completed(self) -> bool:
        """It ended, and well, and that was to be."""
        ends = self.job or self.service.restart != "always"
        return self.done or (ends and self.seen.status == "exited" and self.seen.exit_code == 0)

    @property
    def ready(self) -> bool:
        return self.running and self.known.ready

    @property
    def well(self) -> bool:
        return self.completed or (self.ready and not self.job)

    @property
    def down(self) -> bool:
        return not self.running and not self.completed

    @property
    def lost(self) -> bool:
        """It was started, and is down."""
        return self.down and self.known.started_at_ms > 0


Standings = Mapping[str, Standing]


def standings(wanted: Workload, unit: Unit, progress: Progress) -> Standings:
    """All services of `wanted`, which is in force as `unit`, by name, after what they depend on."""
    topology = wanted.topology
    if topology is None:
        return {}
    committed = progress.committed
    trial = committed is None or committed.spec_hash != wanted.spec_hash
    seen = {one.name: one for one in unit.services}
    known = {one.name: one for one in progress.services}
    jobs = job_names(topology)
    services = {one.name: one for one in topology.services}
    return {
        name: _standing(
            services[name], seen.get(name) or ServiceSeen(name),
            known.get(name) or ServiceProgress(name), unit, progress,
            job=name in jobs, trial=trial,
        )
        for name in starting_order(topology) or ()
    }  # fmt: skip


def _standing(
    service: Service, seen: ServiceSeen, known: ServiceProgress, unit: Unit, progress: Progress,
    *, job: bool, trial: bool,
) -> Standing:  # fmt: skip
    if known.failed is not None and known.form and seen.form and known.form != seen.form:
        known = released(known)  # Who was given up is another one now.
    return Standing(service, seen, known, job, trial, job and is_done(seen, unit, progress.jobs))


def released(known: ServiceProgress) -> ServiceProgress:
    """With a clean slate, if it was given up."""
    if known.failed is None:
        return known
    return ServiceProgress(known.name, restarts=known.restarts)


def job_names(topology: Topology) -> frozenset[str]:
    waited_for = (d for one in topology.services for d in one.depends_on)
    return frozenset(d.service for d in waited_for if d.condition == "completed")


def holds(dependency: Dependency, ones: Standings) -> bool:
    """Whether what is depended on is as it has to be, as far as is seen."""
    other = ones[dependency.service]
    match dependency.condition:
        case "completed":
            return other.completed
        case "healthy":
            return other.ready
        case _:
            ended = other.seen.status == "exited" and down_for_good(other) is not None
            return other.running or other.completed or ended


def unmet(one: Standing, ones: Standings) -> tuple[Dependency, ...]:
    return tuple(d for d in one.service.depends_on if not holds(d, ones))


def waiting_words(one: Standing, ones: Standings) -> str:
    """For what it waits; empty when for nothing."""
    waits = [f"{d.service} ({d.condition})" for d in unmet(one, ones)]
    return f"waits for {', '.join(waits)}" if waits else ""


def down_for_good(one: Standing) -> Fault | None:
    """Why it is not started again by itself, or None when it is, or is not down."""
    if not one.down:
        return None
    if one.known.failed is not None:
        return one.known.failed
    ended = one.service.restart == "never" and one.seen.status == "exited"
    if not ended or (one.trial and not one.known.started_at_ms):
        return None
    words = exit_words(one.seen.exit_code, out_of_memory=one.seen.out_of_memory)
    reason = FailureReason.OUT_OF_MEMORY if one.seen.out_of_memory else FailureReason.EXITED
    return Fault(reason, f"{words}, and is not started again", one.seen.exit_code)


def hopeless(one: Standing, ones: Standings) -> Fault | None:
    """Why it will not run by itself: it is down for good, or what it waits for is."""
    fault = down_for_good(one)
    if fault is not None or not one.down:
        return fault
    for dependency in unmet(one, ones):
        other = ones[dependency.service]
        why = hopeless(other, ones)
        if why is not None:
            return Fault(why.reason, f"waits for {other.name}: {why.message}", why.exit_code)
        if other.completed:
            message = f"waits for {other.name} to be ready, which ended"
            return Fault(FailureReason.EXITED, message, other.seen.exit_code)
    return None


def how_lost(one: Standing) -> str:
    if one.seen.altered:
        return altered_words(one.seen)
    match one.seen.status:
        case "exited":
            return exit_words(one.seen.exit_code, out_of_memory=one.seen.out_of_memory)
        case "running":
            return f"not ready: {one.known.probe_detail}"
        case "paused":
            return "it was paused"
        case _:
            return one.known.probe_detail or "it was removed"


def already_counted(progress: Progress, known: ServiceProgress) -> bool:
    """Whether the loss of a service is of an incident that was counted: several go at once."""
    if not progress.losses_ms or progress.ready_hash:
        return False
    return progress.losses_ms[-1] > known.started_at_ms


def ended_unclearly(wanted: Workload, unit: Unit) -> tuple[str, ...]:
    """Services whose exit code does not tell that they ended by themselves: all is down at once.

    Either it was stopped, or the host went down. What a job did stays done, and who is never to be
    started again is so after the host went down, too.
    """
    ones = standings(wanted, unit, Progress())
    if any(one.seen.alive for one in ones.values()):
        return ()
    stopped = unit.status == "exited"
    if not stopped and not any(one.seen.status == "exited" and one.down for one in ones.values()):
        return ()
    return tuple(name for name in sorted(ones) if _may_have_been_ended(ones[name], stopped=stopped))


def _may_have_been_ended(one: Standing, *, stopped: bool) -> bool:
    if one.seen.status != "exited" or (one.job and one.completed):
        return False
    if one.service.restart == "never":
        return stopped
    return one.completed
