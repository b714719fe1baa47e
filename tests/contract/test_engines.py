"""What every engine owes the agent: the same cases on the fake, on processes and on real Docker."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import docker
import pytest

from node_agent.engines.base import (
    Engine,
    EngineFailure,
    Residue,
    unit_name,
)
from node_agent.engines.docker import DockerEngine
from node_agent.engines.process import ProcessEngine
from node_agent.units import Unit
from node_agent.wire import (
    ExecProbe,
    FailureReason,
    HttpProbe,
    Image,
    Limits,
    Port,
    TcpProbe,
    Workload,
)
from tests.agent.cases import process_image
from tests.fakes.engine import FakeEngine

NOTHING = Residue(0, 0, 0, 0)


@dataclass(frozen=True)
class Bench:
    """An engine, and how to say the same thing in its terms."""

    engine: Engine
    image: Image
    serve: tuple[str, ...]
    deaf: tuple[str, ...]
    fail: tuple[str, ...]
    again: Callable[[], Engine]
    kill: Callable[[Unit], None]

    def workload(self, name: str = "acme/research/web", **changes: object) -> Workload:
        defaults: dict[str, object] = {
            "instance": name,
            "engine": self.engine.name,
            "image": self.image,
            "command": self.serve,
            "ports": (Port(name="http", container=8080),),
        }
        return Workload(**{**defaults, **changes})  # type: ignore[arg-type]

    def only(self, instance: str = "acme/research/web") -> Unit:
        (unit,) = self.engine.units(instance)
        return unit

    def run(self, workload: Workload, port: int | None = None) -> Unit:
        self.engine.pull(workload.image, threading.Event())
        self.engine.create(workload, {"http": port or free_port()})
        self.engine.start(self.only(workload.instance))
        return self.only(workload.instance)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def eventually(condition: Callable[[], bool], timeout_s: float = 120.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, "did not come true"
        time.sleep(0.02)


def _fake(tmp_path: Path) -> Bench:
    digest = "sha256:" + "a" * 64
    engine = FakeEngine("n1", {digest})
    image = Image(registry="fake", repository="demo", digest=digest)
    return Bench(engine, image, ("serve",), ("deaf",), ("exit", "3"), lambda: engine, engine.kill)


def _process(tmp_path: Path) -> Bench:
    engine = ProcessEngine("n1", tmp_path / "process")

    def kill(unit: Unit) -> None:
        run = (tmp_path / "process" / "units" / unit.unit_id / "run.json").read_text()
        os.kill(int(run.split('"pid":')[1].split(",")[0]), signal.SIGKILL)

    return Bench(
        engine,
        process_image(tmp_path / "layout"),
        ("python3", "serve.py"),
        ("sleep", "600"),
        ("sh", "-c", "exit 3"),
        lambda: ProcessEngine("n1", tmp_path / "process"),
        kill,
    )


def _docker(host: str, image: Image) -> Bench:
    node = f"n-{uuid.uuid4().hex[:8]}"

    def kill(unit: Unit) -> None:
        client = docker.APIClient(base_url=host)
        client.kill(unit.unit_id)
        client.close()

    return Bench(
        DockerEngine(node, host),
        image,
        (),
        ("/bin/busybox", "sleep", "600"),
        ("/bin/busybox", "sh", "-c", "exit 3"),
        lambda: DockerEngine(node, host),
        kill,
    )


@pytest.fixture(params=["fake", "process", pytest.param("docker", marks=pytest.mark.real)])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    if request.param == "docker":
        made = _docker(
            request.getfixturevalue("docker_host"), request.getfixturevalue("demo_image")
        )
    else:
        made = {"fake": _fake, "process": _process}[request.param](tmp_path)
    yield made
    for unit in made.engine.units():
        made.engine.stop(unit, 0)
        made.engine.remove(unit)
        made.engine.sweep(unit.instance)
    made.engine.close()


def test_a_workload_runs_serves_stops_and_is_gone(bench: Bench) -> None:
    engine = bench.engine
    unit = bench.run(bench.workload())
    assert unit.status == "running"
    assert unit.image_digest == bench.image.digest
    assert unit.endpoints[0].name == "http"
    eventually(lambda: engine.probe(unit, HttpProbe(port=8080), 1_000).ready)
    assert engine.probe(unit, TcpProbe(port=8080), 1_000).ready
    engine.stop(unit, 2_000)
    stopped = bench.only()
    assert stopped.status == "exited"
    assert not engine.probe(stopped, TcpProbe(port=8080), 500).ready
    engine.remove(stopped)
    engine.sweep(unit.instance)
    assert engine.units() == ()
    assert engine.residue(unit.instance) == NOTHING


def test_the_labels_say_what_a_unit_is(bench: Bench) -> None:
    workload = bench.workload()
    bench.engine.create(_pulled(bench, workload), {"http": free_port()})
    unit = bench.only()
    assert (unit.instance, unit.spec_hash) == (workload.instance, workload.spec_hash)
    assert unit.name == unit_name(workload.instance, workload.spec_hash)
    assert unit.status == "created"


def test_everything_may_be_done_twice(bench: Bench) -> None:
    engine = bench.engine
    unit = bench.run(bench.workload())
    engine.pull(bench.image, threading.Event())
    engine.start(unit)
    assert bench.only().status == "running"
    for _ in range(2):
        engine.stop(unit, 100)
    for _ in range(2):
        engine.remove(unit)
        engine.sweep(unit.instance)
    assert engine.residue(unit.instance) == NOTHING


def test_a_second_unit_of_the_same_spec_is_refused(bench: Bench) -> None:
    workload = _pulled(bench, bench.workload())
    bench.engine.create(workload, {"http": free_port()})
    with pytest.raises(EngineFailure) as refused:
        bench.engine.create(workload, {"http": free_port()})
    assert refused.value.reason is FailureReason.CREATE_REFUSED
    assert len(bench.engine.units()) == 1


def test_a_stopped_unit_starts_again(bench: Bench) -> None:
    unit = bench.run(bench.workload())
    bench.engine.stop(unit, 100)
    bench.engine.start(bench.only())
    assert bench.only().status == "running"


def test_the_exit_code_is_kept(bench: Bench) -> None:
    bench.run(bench.workload(command=bench.fail))
    eventually(lambda: bench.only().status == "exited")
    eventually(lambda: bench.only().exit_code == 3)


def test_a_killed_one_is_seen_and_the_watcher_hears_of_it(bench: Bench) -> None:
    heard: list[str | None] = []
    stop = threading.Event()
    watcher = threading.Thread(target=bench.engine.watch, args=(heard.append, stop))
    watcher.start()
    unit = bench.run(bench.workload())
    # Whoever begins to listen says that anything may have changed.
    eventually(lambda: bool(heard))
    heard.clear()
    bench.kill(unit)
    eventually(lambda: unit.instance in heard)
    eventually(lambda: bench.only().status == "exited")
    eventually(lambda: bench.only().exit_code == 137)
    stop.set()
    bench.engine.close()
    watcher.join(10)
    assert not watcher.is_alive()


def test_another_agent_finds_what_this_one_left(bench: Bench) -> None:
    unit = bench.run(bench.workload())
    other = bench.again()
    assert [found.unit_id for found in other.units(unit.instance)] == [unit.unit_id]
    assert other.units(unit.instance)[0].status == "running"
    other.stop(unit, 100)
    assert bench.only().status == "exited"
    other.close() if other is not bench.engine else None


def test_instances_do_not_touch_each_other(bench: Bench) -> None:
    first = bench.run(bench.workload("acme/research/one"))
    second = bench.run(bench.workload("acme/research/two"))
    bench.engine.stop(first, 100)
    bench.engine.remove(first)
    bench.engine.sweep(first.instance)
    assert bench.engine.residue(first.instance) == NOTHING
    assert [unit.unit_id for unit in bench.engine.units()] == [second.unit_id]
    assert bench.only("acme/research/two").status == "running"


def test_a_missing_image_is_not_found(bench: Bench) -> None:
    image = bench.image.model_copy(update={"digest": "sha256:" + "0" * 64})
    with pytest.raises(EngineFailure) as refused:
        bench.engine.pull(image, threading.Event())
    assert refused.value.reason is FailureReason.IMAGE_NOT_FOUND
    assert not refused.value.transient


def test_a_missing_command_is_said_so(bench: Bench) -> None:
    workload = _pulled(bench, bench.workload(command=("/no/such/program",)))
    bench.engine.create(workload, {"http": free_port()})
    if bench.engine.name == "docker" and not isinstance(bench.engine, FakeEngine):
        # Docker's own init starts well and then reports it the way a shell does.
        bench.engine.start(bench.only())
        eventually(lambda: bench.only().exit_code == 127)
    else:
        with pytest.raises(EngineFailure) as refused:
            bench.engine.start(bench.only())
        assert refused.value.reason is FailureReason.COMMAND_NOT_FOUND
    assert bench.only().status != "running"


def test_a_taken_port_is_said_so(bench: Bench) -> None:
    workload = _pulled(bench, bench.workload())
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        port = int(held.getsockname()[1])
        if isinstance(bench.engine, FakeEngine):
            bench.engine.taken_ports.add(port)
        bench.engine.create(workload, {"http": port})
        with pytest.raises(EngineFailure) as refused:
            bench.engine.start(bench.only())
    assert refused.value.reason is FailureReason.PORT_IN_USE


@pytest.mark.parametrize(("word", "ready"), [("true", True), ("false", False)])
def test_a_command_probe(bench: Bench, word: str, ready: bool) -> None:
    unit = bench.run(bench.workload(command=bench.deaf))
    program = ("/bin/busybox", word) if bench.engine.name == "docker" else (word,)
    if isinstance(bench.engine, FakeEngine):
        program = (word,)
    assert bench.engine.probe(unit, ExecProbe(command=program), 5_000).ready is ready


def test_a_command_probe_that_is_not_there_is_not_ready(bench: Bench) -> None:
    unit = bench.run(bench.workload(command=bench.deaf))
    probed = bench.engine.probe(unit, ExecProbe(command=("/no/such/probe",)), 5_000)
    assert not probed.ready
    assert probed.detail


def test_a_probe_of_an_unpublished_port_says_so(bench: Bench) -> None:
    unit = bench.run(bench.workload())
    probed = bench.engine.probe(unit, HttpProbe(port=9), 500)
    assert (probed.ready, probed.detail) == (False, "port 9 is not published")


def test_docker_limits_and_isolation(docker_host: str, demo_image: Image) -> None:
    bench = _docker(docker_host, demo_image)
    limits = Limits(cpu_millis=500, memory_mib=64, pids=50, shm_mib=16)
    unit = bench.run(bench.workload(limits=limits))
    client = docker.APIClient(base_url=docker_host)
    try:
        described = client.inspect_container(unit.unit_id)
        host = described["HostConfig"]
        assert host["NanoCpus"] == 500_000_000
        assert host["Memory"] == host["MemorySwap"] == 64 * 1024 * 1024
        assert (host["PidsLimit"], host["ShmSize"]) == (50, 16 * 1024 * 1024)
        assert host["CapDrop"] == ["ALL"]
        assert "NET_RAW" not in host["CapAdd"]
        assert host["SecurityOpt"] == ["no-new-privileges"]
        assert host["RestartPolicy"]["Name"] in {"", "no"}
        assert not host["Privileged"]
        bindings = [binding for all_of in host["PortBindings"].values() for binding in all_of]
        assert {binding["HostIp"] for binding in bindings} == {"127.0.0.1"}
        network = client.inspect_network(host["NetworkMode"])
        assert network["Options"]["com.docker.network.bridge.enable_icc"] == "false"
    finally:
        bench.engine.stop(unit, 0)
        bench.engine.remove(unit)
        assert client.networks(names=[host["NetworkMode"]]) == []
        client.close()
        bench.engine.close()


def test_docker_never_touches_what_is_not_labelled_for_it(
    docker_host: str, demo_image: Image
) -> None:
    bench = _docker(docker_host, demo_image)
    other = _docker(docker_host, demo_image)
    mine, theirs = bench.run(bench.workload()), other.run(other.workload("a/b/c"))
    bench.engine.stop(mine, 0)
    bench.engine.remove(mine)
    bench.engine.sweep(mine.instance)
    assert bench.engine.residue(mine.instance) == NOTHING
    assert other.only("a/b/c").unit_id == theirs.unit_id
    assert other.only("a/b/c").status == "running"
    other.engine.stop(theirs, 0)
    other.engine.remove(theirs)
    other.engine.close()
    bench.engine.close()


def _pulled(bench: Bench, workload: Workload) -> Workload:
    bench.engine.pull(workload.image, threading.Event())
    return workload
