"""A workload as Docker's create request. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

from node_agent.engines.base import (
    LOOPBACK,
    EngineFailure,
    endpoints_of,
    ownership_labels,
    unit_name,
)
from node_agent.units import Unit
from node_agent.wire import (
    LABEL_INSTANCE,
    LABEL_NODE,
    LABEL_SPEC_HASH,
    Endpoint,
    FailureReason,
    Limits,
    Workload,
)

LABEL_PORTS = "dev.gpuaas.ports"
"""`name=container:host,…`, always set: a container inherits its image's labels, and an image must
not say where its instance can be reached."""
LABEL_DIGEST = "dev.gpuaas.image-digest"
MIB = 1024 * 1024

CAPABILITIES = ("CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "NET_BIND_SERVICE", "SETGID",
                "SETUID")  # fmt: skip
"""What an ordinary image needs to fix its files' owners, give up root and listen on port 80.

Of Docker's own defaults left out: NET_RAW (spoofing on the bridge), MKNOD, SYS_CHROOT, SETPCAP,
SETFCAP and AUDIT_WRITE.
"""

VOLUMES_MAX = 64
LOG_OPTIONS = {"max-size": "10m", "max-file": "3"}

_STATUS = {"created": "created", "running": "running", "restarting": "running", "paused": "paused"}


def create_request(
    workload: Workload,
    node: str,
    network: str,
    host_ports: Mapping[str, int],
    volumes: Mapping[str, str],
    amd_devices: tuple[str, ...],
) -> dict[str, Any]:
    """The body of `POST /containers/create`. `volumes` maps paths in the image to volume names."""
    request: dict[str, Any] = {
        "Image": workload.image.reference,
        "Env": [f"{name}={value}" for name, value in sorted(_environment(workload).items())],
        "Labels": _labels(workload, node, host_ports),
        "ExposedPorts": {f"{port.container}/tcp": {} for port in workload.ports},
        "HostConfig": {
            "NetworkMode": network,
            "PortBindings": {
                f"{port.container}/tcp": [
                    {"HostIp": LOOPBACK, "HostPort": str(host_ports[port.name])}
                ]
                for port in workload.ports
            },
            "Mounts": [
                {"Type": "volume", "Source": name, "Target": path}
                for path, name in sorted(volumes.items())
            ],
            "RestartPolicy": {"Name": "no"},
            "Init": True,
            "SecurityOpt": ["no-new-privileges"],
            "CapDrop": ["ALL"],
            "CapAdd": list(CAPABILITIES),
            "LogConfig": {"Type": "json-file", "Config": dict(LOG_OPTIONS)},
            **_limits(workload.limits, amd_devices),
        },
    }
    if workload.command:
        # It replaces the entrypoint too, on every engine: what the manifest says is what runs.
        request["Entrypoint"] = list(workload.command)
        request["Cmd"] = []
    return request


def _environment(workload: Workload) -> dict[str, str]:
    """NVIDIA's runtime, where it is Docker's default, hands out the GPUs that this variable names.

    So it is always set, against what manifest or image say; `void` gives none.
    """
    limits = workload.limits
    nvidia = limits.gpu_uuids if limits.gpu_vendor == "nvidia" else ()
    return {**workload.env, "NVIDIA_VISIBLE_DEVICES": ",".join(nvidia) or "void"}


def volume_name(node: str, instance: str, path: str) -> str:
    """One volume per path the image declares: an instance's data outlives a replacement."""
    digest = hashlib.sha256(f"{node}\0{instance}\0{path}".encode()).hexdigest()
    return unit_name(instance, f"sha256:{digest}")


def unit_from_listing(item: Mapping[str, Any], state: Mapping[str, Any]) -> Unit:
    """A unit from an entry of `GET /containers/json` and the `State` of the inspected container."""
    labels = item.get("Labels") or {}
    status = str(state.get("Status", ""))
    return Unit(
        unit_id=item["Id"],
        name=(item.get("Names") or [item["Id"]])[0].lstrip("/"),
        engine="docker",
        instance=labels[LABEL_INSTANCE],
        node=labels[LABEL_NODE],
        spec_hash=labels.get(LABEL_SPEC_HASH, ""),
        status=_STATUS.get(status, "exited"),  # type: ignore[arg-type]
        created_at_ms=int(item.get("Created", 0)) * 1_000,
        image_digest=labels.get(LABEL_DIGEST),
        endpoints=_endpoints(labels),
        exit_code=state.get("ExitCode") if status not in _STATUS else None,
        out_of_memory=bool(state.get("OOMKilled")),
    )


def _labels(workload: Workload, node: str, host_ports: Mapping[str, int]) -> dict[str, str]:
    ports = ",".join(
        f"{endpoint.name}={endpoint.container}:{endpoint.host_port}"
        for endpoint in sorted(endpoints_of(workload, host_ports), key=lambda one: one.name)
    )
    ours = ownership_labels(node, workload.instance, workload.spec_hash)
    return {
        **workload.labels,
        LABEL_PORTS: ports,
        LABEL_DIGEST: workload.image.digest,
        **ours,
    }


def _endpoints(labels: Mapping[str, str]) -> tuple[Endpoint, ...]:
    return tuple(_parsed_endpoints(labels))


def _parsed_endpoints(labels: Mapping[str, str]) -> Iterable[Endpoint]:
    for entry in labels.get(LABEL_PORTS, "").split(","):
        name, _, where = entry.partition("=")
        container, colon, host = where.partition(":")
        if colon and container.isdecimal() and host.isdecimal():
            yield Endpoint(
                name=name,
                container=int(container),
                host_ip=LOOPBACK,
                host_port=int(host),
            )


def _limits(limits: Limits, amd_devices: tuple[str, ...]) -> dict[str, Any]:
    config: dict[str, Any] = {"PidsLimit": limits.pids, "ShmSize": limits.shm_mib * MIB}
    if limits.cpu_millis is not None:
        config["NanoCpus"] = limits.cpu_millis * 1_000_000
    if limits.memory_mib is not None:
        # The same figure for both means: no swap on top.
        config["Memory"] = config["MemorySwap"] = limits.memory_mib * MIB
    if limits.gpu_uuids and limits.gpu_vendor == "nvidia":
        request = {"DeviceIDs": list(limits.gpu_uuids), "Capabilities": [["gpu"]]}
        config["DeviceRequests"] = [request]
    if limits.gpu_uuids and limits.gpu_vendor == "amd":
        config["Devices"] = [
            {"PathOnHost": path, "PathInContainer": path, "CgroupPermissions": "rwm"}
            for path in amd_devices
        ]
        config["GroupAdd"] = ["video"]
    return config


def failure_of(status: int, message: str, doing: str) -> EngineFailure:
    """Docker's own words as one of our reasons. `doing`: pull, create, start or anything else."""
    text = message.lower()
    for words, reason in _WORDS.get(doing, ()):
        if any(word in text for word in words):
            return EngineFailure(reason, _first_line(message))
    if doing == "pull":
        reason = FailureReason.IMAGE_PULL_FAILED
        if status == 404:
            reason = FailureReason.IMAGE_NOT_FOUND
        return EngineFailure(reason, _first_line(message), transient=status != 404)
    if status >= 500 and doing not in {"create", "start"}:
        return EngineFailure(FailureReason.ENGINE_UNAVAILABLE, _first_line(message), transient=True)
    return EngineFailure(
        FailureReason.CREATE_REFUSED, _first_line(message), transient=status == 409
    )


def _first_line(message: str) -> str:
    """What a registry or an image can put into Docker's words does nothing to a terminal."""
    line = message.strip().split("\n", 1)[0][:500]
    return "".join(c if c.isprintable() else "?" for c in line)


_GPU = ("could not select device driver", "nvidia-container-cli", "unresolvable cdi devices",
        "gathering device information", "no such device")  # fmt: skip
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
