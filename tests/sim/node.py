"""A node: a disk, Docker, a clock of its own, and the real agent as a process on it.

The agent is `runtime.Agent` with nothing in it replaced but its threads: turns, reports and polls
are events here, and its way out is the simulated network.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

from pydantic import ValidationError

from node_agent.authorized_keys import Installed
from node_agent.converge import wanted_workload
from node_agent.disk import FolderDisk, StateUnusable
from node_agent.engines.base import EngineFailure
from node_agent.link import AgentKey, Away
from node_agent.membership import SshKey
from node_agent.ports import HostPorts
from node_agent.runtime import Agent
from node_agent.secret_keeper import SecretKeeper
from node_agent.state import Identity, InstanceState, InstanceTask, StateStore
from node_agent.steps import Present, Pull
from node_agent.tasks import Accepted
from node_agent.turns import Again, Aside, Finished, Next, Rest, Turns
from node_agent.wire import (
    POLL_TYPE,
    REPORT_TYPE,
    Inventory,
    Poll,
    PollReply,
    Report,
    VerifierKey,
    Workload,
)
from node_agent.worker import Worker
from tests.sim.catalog import COMPOSE_NODES
from tests.sim.compose import ComposeClient, Topologies
from tests.sim.disk import Disk, DiskPath
from tests.sim.engine import Client, Docker
from tests.sim.network import Network, Serve
from tests.sim.supplies import Kept, SimBlobs, Supplies, Way
from tests.sim.world import Incarnation, World

HEARTBEAT_MS = 30_000
POLL_WAIT_MS = 25_000
INVENTORY = Inventory(
    engines=("docker", "compose"),
    cpu_count=64,
    memory_mib=524_288,
    disk_free_mib=1_000_000,
    architecture="x86_64",
    operating_system="linux",
)


@dataclass
class NodeClock:
    """`skew_ms` is how far the wall clock is off; the steady one is right, as of its start."""

    world: World
    host: Node
    inc: Incarnation
    base_ms: int = 0

    def __post_init__(self) -> None:
        self.base_ms = self.host.skew_ms

    def now_ms(self) -> int:
        return self.world.now + self.host.skew_ms

    def steady_ms(self) -> int:
        return self.world.now + self.base_ms


class Flag:
    """Like threading.Event, and it says so when it is set."""

    def __init__(self, said: Callable[[], None]) -> None:
        self._said, self._set = said, False

    def set(self) -> None:
        self._set = True
        self._said()

    def clear(self) -> None:
        self._set = False

    def is_set(self) -> bool:
        return self._set


class SimWorker:
    """`worker.Worker` without its thread."""

    def __init__(self, turns: Turns, clock: NodeClock, may_end: Callable[[Worker], bool]) -> None:
        self.instance = turns.instance
        self.woken = False
        self._turns, self._clock, self._may_end = turns, clock, may_end
        self._world, self._inc, self._host = clock.world, clock.inc, clock.host
        self._busy = False
        self._ended = False
        self._aside: tuple[Aside, threading.Event] | None = None
        self._call_off: Callable[[], None] = lambda: None

    @property
    def published(self) -> Any:
        return self._turns.published

    def start(self) -> None:
        self._plan(0)

    def wake(self, *, dirty: bool = False) -> None:
        if dirty:
            self._turns.dirty = True
        self.woken = True
        if self._busy:
            return
        if self._aside is not None:
            aside, called_off = self._aside
            if not self._turns.superseded(aside):
                return
            called_off.set()
            self._aside = None
        self._plan(0)

    def _plan(self, after_ms: int) -> None:
        self._plan_job(after_ms, self._run)

    def _plan_job(self, after_ms: int, job: Callable[[], None]) -> None:
        self._call_off()
        label = f"turn of {self.instance}"
        self._call_off = self._world.at(after_ms, self._inc, label, job)

    def _run(self) -> None:
        if self._ended:
            return
        self.woken, self._busy = False, True
        after = self._turns.turn()
        self._busy = False
        self._go_on(after)

    def _go_on(self, after: Next) -> None:
        match after:
            case Aside():
                self._begin(after)
            case Finished():
                if self._may_end(cast("Worker", self)):
                    self._ended = True
                else:
                    self._plan(0)
            case Rest(until_ms):
                rest_ms = max(1, until_ms - self._clock.steady_ms())
                self._plan(0 if self.woken else rest_ms)
            case Again():
                self._plan(1)

    def _begin(self, aside: Aside) -> None:
        """What takes long takes its time; then it is tried, and a little later its end is known."""
        called_off = threading.Event()
        self._aside = (aside, called_off)
        took_ms = self._world.rng.randint(1, 40)
        if isinstance(aside.step, Pull):
            images = aside.step.workload.images
            took_ms = max(self._host.docker.behaviour(one.digest).pull_ms for one in images)
        self._plan_job(took_ms, lambda: self._attempt(aside, called_off))

    def _attempt(self, aside: Aside, called_off: threading.Event) -> None:
        outcome = self._turns.attempt(aside, called_off)

        def finish() -> None:
            self._aside = None
            self._busy = True
            after = self._turns.finish(aside, outcome)
            self._busy = False
            self._go_on(after)

        self._plan_job(self._world.rng.choice((0, 1, 30)), finish)


class NoLink:
    """In place of `link.Link`: the simulated network is the way out."""

    def __init__(self, *_: object) -> None:
        pass


class WatchedStore(StateStore):
    """Tells which tasks were taken over for good."""

    taken: Callable[[InstanceTask], None]

    def accept(self, task: InstanceTask, now_ms: int) -> InstanceState:
        state = super().accept(task, now_ms)
        self.taken(task)
        return state


def _no_tunnels(keys: tuple[SshKey, ...]) -> Installed:
    """A simulated host has no users."""
    assert keys == ()
    return Installed()


class SimAgent(Agent):
    """The agent without its threads."""

    def __init__(self, store: StateStore, host: Node, inc: Incarnation) -> None:
        client = Client(host.docker, inc)
        engines: dict[str, Any] = {"docker": client}
        if host.name in COMPOSE_NODES:
            engines["compose"] = ComposeClient(host.topologies, inc)
        kept = host.kept
        super().__init__(
            store, engines, kept.state, secret_files=kept.files, ssh_keys=_no_tunnels
        )
        clock = NodeClock(host.world, host, inc)
        self._clock = cast("Any", clock)
        way = Way(host.world, inc, host.key, host.ask, clock)
        self._secrets = SecretKeeper(kept.files, cast("Any", way), store, cast("Any", clock))
        self._blobs = cast(
            "Any", SimBlobs(kept.blobs, way, store, clock, self._say_changed)
        )
        self._connected_at_ms = clock.now_ms()
        self._ports = HostPorts(store, is_free=lambda port: port not in host.docker.foreign_ports)
        self._changed = cast("Any", Flag(lambda: host.report_soon(inc)))
        self.client = client
        for engine in engines.values():
            engine.wanted = self.wanted
            engine.lacking = partial(host.supplies.lacking, kept)

    def begin(self) -> None:
        for instance, state in sorted(self._store.instances().items()):
            if state.proof is None:
                self._ensure_worker(instance)

    def wanted(self, instance: str) -> Workload | None:
        state = self._store.instance(instance)
        target = state.target if state is not None else None
        if state is None or not isinstance(target, Present):
            return None
        return wanted_workload(target, state.progress)

    def _take_inventory(self) -> Inventory:
        try:
            self.client.facts()
        except EngineFailure as failure:
            errors = dict.fromkeys(sorted(self._engines), failure.message)
            return INVENTORY.model_copy(update={"engines": (), "engine_errors": errors})
        return INVENTORY.model_copy(update={"engines": tuple(sorted(self._engines))})

    def report_now(self) -> Report:
        self._changed.clear()
        report = self._report(self._take_inventory())
        self._complete = report.complete
        return report

    def reported(self, report: Report) -> None:
        self._acks.forget(report.acks)

    def engine_changed(self, instance: str | None) -> None:
        self._engine_changed(instance)

    def heartbeat(self) -> None:
        self._strays.note_time()

    def take(self, reply: PollReply) -> bool:
        return self._take_tasks(reply.tasks)

    def cannot_write(self) -> None:
        self._say_refusal("state_not_written: no space left on device")

    @property
    def owes(self) -> bool:
        return bool(self._acks)


@dataclass
class Node:
    """One host. `server` gives who serves reports and polls now, if anybody does."""

    name: str
    world: World
    network: Network
    topologies: Topologies
    disk: Disk
    server: Callable[[str], Serve | None]
    taken: Callable[[str, InstanceTask], None]
    ask_plane: Callable[[str, bytes], Any]
    supplies: Supplies
    kept: Kept
    skew_ms: int = 0
    inc: Incarnation | None = None
    agent: SimAgent | None = None
    lives: int = 0
    joins: int = 0
    joined: bool = False
    joined_at_ms: int = 0
    key: AgentKey = field(init=False)
    sent: list[bytes] = field(default_factory=list)

    @property
    def docker(self) -> Docker:
        return self.topologies.docker

    def __post_init__(self) -> None:
        self._reporting = False
        self._report_planned = False
        self._backoff_ms = 250

    def join(self, verifiers: tuple[VerifierKey, ...]) -> None:
        """Its identity on disk, as joining leaves it."""
        self.disk.full = False
        self.joins, self.joined, self.joined_at_ms = self.joins + 1, True, self.world.now
        self.key = AgentKey.from_hex(f"{sum(self.name.encode()) + 10_000 * self.joins:064x}")
        inc = Incarnation(self.name, 0)
        wanted, self.world.crash_wanted = self.world.crash_wanted, lambda *_: False
        store = StateStore(self._folder(inc), self.world.now)
        store.save_identity(
            Identity(
                node=self.name, server="sim", private_key=self.key.reveal_private(),
                verifiers=verifiers, min_version=1, joined_at_ms=self.world.now,
            )
        )  # fmt: skip
        store.close()
        self.world.crash_wanted = wanted
        inc.alive = False

    def _folder(self, inc: Incarnation) -> Any:
        return FolderDisk(cast("Any", DiskPath(self.disk, inc, "state")))

    # --- life ---

    def boot(self) -> None:
        """Starts the agent, unless it runs."""
        if not self.joined or (self.inc is not None and self.inc.alive):
            return
        self.lives += 1
        inc = self.inc = Incarnation(self.name, self.lives)
        self.agent = None
        self._reporting = self._report_planned = False
        self.world.say(inc, "agent starts")
        self.world.guarded(inc, "start of the agent", lambda: self._boot(inc))

    def _boot(self, inc: Incarnation) -> None:
        try:
            store = WatchedStore(self._folder(inc), self.world.now + self.skew_ms)
        except (StateUnusable, OSError) as error:
            self.world.say(inc, f"can't start: {error}")
            inc.alive = False
            self.world.at(2_000, None, "restart", self.boot)
            return
        store.taken = lambda task: self.taken(self.name, task)
        agent = SimAgent(store, self, inc)
        self.agent = agent
        agent.begin()
        self.docker.changed = lambda instance: self._told(inc, instance)
        self.report_soon(inc)
        self.world.at(10, inc, "poll", lambda: self._poll(inc))
        self.world.at(HEARTBEAT_MS, inc, "heartbeat", lambda: self._heartbeat(inc))

    def ask(self, what: str, body: bytes) -> Any:
        """What it waits for: an answer at once, or none. Raises Away."""
        if self.network.fails(self.name):
            raise Away("unreachable", "no answer")
        return self.ask_plane(what, body)

    def stop(self, why: str) -> None:
        if self.inc is not None and self.inc.alive:
            self.world.kill(self.inc, why)

    def power_cut(self) -> None:
        self.stop("a power cut")
        self.disk.power_cut()
        for held in self.docker.held.values():
            self.docker.end(held, 137)
        self.topologies.power_cut()
        self.kept.power_cut()

    def lose_state(self) -> None:
        """The folder with all that its agent knows is gone; what runs is not. It joins anew."""
        self.stop("its state folder is gone")
        self.joined = False
        self.disk.wipe()
        self.topologies.lose_forms()
        self.kept.lose_state()

    def _told(self, inc: Incarnation, instance: str | None) -> None:
        if inc.alive and self.agent is not None and self.world.now >= self.docker.away_until:
            self.agent.engine_changed(instance)

    # --- reports ---

    def report_soon(self, inc: Incarnation, after_ms: int = 20) -> None:
        if not self._report_planned and not self._reporting and inc.alive:
            self._report_planned = True
            self.world.at(after_ms, inc, "report", lambda: self._report(inc))

    def _heartbeat(self, inc: Incarnation) -> None:
        assert self.agent is not None
        self.agent.heartbeat()
        self.report_soon(inc)
        self.world.at(HEARTBEAT_MS, inc, "heartbeat", lambda: self._heartbeat(inc))

    def _report(self, inc: Incarnation) -> None:
        agent = self.agent
        assert agent is not None
        self._report_planned, self._reporting = False, True
        try:
            report = agent.report_now()
        except OSError:
            self._failed(inc)
            return
        self.world.say(inc, _told_of(report))
        for one in report.workloads:
            if one.proof is not None and one.proof.clean:
                self.topologies.proved(one.instance)
        body = self.key.seal(report.canonical(), REPORT_TYPE)
        self.sent.append(body)

        def answered(content: bytes | None, why: str) -> None:
            if content is None:
                self.world.say(inc, f"report not taken: {why}")
                self._failed(inc)
                return
            self._backoff_ms, self._reporting = 250, False
            agent.reported(report)
            if agent._changed.is_set() or agent.owes:
                self.report_soon(inc)

        self.network.ask(inc, self.server("report"), body, 0, answered)

    def _failed(self, inc: Incarnation) -> None:
        self._reporting = False
        self.report_soon(inc, self._backoff_ms)
        self._backoff_ms = min(self._backoff_ms * 2, 30_000)

    # --- tasks ---

    def _poll(self, inc: Incarnation) -> None:
        agent = self.agent
        assert agent is not None
        poll = Poll(
            node=self.name, sent_at_ms=self.world.now + self.skew_ms, report_seq=0,
            wait_ms=POLL_WAIT_MS,
        )  # fmt: skip
        body = self.key.seal(poll.canonical(), POLL_TYPE)

        def answered(content: bytes | None, why: str) -> None:
            pause_ms = 3_000 if content is None else self._take(inc, agent, content)
            self.world.at(pause_ms, inc, "poll", lambda: self._poll(inc))

        self.network.ask(inc, self.server("poll"), body, POLL_WAIT_MS, answered)

    def hear(self, reply: PollReply) -> None:
        """An answer that nobody asked for now."""
        inc, agent = self.inc, self.agent
        if inc is not None and inc.alive and agent is not None:

            def job() -> None:
                self._take(inc, agent, reply.canonical())

            self.world.guarded(inc, "an old answer", job)

    def _take(self, inc: Incarnation, agent: SimAgent, content: bytes) -> int:
        """How long to wait before it asks again, in milliseconds."""
        try:
            reply = PollReply.model_validate_json(content)
        except ValidationError:
            return 3_000
        try:
            believed = agent.take(reply)
        except OSError:
            agent.cannot_write()
            return 3_000
        return 1_000 if reply.tasks or not believed else 1


def _told_of(report: Report) -> str:
    found = [
        f"{w.instance.rpartition('/')[2]}={w.phase.value}"
        + (f"({w.reason.value})" if w.reason else "")
        for w in report.workloads
    ]
    acks = [f"{'ack' if ack.accepted else ack.code}:{ack.task_id[:6]}" for ack in report.acks]
    said = "" if report.complete else " incomplete"
    return f"reports {report.report_seq % 10**9}{said} {' '.join(found)} {' '.join(acks)}".rstrip()


__all__ = ["Accepted", "Node", "SimWorker"]
