"""What one instance does next: tables of whole stories, and properties that hold in any world."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node_agent.engines.base import unit_name
from node_agent.learning import RETRY_DELAY_DISK_FULL_MAX_MS, learn
from node_agent.status import workload_report
from node_agent.steps import Absent, Failed, Present, Progress, Pull, Settled, Wait
from node_agent.units import Unit
from node_agent.wire import ExecProbe, FailureReason, Image, Phase, Port, Readiness, Workload
from tests.agent.cases import INSTANCE, NODE, NOW_MS, workload
from tests.agent.world import HOST_PORT, World, new_world

PATIENCE = 300
MISSING = Image(registry="fake", repository="demo", digest="sha256:" + "f" * 64)
OLD = workload(labels={"version": "1"})
NEW = workload(labels={"version": "2"})
DEAF = workload(labels={"version": "3"}, command=("deaf",))
CRASHING = workload(labels={"version": "4"}, command=("exit", "3"))
NOWHERE = workload(labels={"version": "5"}, command=("nothing",))
UNPULLABLE = workload(labels={"version": "6"}, image=MISSING)


def running(what: Workload) -> World:
    """A world in which `what` passed its gate."""
    world = new_world(Present(what), OLD)
    world.run(PATIENCE)
    assert world.report().phase is Phase.READY
    world.done.clear()
    return world


def test_a_first_launch_takes_these_steps() -> None:
    world = new_world(Present(NEW))
    phases = [world.report().phase]
    while "Commit" not in world.done:
        world.step()
        phases.append(world.report().phase)
    assert world.done == ["Pull", "Create", "Start", "ProbeReady", "Commit"]
    assert list(dict.fromkeys(phases)) == [Phase.PULLING, Phase.STARTING, Phase.READY]
    report = world.report()
    assert report.running_hash == report.target_hash == NEW.spec_hash
    assert report.endpoints[0].host_port == HOST_PORT
    assert report.image_digest == NEW.image.digest


def test_a_replacement_starts_the_new_after_the_old_is_down_and_keeps_it_until_the_gate() -> None:
    world = running(OLD)
    world.order(Present(NEW))
    world.run(20)
    wanted = ["Pull", "Create", "Stop", "Start", "ProbeReady", "Commit", "Remove"]
    assert world.done[: len(wanted)] == wanted
    (unit,) = world.units()
    assert unit.spec_hash == NEW.spec_hash
    assert world.report().phase is Phase.READY


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (DEAF, FailureReason.NOT_READY_IN_TIME),
        (CRASHING, FailureReason.EXITED),
        (NOWHERE, FailureReason.COMMAND_NOT_FOUND),
        (UNPULLABLE, FailureReason.IMAGE_NOT_FOUND),
    ],
    ids=lambda value: str(getattr(value, "value", "")),
)
def test_a_failed_replacement_goes_back(bad: Workload, reason: FailureReason) -> None:
    world = running(OLD)
    world.order(Present(bad))
    world.run(PATIENCE)
    report = world.report()
    assert (report.phase, report.reason) == (Phase.FAILED, reason)
    assert (report.target_hash, report.running_hash) == (bad.spec_hash, OLD.spec_hash)
    assert report.retained
    assert [unit.spec_hash for unit in world.units()] == [OLD.spec_hash]
    assert report.restarts == 0


@pytest.mark.parametrize("bad", [DEAF, CRASHING, NOWHERE, UNPULLABLE])
def test_a_failed_first_launch_stays_down_with_its_container_kept(bad: Workload) -> None:
    world = new_world(Present(bad))
    world.engine.images.discard(MISSING.digest)
    assert world.run(PATIENCE) == Settled()
    report = world.report()
    assert (report.phase, report.running_hash, report.retained) == (Phase.FAILED, None, False)
    assert [unit.alive for unit in world.units()] == ([False] if bad is not UNPULLABLE else [])


def test_a_workload_that_exits_is_started_three_times_and_says_how_it_ended() -> None:
    world = new_world(Present(CRASHING))
    world.run(PATIENCE)
    assert world.done.count("Start") == 3
    report = world.report()
    assert (report.exit_code, report.message) == (3, "exited 3 times before it was ready")


def test_a_failed_launch_may_be_ordered_again() -> None:
    world = new_world(Present(DEAF))
    world.run(PATIENCE)
    world.order(Present(NEW))
    world.run(PATIENCE)
    assert world.report().phase is Phase.READY
    assert [unit.spec_hash for unit in world.units()] == [NEW.spec_hash]


def test_a_newer_task_takes_over_in_the_middle_of_a_gate() -> None:
    world = running(OLD)
    world.order(Present(DEAF))
    world.run(8)
    assert world.report().phase is Phase.STARTING
    world.order(Present(NEW))
    world.run(PATIENCE)
    assert world.report().phase is Phase.READY
    assert [unit.spec_hash for unit in world.units()] == [NEW.spec_hash]


@pytest.mark.parametrize("how", ["kill", "remove"])
def test_what_ran_well_is_brought_back_at_once_and_counted(how: str) -> None:
    world = running(OLD)
    (unit,) = world.units()
    world.engine.kill(unit) if how == "kill" else world.engine.remove(unit)
    before_ms = world.now_ms
    world.run(6)
    assert world.report().running_hash == OLD.spec_hash
    assert world.report().restarts == 1
    assert world.now_ms - before_ms < 1_000


def test_an_image_that_was_cleared_away_is_pulled_again() -> None:
    world = running(OLD)
    world.engine.pruned.add(OLD.image.digest)
    world.engine.remove(world.units()[0])
    world.run(20)
    assert world.done[:5] == ["Create", "Pull", "Create", "Start", "ProbeReady"]
    world = new_world(Present(NEW))
    world.step()
    world.engine.pruned.add(NEW.image.digest)
    world.run(PATIENCE)
    assert world.report().phase is Phase.READY


def test_a_full_disk_is_waited_for_with_growing_pauses() -> None:
    world = running(OLD)
    world.order(Present(NEW))
    world.engine.disk_full = True
    gaps_ms, before_ms = [], world.now_ms
    for _ in range(40):
        if not isinstance(world.step(), Wait):
            gaps_ms.append(world.now_ms - before_ms)
            before_ms = world.now_ms
    assert gaps_ms == sorted(gaps_ms)
    assert gaps_ms[-1] >= RETRY_DELAY_DISK_FULL_MAX_MS
    report = world.report()
    assert (report.phase, report.reason) == (Phase.PULLING, FailureReason.DISK_FULL)
    assert report.message == "write /layer: no space left on device"
    assert (report.running_hash, report.retained) == (OLD.spec_hash, True)
    world.engine.disk_full = False
    world.run(PATIENCE)
    assert (world.report().phase, world.report().running_hash) == (Phase.READY, NEW.spec_hash)


def test_an_intruder_is_not_taken_for_what_serves() -> None:
    world = running(OLD)
    (ours,) = world.units()
    intruder = replace(ours, unit_id="intruder", spec_hash="sha256:" + "0" * 64, endpoints=())
    said = workload_report(world.target, (intruder, ours), world.progress, None)
    assert (said.running_hash, said.phase) == (OLD.spec_hash, Phase.READY)
    assert said.endpoints == ours.endpoints


def test_a_probe_that_fails_degrades_and_recovers() -> None:
    probe = ExecProbe(command=("true",))
    what = workload(readiness=Readiness(probe=probe, interval_ms=100, failures_max=2))
    world = running(what)
    sick = what.model_copy(update={"readiness": what.readiness.model_copy(update={"probe": None})})
    assert sick.spec_hash != what.spec_hash
    phases = []
    for command in (("false",), ("true",)):
        world.engine.exec_override = command
        world.run(12)
        phases.append(world.report().phase)
    assert phases == [Phase.DEGRADED, Phase.READY]
    assert world.done.count("Start") == 0


def test_stop_and_start_on_purpose() -> None:
    world = running(OLD)
    world.order(Present(OLD, run=False))
    assert world.run(PATIENCE) == Settled()
    report = world.report()
    assert (report.phase, report.running_hash) == (Phase.STOPPED, None)
    world.order(Present(OLD, run=True))
    world.run(10)
    assert (world.report().phase, world.report().restarts) == (Phase.READY, 0)


def test_removal_is_proved_and_doing_it_twice_is_harmless() -> None:
    world = running(OLD)
    for _ in range(2):
        world.order(Absent(INSTANCE))
        assert world.run(PATIENCE) == Settled()
        report = world.report()
        assert report.phase is Phase.REMOVED
        assert report.proof is not None
        assert report.proof.clean
    assert world.units() == ()
    assert world.engine.volumes == {}


def test_a_removal_that_leaves_something_says_so_and_tries_again() -> None:
    world = running(OLD)
    world.engine.sticky_volumes = True
    world.order(Absent(INSTANCE))
    world.run(30)
    report = world.report()
    assert (report.phase, report.reason) == (Phase.REMOVING, FailureReason.TEARDOWN_INCOMPLETE)
    assert "1 volumes" in report.message
    world.engine.sticky_volumes = False
    world.run(30)
    assert world.report().phase is Phase.REMOVED


def test_a_launch_that_overtakes_a_removal_does_not_bring_back_the_removed() -> None:
    world = running(OLD)
    world.order(Absent(INSTANCE))
    world.step()
    world.order(Present(DEAF))
    world.run(PATIENCE)
    report = world.report()
    assert (report.phase, report.running_hash) == (Phase.FAILED, None)


def test_a_port_of_our_own_choice_is_chosen_again() -> None:
    world = new_world(Present(NEW))
    world.engine.taken_ports.add(HOST_PORT)
    world.run(PATIENCE)
    report = world.report()
    assert report.phase is Phase.READY
    assert report.endpoints[0].host_port == HOST_PORT + 1


def test_a_port_that_was_asked_for_fails_at_once() -> None:
    fixed = workload(ports=(Port(name="http", container=8080, host=HOST_PORT),))
    world = new_world(Present(fixed))
    world.engine.taken_ports.add(HOST_PORT)
    world.run(PATIENCE)
    assert world.report().reason is FailureReason.PORT_IN_USE
    assert world.done.count("Create") == 1


def test_without_a_probe_staying_up_for_one_interval_is_the_gate() -> None:
    what = workload(readiness=Readiness(interval_ms=700, start_budget_ms=2_000))
    world = new_world(Present(what))
    while "Start" not in world.done:
        world.step()
    started_ms = world.now_ms
    assert world.report().phase is Phase.STARTING
    assert world.run(PATIENCE) == Settled()
    assert 700 <= world.now_ms - started_ms < 800
    assert world.report().phase is Phase.READY


def test_an_engine_that_is_away_for_a_while_fails_nothing() -> None:
    world = new_world(Present(NEW))
    world.engine.away = True
    units = world.units
    world.units = lambda: ()  # type: ignore[method-assign]
    world.engine.units = lambda instance=None: ()  # type: ignore[method-assign]
    world.run(20)
    report = world.report()
    assert report.reason is FailureReason.ENGINE_UNAVAILABLE
    assert report.phase in {Phase.PENDING, Phase.PULLING}
    del world.engine.__dict__["units"]
    world.units = units  # type: ignore[method-assign]
    world.engine.away = False
    world.run(PATIENCE)
    assert world.report().phase is Phase.READY


# --- properties ----------------------------------------------------------------------------------

WORKLOADS = [OLD, NEW, DEAF, CRASHING, NOWHERE, UNPULLABLE]
TARGETS = st.one_of(
    st.builds(Present, st.sampled_from(WORKLOADS), st.booleans()), st.just(Absent(INSTANCE))
)
DISTURBANCES = st.one_of(
    st.tuples(st.just("order"), TARGETS),
    st.tuples(st.sampled_from(["crash", "kill", "remove", "start", "away"]), st.none()),
    st.tuples(st.just("steps"), st.integers(1, 12)),
)


def _disturb(world: World, what: str, value: Any) -> None:
    units = world.units()
    match what:
        case "order":
            world.order(value)
        case "crash":
            world.crash()
        case "steps":
            world.run(value)
        case "kill" if units:
            world.engine.kill(units[0])
        case "remove" if units:
            world.engine.remove(units[0])
        case "start" if units:
            # Somebody with access to Docker starts everything there is.
            for unit in units:
                world.engine.force_running(unit)
        case "away":
            world.now_ms += 5_000


def _stranger(node: str, instance: str, what: Workload) -> Unit:
    name = unit_name(f"{instance}-{node}", what.spec_hash)
    return Unit(name, name, "process", instance, node, what.spec_hash, "running", 0)


@given(TARGETS, st.lists(DISTURBANCES, max_size=14))
def test_any_world_calms_down_where_it_should(target: Any, story: list[tuple[str, Any]]) -> None:
    world = new_world(target, OLD)
    world.engine.images.discard(MISSING.digest)
    strangers = [_stranger("n2", INSTANCE, OLD), _stranger(NODE, "other/one/app", OLD)]
    for stranger in strangers:
        world.engine.put(stranger)
    for what, value in story:
        _disturb(world, what, value)
    last = world.run(PATIENCE)
    _check_rest(world, last)
    assert [world.engine.get(stranger.unit_id) for stranger in strangers] == strangers


def _check_rest(world: World, last: object) -> None:
    units, report, target = world.units(), world.report(), world.target
    alive = [unit for unit in units if unit.alive]
    if isinstance(target, Absent):
        assert (last, units, report.phase) == (Settled(), (), Phase.REMOVED)
        return
    committed = world.progress.committed
    if not target.run:
        assert last == Settled()
        assert alive == []
        assert report.phase in {Phase.STOPPED, Phase.FAILED}
    elif target.workload in (OLD, NEW) or target.workload == committed:
        assert [unit.spec_hash for unit in units] == [target.workload.spec_hash]
        assert report.phase is Phase.READY
    else:
        assert report.phase is Phase.FAILED
        wanted = [] if committed is None else [committed.spec_hash]
        assert [unit.spec_hash for unit in alive] == wanted
        assert report.retained is (committed is not None)
    assert isinstance(last, Settled | Wait) or world.done[-1] == "ProbeReady"


@given(TARGETS, st.lists(DISTURBANCES, max_size=10), st.integers(0, 10_000))
def test_the_same_world_has_the_same_next_step(
    target: Any, story: list[tuple[str, Any]], later_ms: int
) -> None:
    def end_of(world: World) -> tuple[list[str], object]:
        for what, value in story:
            _disturb(world, what, value)
        world.now_ms += later_ms
        return world.done, replace(world.progress)

    assert end_of(new_world(target, OLD)) == end_of(new_world(target, OLD))


def test_those_who_wait_for_secrets_do_not_ask_all_at_once() -> None:
    silent = Failed(FailureReason.SECRET_UNAVAILABLE, "away", transient=True)
    delays_ms = []
    for number in range(50):
        what = workload(instance=f"a/b/c{number}")
        progress = Progress(tries=20)
        after = learn(Present(what), progress, Pull(what), silent, NOW_MS)
        delays_ms.append(after.retry_at_ms - NOW_MS)
    assert len(set(delays_ms)) > 20
    assert 15_000 <= min(delays_ms) <= max(delays_ms) <= 30_000
