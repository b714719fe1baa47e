"""Launch parameters as limits that the kernel holds a container to, not as figures Docker shows."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import docker
import pytest

from node_agent.engines.base import EngineFailure
from node_agent.engines.docker import DockerEngine
from node_agent.inventory import HostPaths
from node_agent.units import Unit
from node_agent.wire import FailureReason, Image, Limits, Port, Workload

INSTANCE = "acme/research/web"
BUSYBOX = "/bin/busybox"


@dataclass
class Bench:
    engine: DockerEngine
    client: docker.APIClient
    image: Image

    def create(self, *command: str, limits: Limits, port: int = 0) -> Unit:
        ports = (Port(name="http", container=8080, host=port),) if port else ()
        workload = Workload(
            instance=INSTANCE, engine="docker", image=self.image, command=command, limits=limits,
            ports=ports,
        )  # fmt: skip
        self.engine.pull(self.image, threading.Event())
        self.engine.create(workload, {"http": port} if port else {})
        return self.unit()

    def unit(self) -> Unit:
        (unit,) = self.engine.units(INSTANCE)
        return unit

    def said(self, *command: str, limits: Limits) -> list[str]:
        unit = self.create(*command, limits=limits)
        self.engine.start(unit)
        eventually(lambda: self.unit().status == "exited")
        return str(self.client.logs(unit.unit_id, stderr=False).decode()).split()


@pytest.fixture
def bench(docker_host: str, demo_image: Image, tmp_path: Path) -> Iterator[Bench]:
    client = docker.APIClient(base_url=docker_host)
    paths = HostPaths(nvidia=tmp_path / "nvidia", kfd=tmp_path / "kfd", cdi=())
    engine = DockerEngine(f"n-{uuid.uuid4().hex[:8]}", docker_host, paths)
    made = Bench(engine, client, demo_image)
    yield made
    for unit in engine.units():
        engine.remove(unit)
    engine.sweep(INSTANCE)
    engine.close()
    client.close()


def eventually(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, "did not come true"
        time.sleep(0.1)


CPU = "/sys/fs/cgroup/cpu"
V2 = Path("/sys/fs/cgroup/cgroup.controllers").exists()


@pytest.mark.parametrize("cpu_millis", [10, 250, 1_500])
def test_a_share_of_the_cpu_is_a_quota_of_the_kernel(bench: Bench, cpu_millis: int) -> None:
    files = (
        ("/sys/fs/cgroup/cpu.max",)
        if V2
        else (f"{CPU}/cpu.cfs_quota_us", f"{CPU}/cpu.cfs_period_us")
    )
    quota, period = bench.said(BUSYBOX, "cat", *files, limits=Limits(cpu_millis=cpu_millis))
    assert int(quota) * 1_000 == int(period) * cpu_millis


def test_memory_is_a_limit_of_the_kernel_without_swap_on_top(bench: Bench) -> None:
    names = ("memory.max",) if V2 else ("memory/memory.limit_in_bytes",)
    files = [f"/sys/fs/cgroup/{name}" for name in names]
    assert bench.said(BUSYBOX, "cat", *files, limits=Limits(memory_mib=48)) == [
        str(48 * 1024 * 1024)
    ]


def test_more_memory_than_that_is_the_end(bench: Bench) -> None:
    """/dev/shm counts as memory too, however large it may get."""
    fill = ("dd", "if=/dev/zero", "of=/dev/shm/x", "bs=1M", "count=64")
    bench.said(BUSYBOX, *fill, limits=Limits(memory_mib=16, shm_mib=128))
    assert (bench.unit().out_of_memory, bench.unit().exit_code) == (True, 137)


def test_more_processes_than_that_do_not_start(bench: Bench) -> None:
    loop = "i=0; while [ $i -lt 40 ]; do /bin/busybox sleep 60 & i=$((i+1)); done; echo all"
    said = bench.said(BUSYBOX, "sh", "-c", loop, limits=Limits(pids=16))
    assert "all" not in said


def test_the_least_that_is_taken(bench: Bench) -> None:
    bench.create(BUSYBOX, "true", limits=Limits(cpu_millis=10, memory_mib=6))


def test_more_cores_than_the_host_has_are_refused(bench: Bench) -> None:
    with pytest.raises(EngineFailure) as refused:
        bench.create(BUSYBOX, "true", limits=Limits(cpu_millis=64_000_000))
    assert refused.value.reason is FailureReason.CREATE_REFUSED
    assert "CPUs" in refused.value.message


def test_a_gpu_that_the_host_does_not_have(bench: Bench) -> None:
    limits = Limits(gpu_vendor="nvidia", gpu_uuids=("GPU-1",))
    with pytest.raises(EngineFailure) as refused:
        bench.create(BUSYBOX, "true", limits=limits)
    assert refused.value.reason is FailureReason.GPU_UNAVAILABLE
    assert refused.value.message == "GPU-1: not seen on this host; none is"
    assert bench.engine.units() == ()


def test_a_gpu_that_is_gone_by_the_time_it_starts(bench: Bench, tmp_path: Path) -> None:
    shown = tmp_path / "kfd" / "1"
    shown.mkdir(parents=True)
    (shown / "properties").write_text("simd_count 1\nunique_id 1\ndrm_render_minor 128\n")
    limits = Limits(gpu_vendor="amd", gpu_uuids=("GPU-0000000000000001",))
    unit = bench.create(BUSYBOX, "true", limits=limits)
    assert (unit.gpu_vendor, unit.gpu_uuids) == ("amd", ("GPU-0000000000000001",))
    (shown / "properties").unlink()
    with pytest.raises(EngineFailure) as refused:
        bench.engine.start(unit)
    assert refused.value.reason is FailureReason.GPU_UNAVAILABLE
    assert refused.value.message == "GPU-0000000000000001: not seen on this host; none is"
