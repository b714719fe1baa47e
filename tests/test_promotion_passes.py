"""Steps of versions and artifacts in whole passes: what is put back, and what follows by itself."""

from __future__ import annotations

import pytest

from reconciler.cycle import load
from reconciler.loop import Loop
from reconciler.settings import Settings
from tests.test_cycle import INSTANCE, SCHEMAS, SETTINGS, World, make_world

PROMOTION = "catalog/hello/promotions/1.0.0.yaml"
NEWEST = "catalog/hello/promotions/1.1.0.yaml"
ARTIFACT = "tenants/platform/projects/catalog/artifacts/hello/1.0.0/image.yaml"
OLD, IMAGE = "Promotion/hello/1.0.0", "Artifact/platform/catalog/hello/1.0.0/image"


@pytest.fixture
def world() -> World:
    made = make_world()
    made.converge()
    return made


def state_of(world: World, ref: str = OLD) -> str:
    form = world.store.accepted().objects[ref].document_json
    return form.partition('"state":"')[2].partition('"')[0]


def in_state(world: World, path: str, state: str) -> bytes:
    lines = world.files[path].decode().splitlines()
    return "\n".join(f"  state: {state}" if "state:" in one else one for one in lines).encode()


def moved_on(world: World) -> bytes:
    return world.files[INSTANCE].decode().replace('"1.0.0"', '"1.1.0"').encode()


def codes(world: World) -> set[str]:
    last = world.store.last_pass()
    return {str(one["code"]) for one in last.findings} if last is not None else set()


def test_an_illegal_step_changes_nothing_and_is_told(world: World) -> None:
    world.commit(**{PROMOTION: in_state(world, PROMOTION, "draft")})
    done = world.run_pass()
    assert (done.plan.empty, state_of(world)) == (True, "active")
    assert "illegal_step" in codes(world)
    world.commit(**{PROMOTION: in_state(world, PROMOTION, "active")})
    world.run_pass()
    assert "illegal_step" not in codes(world)


def test_several_commits_between_two_passes_make_several_steps(world: World) -> None:
    for state in ("staged", "canary"):
        world.commit(**{PROMOTION: in_state(world, PROMOTION, state)})
    for state in ("deprecated", "retired"):
        world.commit(**{NEWEST: in_state(world, NEWEST, state)})
    world.run_pass()
    assert (state_of(world), state_of(world, "Promotion/hello/1.1.0")) == ("active", "retired")


def test_a_retirement_waits_for_the_upgrade_that_makes_room_for_it(world: World) -> None:
    world.commit(**{PROMOTION: in_state(world, PROMOTION, "deprecated")})
    world.run_pass()
    world.commit(
        **{PROMOTION: in_state(world, PROMOTION, "retired"), INSTANCE: moved_on(world)},
    )
    world.run_pass()
    assert (state_of(world), "version_in_use" in codes(world)) == ("deprecated", True)
    world.converge()
    assert world.record.applied_version == "1.1.0"
    world.run_pass()
    assert (state_of(world), "version_in_use" in codes(world)) == ("retired", False)


def test_a_retirement_waits_while_what_was_removed_still_runs(world: World) -> None:
    world.commit(**{PROMOTION: in_state(world, PROMOTION, "deprecated")})
    world.run_pass()
    world.commit(**{PROMOTION: in_state(world, PROMOTION, "retired"), INSTANCE: None})
    world.run_pass()
    assert state_of(world) == "deprecated"
    world.converge()
    world.run_pass()
    assert state_of(world) == "retired"


def test_the_loop_looks_again_without_a_commit(world: World) -> None:
    world.commit(**{PROMOTION: in_state(world, PROMOTION, "deprecated")})
    world.run_pass()
    world.commit(
        **{PROMOTION: in_state(world, PROMOTION, "retired"), INSTANCE: moved_on(world)},
    )
    settings = Settings(environment="dev", signatures="off")
    loop = Loop(world.ports, settings, SCHEMAS, "one")
    for _ in range(6):
        assert loop.step(frozenset({"poll"})) is not None
        world.agent.work(world.clock.now_ms())
        world.clock.advance(1_000)
    assert (world.record.applied_version, state_of(world)) == ("1.1.0", "retired")


def test_an_artifact_is_not_retired_below_what_runs_it(world: World) -> None:
    for path in (PROMOTION, ARTIFACT):
        world.commit(**{path: in_state(world, path, "deprecated")})
    world.run_pass()
    for path in (PROMOTION, ARTIFACT):
        world.commit(**{path: in_state(world, path, "retired")})
    world.commit(**{INSTANCE: moved_on(world)})
    world.run_pass()
    assert (state_of(world, IMAGE), "artifact_in_use" in codes(world)) == ("deprecated", True)
    world.converge()
    world.run_pass()
    assert (state_of(world, IMAGE), state_of(world)) == ("retired", "retired")


def test_revoking_waits_for_nobody(world: World) -> None:
    world.commit(**{ARTIFACT: in_state(world, ARTIFACT, "revoked")})
    world.run_pass()
    assert state_of(world, IMAGE) == "revoked"


def test_what_is_looked_at_alone_changes_nothing(world: World) -> None:
    world.commit(**{PROMOTION: in_state(world, PROMOTION, "retired")})
    head = world.ports.source.fetch()
    state = load(world.ports.source.snapshot(head), SCHEMAS, world.ports, SETTINGS)
    assert "illegal_step" in {one.code for one in state.problems}
    assert state_of(world) == "active"
