"""A workload as Docker's create request. Pure."""

from __future__ import annotations

import hashlib
import ipaddress
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from node_agent.artifact_wire import BLOBS_PATH
from node_agent.engines import docker_drift, packages, secret_env
from node_agent.engines.base import (
    BLOBS_VARIABLE,
    LOOPBACK,
    SECRETS_VARIABLE,
    EngineFailure,
    endpoints_of,
    ownership_labels,
    unit_name,
)
from node_agent.engines.gpus import NO_GPUS, GpuGrant
from node_agent.units import Unit
from node_agent.wire import (
    LABEL_INSTANCE,
    LABEL_NODE,
    LABEL_SPEC_HASH,
    SECRETS_PATH,
    Endpoint,
    FailureReason,
    Limits,
    Port,
    Workload,
)

LABEL_PORTS = "dev.gpuaas.ports"
"""`name=container:host,…`, with `@address` where that is not loopback. Always set: a container
inherits its image's labels, and an image must not say where its instance can be reached."""
LABEL_DIGEST = "dev.gpuaas.image-digest"
LABEL_GPUS = "dev.gpuaas.gpus"
"""`vendor=uuid,…`, or empty; always set, for the same reason."""
LABEL_ASKED = "dev.gpuaas.asked"
"""What was asked for, as `docker_drift.record` has it, so that a change can be told."""
MIB = 1024 * 1024

CAPABILITIES = ("CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "NET_BIND_SERVICE", "SETGID",
                "SETUID")  # fmt: skip
"""What an ordinary image needs to fix its files' owners, give up root and listen on port 80.

Of Docker's own defaults left out: NET_RAW (spoofing on the bridge), MKNOD, SYS_CHROOT, SETPCAP,
SETFCAP and AUDIT_WRITE.
"""

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""Docker's, for images that set none."""

VOLUMES_MAX = 64
_SPOKEN_FOR = ("dev.gpuaas.", "com.docker.compose.")
"""What labels that begin so say is for us, and for Compose, to say: by them things are found."""
LOG_OPTIONS = {"max-size": "10m", "max-file": "3"}

USUAL = {
    "RestartPolicy": {"Name": "no"},
    "Init": True,
    "SecurityOpt": ["no-new-privileges"],
    "CapDrop": ["ALL"],
    "CapAdd": list(CAPABILITIES),
}
"""What every container of ours has in its HostConfig."""

STATUS = {"created": "created", "running": "running", "restarting": "running", "paused": "paused"}


@dataclass(frozen=True)
class ImageConfig:
    """What an image says of how it runs. `command` is its entrypoint and command in one; `posing`
    are the names of labels that no image has a say in.
    """

    command: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    volumes: tuple[str, ...] = ()
    posing: tuple[str, ...] = ()

    @classmethod
    def read(cls, described: Mapping[str, Any]) -> ImageConfig:
        """From an answer to `GET /images/{name}/json`."""
        config = described.get("Config") or {}
        pairs = (entry.partition("=") for entry in config.get("Env") or ())
        labels = sorted(config.get("Labels") or ())
        return cls(
            command=(*(config.get("Entrypoint") or ()), *(config.get("Cmd") or ())),
            env={name: value for name, _, value in pairs},
            volumes=tuple(sorted(config.get("Volumes") or ())),
            posing=tuple(name for name in labels if name.startswith(_SPOKEN_FOR)),
        )


def create_request(
    workload: Workload,
    node: str,
    network: str,
    host_ports: Mapping[str, int],
    volumes: Mapping[str, str],
    gpus: GpuGrant = NO_GPUS,
    image: ImageConfig | None = None,
    secrets_folder: str = "",
    blobs: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The body of `POST /containers/create`. `volumes` maps paths in the image to volume names.

    `secrets_folder` is where on the host the workload's secrets are, `blobs` where each of its
    blobs is, by name.

    Raises EngineFailure where packages or secrets can't be put in, or a port is for no address.
    """
    described = image or ImageConfig()
    environment = _environment(workload, gpus, described)
    request: dict[str, Any] = {
        "Image": workload.image.reference,
        "Env": [f"{name}={value}" for name, value in sorted(environment.items())],
        "Labels": {**dict.fromkeys(described.posing, ""), **_labels(workload, node, host_ports)},
        "ExposedPorts": {f"{port.container}/tcp": {} for port in workload.ports},
        "HostConfig": {
            "NetworkMode": network,
            "PortBindings": {
                f"{port.container}/tcp": [
                    {"HostIp": _address(port), "HostPort": str(host_ports[port.name])}
                ]
                for port in workload.ports
            },
            "Mounts": [
                {"Type": "volume", "Source": name, "Target": path}
                for path, name in sorted(volumes.items())
            ]
            + _secrets_mount(workload, secrets_folder)
            + _blob_mounts(workload, blobs or {}),
            **USUAL,
            "LogConfig": {"Type": "json-file", "Config": dict(LOG_OPTIONS)},
            **_limits(workload.limits),
            **gpus.host_config,
        },
    }
    command = _command(workload, described)
    if command:
        request["Entrypoint"] = command
        request["Cmd"] = []
    return request


def _command(workload: Workload, image: ImageConfig) -> list[str]:
    """Nothing where the image's own is to run.

    What the manifest says replaces the entrypoint too, on every engine: it is what runs.
    """
    if not needs_shell(workload):
        return list(workload.command)
    command = list(workload.command or image.command)
    if not command:
        message = "neither the workload nor its image names a command"
        raise EngineFailure(FailureReason.COMMAND_NOT_FOUND, message)
    # Secrets last: what puts packages in runs others' code, and has no use for them.
    if secret_env.wanted(workload):
        command = secret_env.wrapped(workload, command)
    return packages.wrapped(command) if workload.packages is not None else command


def needs_shell(workload: Workload) -> bool:
    """Whether something is to be done inside before its own command runs."""
    return workload.packages is not None or secret_env.wanted(workload)


def _environment(workload: Workload, gpus: GpuGrant, image: ImageConfig) -> dict[str, str]:
    """What the vendors' runtimes read is always set, against what manifest or image say."""
    told = {SECRETS_VARIABLE: SECRETS_PATH} if workload.secrets else {}
    if workload.blobs:
        told[BLOBS_VARIABLE] = BLOBS_PATH
    found = {**workload.env, **gpus.variables, **told}
    if workload.packages is None:
        return found
    base = {"PATH": _PATH, **image.env, **workload.env}
    into = packages.folder_outside(image.volumes)
    return {**found, **packages.variables(workload.packages, into, base)}


def _secrets_mount(workload: Workload, folder: str) -> list[dict[str, Any]]:
    """Read-only, so nothing that could be run gets in; the files themselves can't be run."""
    if not workload.secrets:
        return []
    return [{"Type": "bind", "Source": folder, "Target": SECRETS_PATH, "ReadOnly": True}]


def _blob_mounts(workload: Workload, paths: Mapping[str, str]) -> list[dict[str, Any]]:
    """Each file by itself, so that of the cache nothing else is seen; where, the platform says."""
    return [
        {
            "Type": "bind",
            "Source": paths[blob.name],
            "Target": f"{BLOBS_PATH}/{blob.name}",
            "ReadOnly": True,
        }
        for blob in sorted(workload.blobs, key=lambda blob: blob.name)
    ]


def volume_name(node: str, instance: str, path: str) -> str:
    """One volume per path the image declares: an instance's data outlives a replacement."""
    digest = hashlib.sha256(f"{node}\0{instance}\0{path}".encode()).hexdigest()
    return unit_name(instance, f"sha256:{digest}")


def unit_from_listing(item: Mapping[str, Any], inspected: Mapping[str, Any], network: str) -> Unit:
    """A unit from an entry of `GET /containers/json` and the answer when it was inspected."""
    labels = item.get("Labels") or {}
    state = inspected.get("State") or {}
    status = str(state.get("Status", ""))
    return Unit(
        unit_id=item["Id"],
        name=(item.get("Names") or [item["Id"]])[0].lstrip("/"),
        engine="docker",
        instance=labels[LABEL_INSTANCE],
        node=labels[LABEL_NODE],
        spec_hash=labels.get(LABEL_SPEC_HASH, ""),
        status=STATUS.get(status, "exited"),  # type: ignore[arg-type]
        created_at_ms=int(item.get("Created", 0)) * 1_000,
        image_digest=labels.get(LABEL_DIGEST),
        endpoints=endpoints_in(labels),
        **gpus_of(labels),
        exit_code=state.get("ExitCode") if status not in STATUS else None,
        out_of_memory=bool(state.get("OOMKilled")),
        altered=docker_drift.differences(
            labels.get(LABEL_ASKED), inspected, {**USUAL, "NetworkMode": network}
        ),
    )


def _labels(workload: Workload, node: str, host_ports: Mapping[str, int]) -> dict[str, str]:
    ports = ",".join(
        f"{endpoint.name}={endpoint.container}:{endpoint.host_port}{_elsewhere(endpoint)}"
        for endpoint in sorted(endpoints_of(workload, host_ports), key=lambda one: one.name)
    )
    ours = ownership_labels(node, workload.instance, workload.spec_hash)
    return {
        **workload.labels,
        LABEL_PORTS: ports,
        LABEL_GPUS: _gpus_label(workload.limits),
        LABEL_DIGEST: workload.image.digest,
        **ours,
    }


def _address(port: Port) -> str:
    """Docker publishes on every address of the host what it can't read as one."""
    if port.address is None:
        return LOOPBACK
    try:
        if not ipaddress.ip_address(port.address).is_unspecified:
            return port.address
    except ValueError:
        pass
    message = f"the port {port.name} is for one address, and {port.address!r:.80} is none"
    raise EngineFailure(FailureReason.CREATE_REFUSED, message)


def _elsewhere(endpoint: Endpoint) -> str:
    return "" if endpoint.host_ip == LOOPBACK else f"@{endpoint.host_ip}"


def _gpus_label(limits: Limits) -> str:
    return f"{limits.gpu_vendor}={','.join(limits.gpu_uuids)}" if limits.gpu_uuids else ""


def gpus_of(labels: Mapping[str, str]) -> dict[str, Any]:
    """Of a container that an earlier agent made, nothing is known."""
    vendor, _, uuids = labels.get(LABEL_GPUS, "").partition("=")
    if vendor not in {"nvidia", "amd"}:
        return {}
    return {"gpu_vendor": vendor, "gpu_uuids": tuple(uuids.split(","))}


def endpoints_in(labels: Mapping[str, str]) -> tuple[Endpoint, ...]:
    return tuple(_parsed_endpoints(labels))


def _parsed_endpoints(labels: Mapping[str, str]) -> Iterable[Endpoint]:
    for entry in labels.get(LABEL_PORTS, "").split(","):
        name, _, where = entry.partition("=")
        container, colon, there = where.partition(":")
        host, _, address = there.partition("@")
        if colon and container.isdecimal() and host.isdecimal():
            yield Endpoint(
                name=name,
                container=int(container),
                host_ip=address or LOOPBACK,
                host_port=int(host),
            )


def _limits(limits: Limits) -> dict[str, Any]:
    config: dict[str, Any] = {"PidsLimit": limits.pids, "ShmSize": limits.shm_mib * MIB}
    if limits.cpu_millis is not None:
        config["NanoCpus"] = limits.cpu_millis * 1_000_000
    if limits.memory_mib is not None:
        # The same figure for both means: no swap on top.
        config["Memory"] = config["MemorySwap"] = limits.memory_mib * MIB
    return config


def failure_of(status: int, message: str, doing: str) -> EngineFailure:
    """Docker's own words as one of our reasons. `doing`: pull, create, start or anything else."""
    text = message.lower()
    if any(word in text for word in _DISK_FULL):
        return EngineFailure(FailureReason.DISK_FULL, first_line(message), transient=True)
    for words, reason in _WORDS.get(doing, ()):
        if any(word in text for word in words):
            taken = _ADDRESS.search(message) if reason is FailureReason.PORT_IN_USE else None
            said = f"port {taken[1]} of the host is taken" if taken else first_line(message)
            return EngineFailure(reason, said)
    if doing == "pull":
        reason = FailureReason.IMAGE_PULL_FAILED
        if status == 404:
            reason = FailureReason.IMAGE_NOT_FOUND
        return EngineFailure(reason, first_line(message), transient=status != 404)
    if status >= 500 and doing not in {"create", "start"}:
        return EngineFailure(FailureReason.ENGINE_UNAVAILABLE, first_line(message), transient=True)
    return EngineFailure(
        FailureReason.CREATE_REFUSED, first_line(message), transient=status == 409
    )


def first_line(message: str, chars_max: int = 500) -> str:
    """What a registry or an image can put into Docker's words does nothing to a terminal."""
    line = message.strip().split("\n", 1)[0][:chars_max]
    return "".join(c if c.isprintable() else "?" for c in line)


_DISK_FULL = ("no space left on device", "disk quota exceeded")
_GPU = ("could not select device driver", "nvidia-container-cli", "unresolvable cdi devices",
        "gathering device information", "no such device")  # fmt: skip
_ADDRESS = re.compile(r"\b(?:\d{1,3}\.){3}\d{1,3}:(\d{1,5})\b")
_PORT = ("port is already allocated", "address already in use")
_COMMAND = ("executable file not found", "no such file or directory: unknown", "exec format error",
            "no command specified", "permission denied: unknown")  # fmt: skip
_MISSING = ("manifest unknown", "not found", "repository does not exist", "name unknown",
            "pull access denied")  # fmt: skip
_WORDS: dict[str, tuple[tuple[tuple[str, ...], FailureReason], ...]] = {
    "pull": ((_MISSING, FailureReason.IMAGE_NOT_FOUND),),
    "create": (
        (("no such image",), FailureReason.IMAGE_NOT_FOUND),
        (_COMMAND, FailureReason.COMMAND_NOT_FOUND),
        (_GPU, FailureReason.GPU_UNAVAILABLE),
    ),
    "start": (
        (_PORT, FailureReason.PORT_IN_USE),
        (_GPU, FailureReason.GPU_UNAVAILABLE),
        (_COMMAND, FailureReason.COMMAND_NOT_FOUND),
    ),
}
