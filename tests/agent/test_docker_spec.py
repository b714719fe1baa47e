"""Docker's words as our reasons, and a workload as Docker's request."""

from __future__ import annotations

import pytest

from node_agent.engines.base import unit_name
from node_agent.engines.docker_spec import (
    create_request,
    failure_of,
    unit_from_listing,
    volume_name,
)
from node_agent.wire import LABEL_NODE, FailureReason, Limits
from tests.agent.cases import workload

WORDS = [
    ("pull", 404, "manifest unknown: manifest unknown", FailureReason.IMAGE_NOT_FOUND, False),
    ("pull", 500, "dial tcp: connection refused", FailureReason.IMAGE_PULL_FAILED, True),
    ("create", 404, "No such image: r/x@sha256:0", FailureReason.IMAGE_NOT_FOUND, False),
    ("create", 409, "Conflict. The container name is in use", FailureReason.CREATE_REFUSED, True),
    ("create", 400, "invalid mount", FailureReason.CREATE_REFUSED, False),
    ("start", 500, "Bind for 127.0.0.1:80 failed: port is already allocated",
     FailureReason.PORT_IN_USE, False),
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


def test_nvidia_gpus_are_asked_for_by_uuid() -> None:
    limits = Limits(gpu_vendor="nvidia", gpu_uuids=("GPU-1", "GPU-2"))
    host = create_request(workload(limits=limits), "n1", "net", {"http": 1}, {}, ())["HostConfig"]
    assert host["DeviceRequests"] == [{"DeviceIDs": ["GPU-1", "GPU-2"], "Capabilities": [["gpu"]]}]


def test_amd_gpus_are_given_as_their_own_device_files_only() -> None:
    limits = Limits(gpu_vendor="amd", gpu_uuids=("GPU-1",))
    devices = ("/dev/kfd", "/dev/dri/renderD128")
    host = create_request(workload(limits=limits), "n1", "net", {"http": 1}, {}, devices)
    assert [d["PathOnHost"] for d in host["HostConfig"]["Devices"]] == list(devices)
    assert host["HostConfig"]["GroupAdd"] == ["video"]


def test_a_workload_can_not_pose_as_another_node() -> None:
    posing = workload(labels={LABEL_NODE: "n2", "team": "research"})
    labels = create_request(posing, "n1", "net", {"http": 1}, {}, ())["Labels"]
    assert (labels[LABEL_NODE], labels["team"]) == ("n1", "research")


def test_names_are_readable_short_and_distinct() -> None:
    spec_hash = "sha256:" + "ab" * 32
    assert unit_name("acme/research/web", spec_hash) == "gpuaas-acme-research-web-abababab"
    long = [unit_name(f"{'t' * 60}/{'p' * 60}/{name}", spec_hash) for name in ("a", "b")]
    assert all(len(name) <= 63 for name in long)
    assert long[0] != long[1]
    assert volume_name("n1", "a/b/c", "/data") != volume_name("n1", "a/b/c", "/cache")


def test_an_image_can_not_say_where_its_instance_is_reached() -> None:
    """Attempted: labels of an image, which its containers inherit, that name another's port."""
    ours = create_request(workload(), "n1", "net", {"http": 20_001}, {}, ())["Labels"]
    of_image = {"dev.gpuaas.port.a": "80:22", "dev.gpuaas.ports": "a=80:22", LABEL_NODE: "n2"}
    unit = unit_from_listing({"Id": "1", "Labels": {**of_image, **ours}}, {"Status": "running"})
    assert [(e.name, e.host_port) for e in unit.endpoints] == [("http", 20_001)]
    silent = create_request(workload(ports=()), "n1", "net", {}, {}, ())["Labels"]
    unit = unit_from_listing({"Id": "1", "Labels": {**of_image, **silent}}, {})
    assert (unit.endpoints, unit.node) == ((), "n1")


@pytest.mark.parametrize(
    ("limits", "given"),
    [
        (Limits(), "void"),
        (Limits(gpu_vendor="amd", gpu_uuids=("GPU-1",)), "void"),
        (Limits(gpu_vendor="nvidia", gpu_uuids=("GPU-1", "GPU-2")), "GPU-1,GPU-2"),
    ],
)
def test_no_variable_gives_the_gpus_of_others(limits: Limits, given: str) -> None:
    """Attempted: all GPUs of the host, through NVIDIA's runtime and a variable of the manifest."""
    greedy = workload(limits=limits, env={"NVIDIA_VISIBLE_DEVICES": "all"})
    request = create_request(greedy, "n1", "net", {"http": 1}, {}, ())
    assert request["Env"] == [f"NVIDIA_VISIBLE_DEVICES={given}"]


def test_the_words_of_a_registry_do_nothing_to_a_terminal() -> None:
    failure = failure_of(500, "\x1b]0;owned\x07 \x9b2J\nmore", "pull")
    assert failure.message == "?]0;owned? ?2J"
