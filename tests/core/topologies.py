"""Instances of several services to plan for, beside those of one container in `fleet`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from node_agent.wire import Image, Phase, Service, ServicePhase, Topology, Workload, WorkloadReport
from reconciler.core import desired
from reconciler.core.desired import Target
from reconciler.core.kinds.app_version import RuntimeProfile
from reconciler.core.names import ArtifactKey
from reconciler.core.observed import ArtifactSeen, Known, Observed
from tests.core import fleet

REGISTRY = "127.0.0.1:5000"
VITAL = ("api", "db")
"""`metrics` is the one that is not."""
NAMES = ("api", "db", "metrics")
PROFILE = RuntimeProfile(kind="docker_compose", renderer="generic_services")


def key_of(service: str, version: str = "1.0.0") -> ArtifactKey:
    """The image of a service; that of `api` is the version's own."""
    place = "hello" if service == "api" else service
    return ArtifactKey(f"gpuaas/apps/platform/{place}", fleet.digest_of(f"{service} {version}"))


def image(key: ArtifactKey) -> Image:
    return Image(registry=REGISTRY, repository=key.repository, digest=str(key.digest))


def topology(
    name: str = "shop", version: str = "1.0.0", images: Mapping[str, str] | None = None, **rest: Any
) -> Target:
    """`images`: service → the version whose image it has, where that is another."""
    keys = {one: key_of(one, (images or {}).get(one, version)) for one in NAMES}
    one = fleet.target(name, version, **rest)
    policy = replace(one.instance.policy, runtime_backend="docker_compose")
    services = tuple(
        Service(name=service, image=image(key), vital=service in VITAL)
        for service, key in sorted(keys.items())
    )
    workload = Workload(
        instance=one.workload.instance,
        engine="compose",
        image=image(keys["api"]),
        labels={"dev.gpuaas.version": version},
        topology=Topology(services=services),
    )
    instance = replace(
        one.instance,
        artifact=keys["api"],
        policy=policy,
        topology=desired.Topology("generic_services", PROFILE, keys),
    )
    return Target(instance, workload)


def phases(**but: str) -> tuple[ServicePhase, ...]:
    """All ready, but for those that are named."""
    return tuple(
        ServicePhase.model_validate(
            {"name": one, "phase": but.get(one, "ready"), "vital": one in VITAL}
        )
        for one in NAMES
    )


def report(of: Target, phase: Phase = Phase.READY, **but: str) -> WorkloadReport:
    said = fleet.report(of, phase)
    return said.model_copy(update={"services": phases(**but)})


def running(of: Target) -> Any:
    """Its record once it was ready."""
    before = fleet.running(of)
    return replace(before, applied_images=before.target_images, services=phases())


def observed(*reports: WorkloadReport, versions: tuple[str, ...] = ("1.0.0", "1.1.0")) -> Observed:
    """A registry that has every service's image of these versions."""
    there = {key_of(one, v): Known(ArtifactSeen(exists=True)) for one in NAMES for v in versions}
    return replace(fleet.observed(*reports), artifacts=there)
