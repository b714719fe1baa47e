"""Topologies on one node, in memory: `FakeCompose` with time in it, others at work, and eyes on it.

Rules:
- As in `engine`: each call takes its time and is a place to die at, each container that Compose
  makes as well. What is made by then stays.
- What a service may be held against is what whoever started it could have seen: how the others
  stood when the instance was listed last. What somebody started by hand is held against nobody.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from node_agent.compose_wire import Dependency
from node_agent.engines.base import EngineFacts, EngineFailure, Residue
from node_agent.units import Probed, Unit
from node_agent.wire import EngineName, FailureReason, Probe, Workload
from tests.fakes.compose import Container, FakeCompose, Form, Key
from tests.sim.catalog import IMAGES, digest_of
from tests.sim.engine import NEVER, Behaviour, Client, Docker, Held
from tests.sim.world import Incarnation

ALTERED = ("memory: 1 instead of 2",)
DIGESTS = tuple(map(digest_of, IMAGES))
LOOKS_MAX = 5


@dataclass
class Run:
    """Of a container since it was started last. `answered`: a probe found it ready."""

    began_at: int
    alive_since: int
    forced: bool = False
    answered: bool = False


@dataclass(frozen=True)
class Glimpse:
    """How a service stood when it was seen."""

    status: str
    exit_code: int | None
    run: Run | None
    answered: bool


@dataclass
class Topologies:
    """What Compose made with the daemon of a node. `fails_until`: no call of it works till then."""

    docker: Docker
    fake: FakeCompose = field(init=False)
    fails_until: int = 0
    runs: dict[Key, Run] = field(default_factory=dict)
    seen: dict[str, list[dict[str, Glimpse]]] = field(default_factory=dict)
    """Instance → how its services stood when it was looked at last, and in each look at all since.
    Whoever acts goes by one of these."""
    made_of: dict[Key, object] = field(default_factory=dict)
    taken: dict[Key, Container] = field(default_factory=dict)
    """Containers that the agent took away and that were well."""
    done: set[tuple[str, str, str]] = field(default_factory=set)
    """Instance, service and what its container was made from, of those that once ended well."""
    former: dict[str, str] = field(default_factory=dict)
    """Instance → which form its containers were made from, when nothing says so any more."""

    def __post_init__(self) -> None:
        self.world = self.docker.world
        self.fake = FakeCompose(self.docker.node, set())
        self.fake.on_start = self._starts
        self.fake.on_changed(self._tell)

    def _tell(self, instance: str | None) -> None:
        self.docker.changed(instance)

    # --- what happens by itself ---

    def behaviour(self, container: Container) -> Behaviour:
        return self.docker.behaviour(container.service.image.digest)

    def settle(self) -> None:
        for key, container in self.fake.containers.items():
            run = self.runs.get(key)
            if container.status != "running" or run is None:
                continue
            does = self.behaviour(container)
            if self.world.now - run.began_at >= does.exit_ms:
                container.status, container.exit_code = "exited", does.exit_code
                container.out_of_memory = does.out_of_memory
                if does.exit_code == 0:
                    self.done.add((*key, container.service_hash))

    def _plan_end(self, key: Key, container: Container) -> None:
        exit_ms = self.behaviour(container).exit_ms

        def ended() -> None:
            self.settle()
            if container.status == "exited":
                self.docker.changed(key[0])

        if exit_ms < NEVER:
            self.world.at(exit_ms + 1, None, "exit of a service", ended)

    def alive(self) -> list[Held]:
        """A topology of which anything is alive, as one."""
        self.settle()
        found: dict[str, list[Key]] = {}
        for key, container in sorted(self.fake.containers.items()):
            if container.alive:
                found.setdefault(key[0], []).append(key)
        return [self._held(instance, keys) for instance, keys in found.items()]

    def _held(self, instance: str, keys: Sequence[Key]) -> Held:
        units = self.fake.units(instance)
        unit = next((one for one in units if one.services), units[-1])
        if not unit.spec_hash:
            unit = replace(unit, spec_hash=self.former.get(instance, ""))
        runs = [self.runs[key] for key in keys]
        services = [self.fake.containers[key].service for key in keys]
        return Held(
            unit,
            gpus=tuple(gpu for one in services for gpu in one.limits.gpu_uuids),
            alive_since=min(run.alive_since for run in runs),
            forced=all(run.forced for run in runs),
            images=tuple(one.image.digest for one in services),
        )

    def owners(self) -> set[str]:
        """Instances of which there is anything."""
        fake = self.fake
        owners = {owner for owner, _ in fake.containers} | fake.networks | fake.forms.keys()
        return owners | {*fake.volumes.values()} | fake.in_force.keys()

    def unrest(self, instance: str) -> list[str]:
        """What is not as the form in force says, in words."""
        self.settle()
        form = self._in_force(instance)
        if form is None:
            return [f"no form of {instance} is in force"]
        found = []
        for service in form.topology.services:
            container = self.fake.containers.get((instance, service.name))
            if (instance, service.name, form.service_hash(service)) in self.done:
                continue
            if container is None or container.service_hash != form.service_hash(service):
                found.append(f"{service.name} of {instance} is not that of the form in force")
            elif container.status != "running" and container.exit_code != 0:
                found.append(f"{service.name} of {instance} is {container.status}")
        others = self.fake.forms[instance].keys() - {form.workload.spec_hash}
        return [*found, *(f"{instance} has a form left over: {other}" for other in sorted(others))]

    def proved(self, instance: str) -> None:
        """The agent says that nothing is left of it."""
        self.done = {one for one in self.done if one[0] != instance}
        left = self.fake.residue(instance)
        if left.containers or left.networks or left.volumes or left.paths:
            message = f"{instance} is said to be gone from {self.docker.node}, and there is {left}"
            self.docker.watcher.broken("proof", message)

    def _in_force(self, instance: str) -> Form | None:
        spec_hash, _ = self.fake.in_force.get(instance, ("", False))
        return self.fake.forms.get(instance, {}).get(spec_hash)

    # --- what others do ---

    def power_cut(self) -> None:
        for container in self.fake.containers.values():
            if container.alive:
                container.status, container.exit_code = "exited", 137

    def lose_forms(self) -> None:
        """They are in the agent's state folder, and gone with it."""
        for instance in sorted(self.owners()):
            if instance in self.fake.in_force:
                self.former[instance] = self.fake.in_force[instance][0]
            self.fake.lose_files(instance)
        if self.fake.own_ways:
            # Nobody knows any more that all its containers are like that: they are made anew.
            self.made_of.clear()

    def befall(self, key: Key, how: str) -> None:
        """Somebody does something to one service by hand."""
        container = self.fake.containers[key]
        if how == "kill":
            self.fake.end(*key, 137)
        elif how == "memory":
            self.fake.end(*key, 137, out_of_memory=True)
        elif how == "remove":
            self.fake.take(*key)
        elif how == "alter":
            self.fake.alter(*key, *ALTERED)
        elif how == "pause":
            self.fake.pause(*key)
        elif how == "start" and not container.alive:
            self.docker.operations += 1
            self.runs[key] = Run(self.world.now, self.docker.operations, forced=True)
            self.fake.run_by_hand(*key)
            self._plan_end(key, container)

    # --- what is looked at ---

    def looked(self, instance: str | None) -> None:
        found: dict[str, dict[str, Glimpse]] = {}
        for key, container in self.fake.containers.items():
            found.setdefault(key[0], {})[key[1]] = self._glimpse(key, container)
        if instance is None:
            for one, there in found.items():
                self.seen[one] = [*self.seen.get(one, [])[-LOOKS_MAX:], there]
        else:
            self.seen[instance] = [found.get(instance, {})]
            self.docker.looked[instance] = self.docker.operations

    def _glimpse(self, key: Key, container: Container) -> Glimpse:
        run = self.runs.get(key)
        answered = run is not None and run.answered
        return Glimpse(container.status, container.exit_code, run, answered)

    def _starts(self, instance: str, name: str) -> None:
        form, key = self._in_force(instance), (instance, name)
        container = self.fake.containers[key]
        service = container.service
        if form is None or container.service_hash != form.service_hash(service):
            self.docker.watcher.broken(
                "forms", f"{name} of {instance} is started, and is not of the form in force"
            )
        assert form is not None
        asked = form.topology.service(name)
        for dependency in asked.depends_on if asked is not None else ():
            if not self._held_true(instance, dependency):
                self.docker.watcher.broken(
                    "order", f"{name} of {instance} is started before {dependency.service} "
                    f"is {dependency.condition}",
                )  # fmt: skip
        self.docker.operations += 1
        self.runs[key] = Run(self.world.now, self.docker.operations)
        self._plan_end(key, container)

    def _held_true(self, instance: str, dependency: Dependency) -> bool:
        run, form = self.runs.get((instance, dependency.service)), self._in_force(instance)
        if run is not None and run.forced:
            return True
        other = form.topology.service(dependency.service) if form is not None else None
        done = form and other and (instance, other.name, form.service_hash(other)) in self.done
        if done and dependency.condition == "completed":
            return True  # A job that is done stays so, whatever became of its container.
        looks = [look.get(dependency.service) for look in self.seen.get(instance, [])]
        return any(look is not None and _held_in(look, run, dependency) for look in looks)

    def making(self, inc: Incarnation, instance: str, name: str, form: Form) -> None:
        """Compose is about to make a container, in place of another or of none."""
        key = (instance, name)
        service = form.topology.service(name)
        assert service is not None
        ports = [str(one) for one in form.workload.ports if one.name in service.ports]
        made_of = (service.image.digest, service.limits, *ports)
        taken = self.taken.pop(key, None)
        old = self.fake.containers.get(key) or taken
        if old is not None and self._is_well(key, old) and self.made_of.get(key) == made_of:
            message = f"{name} of {instance} is replaced, and nothing of it changed"
            self.docker.watcher.broken("replaced", message)
        self.world.sleep(inc, self.world.rng.choice((5, 40, 300)))
        self.made_of[key] = made_of
        self.docker.operations += 1

    def _is_well(self, key: Key, container: Container) -> bool:
        run = self.runs.get(key)
        by_hand = run is not None and run.forced
        as_made = container.altered in ((), self.fake.own_ways)
        return container.status == "running" and as_made and not by_hand

    def answered(self, unit: Unit, name: str) -> None:
        """A probe found it ready; maybe all that is vital is, then."""
        self.runs[unit.instance, name].answered = True
        form = self._in_force(unit.instance)
        assert form is not None
        waited_for = {
            one.service
            for service in form.topology.services
            for one in service.depends_on
            if one.condition == "completed"
        }
        for service in form.topology.services:
            run = self.runs.get((unit.instance, service.name))
            probed = service.name not in waited_for
            if service.vital and probed and (run is None or not run.answered):
                return
        self.docker.watcher.ready(self.docker.node, unit)


def _held_in(look: Glimpse, run: Run | None, dependency: Dependency) -> bool:
    ended_well = look.status == "exited" and look.exit_code == 0
    match dependency.condition:
        case "completed":
            return ended_well
        case "healthy":
            since = run is not None and look.run is run and run.answered
            return look.status == "running" and (look.answered or since)
        case _:
            return look.status == "running" or ended_well


class ComposeClient(Client):
    """`TopologyEngine` for one agent process."""

    def __init__(self, topologies: Topologies, inc: Incarnation) -> None:
        super().__init__(topologies.docker, inc)
        self._all, self._fake = topologies, topologies.fake

    @property
    def name(self) -> EngineName:
        return "compose"

    def facts(self) -> EngineFacts:
        self._ask("info")
        return EngineFacts(version="simulated", compose_version="simulated")

    def units(self, instance: str | None = None) -> tuple[Unit, ...]:
        self._ask("list")
        self._all.settle()
        self._all.looked(instance)
        return self._fake.units(instance)

    def create(self, workload: Workload, host_ports: Mapping[str, int]) -> None:
        self._ask("create")
        self._fake.pruned = self._not_there()
        self._fake.create(workload, host_ports)
        self._done("write the form")

    def start(self, unit: Unit) -> None:
        self._ask("compose create")
        topologies, fake = self._all, self._fake
        if self._world.now < topologies.fails_until:
            raise EngineFailure(FailureReason.CREATE_REFUSED, "Compose failed", transient=True)
        fake.pruned = self._not_there()
        fake.on_make = self._made
        form = fake.forms.get(unit.instance, {}).get(unit.spec_hash)
        if form is not None and self._docker.alive(unit.instance):
            self.able(unit, form.workload)
        fake.start(unit)
        self._done("compose create")

    def _made(self, instance: str, name: str, form: Form) -> None:
        self._world.point(self._inc, f"compose create, before {name}")
        self._all.making(self._inc, instance, name, form)

    def _not_there(self) -> set[str]:
        return {*DIGESTS} - self._docker.present

    def start_services(self, unit: Unit, names: Sequence[str]) -> None:
        form = self._fake.forms.get(unit.instance, {}).get(unit.spec_hash)
        for name in names:
            container = self._fake.containers.get((unit.instance, name))
            if container is not None and container.status != "running" and form is not None:
                self.supplied(unit, form.workload, name)
        self._ask("start services")
        if self._fake.in_force.get(unit.instance, ("",))[0] != unit.spec_hash:
            message = f"{unit.name} is not in force"
            raise EngineFailure(FailureReason.CREATE_REFUSED, message, transient=True)
        docker = self._docker
        seen = docker.looked.get(unit.instance, -1)
        others = [one for one in docker.alive() if one.unit.unit_id != unit.unit_id]
        doubled = [one for one in others if one.unit.instance == unit.instance]
        docker.watcher.started(docker.node, unit, [h for h in doubled if h.alive_since <= seen])
        taken = {endpoint.host_port for one in others for endpoint in one.unit.endpoints}
        self._fake.taken_ports = taken | docker.foreign_ports
        self._fake.start_services(unit, names)
        self._done(f"start {' '.join(names)}")

    def remove_services(self, unit: Unit, names: Sequence[str], grace_ms: int) -> None:
        self._ask("remove services")
        for name in names:
            container = self._fake.containers.get((unit.instance, name))
            if container is not None:
                self._all.taken[unit.instance, name] = container
        self._fake.remove_services(unit, names, grace_ms)
        self._done(f"remove {' '.join(names)}")

    def probe_service(self, unit: Unit, name: str, probe: Probe, timeout_ms: int) -> Probed:
        self._ask("probe")
        key = (unit.instance, name)
        self._all.settle()
        container, run = self._fake.containers.get(key), self._all.runs.get(key)
        if container is None or run is None or container.status != "running":
            return Probed(False, "it does not run")
        if self._world.now - run.began_at < self._all.behaviour(container).ready_ms:
            return Probed(False, "it answers 503")
        if self._fake.in_force.get(unit.instance, ("",))[0] == unit.spec_hash:
            self._all.answered(unit, name)
        return Probed(True)

    def probe(self, unit: Unit, probe: Probe, timeout_ms: int) -> Probed:
        return self._fake.probe(unit, probe, timeout_ms)

    def stop(self, unit: Unit, grace_ms: int) -> None:
        wanted = self.wanted(unit.instance)
        self._ask("stop")
        self._docker.watcher.touched(self._docker.node, Held(unit), "stop")
        topology = wanted.topology if wanted is not None else None
        alone = len(self._docker.alive(unit.instance)) == 1
        if topology is not None and topology.vital_failure != "restart_all" and alone:
            message = f"all of {unit.name} is stopped on {unit.node}, and it should run"
            self._docker.watcher.broken("kept", message)
        self._world.sleep(self._inc, min(grace_ms, self._world.rng.choice((5, 50, 4_000))))
        self._fake.stop(unit, grace_ms)
        self._done("stop all services")

    def remove(self, unit: Unit) -> None:
        self._ask("remove")
        self._docker.watcher.touched(self._docker.node, Held(unit), "remove")
        self._fake.remove(unit)
        for key in [key for key in self._all.taken if key[0] == unit.instance]:
            del self._all.taken[key]
        self._done("remove a form")

    def sweep(self, instance: str) -> None:
        self._ask("sweep")
        self._docker.watcher.swept(self._docker.node, instance)
        self._fake.sweep(instance)
        self._done("sweep")

    def residue(self, instance: str) -> Residue:
        self._ask("residue")
        return self._fake.residue(instance)
