"""A control plane as a process: the real loop, passes and agent API over simulated services.

Rules:
- Every call of a service is a place at which the process may die, before or after it had its
  effect, at which the service may fail, and at which all of the process may stand still a while.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

from node_agent.link import Away
from node_agent.wire import POLL_TYPE, SECRETS_REQUEST_TYPE, Poll, SecretsRequest
from reconciler.core.names import ArtifactKey, Revision
from reconciler.core.observed import ArtifactSeen
from reconciler.core.schema import SchemaSet
from reconciler.core.source import Snapshot
from reconciler.cycle import Pass
from reconciler.errors import Refused, Transient
from reconciler.loop import Loop
from reconciler.ports import Changes, Ports, RegistryEndpoint
from reconciler.server import agent_api
from reconciler.server.agent_blobs import AgentBlobs
from reconciler.server.deps import ServerDeps
from reconciler.server.errors import ApiError
from reconciler.settings import Settings
from tests.fakes.ca import FakeCa
from tests.fakes.registry import FakeRegistry
from tests.fakes.secrets import FakeSecrets
from tests.fakes.state_source import FakeRemote, FakeStateSource
from tests.fakes.store import MemoryStore
from tests.sim.commits import ENVIRONMENT
from tests.sim.network import Reply
from tests.sim.supplies import Supplies
from tests.sim.world import Incarnation, World

SETTINGS = Settings(
    environment=ENVIRONMENT,
    poll_interval_s=40,
    resync_interval_s=60,
    node_offline_after_s=100,
    lease_ttl_s=20,
    task_ttl_s=90,
)
RENEW_MS = 6_000
REQUESTS_MS = 20_000
WRITES = frozenset({"commit", "save_accepted", "save_report", "acknowledge", "lease"})


@dataclass
class Services:
    """What control planes share, and what is wrong with it until when."""

    world: World
    remote: FakeRemote
    store: MemoryStore
    secrets: FakeSecrets
    exists: Callable[[ArtifactKey], ArtifactSeen]
    on_commit: Callable[[str, Changes], None] = lambda _who, _changes: None
    on_accepted: Callable[[str, str], None] = lambda _who, _revision: None
    on_report: Callable[[str, bool, str], None] = lambda _node, _saved, _text: None
    store_fails: float = 0.0
    git_away_until: int = 0
    registry_away_until: int = 0
    pause: float = 0.0
    slow: float = 0.0
    supplies: Supplies = field(init=False)

    def __post_init__(self) -> None:
        self.supplies = Supplies(self.world, self.secrets)


class StorePort:
    """The store in the hands of one process."""

    def __init__(self, services: Services, inc: Incarnation) -> None:
        self._services, self._inc = services, inc

    def __getattr__(self, name: str) -> Callable[..., Any]:
        real = getattr(self._services.store, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            self._before(name)
            result = self._watched(name, real, args, kwargs)
            if name in WRITES:
                self._after(name)
            return result

        # Looked up once: the next call of the same method finds it here.
        self.__dict__[name] = call
        return call

    def _before(self, name: str) -> None:
        services, world = self._services, self._services.world
        world.point(self._inc, f"before {name}")
        if world.chance(services.store_fails):
            raise Transient("store_busy", "the database is locked")
        if world.chance(services.pause):
            long_ms = world.rng.choice((200, 3_000, 30_000))
            world.say(self._inc, f"stands still for {long_ms} ms before {name}")
            world.freeze(self._inc, long_ms)

    def _watched(self, name: str, real: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        services = self._services
        if name == "commit":
            result = real(*args, **kwargs)
            services.on_commit(self._inc.name, args[0])
            return result
        result = real(*args, **kwargs)
        if name == "save_accepted":
            services.on_accepted(self._inc.name, str(args[0].revision or ""))
        elif name == "save_report":
            services.on_report(args[0], result, args[1])
        return result

    def _after(self, name: str) -> None:
        services, world = self._services, self._services.world
        world.point(self._inc, f"after {name}")
        if world.chance(services.store_fails / 2):
            raise Transient("store_lost", "the connection broke, nobody knows whether it was done")


class SourcePort:
    """The state repo as one process sees it."""

    def __init__(self, services: Services, inc: Incarnation) -> None:
        self._services, self._inc = services, inc
        self._source = FakeStateSource(services.remote)

    def fetch(self) -> Revision:
        services, world = self._services, self._services.world
        world.point(self._inc, "before fetch")
        if world.chance(services.slow):
            world.sleep(self._inc, world.rng.choice((50, 2_000, 20_000)))
        if world.now < services.git_away_until:
            raise Transient("git_unreachable", "the remote does not answer")
        return self._source.fetch()

    def head(self) -> Revision:
        return self._source.head()

    def snapshot(self, revision: Revision) -> Snapshot:
        return self._source.snapshot(revision)

    def commits_since(self, since: Revision, head: Revision, most: int) -> int:
        return self._source.commits_since(since, head, most)


class RegistryPort(FakeRegistry):
    """The registry as one process sees it; nothing is attached to what is in there."""

    def __init__(self, services: Services, inc: Incarnation) -> None:
        super().__init__()
        self._services, self._inc = services, inc

    def look_up(self, endpoint: RegistryEndpoint, key: ArtifactKey) -> ArtifactSeen:
        services, world = self._services, self._services.world
        world.point(self._inc, "before look_up")
        if world.chance(services.slow):
            world.sleep(self._inc, 1_500)
        if world.now < services.registry_away_until:
            raise Transient("registry_unreachable", "no answer")
        return services.exists(key)


@dataclass
class WallClock:
    world: World
    skew_ms: int = 0

    def now_ms(self) -> int:
        return self.world.now + self.skew_ms


@dataclass
class ControlPlane:
    """One reconciler with its server; several may share the services."""

    name: str
    services: Services
    schemas: SchemaSet
    memo: Any
    """A LoadMemo that outlives runs: what was parsed once need not be parsed again."""
    on_pass: Callable[[ControlPlane, Pass], None]
    skew_ms: int = 0
    inc: Incarnation | None = None
    lives: int = 0
    loop: Loop | None = None
    waiters: list[tuple[str, int, Reply]] = field(default_factory=list)

    @property
    def alive(self) -> bool:
        return self.inc is not None and self.inc.alive

    def boot(self) -> None:
        if self.alive:
            return
        self.lives += 1
        world = self.services.world
        inc = self.inc = Incarnation(self.name, self.lives)
        world.say(inc, "starts")
        clock = WallClock(world, self.skew_ms)
        store = cast("Any", StorePort(self.services, inc))
        source, registry = SourcePort(self.services, inc), RegistryPort(self.services, inc)
        secrets = self.services.secrets
        ports = Ports(cast("Any", source), registry, secrets, FakeCa(clock), store, clock)
        self.ports = ports
        self._busy, self._planned = False, False
        self.waiters = []
        loop = self.loop = Loop(
            ports, SETTINGS, self.schemas, self.name, self._tasks_queued,
            lambda done: self.on_pass(self, done), later=self._later,
            chance=world.rng.random,
        )  # fmt: skip
        loop._memory.loaded.validated = self.memo
        deps = ServerDeps(
            store, secrets, clock, SETTINGS, self.wake, cast("Any", None), cast("Any", None)
        )
        self.api = agent_api.AgentApi(deps, cast("Any", None))
        self._blobs = AgentBlobs(deps, cast("Any", None))
        self._every(RENEW_MS, loop.renew)
        self._every(REQUESTS_MS, loop.take_requests)
        self._every(int(SETTINGS.poll_interval_s * 1000), lambda: self.wake("poll"))
        self._every(int(SETTINGS.resync_interval_s * 1000), lambda: self.wake("resync"))
        self.wake("start")

    def stop(self, why: str) -> None:
        if self.inc is not None and self.inc.alive:
            self.services.world.kill(self.inc, why)

    # --- the loop ---

    def wake(self, reason: str) -> None:
        assert self.loop is not None
        self.loop.wakeups.add(reason)
        self._plan()

    def _plan(self) -> None:
        if not self._planned and not self._busy:
            self._planned = True
            self.services.world.at(1, self.inc, "pass", self._pass)

    def _pass(self) -> None:
        assert self.loop is not None
        self._planned = False
        reasons = self.loop.wakeups.take(0)
        if not reasons:
            return
        self._busy = True
        self.loop.step(reasons)
        self._busy = False
        self._plan()

    def _later(self, after_s: float, job: Callable[[], None]) -> Callable[[], None]:
        def run() -> None:
            job()
            self._plan()

        return self.services.world.at(int(after_s * 1000), self.inc, "timer", run)

    def _every(self, ms: int, job: Callable[[], None]) -> None:
        inc = self.inc

        def run() -> None:
            self.services.world.at(ms, inc, "timer", run)
            job()
            self._plan()

        self.services.world.at(ms, inc, "timer", run)

    # --- the server ---

    def report(self, body: bytes, reply: Reply) -> None:
        """As the route does it, threads and HTTP apart."""
        self._serve("report", lambda: self._report(body, reply))

    def _report(self, body: bytes, reply: Reply) -> None:
        api, world = self.api, self.services.world
        now_ms = world.now + self.skew_ms
        try:
            report, saved = api._take_report(body, now_ms, None)
        except ApiError as error:
            reply(None, error.code)
            return
        except (Transient, Refused) as error:
            reply(None, error.code)
            return
        if not saved:
            reply(None, "replayed_report")
            return
        if api._news.wake_after_s(report, now_ms) is not None:
            self.wake("report")
        reply(b"{}", "")

    def give(self, what: str, body: bytes) -> Any:
        """What a node asks for and waits for: secrets, sealed, or a blob. Raises Away."""
        now = self.services.world.now
        if self.inc is None or not self.inc.alive or self.inc.frozen_until > now:
            raise Away("unreachable", "no answer")
        api = self.api
        try:
            if what == "blob":
                return self.services.supplies.blob(self._blobs._asked(body, None))
            node, payload = api._senders.unsealed(body, SECRETS_REQUEST_TYPE, None)
            wanted = api._senders.checked(SecretsRequest, node, payload, now + self.skew_ms)
            return json.dumps(api._secrets.answer(wanted)).encode()
        except (ApiError, Transient, Refused) as error:
            raise Away(error.code, str(error)) from None

    def poll(self, body: bytes, reply: Reply) -> None:
        self._serve("poll", lambda: self._poll(body, reply))

    def _serve(self, what: str, job: Callable[[], None]) -> None:
        world, inc = self.services.world, self.inc
        if inc is None or not inc.alive:
            return
        if inc.frozen_until > world.now:
            world.at(inc.frozen_until - world.now, inc, what, job)
            return
        world.guarded(inc, what, job)

    def _poll(self, body: bytes, reply: Reply) -> None:
        api, world = self.api, self.services.world
        try:
            node, payload = api._senders.unsealed(body, POLL_TYPE, None)
            poll = api._senders.checked(Poll, node, payload, world.now + self.skew_ms)
            until = world.now + poll.wait_ms
        except ApiError as error:
            reply(None, error.code)
            return
        except (Transient, Refused) as error:
            reply(None, error.code)
            return
        if not self._answer(node.name, reply):
            self.waiters.append((node.name, until, reply))
            world.at(poll.wait_ms, self.inc, "poll ends", self._end_polls)

    def _answer(self, node: str, reply: Reply, *, empty: bool = False) -> bool:
        try:
            now_ms = self.services.world.now + self.skew_ms
            tasks = self.api._deps.store.tasks_for(node, now_ms)
        except (Transient, Refused) as error:
            reply(None, error.code)
            return True
        if not tasks and not empty:
            return False
        reply(agent_api._poll_reply(tasks).canonical(), "")
        return True

    def _end_polls(self) -> None:
        now, waiting = self.services.world.now, self.waiters
        self.waiters = [one for one in waiting if one[1] > now]
        for node, until, reply in waiting:
            if until <= now:
                self._answer(node, reply, empty=True)

    def _tasks_queued(self, nodes: frozenset[str]) -> None:
        def answer() -> None:
            waiting, self.waiters = self.waiters, []
            for waiter in waiting:
                if waiter[0] not in nodes or not self._answer(waiter[0], waiter[2]):
                    self.waiters.append(waiter)

        self.services.world.at(1, self.inc, "tasks queued", answer)
