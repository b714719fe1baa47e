"""pip_packages on real Docker: put in from a real index, by an image's own python3, as its user."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import docker
import pytest

from node_agent.engines.base import EngineFailure
from node_agent.engines.docker import DockerEngine
from node_agent.engines.packages import THERE
from node_agent.units import Unit
from node_agent.wire import FailureReason, Image, Packages, Workload
from tests.services import python_image
from tests.services.package_index import PackageIndex, serving

INSTANCE = "acme/research/lab"
SAY = ("python3", "-c", "import greeting, time; print(greeting.WORD, flush=True); time.sleep(600)")


@pytest.fixture(scope="module")
def index(docker_host: str) -> Iterator[PackageIndex]:
    """Where containers reach their host."""
    client = docker.APIClient(base_url=docker_host)
    gateway = client.inspect_network("bridge")["IPAM"]["Config"][0]["Gateway"]
    client.close()
    with serving(gateway) as found:
        found.add("greeting", "1.0", "WORD = 'hello'")
        found.add("greeting", "2.0", "WORD = 'good day'")
        yield found


@pytest.fixture(scope="module")
def python3(registry_endpoint: str, tmp_path_factory: pytest.TempPathFactory) -> Image:
    folder = tmp_path_factory.mktemp("python3")
    volumes: dict[str, object] = {"/home/work": {}}
    return python_image.push(folder, registry_endpoint, "python3", python=True, Volumes=volumes)


@pytest.fixture(scope="module")
def shell(registry_endpoint: str, tmp_path_factory: pytest.TempPathFactory) -> Image:
    folder = tmp_path_factory.mktemp("shell")
    return python_image.push(folder, registry_endpoint, "shell", python=False)


@dataclass
class Bench:
    engine: DockerEngine
    client: docker.APIClient

    def create(self, image: Image, packages: Packages, *command: str) -> Unit:
        workload = Workload(
            instance=INSTANCE, engine="docker", image=image, command=command, packages=packages
        )
        self.engine.pull(image, threading.Event())
        self.engine.create(workload, {})
        return self.unit()

    def unit(self) -> Unit:
        (unit,) = self.engine.units(INSTANCE)
        return unit

    def run(self, image: Image, packages: Packages, *command: str) -> Unit:
        self.engine.start(self.create(image, packages, *command))
        return self.unit()

    def log(self) -> str:
        return str(self.client.logs(self.unit().unit_id).decode())

    def ended(self) -> int | None:
        eventually(lambda: self.unit().status == "exited")
        return self.unit().exit_code


@pytest.fixture
def bench(docker_host: str) -> Iterator[Bench]:
    client = docker.APIClient(base_url=docker_host)
    made = Bench(DockerEngine(f"n-{uuid.uuid4().hex[:8]}", docker_host), client)
    yield made
    for unit in made.engine.units():
        made.engine.remove(unit)
    made.engine.sweep(INSTANCE)
    made.engine.close()
    client.close()


def eventually(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, "did not come true"
        time.sleep(0.1)


def wanted(index: PackageIndex, *lines: str, hashes: bool = False) -> Packages:
    return Packages(index_url=index.url, requirements=lines, require_hashes=hashes)


def test_packages_are_put_in_once_a_container(
    bench: Bench, index: PackageIndex, python3: Image
) -> None:
    packages = wanted(index, "greeting==1.0")
    unit = bench.run(python3, packages, *SAY)
    eventually(lambda: "hello" in bench.log())
    assert bench.engine.probe(unit, THERE, 10_000).ready
    assert unit.altered == ()
    before = len(index.asked)
    bench.engine.stop(unit, 0)
    bench.engine.start(bench.unit())
    eventually(lambda: bench.log().count("hello") == 2)
    assert len(index.asked) == before

    bench.engine.stop(unit, 0)
    bench.engine.remove(unit)
    bench.run(python3, wanted(index, "greeting==2.0"), *SAY)
    eventually(lambda: "good day" in bench.log())
    assert len(index.asked) > before


def test_killed_half_way_it_begins_anew(bench: Bench, index: PackageIndex, python3: Image) -> None:
    index.held.clear()
    unit = bench.run(python3, wanted(index, "greeting==1.0"), *SAY)
    asked = len(index.asked)
    eventually(lambda: len(index.asked) > asked)
    assert not bench.engine.probe(unit, THERE, 10_000).ready
    bench.client.kill(unit.unit_id)
    index.held.set()
    eventually(lambda: bench.unit().status == "exited")
    bench.engine.start(bench.unit())
    eventually(lambda: "hello" in bench.log())


def test_the_images_own_command_runs_after_them(
    bench: Bench, index: PackageIndex, python3: Image
) -> None:
    bench.run(python3, wanted(index, "greeting"))
    eventually(lambda: bench.log().endswith("its own command\n"))
    assert bench.engine.probe(bench.unit(), THERE, 10_000).ready


def test_hashes_are_insisted_on(bench: Bench, index: PackageIndex, python3: Image) -> None:
    line = f"greeting==1.0 --hash=sha256:{'0' * 64}"
    bench.run(python3, wanted(index, line, hashes=True), *SAY)
    assert bench.ended() == 97
    assert "THESE PACKAGES DO NOT MATCH THE HASHES" in bench.log()


def test_an_image_without_python3(bench: Bench, index: PackageIndex, shell: Image) -> None:
    bench.run(shell, wanted(index, "greeting"), "/bin/busybox", "true")
    assert bench.ended() == 96
    assert bench.log() == "gpuaas: no python3 here, so no packages can be put in\n"


def test_an_image_without_a_shell(bench: Bench, index: PackageIndex, demo_image: Image) -> None:
    with pytest.raises(EngineFailure) as refused:
        bench.create(demo_image, wanted(index, "greeting"))
    assert refused.value.reason is FailureReason.PACKAGES_FAILED
    assert refused.value.message == "pip_packages need /bin/sh in the image, and there is none"
    assert bench.engine.units() == ()
