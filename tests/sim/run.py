"""One seed from the first commit to rest: mischief, then peace, then what must be true at rest."""

from __future__ import annotations

import sys
from collections.abc import Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import structlog

from node_agent import disk as agent_disk
from node_agent import runtime, secret_files
from node_agent.link import Away
from node_agent.wire import Report
from reconciler import observe
from reconciler.adapters.schema_files import load_schemas
from reconciler.core.names import InstanceKey
from reconciler.core.records import InstanceRecord, node_name
from reconciler.core.records import State as LifeState
from reconciler.core.schema import SchemaSet
from reconciler.core.validate import ValidateMemo
from reconciler.custody.signing import newest_verifier
from reconciler.cycle import Pass, preview
from tests.fakes.secrets import FakeSecrets
from tests.fakes.state_source import FakeRemote
from tests.fakes.store import MemoryStore
from tests.sim import commits
from tests.sim.catalog import NODES, is_topology
from tests.sim.commits import ORDINARY, UNLUCKY, State
from tests.sim.compose import Topologies
from tests.sim.control import SETTINGS, ControlPlane, Services
from tests.sim.disk import FCNTL, OS, Disk
from tests.sim.engine import Docker
from tests.sim.faults import KINDS, Faults
from tests.sim.invariants import Checker
from tests.sim.network import Network, Serve
from tests.sim.node import Node, NoLink, SimWorker
from tests.sim.supplies import Kept, made, refusal
from tests.sim.world import Violation, World

CHAOS_MS_MAX = 150_000
CHAOS_TICKS = 700
PEACE_MS_MAX = 60 * 60_000
PERSON_MS = 150_000
"""After that long somebody looks at what is stalled and commits something."""
TICKS_MAX = 5_000
LOST_MS_MAX = 5 * 60_000
_REVOKED = {"artifact_revoked", "illegal_step", "not_accepted", "reference_quarantined"}
"""What is told of a version whose image is revoked, for as long as it is offered."""


@dataclass(frozen=True)
class Result:
    """How a seed ended. `rule` is empty when all held; `lines` is the end of the trace."""

    seed: int
    ticks: int
    trace_hash: str
    lines: tuple[str, ...]
    rule: str = ""
    message: str = ""

    def __str__(self) -> str:
        tail = "\n".join(self.lines)
        return (
            f"seed {self.seed}: {self.rule}: {self.message}\n{tail}\n"
            f"again: python -m tests.sim --seed {self.seed} --trace"
        )


@dataclass
class Simulation:
    """Everything there is in one run."""

    seed: int
    kinds: frozenset[str]
    schemas: SchemaSet
    memo: ValidateMemo
    folder: Path
    """For what is on disks and in memory beside the state of agents."""
    keep_trace: bool = False
    repo: State = field(default_factory=State)
    history: list[State] = field(default_factory=list)

    def __post_init__(self) -> None:
        world = self.world = World(self.seed, self.keep_trace)
        rng = self.rng = world.rng
        chosen = frozenset(kind for kind in KINDS if kind in self.kinds and rng.random() < 0.45)
        self.remote, self.store = FakeRemote(), MemoryStore()
        offline_ms = int(SETTINGS.node_offline_after_s * 1000)
        self.checker = Checker(world, self.store, offline_ms)
        self.faults = Faults(world, chosen)
        self.network = Network(world)
        self.services = Services(
            world, self.remote, self.store, FakeSecrets(seed="simulated"), self.faults.exists,
            self.checker.committed, self.checker.accepted,
        )  # fmt: skip
        self.services.on_report = self.checker.reported
        self.verifiers = (newest_verifier(self.services.secrets, "tasks"),)
        self.services.supplies.set_secret()
        self.planes = [
            ControlPlane(name, self.services, self.schemas, self.memo, self._passed)
            for name in ("cp-a", "cp-b")
        ]
        self.nodes = {name: self._node(name) for name in NODES}
        self.faults.nodes, self.faults.planes = self.nodes, self.planes
        self.faults.services, self.faults.network = self.services, self.network
        self.faults.join = self._join_anew
        world.crash_wanted = self.faults.crash_wanted
        world.on_crash = self._died
        world.after_tick = self._after_tick
        self.rest = False
        world.say("seed", f"{self.seed}: {' '.join(sorted(chosen)) or 'nothing'} may go wrong")

    def _node(self, name: str) -> Node:
        docker = Docker(name, self.world, self.faults.behaviour, self.checker)
        topologies = Topologies(docker)
        docker.topologies = topologies.alive
        self.checker.dockers[name], self.checker.topologies[name] = docker, topologies
        node = Node(
            name, self.world, self.network, topologies, Disk(self.world), self._server,
            self.checker.taken, self._ask, self.services.supplies, Kept(self.folder / name),
        )  # fmt: skip
        self._join(node)
        return node

    def _join(self, node: Node) -> None:
        """With a token of its own, and a new key."""
        if node.joined:
            return
        name, now = node.name, self.world.now
        node.join(self.verifiers)
        self.store.add_join_token(f"{name} {node.joins}", name, now + 1)
        self.store.redeem_join_token(f"{name} {node.joins}", name, node.key.public_key, now)
        self.checker.joined(name)

    def _join_anew(self, node: Node) -> None:
        if node.joined:
            return
        self.world.say(node.name, "joins anew")
        self._join(node)
        node.boot()
        for plane in self.planes:
            if plane.alive:
                plane.wake("join")

    def _server(self, what: str) -> Serve | None:
        there = [plane for plane in self.planes if plane.alive]
        if not there:
            return None
        plane = there[0] if len(there) == 1 else self.rng.choice(there)
        return plane.report if what == "report" else plane.poll

    def _ask(self, what: str, body: bytes) -> Any:
        there = [plane for plane in self.planes if plane.alive]
        if not there:
            raise Away("unreachable", "nobody listens")
        return self.rng.choice(there).give(what, body)

    def _died(self, inc: Any) -> None:
        host = self.nodes.get(inc.name)
        boot = host.boot if host else next(p for p in self.planes if p.name == inc.name).boot
        if self.faults.on or inc.name != "cp-b":
            self.world.at(self.rng.choice((50, 1_000, 8_000, 40_000)), None, "restart", boot)

    def _after_tick(self) -> None:
        if _escaped:
            raise Violation("escaped", _escaped[0])
        for name, node in self.nodes.items():
            self.checker.clocks[name] = node.skew_ms
        self.checker.tick()

    # --- the story ---

    def run(self) -> None:
        world = self.world
        self.commit(commits.first(self.rng))
        self.faults.begin(self.rng)
        self.planes[0].boot()
        if "second" in self.faults.kinds:
            self.planes[1].skew_ms = self.rng.randint(-400, 400)
            self.planes[1].boot()
        for node in self.nodes.values():
            node.boot()
        self._commit_later()
        until = world.now + self.rng.randint(30_000, CHAOS_MS_MAX)
        while world.now < until and world.ticks < CHAOS_TICKS and world.step():
            pass
        self._peace()
        self._converge()
        self._at_rest()
        if "services" in self.faults.kinds:
            self._lose_a_service()

    def commit(self, state: State) -> None:
        """Pushes, as somebody does who knows what is meant by it."""
        # What is revoked stays so, also where an old commit is brought back.
        self.repo = state = replace(state, revoked=state.revoked | self.repo.revoked)
        if self.rng.random() < 0.1:
            revision = self.remote.force_push(state.files(), f"change {len(self.history)}")
        else:
            revision = self.remote.push(state.files(), f"change {len(self.history)}")
        self.history.append(state)
        self.checker.meanings[revision] = state.meaning()
        said = " ".join(
            f"{w.name}:{w.version}@{w.node}{'' if w.run == 'running' else '/' + w.run}"
            for _, w in sorted(state.wishes.items())
        )
        self.world.say("commit", f"{revision[:8]} {said} {_told(state)}".rstrip())
        for plane in self.planes:
            if plane.alive and self.rng.random() < 0.7:
                plane.wake("webhook")

    def _commit_later(self) -> None:
        def go() -> None:
            if not self.faults.on:
                return
            edits = (*ORDINARY, *UNLUCKY) if "commits" in self.faults.kinds else ORDINARY
            state = self.repo
            if self.rng.random() < 0.12:
                state = self.rng.choice(self.history)
            else:
                for _ in range(self.rng.choice((1, 1, 2))):
                    state = self.rng.choice(edits)(state, self.rng)
            self.commit(state)
            self._commit_later()

        self.world.at(self.rng.randint(500, 25_000), None, "commit", go)

    def _peace(self) -> None:
        self.world.say("peace", "nothing goes wrong any more")
        self.faults.end()
        if self.planes[1].alive and self.rng.random() < 0.5:
            self.planes[1].stop("is shut down")
        self.commit(commits.healed(self.repo))

    def _converge(self) -> None:
        world = self.world
        ends, looks = world.now + PEACE_MS_MAX, world.now + PERSON_MS
        while not self.rest:
            if world.now > ends or world.ticks > TICKS_MAX or not world.step():
                raise Violation("liveness", f"never at rest: {'; '.join(self._unrest())}")
            if world.now > looks:
                looks = world.now + PERSON_MS
                self._somebody_looks()

    def _somebody_looks(self) -> None:
        """A version that was given up is not tried again before somebody changes something."""
        last, state = self.store.last_pass(), self.repo
        for key, record in self.store.records().items():
            name = key.rpartition("/")[2]
            if name not in state.wishes:
                continue
            if record.state is LifeState.FAILED or self._lacks_a_service(record):
                state = commits.bumped(state, name)
            elif record.former_gpu_uuids or record.former_host_ports:
                # Stopped within an upgrade: until it ran, it holds what it may have to go back to.
                state = commits.started(state, name)
        for finding in last.findings if last else ():
            name = str(finding.get("object", "")).rpartition("/")[2]
            if finding.get("code") == "looks_renamed":
                for other in self.repo.wishes:
                    state = commits.bumped(state, other)
            if finding.get("level") != "stalled" or name not in state.wishes:
                continue
            if finding.get("code") == "name_in_use_on_node":
                state = commits.without(state, name)
            else:
                state = commits.bumped(state, name)
        if state is not self.repo:
            self.commit(state)

    def _lacks_a_service(self, record: InstanceRecord) -> bool:
        """One that is not vital was given up: it stays down until somebody changes something."""
        known = self.store.node(record.node)
        text = known.report_json if known is not None else None
        report = Report.model_validate_json(text) if text else None
        return any(
            service.phase == "failed" and not service.vital
            for one in (report.workloads if report else ())
            if one.instance == str(node_name(record))
            for service in one.services
        )

    def _passed(self, plane: ControlPlane, done: Pass) -> None:
        summary = done.summary
        codes = sorted({str(finding.get("code")) for finding in summary.findings})
        held = sorted({a.held.code for a in done.plan.held if a.held is not None})
        self.world.say(
            plane.name,
            f"pass {summary.revision[:8]} {summary.result}: {summary.actions} actions, "
            f"{summary.held} held, {summary.waiting} waiting {' '.join((*held, *codes))}".rstrip(),
        )
        for event in done.events:
            kind = event.type.rpartition(".")[2]
            self.world.say(plane.name, f"event {kind} {event.instance}")
        stalled = {one.get("code") for one in summary.findings if one.get("level") != "info"}
        over = summary.result == "done" or (summary.result == "stalled" and stalled <= _REVOKED)
        if not self.faults.on and over and not self._unrest():
            self.rest = True

    # --- what must be true at rest ---

    def _unrest(self) -> list[str]:
        """What is not yet as the repo says, in words."""
        found: list[str] = []
        records = self.store.records()
        wanted = {commits.key_of(n): w for n, w in self.repo.wishes.items()}
        for key, record in records.items():
            if str(key) not in wanted and record.state is not LifeState.DECOMMISSIONED:
                found.append(f"{key} is {record.state.value}, and nobody wants it")
        for name, wish in sorted(wanted.items()):
            found += self._unrest_of(name, wish)
        found += [
            f"{i.kind} of {i.instance} is {i.state}"
            for i in self.store.open_intents(self.world.now)
        ]
        found += self._left_over()
        return found

    def _unrest_of(self, key: str, wish: commits.Wish) -> Iterator[str]:
        record = self.store.records().get(InstanceKey(key))
        alive = sorted(
            (name, held.unit.spec_hash)
            for name, node in self.nodes.items()
            for held in node.docker.alive()
            if self.checker.belongs(name, held.unit) == self.checker.life(key)
        )
        if wish.run == "decommissioned":
            if record is not None and record.state is not LifeState.DECOMMISSIONED:
                yield f"{key} is {record.state.value}"
        elif wish.run == "stopped":
            if alive:
                yield f"{key} should be stopped and runs: {alive}"
        elif record is None or record.state is not LifeState.RUNNING:
            yield f"{key} is {record.state.value if record else 'unknown'}"
        elif record.node != wish.node or alive != [(wish.node, record.applied_hash)]:
            yield f"{key} should run on {wish.node} once, and runs as {alive}"
        elif record.applied_version != wish.version:
            yield f"{key} runs {record.applied_version} instead of {wish.version}"
        elif is_topology(wish.version):
            yield from self.nodes[wish.node].topologies.unrest(str(node_name(record)))

    def _left_over(self) -> Iterator[str]:
        """Containers and volumes of what is gone."""
        records = self.store.records()
        there = {
            (record.node, str(node_name(record)))
            for record in records.values()
            if record.state is not LifeState.DECOMMISSIONED
        }
        for name, node in self.nodes.items():
            left = {h.unit.instance for h in node.docker.held.values() if not h.foreign}
            left |= set(node.docker.volumes.values()) | node.topologies.owners()
            for instance in sorted(left):
                if (name, instance) in self.checker.asked and (name, instance) not in there:
                    yield f"{instance} is left over on {name}"

    def _lose_a_service(self) -> None:
        """Once more, now that nobody changes anything: it comes back by itself, or is given up."""
        world, records = self.world, self.store.records()
        there = [
            (topologies, key)
            for node in self.nodes.values()
            for topologies in (node.topologies,)
            for key, container in sorted(topologies.fake.containers.items())
            if container.status == "running"
        ]
        if not there:
            return
        topologies, key = self.rng.choice(there)
        record = next(
            one
            for one in records.values()
            if one.state is LifeState.RUNNING and str(node_name(one)) == key[0]
        )
        world.say("fault", f"{key[1]} of {key[0]} is lost once more")
        topologies.befall(key, "kill")
        ends = world.now + LOST_MS_MAX
        while topologies.unrest(key[0]):
            if world.now > ends or not world.step():
                left = "; ".join(topologies.unrest(key[0]))
                raise Violation("liveness", f"what was lost stays lost: {left}")
            known = self.store.records()[record.key]
            if known.state is LifeState.FAILED or self._lacks_a_service(known):
                return

    def _at_rest(self) -> None:
        """A second plan has nothing in it."""
        plane = self.planes[0]
        loop = plane.loop
        assert loop is not None
        state = loop._memory.state
        if state is None:
            return
        plan, _ = preview(state, plane.ports, SETTINGS)
        if not plan.empty:
            raise Violation("liveness", f"a second plan is not empty: {plan.actions[:3]}")
        self.checker.watch_intents()


def _told(state: State) -> str:
    words = [f"{name} broken ({how})" for name, how in sorted(state.broken.items())]
    words += [] if state.entitled else ["no entitlement"]
    words += [] if state.environment == "good" else [f"environment {state.environment}"]
    words += ["emptied"] if state.emptied else []
    words += [f"{image} revoked" for image in sorted(state.revoked)]
    return f"({', '.join(words)})" if words else ""


# --- driving it ----------------------------------------------------------------------------------

_escaped: list[str] = []


def _note_escaped(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """The product logs a mistake of its own and goes on; here it is the end."""
    if event.get("event") in ("pass_crashed", "unexpected"):
        error = sys.exc_info()[1]
        trace = error.__traceback__ if error else None
        where = ""
        while trace is not None:
            where = f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"
            trace = trace.tb_next
        _escaped.append(f"{error!r} at {where}")
    raise structlog.DropEvent


class _Inline:
    """In place of a pool of threads."""

    def __init__(self, *_: object) -> None:
        pass

    def __enter__(self) -> _Inline:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def map(self, call: Any, items: Any) -> list[Any]:
        return [call(item) for item in items]


@contextmanager
def simulated() -> Iterator[None]:
    """Puts the simulated disk, no threads and no logs in place of the real ones."""
    before = structlog.get_config()
    structlog.configure(
        processors=[_note_escaped],
        wrapper_class=structlog.make_filtering_bound_logger(40),
        cache_logger_on_first_use=False,
    )
    with (
        patch.object(agent_disk, "os", OS),
        patch.object(agent_disk, "fcntl", FCNTL),
        patch.object(runtime, "Worker", SimWorker),
        patch.object(secret_files, "_made", made),
        patch.object(secret_files, "_refusal", refusal),
        patch.object(runtime, "Link", NoLink),
        patch.object(runtime, "agent_version", lambda: "simulated"),
        patch.object(observe, "ThreadPoolExecutor", _Inline),
    ):
        try:
            yield
        finally:
            structlog.configure(**before)


class Runner:
    """Runs seeds one after another; what was parsed for one serves the next."""

    def __init__(self) -> None:
        self.schemas = SchemaSet.build(load_schemas())
        self.memo = ValidateMemo()

    def run(self, seed: int, kinds: Sequence[str] = KINDS, *, keep_trace: bool = False) -> Result:
        _escaped.clear()
        with simulated(), TemporaryDirectory() as folder:
            simulation = Simulation(
                seed, frozenset(kinds), self.schemas, self.memo, Path(folder), keep_trace
            )
            world, rule, message = simulation.world, "", ""
            try:
                simulation.run()
            except Violation as violation:
                rule, message = violation.rule, str(violation).removeprefix(f"{violation.rule}: ")
        lines = tuple(world.lines)
        return Result(seed, world.ticks, world.trace_hash, lines, rule, message)


__all__ = ["Random", "Result", "Runner", "simulated"]
