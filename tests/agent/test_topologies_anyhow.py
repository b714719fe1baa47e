"""Whatever is broken when: what must always hold does, and afterwards all is as it should be.

What holds at each start (order, conditions, the form in force) is checked by `TopologyWorld`.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node_agent.compose_wire import Mount, Service, Volume
from node_agent.flaps import FLAP_WINDOW_MS
from node_agent.service_standing import standings
from node_agent.steps import Absent, Present, ProbeService, Settled, Wait
from node_agent.wire import FailureReason, Phase, Port, Workload
from tests.agent.cases import INSTANCE
from tests.agent.topology_world import JOB, PROBED, TopologyWorld, service, topology_workload

NAMES = ("a", "b", "c", "d")
PATIENCE, QUIET = 800, 25
RARELY = PROBED.model_copy(update={"interval_ms": 20_000})
"""Probes of what is ready do not fill the time in which nothing happens."""
BAD = ("deaf", "exit 1", "exit 127")
JOBS = ("exit 0", "end_third")
DATA = Mount(volume="data", path="/data")


@st.composite
def services(draw: st.DrawFn, bad: bool) -> tuple[Service, ...]:
    """Each waits only for those before it. Without `bad` all of them can get ready."""
    found: list[Service] = []
    jobs: set[str] = set()
    for name in NAMES[: draw(st.integers(1, len(NAMES)))]:
        needs = {}
        for other in found:
            conditions = ["started", "completed"] if other.name in jobs else ["started", "healthy"]
            if draw(st.booleans()):
                needs[other.name] = draw(st.sampled_from(conditions))
        commands = ["serve", "serve", "crash_twice", *JOBS, *(BAD if bad else ())]
        command = draw(st.sampled_from(commands))
        if command in JOBS:
            jobs.add(name)
        found.append(
            service(
                name,
                *command.split(),
                after=" ".join(f"{of}:{condition}" for of, condition in needs.items()),
                readiness=JOB if command in JOBS or draw(st.booleans()) else RARELY,
                restart="on_failure" if command in JOBS else draw(_restarts(command)),
                vital=draw(st.booleans()),
                env={"V": draw(st.sampled_from("12"))},
                ports=("http",) if name == "a" else (),
                mounts=(DATA,) if command in JOBS else (),
            )
        )
    return tuple(found)


def _restarts(command: str) -> st.SearchStrategy[str]:
    policies = ["always", "on_failure"]
    return st.sampled_from([*policies, "never"] if command in BAD else policies)


@st.composite
def workloads(draw: st.DrawFn, bad: bool = True) -> Workload:
    return topology_workload(
        *draw(services(bad)),
        vital_failure=draw(st.sampled_from(["restart_service", "restart_all"])),
        other_failure=draw(st.sampled_from(["degrade", "roll_back"])),
        labels={"version": draw(st.sampled_from("12"))},
        ports=(Port(name="http", container=8080),),
        volumes=(Volume(name="data", size_mib=1),),
    )


TARGETS = st.one_of(st.builds(Present, workloads(), st.booleans()), st.just(Absent(INSTANCE)))
NAME = st.sampled_from(NAMES)
EVENTS = st.one_of(
    st.tuples(st.just("order"), TARGETS),
    st.tuples(st.sampled_from(["take", "pause", "alter", "run"]), NAME),
    st.tuples(st.just("end"), st.tuples(NAME, st.sampled_from([0, 1, 137]))),
    st.tuples(st.sampled_from(["crash", "reboot", "lose files", "port", "prune"]), st.none()),
    st.tuples(st.sampled_from(["killed", "containers pruned", "volumes pruned"]), st.none()),
    st.tuples(st.sampled_from(["away", "refuse", "half"]), st.integers(1, 6)),
    st.tuples(st.just("steps"), st.integers(1, 25)),
    st.tuples(st.just("unstartable"), NAME),
)


def _happens(world: TopologyWorld, what: str, value: Any) -> None:
    compose = world.compose
    match what:
        case "order":
            world.order(value)
        case "crash":
            world.crash()
        case "killed":
            world.killed()
        case "containers pruned":
            compose.prune_containers()
        case "volumes pruned":
            compose.prune_volumes()
        case "steps":
            world.run(value)
        case "reboot":
            compose.reboot()
        case "lose files":
            compose.lose_files(INSTANCE)
        case "take":
            compose.take(INSTANCE, value)
        case "pause":
            compose.pause(INSTANCE, value)
        case "run":
            compose.run_by_hand(INSTANCE, value)
        case "alter":
            compose.alter(INSTANCE, value, "user changed")
        case "end":
            compose.end(INSTANCE, *value)
        case "prune":
            compose.pruned |= compose.images
        case "port":
            compose.taken_ports.add(40_000 + world.ports_tried)
        case "away":
            _while(world, "away", value)
        case "refuse":
            _while(world, "create_refused", value)
        case "half":
            compose.create_fails_after = value - 1
            world.run(value)
        case "unstartable":
            compose.unstartable[value] = FailureReason.GPU_UNAVAILABLE
            world.run(6)
            compose.unstartable.clear()


def _while(world: TopologyWorld, fault: str, steps: int) -> None:
    """The engine is in trouble, but for looking: who can't look takes no turn."""
    units = world.units
    answer = units()
    world.units = lambda: answer  # type: ignore[method-assign]
    setattr(world.compose, fault, True)
    world.compose.on_start = lambda _instance, _service: None
    for _ in range(steps):
        if fault == "away":
            world.now_ms += 100
        else:
            del world.__dict__["units"]
            world.step()
            world.units = lambda: answer  # type: ignore[method-assign]
    setattr(world.compose, fault, False)
    world.__dict__.pop("units", None)
    world.compose.on_start = world._starts


def _calm(world: TopologyWorld) -> object:
    """Until nothing is left to do but to probe what is ready."""
    quiet, last = 0, None
    for _ in range(PATIENCE):
        last = world.step()
        quiet = quiet + 1 if isinstance(last, Wait | ProbeService) else 0
        if isinstance(last, Settled):
            return last
        if quiet > QUIET and world.report().phase is not Phase.STARTING:
            return last
    raise AssertionError(f"never at rest: {world.done[-12:]}")


@settings(max_examples=100)
@given(TARGETS, st.lists(EVENTS, max_size=14))
def test_any_topology_calms_down_where_it_should(target: Any, story: list[tuple[str, Any]]) -> None:
    world = TopologyWorld(target)
    for what, value in story:
        _happens(world, what, value)
    last = _calm(world)
    _check_rest(world, last)


def _check_rest(world: TopologyWorld, last: object) -> None:
    report, target, compose = world.report(), world.target, world.compose
    if isinstance(target, Absent):
        assert (last, report.phase) == (Settled(), Phase.REMOVED)
        assert (compose.containers, compose.forms, compose.in_force) == ({}, {}, {})
        return
    alive = [name for (_, name), one in compose.containers.items() if one.alive]
    if not target.run:
        assert (last, alive) == (Settled(), [])
        assert report.phase in {Phase.STOPPED, Phase.FAILED}
        return
    assert report.phase in {Phase.READY, Phase.DEGRADED, Phase.FAILED}, (report, world.done[-9:])
    committed = world.progress.committed
    if committed is None:
        assert (report.phase, alive) == (Phase.FAILED, [])
        return
    assert [unit.spec_hash for unit in world.units()] == [committed.spec_hash]
    assert isinstance(last, Settled | Wait | ProbeService) or world.done[-1].startswith("Probe")
    (unit,) = world.units()
    for one in standings(committed, unit, world.progress).values():
        assert one.well or not one.service.vital or report.phase is not Phase.READY
        assert one.seen.altered == ()


@settings(max_examples=60)
@given(workloads(bad=False), st.lists(EVENTS, max_size=10))
def test_what_can_get_ready_does_whatever_happened(
    wanted: Workload, story: list[tuple[str, Any]]
) -> None:
    world = TopologyWorld(Present(wanted))
    for what, value in story:
        _happens(world, what, value)
    world.compose.taken_ports.clear()
    world.now_ms += FLAP_WINDOW_MS
    world.order(Present(wanted))
    _calm(world)
    report = world.report()
    assert report.phase is Phase.READY, (report, world.done[-12:])
    assert report.running_hash == wanted.spec_hash
    assert {one.phase for one in report.services} <= {"ready", "completed"}
    before = len(world.compose.started)
    world.run(50)
    assert len(world.compose.started) == before
    assert isinstance(world.step(), Settled | Wait | ProbeService)


@pytest.mark.parametrize("crash_at", range(1, 40, 3))
def test_an_agent_that_dies_at_any_step_of_a_launch_goes_on(crash_at: int) -> None:
    what = topology_workload(
        service("a"), service("b", "exit", "0", restart="never", readiness=JOB, after="a:healthy"),
        service("c", after="b:completed"),
    )  # fmt: skip
    world = TopologyWorld(Present(what))
    for _ in range(crash_at):
        world.step()
    world.crash()
    world.until(Phase.READY)
    assert sorted(world.compose.started) == ["a", "b", "c"]
