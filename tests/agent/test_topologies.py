"""How a topology gets to run: launches and upgrades, as tables of whole stories."""

from __future__ import annotations

import pytest

from node_agent.compose_wire import Service
from node_agent.steps import Present, Settled
from node_agent.wire import ExecProbe, FailureReason, Phase, Readiness
from tests.agent.cases import INSTANCE, workload
from tests.agent.topology_cases import APP, MISSING, PLAIN, app, changed
from tests.agent.topology_world import (
    JOB,
    TopologyWorld,
    ready,
    service,
    topology_workload,
)

# --- launching -----------------------------------------------------------------------------------


def test_a_launch_starts_each_service_when_what_it_needs_is_there() -> None:
    world = TopologyWorld(Present(APP))
    world.run(12)
    assert world.done[:4] == ["Pull", "Create", "Start", "StartServices db init"]
    assert world.phases() == {
        "api": "waiting", "db": "ready", "init": "starting", "metrics": "waiting",
    }  # fmt: skip
    assert world.phase_of("api").detail == "waits for init (completed)"
    assert world.report().phase is Phase.STARTING
    world.compose.end(INSTANCE, "init", 0)
    report = world.until(Phase.READY)
    assert world.compose.started == ["db", "init", "api", "metrics"]
    assert world.phases() == {
        "api": "ready", "db": "ready", "init": "completed", "metrics": "ready",
    }  # fmt: skip
    assert (report.running_hash, report.reason, report.message) == (APP.spec_hash, None, "")
    assert world.done.count("Commit") == 1


def test_who_waits_for_a_job_waits_until_it_ends_well() -> None:
    job = service("job", "end_third", restart="on_failure", readiness=JOB)
    world = TopologyWorld(Present(topology_workload(job, service("api", after="job:completed"))))
    world.until(Phase.READY)
    assert world.compose.started == ["job", "job", "job", "api"]


def test_what_was_never_started_has_no_exit_code() -> None:
    world = TopologyWorld(Present(APP))
    world.run(3)
    world.compose.containers[INSTANCE, "api"].exit_code = 0
    assert world.phase_of("api").exit_code is None


def test_at_rest_nothing_is_asked_of_compose() -> None:
    quiet = topology_workload(service("db", readiness=Readiness(interval_ms=200)))
    world = ready(quiet)
    world.compose.calls.clear()
    assert world.run() == Settled()
    assert set(world.compose.calls) == {"units"}


def test_without_a_probe_staying_up_for_one_interval_is_the_gate() -> None:
    world = TopologyWorld(Present(topology_workload(service("a", readiness=JOB))))
    world.run(4)
    since_ms = world.now_ms
    world.until(Phase.READY)
    assert 190 <= world.now_ms - since_ms <= 300


@pytest.mark.parametrize(
    ("bad", "reason", "message"),
    [
        (service("api", "deaf"), FailureReason.NOT_READY_IN_TIME,
         "api: not ready within 2000 ms: it answers nothing"),
        (service("api", "exit", "3"), FailureReason.EXITED,
         "api: exited 3 times before it was ready"),
        (service("api", "exit", "127"), FailureReason.COMMAND_NOT_FOUND,
         "api: exited with 127: the command is not there or can't be run"),
        (service("api", "exit", "3", restart="never"), FailureReason.EXITED,
         "api: exited with 3, and is not started again"),
        (service("api", image=MISSING), FailureReason.IMAGE_NOT_FOUND,
         f"{MISSING.digest} is not there"),
        (service("api", after="db:completed"), FailureReason.NOT_READY_IN_TIME,
         "db: not ready within 4000 ms: it has not ended"),
        (service("api", after="db:healthy", readiness=JOB), FailureReason.NOT_READY_IN_TIME,
         "db: not ready within 4000 ms: it has not ended"),
    ],
    ids=["deaf", "exits", "no command", "never", "image", "job does not end", "waits"],
)  # fmt: skip
def test_a_vital_service_that_fails_takes_the_launch_with_it(
    bad: Service, reason: FailureReason, message: str
) -> None:
    db = service("db", "work", restart="on_failure", readiness=JOB)
    job = service("job", after="db:completed", readiness=JOB)
    world = TopologyWorld(Present(topology_workload(db, bad, job)))
    if reason is not FailureReason.NOT_READY_IN_TIME or "db:" not in message:
        world = TopologyWorld(Present(topology_workload(service("db"), bad)))
    assert world.run() == Settled()
    report = world.report()
    assert (report.phase, report.reason, report.message) == (Phase.FAILED, reason, message)
    assert not any(unit.alive for unit in world.units())


def test_a_service_that_recovers_on_trial_passes() -> None:
    world = TopologyWorld(Present(topology_workload(service("a", "crash_twice"))))
    world.until(Phase.READY)
    assert world.compose.started == ["a", "a", "a"]
    assert world.report().restarts == 0


@pytest.mark.parametrize(
    "bad",
    [
        service("side", "deaf", vital=False),
        service("side", "exit", "1", vital=False),
        service("side", "exit", "1", vital=False, restart="never"),
        service("side", after="helper:healthy", vital=False),
    ],
    ids=["deaf", "exits", "never", "waits in vain"],
)
@pytest.mark.parametrize("policy", ["degrade", "roll_back"])
def test_what_is_not_vital_and_fails_on_trial(bad: Service, policy: str) -> None:
    helper = service("helper", "exit", "1", restart="never", vital=False)
    what = topology_workload(service("main"), helper, bad, other_failure=policy)
    world = TopologyWorld(Present(what))
    if policy == "roll_back":
        world.run()
        assert world.report().phase is Phase.FAILED
        assert not any(unit.alive for unit in world.units())
        return
    report = world.until(Phase.DEGRADED)
    assert "Commit" in world.done
    assert "side: " in report.message
    assert report.reason is not None
    assert world.phases()["main"] == "ready"
    world.run()
    assert world.report().phase is Phase.DEGRADED
    assert world.progress.losses_ms == ()


# --- upgrades ------------------------------------------------------------------------------------


def test_an_upgrade_replaces_what_changed_and_stops_nothing_else() -> None:
    world = app()
    new = changed(APP, "metrics", env={"A": "1"})
    world.order(Present(new))
    world.until(Phase.READY)
    world.run(20)
    assert world.compose.started == ["metrics"]
    assert world.compose.made_anew == {"metrics": 1}
    assert world.phase_of("metrics").restarts == 0
    assert world.done[:3] == ["Pull", "Create", "Start"]
    assert "Stop" not in world.done
    assert [unit.spec_hash for unit in world.units()] == [new.spec_hash]


def test_a_job_that_changed_is_run_again_and_what_runs_is_not_restarted() -> None:
    world = app()
    world.order(Present(changed(APP, "init", env={"A": "1"})))
    world.run(20)
    assert world.compose.started == ["init"]
    assert world.phases() == {
        "api": "ready", "db": "ready", "init": "starting", "metrics": "ready",
    }  # fmt: skip
    world.compose.end(INSTANCE, "init", 0)
    world.until(Phase.READY)
    assert world.compose.started == ["init"]


def test_what_changed_with_its_job_waits_for_it() -> None:
    world = app()
    new = changed(changed(APP, "init", env={"A": "1"}), "api", env={"A": "1"})
    world.order(Present(new))
    world.run(20)
    assert world.compose.started == ["init"]
    world.compose.end(INSTANCE, "init", 0)
    world.until(Phase.READY)
    assert world.compose.started == ["init", "api"]


@pytest.mark.parametrize("crash_after", [None, *range(1, 30, 2)])
def test_an_upgrade_that_fails_goes_back_as_a_whole_in_place(crash_after: int | None) -> None:
    world = app()
    bad = changed(changed(APP, "api", command=("deaf",)), "metrics", env={"A": "1"})
    world.order(Present(bad))
    if crash_after is not None:
        world.run(crash_after)
        world.crash()
    world.run()
    report = world.report()
    assert (report.phase, report.reason) == (Phase.FAILED, FailureReason.NOT_READY_IN_TIME)
    assert report.message == "api: not ready within 2000 ms: it answers nothing"
    assert (report.running_hash, report.retained) == (APP.spec_hash, True)
    assert world.compose.made_anew == {"api": 2, "metrics": 2}
    assert "Stop" not in world.done
    assert [unit.spec_hash for unit in world.units()] == [APP.spec_hash]
    assert {one.phase for one in report.services} == {"ready", "completed"}


def test_compose_that_dies_in_the_middle_goes_on_or_is_undone() -> None:
    world = app()
    world.order(Present(changed(changed(APP, "api", env={"A": "1"}), "db", env={"A": "1"})))
    world.compose.create_fails_after = 1
    world.until(Phase.READY)
    assert world.done.count("Start") == 2

    world = app()
    world.order(Present(changed(APP, "db", command=("exit", "1"))))
    world.run(3)
    world.order(Present(APP))
    world.until(Phase.READY)
    world.run(40)
    assert [unit.spec_hash for unit in world.units()] == [APP.spec_hash]


def test_a_probe_that_changed_alone_is_what_the_gate_goes_by() -> None:
    world = app()
    world.order(Present(changed(APP, "metrics", env={"A": "1"})))
    world.until(Phase.READY)
    world.run(20)
    kept = world.progress.committed
    assert kept is not None
    failing = Readiness(probe=ExecProbe(command=("false",)), start_budget_ms=2_000)
    world.compose.started.clear()
    world.order(Present(changed(kept, "api", readiness=failing)))
    since_ms = world.now_ms
    report = world.until(Phase.FAILED)
    assert report.message == "api: not ready within 2000 ms: false was run"
    assert 1_900 <= world.now_ms - since_ms <= 2_500
    world.run(40)
    assert world.report().running_hash == kept.spec_hash
    assert world.report().retained
    assert world.compose.started == []


def test_what_an_upgrade_did_not_touch_may_be_lost_after_it() -> None:
    world = app()
    world.order(Present(changed(APP, "metrics", env={"A": "1"})))
    world.until(Phase.READY)
    world.compose.end(INSTANCE, "db", 137)
    world.until(Phase.READY)
    assert (len(world.progress.losses_ms), world.report().restarts) == (1, 1)
    assert world.phase_of("db").restarts == 1


@pytest.mark.parametrize("back", [False, True])
def test_another_engine_is_stopped_first(back: bool) -> None:
    single = workload(engine="docker", readiness=Readiness())
    before, after = (PLAIN, single) if back else (single, PLAIN)
    world = TopologyWorld(Present(before))
    world.until(Phase.READY)
    world.order(Present(after))
    world.until(Phase.READY)
    world.run(40)
    assert "Stop" in world.done
    assert [unit.spec_hash for unit in world.units()] == [after.spec_hash]
