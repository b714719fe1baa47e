"""Docker on one node, in memory: it outlives agents, takes its time, and others use it as well.

Rules:
- It keeps to what `engines.base.Engine` promises, and to what Docker does: a name is taken once, a
  host port is taken by whoever runs, a volume stays until it is swept.
- What belongs to nobody we know, or to us but was never asked for, may be looked at, not touched.
- Each call is a place at which the agent may die, before or after it had its effect.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

from node_agent.engines.base import (
    Ask,
    Cancelled,
    EngineFacts,
    EngineFailure,
    Residue,
    endpoints_of,
    no_credential,
    unit_name,
)
from node_agent.units import Probed, Unit
from node_agent.wire import EngineName, FailureReason, Image, Probe, Workload
from tests.sim.world import Incarnation, World

READY_MS, NEVER = 700, 10**9


@dataclass(frozen=True)
class Behaviour:
    """What comes of an image. Times count from the start of its container."""

    ready_ms: int = READY_MS
    exit_ms: int = NEVER
    exit_code: int = 0
    out_of_memory: bool = False
    pull_ms: int = 400
    refusal: FailureReason | None = None
    """Why it can't be pulled."""


class Watcher(Protocol):
    """Who hears of what matters for safety."""

    def started(self, node: str, unit: Unit, others: list[Held]) -> None: ...

    def ready(self, node: str, unit: Unit) -> None: ...

    def touched(self, node: str, unit: Held, how: str) -> None: ...

    def swept(self, node: str, instance: str) -> None: ...

    def broken(self, rule: str, message: str) -> None: ...


@dataclass
class Held:
    """One container, or the topology of one instance, whose living services run `images`.

    `foreign`: not ours to touch; `forced`: somebody started it by hand.
    """

    unit: Unit
    gpus: tuple[str, ...] = ()
    started_at: int = 0
    alive_since: int = 0
    """Number of the engine's operation that made it alive."""
    foreign: bool = False
    forced: bool = False
    images: tuple[str, ...] = ()
    workload: Workload | None = None


@dataclass
class Docker:
    """The daemon of a node. `away` until then; `refuse_creates` until then."""

    node: str
    world: World
    behaviour: Callable[[str], Behaviour]
    watcher: Watcher
    away_until: int = 0
    refuse_until: int = 0
    slow: int = 1
    held: dict[str, Held] = field(default_factory=dict)
    volumes: dict[str, str] = field(default_factory=dict)
    """Name → instance."""
    foreign_ports: set[int] = field(default_factory=set)
    present: set[str] = field(default_factory=set)
    changed: Callable[[str | None], None] = lambda _: None
    topologies: Callable[[], list[Held]] = list
    """Those that are alive."""
    operations: int = 0
    looked: dict[str, int] = field(default_factory=dict)
    """Instance → number of the operation that listed it last."""
    _made: int = 0

    # --- what happens by itself ---

    def settle(self) -> None:
        """Brings every container up to now."""
        for held in self.held.values():
            unit = held.unit
            if unit.status != "running" or held.foreign:
                continue
            does = self.behaviour(unit.image_digest or "")
            if self.world.now - held.started_at >= does.exit_ms:
                held.unit = replace(
                    unit, status="exited", exit_code=does.exit_code,
                    out_of_memory=does.out_of_memory,
                )  # fmt: skip

    def is_ready(self, held: Held) -> bool:
        self.settle()
        age = self.world.now - held.started_at
        ready_ms = self.behaviour(held.unit.image_digest or "").ready_ms
        return held.unit.status == "running" and age >= ready_ms

    def make_alive(self, held: Held, *, forced: bool = False) -> None:
        self.operations += 1
        held.started_at, held.alive_since = self.world.now, self.operations
        held.forced = forced
        held.unit = replace(held.unit, status="running", exit_code=None, out_of_memory=False)
        exit_ms = self.behaviour(held.unit.image_digest or "").exit_ms
        if exit_ms < NEVER:
            self.world.at(exit_ms + 1, None, "exit", lambda: self._exited(held))

    def _exited(self, held: Held) -> None:
        self.settle()
        if held.unit.status == "exited":
            self.changed(held.unit.instance)

    def end(self, held: Held, code: int) -> None:
        if held.unit.alive:
            held.unit = replace(held.unit, status="exited", exit_code=code)

    def put(self, unit: Unit, *, foreign: bool = False) -> Held:
        """Something that nobody told the agent of."""
        held = self.held[unit.unit_id] = Held(unit, foreign=foreign)
        if unit.alive:
            self.make_alive(held, forced=True)
        return held

    def next_id(self) -> str:
        self._made += 1
        return f"c{self._made}"

    def alive(self, instance: str | None = None) -> list[Held]:
        self.settle()
        return [
            held
            for held in (*self.held.values(), *self.topologies())
            if held.unit.alive and not held.foreign and instance in (None, held.unit.instance)
        ]

    def ours(self, instance: str) -> list[Held]:
        return [h for h in self.held.values() if not h.foreign and h.unit.instance == instance]


class Client:
    """`Engine` for one agent process."""

    def __init__(self, docker: Docker, inc: Incarnation) -> None:
        self._docker, self._inc = docker, inc
        self._world = docker.world
        self.wanted: Callable[[str], Workload | None] = lambda _: None
        """What should run of an instance by what its agent was told."""
        self.lacking: Callable[[Workload, str], str] = lambda *_: ""

    @property
    def name(self) -> EngineName:
        return "docker"

    def facts(self) -> EngineFacts:
        self._ask("info")
        return EngineFacts(version="simulated")

    def units(self, instance: str | None = None) -> tuple[Unit, ...]:
        self._ask("list")
        docker = self._docker
        docker.settle()
        if instance is not None:
            docker.looked[instance] = docker.operations
        listed = sorted(docker.held.values(), key=lambda held: held.unit.unit_id)
        return tuple(
            held.unit
            for held in listed
            if held.unit.node == docker.node and instance in (None, held.unit.instance)
        )

    def pull(self, image: Image, cancelled: threading.Event, _ask: Ask = no_credential, /) -> None:
        self._ask("pull")
        if cancelled.is_set():
            raise Cancelled
        if image.digest in self._docker.present:
            return
        refusal = self._docker.behaviour(image.digest).refusal
        if refusal is not None:
            raise EngineFailure(refusal, f"can't be pulled: {refusal.value}")
        self._docker.present.add(image.digest)
        self._done("pull")

    def create(self, workload: Workload, host_ports: Mapping[str, int]) -> None:
        self._ask("create")
        docker = self._docker
        name = unit_name(workload.instance, workload.spec_hash)
        if self._world.now < docker.refuse_until:
            raise EngineFailure(FailureReason.CREATE_REFUSED, "refused", transient=True)
        if workload.image.digest not in docker.present:
            raise EngineFailure(FailureReason.IMAGE_NOT_FOUND, "no such image", transient=True)
        if any(held.unit.name == name for held in docker.held.values()):
            raise EngineFailure(FailureReason.CREATE_REFUSED, f"{name} exists", transient=True)
        unit = Unit(
            unit_id=docker.next_id(),
            name=name,
            engine="docker",
            instance=workload.instance,
            node=docker.node,
            spec_hash=workload.spec_hash,
            status="created",
            created_at_ms=self._world.now,
            image_digest=workload.image.digest,
            endpoints=endpoints_of(workload, host_ports),
        )
        docker.held[unit.unit_id] = Held(
            unit, gpus=workload.limits.gpu_uuids, workload=workload
        )
        docker.volumes[f"{name}-data"] = workload.instance
        self._done("create")

    def start(self, unit: Unit) -> None:
        docker, held = self._docker, self._docker.held.get(unit.unit_id)
        if held is not None and held.unit.status != "running":
            self.supplied(unit, held.workload, "")
        self._ask("start")
        held = docker.held.get(unit.unit_id)
        docker.settle()
        if held is None:
            raise EngineFailure(FailureReason.CREATE_REFUSED, "no such container", transient=True)
        if held.unit.status == "running":
            return
        docker.watcher.touched(docker.node, held, "start")
        others = [other.unit for other in docker.alive() if other is not held]
        taken = {endpoint.host_port for other in others for endpoint in other.endpoints}
        if {e.host_port for e in unit.endpoints} & (taken | docker.foreign_ports):
            raise EngineFailure(FailureReason.PORT_IN_USE, "the port is taken")
        # Those it could have seen: what came alive after it looked is not its fault.
        seen = docker.looked.get(unit.instance, -1)
        doubled = [h for h in docker.alive(unit.instance) if h is not held]
        docker.watcher.started(docker.node, unit, [h for h in doubled if h.alive_since <= seen])
        docker.make_alive(held)
        self._done("start")

    def supplied(self, unit: Unit, workload: Workload | None, service: str) -> None:
        """Before it starts. `workload`: what it was made from; None where somebody else did."""
        lacks = self.lacking(workload, service) if workload is not None else ""
        if lacks:
            started = f"{service} of {unit.name}" if service else unit.name
            self._docker.watcher.broken("supplied", f"{started} is started, and {lacks}")

    def able(self, unit: Unit, wanted: Workload) -> None:
        """Before what runs is taken down for `wanted`. A blob may be spoilt at any time."""
        services = wanted.topology.services if wanted.topology is not None else ()
        found = [self.lacking(wanted, name) for name in [one.name for one in services] or [""]]
        for lacks in [one for one in found if one.endswith(" is None")]:
            message = f"{unit.name} is taken down for what can't start: {lacks}"
            self._docker.watcher.broken("kept", message)

    def stop(self, unit: Unit, grace_ms: int) -> None:
        wanted = self.wanted(unit.instance)
        self._ask("stop")
        held = self._docker.held.get(unit.unit_id)
        if held is not None and held.unit.alive:
            self._docker.watcher.touched(self._docker.node, held, "stop")
            others = [one for one in self._docker.alive(unit.instance) if one is not held]
            as_wanted = wanted is not None and wanted.spec_hash == unit.spec_hash
            if as_wanted and held.unit.status == "running" and not held.forced and not others:
                message = f"{unit.name} is stopped on {unit.node}, and is what should run"
                self._docker.watcher.broken("kept", message)
            if wanted is not None and not as_wanted and not others:
                self.able(unit, wanted)
            self._world.sleep(self._inc, min(grace_ms, self._world.rng.choice((5, 50, 4_000))))
            self._docker.end(held, 143)
        self._done("stop")

    def remove(self, unit: Unit) -> None:
        self._ask("remove")
        held = self._docker.held.get(unit.unit_id)
        if held is not None:
            self._docker.watcher.touched(self._docker.node, held, "remove")
            self._docker.held.pop(unit.unit_id, None)
        self._done("remove")

    def probe(self, unit: Unit, probe: Probe, timeout_ms: int) -> Probed:
        self._ask("probe")
        held = self._docker.held.get(unit.unit_id)
        if held is None or not held.unit.alive:
            return Probed(False, "it does not run")
        if not self._docker.is_ready(held):
            return Probed(False, "it answers 503")
        self._docker.watcher.ready(self._docker.node, held.unit)
        return Probed(True)

    def sweep(self, instance: str) -> None:
        self._ask("sweep")
        docker = self._docker
        docker.watcher.swept(docker.node, instance)
        docker.volumes = {v: owner for v, owner in docker.volumes.items() if owner != instance}
        self._done("sweep")

    def residue(self, instance: str) -> Residue:
        self._ask("residue")
        volumes = sum(owner == instance for owner in self._docker.volumes.values())
        return Residue(len(self._docker.ours(instance)), 0, volumes, 0)

    def watch(self, changed: Callable[[str | None], None], stop: threading.Event) -> None:
        raise AssertionError("the simulator tells of changes itself")

    def close(self) -> None:
        pass

    def _ask(self, what: str) -> None:
        self._world.point(self._inc, f"before {what}")
        # Whoever looks does so under a lock, so that nobody else gets in between.
        looks = what in ("info", "list", "residue")
        if not looks and self._docker.slow > 1 and self._world.chance(0.2):
            self._world.sleep(self._inc, self._docker.slow)
        if self._world.now < self._docker.away_until:
            message = "the engine does not answer"
            raise EngineFailure(FailureReason.ENGINE_UNAVAILABLE, message, transient=True)

    def _done(self, what: str) -> None:
        self._docker.operations += 1
        self._world.say(self._inc, what)
        self._world.point(self._inc, f"after {what}")
