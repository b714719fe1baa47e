"""What somebody changes behind our back, on real Docker: seen, in words, and nothing else is."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import docker
import pytest

from node_agent.engines.docker import DockerEngine
from node_agent.units import Unit
from node_agent.wire import (
    LABEL_INSTANCE,
    LABEL_MANAGED,
    LABEL_NODE,
    LABEL_SPEC_HASH,
    Image,
    Limits,
    Port,
    Workload,
)
from reconciler.core.names import Digest
from reconciler.devkit import images
from reconciler.devkit.images import OciImage
from tests.contract.test_engines import eventually, free_port

pytestmark = pytest.mark.real
INSTANCE = "acme/research/web"
NODE = "n-drift"
MIB = 1024 * 1024
SLEEP = ("/bin/busybox", "sleep", "600")


@dataclass(frozen=True)
class Place:
    """A node of its own, and somebody with access to its Docker."""

    engine: DockerEngine
    api: docker.APIClient
    image: Image

    def workload(self, **changes: Any) -> Workload:
        fields: dict[str, Any] = {"instance": INSTANCE, "engine": "docker", "image": self.image}
        return Workload(**{**fields, **changes})

    def create(self, **changes: Any) -> Unit:
        workload = self.workload(**changes)
        self.engine.pull(workload.image, threading.Event())
        self.engine.create(workload, {port.name: free_port() for port in workload.ports})
        return self.only()

    def run(self, **changes: Any) -> Unit:
        self.engine.start(self.create(**changes))
        return self.only()

    def only(self) -> Unit:
        (unit,) = self.engine.units(INSTANCE)
        return unit

    def again_by_hand(self, unit: Unit, change: Callable[[dict[str, Any]], None]) -> Unit:
        """Removes it and makes it once more, under its name and with its labels."""
        seen = self.api.inspect_container(unit.unit_id)
        self.api.remove_container(unit.unit_id, force=True)
        request = {**seen["Config"], "HostConfig": seen["HostConfig"]}
        change(request)
        api: Any = self.api
        made = api.create_container_from_config(request, unit.name)
        self.api.start(made["Id"])
        return self.only()


@pytest.fixture
def place(docker_host: str, demo_image: Image) -> Iterator[Place]:
    place = Place(DockerEngine(NODE, docker_host), docker.APIClient(docker_host), demo_image)
    yield place
    for unit in place.engine.units():
        place.engine.stop(unit, 0)
        place.engine.remove(unit)
        place.engine.sweep(unit.instance)
    place.engine.close()
    place.api.close()


AS_ASKED: dict[str, dict[str, Any]] = {
    "no limits": {},
    "all limits": {"limits": Limits(cpu_millis=500, memory_mib=64, pids=50, shm_mib=16)},
    "odd limits": {"limits": Limits(cpu_millis=1234, memory_mib=17, pids=9, shm_mib=1)},
    "ports": {"ports": (Port(name="http", container=8080), Port(name="more", container=8081))},
    "settings": {"env": {"A": "1", "EMPTY": "", "PATH": "/bin"}, "labels": {"team": "research"}},
    "a command": {"command": SLEEP},
}


@pytest.mark.parametrize("asked", AS_ASKED.values(), ids=AS_ASKED.keys())
def test_what_nobody_touched_is_as_asked_in_every_state(
    place: Place, asked: dict[str, Any]
) -> None:
    unit = place.create(**asked)
    assert unit.altered == ()
    place.engine.start(unit)
    assert place.only().altered == ()
    place.api.pause(unit.unit_id)
    assert (place.only().status, place.only().altered) == ("paused", ())
    place.engine.start(place.only())
    place.engine.stop(unit, 0)
    assert (place.only().status, place.only().altered) == ("exited", ())
    place.engine.start(unit)
    place.api.kill(unit.unit_id)
    eventually(lambda: place.only().status == "exited")
    assert place.only().altered == ()
    place.api.rename(unit.unit_id, f"renamed-{NODE}")
    assert place.only().altered == ()


def with_settings(image: OciImage, settings: dict[str, Any]) -> OciImage:
    """The same files, and more said of how to run them."""
    manifest = json.loads(image.manifest)
    config = json.loads(image.blobs[Digest(manifest["config"]["digest"])])
    config["config"].update(settings)
    text = json.dumps(config).encode()
    manifest["config"].update(digest=str(Digest.of(text)), size=len(text))
    document = json.dumps(manifest).encode()
    blobs = {**image.blobs, Digest.of(text): text, Digest.of(document): document}
    return OciImage(blobs, Digest.of(document))


@pytest.fixture
def rich_image(registry_endpoint: str) -> Image:
    """An image that brings settings of its own."""
    settings = {
        "Volumes": {"/data": {}, "/cache": {}}, "Env": ["A=image", "B=image"], "Cmd": ["now"],
        "User": "1000", "WorkingDir": "/www", "Labels": {"dev.gpuaas.asked": "{}", "by": "them"},
    }  # fmt: skip
    built = with_settings(images.build_site("1.0.0"), settings)
    digest = images.push(built, registry_endpoint, "rich", "1")
    return Image(registry=registry_endpoint, plain_http=True, repository="rich", digest=str(digest))


@pytest.mark.parametrize("command", [(), SLEEP])
def test_what_comes_from_the_image_is_as_asked(
    place: Place, rich_image: Image, command: tuple[str, ...]
) -> None:
    unit = place.create(image=rich_image, command=command, env={"A": "ours"})
    assert unit.altered == ()
    place.engine.start(unit)
    assert place.only().altered == ()
    again = place.again_by_hand(unit, lambda request: request["HostConfig"].update(Mounts=[]))
    assert again.altered == ("mounts changed: /cache, /data",)
    again = place.again_by_hand(again, lambda request: request.update(WorkingDir="/", User="0"))
    assert again.altered[:2] == ("user changed", "working directory changed")


UPDATES: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "memory": (
        {"Memory": 128 * MIB, "MemorySwap": 1024 * MIB},
        (
            "memory limit changed from 64 MiB to 128 MiB",
            "memory and swap limit changed from 64 MiB to 1 GiB",
        ),
    ),
    "no swap limit": (
        {"MemorySwap": -1}, ("memory and swap limit changed from 64 MiB to none",)
    ),
    "cpus": ({"NanoCpus": 2_000_000_000}, ("CPU limit changed from 0.5 to 2",)),
    "pids": ({"PidsLimit": -1}, ("process limit changed from 50 to none",)),
    "shares": ({"CpuShares": 2}, ("CPU shares changed from none to 2",)),
    "restart": (
        {"RestartPolicy": {"Name": "always"}}, ("restart policy changed from no to always",)
    ),
}  # fmt: skip


@pytest.mark.parametrize(("update", "told"), UPDATES.values(), ids=UPDATES.keys())
def test_docker_update_is_seen(place: Place, update: dict[str, Any], told: tuple[str, ...]) -> None:
    limits = Limits(cpu_millis=500, memory_mib=64, pids=50)
    unit = place.run(limits=limits, command=SLEEP)
    # The library knows only some of the settings.
    api: Any = place.api
    url = api._url("/containers/{0}/update", unit.unit_id)
    api._result(api._post_json(url, data=update), True)
    assert place.only().altered == told


def test_another_network_is_seen_and_so_is_its_own_that_is_gone(place: Place) -> None:
    unit = place.run(command=SLEEP)
    network = place.engine.network
    place.api.connect_container_to_network(unit.unit_id, "bridge")
    assert place.only().altered == ("networks changed: bridge added",)
    place.api.disconnect_container_from_network(unit.unit_id, network)
    assert "networks changed" in place.only().altered[0]
    place.api.disconnect_container_from_network(unit.unit_id, "bridge")
    assert place.only().altered == (f"networks changed: {network} removed",)


Change = Callable[[dict[str, Any]], Any]
BY_HAND: dict[str, tuple[Change, str]] = {
    "privileged": (
        lambda r: r["HostConfig"].update(Privileged=True), "privileged mode changed from off to on"
    ),
    "binds": (lambda r: r["HostConfig"].update(Binds=["/:/host"]), "mounts changed: /host added"),
    "tmpfs": (
        lambda r: r["HostConfig"].update(Tmpfs={"/scratch": ""}), "mounts changed: /scratch added"
    ),
    "a volume": (lambda r: r.update(Volumes={"/data": {}}), "mounts changed: /data added"),
    "capabilities": (
        lambda r: r["HostConfig"].update(CapAdd=["SYS_ADMIN"], CapDrop=[]),
        "added capabilities changed: SYS_ADMIN added, CHOWN removed, DAC_OVERRIDE removed"
        " and 6 more",
    ),
    "security": (
        lambda r: r["HostConfig"].update(SecurityOpt=["seccomp=unconfined"]),
        "security options changed: seccomp:unconfined added, no-new-privileges removed",
    ),
    "host network": (
        lambda r: r["HostConfig"].update(NetworkMode="host", PortBindings={}),
        "networks changed: host added, gpuaas-n-drift removed",
    ),
    "host processes": (
        lambda r: r["HostConfig"].update(PidMode="host"),
        "process namespace changed",
    ),
    "ports": (
        lambda r: r["HostConfig"]["PortBindings"].update({"8080/tcp": [{"HostPort": "23499"}]}),
        "published ports changed: 8080/tcp",
    ),
    "entrypoint": (lambda r: r.update(Entrypoint=["/bin/sh"]), "entrypoint changed"),
    "command": (lambda r: r.update(Cmd=["now"]), "command changed"),
    "user": (lambda r: r.update(User="0"), "user changed"),
    "env": (
        lambda r: r.update(Env=["A=hunter2", "C=3"]),
        "environment changed: C added, AMD_VISIBLE_DEVICES removed, NVIDIA_VISIBLE_DEVICES removed"
        " and 1 more",
    ),
    "device": (
        lambda r: r["HostConfig"].update(
            Devices=[{"PathOnHost": "/dev/null", "PathInContainer": "/dev/x",
                      "CgroupPermissions": "rwm"}]
        ),
        "devices changed: /dev/x added",
    ),
    "log": (
        lambda r: r["HostConfig"].update(LogConfig={"Type": "none", "Config": {}}),
        "log settings changed: none added, json-file removed",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("change", "told"), BY_HAND.values(), ids=BY_HAND.keys())
def test_a_container_made_again_by_hand_is_seen(place: Place, change: Change, told: str) -> None:
    unit = place.run(command=SLEEP, env={"A": "1"}, ports=(Port(name="http", container=8080),))
    again = place.again_by_hand(unit, change)
    assert told in again.altered
    assert "hunter2" not in str(again.altered)
    assert again.spec_hash == unit.spec_hash


def test_the_very_same_made_again_by_hand_is_as_asked(place: Place) -> None:
    unit = place.run(env={"A": "1"}, ports=(Port(name="http", container=8080),))
    assert place.again_by_hand(unit, lambda _: None).altered == ()


def test_another_image_under_our_labels_is_seen(
    place: Place, site_image: Callable[[str], Image]
) -> None:
    other = site_image("1.1.0")
    place.engine.pull(other, threading.Event())
    unit = place.run()
    again = place.again_by_hand(unit, lambda request: request.update(Image=other.reference))
    assert again.altered == ("image changed",)


def test_one_started_by_hand_with_no_more_than_our_names_is_seen(place: Place) -> None:
    labels = {
        LABEL_MANAGED: "true", LABEL_NODE: NODE, LABEL_INSTANCE: INSTANCE,
        LABEL_SPEC_HASH: place.workload().spec_hash,
    }  # fmt: skip
    place.engine.pull(place.image, threading.Event())
    request = {"Image": place.image.reference, "Labels": labels, "Entrypoint": list(SLEEP)}
    api: Any = place.api
    api.create_container_from_config(request, f"hand-{NODE}")
    assert "dropped capabilities changed: ALL removed" in place.only().altered
    assert f"networks changed: bridge added, gpuaas-{NODE} removed" in place.only().altered


def test_what_an_agent_made_that_kept_no_record_is_left_as_it_is(place: Place) -> None:
    """Else an update of the agents would start every workload anew."""
    unit = place.run(limits=Limits(memory_mib=64), ports=(Port(name="http", container=8080),))
    again = place.again_by_hand(unit, lambda r: r["Labels"].pop("dev.gpuaas.asked"))
    assert again.altered == ()
