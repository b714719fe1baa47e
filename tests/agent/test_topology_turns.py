"""Turns of a topology: what is asked of engine, secrets, blobs, ports and registry, and when."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

import pytest
import structlog.testing

from node_agent.compose_wire import Volume
from node_agent.engines.base import Ask, PullCredential
from node_agent.ports import HostPorts
from node_agent.state import StateStore
from node_agent.steps import ProbeService
from node_agent.turns import Aside, Finished, Rest, Turns
from node_agent.wire import Image, Phase, Port, SecretFile, Workload
from tests.agent.cases import DIGEST, INSTANCE, NODE, NOW_MS, control, launch, remove
from tests.agent.test_turns import Disk
from tests.agent.topology_world import IMAGE, service, topology_workload
from tests.fakes.compose import FakeCompose

OTHER = Image(registry="fake", repository="other", digest="sha256:" + "b" * 64)
APP = topology_workload(
    service("db", image=OTHER),
    service("api", after="db:healthy", ports=("http",), secrets=("key",)),
    ports=(Port(name="http", container=80),),
    secrets=(SecretFile(name="key", source="secret://project/key"),),
)


class Asking(FakeCompose):
    """Asks for a credential at each pull, and remembers which."""

    def pull(self, image: Image, cancelled: threading.Event, ask: Ask = PullCredential, /) -> None:
        super().pull(image, cancelled)
        self.shown = (*getattr(self, "shown", ()), ask().token)


@dataclass
class Secrets:
    """`asked`: whether each time something was about to start."""

    asked: list[bool] = field(default_factory=list)
    kept: list[set[str]] = field(default_factory=list)

    def provide(
        self, workload: Workload, called_off: threading.Event, *, starts: bool = False
    ) -> None:
        self.asked.append(starts)

    def keep_only(self, instance: str, spec_hashes: Collection[str]) -> None:
        self.kept.append({*spec_hashes})

    def remove(self, instance: str) -> None:
        return

    def residue(self, instance: str) -> int:
        return 0


@dataclass
class Host:
    """One topology, a clock that goes on when there is nothing to do."""

    compose: Asking = field(default_factory=lambda: Asking(NODE, {DIGEST, OTHER.digest}))
    secrets: Secrets = field(default_factory=Secrets)
    disk: Disk = field(default_factory=Disk)
    time_ms: int = NOW_MS

    def __post_init__(self) -> None:
        self.store = StateStore(self.disk, self.time_ms)
        self.start()

    def start(self) -> None:
        """The agent, anew."""
        ports = HostPorts(self.store, is_free=lambda port: port not in self.compose.taken_ports)
        self.turns = Turns(
            INSTANCE, self.store, {"compose": self.compose}, ports, self, lambda: None,
            self.secrets, credentials=lambda _, image: PullCredential(f"for {image.repository}"),
        )  # fmt: skip
        self.compose._changed = lambda _: setattr(self.turns, "dirty", True)

    def now_ms(self) -> int:
        return self.time_ms

    def steady_ms(self) -> int:
        return self.time_ms

    def run(self, steps: int = 60) -> list[str]:
        """The names of what was carried out aside."""
        aside = []
        for _ in range(steps):
            after = self.turns.turn()
            self.time_ms += 1
            if isinstance(after, Aside):
                aside.append(type(after.step).__name__)
                self.turns.finish(after, self.turns.attempt(after, threading.Event()))
            elif isinstance(after, Rest):
                self.time_ms = max(self.time_ms, after.until_ms)
            elif isinstance(after, Finished):
                break
        return aside

    def phase_after(self, steps: int) -> Phase | None:
        self.run(steps)
        return self.phase

    @property
    def phase(self) -> Phase | None:
        published = self.turns.published
        return published.report.phase if published is not None else None


@pytest.fixture
def host() -> Iterator[Host]:
    host = Host()
    host.store.accept(launch(1, APP, kind="compose.launch"), host.time_ms)
    yield host
    host.store.close()


def test_each_image_is_pulled_with_a_credential_of_its_own(host: Host) -> None:
    assert host.run()[0] == "Pull"
    assert sorted(host.compose.shown) == [f"for {IMAGE.repository}", f"for {OTHER.repository}"]
    assert host.phase is Phase.READY


def test_secrets_are_looked_at_anew_before_services_start(host: Host) -> None:
    host.run()
    # Pull, Create and Start only need them to be there.
    assert host.secrets.asked[:3] == [False, False, False]
    assert host.secrets.asked.count(True) == 2


def test_probes_of_services_may_take_their_time_and_nothing_else(host: Host) -> None:
    assert {*host.run()} == {"Pull", "ProbeService"}
    after = None
    while not isinstance(after, Aside):
        after = host.turns.turn()
        host.time_ms += 100
    assert isinstance(after.step, ProbeService)
    before = host.turns.progress
    host.turns.finish(after, None)
    assert host.turns.progress == before


def test_a_taken_port_of_our_choice_is_picked_anew_and_no_other(host: Host) -> None:
    host.run()
    (port,) = host.store.instances()[INSTANCE].host_ports.values()
    host.compose.taken_ports.add(port)
    host.compose.end(INSTANCE, "api", 1)
    host.run()
    assert host.phase is Phase.READY
    assert host.store.instances()[INSTANCE].host_ports != {"http": port}
    assert host.compose.started == ["db", "api", "api"]


def test_an_engine_that_is_away_is_waited_for_and_nothing_is_said_to_be_gone(host: Host) -> None:
    host.run()
    host.compose.away = True
    host.turns.dirty = True
    host.run(5)
    published = host.turns.published
    assert published is not None
    assert (published.seen, published.report.phase) == (False, Phase.READY)
    assert [one.phase for one in published.report.services] == ["ready", "ready"]
    host.compose.away = False
    host.run()
    assert host.compose.started == ["db", "api"]


def test_stop_start_and_remove(host: Host) -> None:
    host.run()
    host.store.accept(control(2, False, kind="compose.control"), host.time_ms)
    phases = [host.phase_after(60)]
    host.start()
    host.store.accept(control(3, True, kind="compose.control"), host.time_ms)
    phases.append(host.phase_after(60))
    host.store.accept(remove(4, kind="compose.remove"), host.time_ms)
    phases.append(host.phase_after(60))
    assert phases == [Phase.STOPPED, Phase.READY, Phase.REMOVED]
    assert host.compose.containers == {}


def test_a_service_that_is_lost_is_a_line_in_the_log(host: Host) -> None:
    host.run()
    with structlog.testing.capture_logs() as lines:
        host.compose.end(INSTANCE, "api", 137)
        host.run()
    (line,) = [line for line in lines if line["log_level"] == "warning"]
    assert (line["event"], line["service"]) == ("ended, started again", "api")


def test_a_volume_that_somebody_removed_is_a_line_in_the_log(host: Host) -> None:
    topology = APP.topology
    assert topology is not None
    kept = topology.model_copy(update={"volumes": (Volume(name="data", size_mib=1),)})
    workload = APP.model_copy(update={"topology": kept})
    host.store.accept(launch(2, workload, kind="compose.launch"), host.time_ms)
    host.run()
    for name in ("db", "api"):
        host.compose.take(INSTANCE, name)
    host.compose.prune_volumes()
    with structlog.testing.capture_logs() as lines:
        assert host.phase_after(60) is Phase.READY
    told = "volume removed by somebody, made anew and empty"
    (line,) = [line for line in lines if line["event"] == told]
    assert line["volumes"] == [f"{INSTANCE}/data"]


def test_secrets_of_a_replaced_form_go_with_it(host: Host) -> None:
    host.run()
    new = APP.model_copy(update={"labels": {"version": "2"}})
    host.store.accept(launch(2, new, kind="compose.launch"), host.time_ms)
    host.run()
    assert host.secrets.kept == [{new.spec_hash}]
    assert host.compose.started == ["db", "api"]
