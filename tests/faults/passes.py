"""The whole control plane over the faulty repo: real passes on services in memory."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from node_agent.wire import Phase
from reconciler.core.names import ArtifactKey
from reconciler.core.records import State
from reconciler.custody.signing import newest_verifier
from reconciler.cycle import Pass, load, reconcile
from reconciler.ports import Ports
from reconciler.settings import Settings
from tests.fakes.agent import FakeAgent
from tests.fakes.ca import FakeCa
from tests.fakes.clock import FakeClock
from tests.fakes.registry import FakeRegistry
from tests.fakes.secrets import FakeSecrets
from tests.fakes.state_source import FakeRemote, FakeStateSource
from tests.fakes.store import MemoryStore
from tests.faults import oracle, repo
from tests.faults.fleet import SCHEMAS, Tree

SETTINGS = Settings(environment=repo.ENVIRONMENT)
CRASH_POINTS = ("save_accepted", "commit", "open_intents", "next_seq", "records")
PASSES_MAX = 40


class Crash(Exception):
    """The process died here."""


@dataclass
class Node(FakeAgent):
    """An agent with a key of its own that can be away."""

    away: bool = False
    removed: list[str] = field(default_factory=list)
    """Instances it ever tore down."""

    def join(self, now_ms: int) -> None:
        key = format(repo.NODES.index(self.node) + 1, "x") * 64
        self.store.add_join_token("secret-hash-" + self.node, self.node, now_ms + 1000)
        self.store.redeem_join_token("secret-hash-" + self.node, self.node, key, now_ms)

    def work(self, now_ms: int) -> int:
        done = super().work(now_ms)
        gone = [k for k, one in self.reports.items() if one.phase is Phase.REMOVED]
        self.removed += [key for key in gone if key not in self.removed]
        return done


@dataclass
class World:
    """A control plane that may die at any call of its store, six nodes, and the repo."""

    rng: random.Random
    ports: Ports
    remote: FakeRemote
    store: MemoryStore
    clock: FakeClock
    nodes: list[Node]
    crash_rate: float = 0.0

    @classmethod
    def build(cls, seed: int) -> World:
        remote, store, registry, clock = FakeRemote(), MemoryStore(), FakeRegistry(), FakeClock()
        secrets = FakeSecrets()
        for app in repo.APPS:
            for version in repo.VERSIONS:
                digest = repo.digest(app, version)
                registry.say(ArtifactKey.parse(f"gpuaas/apps/catalog/{app}@{digest}"))
        ports = Ports(FakeStateSource(remote), registry, secrets, FakeCa(), store, clock)
        keys = (newest_verifier(secrets, "tasks"),)
        nodes = [Node(name, store, keys) for name in repo.NODES]
        world = cls(random.Random(seed), ports, remote, store, clock, nodes)
        for node in nodes:
            node.join(clock.now_ms())
            node.report(clock.now_ms())
        for method in CRASH_POINTS:
            setattr(store, method, world._mortal(getattr(store, method)))
        return world

    def _mortal(self, real: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object) -> object:
            luck = self.rng.random()
            if luck < self.crash_rate / 2:
                raise Crash
            result = real(*args)
            if luck < self.crash_rate:
                raise Crash
            return result

        return call

    def push(self, tree: Tree) -> None:
        self.remote.push(tree)

    def run_pass(self) -> Pass:
        self.clock.advance(1_000)
        head = self.ports.source.fetch()
        state = load(self.ports.source.snapshot(head), SCHEMAS, self.ports, SETTINGS)
        return reconcile(state, self.ports, SETTINGS)

    def try_pass(self) -> Pass | None:
        """None when the process died on the way."""
        try:
            return self.run_pass()
        except Crash:
            return None

    def nodes_work(self) -> None:
        for node in self.nodes:
            if not node.away:
                node.work(self.clock.now_ms())

    def converge(self) -> Pass:
        """Passes and node work in turn until there is nothing left to do."""
        for _ in range(PASSES_MAX):
            done = self.run_pass()
            if done.plan.empty:
                return done
            self.clock.advance(20_000)
            self.nodes_work()
        raise AssertionError(f"not converged: {done.plan.actions[:5]} {done.plan.waiting[:5]}")

    def running(self) -> dict[str, str]:
        """Instance → the workload that is there, by what the nodes really have."""
        return {
            key: str(report.running_hash)
            for node in self.nodes
            for key, report in node.reports.items()
            if report.phase in (Phase.READY, Phase.STOPPED)
        }

    def leaving(self) -> set[str]:
        """What is being torn down, or was moved to another node and may come back from there."""
        home = {one.key: one.node for one in oracle.placed()}
        return {
            str(key)
            for key, one in self.store.records().items()
            if one.state is State.DECOMMISSIONING or one.node != home.get(key, one.node)
        }

    def removed(self) -> set[str]:
        return {key for node in self.nodes for key in node.removed}

    def told_twice(self) -> list[tuple[str, str, str]]:
        """Events of one operation that were stored more than once."""
        told = Counter(
            (e.event.instance, e.event.type, e.event.correlation_id) for e in self.store.events()
        )
        return [event for event, count in told.items() if count > 1]


def names() -> set[str]:
    return {one.key for one in oracle.placed()}
