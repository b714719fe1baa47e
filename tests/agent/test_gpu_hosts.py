"""Which GPUs a container gets on which host: inventories in, the whole create request out."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest

from node_agent.engines.base import EngineFacts, EngineFailure
from node_agent.engines.docker_api import facts_of
from node_agent.engines.docker_spec import create_request
from node_agent.engines.gpus import NO_GPUS, GpuHost, grant
from node_agent.inventory import HostPaths, cdi_devices, gpu_host
from node_agent.wire import FailureReason, Limits
from tests.agent.cases import workload

RECORDED = Path(__file__).parent / "recorded"
H200 = ("GPU-0c1d2e3f-4a5b-4c6d-8e7f-9a0b1c2d3e4f", "GPU-5b3e8f1e-9f0a-4a53-8f0e-2c6c1d0a7b11")
MI300X = ("GPU-21d71f2f3c4a8f15", "GPU-9b6c0f5e11d2a7e4")
HOSTS = sorted(path.name for path in RECORDED.iterdir() if (path / "docker-info.json").exists())


def vendor_of(host: str) -> Literal["nvidia", "amd"]:
    return "amd" if host.startswith("amd") else "nvidia"


def wanted_on(host: str) -> tuple[str, ...]:
    return MI300X if host.startswith("amd") else H200


def docker_of(host: str) -> EngineFacts:
    return facts_of(json.loads((RECORDED / host / "docker-info.json").read_text()))


def seen_on(host: str) -> GpuHost:
    folder = RECORDED / host
    paths = HostPaths(
        cdi=(folder / "cdi",), nvidia=folder / "nvidia", kfd=folder / "kfd", dev=folder / "dev"
    )
    found = gpu_host(vendor_of(host), docker_of(host), paths)
    groups = folder / "device-groups.txt"
    if not groups.exists():
        return found
    owners = dict(line.split() for line in groups.read_text().splitlines())
    files = {path for every in found.files.values() for path in every}
    return replace(found, groups=tuple(sorted({int(owners[path]) for path in files})))


@pytest.fixture(params=HOSTS)
def host(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def asked(host: str, seen: GpuHost, uuids: tuple[str, ...]) -> dict[str, Any]:
    limits = Limits(
        cpu_millis=8_000, memory_mib=65_536, gpu_vendor=vendor_of(host), gpu_uuids=uuids
    )
    what = workload(engine="docker", limits=limits)
    return create_request(what, "n1", "gpuaas-n1", {"http": 20_001}, {}, grant(limits, seen))


@pytest.mark.parametrize("host", [host for host in HOSTS if host != "no-gpu"])
def test_the_whole_request(host: str) -> None:
    """Without its labels, which say nothing of GPUs that Docker reads."""
    request = asked(host, seen_on(host), wanted_on(host))
    del request["Labels"]
    golden = RECORDED / host / "request.json"
    assert request == json.loads(golden.read_text())


def test_a_gpu_that_the_host_does_not_have_is_named(host: str) -> None:
    seen = seen_on(host)
    with pytest.raises(EngineFailure) as refused:
        asked(host, seen, (*wanted_on(host), "GPU-gone"))
    assert refused.value.reason is FailureReason.GPU_UNAVAILABLE
    assert not refused.value.transient
    if host == "no-gpu":
        missing = ", ".join((*H200, "GPU-gone"))
        assert refused.value.message == f"{missing}: not seen on this host; none is"
    else:
        vendor = {"nvidia": "NVIDIA", "amd": "AMD"}[vendor_of(host)]
        assert refused.value.message == (
            f"GPU-gone: not seen on this host; 2 other {vendor} GPUs are"
        )


def test_no_gpus_are_asked_for_where_none_are_wanted(host: str) -> None:
    assert grant(Limits(), seen_on(host)) is NO_GPUS
    request = asked(host, seen_on(host), ())
    assert not {"DeviceRequests", "Devices", "GroupAdd"} & set(request["HostConfig"])
    assert request["Env"] == ["AMD_VISIBLE_DEVICES=none", "NVIDIA_VISIBLE_DEVICES=void"]


def test_one_gpu_is_one_gpu(host: str) -> None:
    if host == "no-gpu":
        assert seen_on(host).uuids == frozenset()
        return
    uuid, other = wanted_on(host)
    request = json.dumps(asked(host, seen_on(host), (uuid,)))
    seen = seen_on(host)
    names_of_other = {other, seen.cdi.get(other, other), *seen.files.get(other, ())[1:]}
    assert not [name for name in names_of_other if f'"{name}"' in request]


def test_which_way_is_taken() -> None:
    ways = {}
    for host in HOSTS:
        path = RECORDED / host / "request.json"
        config = json.loads(path.read_text())["HostConfig"] if path.exists() else {}
        (device_request,) = config.get("DeviceRequests", [{}])
        ways[host] = device_request.get("Driver", "files" if "Devices" in config else "")
    assert ways == {
        "amd-mi300x": "files",
        "amd-mi300x-cdi": "cdi",
        "no-gpu": "",
        "nvidia-h200-cdi": "cdi",
        # Numbers name another GPU after the next boot, so they are no way.
        "nvidia-h200-cdi-numbered": "nvidia",
        "nvidia-h200-hook": "",
        "nvidia-h200-runtime": "nvidia",
    }


def test_the_inventory_lists_cdi_devices_as_they_are() -> None:
    assert cdi_devices((RECORDED / "amd-mi300x-cdi" / "cdi",)) == (
        "amd.com/gpu=0", "amd.com/gpu=1", "amd.com/gpu=all",
    )  # fmt: skip


def test_cdi_files_that_docker_does_not_know_are_no_way() -> None:
    """The files are there, and this Docker lists other devices: it would not resolve ours."""
    folder = RECORDED / "nvidia-h200-cdi"
    paths = HostPaths(cdi=(folder / "cdi",), nvidia=folder / "nvidia")
    docker = replace(docker_of("nvidia-h200-cdi"), cdi_devices=("nvidia.com/gpu=0",))
    assert gpu_host("nvidia", docker, paths).cdi == {}


def test_groups_are_those_of_the_device_files(tmp_path: Path) -> None:
    (tmp_path / "dri").mkdir()
    for name in ("kfd", "dri/renderD128"):
        (tmp_path / name).write_text("")
    paths = HostPaths(kfd=RECORDED / "amd-mi300x" / "kfd", dev=tmp_path)
    seen = gpu_host("amd", EngineFacts(), paths)
    assert seen.groups == tuple({(tmp_path / "kfd").stat().st_gid} - {0})
