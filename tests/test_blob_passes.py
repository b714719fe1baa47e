"""Passes with blobs: asked for ahead, tried again, held, and read by what is launched."""

from __future__ import annotations

import json

import pytest

from node_agent.wire import BlobSeen
from reconciler.core.plan.blobs import FAILED_PAUSE_MS, digests_for
from reconciler.core.records import State
from reconciler.cycle import load, preview
from reconciler.record import summary_of
from tests.test_cycle import HELLO, INSTANCE, SCHEMAS, SETTINGS, World, make_world

DIGEST = "sha256:" + "e" * 64
SOURCE = "artifact_store://projects/acme/research/artifacts/hello/1.0.0/weights"
ARTIFACT = "tenants/acme/projects/research/artifacts/hello/1.0.0/weights.yaml"
VERSION, PROMOTION = "catalog/hello/versions/1.0.0.yaml", "catalog/hello/promotions/1.0.0.yaml"
READING = "1.2.0"


def artifact(state: str = "published", prefetch: bool = True) -> bytes:
    spec = {"kind": "blob", "source": SOURCE, "digest": DIGEST, "visibility": "project",
            "state": state, "prefetch": prefetch}  # fmt: skip
    manifest = {"apiVersion": "gpuaas.dev/v1", "kind": "Artifact",
                "metadata": {"name": "weights"}, "spec": spec}  # fmt: skip
    return json.dumps(manifest).encode()


def register(world: World) -> None:
    """One step a commit."""
    for state in ("published", "promoted"):
        world.commit(**{ARTIFACT: artifact(state, prefetch=False)})
        world.run_pass()


def offer(world: World) -> None:
    """A version with the blob, one step a commit."""
    blobs = json.dumps([{"name": "weights", "ref": f"{SOURCE}@{DIGEST}"}])
    reads = f"  runtime_profile:\n    blobs: {blobs}\n"
    text = world.files[VERSION].decode().replace("1.0.0", READING)
    new = text.replace("  runtime_profile:\n", reads).encode()
    promotion = world.files[PROMOTION].decode().replace("1.0.0", READING)
    world.commit(**{VERSION.replace("1.0.0", READING): new})
    for state in ("staged", "canary\n  canary: {percent: 1}", "active"):
        stepped = promotion.replace("state: active", f"state: {state}").encode()
        world.commit(**{PROMOTION.replace("1.0.0", READING): stepped})
        world.run_pass()


@pytest.fixture
def world() -> World:
    made = make_world()
    made.converge()
    return made


def test_a_blob_is_asked_for_ahead_once_and_then_there_is_nothing_to_do(world: World) -> None:
    world.commit(**{ARTIFACT: artifact()})
    done = world.run_pass()
    assert [(one.node, one.digest) for one in done.plan.ready_blobs] == [("node-a", DIGEST)]
    assert done.nodes == {"node-a"}
    assert done.plan.actions == ()
    assert done.summary.result == "waiting"
    (asked,) = [one for one in world.store.intents() if one.kind == "pull_blob"]
    assert (asked.instance, asked.target_hash) == (f"Blob/node-a/{DIGEST}", DIGEST)
    assert world.run_pass().plan.ready_blobs == ()
    assert world.converge().summary.result == "done"
    assert world.agent.pulled == [DIGEST]
    assert world.run_pass().plan.empty
    (asked,) = [one for one in world.store.intents() if one.kind == "pull_blob"]
    assert asked.state == "superseded"
    assert list(world.store.records()) == [HELLO]


def test_what_was_cleared_away_or_changed_is_asked_for_again_as_a_new_task(world: World) -> None:
    world.commit(**{ARTIFACT: artifact()})
    world.converge()
    first = {one.task_id for one in world.store.intents()}
    world.agent.blobs.clear()
    world.agent.report(world.clock.now_ms())
    world.converge()
    assert world.agent.pulled == [DIGEST, DIGEST]
    assert {one.task_id for one in world.store.intents()} - first
    altered = BlobSeen(digest=DIGEST, state="failed", error="altered: its file was changed")
    world.agent.blobs[DIGEST] = altered
    world.agent.report(world.clock.now_ms())
    world.converge()
    assert world.agent.pulled == [DIGEST] * 3


def test_what_failed_is_told_and_asked_for_again_after_a_pause(world: World) -> None:
    world.agent.not_there.add(DIGEST)
    world.commit(**{ARTIFACT: artifact()})
    world.run_pass()
    world.agent.work(world.clock.now_ms())
    for _ in range(3):
        done = world.run_pass()
        assert world.agent.work(world.clock.now_ms()) == 0
    (found,) = [one for one in done.plan.findings if one.code == "blob_not_delivered"]
    assert found.object == "Artifact/acme/research/hello/1.0.0/weights"
    assert found.message == "not on node node-a: no_such_blob: not there"
    assert done.summary.blocked == {"blob_failed": 1}
    assert done.plan.wake_at_ms is not None
    world.agent.not_there.clear()
    world.clock.advance(FAILED_PAUSE_MS)
    world.agent.report(world.clock.now_ms())
    assert world.converge().summary.result == "done"
    assert world.agent.pulled == [DIGEST, DIGEST]


def test_what_nobody_wants_any_more_is_forgotten(world: World) -> None:
    world.commit(**{ARTIFACT: artifact()})
    world.run_pass()
    world.commit(**{ARTIFACT: artifact(prefetch=False)})
    done = world.run_pass()
    assert done.plan.blobs == ()
    assert world.store.tasks_for("node-a", world.clock.now_ms()) == []


def test_a_node_that_is_away_is_waited_for(world: World) -> None:
    world.clock.advance(10**7)
    world.commit(**{ARTIFACT: artifact()})
    done = world.run_pass()
    (action,) = done.plan.blobs
    assert action.held is not None
    assert action.held.code == "node_offline"
    world.agent.report(world.clock.now_ms())
    assert world.converge().summary.result == "done"
    assert world.agent.pulled == [DIGEST]


def test_a_preview_says_the_same_and_asks_for_nothing(world: World) -> None:
    world.commit(**{ARTIFACT: artifact()})
    head = world.ports.source.fetch()
    state = load(world.ports.source.snapshot(head), SCHEMAS, world.ports, SETTINGS)
    plan, _ = preview(state, world.ports, SETTINGS)
    assert len(plan.ready_blobs) == 1
    assert summary_of(plan, (), None, 0, 1).actions == 1
    assert [one for one in world.store.intents() if one.kind == "pull_blob"] == []


def test_what_reads_a_blob_is_launched_with_it_and_its_node_may_have_it() -> None:
    world = make_world()
    instance = world.files[INSTANCE]
    world.commit(**{INSTANCE: None})
    register(world)
    offer(world)
    world.commit(**{INSTANCE: instance})
    world.set_version(READING)
    assert world.converge().summary.result == "done"
    assert world.record.blobs == (DIGEST,)
    assert world.agent.pulled == []
    may = digests_for("node-a", world.store.records().values(), world.store.intents())
    assert may == {DIGEST}
    world.commit(**{INSTANCE: None})
    world.converge()
    gone = world.record
    assert (gone.state, gone.blobs) == (State.DECOMMISSIONED, ())


def test_a_version_that_comes_to_read_a_blob_replaces_what_runs(world: World) -> None:
    register(world)
    offer(world)
    world.set_version(READING)
    done = world.run_pass()
    assert [action.kind for action in done.plan.ready] == ["replace"]
    assert world.converge().summary.result == "done"
    assert world.record.blobs == (DIGEST,)
