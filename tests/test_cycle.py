"""Passes over the example repo with services in memory: what a commit leads to, crashes included.

The same stories run on the real services in `tests/e2e`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from reconciler.adapters.schema_files import load_schemas
from reconciler.core.actions import Launch, Remove
from reconciler.core.names import ArtifactKey, InstanceKey
from reconciler.core.records import InstanceRecord, State
from reconciler.core.schema import SchemaSet
from reconciler.custody.signing import newest_verifier
from reconciler.cycle import Pass, load, preview, reconcile
from reconciler.devkit import state_repo
from reconciler.errors import GpuaasError, Transient
from reconciler.ports import Changes, Ports
from reconciler.settings import Settings
from tests.fakes.agent import FakeAgent
from tests.fakes.ca import FakeCa
from tests.fakes.clock import FakeClock
from tests.fakes.registry import FakeRegistry
from tests.fakes.secrets import FakeSecrets
from tests.fakes.state_source import FakeRemote, FakeStateSource
from tests.fakes.store import MemoryStore

INSTANCE = "tenants/acme/projects/research/instances/hello.yaml"
HELLO = InstanceKey("acme/research/hello")
SCHEMAS = SchemaSet.build(load_schemas())
SETTINGS = Settings(environment="dev", signatures="off")


def example() -> dict[str, bytes]:
    return state_repo.first_files()


@dataclass
class World:
    """One control plane, one node, and a repo a person edits."""

    ports: Ports
    remote: FakeRemote
    store: MemoryStore
    registry: FakeRegistry
    clock: FakeClock
    agent: FakeAgent
    files: dict[str, bytes]

    def commit(self, **replaced: bytes | None) -> None:
        for path, content in replaced.items():
            if content is None:
                del self.files[path]
            else:
                self.files[path] = content
        self.remote.push(self.files)

    def set_version(self, version: str) -> None:
        text = self.files[INSTANCE].decode()
        old = '"1.0.0"' if '"1.0.0"' in text else '"1.1.0"'
        self.commit(**{INSTANCE: text.replace(old, f'"{version}"').encode()})

    def run_pass(self) -> Pass:
        self.clock.advance(1_000)
        head = self.ports.source.fetch()
        state = load(self.ports.source.snapshot(head), SCHEMAS, self.ports, SETTINGS)
        return reconcile(state, self.ports, SETTINGS)

    def converge(self, passes_max: int = 10) -> Pass:
        """Passes and node work in turn until a pass has nothing left to do."""
        for _ in range(passes_max):
            done = self.run_pass()
            if done.summary.result in ("done", "stalled"):
                return done
            self.agent.work(self.clock.now_ms())
        raise AssertionError(f"not converged: {done.summary}")

    @property
    def record(self) -> InstanceRecord:
        return self.store.records()[HELLO]

    def events(self) -> list[str]:
        return [e.event.type.removeprefix("apps.instance.") for e in self.store.events()]


@pytest.fixture
def world() -> World:
    return make_world()


def make_world(registry: FakeRegistry | None = None) -> World:
    """The example repo, a node that joined, and a registry with its images."""
    remote, store, clock = FakeRemote(), MemoryStore(), FakeClock()
    registry = registry or FakeRegistry()
    secrets = FakeSecrets()
    ports = Ports(FakeStateSource(remote), registry, secrets, FakeCa(), store, clock)
    agent = FakeAgent("node-a", store, (newest_verifier(secrets, "tasks"),))
    agent.join(clock.now_ms())
    agent.report(clock.now_ms())
    files = example()
    for path, content in files.items():
        if "/artifacts/" in path:
            digest = content.decode().partition("digest: ")[2].split()[0].strip('"')
            registry.say(ArtifactKey.parse(f"gpuaas/apps/platform/catalog/hello@{digest}"))
    remote.push(files)
    return World(ports, remote, store, registry, clock, agent, files)


def test_commit_to_running(world: World) -> None:
    assert world.converge().summary.result == "done"
    assert (world.record.state, world.record.applied_version) == (State.RUNNING, "1.0.0")
    assert world.events() == ["requested", "deploying", "running"]
    ids = {e.event.correlation_id for e in world.store.events()}
    assert ids == {world.record.correlation_id}


def test_a_converged_fleet_costs_no_task_and_no_registry_call(world: World) -> None:
    world.converge()
    world.registry.looked_up.clear()
    done = world.run_pass()
    assert done.plan.empty
    assert world.registry.looked_up == []
    assert world.agent.work(world.clock.now_ms()) == 0


def test_upgrade_and_revert(world: World) -> None:
    world.converge()
    world.set_version("1.1.0")
    world.converge()
    assert world.record.applied_version == "1.1.0"
    world.set_version("1.0.0")
    world.converge()
    assert world.record.applied_version == "1.0.0"
    assert world.events()[3:] == [
        "upgrade_requested", "upgraded", "rollback_requested", "rolled_back",
    ]  # fmt: skip


def test_upgrade_that_fails_goes_back_and_stays_until_the_next_commit(world: World) -> None:
    world.converge()
    world.agent.broken = {d for d in [_digest(world, "1.1.0")] if d}
    world.set_version("1.1.0")
    done = world.converge()
    assert done.summary.result == "stalled"
    assert world.record.state is State.RUNNING
    assert world.record.applied_version == "1.0.0"
    assert world.events()[3:] == [
        "upgrade_requested",
        "failed",
        "rollback_requested",
        "rolled_back",
    ]
    launches = len(world.agent.launches)
    for _ in range(5):
        world.clock.advance(20_000)
        world.agent.report(world.clock.now_ms())
        world.run_pass()
    assert len(world.agent.launches) == launches
    finding = done.plan.stalled[0]
    assert finding.code == "not_ready_in_time"
    assert "version 1.1.0 was given up" in finding.message
    world.set_version("1.0.0")
    assert world.converge().summary.result == "done"


def test_decommission_by_removing_the_file(world: World) -> None:
    world.converge()
    world.commit(**{INSTANCE: None})
    world.converge()
    assert world.record.state is State.DECOMMISSIONED
    assert world.events()[3:] == ["decommission_requested", "decommissioned"]
    assert world.run_pass().plan.empty


def test_a_broken_file_removes_nothing_and_its_fix_goes_ahead(world: World) -> None:
    world.converge()
    good = world.files[INSTANCE]
    world.commit(**{INSTANCE: b"kind: [AppInstance\n"})
    done = world.converge()
    assert done.summary.result == "stalled"
    assert [f["code"] for f in done.summary.findings if f["type"] == "problem"] != []
    assert world.record.state is State.RUNNING
    world.commit(**{INSTANCE: good})
    assert world.converge().summary.result == "done"


def test_an_emptied_repo_removes_nothing(world: World) -> None:
    world.converge()
    world.files.clear()
    world.remote.push({})
    done = world.run_pass()
    assert done.plan.actions == ()
    assert [f["code"] for f in done.summary.findings if f["type"] == "problem"] == [
        "empty_revision"
    ]


def test_a_silent_node_holds_everything(world: World) -> None:
    world.converge()
    world.clock.advance(120_000)
    world.commit(**{INSTANCE: None})
    (action,) = world.run_pass().plan.actions
    assert isinstance(action, Remove)
    assert action.held is not None
    assert action.held.code == "node_offline"


def test_an_incomplete_report_holds_everything(world: World) -> None:
    world.agent.report(world.clock.now_ms(), complete=False)
    (action,) = world.run_pass().plan.actions
    assert action.held is not None
    assert action.held.code == "engine_unavailable"


def test_an_artifact_the_registry_lost_holds_the_launch(world: World) -> None:
    repository, digest = "gpuaas/apps/platform/catalog/hello", _digest(world, "1.0.0")
    world.registry.delete(ArtifactKey.parse(f"{repository}@{digest}"))
    (action,) = world.run_pass().plan.actions
    assert isinstance(action, Launch)
    assert action.held is not None
    assert action.held.code == "artifact_missing"
    assert world.record.state is State.REQUESTED
    assert world.events() == ["requested"]


def test_a_registry_that_does_not_answer_holds_the_launch(world: World) -> None:
    world.registry.failure = Transient("registry_unreachable", "no answer")
    (action,) = world.run_pass().plan.actions
    assert action.held is not None
    assert action.held.code == "registry_unreachable"
    world.registry.failure = None
    assert world.converge().summary.result == "done"


def test_drift_is_repaired(world: World) -> None:
    world.converge()
    world.agent.reports.clear()
    world.agent.report(world.clock.now_ms())
    world.converge()
    assert world.record.state is State.RUNNING
    assert world.events()[3:] == ["deploying", "running"]


def test_plan_changes_nothing(world: World) -> None:
    head = world.ports.source.fetch()
    state = load(world.ports.source.snapshot(head), SCHEMAS, world.ports, SETTINGS)
    planned, _ = preview(state, world.ports, SETTINGS)
    assert [a.kind for a in planned.actions] == ["launch"]
    assert world.store.records() == {}
    assert world.store.events() == []
    assert world.store.accepted().revision is None


def test_unacknowledged_task_is_handed_out_again_and_done_once(world: World) -> None:
    world.run_pass()
    first = world.store.tasks_for("node-a", world.clock.now_ms())
    again = world.store.tasks_for("node-a", world.clock.now_ms())
    assert [i.task_id for i in first] == [i.task_id for i in again]
    world.run_pass()
    world.run_pass()
    assert len(world.store.intents()) == 1
    world.converge()
    assert len(world.agent.launches) == 1


def test_a_lost_store_adopts_what_runs(world: World) -> None:
    world.converge()
    world.store.__init__()  # type: ignore[misc]
    world.agent.join(world.clock.now_ms())
    world.agent.report(world.clock.now_ms())
    done = world.run_pass()
    assert done.plan.empty
    assert world.record.state is State.RUNNING
    assert len(world.agent.launches) == 1


def test_a_lost_store_adopts_also_after_a_pass_without_the_node(world: World) -> None:
    world.converge()
    world.store.__init__()  # type: ignore[misc]
    world.run_pass()
    assert world.record.state.value == "requested"
    world.agent.join(world.clock.now_ms())
    world.agent.report(world.clock.now_ms())
    assert world.run_pass().plan.empty
    assert (world.record.state, world.record.applied_version) == (State.RUNNING, "1.0.0")
    world.commit(**{INSTANCE: None})
    world.converge()
    assert world.record.state is State.DECOMMISSIONED
    assert world.record.message == "teardown proved"


def test_what_a_lost_store_only_knew_as_requested_is_torn_down_and_proved(world: World) -> None:
    world.converge()
    world.store.__init__()  # type: ignore[misc]
    world.set_version("1.1.0")
    world.run_pass()
    world.agent.join(world.clock.now_ms())
    world.agent.report(world.clock.now_ms())
    world.commit(**{INSTANCE: None})
    world.converge()
    assert world.record.message == "teardown proved"


class Crash(Exception):
    """The process died here."""


STEPS = ["save_accepted", "commit", "open_intents", "next_seq"]


@pytest.mark.parametrize("method", STEPS)
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("nth", range(1, 8))
def test_a_crash_at_any_store_call_converges_without_doubling(
    world: World, method: str, when: str, nth: int
) -> None:
    """Runs launch, upgrade and removal; dies once around the nth call of `method`; starts again."""
    calls = 0
    real: Callable[..., object] = getattr(world.store, method)

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
    for step in (
        None,
        lambda: world.set_version("1.1.0"),
        lambda: world.commit(**{INSTANCE: None}),
    ):
        if step is not None:
            step()
        for _ in range(3):
            try:
                world.converge()
                break
            except Crash:
                continue
    assert world.record.state is State.DECOMMISSIONED
    assert len(world.agent.launches) == 2
    assert world.events() == [
        "requested", "deploying", "running", "upgrade_requested", "upgraded",
        "decommission_requested", "decommissioned",
    ]  # fmt: skip
    assert len({e.event.event_id for e in world.store.events()}) == len(world.events())


def test_a_store_that_does_not_answer_fails_the_pass_and_nothing_else(world: World) -> None:
    world.converge()

    def broken(changes: Changes) -> None:
        raise Transient("store_busy", "the database is locked")

    world.set_version("1.1.0")
    world.store.commit = broken  # type: ignore[method-assign]
    with pytest.raises(GpuaasError, match="the database is locked"):
        world.run_pass()


def _digest(world: World, version: str) -> str:
    path = f"tenants/platform/projects/catalog/artifacts/hello/{version}/image.yaml"
    return world.files[path].decode().partition("digest: ")[2].split()[0].strip('"')
