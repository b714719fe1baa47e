"""How a topology is kept running: losses, restarts, reboots, stops, removal, engine trouble."""

from __future__ import annotations

import pytest

from node_agent.flaps import STABLE_MS
from node_agent.steps import Absent, Present, Settled
from node_agent.wire import FailureReason, Phase, Port
from tests.agent.cases import INSTANCE
from tests.agent.topology_cases import APP, MISSING, PLAIN, app, finished
from tests.agent.topology_world import (
    JOB,
    PATIENCE,
    TopologyWorld,
    ready,
    service,
    topology_workload,
)

# --- what happens to what runs -------------------------------------------------------------------


@pytest.mark.parametrize("how", ["end", "take", "pause", "alter"])
@pytest.mark.parametrize("name", ["api", "metrics"])
def test_a_lost_service_alone_is_brought_back(how: str, name: str) -> None:
    world = app()
    before_ms = world.now_ms
    match how:
        case "end":
            world.compose.end(INSTANCE, name, 137)
        case "take":
            world.compose.take(INSTANCE, name)
        case "pause":
            world.compose.pause(INSTANCE, name)
        case _:
            world.compose.alter(INSTANCE, name, "user changed")
    assert world.report().phase is Phase.DEGRADED
    assert name in world.report().message
    world.until(Phase.READY)
    assert world.compose.started == [name]
    assert world.now_ms - before_ms < 1_000
    assert world.phase_of(name).restarts == 1
    assert world.report().restarts == 1 or how == "alter"
    assert len(world.progress.losses_ms) == (name == "api")


def test_a_dependency_that_is_lost_restarts_no_one_else() -> None:
    world = app()
    world.compose.deaf.add("db")
    world.until(Phase.DEGRADED)
    assert world.report().message == "db: not ready: it answers nothing"
    world.compose.deaf.clear()
    world.until(Phase.READY)
    world.compose.end(INSTANCE, "db", 1)
    world.until(Phase.READY)
    assert world.compose.started == ["db"]


def test_what_is_lost_with_its_dependency_waits_for_it_and_is_one_loss() -> None:
    world = app()
    for name in ("db", "api", "metrics"):
        world.compose.end(INSTANCE, name, 137)
    world.step()
    assert world.phase_of("api").detail == "exited with 137, waits for db (healthy)"
    world.until(Phase.READY)
    assert world.compose.started == ["db", "api", "metrics"]
    assert len(world.progress.losses_ms) == 1


def test_restart_all_stops_the_others_first() -> None:
    what = topology_workload(
        service("leader"), service("worker", after="leader:healthy"), vital_failure="restart_all"
    )
    world = ready(what)
    world.compose.end(INSTANCE, "leader", 1)
    world.until(Phase.READY)
    assert world.done[:3] == ["Stop", "Start", "StartServices leader"]
    assert world.compose.started == ["leader", "worker"]
    assert world.compose.made_anew == {}
    assert (len(world.progress.losses_ms), world.report().restarts) == (1, 1)


@pytest.mark.parametrize("policy", ["restart_service", "restart_all"])
def test_a_vital_service_that_is_lost_again_and_again_is_given_up(policy: str) -> None:
    what = topology_workload(service("a"), service("b"), vital_failure=policy)
    world = ready(what)
    for _ in range(4):
        world.compose.end(INSTANCE, "a", 9)
        world.until(Phase.READY)
    world.compose.end(INSTANCE, "a", 9)
    assert world.run() == Settled()
    report = world.report()
    assert (report.phase, report.reason) == (Phase.FAILED, FailureReason.FLAPPING)
    assert report.message == "lost 5 times within 10 minutes, last: a exited with 9"
    assert not any(unit.alive for unit in world.units())
    world.order(Present(what))
    world.until(Phase.READY)


def test_a_calm_time_makes_up_for_what_was_before() -> None:
    world = ready(PLAIN)
    for _ in range(3):
        for _ in range(4):
            world.compose.end(INSTANCE, "db", 9)
            world.until(Phase.READY)
        world.run(5)
        world.now_ms += STABLE_MS
    assert world.report().phase is Phase.READY


def test_what_is_not_vital_and_fails_again_and_again_stays_down_alone() -> None:
    world = app()
    for _ in range(5):
        world.compose.end(INSTANCE, "metrics", 2)
        while world.phases()["metrics"] not in {"ready", "failed"}:
            world.step()
    report = world.report()
    assert (report.phase, report.reason) == (Phase.DEGRADED, FailureReason.FLAPPING)
    assert report.message == "metrics: tried 5 times, last: exited with 2"
    assert world.phases()["metrics"] == "failed"
    assert world.compose.started == ["metrics"] * 4
    world.order(Present(APP))
    world.until(Phase.READY)


@pytest.mark.parametrize(
    ("restart", "code", "phase", "whole"),
    [
        ("always", 0, "ready", Phase.READY),
        ("always", 1, "ready", Phase.READY),
        ("on_failure", 0, "completed", Phase.READY),
        ("on_failure", 1, "ready", Phase.READY),
        ("never", 0, "completed", Phase.READY),
    ],
)
@pytest.mark.parametrize("vital", [True, False])
def test_what_the_policy_says_of_an_end(
    restart: str, code: int, phase: str, whole: Phase, vital: bool
) -> None:
    what = topology_workload(service("main"), service("other", restart=restart, vital=vital))
    world = ready(what)
    world.compose.end(INSTANCE, "other", code)
    world.run(40)
    assert world.phases()["other"] == phase
    assert world.report().phase is whole
    assert world.compose.started == (["other"] if phase == "ready" else [])


# --- reboots, stops, removal ---------------------------------------------------------------------


@pytest.mark.parametrize("agent_too", [True, False])
def test_after_a_reboot_all_is_started_in_order_and_jobs_stay_done(agent_too: bool) -> None:
    world = app()
    world.compose.reboot()
    if agent_too:
        world.crash()
    world.until(Phase.READY)
    assert world.compose.started == ["db", "api", "metrics"]
    assert world.phases()["init"] == "completed"
    assert len(world.progress.losses_ms) == 1
    assert world.compose.made_anew == {}


def test_a_worker_that_ended_well_with_the_host_is_started_again() -> None:
    worker = service("worker", "work", restart="on_failure", readiness=JOB)
    world = ready(topology_workload(service("main"), worker))
    world.compose.reboot()
    world.crash()
    world.until(Phase.READY)
    world.run(20)
    assert world.phases() == {"main": "ready", "worker": "ready"}


def test_an_agent_that_starts_anew_changes_nothing() -> None:
    world = app()
    world.crash()
    world.until(Phase.READY)
    assert world.compose.started == []
    assert world.progress.losses_ms == ()
    assert not {one.partition(" ")[0] for one in world.done} - {
        "TakeNote", "ProbeService", "NoteReady",
    }  # fmt: skip


@pytest.mark.parametrize("crash_after", [None, *range(1, 12)])
def test_stop_and_start_on_purpose(crash_after: int | None) -> None:
    worker = service("worker", "work", restart="on_failure", readiness=JOB)
    once = service("once", "work", restart="never", readiness=JOB)
    job = service("job", "work", readiness=JOB, restart="on_failure")
    main = service("main", after="job:completed")
    what = topology_workload(main, worker, once, job)
    world = finished(TopologyWorld(Present(what)), "job")
    world.order(Present(what, run=False))
    assert world.run() == Settled()
    report = world.report()
    assert (report.phase, report.running_hash) == (Phase.STOPPED, None)
    assert world.phases() == {
        "job": "completed", "main": "stopped", "once": "stopped", "worker": "stopped",
    }  # fmt: skip
    world.order(Present(what, run=True))
    if crash_after is not None:
        world.run(crash_after)
        world.crash()
    world.until(Phase.READY)
    world.run(10)
    assert world.phases() == {
        "job": "completed", "main": "ready", "once": "ready", "worker": "ready",
    }  # fmt: skip
    assert "job" not in world.compose.started


def test_removal_is_proved() -> None:
    world = app()
    world.order(Absent(INSTANCE))
    assert world.run() == Settled()
    report = world.report()
    assert report.phase is Phase.REMOVED
    assert report.proof is not None
    assert report.proof.clean
    assert (world.compose.containers, world.compose.forms, world.compose.networks) == (
        {},
        {},
        set(),
    )


def test_lost_files_are_written_anew_and_what_runs_goes_on() -> None:
    world = app()
    world.compose.lose_files(INSTANCE)
    world.until(Phase.READY)
    assert world.compose.started == []
    assert world.compose.made_anew == {}
    world.compose.lose_files(INSTANCE)
    world.order(Absent(INSTANCE))
    world.run()
    assert world.report().phase is Phase.REMOVED
    assert world.compose.containers == {}


# --- what an engine says -------------------------------------------------------------------------


def test_images_that_were_cleared_away_are_pulled_again() -> None:
    world = app()
    world.compose.pruned.add(APP.image.digest)
    world.compose.take(INSTANCE, "metrics")
    world.crash()
    world.until(Phase.READY)
    assert "Pull" in world.done


def test_a_missing_service_whose_image_is_away_holds_up_no_other() -> None:
    side = service("side", image=MISSING, vital=False)
    world = TopologyWorld(Present(topology_workload(service("main"), side)))
    world.compose.images.add(MISSING.digest)
    world.until(Phase.READY)
    world.compose.images.discard(MISSING.digest)
    world.compose.pruned.add(MISSING.digest)
    world.compose.take(INSTANCE, "side")
    world.crash()
    world.run(20)
    world.compose.end(INSTANCE, "main", 1)
    before_ms = world.now_ms
    while world.phases()["main"] != "ready":
        world.step()
    assert world.now_ms - before_ms < 5_000
    assert world.report().phase is Phase.DEGRADED
    world.compose.images.add(MISSING.digest)
    world.until(Phase.READY)


@pytest.mark.parametrize("vital", [True, False])
def test_one_that_can_not_be_started_is_named_and_the_others_are(vital: bool) -> None:
    what = topology_workload(service("a", vital=vital), service("b"))
    world = TopologyWorld(Present(what))
    world.compose.unstartable["a"] = FailureReason.GPU_UNAVAILABLE
    world.run(PATIENCE)
    report = world.report()
    if vital:
        assert (report.phase, report.reason) == (Phase.FAILED, FailureReason.GPU_UNAVAILABLE)
        assert report.message == "a: can't be started"
        return
    assert report.phase is Phase.DEGRADED
    assert report.message == "a: tried 5 times, last: can't be started"
    assert world.phases() == {"a": "failed", "b": "ready"}


def test_a_port_of_our_own_choice_is_chosen_again() -> None:
    ported = service("a", ports=("http",))
    what = topology_workload(ported, service("b"), ports=(Port(name="http", container=80),))
    world = TopologyWorld(Present(what))
    world.compose.taken_ports.add(40_000)
    world.until(Phase.READY)
    assert world.report().endpoints[0].host_port > 40_000
    assert world.compose.started.count("b") == 1


def test_a_port_that_was_asked_for_fails_at_once() -> None:
    port = Port(name="http", container=80, host=40_000)
    world = TopologyWorld(Present(topology_workload(service("a", ports=("http",)), ports=(port,))))
    world.compose.taken_ports.add(40_000)
    world.run()
    assert world.report().reason is FailureReason.PORT_IN_USE


def test_what_the_engine_does_in_its_own_way_is_tolerated() -> None:
    world = TopologyWorld(Present(PLAIN))
    world.compose.own_ways = ("label x is gone",)
    world.until(Phase.READY)
    assert world.done.count("Tolerate") == 1
    world.compose.alter(INSTANCE, "api", "label x is gone", "user changed")
    assert world.report().message == "api: user changed"
    assert world.report().reason is FailureReason.ALTERED
    world.until(Phase.READY)


def test_what_is_altered_each_time_is_given_up() -> None:
    world = TopologyWorld(Present(PLAIN))
    world.run(4)
    for _ in range(PATIENCE):
        if world.seen_running("api"):
            world.compose.alter(INSTANCE, "api", "user changed")
        world.step()
    report = world.report()
    assert (report.phase, report.reason) == (Phase.FAILED, FailureReason.ALTERED)
    assert report.message == "api: altered again each time before it was ready: user changed"


def test_restart_all_stops_nothing_where_all_is_down() -> None:
    what = topology_workload(service("a"), service("b"), vital_failure="restart_all")
    world = ready(what)
    world.compose.reboot()
    world.until(Phase.READY)
    assert world.done[0] == "StartServices a b"
    assert "Stop" not in world.done


def test_who_was_given_up_is_not_made_again() -> None:
    side = service("side", "exit", "1", vital=False)
    world = TopologyWorld(Present(topology_workload(service("main"), side)))
    while "GiveUpService" not in world.done:
        world.step()
    world.run(20)
    world.compose.made_anew.clear()
    world.compose.take(INSTANCE, "side")
    world.run(20)
    assert world.compose.made_anew == {}
    assert world.phases() == {"main": "ready", "side": "failed"}


def test_what_is_altered_runs_on_while_it_can_not_be_made_anew() -> None:
    world = ready(PLAIN)
    world.compose.images.clear()
    world.compose.pruned.add(PLAIN.image.digest)
    world.compose.alter(INSTANCE, "api", "user changed")
    world.crash()
    world.run(60)
    assert world.seen_running("api")
    assert world.report().phase is Phase.DEGRADED
    world.compose.images.add(PLAIN.image.digest)
    world.until(Phase.READY)


def test_several_that_can_not_be_started_hold_up_no_other() -> None:
    sides = [service(name, vital=False) for name in ("a", "b")]
    world = TopologyWorld(Present(topology_workload(*sides, service("main"))))
    for name in ("a", "b"):
        world.compose.unstartable[name] = FailureReason.GPU_UNAVAILABLE
    world.run(PATIENCE)
    assert world.phases() == {"a": "failed", "b": "failed", "main": "ready"}
    world.compose.unstartable.clear()
    world.order(Present(topology_workload(*sides, service("main"))))
    world.until(Phase.READY)
