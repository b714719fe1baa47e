"""What is remembered of services when containers, volumes or the agent are gone; final ends."""

from __future__ import annotations

import pytest

from node_agent.compose_wire import Mount, Volume
from node_agent.steps import Absent, Present, Progress, Settled
from node_agent.wire import FailureReason, Phase, Workload
from tests.agent.cases import INSTANCE
from tests.agent.topology_cases import APP, INIT, app, changed, finished
from tests.agent.topology_world import TopologyWorld, ready, service, topology_workload

# --- jobs that are done --------------------------------------------------------------------------

KEPT = topology_workload(
    INIT.model_copy(update={"mounts": (Mount(volume="data", path="/data"),)}),
    service("api", after="init:completed"),
    volumes=(Volume(name="data", size_mib=1),),
)


@pytest.mark.parametrize("crash", [False, True])
def test_a_job_whose_container_is_cleared_away_stays_done(crash: bool) -> None:
    world = app()
    world.compose.prune_containers()
    if crash:
        world.crash()
    world.until(Phase.READY)
    world.run(40)
    assert (world.compose.started, world.compose.made_anew) == ([], {})
    assert world.phases()["init"] == "completed"
    assert world.progress.losses_ms == ()


def test_made_anew_with_others_it_is_left_alone() -> None:
    world = app()
    world.compose.prune_containers()
    world.compose.take(INSTANCE, "metrics")
    world.until(Phase.READY)
    assert world.compose.containers[INSTANCE, "init"].status == "created"
    assert world.phases()["init"] == "completed"
    world.compose.end(INSTANCE, "api", 1)
    world.until(Phase.READY)
    world.order(Present(changed(APP, "db", env={"A": "1"})))
    world.until(Phase.READY)
    assert world.compose.started == ["metrics", "api", "db"]


@pytest.mark.parametrize("crash", [False, True])
def test_cleared_away_while_all_was_stopped_it_stays_done(crash: bool) -> None:
    world = app()
    world.order(Present(APP, run=False))
    world.run()
    world.compose.prune_containers()
    if crash:
        world.crash()
    world.order(Present(APP))
    world.until(Phase.READY)
    assert world.compose.started == ["db", "api", "metrics"]


def test_restarting_all_runs_no_job_again() -> None:
    what = topology_workload(
        INIT, service("a", after="init:completed"), service("b"), vital_failure="restart_all"
    )
    world = finished(TopologyWorld(Present(what)))
    world.compose.prune_containers()
    world.compose.end(INSTANCE, "b", 1)
    world.until(Phase.READY)
    assert sorted(world.compose.started) == ["a", "b"]


def test_another_form_of_a_job_is_another_job_and_so_is_going_back() -> None:
    world = app()
    world.compose.prune_containers()
    for what in (changed(APP, "init", env={"A": "1"}), APP):
        world.order(Present(what))
        finished(world)
        world.compose.prune_containers()
        world.run(20)
        assert world.compose.started == []


def test_a_volume_that_is_lost_takes_the_job_with_it() -> None:
    world = finished(TopologyWorld(Present(KEPT)))
    world.compose.prune_containers()
    world.run(20)
    assert world.compose.started == []
    world.compose.prune_volumes()
    world.crash()
    finished(world)
    world.compose.prune_containers()
    world.compose.prune_volumes()
    world.compose.take(INSTANCE, "api")
    world.run(20)
    assert world.compose.started == ["init"]


def test_a_volume_that_was_made_anew_meanwhile_is_another_one() -> None:
    world = finished(TopologyWorld(Present(KEPT)))
    world.compose.prune_containers()
    world.compose.volumes_made[f"{INSTANCE}/data"] += 100
    world.run(20)
    assert world.compose.started == ["init"]


def test_a_volume_that_others_got_since_is_nothing_to_it() -> None:
    world = finished(TopologyWorld(Present(KEPT)))
    world.compose.prune_containers()
    assert KEPT.topology is not None
    more = (Volume(name="data", size_mib=1), Volume(name="more", size_mib=1))
    topology = KEPT.topology.model_copy(update={"volumes": more})
    world.order(Present(KEPT.model_copy(update={"topology": topology})))
    world.until(Phase.READY)
    world.run(20)
    assert world.compose.started == []


def test_altered_after_it_was_done_it_is_cleared_away_and_stays_done() -> None:
    world = app()
    world.compose.alter(INSTANCE, "init", "user changed")
    world.until(Phase.READY)
    world.run(20)
    assert world.compose.started == []
    assert (INSTANCE, "init") not in world.compose.containers


@pytest.mark.parametrize("saved", [False, True])
def test_altered_before_it_was_seen_to_be_done_it_is_run_again(saved: bool) -> None:
    world = TopologyWorld(Present(APP))
    while not world.seen_running("init"):
        world.step()
    world.compose.alter(INSTANCE, "init", "user changed")
    world.compose.end(INSTANCE, "init", 0)
    world.compose.started.clear()
    world.run(20) if saved else world.killed()
    finished(world)
    assert [job.name for job in world.progress.jobs] == ["init"]


def test_started_again_by_hand_and_cut_off_it_is_not_done() -> None:
    world = app()
    world.compose.run_by_hand(INSTANCE, "init")
    world.run(5)
    assert world.progress.jobs == ()
    world.compose.end(INSTANCE, "init", 1)
    world.compose.prune_containers()
    world.crash()
    world.run(20)
    assert world.compose.started == ["init"]


def test_with_its_state_lost_it_is_run_again() -> None:
    world = app()
    world.compose.prune_containers()
    world.progress = Progress()
    world.run(20)
    assert world.compose.started == ["init"]


def test_it_is_forgotten_with_the_instance() -> None:
    world = app()
    world.order(Absent(INSTANCE))
    assert world.run() == Settled()
    world.crash()
    assert world.progress.jobs == ()
    world.order(Present(APP))
    finished(world)


@pytest.mark.parametrize("killed_at", range(1, 30))
def test_killed_before_it_is_written_down_it_is_seen_later(killed_at: int) -> None:
    job = service("job", "exit", "0", restart="on_failure", readiness=INIT.readiness)
    world = TopologyWorld(Present(topology_workload(job, service("api", after="job:completed"))))
    world.run(killed_at)
    world.killed()
    world.until(Phase.READY)
    assert world.compose.started.count("job") == 1
    world.compose.prune_containers()
    world.crash()
    world.run(20)
    assert world.compose.started.count("job") == 1


def test_the_reason_is_of_what_was_lost_before_what_only_fails_its_probe() -> None:
    world = app()
    world.compose.deaf.add("api")
    world.until(Phase.DEGRADED)
    assert world.report().reason is FailureReason.NOT_READY_IN_TIME
    world.compose.take(INSTANCE, "metrics")
    report = world.report()
    assert report.reason is FailureReason.ALTERED
    assert report.message == (
        "api: not ready: it answers nothing; metrics: it was removed, will be started again"
    )


# --- services that were given up -----------------------------------------------------------------

SIDE = service("side", "exit", "1", vital=False)
WITH_SIDE = topology_workload(service("main"), SIDE)


def given_up(what: Workload = WITH_SIDE) -> TopologyWorld:
    world = TopologyWorld(Present(what))
    while "GiveUpService" not in world.done:
        world.step()
    world.until(Phase.DEGRADED)
    world.run(20)
    world.compose.started.clear()
    return world


@pytest.mark.parametrize("event", ["crash", "reboot", "lose files", "prune", "all"])
def test_who_was_given_up_stays_down(event: str) -> None:
    world = given_up()
    message = world.report().message
    if event in {"reboot", "all"}:
        world.compose.reboot()
    if event in {"lose files", "all"}:
        world.compose.lose_files(INSTANCE)
    if event in {"prune", "all"}:
        world.compose.prune_containers()
    if event in {"crash", "all"}:
        world.crash()
    world.run(80)
    assert "side" not in world.compose.started
    report = world.report()
    assert (report.phase, report.reason) == (Phase.DEGRADED, FailureReason.FLAPPING)
    assert (report.message, world.phases()["side"]) == (message, "failed")


def test_killed_before_it_is_written_down_it_is_given_up_later() -> None:
    world = TopologyWorld(Present(WITH_SIDE))
    while "GiveUpService" not in world.done:
        before = world.progress
        world.step()
    world.progress = before
    world.crash()
    world.done.clear()
    while "GiveUpService" not in world.done:
        world.step()
    world.crash()
    world.compose.started.clear()
    world.run(40)
    assert world.compose.started == []


@pytest.mark.parametrize("crash", [False, True])
def test_any_newer_task_tries_it_again(crash: bool) -> None:
    world = given_up()
    if crash:
        world.crash()
        world.run(20)
    world.order(Present(WITH_SIDE))
    world.run(20)
    assert "side" in world.compose.started


@pytest.mark.parametrize("crash", [False, True])
def test_stopped_and_started_on_purpose_it_is_tried_again(crash: bool) -> None:
    world = given_up()
    world.order(Present(WITH_SIDE, run=False))
    world.run()
    if crash:
        world.crash()
    world.order(Present(WITH_SIDE))
    world.run(20)
    assert "side" in world.compose.started


def test_of_another_form_it_is_tried_again_as_often() -> None:
    world = given_up()
    (form,) = world.compose.forms[INSTANCE].values()
    form.hashes["side"] = "another"
    world.crash()
    world.done.clear()
    while "GiveUpService" not in world.done:
        world.step()
    assert world.compose.started == ["side"] * 5


def test_what_is_not_there_to_be_started_is_tried_again_in_pauses_in_another_form() -> None:
    world = given_up()
    (form,) = world.compose.forms[INSTANCE].values()
    form.hashes["side"] = "another"
    world.compose.unstartable["side"] = FailureReason.GPU_UNAVAILABLE
    world.done.clear()
    while "GiveUpService" not in world.done:
        world.step()
    assert world.done.count("StartServices side") == 5


# --- vital services whose end is final -----------------------------------------------------------


@pytest.mark.parametrize("policy", ["restart_service", "restart_all"])
@pytest.mark.parametrize("memory", [False, True])
def test_a_vital_service_that_is_never_started_again_ends_all(policy: str, memory: bool) -> None:
    once = service("once", restart="never")
    world = ready(topology_workload(service("main"), once, vital_failure=policy))
    world.compose.end(INSTANCE, "once", 3, out_of_memory=memory)
    for _ in range(2):
        assert world.run() == Settled()
        report = world.report()
        reason = FailureReason.OUT_OF_MEMORY if memory else FailureReason.EXITED
        words = "killed for using more memory than its limit" if memory else "exited with 3"
        assert (report.phase, report.reason, report.exit_code) == (Phase.FAILED, reason, 3)
        assert report.message == f"once: {words}, and is not started again"
        assert (report.running_hash, report.retained) == (None, False)
        assert not any(unit.alive for unit in world.units())
        world.crash()
    assert world.compose.started == []
    world.order(Present(topology_workload(service("main"), once, vital_failure=policy)))
    world.until(Phase.READY)


def test_with_all_that_is_started_again_it_is_started_again_too() -> None:
    once = service("once", restart="never")
    world = ready(topology_workload(service("main"), once, vital_failure="restart_all"))
    world.compose.end(INSTANCE, "main", 1)
    # Stopping all of them was cut off after the first.
    world.compose.end(INSTANCE, "once", 143)
    world.until(Phase.READY)
    assert sorted(world.compose.started) == ["main", "once"]


def test_a_job_that_fails_when_others_run_takes_none_of_them_along() -> None:
    world = app()
    world.compose.run_by_hand(INSTANCE, "init")
    world.run(5)
    world.compose.end(INSTANCE, "init", 1)
    world.run(20)
    assert world.report().phase is Phase.DEGRADED
    assert world.phases()["init"] == "failed"
    assert world.phases()["api"] == "ready"


def test_put_back_it_may_end_too() -> None:
    once = service("once", restart="never")
    what = topology_workload(service("main"), once)
    world = ready(what)
    world.order(Present(changed(what, "main", command=("deaf",))))
    world.until(Phase.FAILED)
    world.run(40)
    assert world.report().retained
    world.compose.end(INSTANCE, "once", 3)
    assert world.run() == Settled()
    report = world.report()
    assert (report.phase, report.reason) == (Phase.FAILED, FailureReason.EXITED)
    first, _, second = report.message.partition("; and the version before was ")
    assert first == "main: not ready within 2000 ms: it answers nothing"
    assert second == "once: exited with 3, and is not started again"
    assert not any(unit.alive for unit in world.units())
