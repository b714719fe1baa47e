"""Passes over an app of several services: from a commit to the node's tasks, and what is shown."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from reconciler.artifacts.recheck import Recheck
from reconciler.cli.explain import _objects
from reconciler.cli.status import print_instances
from reconciler.cli.terminal import Terminal
from reconciler.core.names import ArtifactKey
from reconciler.core.records import State
from reconciler.core.services import missing_of
from reconciler.cycle import Pass, load, preview
from reconciler.use_cases.planning import look_now, plan_revision, shown
from reconciler.use_cases.registering import registered_in
from reconciler.use_cases.snapshot import take
from reconciler.use_cases.snapshot_form import document, parsed
from reconciler.views.plan import plan_document, plan_lines
from reconciler.views.plan_markdown import plan_markdown
from reconciler.views.plan_words import Shown
from reconciler.views.read_models import instance_document
from tests.test_cycle import HELLO, INSTANCE, SCHEMAS, SETTINGS, World, make_world
from tests.test_importing import imported, orphan, refused, report_as
from tests.test_trust_passes import DAY_MS, Signed, artifact, sign, trusted, trusting
from tests.topology_world import sidecar, with_services


@pytest.fixture
def world() -> World:
    return with_services(make_world())


def images(world: World, version: str = "1.0.0") -> set[ArtifactKey]:
    return {artifact(world, version), sidecar("db", version), sidecar("metrics", version)}


def held(done: Pass) -> tuple[str, str]:
    (one,) = done.plan.holds
    return one.code, one.message


# --- its life ------------------------------------------------------------------------------------


def test_from_a_commit_to_running_and_gone(world: World) -> None:
    assert world.converge().summary.result == "done"
    assert world.record.state is State.RUNNING
    assert set(world.registry.looked_up) == images(world)
    world.set_version("1.1.0")
    world.converge()
    world.commit(**{INSTANCE: world.files[INSTANCE].replace(b"running", b"stopped")})
    world.converge()
    world.commit(**{INSTANCE: None})
    world.converge()
    assert world.agent.kinds == [
        "compose.launch", "compose.launch", "compose.control", "compose.remove",
    ]  # fmt: skip
    assert world.events() == [
        "requested", "deploying", "running", "upgrade_requested", "upgraded",
        "decommission_requested", "decommissioned",
    ]  # fmt: skip
    assert (world.record.services, world.record.endpoints) == ((), ())


def test_a_converged_one_costs_no_registry_call(world: World) -> None:
    world.converge()
    world.registry.looked_up.clear()
    assert world.run_pass().plan.empty
    assert world.registry.looked_up == []


def test_one_container_becomes_several_services_and_goes_as_such() -> None:
    world = with_services(make_world(), "1.1.0")
    world.converge()
    world.set_version("1.1.0")
    world.converge()
    assert world.record.engine == "compose"
    world.commit(**{INSTANCE: None})
    world.converge()
    assert world.agent.kinds == ["oci.launch", "compose.launch", "compose.remove"]


def test_a_launch_waits_for_the_image_of_a_sidecar(world: World) -> None:
    world.registry.delete(sidecar("metrics", "1.0.0"))
    assert held(world.run_pass()) == (
        "artifact_missing", f"the registry has no {sidecar('metrics', '1.0.0')}",
    )  # fmt: skip
    world.registry.say(sidecar("metrics", "1.0.0"))
    assert world.converge().summary.result == "done"


# --- degraded ------------------------------------------------------------------------------------


def test_a_sidecar_that_never_comes_up_leaves_it_degraded_and_converged(world: World) -> None:
    world.agent.missing = {"metrics"}
    done = world.converge()
    assert done.summary.result == "done"
    assert [one.revision for one in done.arrivals] == [done.plan.revision]
    assert "failed" not in world.events()
    found = instance_document(world.record)
    assert (found["state"], found["health"]) == ("running", "degraded")
    assert [(one["name"], one["phase"]) for one in found["services"]] == [
        ("api", "ready"), ("db", "ready"), ("metrics", "failed"),
    ]  # fmt: skip
    words = {one["type"]: (one["status"], one["message"]) for one in found["conditions"]}
    assert words["ServicesReady"] == ("False", "2/3 services ready: metrics is failed")


def test_status_says_in_its_row_what_is_missing(world: World) -> None:
    world.agent.missing = {"metrics"}
    world.converge()
    console = Terminal(width=200)
    with console.capture() as captured:
        print_instances(console, {"instances": [instance_document(world.record)]})
    row = captured.get().splitlines()[-1]
    assert "running" in row
    assert "degraded" in row
    assert "2/3 services ready: metrics is failed" in " ".join(captured.get().split())


def test_without_a_vital_one_it_does_not_come_to_run(world: World) -> None:
    world.agent.missing = {"db"}
    with pytest.raises(AssertionError, match="not converged"):
        world.converge()
    assert world.record.state is State.DEPLOYING
    assert [one.phase for one in missing_of(world.record.services)] == ["failed"]


# --- signatures ----------------------------------------------------------------------------------


def test_every_image_has_to_be_signed_and_is_looked_at_again() -> None:
    world = with_services(trusting(Signed()))
    sign(world)
    for name in ("db", "metrics"):
        done = world.converge()
        key = sidecar(name, "1.0.0")
        assert held(done)[0] == "unsigned"
        assert held(done)[1].startswith(f"{key} is not good for stable: ")
        sign(world, of=key)
        world.clock.advance(60_000)
    assert world.converge().summary.result == "done"
    assert trusted(world) == ("True", "Verified")
    registry = world.registry
    assert isinstance(registry, Signed)
    registry.attachments.pop(sidecar("db", "1.0.0"))
    world.clock.advance(DAY_MS)
    head = world.ports.source.fetch()
    state = load(world.ports.source.snapshot(head), SCHEMAS, world.ports, SETTINGS)
    assert Recheck(world.ports, SETTINGS).round(state, world.clock.now_ms())
    world.run_pass()
    assert trusted(world) == ("False", "Unsigned")
    told = next(one for one in world.record.conditions if one.type == "Trusted")
    assert told.message.startswith(f"{sidecar('db', '1.0.0')}: stable needs a signature")
    assert world.record.state is State.RUNNING


# --- a snapshot, and what is used ----------------------------------------------------------------


@pytest.mark.parametrize("missing", [set(), {"metrics"}, {"db"}])
def test_a_snapshot_makes_the_same_plan(world: World, missing: set[str]) -> None:
    world.agent.missing = missing
    for _ in range(3):
        world.run_pass()
        world.agent.work(world.clock.now_ms())
    world.run_pass()
    seen = take(world.ports, SETTINGS)
    assert images(world) | images(world, "1.1.0") == set(seen.artifacts)
    again = parsed(json.loads(json.dumps(document(seen))))
    assert again.records[HELLO].applied_images == world.record.applied_images
    source = world.ports.source.snapshot(world.ports.source.fetch())
    again = replace(again, accepted=seen.accepted)
    offline = plan_revision(again, source, SCHEMAS, SETTINGS).plan
    live, _ = preview(load(source, SCHEMAS, world.ports, SETTINGS), world.ports, SETTINGS)
    assert offline.plan_id == live.plan_id
    assert [one.code for one in offline.waiting] == [one.code for one in live.waiting]
    assert bool(offline.waiting) is ("db" in missing)


def test_an_image_of_a_service_is_named_by_its_version(world: World) -> None:
    head = world.ports.source.fetch()
    state = load(world.ports.source.snapshot(head), SCHEMAS, world.ports, SETTINGS)
    users = {one.place: one.versions for one in registered_in(_objects(state))}
    assert users[sidecar("metrics", "1.0.0").repository] == (
        "AppVersion/hello/1.0.0", "AppVersion/hello/1.1.0",
    )  # fmt: skip


# --- what is shown -------------------------------------------------------------------------------


def upgrade(world: World) -> Shown:
    """The plan for 1.1.0 while 1.0.0 runs: only `api` and `db` are others in it."""
    world.converge()
    world.set_version("1.1.0")
    look = look_now(world.ports, SETTINGS)
    return shown(
        look, world.ports.source.snapshot(world.ports.source.fetch()), None, SCHEMAS, SETTINGS
    )


def short(key: ArtifactKey) -> str:
    return key.digest.short


def test_a_plan_says_what_becomes_of_each_service(world: World) -> None:
    seen = upgrade(world)
    db = f"image.digest {short(sidecar('db', '1.0.0'))} → {short(sidecar('db', '1.1.0'))}"
    lines = [line.text.strip() for line in plan_lines(seen)]
    at = lines.index(f"service db: {db}")
    api = f"image.digest {short(artifact(world))} → {short(artifact(world, '1.1.0'))}"
    assert lines[at - 1] == f"service api: env.VERSION 1.0.0 → 1.1.0; {api}"
    assert lines[at + 1] == "unchanged: metrics"
    assert f"<br>service db: {db}<br>unchanged: metrics" in plan_markdown(seen)
    (action,) = plan_document(seen)["actions"]
    assert [(one["service"], one["change"]) for one in action["services"]] == [
        ("api", "changed"), ("db", "changed"), ("metrics", "unchanged"),
    ]  # fmt: skip
    assert action["services"][1]["fields"] == [
        {
            "field": "image.digest",
            "before": short(sidecar("db", "1.0.0")),
            "after": short(sidecar("db", "1.1.0")),
        }
    ]


def test_where_what_runs_is_not_known_images_are_compared(world: World) -> None:
    seen = replace(upgrade(world), changes={})
    lines = [line.text.strip() for line in plan_lines(seen)]
    (told,) = (line for line in lines if line.startswith("further images "))
    before, after = told.removeprefix("further images ").split(" → ")
    assert {*before.split()} == {short(sidecar(name, "1.0.0")) for name in ("db", "metrics")}
    assert {*after.split()} == {short(sidecar(name, "1.1.0")) for name in ("db", "metrics")}
    assert plan_document(seen)["actions"][0]["services"] is None


def test_a_launch_says_which_services_start(world: World) -> None:
    look = look_now(world.ports, SETTINGS)
    source = world.ports.source.snapshot(world.ports.source.fetch())
    lines = [line.text for line in plan_lines(shown(look, source, None, SCHEMAS, SETTINGS))]
    assert "      services: api, db, metrics" in lines


# --- importing -----------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", [set(), {"metrics"}])
def test_what_runs_undeclared_is_declared(world: World, missing: set[str]) -> None:
    world.agent.missing = missing
    orphan(world)
    made = imported(world)
    world.commit(**{made.path: made.text.encode()})
    assert world.run_pass().plan.empty
    assert world.agent.kinds == ["compose.launch"]


def test_what_differs_in_a_service_is_not(world: World) -> None:
    orphan(world)
    report_as(world, target_hash="sha256:" + "0" * 64)
    assert refused(world).message == (
        "no manifest gives what runs on node-a; on allocation small: "
        "services are not those of the catalog"
    )


def test_nor_is_what_does_not_serve(world: World) -> None:
    world.agent.missing = {"metrics"}
    orphan(world)
    down = tuple(
        one.model_copy(update={"phase": "failed", "vital": True})
        for one in world.agent.reports[HELLO].services
    )
    report_as(world, services=down)
    assert refused(world).code == "import_not_settled"
