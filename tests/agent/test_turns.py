"""Turns without threads: what they cost at rest, and what they do when the disk is full."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

import pytest
import structlog.testing

from node_agent.engines.base import EngineFailure
from node_agent.looks import Looks
from node_agent.ports import HostPorts
from node_agent.state import StateStore
from node_agent.steps import Done, ProbeReady
from node_agent.turns import CATCH_UP_MS, REFRESH_MS, Again, Aside, Finished, Rest, Turns
from node_agent.wire import (
    MACHINE_IDENTITY,
    FailureReason,
    Image,
    Phase,
    Readiness,
    SecretFile,
    Workload,
)
from tests.agent.cases import DIGEST, INSTANCE, NODE, NOW_MS, launch, remove, workload
from tests.fakes.engine import FakeEngine


@dataclass
class Disk:
    """Files in memory; `full` refuses what is written."""

    files: dict[str, bytes] = field(default_factory=dict)
    full: bool = False

    def read(self, name: str) -> bytes | None:
        return self.files.get(name)

    def write(self, name: str, text: str) -> None:
        if self.full:
            raise OSError(28, "No space left on device")
        self.files[name] = text.encode()

    def names(self) -> tuple[str, ...]:
        return tuple(sorted(name for name in self.files if name.startswith("instances/")))

    def remove(self, names: tuple[str, ...]) -> None:
        for name in names:
            self.files.pop(name, None)

    def move_aside(self, name: str, now_ms: int) -> str:
        self.files[f"{name}.corrupt-{now_ms}"] = self.files.pop(name)
        return f"{name}.corrupt-{now_ms}"

    def anything_lost(self) -> bool:
        return any(".corrupt-" in name for name in self.files)

    def close(self) -> None:
        return


@dataclass
class Secrets:
    """Somebody who brings secrets; counts how often they are asked. `kept`: for which workloads."""

    asked: int = 0
    asked_at_start: int = 0
    failing: bool = False
    kept: set[str] = field(default_factory=set)

    def provide(
        self, workload: Workload, called_off: threading.Event, *, starts: bool = False
    ) -> None:
        self.asked += 1
        self.asked_at_start += starts
        if self.failing:
            raise EngineFailure(FailureReason.SECRET_UNAVAILABLE, "away", transient=True)
        self.kept.add(workload.spec_hash)

    def keep_only(self, instance: str, spec_hashes: Collection[str]) -> None:
        self.kept &= {*spec_hashes}

    def remove(self, instance: str) -> None:
        return

    def residue(self, instance: str) -> int:
        return 0


@dataclass
class Host:
    """A node whose clock only goes on when nothing is left to do."""

    engine: FakeEngine = field(default_factory=lambda: FakeEngine(NODE, {DIGEST}, name="process"))
    disk: Disk = field(default_factory=Disk)
    time_ms: int = NOW_MS
    turns: dict[str, Turns] = field(default_factory=dict)
    rests: dict[str, int] = field(default_factory=dict)
    secrets: Secrets = field(default_factory=Secrets)

    def __post_init__(self) -> None:
        self.start()

    def start(self) -> None:
        """The agent, from what is on disk."""
        self.store = StateStore(self.disk, self.time_ms)
        self.ports = HostPorts(self.store, is_free=lambda _: True)
        self.looks = Looks()
        self.turns.clear()
        for instance in self.store.instances():
            self.follow(instance)
        heard = threading.Event()
        heard.set()
        self.engine._changed = self.changed

    def now_ms(self) -> int:
        return self.time_ms

    def steady_ms(self) -> int:
        return self.time_ms

    def follow(self, instance: str) -> None:
        self.turns.setdefault(
            instance,
            Turns(
                instance, self.store, {"process": self.engine}, self.ports, self, lambda: None,
                self.secrets, self.looks,
            ),
        )  # fmt: skip
        self.rests[instance] = 0

    def launch(self, seq: int, what: Workload) -> None:
        self.store.accept(launch(seq, what), self.time_ms)
        self.follow(what.instance)

    def changed(self, instance: str | None) -> None:
        if instance in self.turns:
            self.turns[instance].dirty = True
            self.rests[instance] = 0

    def run(self, until_ms: int) -> None:
        while self.time_ms < until_ms:
            for instance in sorted(self.turns):
                if self.rests[instance] <= self.time_ms:
                    self.rests[instance] = self._work(self.turns[instance])
            self.time_ms = min(*self.rests.values(), until_ms) + 1

    def _work(self, turns: Turns) -> int:
        while True:
            after = turns.turn()
            if isinstance(after, Aside):
                after = turns.finish(after, turns.attempt(after, threading.Event()))
            match after:
                case Rest(until_ms):
                    return until_ms
                case Finished():
                    return self.time_ms + REFRESH_MS
                case _:
                    self.time_ms += 1

    def phase(self, instance: str = INSTANCE) -> Phase | None:
        published = self.turns[instance].published
        return published.report.phase if published is not None else None


@pytest.fixture
def host() -> Iterator[Host]:
    host = Host()
    yield host
    host.store.close()


MANY = [workload(instance=f"a/b/c{number}", readiness=Readiness()) for number in range(20)]


def settle(host: Host) -> None:
    for number, what in enumerate(MANY):
        host.launch(number + 1, what)
    host.run(host.time_ms + 30_000)
    assert {host.phase(what.instance) for what in MANY} == {Phase.READY}
    host.engine.calls.clear()


def test_at_rest_all_instances_share_one_look_in_each_period(host: Host) -> None:
    settle(host)
    host.run(host.time_ms + 10 * REFRESH_MS)
    assert set(host.engine.calls) == {"units"}
    assert 9 <= host.engine.calls["units"] <= 11


def test_what_no_event_told_of_is_seen_within_a_period(host: Host) -> None:
    settle(host)
    host.engine._changed = lambda _: None
    (unit,) = host.engine.units(MANY[7].instance)
    host.engine.kill(unit)
    host.run(host.time_ms + REFRESH_MS + 2_000)
    assert host.turns[unit.instance].progress.restarts == 1


def test_an_event_is_looked_into_for_its_own_instance_only(host: Host) -> None:
    settle(host)
    (unit,) = host.engine.units(MANY[7].instance)
    host.engine.calls.clear()
    host.engine.kill(unit)
    host.run(host.time_ms + 100)
    assert host.engine.calls["units"] <= 3
    assert host.engine.calls["start"] == 1


def test_after_a_failed_upgrade_the_version_before_costs_no_more(host: Host) -> None:
    settle(host)
    missing = Image(registry="fake", repository="demo", digest="sha256:" + "f" * 64)
    host.launch(100, MANY[0].model_copy(update={"image": missing}))
    host.run(host.time_ms + 1_000)
    assert host.phase(MANY[0].instance) is Phase.FAILED
    host.run(host.time_ms + REFRESH_MS)
    host.engine.calls.clear()
    host.run(host.time_ms + 10 * REFRESH_MS)
    assert host.engine.calls["units"] <= 11


def test_a_look_is_shared_only_while_it_is_new() -> None:
    engine, looks = FakeEngine(NODE, {DIGEST}), Looks()
    assert looks.newer_than(engine, 0, 100) == (100, ())
    engine.create(workload(), {"http": 1})
    assert looks.newer_than(engine, 99, 105) == (100, ())
    at_ms, units = looks.newer_than(engine, 100, 110)
    assert (at_ms, len(units)) == (110, 1)
    engine.away = True
    with pytest.raises(EngineFailure):
        looks.newer_than(engine, 110, 120)
    engine.away = False
    assert looks.newer_than(engine, 110, 130)[0] == 130


def test_a_step_that_was_done_is_seen_although_it_could_not_be_written(host: Host) -> None:
    host.launch(1, workload())
    host.run(host.time_ms + 5_000)
    host.engine.kill(host.engine.units()[0])
    host.engine._changed = lambda _: None
    host.disk.full = True
    host.engine.calls.clear()
    host.run(host.time_ms + 5_000)
    assert host.engine.calls["start"] == 1
    assert host.engine.units()[0].alive


def test_a_full_disk_of_the_agent_is_said_and_waited_for(host: Host) -> None:
    host.launch(1, workload())
    host.disk.full = True
    host.run(host.time_ms + 10_000)
    published = host.turns[INSTANCE].published
    assert published is not None
    assert published.report.reason is FailureReason.DISK_FULL
    assert published.report.message == "No space left on device"
    host.disk.full = False
    host.run(host.time_ms + 60_000)
    assert host.phase() is Phase.READY


def test_what_flapped_stays_down_when_the_agent_starts_anew(host: Host) -> None:
    host.launch(1, workload())
    host.run(host.time_ms + 2_000)
    for _ in range(5):
        for unit in host.engine.units():
            if unit.alive:
                host.engine.kill(unit)
        host.run(host.time_ms + 30_000)
        host.start()
        host.run(host.time_ms + 1_000)
    published = host.turns[INSTANCE].published
    assert published is not None
    assert published.report.reason is FailureReason.FLAPPING
    assert not any(unit.alive for unit in host.engine.units())
    host.launch(2, workload())
    host.run(host.time_ms + 5_000)
    assert host.phase() is Phase.READY


def test_an_aside_of_a_replaced_task_changes_nothing(host: Host) -> None:
    host.launch(1, workload())
    aside = host.turns[INSTANCE].turn()
    assert isinstance(aside, Aside)
    assert not host.turns[INSTANCE].superseded(aside)
    host.store.accept(remove(2), host.time_ms)
    assert host.turns[INSTANCE].superseded(aside)
    assert host.turns[INSTANCE].finish(aside, Done()) == Again()
    host.run(host.time_ms + 1_000)
    assert host.phase() is Phase.REMOVED


def test_a_probe_is_an_aside_and_nothing_is_learnt_when_it_is_called_off(host: Host) -> None:
    host.launch(1, workload())
    after = host.turns[INSTANCE].turn()
    while not (isinstance(after, Aside) and isinstance(after.step, ProbeReady)):
        if isinstance(after, Aside):
            host.turns[INSTANCE].finish(after, Done())
        after = host.turns[INSTANCE].turn()
    before = host.turns[INSTANCE].progress
    assert host.turns[INSTANCE].finish(after, None) == Again()
    assert host.turns[INSTANCE].progress == before


def test_each_loss_is_a_line_in_the_log(host: Host) -> None:
    host.launch(1, workload(readiness=Readiness()))
    host.run(host.time_ms + 30_000)
    with structlog.testing.capture_logs() as lines:
        host.engine.end(host.engine.units(INSTANCE)[0], 137)
        host.run(host.time_ms + 30_000)
    (line,) = [line for line in lines if line["log_level"] != "debug"]
    assert {key: line[key] for key in ("event", "log_level", "exit_code", "restarts")} == {
        "event": "ended, started again", "log_level": "warning", "exit_code": 137, "restarts": 1,
    }  # fmt: skip


@pytest.mark.parametrize("failing", [False, True])
def test_what_came_without_all_its_secrets_gets_the_rest_while_it_runs(failing: bool) -> None:
    host = Host()
    host.launch(1, workload(secrets=(SecretFile(name=MACHINE_IDENTITY),)))
    host.run(NOW_MS + CATCH_UP_MS // 2)
    before, host.secrets.failing = host.secrets.asked, failing
    host.run(NOW_MS + 3 * CATCH_UP_MS)
    assert before + 1 <= host.secrets.asked <= before + 3
    published = host.turns[INSTANCE].published
    assert published is not None
    assert published.report.phase is Phase.READY


def reading(source: str, *command: str) -> Workload:
    token = SecretFile(name="token", source=source)
    return workload(secrets=(token,), readiness=Readiness(), command=command or ("serve",))


def test_secrets_are_looked_at_anew_before_each_start_and_only_then(host: Host) -> None:
    host.launch(1, reading("secret://project/a"))
    host.run(NOW_MS + 5_000)
    assert host.secrets.asked_at_start == 1
    host.engine.end(host.engine.units(INSTANCE)[0], 137)
    host.run(host.time_ms + 3 * CATCH_UP_MS)
    assert host.secrets.asked_at_start == 2


def test_secrets_of_a_replaced_workload_go_with_its_unit(host: Host) -> None:
    before, broken, after = (
        reading("secret://project/a"),
        reading("secret://project/b", "exit", "3"),
        reading("secret://project/c"),
    )
    host.launch(1, before)
    host.run(NOW_MS + 5_000)
    host.launch(2, broken)
    host.run(host.time_ms + 30_000)
    # It was gone back to, and of what failed the unit is kept, for its log.
    assert host.phase() is Phase.FAILED
    assert before.spec_hash in host.secrets.kept
    host.launch(3, after)
    host.run(host.time_ms + 30_000)
    assert host.phase() is Phase.READY
    assert host.secrets.kept == {after.spec_hash}
