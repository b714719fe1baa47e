"""Passes over a canary that fails on one of three: it goes back everywhere, once, and for good."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import pytest

from node_agent.wire import Workload, WorkloadReport
from reconciler.adapters.schema_files import load_schemas
from reconciler.core.accept import AcceptedState
from reconciler.core.names import ArtifactKey, InstanceKey
from reconciler.core.plan.stepped import in_its_place
from reconciler.core.records import InstanceRecord, StepBack
from reconciler.core.schema import SchemaSet
from reconciler.core.step_back import EVENT, stepped_back
from reconciler.custody.signing import newest_verifier
from reconciler.cycle import LoadMemo, Pass, load, preview, reconcile
from reconciler.errors import Transient
from reconciler.ports import Changes, Ports
from reconciler.settings import Settings
from reconciler.use_cases import planning, snapshot_form
from reconciler.use_cases.snapshot import take
from reconciler.views.plan import plan_lines
from reconciler.views.plan_words import Shown
from tests.core import builders as b
from tests.fakes.agent import FakeAgent
from tests.fakes.ca import FakeCa
from tests.fakes.clock import FakeClock
from tests.fakes.registry import FakeRegistry
from tests.fakes.secrets import FakeSecrets
from tests.fakes.state_source import FakeRemote, FakeStateSource
from tests.fakes.store import MemoryStore

SCHEMAS = SchemaSet.build(load_schemas())
SETTINGS = Settings(environment=b.ENVIRONMENT, signatures="off")
OLD, NEW = "1.0.0", "1.1.0"
IMAGE = b.IMAGE.replace("a" * 64, "b" * 64)
VERSION_FILE = b.VERSION_FILE.replace(OLD, NEW)
PROMOTION_FILE = b.PROMOTION_FILE.replace(OLD, NEW)
PROMOTION = f"Promotion/hello/{NEW}"
ALL = ("one", "three", "two")


@dataclass
class Node(FakeAgent):
    """On this one the new image gets ready, but for the instances that are `bad`."""

    bad: set[str] = field(default_factory=lambda: {"two"})

    def _launched(self, workload: Workload) -> WorkloadReport:
        name = workload.instance.rpartition("/")[2]
        self.broken = {IMAGE.partition("@")[2]} if name in self.bad else set()
        return super()._launched(workload)


class World:
    """Three instances of one project on one node, all at the old version and converged."""

    def __init__(self) -> None:
        self.documents = b.world()
        for name in ("two", "three"):
            b.add_instance(self.documents, name)
        self.remote, self.registry = FakeRemote(), FakeRegistry()
        self.clock, self.secrets = FakeClock(), FakeSecrets()
        for image in (b.IMAGE, IMAGE):
            self.registry.say(ArtifactKey.parse(image))
        self.with_store(MemoryStore())
        self.memo = LoadMemo()
        self.commit()
        self.converge()

    def with_store(self, store: MemoryStore) -> None:
        """A node that joins it, with what runs there still running."""
        self.store = store
        source = FakeStateSource(self.remote)
        ports = Ports(source, self.registry, self.secrets, FakeCa(), store, self.clock)
        before = getattr(self, "node", None)
        self.ports = ports
        self.node = Node("gpu-1", store, (newest_verifier(self.secrets, "tasks"),))
        if before is not None:
            self.node.reports, self.node.bad = before.reports, before.bad
            self.node.last_task_seq = before.last_task_seq
        self.node.join(self.clock.now_ms())
        self.node.report(self.clock.now_ms())

    def commit(self) -> None:
        self.remote.push({p: json.dumps(one).encode() for p, one in self.documents.items()})

    def offer(self, failed_max: int = 0, **canary: Any) -> None:
        """The new version, staged and then in canary for all projects."""
        b.add(self.documents, VERSION_FILE, b.version_spec(NEW, artifact_ref=IMAGE))
        image = {**self.documents[b.ARTIFACT_FILE]["spec"], "digest": IMAGE.partition("@")[2]}
        b.add(self.documents, b.ARTIFACT_FILE.replace(OLD, NEW), image, "image")
        b.add(self.documents, PROMOTION_FILE, {"state": "staged", "reason": "new"}, NEW)
        self.commit()
        self.converge()
        wanted = {"percent": 100, "step_back": {"failed_max": failed_max}, **canary}
        given = {name: value for name, value in wanted.items() if value is not None}
        self.promote(state="canary", canary=given)

    def promote(self, **fields: Any) -> None:
        self.documents[PROMOTION_FILE]["spec"].update(fields)
        self.commit()

    def ask_for(self, version: str, *names: str) -> None:
        for name in names:
            file = b.INSTANCE_FILE.replace("one", name)
            self.documents[file]["spec"]["version"] = version
        self.commit()

    def state(self) -> AcceptedState:
        head = self.ports.source.fetch()
        return load(self.ports.source.snapshot(head), SCHEMAS, self.ports, SETTINGS, self.memo)

    def run_pass(self) -> Pass:
        self.clock.advance(1_000)
        return reconcile(self.state(), self.ports, SETTINGS, memo=self.memo)

    def converge(self, passes_max: int = 12) -> Pass:
        for _ in range(passes_max):
            done = self.run_pass()
            if done.summary.result in ("done", "stalled") and not self.node.work(
                self.clock.now_ms()
            ):
                return done
            self.node.work(self.clock.now_ms())
        raise AssertionError(f"not converged: {done.summary}, {done.plan.actions}")

    def record(self, name: str) -> InstanceRecord:
        return self.store.records()[InstanceKey(f"acme/research/{name}")]

    def applied(self) -> dict[str, str]:
        found = self.store.records()
        return {key.rpartition("/")[2]: one.applied_version for key, one in found.items()}

    def told(self) -> list[str]:
        found = (numbered.event for numbered in self.store.events())
        return [one.instance.rpartition("/")[2] for one in found if one.type == EVENT]

    def audited(self) -> list[str]:
        return [row.entry.object for row in self.store.audit() if row.entry.action == EVENT]

    def converged(self, name: str) -> tuple[str, str]:
        conditions = self.record(name).conditions
        found = next(one for one in conditions if one.type == "Converged")
        return found.reason, found.message


@pytest.fixture
def world() -> World:
    return World()


def fail(world: World) -> Pass:
    world.offer()
    world.ask_for(NEW, *ALL)
    return world.converge()


def back_everywhere(world: World) -> None:
    assert world.applied() == dict.fromkeys(ALL, OLD)
    assert {one.target_version for one in world.store.records().values()} == {OLD}


def codes(done: Pass) -> list[tuple[str, str, str]]:
    return [(one.level, one.code, one.object) for one in done.plan.findings]


def test_one_of_three_fails_and_all_go_back(world: World) -> None:
    done = fail(world)
    back_everywhere(world)
    assert done.summary.result == "stalled"
    assert codes(done) == [("stalled", "canary_stepped_back", PROMOTION)]
    (finding,) = done.plan.findings
    assert "1 of its 3 instances failed, and 0 may (acme/research/two)" in finding.message
    assert "3 go back, 0 can't" in finding.message
    assert finding.hint.startswith("change the Promotion: any other content (a new reason")
    assert world.told() == [*ALL]
    assert world.audited() == [PROMOTION]
    assert world.converged("one") == (
        "CanarySteppedBack",
        "runs 1.0.0: the canary of 1.1.0 stepped back",
    )
    assert world.run_pass().plan.empty


def test_what_ran_well_goes_back_as_a_rollback_with_the_reason(world: World) -> None:
    world.offer()
    world.ask_for(NEW, *ALL)
    world.run_pass()
    world.node.work(world.clock.now_ms())
    done = world.run_pass()
    shown = {a.instance.rpartition("/")[2]: (a.kind, a.reason) for a in done.plan.ready}
    because = ": the canary of 1.1.0 stepped back"
    assert shown == {
        "one": ("replace", f"version 1.1.0 → 1.0.0{because}"),
        "three": ("replace", f"version 1.1.0 → 1.0.0{because}"),
        "two": ("replace", f"back to version 1.0.0{because}"),
    }
    assert {getattr(a, "direction", "") for a in done.plan.ready} == {"rollback"}
    lines = [line.text for line in plan_lines(Shown(done.plan, world.store.records()))]
    assert any("canary_stepped_back" in line for line in lines)


def test_going_back_waits_for_no_approval_and_what_is_changed_besides_does(world: World) -> None:
    world.offer()
    world.ask_for(NEW, *ALL)
    world.run_pass()
    world.node.work(world.clock.now_ms())
    world.documents[b.ENVIRONMENT_FILE]["spec"]["sync"] = {"mode": "manual"}
    world.commit()
    world.converge()
    back_everywhere(world)
    world.documents[b.INSTANCE_FILE]["spec"]["parameters"]["memory_gib"] = 5
    world.commit()
    (action,) = world.run_pass().plan.actions
    assert (action.cause, action.held and action.held.code) == ("change", "awaiting_apply")


def test_nothing_is_launched_in_the_pass_that_decides(world: World) -> None:
    """An upgrade that is still to come does not come."""
    world.offer()
    world.ask_for(NEW, "two")
    world.run_pass()
    world.node.work(world.clock.now_ms())
    world.ask_for(NEW, *ALL)
    done = world.run_pass()
    assert [(a.instance.rpartition("/")[2], a.kind) for a in done.plan.actions] == [
        ("two", "replace")
    ]
    world.converge()
    back_everywhere(world)
    assert world.node.launches.count(IMAGE.partition("@")[2]) == 1


def test_as_many_as_may_fail(world: World) -> None:
    world.offer(failed_max=1)
    world.ask_for(NEW, *ALL)
    world.converge()
    assert world.applied() == {"one": NEW, "three": NEW, "two": OLD}
    assert (world.store.step_backs(), world.told()) == ({}, [])


def test_without_step_back_nothing_goes_back(world: World) -> None:
    world.offer(step_back=None)
    world.ask_for(NEW, *ALL)
    world.converge()
    assert world.applied() == {"one": NEW, "three": NEW, "two": OLD}


def test_a_new_instance_is_held_and_says_why(world: World) -> None:
    fail(world)
    b.add_instance(world.documents, "four")
    world.ask_for(NEW, "four")
    done = world.converge()
    (action,) = done.plan.actions
    assert action.held is not None
    assert (action.held.code, action.held.message) == (
        "canary_stepped_back",
        "the canary of 1.1.0 stepped back; no version is known that it ran before",
    )
    world.ask_for(OLD, "four")
    world.converge()
    assert world.applied()["four"] == OLD


def test_a_new_instance_that_runs_runs_on_and_one_that_failed_is_not_tried_again(
    world: World,
) -> None:
    world.offer()
    for name in ("four", "five"):
        b.add_instance(world.documents, name, gpu_count=0)
    world.node.bad = {"four"}
    world.ask_for(NEW, "four", "five")
    done = world.converge()
    assert world.applied()["five"] == NEW
    held = [(a.instance, a.held.code) for a in done.plan.held if a.held]
    assert held == [(InstanceKey("acme/research/four"), "canary_stepped_back")]
    del world.node.reports["acme/research/five"]
    world.node.report(world.clock.now_ms())
    world.converge()
    assert world.node.reports["acme/research/five"].image_digest == IMAGE.partition("@")[2]


def test_another_content_tries_again(world: World) -> None:
    fail(world)
    world.node.bad = set()
    world.promote(reason="the host was mended")
    world.converge()
    assert world.applied() == dict.fromkeys(ALL, NEW)
    assert world.store.step_backs() == {}


def test_tried_again_it_may_go_back_again(world: World) -> None:
    fail(world)
    world.promote(reason="once more")
    world.converge()
    back_everywhere(world)
    assert (world.told(), world.audited()) == ([*ALL, *ALL], [PROMOTION, PROMOTION])


def test_staged_ends_it_and_the_same_canary_is_tried_anew(world: World) -> None:
    fail(world)
    world.ask_for(OLD, *ALL)
    world.promote(state="staged")
    assert world.converge().summary.result == "done"
    assert world.store.step_backs() == {}
    world.promote(state="canary")
    world.node.bad = set()
    world.ask_for(NEW, *ALL)
    world.converge()
    assert world.applied() == dict.fromkeys(ALL, NEW)


def test_the_commits_that_asked_for_it_stay_accepted(world: World) -> None:
    fail(world)
    state = world.state()
    stored = state.accepted.objects["AppInstance/acme/research/one"]
    assert (state.problems, json.loads(stored.document_json)["spec"]["version"]) == ((), NEW)


def test_what_would_not_do_with_the_version_before_stays_and_says_why(world: World) -> None:
    form = world.documents[b.VERSION_FILE]["spec"]["launch_parameters"]
    form["properties"]["memory_gib"]["maximum"] = 8
    world.offer()
    world.documents[b.INSTANCE_FILE]["spec"]["parameters"]["memory_gib"] = 12
    world.ask_for(NEW, *ALL)
    world.converge()
    assert world.applied() == {"one": NEW, "three": OLD, "two": OLD}
    state, backs = world.state(), world.store.step_backs()
    stepped = stepped_back(state, backs, world.store.records()).stepped
    why = stepped[InstanceKey("acme/research/one")].why
    assert why.startswith("it can't go back to 1.0.0: out_of_range: 12 is out of range")
    words = in_its_place(stepped[InstanceKey("acme/research/one")])
    assert words == f"asks for 1.1.0, of which the canary stepped back; {why}"


@pytest.mark.parametrize("before", [True, False])
def test_a_crash_around_the_commit_doubles_nothing(world: World, before: bool) -> None:
    world.offer()
    world.ask_for(NEW, *ALL)
    world.run_pass()
    world.node.work(world.clock.now_ms())
    commit = world.store.commit

    def crash(changes: Changes) -> None:
        if not before:
            commit(changes)
        raise Transient("store_gone", "the power went")

    world.store.commit = crash  # type: ignore[method-assign]
    with pytest.raises(Transient):
        world.run_pass()
    world.store.commit = commit  # type: ignore[method-assign]
    world.memo = LoadMemo()
    assert len(world.store.step_backs()) == (0 if before else 1)
    world.converge()
    back_everywhere(world)
    assert (world.told(), world.audited()) == ([*ALL], [PROMOTION])


def test_a_lost_store_decides_anew(world: World) -> None:
    fail(world)
    world.memo = LoadMemo()
    world.with_store(MemoryStore())
    done = world.converge()
    assert PROMOTION in world.store.step_backs()
    assert ("stalled", "canary_stepped_back", PROMOTION) in codes(done)
    digest = b.IMAGE.partition("@")[2]
    kept = world.node.reports["acme/research/two"]
    assert (kept.retained, world.audited()) == (True, [PROMOTION])
    assert world.node.launches.count(digest) == 0


def test_live_and_offline_plans_are_the_same(world: World) -> None:
    fail(world)
    b.add_instance(world.documents, "four")
    world.ask_for(NEW, "four")
    state = world.state()
    live, _ = preview(state, world.ports, SETTINGS)
    source = world.ports.source.snapshot(world.ports.source.fetch())
    look = planning.look_now(world.ports, SETTINGS)
    planned = planning.plan_revision(look, source, SCHEMAS, SETTINGS)
    assert planned.plan.actions == live.actions
    taken = take(world.ports, SETTINGS)
    again = snapshot_form.parsed(json.loads(json.dumps(snapshot_form.document(taken))))
    assert again.step_backs == taken.step_backs == world.store.step_backs()


def test_a_preview_stores_nothing(world: World) -> None:
    world.offer()
    world.ask_for(NEW, *ALL)
    world.run_pass()
    world.node.work(world.clock.now_ms())
    state = world.state()
    plan, desired = preview(state, world.ports, SETTINGS)
    assert {one.instead for one in desired.stepped.values()} == {OLD}
    assert [one.code for one in plan.findings if one.level == "stalled"] == ["canary_stepped_back"]
    assert world.store.step_backs() == {}


def test_it_is_resolved_once_and_not_in_each_pass(world: World) -> None:
    fail(world)
    state, memo = world.state(), world.memo
    reconcile(state, world.ports, SETTINGS, memo=memo)
    first = memo.stepped.made
    reconcile(state, world.ports, SETTINGS, memo=memo)
    assert first is not None
    assert memo.stepped.made is first


def test_one_of_another_content_in_the_store_says_nothing(world: World) -> None:
    world.offer()
    other = StepBack(PROMOTION, "other", 1, (), "long ago")
    world.store.commit(Changes(step_backs=[other]))
    world.node.bad = set()
    world.ask_for(NEW, *ALL)
    world.converge()
    assert world.applied() == dict.fromkeys(ALL, NEW)
    assert world.store.step_backs() == {}
