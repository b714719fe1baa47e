"""What a pass tells of its fleet: health in conditions, what is stuck, how long commits take."""

from __future__ import annotations

from dataclasses import replace

from node_agent.wire import Phase, WorkloadReport
from reconciler.adapters.store_rows import RECORD
from reconciler.core.health import Health, told_health
from reconciler.core.records import InstanceRecord
from reconciler.cycle import Pass, load, preview
from reconciler.ports import Changes
from reconciler.watch import PHASES
from tests.test_cycle import HELLO, SCHEMAS, SETTINGS, World, world
from tests.test_loop import POLL
from tests.test_loop import World as LoopWorld
from tests.test_loop import world as loop_world

__all__ = ["loop_world", "world"]


def stuck(done: Pass) -> list[str]:
    return [finding.object for finding in done.plan.findings if finding.code == "stuck"]


def health(record: InstanceRecord) -> str:
    return told_health(record).health.value


def while_starting(world: World) -> World:
    """The node took the launch over, and has been pulling since."""
    world.run_pass()
    world.agent.work(world.clock.now_ms())
    pulling(world)
    return world


def pulling(world: World) -> None:
    report = world.agent.reports[HELLO]
    world.agent.reports[HELLO] = report.model_copy(
        update={"phase": Phase.PULLING, "running_hash": None}
    )
    world.agent.report(world.clock.now_ms())


def test_a_commit_is_timed_from_when_it_was_seen(world: World) -> None:
    first = world.run_pass()
    assert first.arrivals == ()
    assert world.record.change is not None
    world.agent.work(world.clock.now_ms())
    world.clock.advance(4_000)
    done = world.run_pass()
    assert [(one.revision, one.took_ms) for one in done.arrivals] == [(done.plan.revision, 5_000)]
    assert world.record.change is None
    assert world.run_pass().arrivals == ()


def test_a_restart_in_between_forgets_no_commit(world: World) -> None:
    world.run_pass()
    stored = RECORD.dump_json(world.record)
    assert RECORD.validate_json(stored) == world.record
    assert RECORD.validate_json(stored).change is not None


def test_an_upgrade_given_up_is_awaited_until_the_next_commit(world: World) -> None:
    world.converge()
    text = next(v for k, v in world.files.items() if k.endswith("artifacts/hello/1.1.0/image.yaml"))
    world.agent.broken.add("sha256:" + text.decode().partition("sha256:")[2][:64])
    world.set_version("1.1.0")
    done = world.converge()
    assert (done.summary.result, done.arrivals) == ("stalled", ())
    assert world.record.change is not None
    assert (health(world.record), world.record.reason) == ("ready", "not_ready_in_time")
    world.set_version("1.0.0")
    world.converge()
    assert world.record.change is None


def test_what_pulls_for_ever_is_stuck_and_the_pass_still_waits(world: World) -> None:
    while_starting(world)
    assert (stuck(world.run_pass()), health(world.record)) == ([], "starting")
    budget_s = 2 * 3600
    world.clock.advance(budget_s * 1000)
    pulling(world)
    first = world.run_pass()
    assert stuck(first) == [f"AppInstance/{HELLO}"]
    assert first.summary.result == "waiting"
    assert (health(world.record), first.plan.actions) == ("stuck", ())
    conditions = world.record.conditions
    second = world.run_pass()
    assert (second.plan.findings, world.record.conditions) == (first.plan.findings, conditions)


def test_a_plan_says_who_is_stuck_and_is_the_same_plan(world: World) -> None:
    while_starting(world)
    world.clock.advance(2 * 3_600_000)
    pulling(world)
    state = load(
        world.ports.source.snapshot(world.ports.source.fetch()), SCHEMAS, world.ports, SETTINGS
    )
    shown, _ = preview(state, world.ports, SETTINGS)
    assert [finding.code for finding in shown.findings] == ["stuck"]
    assert shown.plan_id == world.run_pass().plan.plan_id


def test_a_task_that_is_left_stays_stuck_although_it_is_sent_anew(world: World) -> None:
    """Tasks expire and come again; who leaves each of them does not begin anew with each."""
    for _ in range(30):
        world.clock.advance(9_000)
        world.agent.report(world.clock.now_ms())
        done = world.run_pass()
    assert stuck(done) == [f"AppInstance/{HELLO}"]
    assert "has not taken its task since" in told_health(world.record).why
    world.agent.work(world.clock.now_ms())
    assert stuck(world.run_pass()) == []
    assert health(world.record) == "ready"


def test_degraded_then_stuck_then_well(world: World) -> None:
    world.converge()
    well: WorkloadReport = world.agent.reports[HELLO]

    def passed(phase: Phase, after_ms: int) -> tuple[str, list[str]]:
        world.clock.advance(after_ms)
        world.agent.reports[HELLO] = well.model_copy(update={"phase": phase})
        world.agent.report(world.clock.now_ms())
        done = world.run_pass()
        return health(world.record), stuck(done)

    assert passed(Phase.DEGRADED, 0) == ("degraded", [])
    assert passed(Phase.DEGRADED, 590_000) == ("degraded", [])
    assert passed(Phase.DEGRADED, 10_000) == ("stuck", [f"AppInstance/{HELLO}"])
    assert passed(Phase.READY, 1_000) == ("ready", [])


def test_restarts_are_counted_as_nodes_tell_them(world: World) -> None:
    world.converge()
    well = world.agent.reports[HELLO]
    counted = []
    for restarts in (0, 2, 2, 3, 0, 1):
        world.agent.reports[HELLO] = well.model_copy(update={"restarts": restarts})
        world.agent.report(world.clock.now_ms())
        counted.append(world.run_pass().restarts)
    assert counted == [0, 2, 0, 1, 0, 1]


def test_a_node_that_is_silent_makes_nobody_stuck(world: World) -> None:
    while_starting(world)
    world.clock.advance(10 * 3_600_000)
    done = world.run_pass()
    assert (stuck(done), health(world.record)) == ([], Health.UNKNOWN.value)


# --- the loop ------------------------------------------------------------------------------------


def test_every_phase_of_a_pass_is_timed(loop_world: LoopWorld) -> None:
    loop = loop_world.loop()
    loop.step(POLL)
    loop.step(frozenset({"report"}))
    first, second = (done.seconds for done in loop_world.passes)
    assert set(first) == set(PHASES)
    assert set(second) == set(PHASES) - {"fetch", "load"}
    assert all(seconds >= 0 for seconds in (*first.values(), *second.values()))


def test_a_revision_was_seen_when_it_came_and_not_when_it_is_looked_at_again(
    loop_world: LoopWorld,
) -> None:
    loop, store = loop_world.loop(), loop_world.store
    seen_ms = loop_world.clock.now_ms()
    loop.step(POLL)
    assert {r.change.seen_at_ms for r in store.records().values() if r.change} == {seen_ms}
    loop_world.clock.advance(60_000)
    records = [replace(record, change=None) for record in store.records().values()]
    store.commit(Changes(records=records))
    loop_world.loop("one").step(POLL)
    assert {r.change.seen_at_ms for r in store.records().values() if r.change} == {seen_ms}


def test_who_stands_by_has_a_heartbeat_and_does_not_lead(loop_world: LoopWorld) -> None:
    first, second = loop_world.loop("one"), loop_world.loop("two")
    assert not first.heartbeat().leading
    first.step(POLL)
    second.step(POLL)
    assert (first.heartbeat().leading, second.heartbeat().leading) == (True, False)
    assert first.heartbeat().age_s >= 0
