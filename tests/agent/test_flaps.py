"""What passed its gate and is lost again and again is given up, and stays so until a newer task."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node_agent.flaps import FLAP_WINDOW_MS, FLAPS_MAX, STABLE_MS, flap_window_ms
from node_agent.steps import Present, Settled, Step
from node_agent.wire import ExecProbe, FailureReason, Phase, Readiness, Workload
from tests.agent.cases import workload
from tests.agent.test_converge import DEAF, NEW, OLD, PATIENCE, running
from tests.agent.world import World

PROBED = workload(
    readiness=Readiness(probe=ExecProbe(command=("true",)), interval_ms=100, failures_max=2)
)


def lose(world: World, how: str = "kill") -> None:
    """Loses the unit that serves, and lets the agent bring it back where it does."""
    (unit,) = [unit for unit in world.units() if unit.alive]
    match how:
        case "kill":
            world.engine.kill(unit)
        case "remove":
            world.engine.remove(unit)
        case "pause":
            world.engine.pause(unit)
        case _:
            world.engine.alter(unit, how)
    settle(world)


def settle(world: World) -> Step:
    """Until it is ready again or given up."""
    step: Step = Settled()
    for _ in range(PATIENCE):
        step = world.step()
        if world.report().phase in {Phase.READY, Phase.FAILED}:
            break
    return step


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("kill", "exited with 137"),
        ("remove", "it was removed"),
        ("pause", "it was paused"),
        ("user changed", "user changed"),
    ],
)
def test_the_fifth_loss_is_the_last(how: str, told: str) -> None:
    world = running(OLD)
    for _ in range(FLAPS_MAX - 1):
        lose(world, how)
        assert world.report().phase is Phase.READY
    lose(world, how)
    world.run(PATIENCE)
    report = world.report()
    assert (report.phase, report.reason) == (Phase.FAILED, FailureReason.FLAPPING)
    assert report.message == f"lost 5 times within 10 minutes, last: {told}"
    assert (report.running_hash, report.retained) == (None, False)
    assert [unit.alive for unit in world.units()] == ([] if how == "remove" else [False])
    assert world.run(PATIENCE) == Settled()


def test_gaps_grow_on_the_way() -> None:
    world = running(OLD)
    starts_ms: list[int] = []
    while world.report().phase is not Phase.FAILED:
        seen = world.done.count("Start")
        world.step()
        if world.done.count("Start") > seen:
            starts_ms.append(world.now_ms)
            assert world.report().phase is not Phase.READY
        for unit in world.units():
            if unit.alive:
                world.engine.kill(unit)
    gaps_ms = [later - earlier for earlier, later in itertools.pairwise(starts_ms)]
    assert [round(gap_ms, -3) for gap_ms in gaps_ms] == [1_000, 4_000, 16_000]


def test_losing_readiness_counts_and_once_only_when_it_then_goes_down() -> None:
    world = running(PROBED)
    for turn in range(FLAPS_MAX):
        assert world.report().phase is Phase.READY, turn
        world.engine.exec_override = ("false",)
        while world.report().phase is Phase.READY:
            world.step()
        if turn < FLAPS_MAX - 1:
            lose(world) if turn == 0 else None
            world.engine.exec_override = ("true",)
            settle(world)
    world.run(PATIENCE)
    report = world.report()
    assert (report.phase, report.reason) == (Phase.FAILED, FailureReason.FLAPPING)
    assert report.message == "lost 5 times within 10 minutes, last: not ready: false was run"
    assert [unit.alive for unit in world.units()] == [False]


def test_a_calm_time_makes_up_for_what_was_before() -> None:
    world = running(OLD)
    for _ in range(3):
        for _ in range(FLAPS_MAX - 1):
            lose(world)
            assert world.report().phase is Phase.READY
        world.now_ms += STABLE_MS
    lose(world)
    assert world.report().phase is Phase.READY


def test_losses_far_apart_do_not_count_together() -> None:
    world = running(OLD)
    for _ in range(3 * FLAPS_MAX):
        lose(world)
        assert world.report().phase is Phase.READY
        world.now_ms += FLAP_WINDOW_MS // (FLAPS_MAX - 1)


def test_what_takes_long_to_get_ready_is_watched_for_longer() -> None:
    slow = workload(readiness=Readiness(start_budget_ms=600_000))
    assert flap_window_ms(slow) == 10 * 600_000
    assert flap_window_ms(workload()) == FLAP_WINDOW_MS


def test_an_agent_that_starts_anew_goes_on_counting() -> None:
    world = running(OLD)
    for _ in range(FLAPS_MAX - 1):
        lose(world)
        world.crash()
        settle(world)
    lose(world)
    world.run(PATIENCE)
    assert world.report().reason is FailureReason.FLAPPING
    world.crash()
    assert world.run(PATIENCE) == Settled()
    assert world.report().reason is FailureReason.FLAPPING
    assert not any(unit.alive for unit in world.units())


def flapped(what: Workload = OLD) -> World:
    world = running(what)
    for _ in range(FLAPS_MAX):
        lose(world)
    world.run(PATIENCE)
    assert world.report().reason is FailureReason.FLAPPING
    world.done.clear()
    return world


@pytest.mark.parametrize("what", [OLD, NEW], ids=["the same", "another"])
def test_a_newer_task_tries_again_behind_a_gate_with_a_clean_slate(what: Workload) -> None:
    world = flapped()
    world.order(Present(what))
    world.run(PATIENCE)
    assert "Commit" in world.done
    assert [unit.spec_hash for unit in world.units()] == [what.spec_hash]
    for _ in range(FLAPS_MAX - 1):
        lose(world)
        assert world.report().phase is Phase.READY


def test_what_flapped_is_nothing_to_go_back_to() -> None:
    world = flapped()
    world.order(Present(DEAF))
    world.run(PATIENCE)
    report = world.report()
    assert (report.phase, report.reason) == (Phase.FAILED, FailureReason.NOT_READY_IN_TIME)
    assert (report.running_hash, report.retained) == (None, False)


def test_stopped_and_started_on_purpose_it_is_tried_again() -> None:
    world = flapped()
    world.order(Present(OLD, run=False))
    assert world.run(PATIENCE) == Settled()
    assert world.report().phase is Phase.STOPPED
    world.order(Present(OLD))
    world.run(PATIENCE)
    assert world.report().phase is Phase.READY


def test_the_version_before_that_was_put_back_may_flap_too() -> None:
    world = running(OLD)
    world.order(Present(DEAF))
    world.run(PATIENCE)
    while any(unit.alive for unit in world.units()):
        (unit,) = [unit for unit in world.units() if unit.alive]
        world.engine.kill(unit)
        world.run(12)
    report = world.report()
    assert (report.phase, report.reason) == (Phase.FAILED, FailureReason.FLAPPING)
    first, _, second = report.message.partition("; ")
    assert first.startswith("not ready within 2000 ms")
    assert second.startswith("and the version before was lost 5 times within 10 minutes")


def test_stopping_on_purpose_is_no_loss() -> None:
    world = running(OLD)
    for _ in range(2 * FLAPS_MAX):
        world.order(Present(OLD, run=False))
        world.run(PATIENCE)
        world.order(Present(OLD))
        settle(world)
        assert world.report().phase is Phase.READY
    assert world.progress.losses_ms == ()


INCIDENTS = st.sampled_from(["kill", "remove", "pause", "alter", "sick", "well", "crash", "calm"])


@given(st.lists(st.tuples(INCIDENTS, st.integers(0, 90_000)), max_size=40))
def test_starts_in_a_window_are_bounded_whatever_happens(story: list[tuple[str, int]]) -> None:
    """Never two alive (see `World.step`), never more than so many starts until a newer task."""
    world = running(PROBED)
    starts_ms: list[int] = []
    for what, wait_ms in story:
        units = [unit for unit in world.units() if unit.alive]
        match what:
            case "kill" if units:
                world.engine.kill(units[0])
            case "remove" if units:
                world.engine.remove(units[0])
            case "pause" if units:
                world.engine.pause(units[0])
            case "alter" if units:
                world.engine.alter(units[0], "user changed")
            case "sick" | "well":
                world.engine.exec_override = ("false",) if what == "sick" else ("true",)
            case "crash":
                world.crash()
            case _:
                pass
        before = world.done.count("Start")
        world.now_ms += wait_ms
        for _ in range(12):
            world.step()
            if world.done.count("Start") > before:
                before = world.done.count("Start")
                starts_ms.append(world.now_ms)
    for at_ms in starts_ms:
        later = [one for one in starts_ms if 0 <= one - at_ms < FLAP_WINDOW_MS]
        calm = any(b - a >= STABLE_MS for a, b in itertools.pairwise(later))
        assert len(later) < FLAPS_MAX or calm, later
    if world.report().reason is FailureReason.FLAPPING:
        assert isinstance(world.run(PATIENCE), Settled)
        assert not any(unit.alive for unit in world.units())
