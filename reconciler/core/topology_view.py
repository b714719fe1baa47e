"""An instance as the services it is made of: what each is asked to be, and how its node finds it.

Rules:
- Pure. What is asked comes from the workload that its renderer made, what a service is to the
  others from its version, and how it does from its node's report and from nowhere else.
- Secrets are named and never read; values of settings are left out.
- What is one container is a topology of one service.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from operator import attrgetter

from node_agent.wire import (
    MACHINE_IDENTITY,
    ExecProbe,
    HttpProbe,
    Limits,
    Phase,
    Readiness,
    Service,
    ServicePhase,
    Topology,
    Workload,
    WorkloadReport,
    starting_order,
)
from reconciler.core.desired import Instance
from reconciler.core.endpoints import LOOPBACK, EndpointForm, endpoint_forms
from reconciler.core.kinds.app_version import AppVersionSpec, RuntimeProfile
from reconciler.core.members import version_of_role
from reconciler.core.observed import Seen, Unknown
from reconciler.core.records import InstanceRecord
from reconciler.core.topology import ALONE, main_service

FORMAT = "gpuaas.dev/topology/v1"
HEALTHS = (
    "waiting", "starting", "ready", "completed", "degraded", "failed", "stopped", "absent",
    "unknown", "",
)  # fmt: skip
"""What is said of a service: as its node does, `absent` where that has none of it, `unknown` where
nobody could look; empty where nobody looked.
"""
_HEALTH_OF: Mapping[Phase, str] = {
    Phase.PENDING: "waiting",
    Phase.PULLING: "starting",
    Phase.STARTING: "starting",
    Phase.READY: "ready",
    Phase.DEGRADED: "degraded",
    Phase.FAILED: "failed",
    Phase.STOPPED: "stopped",
    Phase.REMOVING: "stopped",
    Phase.REMOVED: "absent",
}


@dataclass(frozen=True)
class NeedView:
    """Another service, and what has to be true of it before this one starts."""

    service: str
    condition: str


@dataclass(frozen=True)
class EndpointView:
    """`inside` is where services of the same instance reach it; `host_ip` and `host_port` are where
    its node publishes it: empty and None where it does not, or has not said so yet.
    """

    name: str
    protocol: str
    expose: str
    path: str
    port: int
    inside: str
    host_ip: str = ""
    host_port: int | None = None


@dataclass(frozen=True)
class MountView:
    volume: str
    path: str
    read_only: bool


@dataclass(frozen=True)
class ScratchView:
    path: str
    size_mib: int


@dataclass(frozen=True)
class SecretView:
    """`reference` is empty for one made for the instance; `env` for one that is only a file."""

    name: str
    reference: str
    env: str


@dataclass(frozen=True)
class ShareView:
    """What it may use at most; None: what there is. `gpus_shared`: other services use them, too."""

    cpu_millis: int | None
    memory_mib: int | None
    pids: int
    shm_mib: int
    gpu_uuids: tuple[str, ...]
    gpus_shared: bool


@dataclass(frozen=True)
class ServiceView:
    """`image` is repository@digest, `image_runs` the digest that its node found it with."""

    name: str
    role: str
    sidecar_class: str
    vital: bool
    confined: bool
    restart: str
    image: str
    probe: str
    start_budget_ms: int
    needs: tuple[NeedView, ...]
    endpoints: tuple[EndpointView, ...]
    mounts: tuple[MountView, ...]
    scratch: tuple[ScratchView, ...]
    secrets: tuple[SecretView, ...]
    blobs: tuple[str, ...]
    share: ShareView
    health: str = ""
    detail: str = ""
    restarts: int = 0
    exit_code: int | None = None
    image_runs: str = ""


@dataclass(frozen=True)
class VolumeView:
    name: str
    size_mib: int


@dataclass(frozen=True)
class TopologyView:
    """Services are in the order of their names, `starts` in that of their dependencies.

    `instance` is empty for a version that nobody launched. `state` is that of its record. `runs`
    says whether its node runs this very form: `this`, `another`, `nothing`, `unknown`, or empty
    where nobody looked. `message` says what is in the way.
    """

    instance: str
    app: str
    version: str
    renderer: str
    node: str
    state: str
    runs: str
    message: str
    vital_failure: str
    other_failure: str
    services: tuple[ServiceView, ...]
    volumes: tuple[VolumeView, ...]
    starts: tuple[str, ...]

    def service(self, name: str) -> ServiceView | None:
        return next((one for one in self.services if one.name == name), None)


def topology_view(
    instance: Instance,
    workload: Workload,
    spec: AppVersionSpec,
    record: InstanceRecord | None = None,
    seen: Seen[WorkloadReport | None] | None = None,
) -> TopologyView:
    """`workload` is what the renderer makes of `instance`, `spec` its version, `seen` the word of
    its node; None: nobody looked.
    """
    spec = _as_member(instance, spec)
    forms = endpoint_forms(spec)
    topology = workload.topology or _of_one(workload)
    asked = _asked(topology, workload, spec.runtime_profile, forms)
    services = tuple(_with_report(one, workload, seen) for one in asked)
    return TopologyView(
        instance=instance.key,
        app=instance.app,
        version=instance.version,
        renderer=instance.topology.renderer if instance.topology else spec.runtime_profile.kind,
        node=instance.node,
        state=record.state.value if record is not None else "",
        runs=_runs(workload, seen),
        message=_message(seen),
        vital_failure=topology.vital_failure,
        other_failure=topology.other_failure,
        services=services,
        volumes=tuple(
            VolumeView(one.name, one.size_mib)
            for one in sorted(topology.volumes, key=attrgetter("name"))
        ),
        starts=starting_order(topology) or (),
    )


def _as_member(instance: Instance, spec: AppVersionSpec) -> AppVersionSpec:
    """A further member has what its role says."""
    roles = (one for one in spec.runtime_profile.members if one.role == instance.role)
    role = next(roles, None) if instance.member_of is not None else None
    return version_of_role(spec, role) if role is not None else spec


def _of_one(workload: Workload) -> Topology:
    alone = Service(
        name=ALONE,
        image=workload.image,
        ports=tuple(port.name for port in workload.ports),
        limits=workload.limits,
        readiness=workload.readiness,
        secrets=tuple(secret.name for secret in workload.secrets),
        blobs=tuple(blob.name for blob in workload.blobs),
    )
    return Topology(services=(alone,))


# --- what is asked -------------------------------------------------------------------------------


def _asked(
    topology: Topology,
    workload: Workload,
    profile: RuntimeProfile,
    forms: tuple[EndpointForm, ...],
) -> Iterator[ServiceView]:
    main = main_service(profile)
    written = profile.topology.services if profile.topology is not None else ()
    classes = {one.name: one.sidecar_class or "" for one in written}
    secrets = {one.name: one for one in workload.secrets}
    for service in sorted(topology.services, key=attrgetter("name")):
        yield ServiceView(
            name=service.name,
            role="main" if service.name == main else "sidecar",
            sidecar_class=classes.get(service.name, ""),
            vital=service.vital,
            confined=service.confined,
            restart=service.restart,
            image=f"{service.image.repository}@{service.image.digest}",
            probe=_probe(service.readiness),
            start_budget_ms=service.readiness.start_budget_ms,
            needs=tuple(NeedView(one.service, one.condition) for one in service.depends_on),
            endpoints=tuple(_endpoints(service, workload, forms)),
            mounts=tuple(MountView(one.volume, one.path, one.read_only) for one in service.mounts),
            scratch=tuple(ScratchView(one.path, one.size_mib) for one in service.scratch),
            secrets=tuple(
                SecretView(name, secrets[name].source, secrets[name].env)
                for name in sorted(service.secrets)
                # Nobody else's, and not even named.
                if name != MACHINE_IDENTITY and name in secrets
            ),
            blobs=tuple(sorted(service.blobs)),
            share=_share(service.limits, service.name, topology),
        )


def _share(limits: Limits, name: str, topology: Topology) -> ShareView:
    others = {
        uuid for one in topology.services if one.name != name for uuid in one.limits.gpu_uuids
    }
    return ShareView(
        cpu_millis=limits.cpu_millis,
        memory_mib=limits.memory_mib,
        pids=limits.pids,
        shm_mib=limits.shm_mib,
        gpu_uuids=limits.gpu_uuids,
        gpus_shared=not others.isdisjoint(limits.gpu_uuids),
    )


def _endpoints(
    service: Service, workload: Workload, forms: tuple[EndpointForm, ...]
) -> Iterator[EndpointView]:
    """Those of its version; and those that are published and of which that knows nothing."""
    known = {one.name: one for one in forms if one.service == service.name}
    ports = {one.name: one for one in workload.ports if one.name in service.ports}
    for name, port in ports.items():
        known.setdefault(name, EndpointForm(name, service.name, port.container))
    alone = workload.topology is None
    for name, form in sorted(known.items()):
        port_ = ports.get(name)
        inside = f"{form.port}" if alone else f"{service.name}:{form.port}"
        published = port_.address or LOOPBACK if port_ is not None else ""
        yield EndpointView(
            name=name,
            protocol=form.protocol,
            expose=form.expose,
            path=form.path,
            port=form.port,
            inside=inside,
            host_ip=published,
            host_port=port_.host if port_ is not None else None,
        )


def _probe(readiness: Readiness) -> str:
    """As `gpuaas explain` says it; a command is not shown, it may be long and says little."""
    probe = readiness.probe
    if probe is None:
        return "runs"
    if isinstance(probe, ExecProbe):
        return "command"
    return (
        f"http :{probe.port}{probe.path}" if isinstance(probe, HttpProbe) else f"tcp :{probe.port}"
    )


# --- what is seen --------------------------------------------------------------------------------


def _with_report(
    service: ServiceView, workload: Workload, seen: Seen[WorkloadReport | None] | None
) -> ServiceView:
    if seen is None:
        return service
    if isinstance(seen, Unknown):
        return replace(service, health="unknown", detail=seen.reason)
    report = seen.value
    if report is None or report.phase is Phase.REMOVED:
        return replace(service, health="absent")
    found = _phase(service, workload, report)
    if found is None:
        return replace(service, health="absent")
    return replace(
        service,
        health=found.phase,
        detail=found.detail,
        restarts=found.restarts,
        exit_code=found.exit_code,
        image_runs=found.image_digest or "",
        endpoints=tuple(_published(service, report)),
    )


def _phase(service: ServiceView, workload: Workload, report: WorkloadReport) -> ServicePhase | None:
    """What the node says of the service, or of all where that is one container."""
    if report.services or workload.topology is not None:
        found = next((one for one in report.services if one.name == service.name), None)
        if found is None and not report.services:
            # It is too early, or too late, for the node to tell services apart.
            return _whole(service, report)
        return found
    return _whole(service, report)


def _whole(service: ServiceView, report: WorkloadReport) -> ServicePhase | None:
    health = _HEALTH_OF[report.phase]
    if health == "absent":
        return None
    return ServicePhase.model_validate(
        {
            "name": service.name,
            "phase": health,
            "detail": ": ".join(part for part in (report.reason or "", report.message) if part),
            "restarts": report.restarts,
            "exit_code": report.exit_code,
            "image_digest": report.image_digest,
        }
    )


def _published(service: ServiceView, report: WorkloadReport) -> Iterator[EndpointView]:
    there = {(one.name, one.container): one for one in report.endpoints}
    for endpoint in service.endpoints:
        found = there.get((endpoint.name, endpoint.port))
        yield (
            replace(endpoint, host_ip=found.host_ip, host_port=found.host_port)
            if found is not None
            else endpoint
        )


def _runs(workload: Workload, seen: Seen[WorkloadReport | None] | None) -> str:
    if seen is None:
        return ""
    if isinstance(seen, Unknown):
        return "unknown"
    if seen.value is None or seen.value.running_hash is None:
        return "nothing"
    return "this" if seen.value.running_hash == workload.spec_hash else "another"


def _message(seen: Seen[WorkloadReport | None] | None) -> str:
    if seen is None:
        return ""
    if isinstance(seen, Unknown):
        return f"{seen.code}: {seen.reason}"
    if seen.value is None:
        return ""
    return ": ".join(part for part in (seen.value.reason or "", seen.value.message) if part)
