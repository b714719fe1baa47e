"""An agent that lost its state, and finds by labels what it had started."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

import pytest

from node_agent.engines.base import Engine
from node_agent.ports import HostPorts
from node_agent.state import StateStore
from node_agent.turns import Aside, Finished, Rest, Turns
from node_agent.units import Unit
from node_agent.wire import Phase, Port, Workload
from tests.agent.cases import DIGEST, INSTANCE, NODE, NOW_MS, launch, workload
from tests.agent.test_turns import Disk
from tests.agent.topology_world import service, topology_workload
from tests.fakes.compose import FakeCompose
from tests.fakes.engine import FakeEngine

HTTP = (Port(name="http", container=8080),)
ALONE = workload(engine="docker", ports=HTTP)
TOPOLOGY = topology_workload(
    service("api", ports=("http",), after="db:healthy"), service("db"), ports=HTTP
)


@dataclass
class Host:
    """Two engines that stay, and an agent that begins with an empty disk as often as it is told."""

    time_ms: int = NOW_MS
    docker: FakeEngine = field(default_factory=lambda: FakeEngine(NODE, {DIGEST}))
    compose: FakeCompose = field(default_factory=lambda: FakeCompose(NODE, {DIGEST}))

    def __post_init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        self.disk = Disk()
        self.store = StateStore(self.disk, self.time_ms)
        taken = {one.host_port for unit in self.units() for one in unit.endpoints}
        ports = HostPorts(self.store, is_free=lambda port: port not in taken)
        engines: dict[str, Engine] = {"docker": self.docker, "compose": self.compose}
        self.turns = Turns(INSTANCE, self.store, engines, ports, self, lambda: None)

    def lose_state(self) -> None:
        self.store.close()
        self.compose.lose_files(INSTANCE)
        self.begin()

    def now_ms(self) -> int:
        return self.time_ms

    def steady_ms(self) -> int:
        return self.time_ms

    def units(self) -> list[Unit]:
        return [*self.docker.units(INSTANCE), *self.compose.units(INSTANCE)]

    def run(self, what: Workload, seq: int = 1) -> None:
        self.store.accept(launch(seq, what), self.time_ms)
        until_ms = self.time_ms + 30_000
        while self.time_ms < until_ms:
            self.turn()
        published = self.turns.published
        assert published is not None
        assert published.report.phase is Phase.READY

    def turn(self) -> None:
        after = self.turns.turn()
        if isinstance(after, Aside):
            after = self.turns.finish(after, self.turns.attempt(after, threading.Event()))
        rests = isinstance(after, Rest | Finished)
        self.time_ms = after.until_ms if isinstance(after, Rest) else self.time_ms + 1
        alive = sum(one.alive for one in self.units())
        assert alive <= 1, f"{alive} run"
        self.turns.dirty = self.turns.dirty or rests

    @property
    def host_ports(self) -> dict[str, int]:
        state = self.store.instance(INSTANCE)
        assert state is not None
        return state.host_ports


@pytest.mark.parametrize(
    ("before", "after"), [(ALONE, TOPOLOGY), (TOPOLOGY, ALONE)], ids=["topology", "alone"]
)
def test_what_another_engine_runs_is_seen_and_stopped_first(
    before: Workload, after: Workload
) -> None:
    host = Host()
    host.run(before)
    host.lose_state()
    host.run(after)


def test_containers_of_a_topology_stay_and_keep_their_port() -> None:
    host = Host()
    host.run(TOPOLOGY)
    ports = host.host_ports
    host.compose.made_anew.clear()
    host.compose.started.clear()
    host.lose_state()
    host.run(TOPOLOGY)
    assert (host.compose.made_anew, host.compose.started) == ({}, [])
    assert host.host_ports == ports


def test_the_next_version_has_the_port_of_what_was_found() -> None:
    host = Host()
    host.run(ALONE)
    ports = host.host_ports
    host.lose_state()
    host.run(ALONE)
    host.run(workload(engine="docker", ports=HTTP, env={"NEXT": "1"}), 2)
    assert host.host_ports == ports


def test_a_port_that_was_asked_for_is_no_pick() -> None:
    host = Host()
    asked = workload(engine="docker", ports=(Port(name="http", container=8080, host=9000),))
    host.run(asked)
    host.lose_state()
    host.run(asked)
    assert host.host_ports == {}
