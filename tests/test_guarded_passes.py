"""Passes that are held back: renames, budgets, suspensions, windows and manual mode, as stories.

The same on real services is in `tests/e2e/test_guards.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from reconciler.core.actions import Held
from reconciler.core.names import ArtifactKey, InstanceKey
from reconciler.core.plan.moves import holding
from reconciler.core.records import State
from reconciler.core.times import time_text
from reconciler.core.validate import validate
from reconciler.cycle import Pass, load, plan_from, preview, reconcile
from tests.test_cycle import HELLO, INSTANCE, SCHEMAS, SETTINGS, STEPS, Crash, World, make_world

ENVIRONMENT = "environments/dev.yaml"
RENAMED = INSTANCE.replace("hello", "hi")
HI = InstanceKey("acme/research/hi")
HOUR_MS = 3_600_000


@pytest.fixture
def world() -> World:
    made = make_world()
    made.converge()
    return made


def with_spec(world: World, path: str, lines: str) -> dict[str, Any]:
    """The file with these lines at the end of its spec; whatever was there under their key goes."""
    text = world.files[path].decode()
    kept, skipping = [], False
    for line in text.splitlines():
        nested = line.startswith("   ")
        skipping = (skipping and nested) or line == lines.splitlines()[0]
        if not skipping:
            kept.append(line)
    return {path: "\n".join([*kept, lines, ""]).encode()}


def rename(world: World, version: str = "1.0.0") -> None:
    text = world.files[INSTANCE].decode()
    text = text.replace("name: hello", "name: hi").replace('"1.0.0"', f'"{version}"')
    renamed = f"{text.rstrip()}\n  moved_from: hello\n".encode()
    world.commit(**{INSTANCE: None, RENAMED: renamed})


def held(done: Pass) -> Held:
    (action,) = done.plan.actions
    assert action.held is not None, action
    return action.held


def plan_by_hand(world: World, plan_id: str) -> Pass:
    head = world.ports.source.fetch()
    state = load(world.ports.source.snapshot(head), SCHEMAS, world.ports, SETTINGS)
    return reconcile(state, world.ports, SETTINGS, None, frozenset({plan_id}))


# --- renames -------------------------------------------------------------------------------------


def test_a_rename_goes_to_no_node(world: World) -> None:
    rename(world)
    done = world.run_pass()
    assert [a.kind for a in done.plan.ready] == ["move"]
    assert done.nodes == frozenset()
    assert list(world.store.records()) == [HI]
    ready = next(c for c in world.store.records()[HI].conditions if c.type == "Ready")
    assert ready.status == "True"
    assert world.run_pass().summary.result == "done"
    assert len(world.agent.launches) == 1
    assert world.events()[3:] == ["moved"]
    record = world.store.records()[HI]
    assert (record.state, record.runtime_name) == (State.RUNNING, str(HELLO))
    assert {c.type: c.status for c in record.conditions} == {"Ready": "True", "Converged": "True"}


def test_its_gpus_are_its_own_under_the_new_name_too(world: World) -> None:
    """Else it would be given others, and be replaced for that."""
    rename(world)
    head = world.ports.source.fetch()
    found = validate(world.ports.source.snapshot(head), SCHEMAS, SETTINGS.parse_limits)
    records = {HELLO: replace(world.record, gpu_uuids=("GPU-1",))}
    both = {HELLO: ("GPU-1",), HI: ("GPU-1",)}
    assert holding(found.objects.values(), records) == both
    moved = {HI: replace(world.record, key=HI, gpu_uuids=("GPU-1",))}
    assert holding(found.objects.values(), moved) == {HI: ("GPU-1",)}


def test_under_its_new_name_it_is_upgraded_stopped_and_removed(world: World) -> None:
    rename(world, "1.1.0")
    world.converge()
    assert world.store.records()[HI].applied_version == "1.1.0"
    assert list(world.agent.reports) == [str(HELLO)]
    text = world.files[RENAMED].decode().replace("desired: running", "desired: stopped")
    world.commit(**{RENAMED: text.encode()})
    world.converge()
    assert world.agent.reports[str(HELLO)].phase.value == "stopped"
    world.commit(**{RENAMED: None})
    world.converge()
    assert world.store.records()[HI].state is State.DECOMMISSIONED
    assert world.events()[3:] == [
        "moved", "upgrade_requested", "upgraded", "decommission_requested", "decommissioned",
    ]  # fmt: skip


@pytest.mark.parametrize("method", STEPS)
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("nth", range(1, 5))
def test_a_crash_in_the_middle_of_a_rename_changes_nothing_of_it(
    world: World, method: str, when: str, nth: int
) -> None:
    real: Callable[..., object] = getattr(world.store, method)
    calls = 0

    def dying(*args: object) -> object:
        nonlocal calls
        calls += 1
        if calls == nth and when == "before":
            raise Crash
        result = real(*args)
        if calls == nth:
            raise Crash
        return result

    setattr(world.store, method, dying)
    rename(world, "1.1.0")
    for _ in range(3):
        try:
            world.converge()
            break
        except Crash:
            continue
    assert list(world.store.records()) == [HI]
    assert world.store.records()[HI].applied_version == "1.1.0"
    assert len(world.agent.launches) == 2
    assert world.events()[3:] == ["moved", "upgrade_requested", "upgraded"]


def test_a_rename_that_is_not_accepted_removes_nothing(world: World) -> None:
    """Attempted: to lose an instance by a typo in the file that it was renamed to."""
    rename(world, "9.9.9")
    for _ in range(2):
        done = world.run_pass()
        assert done.plan.actions == ()
        assert done.summary.result == "stalled"
    assert world.record.state is State.RUNNING
    text = world.files[RENAMED].decode().replace("9.9.9", "1.0.0")
    world.commit(**{RENAMED: text.encode()})
    world.converge()
    assert list(world.store.records()) == [HI]
    assert len(world.agent.launches) == 1


def test_a_rename_that_waits_survives_a_mistake_in_the_next_commit(world: World) -> None:
    """Attempted: the same, with a move that was accepted but had to wait."""
    until = time_text(world.clock.now_ms() + HOUR_MS)
    term = f"  suspend:\n    by: ada\n    reason: the demo\n    until: {until}"
    rename(world)
    world.commit(**with_spec(world, RENAMED, term))
    assert held(world.run_pass()).code == "suspended"
    world.commit(**{"platform/nodes/node-a.yaml": None})
    world.clock.advance(2 * HOUR_MS)
    world.agent.report(world.clock.now_ms())
    assert world.run_pass().plan.actions == ()
    assert world.record.state is State.RUNNING


def test_a_lost_store_finds_what_was_renamed_meanwhile(world: World) -> None:
    rename(world)
    world.store.__init__()  # type: ignore[misc]
    world.agent.join(world.clock.now_ms())
    world.agent.report(world.clock.now_ms())
    done = world.run_pass()
    assert done.plan.empty
    record = world.store.records()[HI]
    assert (record.state, record.runtime_name) == (State.RUNNING, str(HELLO))
    assert len(world.agent.launches) == 1


def test_a_new_one_takes_the_name_once_it_is_free(world: World) -> None:
    first = world.files[INSTANCE]
    rename(world)
    world.converge()
    settled = world.files[RENAMED].replace(b"  moved_from: hello\n", b"")
    world.commit(**{RENAMED: settled, INSTANCE: first})
    done = world.run_pass()
    assert held(done).code == "name_in_use_on_node"
    assert done.summary.result == "stalled"
    ended = settled.replace(b"desired: running", b"desired: decommissioned")
    world.commit(**{RENAMED: ended})
    world.converge()
    records = world.store.records()
    assert (records[HELLO].state, records[HI].state) == (State.RUNNING, State.DECOMMISSIONED)
    assert len(world.agent.launches) == 2


def test_one_that_is_wanted_again_under_the_name_its_node_knows_moves_back(world: World) -> None:
    """A revert of a rename takes out `moved_from` as well."""
    first = world.files[INSTANCE]
    rename(world)
    world.converge()
    world.commit(**{RENAMED: None, INSTANCE: first})
    world.converge()
    records = world.store.records()
    assert records[HELLO].state is State.RUNNING
    assert HI not in records
    assert len(world.agent.launches) == 1


def test_a_plan_without_ports_is_the_same_plan(world: World) -> None:
    rename(world, "1.1.0")
    head = world.ports.source.fetch()
    state = load(world.ports.source.snapshot(head), SCHEMAS, world.ports, SETTINGS)
    live, _ = preview(state, world.ports, SETTINGS)
    store, now_ms = world.store, world.clock.now_ms()
    done = world.run_pass()
    assert done.plan.actions == live.actions
    offline, _ = plan_from(
        state, done.observed, store.records(), store.open_intents(now_ms), now_ms
    )
    online, _ = preview(state, world.ports, SETTINGS)
    assert [a.kind for a in offline.actions] == [a.kind for a in online.actions] == ["replace"]


# --- removals ------------------------------------------------------------------------------------


def test_removals_over_budget_wait_for_a_commit_that_names_them(world: World) -> None:
    world.commit(**with_spec(world, ENVIRONMENT, "  guards:\n    removals_max: 0"))
    world.commit(**{INSTANCE: None})
    done = world.converge()
    assert (done.summary.result, held(done).code) == ("stalled", "removal_budget")
    assert world.record.applied_version == "1.0.0"
    until = time_text(world.clock.now_ms() + HOUR_MS)
    approval = (
        "  guards:\n    removals_max: 0\n    approvals:\n"
        f'      - removals: "{done.plan.removals_id}"\n'
        f"        reason: the project ended\n        until: {until}"
    )
    world.commit(**with_spec(world, ENVIRONMENT, approval))
    world.converge()
    assert world.record.state is State.DECOMMISSIONED


def test_what_was_approved_while_its_node_was_silent_goes_when_that_is_back(world: World) -> None:
    world.commit(**with_spec(world, ENVIRONMENT, "  guards:\n    removals_max: 0"))
    world.commit(**{INSTANCE: None})
    removals = world.converge().plan.removals_id
    until = time_text(world.clock.now_ms() + HOUR_MS)
    approval = (
        "  guards:\n    removals_max: 0\n    approvals:\n"
        f'      - removals: "{removals}"\n        reason: it ended\n        until: {until}'
    )
    world.commit(**with_spec(world, ENVIRONMENT, approval))
    world.clock.advance(120_000)
    assert held(world.run_pass()).code == "node_offline"
    assert world.record.approved_removals == removals
    world.agent.report(world.clock.now_ms())
    world.converge()
    assert world.record.state is State.DECOMMISSIONED


def test_an_environment_that_is_gone_frees_no_removal(world: World) -> None:
    """Attempted: to have a held removal carried out by taking away what holds it."""
    world.commit(**with_spec(world, ENVIRONMENT, "  guards:\n    tombstones: true"))
    world.commit(**{INSTANCE: None})
    assert held(world.converge()).code == "tombstone_missing"
    world.commit(**{ENVIRONMENT: None})
    done = world.converge()
    assert held(done).code == "removal_budget"
    assert world.record.state is State.RUNNING


def test_with_tombstones_an_instance_is_first_decommissioned(world: World) -> None:
    world.commit(**with_spec(world, ENVIRONMENT, "  guards:\n    tombstones: true"))
    before = world.files[INSTANCE]
    world.commit(**{INSTANCE: None})
    done = world.converge()
    assert (done.summary.result, held(done).code) == ("stalled", "tombstone_missing")
    gone = before.replace(b"desired: running", b"desired: decommissioned")
    world.commit(**{INSTANCE: gone})
    world.converge()
    assert world.record.state is State.DECOMMISSIONED
    world.commit(**{INSTANCE: None})
    assert world.converge().summary.result == "done"


# --- suspensions, windows, manual mode -----------------------------------------------------------


def test_a_suspension_shows_drift_and_ends_by_itself(world: World) -> None:
    until = time_text(world.clock.now_ms() + HOUR_MS)
    term = f"  suspend:\n    by: ada\n    reason: the demo\n    until: {until}"
    world.commit(**with_spec(world, INSTANCE, term))
    world.agent.reports.clear()
    world.agent.report(world.clock.now_ms())
    done = world.run_pass()
    assert (done.summary.result, held(done).code) == ("waiting", "suspended")
    assert done.plan.actions[0].cause == "drift"
    assert done.plan.wake_at_ms is not None
    world.clock.advance(done.plan.wake_at_ms - world.clock.now_ms())
    world.agent.report(world.clock.now_ms())
    world.converge()
    assert len(world.agent.launches) == 2


def test_a_window_holds_a_change_and_not_a_repair(world: World) -> None:
    """The clock stands at 22:13 UTC."""
    window = (
        "  sync:\n    windows:\n      - name: office\n        kind: allow\n"
        '        start: "09:00"\n        end: "17:00"\n        time_zone: Europe/Berlin'
    )
    world.commit(**with_spec(world, ENVIRONMENT, window))
    world.set_version("1.1.0")
    done = world.run_pass()
    assert held(done).code == "outside_sync_window"
    assert held(done).message.startswith(
        "changes are made in window office only; opens 2023-11-15T08"
    )
    world.set_version("1.0.0")
    world.agent.reports.clear()
    world.agent.report(world.clock.now_ms())
    world.converge()
    assert len(world.agent.launches) == 2
    world.set_version("1.1.0")
    wake_at_ms = world.run_pass().plan.wake_at_ms
    assert wake_at_ms is not None
    world.clock.advance(wake_at_ms - world.clock.now_ms())
    world.agent.report(world.clock.now_ms())
    world.converge()
    assert world.record.applied_version == "1.1.0"


def test_manual_mode_carries_out_the_plan_that_was_named(world: World) -> None:
    world.commit(**with_spec(world, ENVIRONMENT, "  sync:\n    mode: manual"))
    world.set_version("1.1.0")
    done = world.converge()
    assert (done.summary.result, held(done).code) == ("stalled", "awaiting_apply")
    again = plan_by_hand(world, "0" * 16)
    assert held(again).code == "awaiting_apply"
    assert "plan_outdated" in [f["code"] for f in again.summary.findings]
    assert [a.held for a in plan_by_hand(world, done.plan.plan_id).plan.actions] == [None]
    world.agent.work(world.clock.now_ms())
    world.converge()
    assert world.record.applied_version == "1.1.0"


def test_what_was_applied_goes_on_although_a_part_of_it_had_to_wait(world: World) -> None:
    world.commit(**with_spec(world, ENVIRONMENT, "  sync:\n    mode: manual"))
    digest = (
        world.files["tenants/platform/projects/catalog/artifacts/hello/1.1.0/image.yaml"]
        .decode()
        .partition("digest: ")[2]
        .split()[0]
        .strip('"')
    )
    image = ArtifactKey.parse(f"gpuaas/apps/platform/catalog/hello@{digest}")
    world.registry.delete(image)
    world.set_version("1.1.0")
    planned = world.run_pass().plan
    assert held(plan_by_hand(world, planned.plan_id)).code == "artifact_missing"
    world.registry.say(image)
    world.converge()
    assert world.record.applied_version == "1.1.0"


# --- the newest revision -------------------------------------------------------------------------


def test_the_newest_revision_does_not_wait_for_what_an_older_one_waits_for() -> None:
    world = make_world()
    path = "tenants/platform/projects/catalog/artifacts/hello/1.1.0/image.yaml"
    broken = world.files[path].decode().partition("digest: ")[2].split()[0].strip('"')
    world.agent.broken = {broken}
    world.set_version("1.1.0")
    for _ in range(3):
        done = world.run_pass()
        world.agent.work(world.clock.now_ms())
    assert held(done).code == "backing_off"
    world.set_version("1.0.0")
    (action,) = world.run_pass().plan.ready
    assert (action.cause, getattr(action, "version", "")) == ("change", "1.0.0")
    world.agent.work(world.clock.now_ms())
    world.converge()
    assert world.record.applied_version == "1.0.0"


def test_the_newest_revision_does_not_wait_for_a_task_of_an_older_one() -> None:
    world = make_world()
    assert [getattr(a, "version", "") for a in world.run_pass().plan.ready] == ["1.0.0"]
    world.set_version("1.1.0")
    assert [getattr(a, "version", "") for a in world.run_pass().plan.ready] == ["1.1.0"]
    world.converge()
    assert world.record.applied_version == "1.1.0"
