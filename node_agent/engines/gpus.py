"""What this host has of GPUs, and how a container gets exactly those it was given. Pure.

Rules:
- GPUs are named by UUID, never by index: an index may be another GPU after the next boot.
- By CDI where Docker offers it and a CDI device is known for each of them: what a container got
  by CDI survives a reload of systemd. Else NVIDIA by a device request, AMD by its device files.
- No variable hands out more: what the vendors' runtimes read is always set, against image and
  manifest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from node_agent.engines.base import EngineFailure
from node_agent.wire import FailureReason, Limits

Vendor = Literal["nvidia", "amd"]
_NAMES = {"nvidia": "NVIDIA", "amd": "AMD"}
_NOTHING = {"NVIDIA_VISIBLE_DEVICES": "void", "AMD_VISIBLE_DEVICES": "none"}
_NO_MORE = {
    "NVIDIA_GDRCOPY": "disabled",
    "NVIDIA_GDS": "disabled",
    "NVIDIA_IMEX_CHANNELS": "void",
    "NVIDIA_MOFED": "disabled",
    "NVIDIA_NVSWITCH": "disabled",
}
"""What NVIDIA's runtime hands out to whom it gives a GPU, if asked: devices of the whole host."""


@dataclass(frozen=True)
class GpuHost:
    """One vendor's GPUs that this host has right now, and the ways to hand them out.

    `cdi`: UUID → the CDI device that is this GPU, of those that Docker resolves. `files`: UUID →
    device files, of AMD's. `groups`: the groups that own these files, as numbers, since an image
    need not know their names. `runtime`: Docker knows the vendor's runtime by name.
    """

    uuids: frozenset[str] = frozenset()
    cdi: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    groups: tuple[int, ...] = ()
    runtime: bool = False


@dataclass(frozen=True)
class GpuGrant:
    """What a container's request says about GPUs: parts of HostConfig, and variables."""

    host_config: Mapping[str, Any] = field(default_factory=dict)
    variables: Mapping[str, str] = field(default_factory=lambda: dict(_NOTHING))


NO_GPUS = GpuGrant()


def grant(limits: Limits, host: GpuHost) -> GpuGrant:
    """Raises EngineFailure GPU_UNAVAILABLE, naming each that the host does not have now."""
    if not limits.gpu_uuids or limits.gpu_vendor is None:
        return NO_GPUS
    require(limits.gpu_vendor, limits.gpu_uuids, host.uuids)
    uuids = list(limits.gpu_uuids)
    by_amd = {"GroupAdd": [str(group) for group in host.groups]} if host.groups else {}
    if all(uuid in host.cdi for uuid in uuids):
        names = [host.cdi[uuid] for uuid in uuids]
        return GpuGrant({"DeviceRequests": [{"Driver": "cdi", "DeviceIDs": names}], **by_amd})
    if limits.gpu_vendor == "amd":
        files = sorted({path for uuid in uuids for path in host.files[uuid]})
        devices = [
            {"PathOnHost": path, "PathInContainer": path, "CgroupPermissions": "rw"}
            for path in files
        ]
        return GpuGrant({"Devices": devices, **by_amd})
    request = {"DeviceIDs": uuids, "Capabilities": [["gpu"]]}
    if host.runtime:
        request = {"Driver": "nvidia", **request}
    visible = {**_NOTHING, **_NO_MORE, "NVIDIA_VISIBLE_DEVICES": ",".join(uuids)}
    return GpuGrant({"DeviceRequests": [request]}, visible)


def require(vendor: Vendor, wanted: tuple[str, ...], there: frozenset[str]) -> None:
    """Raises EngineFailure GPU_UNAVAILABLE when one of them is not there."""
    missing = [uuid for uuid in wanted if uuid not in there]
    if missing:
        seen = f"{len(there)} other {_NAMES[vendor]} GPUs are" if there else "none is"
        message = f"{', '.join(missing)}: not seen on this host; {seen}"
        raise EngineFailure(FailureReason.GPU_UNAVAILABLE, message)
