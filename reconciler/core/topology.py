"""What a version's topology comes to, before any renderer: its services, endpoints and needs. Pure.

Rules:
- A service that a renderer makes itself stands among those that are written, as if it were.
- What a version says wrong (`core.checks.topology` tells it) never raises in here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import ROUND_FLOOR, Decimal
from types import MappingProxyType
from typing import Final, Literal, NamedTuple

from reconciler.core.kinds.app_version import AppVersionSpec, RuntimeProfile
from reconciler.core.kinds.topology import (
    Dependency,
    RendererName,
    Service,
    ServiceMount,
    SidecarClass,
    TopologyEndpoint,
    VllmSpec,
)

COMPOSE: Final = "docker_compose"
ALONE: Final = "main"
"""What the one service of an instance without a topology is called."""
VLLM, NOTEBOOK = "vllm", "notebook"
"""The main services that renderers make."""
MADE: Mapping[RendererName, str] = MappingProxyType(
    {"jupyter_with_sidecar": NOTEBOOK, "vllm_openai": VLLM}
)
VLLM_CACHE_PATH: Final = "/var/cache/vllm"
PROFILE = "/spec/runtime_profile"
SERVICES = f"{PROFILE}/topology/services"

Capability = Literal[
    "blobs", "endpoints", "gpus", "read_volumes", "scratch", "secrets", "write_volumes"
]
_READ_WRITE: tuple[Capability, ...] = ("read_volumes", "write_volumes")
CLASSES: Mapping[SidecarClass, tuple[Capability, ...]] = MappingProxyType(
    {
        "metrics": ("endpoints", "read_volumes"),
        "logs": ("read_volumes", "secrets"),
        "proxy": ("endpoints", "secrets"),
        "cache": ("endpoints", *_READ_WRITE, "scratch"),
        "setup": (*_READ_WRITE, "scratch", "secrets", "blobs"),
        "data": ("endpoints", *_READ_WRITE, "scratch", "secrets", "blobs"),
        "worker": (*_READ_WRITE, "scratch", "secrets", "blobs", "gpus"),
    }
)
"""What sidecars of each class may have, those that may least first. The main service may all."""
CONFINED: frozenset[SidecarClass] = frozenset(("logs", "metrics", "proxy"))
"""Classes that can't write to their own image's files, and have no Linux capability at all."""


class Placed(NamedTuple):
    """One service, and the pointer at which the version writes it or what it is made of."""

    service: Service
    where: str
    made: bool = False


def services_of(profile: RuntimeProfile) -> tuple[Placed, ...]:
    """All services: first the one that the renderer makes, then those written, in their order."""
    written = profile.topology.services if profile.topology is not None else ()
    placed = tuple(Placed(one, f"{SERVICES}/{index}") for index, one in enumerate(written))
    made = _made_main(profile, written)
    return (made, *placed) if made is not None else placed


def main_service(profile: RuntimeProfile) -> str:
    """The name of the service that is the app itself."""
    if profile.kind != COMPOSE:
        return ALONE
    mains = (one.service.name for one in services_of(profile) if one.service.role == "main")
    return next(mains, ALONE)


def topology_endpoints(profile: RuntimeProfile) -> tuple[TopologyEndpoint, ...]:
    """Those of a topology: first the one of the main service that its renderer makes."""
    written = profile.topology.endpoints if profile.topology is not None else ()
    return (*_made_endpoints(profile), *written)


def reached_ports(profile: RuntimeProfile) -> tuple[tuple[str, int, bool], ...]:
    """(name, port, whether a fixed host port is for it) of what is reached from outside; that is
    the first port, and of a topology the first of its main service.
    """
    if profile.kind != COMPOSE:
        return tuple((one.name, one.container, not i) for i, one in enumerate(profile.ports))
    main = main_service(profile)
    shown = [one for one in topology_endpoints(profile) if one.expose != "internal"]
    first = next((one.name for one in shown if one.service == main), None)
    return tuple((one.name, one.port, one.name == first) for one in shown)


def published_ports(
    profile: RuntimeProfile, host_port: int | None
) -> tuple[tuple[str, int, int | None], ...]:
    """The same as an Instance has them: (name, port, host port)."""
    return tuple(
        (name, port, host_port if first else None) for name, port, first in reached_ports(profile)
    )


def setups_before(services: Sequence[Service], main: str) -> tuple[str, ...]:
    """The sidecars of class setup that a made main service waits for: all but those after it."""
    after = {main}
    while more := [one.name for one in services if one.name not in after and _needs(one) & after]:
        after.update(more)
    setups = (one.name for one in services if one.sidecar_class == "setup")
    return tuple(sorted(name for name in setups if name not in after))


def vital_services(services: Iterable[Service]) -> frozenset[str]:
    """The main service, what says so, and whatever one of these has to wait for."""
    by_name = {one.name: one for one in services}
    vital = {name for name, one in by_name.items() if one.vital or one.role == "main"}
    waiting = sorted(vital)
    while waiting:
        for one in by_name[waiting.pop()].depends_on:
            needed = by_name.get(one.service)
            if needed is None or one.condition == "started" or needed.name in vital:
                continue
            if needed.vital is not False:
                vital.add(needed.name)
                waiting.append(needed.name)
    return frozenset(vital)


def millis(vcpu: float) -> int:
    """Never more than was said, so that parts never come to more than the whole."""
    return int((Decimal(str(vcpu)) * 1000).to_integral_value(ROUND_FLOOR))


CPU_MILLIS_MIN: Final = 10
MEMORY_MIB_MIN: Final = 6
"""The least that a container can be held to."""


class Least(NamedTuple):
    """What an instance of a version has where nothing else says it; 0: nothing says it at all.

    Of a topology, `main_…` is what the main service needs, and `beside_…` what the sidecars are
    limited to.
    """

    vcpu: float
    memory_mib: int
    main_cpu_millis: int = 0
    main_memory_mib: int = 0
    beside_cpu_millis: int = 0
    beside_memory_mib: int = 0


def least_of(profile: RuntimeProfile) -> Least:
    said = profile.resources
    if profile.kind != COMPOSE:
        return Least(said.min_vcpu, said.min_memory_mib)
    cpu, memory, scratch = millis(said.min_vcpu), said.min_memory_mib, 0
    beside_cpu, beside_memory = 0, 0
    for service, _, _ in services_of(profile):
        own_cpu, own_memory = millis(service.limits.vcpu or 0), service.limits.memory_mib or 0
        if service.role == "main":
            cpu, memory = max(cpu, own_cpu), max(memory, own_memory)
            scratch += sum(one.size_mib for one in service.scratch)
        else:
            beside_cpu, beside_memory = beside_cpu + own_cpu, beside_memory + own_memory
    needed_cpu = max(cpu, CPU_MILLIS_MIN)
    # Scratch is in memory, and has to leave some for the program.
    needed_memory = max(memory, scratch + MEMORY_MIB_MIN)
    return Least(
        (needed_cpu + beside_cpu) / 1000 if cpu else 0,
        needed_memory + beside_memory if memory else 0,
        needed_cpu,
        needed_memory,
        beside_cpu,
        beside_memory,
    )


def image_of(version: AppVersionSpec, service: Service | None, family: str) -> str | None:
    """What runs on that accelerator family: the variant for it, else `image_ref`, else what the
    version itself runs there, which of it is the artifact. None where variants are listed, none is
    for this family, and no `image_ref` is for the rest.
    """
    if service is not None and not has_own_image(service):
        service = None
    said = version.runtime_profile if service is None else service
    image = said.variants.get(family) or said.image_ref
    return image or (None if said.variants else version.artifact_ref)


def has_own_image(service: Service) -> bool:
    return service.image_ref is not None or bool(service.variants)


# --- what renderers make -------------------------------------------------------------------------


def _made_main(profile: RuntimeProfile, written: Sequence[Service]) -> Placed | None:
    """As the manifest would have it to write, were it written."""
    name = MADE.get(profile.renderer) if profile.renderer is not None else None
    if name is None or profile.kind != COMPOSE:
        return None
    part = "vllm" if name == VLLM else "jupyter"
    waits = [Dependency(service=one, condition="completed") for one in setups_before(written, name)]
    made = Service.model_construct(
        name=name,
        role="main",
        command=profile.command,
        env=profile.env,
        gpus=_counted(profile.vllm) if name == VLLM else None,
        shm_mib=profile.shm_mib,
        stop_grace_s=profile.stop_grace_s,
        health=profile.health,
        depends_on=tuple(waits),
        mounts=tuple(_made_mounts(profile)),
        secrets=tuple(dict.fromkeys(one.name for one in profile.secrets)),
        blobs=tuple(dict.fromkeys(one.name for one in profile.blobs)),
    )
    return Placed(made, f"{PROFILE}/{part}", made=True)


def _counted(vllm: VllmSpec | None) -> int | None:
    """The GPUs that vLLM takes by number."""
    if vllm is None or vllm.tensor_parallel is None:
        return None
    return min(vllm.tensor_parallel * vllm.pipeline_parallel, 1024)


def _made_mounts(profile: RuntimeProfile) -> Iterator[ServiceMount]:
    if profile.vllm is not None and profile.vllm.cache_volume is not None:
        yield ServiceMount(volume=profile.vllm.cache_volume, path=VLLM_CACHE_PATH)
    if profile.jupyter is not None and profile.jupyter.work_volume is not None:
        yield ServiceMount(volume=profile.jupyter.work_volume, path=profile.jupyter.work_path)


def _made_endpoints(profile: RuntimeProfile) -> Iterator[TopologyEndpoint]:
    if profile.renderer == "vllm_openai" and (vllm := profile.vllm) is not None:
        yield TopologyEndpoint(name="api", service=VLLM, port=vllm.port, expose=vllm.expose)
    if profile.renderer == "jupyter_with_sidecar" and (jupyter := profile.jupyter) is not None:
        yield TopologyEndpoint(
            name="notebook",
            service=NOTEBOOK,
            port=jupyter.port,
            expose=jupyter.expose,
            path=jupyter.base_path,
        )


def _needs(service: Service) -> set[str]:
    return {one.service for one in service.depends_on}
