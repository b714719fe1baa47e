"""A topology as the Compose file of its instance on this node. Pure.

Rules:
- The node writes the file itself, from typed fields: no text of a manifest is part of it but as a
  value. Each service has the limits and the hardening that a single container has, and no key is
  written that is not named in `compose_parts`.
- The same workload at the same place gives the same file, and a service that stays as it is the
  same words in the next version's: nothing in it says which version it is of, or when.
- What is where on a volume that services share is up to all of them, so nothing else is mounted
  inside of one: whoever writes there could turn a folder into a link while Docker mounts.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from node_agent.artifact_wire import BLOBS_PATH
from node_agent.engines import docker_drift
from node_agent.engines.base import EngineFailure, ownership_labels
from node_agent.engines.compose_parts import digest_of, service_words, text_of
from node_agent.engines.docker_spec import (
    LABEL_ASKED,
    MIB,
    VOLUMES_MAX,
    ImageConfig,
    create_request,
)
from node_agent.engines.docker_spec import needs_shell as _needs_shell
from node_agent.engines.gpus import NO_GPUS, GpuGrant
from node_agent.wire import (
    LABEL_SERVICE,
    LABEL_SPEC_HASH,
    LABEL_VERSION,
    SECRETS_PATH,
    FailureReason,
    Service,
    Topology,
    Workload,
)

LABEL_SERVICE_HASH = "dev.gpuaas.service-hash"
"""Of a service's words in the file, so that a container of another form of it is told apart."""
PROJECT_LENGTH_MAX = 63
CPU_PERIOD_US = 100_000
_NETWORK = "default"
_PREFIX = "gpuaas-"
_OURS = "dev.gpuaas."
_NOT_KEPT = (LABEL_SPEC_HASH, LABEL_VERSION, LABEL_SERVICE_HASH)
"""Of labels: what another version would change, and what is worked out here."""
_OTHERS = re.compile(r"[^a-z0-9]+")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,254}")
_HOSTS_OWN = ("/dev", "/proc", "/sys")
"""Where the kernel and Docker show the host, and keep from a container what is not its own."""
_PLAIN_PATH = re.compile(r"(?:/[^/:]+)+")


@dataclass(frozen=True)
class Placement:
    """What the file takes from this node.

    `host_ports`: by name of a port, `blobs`: where each is, by its name. By name of a service:
    `images`, the answers to `GET /images/{name}/json`; `gpus`; `secrets`, the folders.
    """

    node: str
    host_ports: Mapping[str, int] = field(default_factory=dict)
    images: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    gpus: Mapping[str, GpuGrant] = field(default_factory=dict)
    secrets: Mapping[str, str] = field(default_factory=dict)
    blobs: Mapping[str, str] = field(default_factory=dict)


def project_name(node: str, instance: str) -> str:
    """`gpuaas-<tenant>-<project>-<name>-<16 of the hash>`; a long middle is cut.

    At most PROJECT_LENGTH_MAX of a-z, 0-9 and `-`. Compose takes what carries a project's name for
    that project's, so two instances never have the same.
    """
    digest = hashlib.sha256(f"{node}\0{instance}".encode()).hexdigest()[:16]
    room = PROJECT_LENGTH_MAX - len(_PREFIX) - len(digest) - 1
    plain = _OTHERS.sub("-", instance.lower()).strip("-")[:room].strip("-")
    return f"{_PREFIX}{plain or 'instance'}-{digest}"


def compose_file(workload: Workload, placement: Placement) -> dict[str, Any]:
    """The document as it is meant, for `compose_text`.

    Raises EngineFailure CREATE_REFUSED for what Docker would not take or must not be asked for,
    and what `create_request` raises.
    """
    topology = workload.topology
    if topology is None:
        raise _refused("the workload is no topology")
    _check_ports(topology)
    project = project_name(placement.node, workload.instance)
    ours = ownership_labels(placement.node, workload.instance)
    services = {one.name: _service(workload, one, placement) for one in topology.services}
    volumes = {mount["source"] for words in services.values() for mount in _volumes(words)}
    return {
        "name": project,
        "services": services,
        "networks": {_NETWORK: {"name": project, "driver": "bridge", "labels": ours}},
        "volumes": {name: {"name": name, "labels": ours} for name in sorted(volumes)},
    }


def compose_text(document: Mapping[str, Any]) -> str:
    """The file's text: JSON, which is YAML, with nothing in it that Compose would fill in."""
    return text_of(document)


def part_of(
    document: Mapping[str, Any], names: Collection[str], made: Collection[str]
) -> dict[str, Any]:
    """The document for making containers of these services, whatever Compose thinks of the others.

    `made`: names of networks and volumes that are there. Compose compares those with hashes of its
    own, which are others in each release, and then takes down a network with all who use it, or
    asks to empty a volume. What it is told to be `external` it only uses.
    """
    services = {}
    for name in sorted(names):
        words = {**document["services"][name]}
        waits = words.pop("depends_on", {})
        kept = {one: condition for one, condition in waits.items() if one in names}
        services[name] = words | ({"depends_on": kept} if kept else {})
    used = {mount["source"] for words in services.values() for mount in _volumes(words)}
    return {
        "name": document["name"],
        "services": services,
        "networks": {key: _used(one, made) for key, one in document["networks"].items()},
        "volumes": {
            key: _used(one, made) for key, one in document["volumes"].items() if key in used
        },
    }


def needs_of(document: Mapping[str, Any], name: str) -> set[str]:
    """Names of the network and the volumes that a service is made with."""
    mounts = _volumes(document["services"][name])
    volumes = {document["volumes"][mount["source"]]["name"] for mount in mounts}
    return {network_name(document), *volumes}


def service_hashes(document: Mapping[str, Any]) -> dict[str, str]:
    """By name, what the container of each service carries as LABEL_SERVICE_HASH."""
    services = document["services"].items()
    return {name: words["labels"][LABEL_SERVICE_HASH] for name, words in services}


def volume_names(document: Mapping[str, Any]) -> tuple[str, ...]:
    """As Docker knows them, sorted."""
    return tuple(sorted(one["name"] for one in document["volumes"].values()))


def network_name(document: Mapping[str, Any]) -> str:
    """As Docker knows it."""
    return str(document["networks"][_NETWORK]["name"])


def service_workload(workload: Workload, service: Service) -> Workload:
    """The service as if it were all: with its own ports, secrets and blobs and no others."""
    kept = {
        name: value
        for name, value in workload.labels.items()
        if name.startswith(_OURS) and name not in _NOT_KEPT
    }
    return Workload(
        instance=workload.instance,
        engine="docker",
        image=service.image,
        command=service.command,
        env=service.env,
        ports=tuple(one for one in workload.ports if one.name in service.ports),
        limits=service.limits,
        readiness=service.readiness,
        stop_grace_ms=service.stop_grace_ms,
        labels=kept,
        secrets=tuple(one for one in workload.secrets if one.name in service.secrets),
        blobs=tuple(one for one in workload.blobs if one.name in service.blobs),
    )


def needs_shell(workload: Workload, service: Service) -> bool:
    """Whether something is to be done in its container before its own command runs."""
    return _needs_shell(service_workload(workload, service))


# --- one service ---------------------------------------------------------------------------------


def _service(workload: Workload, service: Service, placement: Placement) -> dict[str, Any]:
    request = _request(workload, service, placement)
    words = {"pull_policy": "never", **service_words(request)}
    words["labels"] = {**words["labels"], LABEL_SERVICE_HASH: digest_of(words)}
    # Of no weight for the container: who only waits for another one is not replaced.
    waits = {one.service: {"condition": "service_started"} for one in service.depends_on}
    return words | ({"depends_on": waits} if waits else {})


def _request(workload: Workload, service: Service, placement: Placement) -> dict[str, Any]:
    """What Compose is to ask Docker for; what is compared with the container later on."""
    for name in service.env:
        if _VARIABLE.fullmatch(name) is None:
            raise _refused(f"{service.name}: {name!r:.80} is no name for a variable")
    described = placement.images.get(service.name) or {}
    project = project_name(placement.node, workload.instance)
    image = ImageConfig.read(described)
    request = create_request(
        service_workload(workload, service),
        placement.node,
        project,
        placement.host_ports,
        _mounted(service, project, image),
        placement.gpus.get(service.name, NO_GPUS),
        image,
        placement.secrets.get(service.name, ""),
        placement.blobs,
    )
    request |= {"Healthcheck": {"Test": ["NONE"]}, "StopTimeout": -(-service.stop_grace_ms // 1000)}
    _adapt(request["HostConfig"], service)
    labels = {**request["Labels"], LABEL_SERVICE: service.name}
    # What an image says for Compose, Compose says itself.
    kept = [name for name in labels if name.startswith(_OURS) and name not in _NOT_KEPT]
    labels = {name: labels[name] for name in kept}
    asked = docker_drift.record(request, described.get("Config") or {})
    return {**request, "Labels": {**labels, LABEL_ASKED: asked}}


def _adapt(host: dict[str, Any], service: Service) -> None:
    """What services have beside a single container's, and what Compose can say otherwise only."""
    if host.pop("NanoCpus", None) is not None:
        # Compose counts CPUs in 32 bits, and so would ask for a little more or less.
        quota_us = (service.limits.cpu_millis or 0) * CPU_PERIOD_US // 1000
        host |= {"CpuPeriod": CPU_PERIOD_US, "CpuQuota": quota_us}
    if service.confined:
        host |= {"ReadonlyRootfs": True, "CapAdd": []}
    if service.scratch:
        host["Tmpfs"] = {
            one.path: f"rw,exec,nosuid,nodev,mode=1777,size={one.size_mib * MIB}"
            for one in service.scratch
        }
    read_only = {one.path for one in service.mounts if one.read_only}
    for mount in host["Mounts"]:
        if mount["Target"] in read_only:
            mount["ReadOnly"] = True
    if "DeviceRequests" in host:
        # Compose wants one named, though for CDI it means nothing to Docker.
        requests = [{"Capabilities": [["gpu"]], **one} for one in host["DeviceRequests"]]
        host["DeviceRequests"] = requests


# --- what is mounted where -----------------------------------------------------------------------


def _mounted(service: Service, project: str, image: ImageConfig) -> dict[str, str]:
    """Names of volumes by path: the topology's, and one for each other path the image declares."""
    if len(image.volumes) > VOLUMES_MAX:
        message = f"the image declares {len(image.volumes)} volumes, at most {VOLUMES_MAX}"
        raise _refused(message)
    _check_paths(service, image)
    shared = {one.path: f"{project}_{one.volume}" for one in service.mounts}
    taken = {*shared, *(one.path for one in service.scratch)}
    own = {
        path: f"{project}_{service.name}_{hashlib.sha256(path.encode()).hexdigest()[:8]}"
        for path in map(_declared, image.volumes)
        if path not in taken
    }
    return {**own, **shared}


def _declared(path: str) -> str:
    """As Docker understands what an image declares."""
    plain = "/" + path.strip("/")
    if _PLAIN_PATH.fullmatch(plain) is None or {".", ".."} & {*plain.split("/")}:
        raise _refused(f"the image declares {path!r:.80} as a volume: no plain path")
    return plain


def _check_paths(service: Service, image: ImageConfig) -> None:
    asked = [*(one.path for one in service.mounts), *(one.path for one in service.scratch)]
    twice = sorted({path for path in asked if asked.count(path) > 1})
    if twice:
        raise _refused(f"{service.name}: two things are to be mounted at {twice[0]}")
    for path in sorted(asked):
        if path.startswith(tuple(f"{one}/" for one in _HOSTS_OWN)) or path in _HOSTS_OWN:
            raise _refused(f"{service.name}: nothing is mounted at {path}, which is the system's")
    platform = [SECRETS_PATH] * bool(service.secrets) + [BLOBS_PATH] * bool(service.blobs)
    inside = sorted({*asked, *platform, *map(_declared, image.volumes)})
    for above in sorted({one.path for one in service.mounts} | {*platform}):
        for path in inside:
            if path.startswith(f"{above}/"):
                raise _refused(f"{service.name}: {path} is inside of what is mounted at {above}")
    for path in sorted({*asked} & {SECRETS_PATH, BLOBS_PATH}):
        raise _refused(f"{service.name}: {path} is the platform's own")


def _volumes(words: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [mount for mount in words.get("volumes", ()) if mount["type"] == "volume"]


def _used(one: Mapping[str, Any], made: Collection[str]) -> Mapping[str, Any]:
    return {"name": one["name"], "external": True} if one["name"] in made else one


def _check_ports(topology: Topology) -> None:
    taken: dict[str, str] = {}
    for service in topology.services:
        for port in service.ports:
            if port in taken:
                raise _refused(f"the port {port} is of {taken[port]} and of {service.name}")
            taken[port] = service.name


def _refused(message: str) -> EngineFailure:
    return EngineFailure(FailureReason.CREATE_REFUSED, message)
