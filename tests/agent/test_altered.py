"""A unit that somebody changed is made anew; what the engine does by itself is let be."""

from __future__ import annotations

from dataclasses import replace

import pytest

from node_agent.flaps import FLAPS_MAX
from node_agent.steps import Present, Repair, Settled, Tolerate
from node_agent.wire import FailureReason, Phase
from tests.agent.cases import workload
from tests.agent.test_converge import DEAF, NEW, OLD, PATIENCE, running
from tests.agent.world import World, new_world

MEMORY = "memory limit changed from 512 MiB to 1 GiB"
SWAP = "memory and swap limit changed from 512 MiB to none"


def altered(*lines: str) -> World:
    world = running(OLD)
    world.engine.alter(world.units()[0], *lines)
    return world


def until_ready(world: World) -> list[tuple[Phase, FailureReason | None, str]]:
    """What is said on the way, each once, in order."""
    said = []
    for _ in range(PATIENCE):
        report = world.report()
        said.append((report.phase, report.reason, report.message))
        if report.phase is Phase.READY:
            break
        world.step()
    return list(dict.fromkeys(said))


def test_an_altered_unit_is_made_anew_and_why_is_said_meanwhile() -> None:
    world = altered(MEMORY)
    said = until_ready(world)
    assert world.done == ["Repair", "Create", "Start", "ProbeReady"]
    assert said == [
        (Phase.DEGRADED, FailureReason.ALTERED, MEMORY),
        (Phase.STARTING, FailureReason.ALTERED, MEMORY),
        (Phase.READY, None, ""),
    ]
    (unit,) = world.units()
    assert (unit.altered, unit.spec_hash) == ((), OLD.spec_hash)
    assert (world.report().restarts, world.progress.committed) == (1, OLD)


def test_what_can_not_be_made_anew_goes_on_as_it_is_and_is_shown() -> None:
    world = altered(MEMORY)
    world.crash()
    world.engine.pruned.add(OLD.image.digest)
    world.engine.images.clear()
    world.run(50)
    (unit,) = world.units()
    assert (unit.alive, unit.altered) == (True, (MEMORY,))
    report = world.report()
    assert (report.phase, report.reason) == (Phase.DEGRADED, FailureReason.ALTERED)
    world.engine.images.add(OLD.image.digest)
    until_ready(world)
    assert [unit.altered for unit in world.units()] == [()]


@pytest.mark.parametrize("how", ["kill", "pause"])
def test_one_that_is_altered_and_down_is_made_anew_too(how: str) -> None:
    world = altered(MEMORY)
    (unit,) = world.units()
    world.engine.kill(unit) if how == "kill" else world.engine.pause(unit)
    until_ready(world)
    assert world.done[0] == "Repair"
    assert world.report().restarts == 1


def test_much_that_was_altered_is_said_in_short() -> None:
    world = altered(MEMORY, SWAP, "image changed", "user changed")
    assert world.report().message == f"{MEMORY}; {SWAP} and 2 more"


def test_what_the_engine_says_in_its_own_way_is_seen_when_it_is_made_and_let_be() -> None:
    world = new_world(Present(NEW))
    world.engine.own_ways = (SWAP,)
    world.run(PATIENCE)
    assert world.done[:5] == ["Pull", "Create", "Tolerate", "Start", "ProbeReady"]
    assert world.report().phase is Phase.READY
    assert world.done.count("Create") == 1
    world.crash()
    world.run(20)
    assert world.done.count("Create") == 1
    world.engine.alter(world.units()[0], SWAP, MEMORY)
    assert world.report().message == MEMORY
    world.run(20)
    assert (world.report().phase, world.done.count("Create")) == (Phase.READY, 2)


def test_one_made_by_hand_before_its_start_is_not_let_be() -> None:
    world = new_world(Present(NEW))
    while "Create" not in world.done:
        world.step()
    world.crash()
    world.engine.alter(world.units()[0], "privileged mode changed from off to on")
    step = world.step()
    assert isinstance(step, Repair)
    world.run(PATIENCE)
    assert (world.report().phase, world.progress.tolerated) == (Phase.READY, ())


def test_one_altered_on_trial_is_made_anew_a_few_times_then_given_up() -> None:
    world = running(OLD)
    world.order(Present(NEW))
    for _ in range(PATIENCE):
        if isinstance(world.step(), Settled):
            break
        for unit in world.units():
            if unit.spec_hash == NEW.spec_hash and unit.status == "running":
                world.engine.alter(unit, MEMORY)
    report = world.report()
    assert (report.phase, report.reason) == (Phase.FAILED, FailureReason.ALTERED)
    assert report.message == f"altered again each time before it was ready: {MEMORY}"
    assert (report.running_hash, report.retained) == (OLD.spec_hash, True)


def test_who_is_altered_again_and_again_is_given_up() -> None:
    world = altered(MEMORY)
    for _ in range(PATIENCE):
        if isinstance(world.step(), Settled) and not any(u.alive for u in world.units()):
            break
        for unit in world.units():
            if unit.status == "running":
                world.engine.alter(unit, MEMORY)
    assert world.done.count("Repair") == FLAPS_MAX - 1
    report = world.report()
    assert (report.phase, report.reason) == (Phase.FAILED, FailureReason.FLAPPING)
    assert report.message == f"lost 5 times within 10 minutes, last: {MEMORY}"


def test_of_two_the_one_as_asked_for_stays() -> None:
    world = running(OLD)
    (ours,) = world.units()
    world.engine.kill(ours)
    theirs = replace(
        ours, unit_id="theirs", name="theirs", status="running", created_at_ms=0,
        altered=("privileged mode changed from off to on",),
    )  # fmt: skip
    world.engine.put(theirs)
    world.run(PATIENCE)
    (unit,) = world.units()
    assert (unit.unit_id, unit.alive) == (ours.unit_id, True)


def test_what_is_to_be_stopped_is_not_made_anew() -> None:
    world = altered(MEMORY)
    world.order(Present(OLD, run=False))
    assert world.run(PATIENCE) == Settled()
    assert world.done == ["Stop", "Settled"]


def test_the_version_before_is_put_right_once_the_new_one_failed() -> None:
    world = altered(MEMORY)
    world.order(Present(DEAF))
    world.run(PATIENCE)
    report = world.report()
    assert (report.phase, report.running_hash) == (Phase.FAILED, OLD.spec_hash)
    assert [unit.altered for unit in world.units()] == [()]


def test_tolerated_is_forgotten_with_the_instance() -> None:
    world = new_world(Present(workload()))
    world.engine.own_ways = (SWAP,)
    while not isinstance(world.step(), Tolerate):
        continue
    assert world.progress.tolerated == (SWAP,)
    world.order(Present(NEW))
    assert world.progress.tolerated == (SWAP,)
