"""The whole agent with real processes, against a control plane over real HTTP."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from node_agent.engines.base import Ask, Cancelled, no_credential
from node_agent.engines.process import ProcessEngine
from node_agent.link import AgentKey
from node_agent.main import make_engines
from node_agent.runtime import Agent, Pace
from node_agent.state import StateStore
from node_agent.wire import (
    FailureReason,
    HttpProbe,
    Image,
    Phase,
    Readiness,
    Workload,
    WorkloadReport,
)
from tests.agent.cases import (
    DIGEST,
    INSTANCE,
    NODE,
    control,
    launch,
    process_image,
    remove,
    sealed,
    workload,
)
from tests.agent.commands import run_command
from tests.agent.control_plane import ControlPlane
from tests.fakes.engine import FakeEngine

PACE = Pace(heartbeat_s=0.3, poll_wait_ms=300, backoff_max_s=0.2, inventory_s=60)
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def start(joined: Path) -> Iterator[Callable[[], Agent]]:
    """Starts an agent on the state folder; a second call ends the first one before."""
    running: list[tuple[Agent, StateStore]] = []

    def end() -> None:
        for agent, store in running:
            agent.stop()
            store.close()
        running.clear()

    def begin() -> Agent:
        end()
        store = StateStore(joined, time.time_ns() // 1_000_000)
        agent = Agent(store, make_engines(NODE, joined, ("process",)), joined, PACE)
        agent.start()
        running.append((agent, store))
        return agent

    yield begin
    end()


@pytest.fixture
def site(tmp_path: Path) -> Callable[..., Workload]:
    def make(version: str, **changes: Any) -> Workload:
        image = process_image(tmp_path / "layout", version)
        readiness = Readiness(
            probe=HttpProbe(port=8080), interval_ms=100, start_budget_ms=15_000, failures_max=2
        )
        fields = {"image": image, "command": ("python3", "serve.py"), "readiness": readiness}
        return workload(**{**fields, "stop_grace_ms": 500, **changes})

    return make


def deaf(site: Callable[..., Workload], version: str) -> Workload:
    probe = Readiness(probe=HttpProbe(port=8080), interval_ms=50, start_budget_ms=400)
    return site(version, command=("sleep", "600"), readiness=probe)


def page(report: WorkloadReport) -> str:
    url = f"http://127.0.0.1:{report.endpoints[0].host_port}/"
    with urllib.request.urlopen(url, timeout=5) as answer:
        return str(answer.read().decode().strip())


def ready(what: Workload) -> Callable[[WorkloadReport], bool]:
    return lambda w: w.phase is Phase.READY and w.running_hash == what.spec_hash


def ended(what: Workload) -> Callable[[WorkloadReport], bool]:
    ends = (Phase.READY, Phase.FAILED)
    return lambda w: w.phase in ends and w.target_hash == what.spec_hash


def processes_of(folder: Path) -> int:
    units = ProcessEngine(NODE, folder / "process").units(INSTANCE)
    return sum(unit.alive for unit in units)


def test_launch_replace_and_remove_with_proof(
    plane: ControlPlane, start: Callable[[], Agent], site: Callable[..., Workload], joined: Path
) -> None:
    start()
    first, second = site("1"), site("2")
    plane.send(launch, first)
    before = plane.wait_for_workload(ready(first))
    assert page(before) == "1"
    plane.send(launch, second)
    after = plane.wait_for_workload(ready(second))
    assert page(after) == "2"
    assert after.endpoints == before.endpoints
    plane.send(remove)
    gone = plane.wait_for_workload(lambda w: w.phase is Phase.REMOVED)
    assert gone.proof is not None
    assert gone.proof.clean
    assert list((joined / "process" / "units").iterdir()) == []
    report = plane.wait_for(lambda report: report.complete)
    assert (report.last_seq, report.strays) == (3, ())
    assert report.inventory.engines == ("process",)


def test_progress_waits_to_be_told_and_what_comes_of_it_does_not(
    plane: ControlPlane, joined: Path, site: Callable[..., Workload]
) -> None:
    never = Pace(heartbeat_s=60, poll_wait_ms=300, progress_s=60)
    store = StateStore(joined, time.time_ns() // 1_000_000)
    agent = Agent(store, make_engines(NODE, joined, ("process",)), joined, never)
    agent.start()
    try:
        for what in (site("1"), deaf(site, "2")):
            plane.send(launch, what)
            plane.wait_for_workload(ended(what))
        told = [w.phase for report in plane.reports for w in report.workloads]
    finally:
        agent.stop()
        store.close()
    # The first word of each carries its acknowledgement.
    moving = [phase for phase in told if phase not in (Phase.READY, Phase.FAILED)]
    assert len(moving) <= 2 < len(told)


def test_a_failed_gate_goes_back_to_what_served(
    plane: ControlPlane, start: Callable[[], Agent], site: Callable[..., Workload], joined: Path
) -> None:
    start()
    good, bad = site("1"), deaf(site, "2")
    plane.send(launch, good)
    plane.wait_for_workload(ready(good))
    plane.send(launch, bad)
    report = plane.wait_for_workload(lambda w: w.phase is Phase.FAILED and w.retained)
    assert report.reason is FailureReason.NOT_READY_IN_TIME
    assert (report.target_hash, report.running_hash) == (bad.spec_hash, good.spec_hash)
    assert page(report) == "1"
    assert processes_of(joined) == 1


def test_stop_and_start(
    plane: ControlPlane, start: Callable[[], Agent], site: Callable[..., Workload], joined: Path
) -> None:
    start()
    what = site("1")
    plane.send(launch, what)
    plane.wait_for_workload(ready(what))
    plane.send(control, False)
    plane.wait_for_workload(lambda w: w.phase is Phase.STOPPED)
    assert processes_of(joined) == 0
    plane.send(control, True)
    plane.wait_for_workload(ready(what))


def test_a_killed_workload_comes_back(
    plane: ControlPlane, start: Callable[[], Agent], site: Callable[..., Workload], joined: Path
) -> None:
    start()
    what = site("1")
    plane.send(launch, what)
    plane.wait_for_workload(ready(what))
    engine = ProcessEngine(NODE, joined / "process")
    engine.stop(engine.units(INSTANCE)[0], 0)
    back = plane.wait_for_workload(lambda w: ready(what)(w) and w.restarts == 1)
    assert page(back) == "1"


def test_while_the_control_plane_is_away_everything_goes_on(
    plane: ControlPlane, start: Callable[[], Agent], site: Callable[..., Workload], joined: Path
) -> None:
    start()
    what = site("1")
    plane.send(launch, what)
    report = plane.wait_for_workload(ready(what))
    plane.away = True
    engine = ProcessEngine(NODE, joined / "process")
    engine.stop(engine.units(INSTANCE)[0], 0)
    eventually(lambda: processes_of(joined) == 1)
    eventually(lambda: answers(report))
    plane.away = False
    later = plane.wait_for_workload(lambda w: ready(what)(w) and w.restarts == 1)
    assert later.endpoints == report.endpoints


def test_stopping_the_agent_stops_no_workload_and_a_new_one_takes_it_over(
    plane: ControlPlane, start: Callable[[], Agent], site: Callable[..., Workload], joined: Path
) -> None:
    agent = start()
    what = site("1")
    plane.send(launch, what)
    report = plane.wait_for_workload(ready(what))
    agent.stop()
    assert page(report) == "1"
    start()
    again = plane.wait_for_workload(lambda w: ready(what)(w) and w.since_ms > report.since_ms)
    assert (again.restarts, again.endpoints) == (0, report.endpoints)
    assert processes_of(joined) == 1


def test_an_image_that_is_not_there_fails_its_own_instance_only(
    plane: ControlPlane, start: Callable[[], Agent], site: Callable[..., Workload]
) -> None:
    start()
    missing = site("1").image.model_copy(update={"digest": "sha256:" + "0" * 64})
    plane.send(launch, site("1", instance="a/b/missing", image=missing))
    good = site("1")
    plane.send(launch, good)
    plane.wait_for_workload(ready(good))
    failed = plane.wait_for_workload(lambda w: w.phase is Phase.FAILED, "a/b/missing")
    assert failed.reason is FailureReason.IMAGE_NOT_FOUND


class StuckEngine(FakeEngine):
    """Pulls of one digest hang until they are called off."""

    stuck = "sha256:" + "5" * 64
    called_off = threading.Event()

    def pull(self, image: Image, cancelled: threading.Event, ask: Ask = no_credential, /) -> None:
        if image.digest == self.stuck:
            cancelled.wait()
            self.called_off.set()
            raise Cancelled
        super().pull(image, cancelled, ask)


def test_a_hanging_pull_holds_up_nobody_and_gives_way_to_a_newer_task(
    plane: ControlPlane, joined: Path
) -> None:
    engine = StuckEngine(NODE, {DIGEST}, name="process")
    store = StateStore(joined, time.time_ns() // 1_000_000)
    agent = Agent(store, {"process": engine}, joined, PACE)
    agent.start()
    try:
        hanging = workload().image.model_copy(update={"digest": engine.stuck})
        plane.send(launch, workload(image=hanging))
        plane.wait_for_workload(lambda w: w.phase is Phase.PULLING)
        other = workload(instance="a/b/other")
        plane.send(launch, other)
        plane.wait_for_workload(ready(other), "a/b/other")
        newer = workload()
        plane.send(launch, newer)
        plane.wait_for_workload(ready(newer))
        assert engine.called_off.wait(120)
    finally:
        agent.stop()
        store.close()


def test_a_task_that_can_not_be_written_is_not_acknowledged_and_taken_later(
    plane: ControlPlane, joined: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = StateStore(joined, time.time_ns() // 1_000_000)
    agent = Agent(store, {"process": FakeEngine(NODE, {DIGEST}, name="process")}, joined, PACE)
    room, real = threading.Event(), store.accept

    def accept(*arguments: Any) -> Any:
        if not room.is_set():
            raise OSError(28, "No space left on device")
        return real(*arguments)

    monkeypatch.setattr(store, "accept", accept)
    agent.start()
    try:
        what = workload()
        plane.send(launch, what)
        plane.wait_for(lambda r: r.refusal == "state_not_written: No space left on device")
        room.set()
        plane.wait_for_workload(ready(what))
        plane.wait_for(lambda report: not report.refusal)
        assert [ack.accepted for report in plane.reports for ack in report.acks] == [True]
    finally:
        agent.stop()
        store.close()


def test_an_engine_that_does_not_answer_makes_the_report_incomplete_not_empty(
    plane: ControlPlane, joined: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("node_agent.turns.REFRESH_MS", 500)
    engine = FakeEngine(NODE, {DIGEST}, name="process")
    store = StateStore(joined, time.time_ns() // 1_000_000)
    agent = Agent(store, {"process": engine}, joined, PACE)
    agent.start()
    try:
        what = workload()
        plane.send(launch, what)
        plane.wait_for_workload(ready(what))
        plane.wait_for(lambda report: report.complete)
        engine.away = True
        report = plane.wait_for(lambda report: not report.complete)
        assert [w.running_hash for w in report.workloads] == [what.spec_hash]
        assert list(report.inventory.engine_errors) == ["process"]
        engine.away = False
        report = plane.wait_for(lambda report: report.complete)
        assert report.inventory.engines == ("process",)
    finally:
        agent.stop()
        store.close()


def test_tasks_are_acknowledged_and_refused_with_words(
    plane: ControlPlane, start: Callable[[], Agent], site: Callable[..., Workload]
) -> None:
    agent = start()
    task = plane.send(launch, site("1"))
    report = plane.wait_for(lambda report: bool(report.acks))
    assert [(ack.task_id, ack.accepted) for ack in report.acks] == [(task.task_id, True)]
    agent.take_task(sealed(launch(1, task_id="replayed", now_ms=task.issued_at_ms), plane.key))
    refused = plane.wait_for(lambda r: any(ack.task_id == "replayed" for ack in r.acks))
    (ack,) = [ack for ack in refused.acks if ack.task_id == "replayed"]
    assert (ack.accepted, ack.code) == (False, "replayed")


def test_a_task_that_is_not_believed_is_told_of_although_its_id_is_not(
    plane: ControlPlane, start: Callable[[], Agent], site: Callable[..., Workload]
) -> None:
    """The control plane lost its keys, say: it would wait for an acknowledgement in vain."""
    start()
    ours, plane.key = plane.key, AgentKey.generate()
    plane.send(launch, site("1"))
    report = plane.wait_for(lambda report: bool(report.refusal))
    assert report.refusal == "unknown_key: signed by no key that is trusted here"
    assert (report.acks, report.workloads) == ((), ())
    plane.key = ours
    plane.forget_tasks()
    plane.wait_for(lambda report: not report.refusal)
    plane.send(launch, site("1"))
    plane.wait_for(lambda report: bool(report.acks))


def test_what_a_task_asked_for_meanwhile_is_no_stray(
    plane: ControlPlane, start: Callable[[], Agent], site: Callable[..., Workload], joined: Path
) -> None:
    """The agent had lost its memory; now it has been told again what is to run."""
    what = site("1")
    ProcessEngine(NODE, joined / "process").create(what, {"http": 1})
    start()
    plane.wait_for(lambda report: bool(report.strays))
    plane.send(launch, what)
    report = plane.wait_for(lambda report: bool(report.workloads))
    assert report.strays == ()


def test_what_no_task_asked_for_is_shown_and_not_touched(
    plane: ControlPlane, start: Callable[[], Agent], site: Callable[..., Workload], joined: Path
) -> None:
    engine = ProcessEngine(NODE, joined / "process")
    stray = site("1", instance="a/b/stray")
    engine.create(stray, {"http": 1})
    start()
    report = plane.wait_for(lambda report: bool(report.strays))
    assert [(s.instance, s.spec_hash) for s in report.strays] == [("a/b/stray", stray.spec_hash)]
    assert len(engine.units("a/b/stray")) == 1


@pytest.mark.parametrize("delay_s", [0.0, 0.01, 0.03, 0.06, 0.12, 0.25])
def test_killed_in_the_middle_of_a_launch_one_workload_results(
    plane: ControlPlane, joined: Path, site: Callable[..., Workload], delay_s: float
) -> None:
    what = site("1")
    agent = spawn(joined)
    try:
        plane.wait_for(lambda report: True)
        plane.send(launch, what)
        eventually(lambda: any((joined / "instances").glob("*.json")))
        time.sleep(delay_s)
    finally:
        agent.kill()
        agent.wait()
    plane.reports.clear()
    agent = spawn(joined)
    try:
        report = plane.wait_for_workload(ready(what))
        assert page(report) == "1"
        assert processes_of(joined) == 1
        assert marked_processes(joined) == 1
    finally:
        agent.send_signal(signal.SIGTERM)
        assert agent.wait(120) == 0
    assert processes_of(joined) == 1


def test_commands_before_joining_and_beside_a_running_agent(
    joined: Path, start: Callable[[], Agent], plane: ControlPlane, tmp_path: Path
) -> None:
    assert run_command(tmp_path / "new", "run", "--engine", "process").exit_code == 3
    assert run_command(tmp_path / "new", "status").exit_code == 3
    start()
    assert run_command(joined, "run", "--engine", "process").exit_code == 5
    plane.wait_for(lambda report: True)
    eventually(lambda: run_command(joined, "status").exit_code == 0)
    assert f"node {NODE}" in run_command(joined, "status").output


def spawn(folder: Path) -> subprocess.Popen[bytes]:
    arguments = ["--state-dir", str(folder), "run", "--engine", "process"]
    return subprocess.Popen(
        [sys.executable, "-m", "node_agent.main", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.DEVNULL,
    )


def marked_processes(folder: Path) -> int:
    """Processes whose working directory is in this agent's folder, looked up without the agent."""
    found = 0
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                found += os.readlink(entry / "cwd").startswith(str(folder / "process"))
            except OSError:
                continue
    return found


def answers(report: WorkloadReport) -> bool:
    try:
        return page(report) == "1"
    except OSError:
        return False


def eventually(condition: Callable[[], bool], timeout_s: float = 120.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, "did not come true"
        time.sleep(0.02)
