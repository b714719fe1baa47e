"""What an engine of topologies owes the agent: the same cases on the fake and on real Compose."""

from __future__ import annotations

import socket
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import docker
import pytest

from node_agent.compose_wire import Dependency, Mount, Scratch, Service, Topology, Volume
from node_agent.engines.base import EngineFailure, Residue, TopologyEngine
from node_agent.engines.compose import ComposeEngine
from node_agent.units import ServiceSeen, Unit
from node_agent.wire import (
    ExecProbe,
    FailureReason,
    HttpProbe,
    Image,
    Port,
    Probe,
    TcpProbe,
    Workload,
)
from tests.contract.test_engines import eventually, free_port
from tests.fakes.compose import FakeCompose

INSTANCE = "acme/research/rag"
NOTHING = Residue(0, 0, 0, 0)
ALL = ("api", "db", "metrics")


@dataclass(frozen=True)
class Bench:
    """An engine, and how to say the same thing in its terms."""

    engine: TopologyEngine
    image: Image
    serve: tuple[str, ...]
    deaf: tuple[str, ...]
    fail: tuple[str, ...]
    true: tuple[str, ...]
    again: Callable[[], TopologyEngine]
    kill: Callable[[ServiceSeen], None]
    destroy: Callable[[ServiceSeen], None]

    def service(self, name: str, **changes: Any) -> Service:
        return Service(**{"name": name, "image": self.image, "command": self.serve, **changes})

    def workload(
        self, services: tuple[Service, ...] | None = None, instance: str = INSTANCE
    ) -> Workload:
        chosen = services or self.services()
        mounted = {mount.volume for one in chosen for mount in one.mounts}
        return Workload(
            instance=instance,
            engine="compose",
            image=self.image,
            ports=(Port(name="http", container=8080),),
            topology=Topology(
                services=chosen,
                volumes=tuple(Volume(name=name, size_mib=1) for name in sorted(mounted)),
            ),
        )

    def services(self, **of_api: Any) -> tuple[Service, ...]:
        waits = (Dependency(service="db", condition="healthy"),)
        return (
            self.service("api", ports=("http",), depends_on=waits, **of_api),
            self.service("db", mounts=(Mount(volume="data", path="/data"),)),
            self.service(
                "metrics",
                confined=True,
                vital=False,
                scratch=(Scratch(path="/tmp", size_mib=1),),
            ),
        )

    def other(self, name: str = "api", **changes: Any) -> Workload:
        """The same, but for one service's settings."""
        changed = {"env": {"LEVEL": "debug"}, **changes}
        return self.workload(
            tuple(
                one.model_copy(update=changed) if one.name == name else one
                for one in self.services()
            )
        )

    def create(self, workload: Workload, port: int | None = None) -> Unit:
        for image in workload.images:
            self.engine.pull(image, threading.Event())
        self.engine.create(workload, {"http": port or free_port()})
        return self.unit(workload)

    def apply(self, workload: Workload, port: int | None = None) -> Unit:
        self.engine.start(self.create(workload, port))
        return self.unit(workload)

    def run(self, workload: Workload, port: int | None = None) -> Unit:
        unit = self.apply(workload, port)
        self.engine.start_services(unit, [one.name for one in unit.services])
        return self.unit(workload)

    def unit(self, workload: Workload) -> Unit:
        units = self.engine.units(workload.instance)
        (unit,) = (one for one in units if one.spec_hash == workload.spec_hash)
        return unit

    def ids(self, workload: Workload) -> dict[str, str]:
        return {one.name: one.unit_id for one in self.unit(workload).services}

    def seen(self, workload: Workload, name: str) -> ServiceSeen:
        (found,) = (one for one in self.unit(workload).services if one.name == name)
        return found

    def tear_down(self) -> None:
        for unit in self.engine.units():
            self.engine.stop(unit, 0)
        units = self.engine.units()
        for unit in units:
            self.engine.remove(unit)
        for instance in sorted({unit.instance for unit in units}):
            self.engine.sweep(instance)


def statuses(unit: Unit) -> dict[str, str]:
    return {one.name: one.status for one in unit.services}


def is_ready(bench: Bench, unit: Unit, probe: Probe) -> bool:
    return bench.engine.probe_service(unit, "db", probe, 5_000).ready


def _fake() -> Bench:
    digest = "sha256:" + "a" * 64
    engine = FakeCompose("n1", {digest})
    image = Image(registry="fake", repository="demo", digest=digest)

    def kill(seen: ServiceSeen) -> None:
        engine.end(INSTANCE, seen.name, 137)

    def destroy(seen: ServiceSeen) -> None:
        engine.take(INSTANCE, seen.name)

    return Bench(
        engine, image, ("serve",), ("deaf",), ("exit", "3"), ("true",), lambda: engine, kill,
        destroy,
    )  # fmt: skip


def _compose(host: str, program: Path, image: Image, folder: Path) -> Bench:
    node = f"n-{uuid.uuid4().hex[:8]}"

    def made() -> ComposeEngine:
        return ComposeEngine(node, folder / "compose", host, program=program)

    def ask(question: Callable[[Any], None]) -> None:
        client = docker.APIClient(base_url=host)
        try:
            question(client)
        finally:
            client.close()

    return Bench(
        made(),
        image,
        (),
        ("/bin/busybox", "sleep", "600"),
        ("/bin/busybox", "sh", "-c", "exit 3"),
        ("/bin/busybox", "true"),
        made,
        lambda seen: ask(lambda client: client.kill(seen.unit_id)),
        lambda seen: ask(lambda client: client.remove_container(seen.unit_id, force=True)),
    )


@pytest.fixture(params=["fake", pytest.param("compose", marks=pytest.mark.real)])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    if request.param == "fake":
        made = _fake()
    else:
        host, program, image = map(
            request.getfixturevalue, ("docker_host", "compose_program", "demo_image")
        )
        made = _compose(host, program, image, tmp_path)
    yield made
    made.tear_down()
    made.engine.close()


# --- a life --------------------------------------------------------------------------------------


def test_a_topology_runs_serves_stops_and_is_gone(bench: Bench) -> None:
    engine, workload = bench.engine, bench.workload()
    created = bench.create(workload)
    assert (created.status, created.services) == ("created", ())
    engine.start(created)
    made = bench.unit(workload)
    assert made.status == "running"
    assert statuses(made) == dict.fromkeys(ALL, "created")
    engine.start_services(made, ["db"])
    assert statuses(bench.unit(workload)) == {"api": "created", "db": "running",
                                              "metrics": "created"}  # fmt: skip
    engine.start_services(made, ["api", "metrics"])
    running = bench.unit(workload)
    assert statuses(running) == dict.fromkeys(ALL, "running")
    assert [one.altered for one in running.services] == [(), (), ()]
    assert running.image_digest == bench.image.digest
    assert [one.name for one in running.endpoints] == ["http"]
    engine.stop(running, 2_000)
    stopped = bench.unit(workload)
    assert (stopped.status, statuses(stopped)) == ("exited", dict.fromkeys(ALL, "exited"))
    engine.remove(stopped)
    assert engine.units() == ()
    engine.sweep(INSTANCE)
    assert engine.residue(INSTANCE) == NOTHING


def test_everything_may_be_done_twice(bench: Bench) -> None:
    engine, workload, port = bench.engine, bench.workload(), free_port()
    for _ in range(2):
        bench.create(workload, port)
    for _ in range(2):
        engine.start(bench.unit(workload))
    unit = bench.unit(workload)
    ids = bench.ids(workload)
    for _ in range(2):
        engine.start_services(unit, ALL)
        engine.start(bench.unit(workload))
    assert bench.ids(workload) == ids
    assert statuses(bench.unit(workload)) == dict.fromkeys(ALL, "running")
    for _ in range(2):
        engine.remove_services(unit, ["metrics"], 0)
        engine.stop(unit, 0)
    for _ in range(2):
        engine.remove(unit)
        engine.sweep(INSTANCE)
    assert engine.residue(INSTANCE) == NOTHING


def test_it_starts_again_with_the_same_containers(bench: Bench) -> None:
    workload = bench.workload()
    unit = bench.run(workload)
    ids = bench.ids(workload)
    bench.engine.stop(unit, 0)
    bench.engine.start(bench.unit(workload))
    assert bench.unit(workload).status == "running"
    bench.engine.start_services(bench.unit(workload), ALL)
    assert bench.ids(workload) == ids
    assert statuses(bench.unit(workload)) == dict.fromkeys(ALL, "running")


def test_another_agent_finds_what_this_one_left(bench: Bench) -> None:
    workload = bench.workload()
    unit = bench.run(workload)
    other = bench.again()
    assert other.units(INSTANCE) == (unit,)
    other.start(unit)
    other.stop(unit, 0)
    assert bench.unit(workload).status == "exited"
    other.close() if other is not bench.engine else None


def test_instances_do_not_touch_each_other(bench: Bench) -> None:
    first, second = bench.workload(instance="acme/research/a"), bench.workload(
        instance="acme/research/b"
    )  # fmt: skip
    unit, ids = bench.run(first), None
    bench.run(second)
    ids = bench.ids(second)
    bench.engine.stop(unit, 0)
    bench.engine.remove(unit)
    bench.engine.sweep(unit.instance)
    assert bench.engine.residue("acme/research/a") == NOTHING
    assert {one.instance for one in bench.engine.units()} == {"acme/research/b"}
    assert bench.ids(second) == ids
    assert statuses(bench.unit(second)) == dict.fromkeys(ALL, "running")


# --- one form after another ----------------------------------------------------------------------


def test_a_form_that_is_written_down_touches_nothing(bench: Bench) -> None:
    old, new = bench.workload(), bench.other()
    port = free_port()
    before = bench.run(old, port)
    assert bench.create(new, port).status == "created"
    assert bench.unit(old) == before


def test_an_upgrade_replaces_only_what_changed(bench: Bench) -> None:
    old, new, port = bench.workload(), bench.other(), free_port()
    bench.run(old, port)
    before = bench.ids(old)
    unit = bench.apply(new, port)
    after = bench.ids(new)
    assert {name for name in ALL if after[name] != before[name]} == {"api"}
    assert statuses(unit) == {"api": "created", "db": "running", "metrics": "running"}
    assert (bench.unit(old).status, bench.unit(old).services) == ("created", ())
    bench.engine.remove(bench.unit(old))
    assert bench.engine.units(INSTANCE) == (unit,)
    assert bench.ids(new) == after


def test_back_to_the_form_before(bench: Bench) -> None:
    old, new, port = bench.workload(), bench.other(), free_port()
    bench.run(old, port)
    before = bench.ids(old)
    bench.run(new, port)
    bench.engine.start(bench.unit(old))
    back = bench.ids(old)
    assert (back["db"], back["metrics"]) == (before["db"], before["metrics"])
    assert statuses(bench.unit(old))["api"] == "created"
    assert bench.unit(new).status == "created"


def test_services_that_come_and_go(bench: Bench) -> None:
    old, port = bench.workload(), free_port()
    bench.run(old, port)
    before = bench.ids(old)
    kept = [one for one in bench.services() if one.name != "metrics"]
    new = bench.workload((*kept, bench.service("worker")))
    unit = bench.apply(new, port)
    assert statuses(unit) == {"api": "running", "db": "running", "worker": "created"}
    assert bench.ids(new) | before == before | {"worker": bench.ids(new)["worker"]}
    assert bench.engine.residue(INSTANCE).containers == 3


def test_a_unit_that_is_not_in_force_is_not_stopped(bench: Bench) -> None:
    old, new, port = bench.workload(), bench.other(), free_port()
    bench.run(old, port)
    waiting = bench.create(new, port)
    bench.engine.stop(waiting, 0)
    assert statuses(bench.unit(old)) == dict.fromkeys(ALL, "running")


def test_a_form_that_is_gone_is_not_started(bench: Bench) -> None:
    workload = bench.workload()
    unit = bench.create(workload)
    bench.engine.remove(unit)
    with pytest.raises(EngineFailure) as refused:
        bench.engine.start(unit)
    assert refused.value.reason is FailureReason.CREATE_REFUSED
    assert bench.engine.units() == ()


# --- what happens to services --------------------------------------------------------------------


def test_one_that_is_killed_is_seen_and_the_watcher_hears_of_it(bench: Bench) -> None:
    heard: list[str | None] = []
    stop = threading.Event()
    watcher = threading.Thread(target=bench.engine.watch, args=(heard.append, stop))
    watcher.start()
    workload = bench.workload()
    bench.run(workload)
    eventually(lambda: bool(heard))
    heard.clear()
    bench.kill(bench.seen(workload, "db"))
    eventually(lambda: INSTANCE in heard)
    eventually(lambda: bench.seen(workload, "db").status == "exited")
    assert bench.seen(workload, "db").exit_code == 137
    assert bench.seen(workload, "api").status == "running"
    assert bench.unit(workload).status == "running"
    stop.set()
    bench.engine.close()
    watcher.join(10)
    assert not watcher.is_alive()


def test_one_that_is_removed_is_missing_and_made_anew(bench: Bench) -> None:
    workload = bench.workload()
    bench.run(workload)
    before = bench.ids(workload)
    bench.destroy(bench.seen(workload, "db"))
    gone = bench.seen(workload, "db")
    assert gone == ServiceSeen("db", form=gone.form)
    bench.engine.start(bench.unit(workload))
    after = bench.ids(workload)
    assert {name for name in ALL if after[name] != before[name]} == {"db"}
    assert statuses(bench.unit(workload)) == {"api": "running", "db": "created",
                                              "metrics": "running"}  # fmt: skip


def test_of_what_is_missing_form_and_volumes_are_told(bench: Bench) -> None:
    workload, port = bench.workload(), free_port()
    before = bench.run(workload, port)
    forms = {one.name: one.form for one in before.services}
    assert (before.volumes, "" in forms.values()) == (None, False)
    bench.destroy(bench.seen(workload, "metrics"))
    gone = bench.unit(workload)
    assert {one.name: one.form for one in gone.services} == forms
    assert [bool(made) for _, made in gone.volumes or ()] == [True]
    bench.engine.start(gone)
    again = bench.unit(workload)
    assert (again.volumes, statuses(again)["metrics"]) == (gone.volumes, "created")
    other = bench.apply(bench.other("metrics"), port)
    assert {one.name for one in other.services if one.form != forms[one.name]} == {"metrics"}


def test_services_are_removed_and_made_anew(bench: Bench) -> None:
    workload = bench.workload()
    unit = bench.run(workload)
    bench.engine.remove_services(unit, ["api", "metrics"], 0)
    assert statuses(bench.unit(workload)) == {"api": "missing", "db": "running",
                                              "metrics": "missing"}  # fmt: skip
    with pytest.raises(EngineFailure) as refused:
        bench.engine.start_services(unit, ["api"])
    assert refused.value.transient
    assert "api" in refused.value.message
    bench.engine.start(bench.unit(workload))
    bench.engine.start_services(unit, ["api", "metrics"])
    assert statuses(bench.unit(workload)) == dict.fromkeys(ALL, "running")


def test_the_exit_code_is_kept(bench: Bench) -> None:
    workload = bench.workload(bench.services(command=bench.fail))
    bench.run(workload)
    eventually(lambda: bench.seen(workload, "api").status == "exited")
    eventually(lambda: bench.seen(workload, "api").exit_code == 3)


def test_one_started_by_hand_while_stopped_makes_it_run(bench: Bench) -> None:
    workload = bench.workload()
    bench.engine.stop(bench.run(workload), 0)
    bench.engine.start_services(bench.unit(workload), ["db"])
    assert bench.unit(workload).status == "running"
    bench.engine.stop(bench.unit(workload), 0)
    assert bench.unit(workload).status == "exited"


# --- failures ------------------------------------------------------------------------------------


def test_a_missing_image_is_not_found(bench: Bench) -> None:
    image = bench.image.model_copy(update={"digest": "sha256:" + "0" * 64})
    with pytest.raises(EngineFailure) as refused:
        bench.engine.pull(image, threading.Event())
    assert refused.value.reason is FailureReason.IMAGE_NOT_FOUND
    if isinstance(bench.engine, FakeCompose):
        bench.engine.pruned.add(image.digest)
    with pytest.raises(EngineFailure) as refused:
        bench.engine.create(bench.workload(bench.services(image=image)), {"http": free_port()})
    assert refused.value.reason is FailureReason.IMAGE_NOT_FOUND
    assert bench.engine.units() == ()


def test_a_taken_port_is_said_so_and_the_others_start(bench: Bench) -> None:
    workload = bench.workload()
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        port = int(held.getsockname()[1])
        if isinstance(bench.engine, FakeCompose):
            bench.engine.taken_ports.add(port)
        unit = bench.apply(workload, port)
        with pytest.raises(EngineFailure) as refused:
            bench.engine.start_services(unit, ALL)
    assert refused.value.reason is FailureReason.PORT_IN_USE
    assert refused.value.message.startswith("api: ")
    found = statuses(bench.unit(workload))
    assert (found["db"], found["metrics"]) == ("running", "running")
    # Another port, and that service alone is another one.
    bench.create(workload)
    assert statuses(bench.unit(workload)) == {**found, "api": "missing"}
    bench.engine.start(bench.unit(workload))
    bench.engine.start_services(bench.unit(workload), ALL)
    assert statuses(bench.unit(workload)) == dict.fromkeys(ALL, "running")


# --- probes --------------------------------------------------------------------------------------


def test_services_are_asked_at_their_own_address(bench: Bench) -> None:
    """`db` publishes nothing, and its image has no shell."""
    workload = bench.workload()
    unit = bench.run(workload)
    for probe in (HttpProbe(port=8080), TcpProbe(port=8080), ExecProbe(command=bench.true)):
        eventually(partial(is_ready, bench, unit, probe))
    bench.kill(bench.seen(workload, "db"))
    eventually(lambda: bench.seen(workload, "db").status == "exited")
    for probe in (HttpProbe(port=8080), TcpProbe(port=8080), ExecProbe(command=bench.true)):
        probed = bench.engine.probe_service(unit, "db", probe, 1_000)
        assert not probed.ready
        assert probed.detail
    assert bench.engine.probe_service(unit, "api", HttpProbe(port=8080), 5_000).ready


def test_one_that_is_deaf_is_not_ready(bench: Bench) -> None:
    workload = bench.workload(bench.services(command=bench.deaf))
    unit = bench.run(workload)
    assert not bench.engine.probe_service(unit, "api", HttpProbe(port=8080), 500).ready
    assert not bench.engine.probe_service(unit, "nobody", HttpProbe(port=8080), 500).ready
