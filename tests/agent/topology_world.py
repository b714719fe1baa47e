"""A node with topologies in miniature: steps are applied to a fake, and watched at each start."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field, replace
from typing import Any

from node_agent.compose_wire import Dependency, Service, Topology
from node_agent.converge import next_step, wanted_workload
from node_agent.engines.base import EngineFailure
from node_agent.learning import learn, renewed
from node_agent.service_standing import holds, standings
from node_agent.state import InstanceState
from node_agent.status import workload_report
from node_agent.steps import (
    Apply,
    Create,
    Done,
    Failed,
    Outcome,
    Present,
    ProbeReady,
    ProbeService,
    Progress,
    Prove,
    Pull,
    Remove,
    RepairServices,
    Settled,
    Start,
    StartServices,
    Step,
    Stop,
    Sweep,
    Target,
    Wait,
)
from node_agent.units import Probed, Unit
from node_agent.wire import (
    HttpProbe,
    Image,
    Phase,
    Proof,
    Readiness,
    ServicePhase,
    Workload,
    WorkloadReport,
)
from tests.agent.cases import DIGEST, INSTANCE, NODE, NOW_MS
from tests.fakes.compose import FakeCompose
from tests.fakes.engine import FakeEngine

PATIENCE = 400
IMAGE = Image(registry="fake", repository="demo", digest=DIGEST)
PROBED = Readiness(
    probe=HttpProbe(port=8080), interval_ms=200, start_budget_ms=2_000, failures_max=3
)
JOB = Readiness(interval_ms=200, start_budget_ms=4_000)


def service(name: str, *command: str, after: str = "", **changes: Any) -> Service:
    """`after`: what it waits for, `db:healthy init:completed`. Ready by a probe unless said."""
    depends_on = [
        Dependency(service=of, condition=condition or "started")  # type: ignore[arg-type]
        for of, _, condition in (one.partition(":") for one in after.split())
    ]
    fields = {"image": IMAGE, "readiness": PROBED, "depends_on": tuple(depends_on), **changes}
    return Service(name=name, command=command or ("serve",), **fields)


def topology_workload(*services: Service, **changes: Any) -> Workload:
    """`vital_failure`, `other_failure`, `volumes` are the topology's, the rest the workload's."""
    of_it = ("vital_failure", "other_failure", "volumes")
    policy = {key: changes.pop(key) for key in of_it if key in changes}
    ordered = tuple(sorted(services, key=lambda one: one.name))
    fields: dict[str, Any] = {
        "instance": INSTANCE,
        "engine": "compose",
        "image": IMAGE,
        "readiness": Readiness(start_budget_ms=10_000),
        "stop_grace_ms": 1_000,
        "topology": Topology(services=ordered, **policy),
    }
    return Workload(**{**fields, **changes})


@dataclass
class TopologyWorld:
    """Applies steps and checks after each what must always hold."""

    target: Target
    compose: FakeCompose = field(default_factory=lambda: FakeCompose(NODE, {DIGEST}))
    docker: FakeEngine = field(default_factory=lambda: FakeEngine(NODE, {DIGEST}))
    progress: Progress = field(default_factory=Progress)
    now_ms: int = NOW_MS
    done: list[str] = field(default_factory=list)
    ports_tried: int = 0

    def __post_init__(self) -> None:
        self.compose.on_start = self._starts

    def units(self) -> tuple[Unit, ...]:
        return self.compose.units(INSTANCE) + self.docker.units(INSTANCE)

    def order(self, target: Target) -> None:
        """A newer task."""
        self.progress = renewed(target, self.progress, self.now_ms)
        self.target = target

    def crash(self) -> None:
        """The agent dies and comes back with what it had written."""
        workload = self.target.workload if isinstance(self.target, Present) else None
        stored = InstanceState(
            instance=INSTANCE, seq=1, task_ids=(), correlation_id="", accepted_at_ms=0,
            workload=workload,
        ).with_progress(self.progress)  # fmt: skip
        durable = InstanceState.model_validate_json(stored.model_dump_json()).progress
        self.progress = replace(durable, attempt_since_ms=self.now_ms)

    def killed(self) -> None:
        """The agent dies after a step was carried out, and before anything of it was written."""
        before = self.progress
        self.step()
        self.progress = before
        self.crash()

    def step(self) -> Step:
        """One step, or one wait, and the checks."""
        before = sum(unit.alive for unit in self.units())
        step = next_step(self.target, self.units(), self.progress, self.now_ms)
        if isinstance(step, Wait):
            assert step.until_ms > self.now_ms, "waiting for the past would spin"
            self.now_ms = step.until_ms
        else:
            outcome = self._apply(step)
            self.progress = learn(self.target, self.progress, step, outcome, self.now_ms)
            self.done.append(_told(step))
        alive = sum(unit.alive for unit in self.units())
        assert alive <= max(1, before), f"{alive} run after {step}"
        self.now_ms += 1
        return step

    def run(self, steps: int = PATIENCE) -> Step:
        step: Step = Settled()
        for _ in range(steps):
            step = self.step()
            if isinstance(step, Settled):
                break
        return step

    def until(self, phase: Phase, steps: int = PATIENCE) -> WorkloadReport:
        """Runs until it is reported so."""
        for _ in range(steps):
            if self.report().phase is phase:
                break
            self.step()
        report = self.report()
        assert report.phase is phase, (report, self.done[-20:])
        return report

    def report(self) -> WorkloadReport:
        step = next_step(self.target, self.units(), self.progress, self.now_ms)
        return workload_report(self.target, self.units(), self.progress, step)

    def phases(self) -> dict[str, str]:
        return {one.name: one.phase for one in self.report().services}

    def phase_of(self, name: str) -> ServicePhase:
        return next(one for one in self.report().services if one.name == name)

    def seen_running(self, name: str) -> bool:
        seen = self.compose.seen(INSTANCE).get(name)
        return seen is not None and seen.status == "running"

    def _starts(self, instance: str, name: str) -> None:
        """Just before the engine starts a service."""
        assert isinstance(self.target, Present), f"{name} is started of what is to be removed"
        assert self.target.run, f"{name} is started of what is to be stopped"
        wanted = wanted_workload(self.target, self.progress)
        assert wanted is not None, f"{name} is started, and nothing should run"
        spec_hash, run = self.compose.in_force[instance]
        assert (spec_hash, run) == (wanted.spec_hash, True), f"{name} of another form"
        (unit,) = [one for one in self.units() if one.spec_hash == spec_hash]
        ones = standings(wanted, unit, self.progress)
        one = ones[name]
        assert not one.completed, f"{name} ended well, and is started again"
        assert one.known.failed is None, f"{name} was given up"
        noted = [job.name for job in self.progress.jobs]
        assert name not in noted, f"{name} is written down as done, and is started"
        for dependency in one.service.depends_on:
            assert holds(dependency, ones), f"{name} is started before {dependency}"
            self._really_holds(instance, dependency)

    def _really_holds(self, instance: str, dependency: Dependency) -> None:
        """By the engine's own word, whatever the agent remembers."""
        container = self.compose.containers.get((instance, dependency.service))
        if container is None or container.status == "created":
            assert dependency.condition != "healthy"
            assert dependency.service in [job.name for job in self.progress.jobs]
            return
        match dependency.condition:
            case "completed":
                assert (container.status, container.exit_code) == ("exited", 0)
            case "healthy":
                assert container.status == "running"
            case _:
                assert container.status in {"running", "exited"}

    def _apply(self, step: Step) -> Outcome:
        try:
            return self._carry_out(step)
        except EngineFailure as failure:
            if isinstance(step, Start | StartServices):
                self.ports_tried += 1
            return Failed(failure.reason, failure.message, failure.transient)

    def _engine(self, name: str) -> Any:
        return self.compose if name == "compose" else self.docker

    def _carry_out(self, step: Step) -> Outcome:
        match step:
            case Pull(workload):
                for image in workload.images:
                    self._engine(workload.engine).pull(image, threading.Event())
            case Create(workload):
                ports = {one.name: one.host or 40_000 + self.ports_tried for one in workload.ports}
                self._engine(workload.engine).create(workload, ports)
            case Start(unit, _) | Apply(unit, _):
                self._engine(unit.engine).start(unit)
            case StartServices(unit, _, names):
                self.compose.start_services(unit, names)
            case RepairServices(unit, workload, names):
                self.compose.remove_services(unit, names, workload.stop_grace_ms)
            case ProbeService(unit, workload, name):
                return self._probe(unit, workload, name)
            case ProbeReady(_, _):
                return Probed(True)
            case Stop(unit, grace_ms):
                self._engine(unit.engine).stop(unit, grace_ms)
            case Remove(unit):
                self._engine(unit.engine).remove(unit)
            case Sweep(instance):
                self.compose.sweep(instance)
                self.docker.sweep(instance)
            case Prove(instance):
                return Done(self._proof(instance))
            case _:
                pass
        return Done()

    def _probe(self, unit: Unit, workload: Workload, name: str) -> Probed:
        assert workload.topology is not None
        asked = workload.topology.service(name)
        assert asked is not None
        probe = asked.readiness.probe
        if probe is None:
            return Probed(True)
        return self.compose.probe_service(unit, name, probe, asked.readiness.timeout_ms)

    def _proof(self, instance: str) -> Proof:
        found = [self.compose.residue(instance), self.docker.residue(instance)]
        return Proof(
            checked_at_ms=self.now_ms,
            containers=sum(one.containers for one in found),
            networks=sum(one.networks for one in found),
            volumes=sum(one.volumes for one in found),
            paths=sum(one.paths for one in found),
        )


def _told(step: Step) -> str:
    """Its name, and of which services."""
    match step:
        case StartServices(_, _, names) | RepairServices(_, _, names):
            return f"{type(step).__name__} {' '.join(names)}"
        case ProbeService(_, _, name):
            return f"ProbeService {name}"
        case _:
            return type(step).__name__


def ready(what: Workload) -> TopologyWorld:
    """A world in which `what` passed its gate."""
    world = TopologyWorld(Present(what))
    world.until(Phase.READY)
    world.run(40)
    world.done.clear()
    world.compose.started.clear()
    world.compose.made_anew.clear()
    return world
