"""What this host offers. Reads, never changes; what can't be read is left out, never guessed."""

from __future__ import annotations

import importlib
import json
import os
import platform
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from node_agent.engines.base import Engine, EngineFacts, EngineFailure
from node_agent.wire import Gpu, Inventory

MIB = 1024 * 1024
_SPEC_BYTES_MAX = 4 * MIB


@dataclass(frozen=True)
class HostPaths:
    """Where to look, so that a test can show another host."""

    cdi: tuple[Path, ...] = (Path("/etc/cdi"), Path("/var/run/cdi"))
    nvidia: Path = Path("/proc/driver/nvidia/gpus")
    kfd: Path = Path("/sys/class/kfd/kfd/topology/nodes")
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
        if engine.name == "docker":
            docker = facts
    return Inventory(
        engines=tuple(answered),
        engine_errors=errors,
        docker_version=docker.version,
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
    names: set[str] = set()
    for folder in folders:
        for path in sorted((*folder.glob("*.json"), *folder.glob("*.yaml"))):
            document = _cdi_document(path)
            kind, devices = document.get("kind"), document.get("devices")
            if isinstance(kind, str) and isinstance(devices, list):
                names.update(
                    f"{kind}={device['name']}"
                    for device in devices
                    if isinstance(device, dict) and isinstance(device.get("name"), str)
                )
    return tuple(sorted(names))


def nvidia_gpus(proc: Path) -> tuple[Gpu, ...]:
    """From the driver library when it is there, else from what the kernel driver shows."""
    return _nvidia_from_library() or tuple(_nvidia_from_proc(proc))


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


def amd_device_paths(uuids: Sequence[str], topology: Path | None = None) -> tuple[str, ...] | None:
    """The device files that give exactly these GPUs and no other; None when one is not here."""
    here = {found.gpu.uuid: found.render_device for found in amd_gpus(topology or HostPaths().kfd)}
    if any(uuid not in here for uuid in uuids):
        return None
    return ("/dev/kfd", *sorted(here[uuid] for uuid in uuids))


def _cdi_document(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _SPEC_BYTES_MAX:
            return {}
        text = path.read_text()
        document = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return document if isinstance(document, dict) else {}


def _nvidia_from_library() -> tuple[Gpu, ...]:
    try:
        nvml: Any = importlib.import_module("pynvml")
    except ImportError:
        return ()
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return ()
    try:
        handles = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]
        return tuple(
            Gpu(
                uuid=_text(nvml.nvmlDeviceGetUUID(handle)),
                vendor="nvidia",
                model=_text(nvml.nvmlDeviceGetName(handle)),
                memory_mib=int(nvml.nvmlDeviceGetMemoryInfo(handle).total) // MIB,
            )
            for handle in handles
        )
    except nvml.NVMLError:
        return ()
    finally:
        nvml.nvmlShutdown()


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
