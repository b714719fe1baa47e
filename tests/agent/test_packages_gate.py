"""A workload with packages on its way through the gate, on the fake engine."""

from __future__ import annotations

from dataclasses import replace

import pytest

from node_agent.converge import packages_fault
from node_agent.steps import Present
from node_agent.wire import FailureReason, Packages, Phase, Readiness, Workload
from tests.agent.cases import workload
from tests.agent.world import World, new_world

PACKAGES = Packages(index_url="https://wheels.example/simple/", requirements=("numpy==2.1.0",))
QUIET = Readiness(interval_ms=700, start_budget_ms=20_000)
PATIENCE = 200


def lab(*command: str, readiness: Readiness = QUIET) -> Workload:
    return workload(command=command, packages=PACKAGES, readiness=readiness, ports=())


ENDS = [
    ("97", 3, "pip could not put pip_packages in"),
    ("96", 1, "pip_packages need python3 with pip in the image"),
    ("95", 1, "there is no room or right to write pip_packages to"),
]


@pytest.mark.parametrize(("code", "starts", "says"), ENDS)
def test_packages_that_can_not_be_put_in(code: str, starts: int, says: str) -> None:
    """pip may find its index again; an image does not get python3 by trying."""
    what = lab("exit", code)
    world = new_world(Present(what))
    world.run(PATIENCE)
    report = world.report()
    (unit,) = world.units()
    assert (report.phase, report.reason) == (Phase.FAILED, FailureReason.PACKAGES_FAILED)
    assert report.message == f"{says}; on the node see: the log of {unit.name}"
    told = packages_fault(replace(unit, engine="docker"), what)
    assert told is not None
    assert told.message == f"{says}; on the node see: docker logs {unit.name}"
    assert report.exit_code == int(code)
    assert world.done.count("Start") == starts


def test_the_same_code_without_packages_is_the_workloads_own() -> None:
    world = new_world(Present(workload(command=("exit", "97"))))
    world.run(PATIENCE)
    assert world.report().reason is FailureReason.EXITED


def test_what_runs_is_kept_when_the_packages_of_the_next_fail() -> None:
    old = workload()
    world = new_world(Present(old))
    world.run(PATIENCE)
    world.order(Present(lab("exit", "97")))
    world.run(PATIENCE)
    report = world.report()
    assert (report.phase, report.reason) == (Phase.FAILED, FailureReason.PACKAGES_FAILED)
    assert (report.running_hash, report.retained) == (old.spec_hash, True)


def until_probed(world: World) -> None:
    for _ in range(PATIENCE):
        world.step()
        if "ProbeReady" in world.done:
            return


def test_without_a_probe_it_is_ready_once_its_packages_are_in() -> None:
    world = new_world(Present(lab("serve")))
    world.engine.exec_override = ("false",)
    until_probed(world)
    for _ in range(10):
        world.step()
        assert world.report().phase is Phase.STARTING
    world.engine.exec_override = ("true",)
    world.run(PATIENCE)
    assert world.report().phase is Phase.READY
    assert "Commit" in world.done


def test_the_start_budget_covers_putting_them_in() -> None:
    world = new_world(Present(lab("serve")))
    world.engine.exec_override = ("false",)
    world.run(PATIENCE)
    report = world.report()
    assert (report.phase, report.reason) == (Phase.FAILED, FailureReason.NOT_READY_IN_TIME)
    assert report.message.startswith("not ready within 20000 ms: ")


def test_packages_that_fail_later_are_told_as_such() -> None:
    """The container is made anew behind our back, and the index has gone meanwhile."""
    world = new_world(Present(lab("serve")))
    world.engine.exec_override = ("true",)
    world.run(PATIENCE)
    (unit,) = world.units()
    world.engine.end(unit, 97)
    report = world.report()
    assert (report.phase, report.reason) == (Phase.DEGRADED, FailureReason.PACKAGES_FAILED)
