"""Docker's words as our reasons, and a workload as Docker's request."""

from __future__ import annotations

import pytest

from node_agent.engines.base import EngineFailure, unit_name
from node_agent.engines.docker_spec import (
    LABEL_GPUS,
    ImageConfig,
    create_request,
    failure_of,
    gpus_of,
    unit_from_listing,
    volume_name,
)
from node_agent.engines.gpus import GpuHost, grant
from node_agent.wire import (
    LABEL_INSTANCE,
    LABEL_NODE,
    FailureReason,
    Limits,
    Packages,
    Port,
)
from tests.agent.cases import workload

WORDS = [
    ("pull", 404, "manifest unknown: manifest unknown", FailureReason.IMAGE_NOT_FOUND, False),
    ("pull", 500, "dial tcp: connection refused", FailureReason.IMAGE_PULL_FAILED, True),
    ("create", 404, "No such image: r/x@sha256:0", FailureReason.IMAGE_NOT_FOUND, False),
    ("create", 409, "Conflict. The container name is in use", FailureReason.CREATE_REFUSED, True),
    ("pull", 500, "write /var/lib/docker/tmp/x: no space left on device",
     FailureReason.DISK_FULL, True),
    ("create", 500, "mkdir /overlay2/x: no space left on device", FailureReason.DISK_FULL, True),
    ("start", 500, "mkdir /overlay2/x: disk quota exceeded", FailureReason.DISK_FULL, True),
    ("create", 400, "invalid mount", FailureReason.CREATE_REFUSED, False),
    ("start", 500, "Bind failed: port is already allocated", FailureReason.PORT_IN_USE, False),
    ("start", 500, "listen tcp4: bind: address already in use", FailureReason.PORT_IN_USE, False),
    ("start", 500, "could not select device driver \"\" with capabilities: [[gpu]]",
     FailureReason.GPU_UNAVAILABLE, False),
    ("start", 500, "nvidia-container-cli: device error: GPU-0: unknown device",
     FailureReason.GPU_UNAVAILABLE, False),
    ("start", 400, 'exec: "x": executable file not found in $PATH',
     FailureReason.COMMAND_NOT_FOUND, False),
    ("list", 500, "internal", FailureReason.ENGINE_UNAVAILABLE, True),
]  # fmt: skip


@pytest.mark.parametrize(("doing", "status", "words", "reason", "transient"), WORDS)
def test_words(doing: str, status: int, words: str, reason: FailureReason, transient: bool) -> None:
    failure = failure_of(status, words, doing)
    assert (failure.reason, failure.transient) == (reason, transient)
    assert failure.message == words


IMAGE = ImageConfig(command=("/start", "serve"), env={"PATH": "/opt/bin:/bin", "A": "image"})
PACKAGES = Packages(index_url="https://wheels.example/simple/", requirements=("numpy==2.1.0",))


@pytest.mark.parametrize(
    "words",
    [
        "driver failed programming external connectivity on endpoint gpuaas-a (0ab1): Bind for "
        "127.0.0.1:8080 failed: port is already allocated",
        "driver failed programming external connectivity on endpoint gpuaas-a (0ab1): Error "
        "starting userland proxy: listen tcp4 127.0.0.1:8080: bind: address already in use",
    ],
)
def test_a_taken_port_is_named(words: str) -> None:
    assert failure_of(500, words, "start").message == "port 8080 of the host is taken"


def test_with_packages_the_images_own_command_comes_after_them() -> None:
    what = workload(packages=PACKAGES, command=())
    request = create_request(what, "n1", "net", {"http": 1}, {}, image=IMAGE)
    shell, flag, _, name, _, *command = request["Entrypoint"]
    assert (shell, flag, name, command) == ("/bin/sh", "-c", "gpuaas-start", ["/start", "serve"])
    assert request["Cmd"] == []
    environment = dict(entry.split("=", 1) for entry in request["Env"])
    assert environment["PATH"] == "/tmp/gpuaas-packages/bin:/opt/bin:/bin"
    assert environment["PYTHONPATH"] == "/tmp/gpuaas-packages"
    assert "A" not in environment


def test_a_manifests_command_and_variables_come_before_the_images() -> None:
    what = workload(packages=PACKAGES, env={"PATH": "/app", "PYTHONPATH": "/lib"})
    request = create_request(what, "n1", "net", {"http": 1}, {}, image=IMAGE)
    assert request["Entrypoint"][5:] == ["serve"]
    environment = dict(entry.split("=", 1) for entry in request["Env"])
    assert environment["PATH"] == "/tmp/gpuaas-packages/bin:/app"
    assert environment["PYTHONPATH"] == "/tmp/gpuaas-packages:/lib"
    silent = create_request(workload(packages=PACKAGES), "n1", "net", {"http": 1}, {})
    assert "PATH=/tmp/gpuaas-packages/bin:/usr/local/sbin:" in "\n".join(silent["Env"])


def test_packages_for_an_image_without_a_command() -> None:
    with pytest.raises(EngineFailure) as refused:
        create_request(workload(packages=PACKAGES, command=()), "n1", "net", {"http": 1}, {})
    assert refused.value.reason is FailureReason.COMMAND_NOT_FOUND


def test_nothing_of_a_requirement_is_part_of_the_script() -> None:
    hostile = Packages(index_url="https://a.example/$(id)", requirements=("$(id)", "`id`"))
    scripts = {
        tuple(create_request(workload(packages=one), "n1", "net", {"http": 1}, {})["Entrypoint"])
        for one in (PACKAGES, hostile)
    }
    assert len(scripts) == 1


def test_what_an_image_says_of_itself() -> None:
    config = {"Entrypoint": ["/a"], "Cmd": ["b"], "Env": ["X=1=2", "Y="], "Volumes": {"/v": {}}}
    read = ImageConfig.read({"Config": config})
    assert read == ImageConfig(("/a", "b"), {"X": "1=2", "Y": ""}, ("/v",))
    assert ImageConfig.read({}) == ImageConfig.read({"Config": None}) == ImageConfig()


def test_a_workload_can_not_pose_as_another_node() -> None:
    posing = workload(labels={LABEL_NODE: "n2", "team": "research"})
    labels = create_request(posing, "n1", "net", {"http": 1}, {})["Labels"]
    assert (labels[LABEL_NODE], labels["team"]) == ("n1", "research")


def test_names_are_readable_short_and_distinct() -> None:
    spec_hash = "sha256:" + "ab" * 32
    assert unit_name("acme/research/web", spec_hash) == "gpuaas-acme-research-web-abababab"
    long = [unit_name(f"{'t' * 60}/{'p' * 60}/{name}", spec_hash) for name in ("a", "b")]
    assert all(len(name) <= 63 for name in long)
    assert long[0] != long[1]
    assert volume_name("n1", "a/b/c", "/data") != volume_name("n1", "a/b/c", "/cache")


@pytest.mark.parametrize("address", ["10.0.0.5", "fd00::5"])
def test_a_port_for_members_is_at_the_nodes_address_and_nowhere_else(address: str) -> None:
    ports = (
        Port(name="gcs", container=6379, host=6379, address=address),
        Port(name="http", container=8080),
    )
    host_ports = {"gcs": 6379, "http": 20_001}
    request = create_request(workload(ports=ports), "n1", "net", host_ports, {})
    assert request["HostConfig"]["PortBindings"] == {
        "6379/tcp": [{"HostIp": address, "HostPort": "6379"}],
        "8080/tcp": [{"HostIp": "127.0.0.1", "HostPort": "20001"}],
    }
    assert LABEL_INSTANCE in request["Labels"]
    listed = {"Id": "1", "Labels": request["Labels"]}
    unit = unit_from_listing(listed, {"State": {"Status": "running"}}, "net")
    assert [(one.name, one.host_ip, one.host_port) for one in unit.endpoints] == [
        ("gcs", address, 6379),
        ("http", "127.0.0.1", 20_001),
    ]


@pytest.mark.parametrize("address", ["", "0.0.0.0", "::", "0", "10.0.0.07", "node.example"])
def test_what_is_no_address_is_not_taken_for_all_of_them(address: str) -> None:
    """Docker publishes everywhere what it can't read."""
    ports = (Port(name="gcs", container=6379, host=6379, address=address),)
    with pytest.raises(EngineFailure, match="the port gcs is for one address") as caught:
        create_request(workload(ports=ports), "n1", "net", {"gcs": 6379}, {})
    assert caught.value.reason is FailureReason.CREATE_REFUSED


def test_an_image_can_not_say_what_its_containers_are() -> None:
    """Attempted: one that belongs to a topology, and to another's Compose project."""
    theirs = {"dev.gpuaas.service": "api", "com.docker.compose.project": "p", LABEL_NODE: "n2"}
    image = ImageConfig.read({"Config": {"Labels": {**theirs, "by": "them"}}})
    labels = create_request(workload(), "n1", "net", {"http": 1}, {}, image=image)["Labels"]
    assert {name: labels[name] for name in theirs} == {
        "dev.gpuaas.service": "", "com.docker.compose.project": "", LABEL_NODE: "n1",
    }  # fmt: skip
    assert "by" not in labels


def test_an_image_can_not_say_where_its_instance_is_reached() -> None:
    """Attempted: labels of an image, which its containers inherit, that name another's port."""
    ours = create_request(workload(), "n1", "net", {"http": 20_001}, {})["Labels"]
    of_image = {"dev.gpuaas.port.a": "80:22", "dev.gpuaas.ports": "a=80:22", LABEL_NODE: "n2"}
    listed = {"Id": "1", "Labels": {**of_image, **ours}}
    unit = unit_from_listing(listed, {"State": {"Status": "running"}}, "net")
    assert [(e.name, e.host_port) for e in unit.endpoints] == [("http", 20_001)]
    silent = create_request(workload(ports=()), "n1", "net", {}, {})["Labels"]
    unit = unit_from_listing({"Id": "1", "Labels": {**of_image, **silent}}, {}, "net")
    assert (unit.endpoints, unit.node) == ((), "n1")


def test_no_variable_gives_the_gpus_of_others() -> None:
    """Attempted: all GPUs of the host, by a vendor's runtime and a variable of a manifest."""
    all_of_them = {"NVIDIA_VISIBLE_DEVICES": "all", "AMD_VISIBLE_DEVICES": "all"}
    host = GpuHost(uuids=frozenset({"GPU-1", "GPU-2", "GPU-3"}))
    for uuids, given in (((), "void"), (("GPU-1", "GPU-2"), "GPU-1,GPU-2")):
        limits = Limits(gpu_vendor="nvidia", gpu_uuids=uuids)
        greedy = workload(limits=limits, env=all_of_them)
        request = create_request(greedy, "n1", "net", {"http": 1}, {}, grant(limits, host))
        visible = [one for one in request["Env"] if "VISIBLE" in one]
        assert visible == ["AMD_VISIBLE_DEVICES=none", f"NVIDIA_VISIBLE_DEVICES={given}"]


def test_no_variable_gives_the_hosts_fabric() -> None:
    """Attempted: InfiniBand, NVSwitch and IMEX channels of the whole host, beside one GPU."""
    names = ("NVIDIA_GDRCOPY", "NVIDIA_GDS", "NVIDIA_MOFED", "NVIDIA_NVSWITCH")
    greedy = {**dict.fromkeys(names, "enabled"), "NVIDIA_IMEX_CHANNELS": "all"}
    limits = Limits(gpu_vendor="nvidia", gpu_uuids=("GPU-1",))
    host = GpuHost(uuids=frozenset({"GPU-1"}), runtime=True)
    wanted = workload(limits=limits, env=greedy)
    request = create_request(wanted, "n1", "net", {"http": 1}, {}, grant(limits, host))
    expected = {f"{name}=disabled" for name in names} | {"NVIDIA_IMEX_CHANNELS=void"}
    assert {one for one in request["Env"] if one.partition("=")[0] in greedy} == expected


def test_a_unit_knows_its_gpus_from_its_label() -> None:
    limits = Limits(gpu_vendor="amd", gpu_uuids=("GPU-1", "GPU-2"))
    labels = create_request(workload(limits=limits), "n1", "net", {"http": 1}, {})["Labels"]
    assert labels[LABEL_GPUS] == "amd=GPU-1,GPU-2"
    assert gpus_of(labels) == {"gpu_vendor": "amd", "gpu_uuids": ("GPU-1", "GPU-2")}
    silent = create_request(workload(), "n1", "net", {"http": 1}, {})["Labels"]
    assert (silent[LABEL_GPUS], gpus_of(silent), gpus_of({LABEL_GPUS: "x"})) == ("", {}, {})


def test_the_words_of_a_registry_do_nothing_to_a_terminal() -> None:
    failure = failure_of(500, "\x1b]0;owned\x07 \x9b2J\nmore", "pull")
    assert failure.message == "?]0;owned? ?2J"
