"""When passes happen, who leads, and what a silent remote stops (nothing that repairs)."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from reconciler.adapters.schema_files import load_schemas
from reconciler.core.actions import Launch
from reconciler.core.names import ArtifactKey
from reconciler.core.schema import SchemaSet
from reconciler.custody.signing import newest_verifier
from reconciler.cycle import Pass
from reconciler.devkit import state_repo
from reconciler.errors import Transient
from reconciler.loop import Loop
from reconciler.ports import RECONCILER_LEASE, Ports
from reconciler.settings import Settings
from reconciler.wakeups import Wakeups
from tests.fakes.agent import FakeAgent
from tests.fakes.ca import FakeCa
from tests.fakes.clock import FakeClock
from tests.fakes.registry import FakeRegistry
from tests.fakes.secrets import FakeSecrets
from tests.fakes.state_source import FakeRemote, FakeStateSource
from tests.fakes.store import MemoryStore
from tests.waiting import wait_until

SCHEMAS = SchemaSet.build(load_schemas())
POLL = frozenset({"poll"})
REPORT = frozenset({"report"})


@dataclass
class World:
    remote: FakeRemote
    store: MemoryStore
    clock: FakeClock
    ports: Ports
    passes: list[Pass] = field(default_factory=list)
    told: list[frozenset[str]] = field(default_factory=list)

    def loop(self, holder: str = "one", **settings: float) -> Loop:
        chosen = Settings.model_validate({"environment": "dev", **settings})
        return Loop(self.ports, chosen, SCHEMAS, holder, self.told.append, self.passes.append)


@pytest.fixture
def world() -> World:
    remote, store, clock = FakeRemote(), MemoryStore(), FakeClock()
    remote.push(state_repo.first_files())
    ports = Ports(FakeStateSource(remote), FakeRegistry(), FakeSecrets(), FakeCa(), store, clock)
    return World(remote, store, clock, ports)


def test_wakeups_are_taken_once_and_together() -> None:
    wakeups = Wakeups()
    for reason in ("poll", "report", "poll"):
        wakeups.add(reason)
    assert wakeups.take(0) == {"poll", "report"}
    assert wakeups.take(0) == frozenset()


def test_a_report_makes_a_pass_without_a_fetch(world: World) -> None:
    loop = world.loop()
    loop.step(POLL)
    world.remote.failure = AssertionError("fetched")  # type: ignore[assignment]
    assert loop.step(REPORT) is not None


def test_a_silent_remote_stops_no_pass_and_is_told(world: World) -> None:
    loop = world.loop()
    loop.step(POLL)
    world.remote.failure = Transient("git_unreachable", "no route to host", hint="look")
    done = loop.step(POLL)
    assert done is not None
    assert ("git_unreachable", "no route to host") in [
        (f["code"], f["message"]) for f in done.summary.findings
    ]
    world.remote.failure = None
    after = loop.step(POLL)
    assert after is not None
    assert [f for f in after.summary.findings if f["code"] == "git_unreachable"] == []


def test_a_remote_that_never_answered_fails_the_step(world: World) -> None:
    world.remote.failure = Transient("git_unreachable", "no route to host")
    loop = world.loop()
    assert loop.step(POLL) is None
    last = world.store.last_pass()
    assert last is not None
    assert (last.result, last.message) == ("failed", "git_unreachable: no route to host")
    assert wait_until(lambda: loop.wakeups.take(0.1)) == {"retry"}


def test_a_revision_that_is_refused_whole_stops_no_pass_and_is_told(world: World) -> None:
    """Attempted: to end the repairs by a push, also for a control plane that starts after it."""
    first = world.loop().step(POLL)
    assert first is not None
    world.remote.files_max = 3
    world.remote.push(state_repo.first_files() | {"more.yaml": b"a: 1"})
    for loop in (world.loop(), world.loop()):
        done = loop.step(POLL)
        assert done is not None
        assert done.summary.revision == first.summary.revision
        assert [f["code"] for f in done.summary.findings if f["type"] == "problem"] == [
            "too_many_files"
        ]
    assert [row.entry.result for row in world.store.audit(0, 9)] == ["too_many_files"]
    world.remote.files_max = 200_000
    after = loop.step(POLL)
    assert after is not None
    assert after.summary.revision == world.remote.branches["main"]


def test_one_leads_and_the_other_takes_over(world: World) -> None:
    first, second = world.loop("one"), world.loop("two")
    assert first.step(POLL) is not None
    assert second.step(POLL) is None
    world.clock.advance(16_000)
    assert second.step(POLL) is not None
    assert first.step(POLL) is None


def test_nodes_with_new_tasks_are_told(world: World) -> None:
    secrets = world.ports.secrets
    agent = FakeAgent("node-a", world.store, (newest_verifier(secrets, "tasks"),))
    agent.join(world.clock.now_ms())
    agent.report(world.clock.now_ms())
    loop = world.loop()
    assert loop.step(POLL) is not None
    assert world.told == []
    registry = world.ports.registry
    assert isinstance(registry, FakeRegistry)
    (action,) = world.passes[0].plan.actions
    assert isinstance(action, Launch)
    image = action.workload.image
    registry.say(ArtifactKey.parse(f"{image.repository}@{image.digest}"))
    assert loop.step(REPORT) is not None
    assert world.told == [frozenset({"node-a"})]


def run_until(loop: Loop, true: Callable[[], object]) -> None:
    stop = threading.Event()
    thread = threading.Thread(target=loop.run, args=(stop,))
    thread.start()
    try:
        wait_until(true)
    finally:
        stop.set()
        thread.join()


def test_run_fetches_at_start_and_gives_the_lease_back(world: World) -> None:
    run_until(world.loop(), lambda: world.passes)
    assert world.store.lease(RECONCILER_LEASE, "other", world.clock.now_ms(), 1_000) == "other"


def test_a_request_from_another_process_makes_a_pass(world: World) -> None:
    loop = world.loop(wakeup_interval_s=0.05, poll_interval_s=3600, resync_interval_s=3600)

    def asked() -> bool:
        if len(world.passes) == 1:
            world.store.request_pass("apply", world.clock.now_ms())
        return len(world.passes) > 1

    run_until(loop, asked)


def joined(world: World) -> FakeAgent:
    """The node, with what it needs to run the instance; it has reported once."""
    agent = FakeAgent("node-a", world.store, (newest_verifier(world.ports.secrets, "tasks"),))
    agent.join(world.clock.now_ms())
    agent.report(world.clock.now_ms())
    registry = world.ports.registry
    assert isinstance(registry, FakeRegistry)
    for path, content in state_repo.first_files().items():
        if "/artifacts/" in path:
            digest = content.decode().partition("digest: ")[2].split()[0].strip('"')
            registry.say(ArtifactKey.parse(f"gpuaas/apps/platform/catalog/hello@{digest}"))
    return agent


def push(world: World, spec: str) -> None:
    """The repo with these lines at the end of the Environment's spec."""
    files = state_repo.first_files()
    path = "environments/dev.yaml"
    world.remote.push({**files, path: files[path].rstrip() + f"\n{spec}\n".encode()})


def test_it_wakes_when_a_window_opens(world: World) -> None:
    """No poll and no resync comes in between: the clock stands a moment before nine in London."""
    opens_ms = 1_700_038_800_000
    world.clock.time_ms = opens_ms - 300
    joined(world)
    push(
        world,
        "  sync:\n    windows:\n      - name: office\n        kind: allow\n"
        '        start: "09:00"\n        end: "17:00"\n        time_zone: Europe/London',
    )
    loop = world.loop(poll_interval_s=3600, resync_interval_s=3600)

    def opened() -> bool:
        if len(world.passes) == 1 and world.clock.now_ms() < opens_ms:
            (held,) = world.passes[0].plan.held
            assert held.held is not None
            assert (held.held.code, held.held.until_ms) == ("outside_sync_window", opens_ms)
            world.clock.time_ms = opens_ms
        return len(world.passes) > 1

    run_until(loop, opened)
    assert [action.kind for action in world.passes[1].plan.ready] == ["launch"]


def test_what_is_far_off_is_left_to_the_regular_passes(world: World) -> None:
    joined(world)
    push(
        world,
        "  sync:\n    suspend:\n      by: ada\n      reason: the demo\n"
        "      until: 2033-11-14T00:00:00Z",
    )
    loop = world.loop()
    done = loop.step(POLL)
    assert done is not None
    assert done.plan.wake_at_ms is not None
    assert loop.wakeups.take(0) == frozenset()


def test_a_plan_is_applied_by_its_id_and_only_once(world: World) -> None:
    joined(world)
    loop = Loop(
        world.ports, Settings(environment="dev"), SCHEMAS, "one", on_pass=world.passes.append,
        manual=True,
    )  # fmt: skip
    done = loop.step(POLL)
    assert done is not None
    (held,) = done.plan.held
    assert held.held is not None
    assert held.held.code == "awaiting_apply"
    applied = loop.step(frozenset({f"plan:{done.plan.plan_id}"}))
    assert applied is not None
    assert applied.plan.approved
    assert [action.kind for action in applied.plan.ready] == ["launch"]
    after = loop.step(REPORT)
    assert after is not None
    assert not after.plan.approved


def test_a_plan_that_was_asked_for_is_not_forgotten_over_a_failure(world: World) -> None:
    joined(world)
    push(world, "  sync:\n    mode: manual")
    loop = world.loop()
    done = loop.step(POLL)
    assert done is not None
    world.store.failure = Transient("store_busy", "the database is locked")
    assert loop.step(frozenset({f"plan:{done.plan.plan_id}"})) is None
    world.store.failure = None
    again = loop.step(frozenset({"retry"}))
    assert again is not None
    assert [action.kind for action in again.plan.ready] == ["launch"]


def test_a_request_to_apply_a_plan_reaches_the_pass(world: World) -> None:
    joined(world)
    push(world, "  sync:\n    mode: manual")
    loop = world.loop(wakeup_interval_s=0.05, poll_interval_s=3600, resync_interval_s=3600)

    def applied() -> bool:
        if len(world.passes) == 1:
            plan_id = world.passes[0].plan.plan_id
            world.store.request_pass(f"plan:{plan_id}", world.clock.now_ms())
        return any(done.plan.ready for done in world.passes)

    run_until(loop, applied)


def test_timers_poll_and_resync(world: World) -> None:
    loop = world.loop(poll_interval_s=0.1, resync_interval_s=0.1)
    run_until(loop, lambda: len(world.passes) > 3)


def test_a_pass_that_crashes_ends_neither_the_loop_nor_the_repairs(world: World) -> None:
    """Attempted: to end the control plane with input that nobody foresaw."""
    loop = world.loop()
    assert loop.step(POLL) is not None
    world.remote.failure = KeyError("nobody foresaw this")  # type: ignore[assignment]
    assert loop.step(POLL) is None
    last = world.store.last_pass()
    assert last is not None
    assert (last.result, last.message) == ("failed", "internal: unexpected KeyError, see the log")
    assert wait_until(lambda: loop.wakeups.take(0.1)) == {"retry"}
    assert loop.step(REPORT) is not None
