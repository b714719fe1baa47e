"""What this host offers. Reads, never changes; what can't be read is left out, never guessed."""

from __future__ import annotations

import importlib
import json
import os
import platform
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import yaml

from node_agent.engines.base import Engine, EngineFacts, EngineFailure
from node_agent.engines.gpus import GpuHost
from node_agent.wire import Gpu, Inventory

MIB = 1024 * 1024
_SPEC_BYTES_MAX = 4 * MIB
_KFD = "/dev/kfd"
_RENDER = "/dev/dri/renderD"


@dataclass(frozen=True)
class HostPaths:
    """Where to look, so that a test can show another host."""

    cdi: tuple[Path, ...] = (Path("/etc/cdi"), Path("/var/run/cdi"))
    nvidia: Path = Path("/proc/driver/nvidia/gpus")
    kfd: Path = Path("/sys/class/kfd/kfd/topology/nodes")
    dev: Path = Path("/dev")
    meminfo: Path = Path("/proc/meminfo")


def take_inventory(
    engines: Sequence[Engine], state_dir: Path, paths: HostPaths | None = None
) -> Inventory:
    """Asks every engine and looks at the host. An engine without answer is listed with why."""
    where = paths or HostPaths()
    answered: list[str] = []
    errors: dict[str, str] = {}
    docker = EngineFacts()
    for engine in engines:
        try:
            facts = engine.facts()
        except EngineFailure as failure:
            errors[engine.name] = failure.message
            continue
        answered.append(engine.name)
        if engine.name in {"docker", "compose"}:
            docker = replace(facts, compose_version=facts.compose_version or docker.compose_version)
    return Inventory(
        engines=tuple(answered),
        engine_errors=errors,
        docker_version=docker.version,
        compose_version=docker.compose_version,
        runtimes=docker.runtimes,
        cdi_devices=cdi_devices(where.cdi),
        gpus=(*nvidia_gpus(where.nvidia), *(found.gpu for found in amd_gpus(where.kfd))),
        cpu_count=os.cpu_count() or 1,
        memory_mib=_memory_mib(where.meminfo),
        disk_free_mib=shutil.disk_usage(state_dir).free // MIB,
        architecture=platform.machine(),
        operating_system=_operating_system(),
    )


def cdi_devices(folders: Iterable[Path]) -> tuple[str, ...]:
    """Fully qualified device names (`nvidia.com/gpu=GPU-…`) from the CDI spec files."""
    return tuple(cdi_files(folders))


def cdi_files(folders: Iterable[Path]) -> dict[str, tuple[str, ...]]:
    """CDI device → the device files it brings by itself, sorted. What can't be read has none."""
    found: dict[str, tuple[str, ...]] = {}
    for folder in folders:
        for path in sorted((*folder.glob("*.json"), *folder.glob("*.yaml"))):
            document = _cdi_document(path)
            kind, devices = document.get("kind"), document.get("devices")
            for device in devices if isinstance(devices, list) else ():
                if isinstance(device, dict) and isinstance(device.get("name"), str):
                    found[f"{kind}={device['name']}"] = _cdi_nodes(device)
    return dict(sorted(found.items()))


def gpu_host(
    vendor: Literal["nvidia", "amd"], docker: EngineFacts, paths: HostPaths | None = None
) -> GpuHost:
    """What this host has of a vendor's GPUs, and the ways in which `docker` can hand them out."""
    where = paths or HostPaths()
    listed = cdi_files(where.cdi) if docker.cdi else {}
    if docker.cdi_devices:
        listed = {name: listed.get(name, ()) for name in docker.cdi_devices}
    if vendor == "nvidia":
        uuids = frozenset(gpu.uuid for gpu in nvidia_gpus(where.nvidia))
        names = {uuid: f"nvidia.com/gpu={uuid}" for uuid in uuids}
        return GpuHost(
            uuids=uuids,
            cdi={uuid: name for uuid, name in names.items() if name in listed},
            runtime="nvidia" in docker.runtimes,
        )
    here = {amd.gpu.uuid: amd.render_device for amd in amd_gpus(where.kfd)}
    # AMD's CDI devices are numbered: which GPU one is, its device file tells.
    named = {
        rendering[0]: name
        for name, files in listed.items()
        if name.startswith("amd.com/gpu=")
        and not name.endswith("=all")
        and len(rendering := [path for path in files if path.startswith(_RENDER)]) == 1
    }
    return GpuHost(
        uuids=frozenset(here),
        cdi={uuid: named[path] for uuid, path in here.items() if path in named},
        files={uuid: (_KFD, path) for uuid, path in here.items()},
        groups=_groups_of(where.dev, (_KFD, *here.values())),
    )


def nvidia_gpus(proc: Path) -> tuple[Gpu, ...]:
    """From the driver library when it is there, else from what the kernel driver shows."""
    found = _nvidia_from_library()
    return tuple(_nvidia_from_proc(proc)) if found is None else found


@dataclass(frozen=True)
class AmdGpu:
    gpu: Gpu
    render_device: str


def amd_gpus(topology: Path) -> tuple[AmdGpu, ...]:
    """GPUs of the KFD topology. The UUID is ROCm's: `GPU-` and the unique id in 16 hex digits."""
    found = []
    for node in sorted(topology.glob("*"), key=lambda path: path.name.zfill(8)):
        properties = _properties(node / "properties")
        unique_id, minor = properties.get("unique_id", 0), properties.get("drm_render_minor", 0)
        if not unique_id or not minor or not properties.get("simd_count", 0):
            continue
        gpu = Gpu(
            uuid=f"GPU-{unique_id:016x}",
            vendor="amd",
            model=_read(node / "name") or "AMD GPU",
            memory_mib=_amd_memory_mib(node),
        )
        found.append(AmdGpu(gpu, f"/dev/dri/renderD{minor}"))
    return tuple(found)


def _groups_of(dev: Path, files: Iterable[str]) -> tuple[int, ...]:
    """The groups that own these device files; root's says nothing, as anybody is let in or root."""
    found = set()
    for path in files:
        try:
            found.add((dev / path.removeprefix("/dev/")).stat().st_gid)
        except OSError:
            continue
    return tuple(sorted(found - {0}))


def _cdi_nodes(device: dict[str, Any]) -> tuple[str, ...]:
    edits = device.get("containerEdits")
    nodes = edits.get("deviceNodes") if isinstance(edits, dict) else None
    listed = [node for node in nodes if isinstance(node, dict)] if isinstance(nodes, list) else []
    return tuple(sorted(str(node.get("hostPath") or node.get("path")) for node in listed))


def _cdi_document(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _SPEC_BYTES_MAX:
            return {}
        text = path.read_text()
        document = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return document if isinstance(document, dict) else {}


def _nvidia_from_library() -> tuple[Gpu, ...] | None:
    """None where the library is not there or does not answer."""
    try:
        nvml: Any = importlib.import_module("pynvml")
    except ImportError:
        return None
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return None
    try:
        count = nvml.nvmlDeviceGetCount()
        found = [_nvidia_gpu(nvml, index) for index in range(count)]
        return tuple(gpu for gpu in found if gpu is not None)
    except nvml.NVMLError:
        return None
    finally:
        nvml.nvmlShutdown()


def _nvidia_gpu(nvml: Any, index: int) -> Gpu | None:
    """None for one that does not answer: a GPU that fell off its bus is counted all the same."""
    try:
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        return Gpu(
            uuid=_text(nvml.nvmlDeviceGetUUID(handle)),
            vendor="nvidia",
            model=_text(nvml.nvmlDeviceGetName(handle)),
            memory_mib=int(nvml.nvmlDeviceGetMemoryInfo(handle).total) // MIB,
        )
    except nvml.NVMLError:
        return None


def _nvidia_from_proc(proc: Path) -> Iterable[Gpu]:
    """The kernel driver shows model and UUID, but no memory size: 0 stands for not known."""
    for path in sorted(proc.glob("*/information")):
        lines = (_read(path) or "").splitlines()
        fields = {
            name.strip(): value.strip()
            for name, colon, value in (line.partition(":") for line in lines)
            if colon
        }
        uuid = fields.get("GPU UUID", "")
        if uuid.startswith("GPU-") and "?" not in uuid:
            model = fields.get("Model", "NVIDIA GPU")
            yield Gpu(uuid=uuid, vendor="nvidia", model=model, memory_mib=0)


def _amd_memory_mib(node: Path) -> int:
    banks = (_properties(path) for path in sorted(node.glob("mem_banks/*/properties")))
    # Heap types 1 and 2 are the GPU's own memory, CPU-visible or not.
    return sum(b.get("size_in_bytes", 0) for b in banks if b.get("heap_type") in {1, 2}) // MIB


def _properties(path: Path) -> dict[str, int]:
    words = (line.split() for line in (_read(path) or "").splitlines())
    return {word[0]: int(word[1]) for word in words if len(word) == 2 and word[1].isdigit()}


def _memory_mib(meminfo: Path) -> int:
    for line in (_read(meminfo) or "").splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) // 1024
    return 0


def _operating_system() -> str:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", platform.system())
    except OSError:
        return platform.system()


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
