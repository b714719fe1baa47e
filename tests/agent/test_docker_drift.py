"""A container compared with what was asked for: Docker's many ways to say the same, and GPUs."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from node_agent.engines.docker_drift import differences, record
from node_agent.engines.docker_spec import CAPABILITIES, USUAL, create_request
from node_agent.engines.gpus import GpuGrant
from node_agent.wire import Limits
from tests.agent.cases import workload

NETWORK = "gpuaas-n1"
IMAGE = {"Env": ["PATH=/bin"], "Entrypoint": ["/start"], "Cmd": ["now"], "User": "1000"}
LIMITS = Limits(cpu_millis=500, memory_mib=512, pids=50, shm_mib=16)
GRANTS = {
    "none": GpuGrant(),
    "nvidia": GpuGrant(
        {"DeviceRequests": [{"DeviceIDs": ["GPU-1", "GPU-2"], "Capabilities": [["gpu"]]}]}
    ),
    "cdi": GpuGrant({"DeviceRequests": [{"Driver": "cdi", "DeviceIDs": ["nvidia.com/gpu=0"]}]}),
    "amd": GpuGrant(
        {
            "Devices": [
                {"PathOnHost": "/dev/kfd", "PathInContainer": "/dev/kfd",
                 "CgroupPermissions": "rwm"}
            ],
            "GroupAdd": ["109"],
        }
    ),
}  # fmt: skip


def request(grant: str = "none", **changes: Any) -> dict[str, Any]:
    volumes = {"/data": "volume-1"}
    what = workload(**{"limits": LIMITS, "env": {"TOKEN": "hunter2"}, **changes})
    return create_request(what, "n1", NETWORK, {"http": 20_001}, volumes, GRANTS[grant])


def made(asked: dict[str, Any]) -> dict[str, Any]:
    """What Docker says of it, with the fields that it adds and the lists that it makes null."""
    asked = copy.deepcopy(asked)
    host = asked.pop("HostConfig")
    own = bool(asked.get("Entrypoint"))
    return {
        "Config": {
            **IMAGE, "Hostname": "0a1b", "WorkingDir": "", "Volumes": {"/data": {}}, **asked,
            "Env": [*asked["Env"], *IMAGE["Env"]],
            "Entrypoint": asked["Entrypoint"] if own else IMAGE["Entrypoint"],
            "Cmd": None if own else IMAGE["Cmd"],
        },
        "HostConfig": {
            "Binds": None, "Memory": 0, "MemoryReservation": 0, "CpuQuota": 0, "CpusetCpus": "",
            "OomKillDisable": None, "Privileged": False, "IpcMode": "private", "PidMode": "",
            "CgroupnsMode": "private", "Runtime": "runc", "Ulimits": [], "Dns": [], "Devices": [],
            "MaskedPaths": ["/proc/acpi"], "GroupAdd": None, **host,
            "RestartPolicy": {"Name": "no", "MaximumRetryCount": 0},
        },
        "NetworkSettings": {"Networks": {NETWORK: {"EndpointID": "1"}}},
        "Mounts": [
            {"Type": "volume", "Name": one["Source"], "Source": "/var/lib/docker/…", "RW": True,
             "Destination": one["Target"]}
            for one in host.get("Mounts", ())
        ],
    }  # fmt: skip


def compared(asked: dict[str, Any], inspected: dict[str, Any]) -> tuple[str, ...]:
    return differences(record(asked, IMAGE), inspected, {**USUAL, "NetworkMode": NETWORK})


@pytest.mark.parametrize("grant", GRANTS)
@pytest.mark.parametrize("command", [(), ("serve",)])
def test_what_was_asked_for_is_as_asked_for(grant: str, command: tuple[str, ...]) -> None:
    asked = request(grant, command=command)
    assert compared(asked, made(asked)) == ()
    no_limits = request(grant, limits=Limits(), command=command)
    assert compared(no_limits, made(no_limits)) == ()


SAME: list[tuple[str, Any]] = [
    ("CapDrop", ["CAP_ALL"]),
    ("SecurityOpt", ["no-new-privileges:true"]),
    ("RestartPolicy", {"Name": ""}),
    ("CapAdd", [f"CAP_{name}" for name in reversed(CAPABILITIES)]),
    ("MemoryReservation", None),
    ("CpuQuota", -1),
    ("Links", []),
    ("IpcMode", "shareable"),
    ("UsernsMode", None),
]


@pytest.mark.parametrize(("key", "value"), SAME)
def test_another_way_to_say_the_same_is_no_difference(key: str, value: Any) -> None:
    inspected = made(request())
    inspected["HostConfig"][key] = value
    assert compared(request(), inspected) == ()


@pytest.mark.parametrize("told", ["", "a" * 64])
def test_a_network_by_its_id_is_the_network(told: str) -> None:
    """Docker tells the ID of the one that it is on once it was started."""
    inspected = made(request())
    inspected["HostConfig"]["NetworkMode"] = "a" * 64
    inspected["NetworkSettings"]["Networks"][NETWORK]["NetworkID"] = told
    assert compared(request(), inspected) == ()
    inspected["NetworkSettings"]["Networks"] = {"other": {"NetworkID": told}}
    assert compared(request(), inspected) == (
        f"networks changed: other added, {NETWORK} removed",
    )
    inspected["NetworkSettings"]["Networks"] = {NETWORK: {"NetworkID": "b" * 64}}
    assert compared(request(), inspected) == (f"networks changed: {'a' * 64} added",)


@pytest.mark.parametrize("grant", GRANTS)
def test_everything_of_the_host_that_is_asked_for_is_compared(grant: str) -> None:
    """Attempted: to add a setting to the request, and not to what is compared."""
    asked = request(grant)
    for key in asked["HostConfig"]:
        inspected = made(asked)
        inspected["HostConfig"][key] = None
        if key == "Mounts":
            inspected["Mounts"] = []
        if key in {"NetworkMode", "RestartPolicy"}:
            inspected["HostConfig"][key] = {"NetworkMode": "host"}.get(key, {"Name": "always"})
        assert compared(asked, inspected), key


def test_other_gpus_are_seen() -> None:
    inspected = made(request("nvidia"))
    inspected["HostConfig"]["DeviceRequests"] = [{"Count": -1, "Capabilities": [["gpu"]]}]
    assert compared(request("nvidia"), inspected) == (
        "GPUs changed: all added, GPU-1, GPU-2 removed",
    )
    inspected = made(request())
    inspected["HostConfig"]["DeviceRequests"] = GRANTS["cdi"].host_config["DeviceRequests"]
    assert compared(request(), inspected) == ("GPUs changed: nvidia.com/gpu=0 added",)
    inspected = made(request("amd"))
    inspected["HostConfig"]["Devices"][0]["PathOnHost"] = "/dev/dri/card0"
    assert compared(request("amd"), inspected) == ("devices changed: /dev/kfd",)


@pytest.mark.parametrize(
    ("size_bytes", "told"),
    [(2**30, "1 GiB"), (1536 * 2**20, "1536 MiB"), (2**20 + 2**10, "1025 KiB"),
     (1_000_000_001, "1000000001 bytes"), (0, "none")],
)  # fmt: skip
def test_sizes_are_told_in_whole_units(size_bytes: int, told: str) -> None:
    inspected = made(request())
    inspected["HostConfig"]["Memory"] = size_bytes
    assert f"memory limit changed from 512 MiB to {told}" in compared(request(), inspected)


def test_no_value_of_a_setting_is_in_the_record_or_in_what_is_told() -> None:
    asked = request(command=("serve", "--key=hunter3"))
    inspected = made(asked)
    inspected["Config"]["Env"] = [*asked["Env"][:-1], "TOKEN=hunter4", "PATH=hunter5"]
    inspected["Config"]["Entrypoint"] = ["hunter6"]
    told = str(compared(asked, inspected))
    assert "TOKEN" in told
    assert "entrypoint changed" in told
    assert "hunter" not in told + record(asked, IMAGE)


def test_names_that_somebody_chose_do_nothing_to_a_terminal() -> None:
    inspected = made(request())
    inspected["NetworkSettings"]["Networks"]["\x1b]0;owned\x07" + "x" * 500] = {}
    (line,) = compared(request(), inspected)
    assert line.isprintable()
    assert len(line) <= 200


UNREADABLE = [
    "",
    "nonsense",
    "[]",
    '{"Memory": "lots", "CapAdd": 7}',
    "[" * 100_000,
    f'{{"NanoCpus": {10**400}, "Memory": {10**400}}}',
]


@pytest.mark.parametrize("text", UNREADABLE, ids=range(len(UNREADABLE)))
def test_a_record_that_can_not_be_read_is_a_difference(text: str) -> None:
    told = differences(text, made(request()), {**USUAL, "NetworkMode": NETWORK})
    assert "image changed" in told


def test_without_a_record_only_what_every_container_of_ours_has_is_compared() -> None:
    usual = {**USUAL, "NetworkMode": NETWORK}
    inspected = made(request("nvidia"))
    inspected["HostConfig"]["Memory"] = 1
    assert differences(None, inspected, usual) == ()
    inspected["HostConfig"].update(Privileged=True, CapDrop=None)
    inspected["NetworkSettings"]["Networks"] = {"bridge": {}}
    inspected["HostConfig"]["NetworkMode"] = "default"
    assert differences(None, inspected, usual) == (
        "privileged mode changed from off to on",
        "dropped capabilities changed: ALL removed",
        f"networks changed: bridge added, {NETWORK} removed",
    )


def test_the_record_is_short_and_the_same_each_time() -> None:
    text = record(request("nvidia"), IMAGE)
    assert text == record(request("nvidia"), IMAGE)
    assert len(text) < 2_000
