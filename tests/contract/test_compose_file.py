"""What Compose makes of our file, on real Docker: what was asked for, and nothing else."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import docker
import pytest

from node_agent.compose_wire import Dependency, Mount, Scratch, Volume
from node_agent.engines import docker_drift
from node_agent.engines.base import SECRETS_VARIABLE
from node_agent.engines.bind_sources import check_bind_sources
from node_agent.engines.compose_file import (
    Placement,
    compose_file,
    compose_text,
    network_name,
    project_name,
    service_hashes,
    volume_names,
)
from node_agent.engines.docker import DockerEngine
from node_agent.engines.docker_spec import LABEL_ASKED
from node_agent.engines.gpus import GpuGrant, GpuHost, grant
from node_agent.wire import BlobFile, Image, Limits, Port, SecretFile, Service, Workload
from reconciler.devkit import images
from tests.contract.test_engine_drift import with_settings
from tests.contract.test_engines import free_port
from tests.services.go_tools import program
from tests.topologies import DIGEST, workload_of

pytestmark = pytest.mark.real
NODE = "n-compose-file"
MIB = 1024 * 1024
SLEEP = ("/bin/busybox", "sleep", "600")
GPUS = Limits(gpu_vendor="nvidia", gpu_uuids=("GPU-1", "GPU-2"))
AMD = Limits(gpu_vendor="amd", gpu_uuids=("0x1",))


@dataclass
class Place:
    """A folder, Compose's program and a Docker that it talks to."""

    folder: Path
    host: str
    api: docker.APIClient
    image: Image

    def service(self, name: str = "api", **changes: Any) -> Service:
        return Service(**{"name": name, "image": self.image, "command": SLEEP, **changes})

    def place(self, workload: Workload, **changes: Any) -> Placement:
        services = workload.topology.services if workload.topology is not None else ()
        return replace(
            Placement(
                NODE,
                host_ports={port.name: free_port() for port in workload.ports},
                images={one.name: self.described(one.image) for one in services},
                secrets={one.name: str(self.secrets(one)) for one in services if one.secrets},
                blobs={one.name: str(self.blob(one.name)) for one in workload.blobs},
            ),
            **changes,
        )

    def described(self, image: Image) -> dict[str, Any]:
        api: Any = self.api
        found: dict[str, Any] = api.inspect_image(image.reference)
        return found

    def secrets(self, service: Service) -> Path:
        folder = self.folder / f"secrets-{service.name}"
        folder.mkdir(exist_ok=True)
        for name in service.secrets:
            (folder / name).write_text(f"value of {name}")
        return folder

    def blob(self, name: str) -> Path:
        path = self.folder / f"blob-{name}"
        path.write_text(f"bytes of {name}")
        return path

    def create(self, document: dict[str, Any]) -> None:
        file = self.folder / "file.json"
        file.write_text(compose_text(document))
        self.compose(document["name"], "-f", str(file), "create", "--pull", "never", "--no-build")

    def compose(self, project: str, *arguments: str) -> None:
        done = subprocess.run(
            [program("docker-compose"), "-p", project, "--project-directory", self.folder,
             "--env-file", "/dev/null", *arguments],
            env={"PATH": os.environ["PATH"], "HOME": str(self.folder), "DOCKER_HOST": self.host},
            stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr

    def inspected(self, document: dict[str, Any], service: str = "api") -> dict[str, Any]:
        filters = {"label": [f"com.docker.compose.project={document['name']}",
                             f"dev.gpuaas.service={service}"]}  # fmt: skip
        (listed,) = self.api.containers(all=True, filters=filters)
        found: dict[str, Any] = self.api.inspect_container(listed["Id"])
        return found

    def clean(self, project: str) -> None:
        self.compose(project, "down", "--volumes", "-t", "0")


@pytest.fixture(scope="module")
def image(docker_host: str, registry_endpoint: str) -> Image:
    """One that brings settings and volumes of its own."""
    settings = {
        "Volumes": {"/declared": {}, "/cache/": {}}, "Env": ["A=image", "B=image"],
        "User": "0", "WorkingDir": "/www",
        "Labels": {"dev.gpuaas.asked": "{}", "dev.gpuaas.spec-hash": "theirs"},
        "Healthcheck": {"Test": ["CMD", "false"], "Interval": 1_000_000_000},
    }  # fmt: skip
    built = with_settings(images.build_site("1.0.0"), settings)
    digest = images.push(built, registry_endpoint, "compose-file", "1")
    found = Image(
        registry=registry_endpoint, plain_http=True, repository="compose-file", digest=str(digest)
    )
    engine = DockerEngine(NODE, docker_host)
    engine.pull(found, threading.Event())
    engine.close()
    return found


@pytest.fixture
def place(docker_host: str, image: Image, tmp_path: Path) -> Iterator[Place]:
    api = docker.APIClient(docker_host)
    place = Place(tmp_path, docker_host, api, image)
    yield place
    place.clean(project_name(NODE, "acme/research/rag"))
    api.close()


PORTS = (Port(name="http", container=8080), Port(name="more", container=8081))
SECRETS = (SecretFile(name="token", env="TOKEN"), SecretFile(name="other"))
BLOBS = (BlobFile(name="weights", source="artifact_store://x", digest=DIGEST),)
ASKED: dict[str, dict[str, Any]] = {
    "nothing": {},
    "the image's own command": {"command": ()},
    "all limits": {"limits": Limits(cpu_millis=500, memory_mib=64, pids=50, shm_mib=16)},
    "odd limits": {"limits": Limits(cpu_millis=1234, memory_mib=17, pids=9, shm_mib=1)},
    "ports": {"ports": ("http", "more")},
    "settings": {"env": {"A": "${HOME} $$ \n{{x}}", "EMPTY": "", "on": "no", "PATH": "/bin"}},
    "confined": {"confined": True},
    "mounts": {
        "mounts": (Mount(volume="index", path="/index"),
                   Mount(volume="index", path="/again", read_only=True)),
        "scratch": (Scratch(path="/tmp", size_mib=8),),
    },
    "over declared paths": {
        "mounts": (Mount(volume="index", path="/declared"),),
        "scratch": (Scratch(path="/cache", size_mib=8),),
    },
    "secrets and blobs": {"secrets": ("token",), "blobs": ("weights",)},
}  # fmt: skip


def workload(*services: Service) -> Workload:
    return workload_of(
        *services,
        ports=PORTS,
        secrets=SECRETS,
        blobs=BLOBS,
        volumes=(Volume(name="index", size_mib=1),),
        labels={"dev.gpuaas.app": "acme/rag", "dev.gpuaas.version": "1.0.0"},
    )


def differences(inspected: dict[str, Any]) -> tuple[str, ...]:
    return docker_drift.differences(inspected["Config"]["Labels"][LABEL_ASKED], inspected, {})


@pytest.mark.parametrize("asked", ASKED.values(), ids=ASKED.keys())
def test_what_compose_makes_is_as_asked_in_every_state(place: Place, asked: dict[str, Any]) -> None:
    what = workload(place.service(**asked))
    document = compose_file(what, place.place(what))
    check_bind_sources(document)
    place.create(document)
    made = place.inspected(document)
    assert differences(made) == ()
    place.api.start(made["Id"])
    assert differences(place.inspected(document)) == ()
    place.api.stop(made["Id"], timeout=0)
    assert differences(place.inspected(document)) == ()


def test_each_field_reaches_docker(place: Place) -> None:
    limits = Limits(cpu_millis=1234, memory_mib=64, pids=50, shm_mib=16)
    what = workload(
        place.service(
            command=(*SLEEP[:2], "500"), limits=limits, stop_grace_ms=1_500, **ASKED["ports"],
            **ASKED["mounts"], **ASKED["secrets and blobs"],
        )
    )  # fmt: skip
    document = compose_file(what, place.place(what))
    place.create(document)
    made = place.inspected(document)
    host, config = made["HostConfig"], made["Config"]
    assert config["Image"] == place.image.reference
    assert (host["CpuPeriod"], host["CpuQuota"], host["NanoCpus"]) == (100_000, 123_400, 0)
    assert (host["Memory"], host["MemorySwap"]) == (64 * MIB, 64 * MIB)
    assert (host["PidsLimit"], host["ShmSize"]) == (50, 16 * MIB)
    assert (host["Init"], host["Privileged"], host["ReadonlyRootfs"]) == (True, False, False)
    assert host["SecurityOpt"] == ["no-new-privileges"]
    assert host["CapDrop"] == ["ALL"]
    assert "SYS_ADMIN" not in host["CapAdd"]
    assert host["RestartPolicy"]["Name"] == "no"
    assert host["LogConfig"] == {
        "Type": "json-file", "Config": {"max-size": "10m", "max-file": "3"}
    }  # fmt: skip
    assert host["NetworkMode"] == network_name(document)
    assert host["Tmpfs"] == {"/tmp": "rw,exec,nosuid,nodev,mode=1777,size=8388608"}
    assert {b[0]["HostIp"] for b in host["PortBindings"].values()} == {"127.0.0.1"}
    assert config["Healthcheck"]["Test"] == ["NONE"]
    assert config["StopTimeout"] == 2
    assert (config["Entrypoint"][0], config["Entrypoint"][-1]) == ("/bin/sh", "500")
    assert config["Cmd"] in (None, [])
    variables = dict(entry.split("=", 1) for entry in config["Env"])
    assert variables["NVIDIA_VISIBLE_DEVICES"] == "void"
    assert variables[SECRETS_VARIABLE] == "/run/gpuaas/secrets"
    assert "value of token" not in str(made)
    labels = config["Labels"]
    assert labels["dev.gpuaas.service-hash"] == service_hashes(document)["api"]
    assert labels["dev.gpuaas.ports"].startswith("http=8080:")
    assert labels["dev.gpuaas.app"] == "acme/rag"
    assert "dev.gpuaas.version" not in labels
    mounted = {one["Destination"]: (one["Type"], one["RW"]) for one in made["Mounts"]}
    assert mounted == {
        "/declared": ("volume", True), "/cache": ("volume", True), "/index": ("volume", True),
        "/again": ("volume", False), "/run/gpuaas/secrets": ("bind", False),
        "/run/gpuaas/blobs/weights": ("bind", False),
    }  # fmt: skip


def test_secrets_reach_their_service_and_no_other(place: Place) -> None:
    show = "cat /run/gpuaas/secrets/* /run/gpuaas/blobs/*; ls /run/gpuaas; id -u"
    what = workload(
        place.service("reads", command=("/bin/busybox", "sh", "-c", show), secrets=("other",)),
        place.service("without", command=("/bin/busybox", "sh", "-c", show)),
    )
    document = compose_file(what, place.place(what))
    place.create(document)
    said = {}
    for name in ("reads", "without"):
        made = place.inspected(document, name)
        place.api.start(made["Id"])
        place.api.wait(made["Id"], timeout=60)
        said[name] = place.api.logs(made["Id"]).decode()
    assert "value of other" in said["reads"]
    assert "value of" not in said["without"]


LOOKS = """
grep -E '^(CapEff|CapBnd|NoNewPrivs):' /proc/self/status
grep ' /scratch ' /proc/mounts
cp /bin/busybox /scratch/busybox && /scratch/busybox true && echo can run there
(echo x > /bin/x) 2>/dev/null && echo can write to its image
echo x > /index/x && echo can write to its volume
cat /sys/fs/cgroup/cpu.max /sys/fs/cgroup/cpu/cpu.cfs_quota_us 2>/dev/null
"""


@pytest.mark.parametrize(
    ("confined", "capabilities", "writes"),
    [(False, "00000000000004fb", True), (True, "0000000000000000", False)],
    ids=["usual", "confined"],
)
def test_what_a_service_may_do(
    place: Place, confined: bool, capabilities: str, writes: bool
) -> None:
    what = workload(
        place.service(
            command=("/bin/busybox", "sh", "-c", LOOKS),
            confined=confined,
            limits=Limits(cpu_millis=1234),
            mounts=(Mount(volume="index", path="/index"),),
            scratch=(Scratch(path="/scratch", size_mib=8),),
        )
    )
    document = compose_file(what, place.place(what))
    place.create(document)
    made = place.inspected(document)
    place.api.start(made["Id"])
    place.api.wait(made["Id"], timeout=60)
    said = place.api.logs(made["Id"]).decode()
    assert f"CapEff:\t{capabilities}\nCapBnd:\t{capabilities}\nNoNewPrivs:\t1\n" in said
    mounted = next(line for line in said.splitlines() if line.startswith("tmpfs"))
    options = {*mounted.split()[3].split(",")}
    assert {"rw", "nosuid", "nodev", "size=8192k"} <= options
    assert "noexec" not in options
    assert "can run there" in said
    assert "can write to its volume" in said
    assert ("can write to its image" in said) is writes
    assert "123400" in said


@pytest.mark.parametrize(
    ("limits", "host", "asked"),
    [
        (GPUS, GpuHost(frozenset(GPUS.gpu_uuids)), {"Driver": "", "DeviceIDs": ["GPU-1", "GPU-2"]}),
        (GPUS, GpuHost(frozenset(GPUS.gpu_uuids), runtime=True),
         {"Driver": "nvidia", "DeviceIDs": ["GPU-1", "GPU-2"]}),
        (GPUS, GpuHost(frozenset(GPUS.gpu_uuids), cdi={"GPU-1": "nvidia.com/gpu=GPU-1",
                                                      "GPU-2": "nvidia.com/gpu=GPU-2"}),
         {"Driver": "cdi", "DeviceIDs": ["nvidia.com/gpu=GPU-1", "nvidia.com/gpu=GPU-2"]}),
    ],
    ids=["by a request", "by the runtime", "by CDI"],
)  # fmt: skip
def test_gpus(place: Place, limits: Limits, host: GpuHost, asked: dict[str, Any]) -> None:
    made = given(place, limits, grant(limits, host))
    (request,) = made["HostConfig"]["DeviceRequests"]
    assert {name: request[name] for name in asked} == asked
    assert (request["Capabilities"], request["Count"]) == ([["gpu"]], 0)
    assert made["Config"]["Labels"]["dev.gpuaas.gpus"] == "nvidia=GPU-1,GPU-2"


def test_gpus_by_device_files(place: Place) -> None:
    files = {"0x1": ("/dev/kfd", "/dev/dri/renderD128")}
    host = GpuHost(frozenset(AMD.gpu_uuids), files=files, groups=(44,))
    made = given(place, AMD, grant(AMD, host))
    paths = [one["PathOnHost"] for one in made["HostConfig"]["Devices"]]
    assert paths == ["/dev/dri/renderD128", "/dev/kfd"]
    assert made["HostConfig"]["GroupAdd"] == ["44"]


def given(place: Place, limits: Limits, gpus: GpuGrant) -> dict[str, Any]:
    what = workload(place.service(limits=limits))
    document = compose_file(what, place.place(what, gpus={"api": gpus}))
    place.create(document)
    made = place.inspected(document)
    assert differences(made) == ()
    return made


def test_network_and_volumes_are_ours(place: Place) -> None:
    what = workload(place.service(**ASKED["mounts"]))
    document = compose_file(what, place.place(what))
    place.create(document)
    ours = {"dev.gpuaas.managed": "true", "dev.gpuaas.node": NODE,
            "dev.gpuaas.instance": "acme/research/rag"}  # fmt: skip
    network = place.api.inspect_network(network_name(document))
    assert ours.items() <= network["Labels"].items()
    assert network["Driver"] == "bridge"
    listed = place.api.volumes(filters={"label": [f"{k}={v}" for k, v in ours.items()]})["Volumes"]
    assert tuple(sorted(one["Name"] for one in listed)) == volume_names(document)
    assert len(listed) == 3
    everything = place.api.inspect_container(place.inspected(document)["Id"])["Mounts"]
    assert {one["Name"] for one in everything} == {*volume_names(document)}


CHANGES: dict[str, tuple[Callable[[Service], Service], set[str]]] = {
    "nothing": (lambda one: one, set()),
    "a variable": (lambda one: one.model_copy(update={"env": {"A": "2"}}), {"web"}),
    "who waits for whom": (
        lambda one: one.model_copy(update={"depends_on": (Dependency(service="db"),)}), set(),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("change", "replaced"), CHANGES.values(), ids=CHANGES.keys())
def test_only_what_changed_is_replaced(
    place: Place, change: Callable[[Service], Service], replaced: set[str]
) -> None:
    services = [place.service("db", **ASKED["mounts"]), place.service("web")]
    first = workload(*services)
    at = place.place(first)
    document = compose_file(first, at)
    place.create(document)
    before = {name: place.inspected(document, name)["Id"] for name in ("db", "web")}
    labels = {**first.labels, "dev.gpuaas.version": "2.0.0"}
    second = workload(services[0], change(services[1])).model_copy(update={"labels": labels})
    document = compose_file(second, at)
    place.create(document)
    after = {name: place.inspected(document, name)["Id"] for name in ("db", "web")}
    assert {name for name in before if before[name] != after[name]} == replaced


def test_what_is_not_there_is_no_folder_that_docker_makes(place: Place) -> None:
    what = workload(place.service(secrets=("other",)))
    missing = place.folder / "missing"
    document = compose_file(what, place.place(what, secrets={"api": str(missing)}))
    with pytest.raises(AssertionError, match="bind source path does not exist"):
        place.create(document)
    assert not missing.exists()
