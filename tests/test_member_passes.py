"""Passes over an instance on two nodes: launched, grown, shrunk, renamed, upgraded, removed.

The same on real services is in `tests/e2e/test_members.py`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest

from node_agent.wire import FailureReason, Phase, Workload, WorkloadReport
from reconciler.adapters.schema_files import load_schemas
from reconciler.core.names import ArtifactKey, InstanceKey
from reconciler.core.records import Event, InstanceRecord, State
from reconciler.core.schema import SchemaSet
from reconciler.custody.signing import newest_verifier
from reconciler.cycle import Pass, load, reconcile
from reconciler.ports import Ports
from reconciler.settings import Settings
from reconciler.views.plan import plan_lines
from reconciler.views.plan_words import Shown
from tests.core import builders as b
from tests.core import spread as s
from tests.core.spread import member, set_members, spread
from tests.fakes.agent import FakeAgent
from tests.fakes.ca import FakeCa
from tests.fakes.clock import FakeClock
from tests.fakes.registry import FakeRegistry
from tests.fakes.secrets import FakeSecrets
from tests.fakes.state_source import FakeRemote, FakeStateSource
from tests.fakes.store import MemoryStore

SCHEMAS = SchemaSet.build(load_schemas())
SETTINGS = Settings(environment=b.ENVIRONMENT)
W1, W2, W3 = member("w1"), member("w2", "lease"), member("w3", "lease")


def key(name: str = "") -> InstanceKey:
    return InstanceKey(f"{s.HEAD}.{name}" if name else s.HEAD)


@dataclass
class Node(FakeAgent):
    """`launched` counts how often each workload was launched; while `silent` it does nothing."""

    silent: bool = False
    launched: dict[str, int] = field(default_factory=dict)

    def work(self, now_ms: int) -> int:
        return 0 if self.silent else super().work(now_ms)

    def _launched(self, workload: Workload) -> WorkloadReport:
        self.launched[workload.instance] = self.launched.get(workload.instance, 0) + 1
        return super()._launched(workload)


@dataclass
class World:
    """A control plane, two nodes and a repo."""

    documents: b.Documents
    remote: FakeRemote = field(default_factory=FakeRemote)
    store: MemoryStore = field(default_factory=MemoryStore)
    registry: FakeRegistry = field(default_factory=FakeRegistry)
    clock: FakeClock = field(default_factory=FakeClock)
    secrets: FakeSecrets = field(default_factory=FakeSecrets)
    nodes: dict[str, Node] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.registry.say(ArtifactKey.parse(b.IMAGE))
        self.ports = Ports(
            FakeStateSource(self.remote),
            self.registry,
            self.secrets,
            FakeCa(),
            self.store,
            self.clock,
        )
        for number, name in enumerate(("gpu-1", "gpu-2"), 1):
            now_ms, signing = self.clock.now_ms(), newest_verifier(self.secrets, "tasks")
            self.store.add_join_token(f"hash-{name}", name, now_ms + 1000)
            self.store.redeem_join_token(f"hash-{name}", name, f"{number:064x}", now_ms)
            self.nodes[name] = Node(name, self.store, (signing,))
            self.nodes[name].report(now_ms)
        self.commit()

    def commit(self) -> None:
        files = {path: json.dumps(one).encode() for path, one in self.documents.items()}
        self.remote.push(files)

    def have(self, *members: Mapping[str, object]) -> None:
        set_members(self.documents, *map(dict, members))
        self.commit()

    def spec(self, path: str = b.INSTANCE_FILE) -> dict[str, object]:
        found: dict[str, object] = self.documents[path]["spec"]
        return found

    def run_pass(self) -> Pass:
        self.clock.advance(1_000)
        head = self.ports.source.fetch()
        state = load(self.ports.source.snapshot(head), SCHEMAS, self.ports, SETTINGS)
        return reconcile(state, self.ports, SETTINGS)

    def work(self) -> None:
        for node in self.nodes.values():
            node.work(self.clock.now_ms())

    def converge(self, passes_max: int = 12) -> Pass:
        for _ in range(passes_max):
            done = self.run_pass()
            if done.summary.result in ("done", "stalled"):
                return done
            self.work()
        raise AssertionError(f"not converged: {done.summary}, {done.plan.actions}")

    def record(self, name: str = "") -> InstanceRecord:
        return self.store.records()[key(name)]

    def allow_removals(self) -> None:
        self.spec(b.ENVIRONMENT_FILE)["guards"] = {"removals_max_percent": 100}

    def states(self) -> dict[str, str]:
        return {
            one.partition("one")[2] or "first": record.state.value
            for one, record in sorted(self.store.records().items())
        }

    def ready(self) -> tuple[str, str, str]:
        conditions = self.record().conditions
        found = next(one for one in conditions if one.type == "MembersReady")
        return found.status, found.reason, found.message

    def events(self, after: int = 0) -> list[Event]:
        return [numbered.event for numbered in self.store.events(after=after)]

    @property
    def launches(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for node in self.nodes.values():
            found |= {name.partition("one")[2]: count for name, count in node.launched.items()}
        return found


@pytest.fixture
def world() -> World:
    made = World(spread(W1, W2))
    made.converge()
    return made


def test_the_first_is_ready_before_the_others_start() -> None:
    world = World(spread(W1, W2))
    first = world.run_pass()
    assert [action.instance for action in first.plan.ready] == [key()]
    assert {a.instance: a.held.code for a in first.plan.held if a.held} == {
        key("w1"): "dependency_not_ready",
        key("w2"): "dependency_not_ready",
    }
    assert world.ready() == (
        "False",
        "NotAllReady",
        "0/3 members ready: head is starting, w1 is stopped, w2 is stopped",
    )
    assert world.converge().summary.result == "done"
    assert world.ready() == ("True", "AllReady", "3/3 members ready")
    assert world.states() == {"first": "running", ".w1": "running", ".w2": "running"}
    assert world.record("w1").role == "worker"


def test_events_say_which_member_of_what(world: World) -> None:
    told = {
        event.instance: {k: event.data.get(k) for k in ("member", "role", "member_of")}
        for event in world.events()
    }
    assert told == {
        key(): {"member": None, "role": "head", "member_of": None},
        key("w1"): {"member": "w1", "role": "worker", "member_of": key()},
        key("w2"): {"member": "w2", "role": "worker", "member_of": key()},
    }
    assert {event.type for event in world.events()} == {
        f"apps.instance.{name}" for name in ("requested", "deploying", "running")
    }


def test_one_more_disturbs_nobody(world: World) -> None:
    world.have(W1, W2, W3)
    done = world.run_pass()
    assert [(a.kind, a.instance) for a in done.plan.actions] == [("launch", key("w3"))]
    world.converge()
    assert world.launches == {"": 1, ".w1": 1, ".w2": 1, ".w3": 1}
    assert world.ready()[2] == "4/4 members ready"


def test_one_less_is_torn_down_and_proved(world: World) -> None:
    world.have(W2)
    done = world.run_pass()
    (action,) = done.plan.actions
    assert (action.kind, action.instance) == ("remove", key("w1"))
    assert action.reason == "its instance has it no longer"
    assert world.ready() == ("True", "AllReady", "2/2 members ready")
    world.converge()
    assert world.states() == {"first": "running", ".w1": "decommissioned", ".w2": "running"}
    assert world.record("w1").message == "teardown proved"
    assert world.launches == {"": 1, ".w1": 1, ".w2": 1}


def test_without_any_left_nothing_is_said_of_members(world: World) -> None:
    world.have()
    world.converge()
    assert not any(one.type == "MembersReady" for one in world.record().conditions)


def test_one_that_is_lost_comes_back(world: World) -> None:
    del world.nodes["gpu-2"].reports[key("w1")]
    world.work()
    done = world.run_pass()
    assert [(a.kind, a.instance, a.cause) for a in done.plan.ready] == [
        ("launch", key("w1"), "drift")
    ]
    world.converge()
    assert world.launches == {"": 1, ".w1": 2, ".w2": 1}


def test_one_that_fails_is_tried_again_later_and_named(world: World) -> None:
    failed = (
        world.nodes["gpu-2"]
        .reports[key("w1")]
        .model_copy(
            update={"phase": Phase.FAILED, "reason": FailureReason.EXITED, "running_hash": None}
        )
    )
    world.nodes["gpu-2"].reports[key("w1")] = failed
    world.work()
    done = world.run_pass()
    assert world.ready()[:2] == ("False", "NotAllReady")
    assert world.ready()[2].startswith("2/3 members ready: w1 is ")
    (action,) = done.plan.actions
    assert (action.instance, action.held and action.held.code) == (key("w1"), "backing_off")
    world.clock.advance(60_000)
    world.work()
    world.converge()
    assert world.launches == {"": 1, ".w1": 2, ".w2": 1}


def test_a_node_that_is_away_takes_its_members_along_and_nothing_else(world: World) -> None:
    world.nodes["gpu-2"].silent = True
    world.clock.advance(300_000)
    world.nodes["gpu-1"].work(world.clock.now_ms())
    done = world.run_pass()
    assert done.plan.actions == ()
    assert world.ready() == (
        "Unknown",
        "NotAllReady",
        "2/3 members ready: w1 is unknown (node_offline)",
    )
    assert world.states()[".w1"] == "running"


def test_an_upgrade_goes_to_the_first_then_to_the_others(world: World) -> None:
    version, file = b.version_spec("1.1.0"), "catalog/hello/promotions/1.1.0.yaml"
    version["runtime_profile"] = {**s.profile_of(world.documents), "env": {"A": "2"}}
    b.add(world.documents, "catalog/hello/versions/1.1.0.yaml", version, "1.1.0")
    for state in ("staged", "canary", "active"):
        promotion = {"state": state, "canary": {"percent": 0}, "reason": "tested"}
        b.add(world.documents, file, promotion, "1.1.0")
        world.commit()
    world.spec()["version"] = "1.1.0"
    world.commit()
    first = world.run_pass()
    assert [(a.kind, a.instance) for a in first.plan.ready] == [("replace", key())]
    assert {a.instance for a in first.plan.held} == {key("w1"), key("w2")}
    world.converge()
    assert {r.applied_version for r in world.store.records().values()} == {"1.1.0"}


def test_all_stop_and_start(world: World) -> None:
    world.spec()["desired"] = "stopped"
    world.commit()
    done = world.run_pass()
    assert {(a.kind, a.instance) for a in done.plan.ready} == {
        ("control", key()), ("control", key("w1")), ("control", key("w2")),
    }  # fmt: skip
    assert not [f for f in done.plan.findings if f.code == "dependency_stopped"]
    world.work()
    world.converge()
    assert world.ready() == ("False", "Stopped", "0/3 members ready")
    world.spec()["desired"] = "running"
    world.commit()
    assert [a.instance for a in world.run_pass().plan.ready] == [key()]
    world.work()
    world.converge()
    assert world.ready()[2] == "3/3 members ready"


@pytest.mark.parametrize("by", ["decommissioned", "file"])
def test_all_go_the_first_last_each_with_its_proof(world: World, by: str) -> None:
    world.allow_removals()
    if by == "file":
        del world.documents[b.INSTANCE_FILE]
    else:
        world.spec()["desired"] = "decommissioned"
    world.commit()
    order = []
    for _ in range(8):
        done = world.run_pass()
        order += [action.instance for action in done.plan.ready]
        world.work()
    assert order == [key("w2"), key("w1"), key()]
    assert set(world.states().values()) == {"decommissioned"}
    assert {r.message for r in world.store.records().values()} == {"teardown proved"}


def test_members_count_in_the_budget_of_removals() -> None:
    world = World(spread(W1, W2))
    world.spec(b.ENVIRONMENT_FILE)["guards"] = {"removals_max": 1}
    world.commit()
    world.converge()
    world.have()
    held = world.run_pass().plan.held
    assert [(a.instance, a.held.code) for a in held if a.held] == [
        (key("w2"), "removal_budget"),
        (key("w1"), "removal_budget"),
    ]


def test_a_rename_takes_all_along_and_restarts_nothing(world: World) -> None:
    path = b.INSTANCE_FILE.replace("one", "two")
    moved = {**world.spec(), "moved_from": "one"}
    del world.documents[b.INSTANCE_FILE]
    b.add(world.documents, path, moved)
    world.commit()
    done = world.run_pass()
    assert {a.kind for a in done.plan.ready} == {"move"}
    assert len(done.plan.ready) == 3
    assert world.converge().plan.empty
    assert world.launches == {"": 1, ".w1": 1, ".w2": 1}
    assert sorted(world.store.records()) == [
        f"acme/research/two{name}" for name in ("", ".w1", ".w2")
    ]
    two = world.store.records()[InstanceKey("acme/research/two")]
    assert next(c.message for c in two.conditions if c.type == "MembersReady") == (
        "3/3 members ready"
    )
    world.documents[b.INSTANCE_FILE] = world.documents.pop(path)
    world.documents[b.INSTANCE_FILE]["metadata"]["name"] = "one"
    del world.documents[b.INSTANCE_FILE]["spec"]["moved_from"]
    world.commit()
    assert world.converge().plan.empty, "the revert of a rename moves them back"
    assert world.states() == {"first": "running", ".w1": "running", ".w2": "running"}
    assert world.launches == {"": 1, ".w1": 1, ".w2": 1}


def test_a_broken_manifest_removes_no_member(world: World) -> None:
    for spoil in ({"version": "9.9.9"}, {"members": [{**W1, "role": "none"}]}, {"members": 5}):
        before = dict(world.spec())
        world.spec().update(spoil)
        world.commit()
        done = world.run_pass()
        assert done.plan.actions == (), spoil
        assert done.summary.result == "stalled"
        world.documents[b.INSTANCE_FILE]["spec"] = before
    world.commit()
    assert world.run_pass().plan.empty


def test_an_environment_that_is_gone_removes_no_member(world: World) -> None:
    del world.documents[b.ENVIRONMENT_FILE]
    world.commit()
    assert world.run_pass().plan.actions == ()


def test_suspended_it_keeps_the_member_that_was_taken_out(world: World) -> None:
    term = {"by": "ada", "reason": "maintenance", "until": "2099-01-01T00:00:00Z"}
    world.spec()["suspend"] = term
    world.have(W2)
    (action,) = world.run_pass().plan.actions
    assert (action.instance, action.held and action.held.code) == (key("w1"), "suspended")


def test_drift_of_a_member_is_left_alone_by_the_rule_for_its_instance(world: World) -> None:
    rule = {
        "objects": ["AppInstance/acme/research/one"], "codes": ["drift"],
        "by": "ada", "reason": "on loan", "until": "2099-01-01T00:00:00Z",
    }  # fmt: skip
    world.spec(b.ENVIRONMENT_FILE)["sync"] = {"ignore": [rule]}
    world.commit()
    del world.nodes["gpu-2"].reports[key("w1")]
    world.work()
    (action,) = world.run_pass().plan.actions
    assert (action.instance, action.held and action.held.code) == (key("w1"), "ignored")


def test_a_tombstone_is_asked_for_the_instance_not_for_a_member(world: World) -> None:
    world.spec(b.ENVIRONMENT_FILE)["guards"] = {"tombstones": True}
    world.have(W2)
    (action,) = world.run_pass().plan.actions
    assert (action.instance, action.held) == (key("w1"), None)
    world.converge()
    del world.documents[b.INSTANCE_FILE]
    world.commit()
    held = {a.instance: a.held for a in world.run_pass().plan.actions}
    assert {one.code for one in held.values() if one} == {"tombstone_missing"}
    assert set(held) == {key(), key("w2")}
    assert all(f"put {b.INSTANCE_FILE} back" in one.message for one in held.values() if one)


def test_after_the_loss_of_the_store_all_are_adopted(world: World) -> None:
    lost = World(world.documents)
    for name, node in lost.nodes.items():
        node.reports = world.nodes[name].reports
        node.report(lost.clock.now_ms())
    assert lost.converge().plan.empty
    assert lost.states() == {"first": "running", ".w1": "running", ".w2": "running"}
    assert lost.launches == {}
    assert lost.ready()[2] == "3/3 members ready"


def test_what_depends_on_the_instance_goes_before_its_members(world: World) -> None:
    asks = {**b.instance_spec("other", gpu_count=0), "depends_on": ["one"]}
    b.add(world.documents, f"{b.PROJECT}/instances/asks.yaml", asks)
    world.allow_removals()
    world.commit()
    world.converge()
    for name in ("asks", "one"):
        del world.documents[f"{b.PROJECT}/instances/{name}.yaml"]
    world.commit()
    assert [a.instance for a in world.run_pass().plan.ready] == ["acme/research/asks"]


def test_the_plan_says_what_will_be_open_on_the_network() -> None:
    world = World(spread(W1))
    done = world.run_pass()
    lines = [line.text for line in plan_lines(Shown(done.plan, world.store.records()))]
    head = next(i for i, line in enumerate(lines) if "+ launch    acme/research/one on" in line)
    assert "      published at 10.0.0.5:6379 (gcs)" in lines[head : head + 3]
    assert world.record("w1").state is State.REQUESTED
