"""What all renderers of topologies share: services as a manifest has them, laid out on the wire.

Rules:
- Pure and total, as `common`. A renderer makes its own services in the words of a manifest, so they
  pass through here like written ones, and nothing else can make a service.
- Services stand in the order of their names, and so does everything in them that has no order of
  its own: one Instance, one text.
- The machine identity is the main service's alone: a sidecar can't speak for the instance.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter

from pydantic import ValidationError

from node_agent import compose_wire
from node_agent.wire import (
    MACHINE_IDENTITY,
    ExecProbe,
    HttpProbe,
    Image,
    Limits,
    Probe,
    Readiness,
    SecretFile,
    TcpProbe,
    Workload,
)
from reconciler.core.desired import Instance, Topology
from reconciler.core.kinds.health import Health
from reconciler.core.kinds.topology import Service, TopologySpec
from reconciler.core.topology import (
    CONFINED,
    CPU_MILLIS_MIN,
    MEMORY_MIB_MIN,
    millis,
    services_of,
    topology_endpoints,
    vital_services,
)
from renderers import common
from renderers.common import CannotRender, Same, shared
from renderers.shares import MEBIBYTES, MILLICORES, Unfit, deal_gpus, share

_NOTHING = TopologySpec()


def topology_of(instance: Instance) -> Topology:
    """Raises Unfit where nothing says what its services are."""
    if instance.topology is None:
        raise Unfit("topology_missing", "docker_compose runs services, and no topology names any")
    return instance.topology


def services_for(instance: Instance) -> tuple[Service, ...]:
    """All its services, one that a renderer makes first."""
    return tuple(placed.service for placed in services_of(topology_of(instance).profile))


def rendered(make: Callable[[Instance], Workload], instance: Instance) -> Workload | CannotRender:
    """What `make` gives, or why it can't, as a value."""
    try:
        return make(instance)
    except Unfit as unfit:
        return CannotRender(unfit.code, unfit.message)
    except ValidationError as error:
        return common.outside_bounds(error)


def workload_of(
    instance: Instance,
    main: str,
    services: Sequence[Service],
    variables: Mapping[str, str] | None = None,
) -> Workload:
    """All `services` as one Workload. `variables`: secret → the variable that holds it as well.

    Raises Unfit, or ValidationError outside the wire's bounds.
    """
    secrets = _secrets(instance.secrets, variables or {})
    topology = _topology(instance, main, services, secrets)
    return Workload(
        instance=instance.key,
        engine="compose",
        image=next(one.image for one in topology.services if one.name == main),
        ports=common.ports_of(instance),
        limits=_sum(instance, topology.services),
        readiness=Readiness(start_budget_ms=longest_start_ms(topology)),
        stop_grace_ms=max(one.stop_grace_ms for one in topology.services),
        labels=common.labels_of(instance),
        secrets=secrets,
        blobs=tuple(sorted(instance.blobs, key=attrgetter("name"))),
        topology=topology,
    )


def longest_start_ms(topology: compose_wire.Topology) -> int:
    """How long all may take to be ready, each within its own budget once it may start.

    One that waits for another to be `started` begins when that does.
    """
    begins: dict[str, int] = {}
    ready: dict[str, int] = {}
    services = {one.name: one for one in topology.services}
    for name in compose_wire.starting_order(topology) or ():
        begins[name] = max(
            (
                (begins if one.condition == "started" else ready)[one.service]
                for one in services[name].depends_on
            ),
            default=0,
        )
        ready[name] = begins[name] + services[name].readiness.start_budget_ms
    return max(ready.values())


def _topology(
    instance: Instance, main: str, services: Sequence[Service], secrets: Sequence[SecretFile]
) -> compose_wire.Topology:
    spec = topology_of(instance).profile.topology or _NOTHING
    return compose_wire.Topology(
        services=_laid_out(instance, main, services, secrets),
        volumes=tuple(
            compose_wire.Volume(name=one.name, size_mib=one.size_mib)
            for one in sorted(spec.volumes, key=attrgetter("name"))
        ),
        vital_failure=spec.failure.vital,
        other_failure=spec.failure.other,
    )


# --- one service ---------------------------------------------------------------------------------


def _laid_out(
    instance: Instance, main: str, services: Sequence[Service], secrets: Sequence[SecretFile]
) -> tuple[compose_wire.Service, ...]:
    ports = _ports(instance, main)
    if nobodys := sorted(ports.keys() - {one.name for one in services}):
        raise Unfit("unknown_service", f"an endpoint is of {nobodys[0]}, which is no service")
    limits, vital = _limits(instance, main, services), vital_services(services)
    there = frozenset(secret.name for secret in secrets)
    return tuple(
        _service(
            Same(one),
            _image(instance, one.name),
            limits[one.name],
            tuple(sorted(ports.get(one.name, ()))),
            there & ({*one.secrets} | ({MACHINE_IDENTITY} if one.name == main else set())),
            one.name in vital,
        )
        for one in sorted(services, key=attrgetter("name"))
    )


def _image(instance: Instance, name: str) -> Image:
    found = topology_of(instance).images.get(name)
    if found is None:
        raise Unfit("image_missing", f"no image was found for {name}")
    return common.image_of(instance, found)


@shared
def _service(
    same: Same[Service],
    image: Image,
    limits: Limits,
    ports: tuple[str, ...],
    secrets: frozenset[str],
    vital: bool,
) -> compose_wire.Service:
    """`secrets`: what of its own is there. What lacks a reference is not, and never starts."""
    service = same.it
    return compose_wire.Service(
        name=service.name,
        image=image,
        command=service.command,
        env=dict(sorted(service.env.items())),
        ports=ports,
        limits=limits,
        readiness=readiness_of(service.health),
        stop_grace_ms=service.stop_grace_s * 1000,
        depends_on=tuple(
            compose_wire.Dependency(service=one.service, condition=one.condition)
            for one in sorted(service.depends_on, key=attrgetter("service", "condition"))
        ),
        mounts=tuple(
            compose_wire.Mount(volume=one.volume, path=one.path, read_only=one.read_only)
            for one in sorted(service.mounts, key=attrgetter("path"))
        ),
        scratch=tuple(
            compose_wire.Scratch(path=one.path, size_mib=one.size_mib)
            for one in sorted(service.scratch, key=attrgetter("path"))
        ),
        secrets=tuple(sorted(secrets)),
        blobs=tuple(sorted(service.blobs)),
        restart=service.restart,
        vital=vital,
        confined=service.sidecar_class in CONFINED,
    )


def _ports(instance: Instance, main: str) -> Mapping[str, list[str]]:
    """Service → names of its published ports. What no endpoint names is the main service's."""
    owner = {one.name: one.service for one in topology_endpoints(topology_of(instance).profile)}
    found: dict[str, list[str]] = {}
    for name, _, _ in instance.ports:
        found.setdefault(owner.get(name, main), []).append(name)
    return found


def _limits(instance: Instance, main: str, services: Sequence[Service]) -> Mapping[str, Limits]:
    gpus = deal_gpus(services, main, instance.gpu_uuids)
    cpu = share(
        MILLICORES,
        instance.cpu_millis,
        CPU_MILLIS_MIN,
        {one.name: None if (vcpu := one.limits.vcpu) is None else millis(vcpu) for one in services},
        main,
    )
    memory = share(
        MEBIBYTES,
        instance.memory_mib,
        MEMORY_MIB_MIN,
        {one.name: one.limits.memory_mib for one in services},
        main,
    )
    return {
        one.name: common.limits_of(
            cpu[one.name],
            memory[one.name],
            one.shm_mib,
            instance.gpu_vendor if gpus.get(one.name) else None,
            gpus.get(one.name, ()),
            one.limits.pids,
        )
        for one in services
    }


def _sum(instance: Instance, services: Sequence[compose_wire.Service]) -> Limits:
    """Of the whole; without a bound where one service has none."""
    limits = [one.limits for one in services]
    cpu = [one.cpu_millis for one in limits if one.cpu_millis is not None]
    memory = [one.memory_mib for one in limits if one.memory_mib is not None]
    return Limits(
        cpu_millis=sum(cpu) if len(cpu) == len(limits) else None,
        memory_mib=sum(memory) if len(memory) == len(limits) else None,
        pids=sum(one.pids for one in limits),
        shm_mib=sum(one.shm_mib for one in limits),
        gpu_vendor=instance.gpu_vendor,
        gpu_uuids=tuple(sorted(instance.gpu_uuids)),
    )


def _secrets(asked: tuple[SecretFile, ...], variables: Mapping[str, str]) -> tuple[SecretFile, ...]:
    return common.secrets_of(
        tuple(
            one.model_copy(update={"env": variables[one.name]}) if one.name in variables else one
            for one in asked
        )
    )


@shared
def readiness_of(health: Health) -> Readiness:
    """Without a probe it is ready once it runs."""
    return Readiness(
        probe=_probe(health),
        interval_ms=common.ms(health.interval_s),
        timeout_ms=common.ms(health.timeout_s),
        start_budget_ms=common.ms(health.start_budget_s),
        failures_max=health.failures_max,
    )


def _probe(health: Health) -> Probe | None:
    given = health.readiness
    if given is None:
        return None
    if given.http is not None:
        return HttpProbe(port=given.http.port, path=given.http.path)
    if given.tcp is not None:
        return TcpProbe(port=given.tcp.port)
    return ExecProbe(command=given.exec.command) if given.exec is not None else None
