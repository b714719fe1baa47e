"""A node in miniature: one fake engine, one instance, a clock that jumps to the next deadline."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field, replace

from node_agent.converge import next_step
from node_agent.engines import packages
from node_agent.engines.base import EngineFailure
from node_agent.learning import learn, renewed
from node_agent.state import InstanceState
from node_agent.status import workload_report
from node_agent.steps import (
    Create,
    Done,
    Failed,
    Outcome,
    Present,
    ProbeReady,
    Progress,
    Prove,
    Pull,
    Remove,
    Repair,
    Settled,
    Start,
    Step,
    Stop,
    Sweep,
    Target,
    Wait,
)
from node_agent.units import Probed, Unit
from node_agent.wire import Port, Proof, Workload, WorkloadReport
from tests.agent.cases import INSTANCE, NODE, NOW_MS
from tests.fakes.engine import FakeEngine

HOST_PORT = 40_000


@dataclass
class World:
    """Applies steps to the fake and checks what must hold after each of them."""

    engine: FakeEngine
    target: Target
    progress: Progress = field(default_factory=Progress)
    now_ms: int = NOW_MS
    done: list[str] = field(default_factory=list)
    ports_tried: int = 0

    def units(self) -> tuple[Unit, ...]:
        return self.engine.units(INSTANCE)

    def order(self, target: Target) -> None:
        """A newer task."""
        self.progress = renewed(target, self.progress, self.now_ms)
        self.target = target

    def crash(self) -> None:
        """The agent dies and comes back with what it had written."""
        stored = InstanceState(
            instance=INSTANCE, seq=1, task_ids=(), correlation_id="", accepted_at_ms=0,
            workload=self.target.workload if isinstance(self.target, Present) else None,
        ).with_progress(self.progress)  # fmt: skip
        durable = InstanceState.model_validate_json(stored.model_dump_json()).progress
        self.progress = replace(durable, attempt_since_ms=self.now_ms)

    def step(self) -> Step:
        """One step, or one wait, and the checks."""
        alive_before = sum(unit.alive for unit in self.engine.units(INSTANCE))
        step = next_step(self.target, self.units(), self.progress, self.now_ms)
        if isinstance(step, Wait):
            assert step.until_ms > self.now_ms, "waiting for the past would spin"
            self.now_ms = step.until_ms
        else:
            outcome = self._apply(step)
            self.progress = learn(self.target, self.progress, step, outcome, self.now_ms)
            self.done.append(type(step).__name__)
        alive = sum(unit.alive for unit in self.engine.units(INSTANCE))
        assert alive <= max(1, alive_before), f"{alive} run after {step}"
        self.now_ms += 1
        return step

    def run(self, steps: int) -> Step:
        step: Step = Settled()
        for _ in range(steps):
            step = self.step()
            if isinstance(step, Settled):
                break
        return step

    def report(self) -> WorkloadReport:
        step = next_step(self.target, self.units(), self.progress, self.now_ms)
        return workload_report(self.target, self.units(), self.progress, step)

    def _apply(self, step: Step) -> Outcome:
        try:
            return self._carry_out(step)
        except EngineFailure as failure:
            if isinstance(step, Start):
                self.ports_tried += 1
            return Failed(failure.reason, failure.message, failure.transient)

    def _carry_out(self, step: Step) -> Outcome:
        match step:
            case Pull(workload):
                self.engine.pull(workload.image, threading.Event())
            case Create(workload):
                self.engine.create(workload, {p.name: self._host(p) for p in workload.ports})
            case Start(unit, _):
                self.engine.start(unit)
            case ProbeReady(unit, workload) if workload.readiness.probe is not None:
                return self.engine.probe(unit, workload.readiness.probe, 100)
            case ProbeReady(unit, workload) if workload.packages is not None:
                return self.engine.probe(unit, packages.THERE, 100)
            case ProbeReady(_, _):
                return Probed(True)
            case Stop(unit, grace_ms):
                self.engine.stop(unit, grace_ms)
            case Remove(unit):
                self.engine.remove(unit)
            case Repair(unit, workload):
                self.engine.stop(unit, workload.stop_grace_ms)
                self.engine.remove(unit)
            case Sweep(instance):
                self.engine.sweep(instance)
            case Prove(instance):
                return Done(self._proof(instance))
            case _:
                pass
        return Done()

    def _host(self, port: Port) -> int:
        return port.host or HOST_PORT + self.ports_tried

    def _proof(self, instance: str) -> Proof:
        found = self.engine.residue(instance)
        return Proof(
            checked_at_ms=self.now_ms, containers=found.containers, networks=found.networks,
            volumes=found.volumes, paths=found.paths,
        )  # fmt: skip


def new_world(target: Target, *workloads: Workload) -> World:
    """A world in which the images of the target and of `workloads` can be pulled."""
    digests = {workload.image.digest for workload in workloads}
    if isinstance(target, Present):
        digests.add(target.workload.image.digest)
    return World(FakeEngine(NODE, digests, name="process"), target)
