"""What the agent says of its host, on hosts made of files."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from node_agent.engines.base import Engine, EngineFacts
from node_agent.engines.process import ProcessEngine
from node_agent.inventory import (
    HostPaths,
    amd_gpus,
    cdi_devices,
    gpu_host,
    nvidia_gpus,
    take_inventory,
)
from node_agent.main import make_engines
from tests.agent.cases import NODE
from tests.fakes.compose import FakeCompose
from tests.fakes.engine import FakeEngine

H200 = "GPU-5b3e8f1e-9f0a-4a53-8f0e-2c6c1d0a7b11"


def kfd_node(root: Path, number: int, unique_id: int, minor: int, simd: int = 304) -> None:
    node = root / str(number)
    (node / "mem_banks" / "0").mkdir(parents=True)
    (node / "name").write_text("gfx942\n")
    (node / "properties").write_text(
        f"simd_count {simd}\nunique_id {unique_id}\ndrm_render_minor {minor}\n"
    )
    (node / "mem_banks" / "0" / "properties").write_text(
        f"heap_type 1\nsize_in_bytes {192 * 1024**3}\n"
    )


def test_cdi_devices_from_json_and_yaml_and_nothing_from_a_broken_one(tmp_path: Path) -> None:
    spec = {"kind": "nvidia.com/gpu", "devices": [{"name": H200}, {"name": "all"}]}
    (tmp_path / "nvidia.json").write_text(json.dumps(spec))
    (tmp_path / "amd.yaml").write_text("kind: amd.com/gpu\ndevices: [{name: '0'}]\n")
    (tmp_path / "broken.yaml").write_text("kind: [")
    found = cdi_devices((tmp_path, tmp_path / "missing"))
    assert found == ("amd.com/gpu=0", f"nvidia.com/gpu={H200}", "nvidia.com/gpu=all")


def test_nvidia_gpus_from_the_kernel_driver(tmp_path: Path) -> None:
    (tmp_path / "0000:19:00.0").mkdir()
    (tmp_path / "0000:19:00.0" / "information").write_text(
        f"Model: \t\t NVIDIA H200\nIRQ:   \t\t 154\nGPU UUID: \t {H200}\n"
    )
    (tmp_path / "0000:1a:00.0").mkdir()
    (tmp_path / "0000:1a:00.0" / "information").write_text("GPU UUID: GPU-????????-????\n")
    (gpu,) = nvidia_gpus(tmp_path)
    assert (gpu.uuid, gpu.model, gpu.vendor) == (H200, "NVIDIA H200", "nvidia")


def test_amd_gpus_and_the_device_files_of_exactly_one(tmp_path: Path) -> None:
    kfd_node(tmp_path, 0, 0, 0, simd=0)
    kfd_node(tmp_path, 1, 0x1234, 128)
    kfd_node(tmp_path, 2, 0xABCD, 136)
    assert [(f.gpu.uuid, f.gpu.memory_mib) for f in amd_gpus(tmp_path)] == [
        ("GPU-0000000000001234", 196_608),
        ("GPU-000000000000abcd", 196_608),
    ]
    seen = gpu_host("amd", EngineFacts(), HostPaths(kfd=tmp_path, dev=tmp_path / "dev"))
    assert seen.files["GPU-000000000000abcd"] == ("/dev/kfd", "/dev/dri/renderD136")
    assert seen.uuids == {"GPU-0000000000001234", "GPU-000000000000abcd"}


def test_an_engine_that_does_not_answer_is_listed_with_why(tmp_path: Path) -> None:
    away = FakeEngine(NODE, set(), away=True)
    here = ProcessEngine(NODE, tmp_path)
    empty = HostPaths(cdi=(), nvidia=tmp_path / "x", kfd=tmp_path / "y")
    found = take_inventory([away, here], tmp_path, empty)
    assert found.engines == ("process",)
    assert found.engine_errors == {"docker": "no answer"}
    assert found.memory_mib > 0
    assert found.cpu_count > 0


def saying(engine: Engine, facts: EngineFacts, monkeypatch: pytest.MonkeyPatch) -> Engine:
    monkeypatch.setattr(engine, "facts", lambda: facts)
    return engine


def test_what_docker_and_compose_say_of_themselves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = HostPaths(cdi=(), nvidia=tmp_path / "x", kfd=tmp_path / "y")
    alone = EngineFacts("27.1", runtimes=("runc",))
    docker = saying(FakeEngine(NODE, set()), alone, monkeypatch)
    both = EngineFacts("27.1", "2.40.3", runtimes=("runc",))
    compose = saying(FakeCompose(NODE, set()), both, monkeypatch)
    for engines in ([compose, docker], [docker, compose], [compose]):
        found = take_inventory(engines, tmp_path, empty)
        assert (found.docker_version, found.compose_version) == ("27.1", "2.40.3")
        assert found.runtimes == ("runc",)
        assert found.engines == tuple(engine.name for engine in engines)
    assert take_inventory([docker], tmp_path, empty).compose_version is None


def test_without_compose_the_node_goes_on_and_says_what_is_missing(tmp_path: Path) -> None:
    empty = HostPaths(cdi=(), nvidia=tmp_path / "x", kfd=tmp_path / "y")
    nowhere = tmp_path / "docker-compose"
    names = ("compose", "process")
    made = make_engines(NODE, tmp_path, names, compose_program=nowhere)
    assert [engine.name for engine in made.values()] == [*names]
    found = take_inventory([*made.values()], tmp_path, empty)
    assert found.engines == ("process",)
    assert found.engine_errors == {
        "compose": "Compose 2.20 or later is needed; docker-compose: there is no such program; "
        "install Docker's docker-compose-plugin, or name the program: --compose-program",
    }


class Library:
    """Stands in for NVIDIA's: `lost` GPUs are counted, and do not answer."""

    class NVMLError(Exception):
        pass

    def __init__(self, *uuids: str, lost: int = 0, away: bool = False) -> None:
        self._uuids = uuids
        self._lost = lost
        self._away = away

    def nvmlInit(self) -> None:
        if self._away:
            raise self.NVMLError

    def nvmlShutdown(self) -> None:
        return

    def nvmlDeviceGetCount(self) -> int:
        return len(self._uuids) + self._lost

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        if index >= len(self._uuids):
            raise self.NVMLError
        return index

    def nvmlDeviceGetUUID(self, handle: int) -> str:
        return self._uuids[handle]

    def nvmlDeviceGetName(self, handle: int) -> str:
        return "NVIDIA H200"

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> SimpleNamespace:
        return SimpleNamespace(total=143_771 * 1024 * 1024)


def test_a_gpu_that_fell_off_its_bus_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel driver goes on listing it; the library's word counts where it answers at all."""
    (tmp_path / "0000:19:00.0").mkdir()
    (tmp_path / "0000:19:00.0" / "information").write_text(f"GPU UUID: {H200}\n")
    paths = HostPaths(nvidia=tmp_path)
    for library, there in (
        (Library(H200, lost=1), {H200}),
        (Library("GPU-2", lost=1), {"GPU-2"}),
        (Library(lost=1), set()),
        (Library(H200, away=True), {H200}),
    ):
        monkeypatch.setitem(sys.modules, "pynvml", library)
        assert gpu_host("nvidia", EngineFacts(), paths).uuids == there
