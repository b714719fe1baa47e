"""A control plane in memory whose three agents believe what their last NodeConfig says."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field

from node_agent.envelope import EnvelopeRefused, unseal
from node_agent.membership import NODE_CONFIG_TYPE, NodeConfig
from node_agent.wire import TASK_TYPE, ConfigSeen, TaskAck
from reconciler.adapters.schema_files import load_schemas
from reconciler.core.names import ArtifactKey, InstanceKey
from reconciler.core.plan import Plan
from reconciler.core.schema import SchemaSet
from reconciler.custody.signing import newest_verifier
from reconciler.cycle import Pass, load, preview
from reconciler.devkit import state_repo
from reconciler.errors import Transient
from reconciler.loop import Loop
from reconciler.ports import TASK_KEY, Ports
from reconciler.server.node_config import NodeConfigs
from reconciler.settings import Settings
from tests.fakes.agent import FakeAgent
from tests.fakes.ca import FakeCa
from tests.fakes.clock import FakeClock
from tests.fakes.registry import FakeRegistry
from tests.fakes.secrets import FakeSecrets
from tests.fakes.state_source import FakeRemote, FakeStateSource
from tests.fakes.store import MemoryStore

ENVIRONMENT = "environments/dev.yaml"
INSTANCE = "tenants/acme/projects/research/instances/hello.yaml"
HELLO = InstanceKey("acme/research/hello")
SCHEMAS = SchemaSet.build(load_schemas())
SETTINGS = Settings(environment="dev", signatures="off")
POLL = frozenset({"poll"})
SEALED = Transient("custody_sealed", "Vault is sealed")


@dataclass
class Agent(FakeAgent):
    """Believes what its last NodeConfig says; what it does not believe, it does not take over."""

    min_version: int = 1
    refused: list[str] = field(default_factory=list)

    def join(self, now_ms: int) -> None:
        secret = f"{self.node} {now_ms}"
        self.store.add_join_token(secret, self.node, now_ms + 1000)
        own_key = hashlib.sha256(self.node.encode()).hexdigest()
        self.store.redeem_join_token(secret, self.node, own_key, now_ms)

    def poll(self, configs: NodeConfigs) -> None:
        envelope = configs(self.node, self.config.digest if self.config else "")
        if envelope is None:
            return
        payload, key = unseal(json.dumps(envelope).encode(), NODE_CONFIG_TYPE, self.verifiers)
        assert key.version >= self.min_version
        config = NodeConfig.model_validate_json(payload)
        assert config.node == self.node
        self.verifiers, self.min_version = config.verifiers, config.min_version
        newest = max(key.version for key in config.verifiers)
        self.config = ConfigSeen(
            digest=config.digest, newest_version=newest, min_version=config.min_version
        )

    def work(self, now_ms: int) -> int:
        """Acknowledges what it believes, and nothing else."""
        tasks = self.store.tasks_for(self.node, now_ms)
        acks = [self._believed(task.envelope, now_ms) for task in tasks]
        self.report(now_ms)
        self.store.acknowledge(self.node, [ack for ack in acks if ack is not None])
        return len(tasks)

    def _believed(self, envelope: str, now_ms: int) -> TaskAck | None:
        try:
            _, key = unseal(envelope.encode(), TASK_TYPE, self.verifiers)
        except EnvelopeRefused as refused:
            self.refused.append(refused.code)
            return None
        if key.version < self.min_version:
            self.refused.append("key_retired")
            return None
        return self._take(envelope, now_ms)


@dataclass
class World:
    ports: Ports
    remote: FakeRemote
    store: MemoryStore
    secrets: FakeSecrets
    clock: FakeClock
    agents: dict[str, Agent]
    files: dict[str, bytes]
    loop: Loop
    configs: NodeConfigs
    passes: list[Pass] = field(default_factory=list)
    told: list[frozenset[str]] = field(default_factory=list)
    alarms: list[float] = field(default_factory=list)

    def want(self, version: int, min_version: int | None = None, more: str = "") -> None:
        """Commits the versions of the task key."""
        wish = f"  signing_keys:\n    tasks:\n      version: {version}\n"
        wish += f"      min_version: {min_version}\n" if min_version else ""
        self.commit(ENVIRONMENT, state_repo.first_files()[ENVIRONMENT] + (wish + more).encode())

    def set_version(self, version: str) -> None:
        text = state_repo.first_files()[INSTANCE].decode()
        self.commit(INSTANCE, text.replace('"1.0.0"', f'"{version}"').encode())

    def commit(self, path: str, content: bytes) -> None:
        self.files[path] = content
        self.remote.push(self.files)

    def run_pass(self, *reasons: str) -> Pass | None:
        self.clock.advance(1_500)
        return self.loop.step(frozenset(reasons) or POLL)

    def must(self, *reasons: str) -> Pass:
        done = self.run_pass(*reasons)
        assert done is not None, self.store.last_pass()
        return done

    def agents_turn(self, *names: str) -> None:
        """Everybody, or those named: hear of new keys, carry out tasks, report."""
        self.clock.advance(1_500)
        for name in names or sorted(self.agents):
            agent = self.agents[name]
            agent.poll(self.configs)
            agent.work(self.clock.now_ms())

    def converge(self, *names: str) -> Pass:
        for _ in range(12):
            done = self.must()
            if done.summary.result in ("done", "stalled"):
                return done
            self.agents_turn(*names)
        raise AssertionError(done.summary)

    @property
    def versions(self) -> list[int]:
        return [key.version for key in self.secrets.verifier_keys(TASK_KEY)]

    def plan(self) -> Plan:
        snapshot = self.ports.source.snapshot(self.ports.source.fetch())
        return preview(load(snapshot, SCHEMAS, self.ports, SETTINGS), self.ports, SETTINGS)[0]

    def audited(self) -> list[tuple[str, str, str]]:
        entries = (row.entry for row in self.store.audit())
        return [(e.action, e.after, e.result) for e in entries if e.action.startswith("keys.")]


def make_world(settings: Settings = SETTINGS) -> World:
    remote, store, clock, secrets = FakeRemote(), MemoryStore(), FakeClock(), FakeSecrets()
    registry, files = FakeRegistry(), dict(state_repo.first_files())
    for path, content in files.items():
        if "/artifacts/" in path:
            digest = content.decode().partition("digest: ")[2].split()[0].strip('"')
            registry.say(ArtifactKey.parse(f"gpuaas/apps/platform/catalog/hello@{digest}"))
    remote.push(files)
    ports = Ports(FakeStateSource(remote), registry, secrets, FakeCa(), store, clock)
    key = newest_verifier(secrets, TASK_KEY)
    agents = {f"node-{name}": Agent(f"node-{name}", store, (key,)) for name in "abc"}
    passes: list[Pass] = []
    told: list[frozenset[str]] = []
    alarms: list[float] = []

    def later(after_s: float, _: Callable[[], None]) -> Callable[[], None]:
        alarms.append(after_s)
        return lambda: None

    loop = Loop(ports, settings, SCHEMAS, "me", told.append, passes.append, later=later)
    world = World(
        ports, remote, store, secrets, clock, agents, files, loop, NodeConfigs(ports, settings),
        passes, told, alarms,
    )  # fmt: skip
    for agent in agents.values():
        agent.join(clock.now_ms())
    world.agents_turn()
    world.converge()
    return world
