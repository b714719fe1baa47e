"""A topology engine in memory, which keeps to what `TopologyEngine` promises.

A service behaves as its command says: `serve` is ready and stays; `deaf` stays and is never ready;
`work` stays until `end` ends it; `exit N` ends with N when it is started; `crash_twice` ends with 1
the first two times and is ready then, `end_third` ends with 0 then. Time is the caller's.
"""

from __future__ import annotations

import hashlib
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from node_agent.compose_wire import Service, starting_order
from node_agent.engines.base import (
    LOOPBACK,
    Ask,
    Cancelled,
    EngineFacts,
    EngineFailure,
    Residue,
    endpoints_of,
    no_credential,
    unit_name,
)
from node_agent.units import Probed, ServiceSeen, Unit
from node_agent.wire import (
    Endpoint,
    ExecProbe,
    FailureReason,
    Image,
    Probe,
    Topology,
    Workload,
)

Key = tuple[str, str]
"""Instance and service."""


@dataclass
class Form:
    """What a form file says."""

    workload: Workload
    host_ports: dict[str, int]
    created_at_ms: int
    hashes: dict[str, str] = field(default_factory=dict)

    @property
    def topology(self) -> Topology:
        assert self.workload.topology is not None
        return self.workload.topology

    def service_hash(self, service: Service) -> str:
        """Of what its container is made from; the version is not in it."""
        if service.name not in self.hashes:
            self.hashes[service.name] = self._service_hash(service)
        return self.hashes[service.name]

    def _service_hash(self, service: Service) -> str:
        secrets = [one.asked for one in self.workload.secrets if one.name in service.secrets]
        ports = [(name, self.host_ports[name]) for name in service.ports]
        text = f"{_made_from(service)} {secrets} {ports}"
        return hashlib.sha256(text.encode()).hexdigest()


def _made_from(service: Service) -> str:
    """Probes, restarts and what it waits for are the agent's alone."""
    free = {"readiness": True, "depends_on": True, "restart": True, "vital": True}
    return service.model_dump_json(exclude=dict.fromkeys(free, True))


@dataclass
class Container:
    """`made`: how many there were before it."""

    service: Service
    service_hash: str
    made: int
    status: Literal["created", "running", "paused", "exited"] = "created"
    exit_code: int | None = None
    out_of_memory: bool = False
    altered: tuple[str, ...] = ()
    starts: int = 0
    endpoints: tuple[Endpoint, ...] = ()

    @property
    def alive(self) -> bool:
        return self.status in {"running", "paused"}

    def run(self) -> None:
        """It starts, and may end at once."""
        self.starts += 1
        self.status, self.exit_code = "running", None
        match self.service.command:
            case ("exit", code):
                self.status, self.exit_code = "exited", int(code)
            case ("crash_twice",) if self.starts <= 2:
                self.status, self.exit_code = "exited", 1
            case ("end_third",):
                self.status, self.exit_code = "exited", int(self.starts <= 2)
            case _:
                pass


@dataclass
class FakeCompose:
    """`away` fails every call; `images` can be pulled and `pruned` ones are not there any more.

    `taken_ports` are held by somebody else; `unstartable` services refuse to start; `own_ways` is
    how every container it makes differs from what was asked for. `create_fails_after` containers
    made, a start fails, once. `sticky_volumes` can't be removed. `started` has every service that
    was started, in order; `on_start` hears of each before it, `on_make` of each container before it
    is made. `made_anew` counts those.
    """

    node: str
    images: set[str]
    name: Literal["compose"] = "compose"
    away: bool = False
    pruned: set[str] = field(default_factory=set)
    taken_ports: set[int] = field(default_factory=set)
    unstartable: dict[str, FailureReason] = field(default_factory=dict)
    own_ways: tuple[str, ...] = ()
    create_fails_after: int | None = None
    create_refused: bool = False
    sticky_volumes: bool = False
    deaf: set[str] = field(default_factory=set)
    started: list[str] = field(default_factory=list)
    on_start: Callable[[str, str], None] = lambda _instance, _service: None
    on_make: Callable[[str, str, Form], None] = lambda _instance, _service, _form: None
    made_anew: Counter[str] = field(default_factory=Counter)
    calls: Counter[str] = field(default_factory=Counter)
    forms: dict[str, dict[str, Form]] = field(default_factory=dict)
    in_force: dict[str, tuple[str, bool]] = field(default_factory=dict)
    containers: dict[Key, Container] = field(default_factory=dict)
    networks: set[str] = field(default_factory=set)
    volumes: dict[str, str] = field(default_factory=dict)
    volumes_made: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._made = 0
        self._changed: Callable[[str | None], None] = lambda _: None
        self._lock = threading.RLock()
        self._closed = threading.Event()

    # --- looking ---

    def facts(self) -> EngineFacts:
        self._answer("facts")
        return EngineFacts(version="fake")

    def units(self, instance: str | None = None) -> tuple[Unit, ...]:
        with self._lock:
            self._answer("units")
            known = {*self.forms, *(owner for owner, _ in self.containers)}
            wanted = sorted(known if instance is None else known & {instance})
            return tuple(unit for one in wanted for unit in self._units_of(one))

    def _units_of(self, instance: str) -> list[Unit]:
        forms = self.forms.get(instance, {})
        found = [self._unit(instance, forms[spec_hash]) for spec_hash in sorted(forms)]
        ours = self._ours(instance)
        unclaimed = instance not in self.in_force and ours
        if unclaimed and (not forms or any(one.alive for one in ours.values())):
            alive = any(one.alive for one in ours.values())
            found.append(self._unclaimed(instance, "running" if alive else "exited"))
        return found

    def _unclaimed(self, instance: str, status: Literal["running", "exited"]) -> Unit:
        name = unit_name(instance, "")
        ours = self._ours(instance).values()
        endpoints = {e.name: e for one in ours for e in one.endpoints}
        return Unit(
            f"{instance}/", name, "compose", instance, self.node, "", status, 0,
            endpoints=tuple(endpoints[name] for name in sorted(endpoints)),
        )  # fmt: skip

    def _unit(self, instance: str, form: Form) -> Unit:
        spec_hash = form.workload.spec_hash
        current, run = self.in_force.get(instance, ("", False))
        status: Literal["created", "running", "exited"] = "created"
        services: tuple[ServiceSeen, ...] = ()
        volumes = None
        if current == spec_hash:
            ordered = sorted(form.topology.services, key=lambda service: service.name)
            services = tuple(self._seen(instance, form, one) for one in ordered)
            volumes = self._volumes_of(instance, form)
            status = "running" if run or any(one.alive for one in services) else "exited"
        return Unit(
            unit_id=f"{instance}/{spec_hash}",
            name=unit_name(instance, spec_hash),
            engine="compose",
            instance=instance,
            node=self.node,
            spec_hash=spec_hash,
            status=status,
            created_at_ms=form.created_at_ms,
            image_digest=form.workload.image.digest,
            endpoints=endpoints_of(form.workload, form.host_ports),
            services=services,
            volumes=None if all(one.alive for one in services) else volumes,
        )

    def _volumes_of(self, instance: str, form: Form) -> tuple[tuple[str, str], ...]:
        names = sorted(f"{instance}/{one.name}" for one in form.topology.volumes)
        there = {name: str(self.volumes_made.get(name, "")) for name in self.volumes}
        return tuple((name, there.get(name, "")) for name in names)

    def _seen(self, instance: str, form: Form, service: Service) -> ServiceSeen:
        container = self.containers.get((instance, service.name))
        service_hash = form.service_hash(service)
        if container is None or container.service_hash != service_hash:
            return ServiceSeen(service.name, form=service_hash)
        return ServiceSeen(
            service.name,
            f"c{container.made}",
            container.status,
            container.exit_code,
            container.out_of_memory,
            container.altered,
            LOOPBACK,
            service.image.digest,
            service_hash,
        )

    def _ours(self, instance: str) -> dict[Key, Container]:
        return {key: one for key, one in sorted(self.containers.items()) if key[0] == instance}

    # --- doing ---

    def pull(self, image: Image, cancelled: threading.Event, _ask: Ask = no_credential, /) -> None:
        self._answer("pull")
        if cancelled.is_set():
            raise Cancelled
        self.pruned.discard(image.digest)
        if image.digest not in self.images:
            raise EngineFailure(FailureReason.IMAGE_NOT_FOUND, f"{image.digest} is not there")

    def create(self, workload: Workload, host_ports: Mapping[str, int]) -> None:
        with self._lock:
            self._answer("create")
            if any(image.digest in self.pruned for image in workload.images):
                raise EngineFailure(FailureReason.IMAGE_NOT_FOUND, "no such image")
            self._made += 1
            forms = self.forms.setdefault(workload.instance, {})
            forms[workload.spec_hash] = Form(workload, dict(host_ports), self._made)

    def start(self, unit: Unit) -> None:
        """Makes what lacks, starts nothing, and puts it in force."""
        with self._lock:
            self._answer("start")
            form = self.forms.get(unit.instance, {}).get(unit.spec_hash)
            if form is None or self.create_refused:
                raise EngineFailure(FailureReason.CREATE_REFUSED, "there is no such form")
            self._make(unit.instance, form)
            self.in_force[unit.instance] = (unit.spec_hash, True)

    def _make(self, instance: str, form: Form) -> None:
        self.networks.add(instance)
        for one in form.topology.volumes:
            if f"{instance}/{one.name}" not in self.volumes:
                self._made += 1
                self.volumes_made[f"{instance}/{one.name}"] = self._made
                self.volumes[f"{instance}/{one.name}"] = instance
        wanted = {one.name: one for one in form.topology.services}
        for key in self._ours(instance):
            if key[1] not in wanted:
                del self.containers[key]
        for name, service in sorted(wanted.items()):
            container = self.containers.get((instance, name))
            if container is not None and container.service_hash == form.service_hash(service):
                continue
            if self.create_fails_after is not None:
                if not self.create_fails_after:
                    self.create_fails_after = None
                    message = "compose was killed"
                    raise EngineFailure(FailureReason.CREATE_REFUSED, message, transient=True)
                self.create_fails_after -= 1
            if service.image.digest in self.pruned:
                raise EngineFailure(FailureReason.IMAGE_NOT_FOUND, "no such image")
            self.on_make(instance, name, form)
            self._made += 1
            self.made_anew[name] += 1
            endpoints = endpoints_of(form.workload, form.host_ports)
            self.containers[instance, name] = Container(
                service, form.service_hash(service), self._made, altered=self.own_ways,
                endpoints=tuple(one for one in endpoints if one.name in service.ports),
            )  # fmt: skip

    def start_services(self, unit: Unit, names: Sequence[str]) -> None:
        """Tries all, and then tells of the first that can't be started."""
        with self._lock:
            self._answer("start_services")
            if self.in_force.get(unit.instance, ("", True))[0] == unit.spec_hash:
                self.in_force[unit.instance] = (unit.spec_hash, True)
            failures = [self._start(unit, name) for name in sorted(names)]
            self._changed(unit.instance)
            for failure in failures:
                if failure is not None:
                    raise failure

    def _start(self, unit: Unit, name: str) -> EngineFailure | None:
        container = self.containers.get((unit.instance, name))
        if container is None:
            message = f"{name}: no such container"
            return EngineFailure(FailureReason.CREATE_REFUSED, message, transient=True)
        if container.status == "running":
            return None
        form = self.forms[unit.instance][unit.spec_hash]
        taken = {form.host_ports[port] for port in container.service.ports} & self.taken_ports
        reason = FailureReason.PORT_IN_USE if taken else self.unstartable.get(name)
        if reason is not None:
            return EngineFailure(reason, f"{name}: can't be started")
        self.on_start(unit.instance, name)
        self.started.append(name)
        container.out_of_memory = False
        container.run()
        return None

    def remove_services(self, unit: Unit, names: Sequence[str], grace_ms: int) -> None:
        with self._lock:
            self._answer("remove_services")
            for name in names:
                self.containers.pop((unit.instance, name), None)

    def probe_service(self, unit: Unit, name: str, probe: Probe, timeout_ms: int) -> Probed:
        with self._lock:
            self._answer("probe_service")
            container = self.containers.get((unit.instance, name))
            if container is None or container.status != "running":
                return Probed(False, "it does not run")
            if isinstance(probe, ExecProbe):
                return Probed(probe.command == ("true",), f"{probe.command[0]} was run")
            ready = container.service.command[:1] in {("serve",), ("crash_twice",)}
            return Probed(ready and name not in self.deaf, "it answers nothing")

    def probe(self, unit: Unit, probe: Probe, timeout_ms: int) -> Probed:
        self._answer("probe")
        return Probed(False, "a topology is probed service by service")

    def stop(self, unit: Unit, grace_ms: int) -> None:
        with self._lock:
            self._answer("stop")
            current = self.in_force.get(unit.instance)
            if unit.spec_hash and (current is None or current[0] != unit.spec_hash):
                return
            for container in self._ours(unit.instance).values():
                if container.alive:
                    # Who hears the signal ends well.
                    heard = container.service.command[:1] == ("work",)
                    container.status, container.exit_code = "exited", 0 if heard else 143
            if current is not None:
                self.in_force[unit.instance] = (current[0], False)
            self._changed(unit.instance)

    def remove(self, unit: Unit) -> None:
        with self._lock:
            self._answer("remove")
            current = self.in_force.get(unit.instance)
            forms = self.forms.get(unit.instance, {})
            last = current is None and not forms.keys() - {unit.spec_hash}
            if not unit.spec_hash or last or (current and current[0] == unit.spec_hash):
                for key in self._ours(unit.instance):
                    del self.containers[key]
                self.networks.discard(unit.instance)
                self.in_force.pop(unit.instance, None)
            forms.pop(unit.spec_hash, None)
            if not forms:
                self.forms.pop(unit.instance, None)

    def sweep(self, instance: str) -> None:
        with self._lock:
            self._answer("sweep")
            self.networks.discard(instance)
            if not self.sticky_volumes:
                self.volumes = {v: one for v, one in self.volumes.items() if one != instance}

    def residue(self, instance: str) -> Residue:
        with self._lock:
            self._answer("residue")
            volumes = sum(owner == instance for owner in self.volumes.values())
            paths = len(self.forms.get(instance, {})) + (instance in self.in_force)
            containers = len(self._ours(instance))
            return Residue(containers, instance in self.networks, volumes, paths)

    def on_changed(self, changed: Callable[[str | None], None]) -> None:
        self._changed = changed

    def watch(self, changed: Callable[[str | None], None], stop: threading.Event) -> None:
        self.on_changed(changed)
        changed(None)
        while not (stop.wait(0.01) or self._closed.is_set()):
            continue

    def close(self) -> None:
        self._closed.set()

    # --- behind the agent's back ---

    def end(self, instance: str, service: str, code: int, *, out_of_memory: bool = False) -> None:
        """It exits by itself, or is killed."""
        with self._lock:
            container = self.containers.get((instance, service))
            if container is not None and container.alive:
                container.status, container.exit_code = "exited", code
                container.out_of_memory = out_of_memory
                self._changed(instance)

    def take(self, instance: str, service: str) -> None:
        """Somebody removes the container."""
        with self._lock:
            self.containers.pop((instance, service), None)
            self._changed(instance)

    def prune_containers(self) -> None:
        """Somebody makes room: all that does not run goes."""
        with self._lock:
            for key in [key for key, one in self.containers.items() if not one.alive]:
                del self.containers[key]
            self._changed(None)

    def prune_volumes(self) -> None:
        """Those that no container mounts, running or not."""
        with self._lock:
            mounted = {
                f"{instance}/{mount.volume}"
                for (instance, _), one in self.containers.items()
                for mount in one.service.mounts
            }
            self.volumes = {name: one for name, one in self.volumes.items() if name in mounted}

    def pause(self, instance: str, service: str) -> None:
        container = self.containers.get((instance, service))
        if container is not None and container.status == "running":
            container.status = "paused"
            self._changed(instance)

    def run_by_hand(self, instance: str, service: str) -> None:
        container = self.containers.get((instance, service))
        if container is not None:
            container.run()
            self._changed(instance)

    def alter(self, instance: str, service: str, *lines: str) -> None:
        container = self.containers.get((instance, service))
        if container is not None:
            container.altered = lines
            self._changed(instance)

    def reboot(self) -> None:
        """The host goes down and up: who hears the signal ends well, the others are killed."""
        for (instance, name), container in sorted(self.containers.items()):
            heard = container.service.command[:1] == ("work",)
            self.end(instance, name, 0 if heard else 137)

    def lose_files(self, instance: str) -> None:
        """The state folder is gone, and the containers are not."""
        self.forms.pop(instance, None)
        self.in_force.pop(instance, None)

    def seen(self, instance: str) -> dict[str, ServiceSeen]:
        """The services of the form in force."""
        units = [unit for unit in self._units_of(instance) if unit.services]
        return {one.name: one for unit in units for one in unit.services}

    def _answer(self, asked: str) -> None:
        self.calls[asked] += 1
        if self.away:
            raise EngineFailure(FailureReason.ENGINE_UNAVAILABLE, "no answer", transient=True)


def order_of(workload: Workload) -> tuple[str, ...]:
    assert workload.topology is not None
    return starting_order(workload.topology) or ()
