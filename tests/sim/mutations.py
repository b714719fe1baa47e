"""Bugs planted in the real code, one at a time, each of which the simulator has to catch.

A mutation that is not caught means that the simulator is too weak, not that the bug is harmless.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

from node_agent import acting, converge, disk, status, tasks
from node_agent import services as node_services
from node_agent.blob_files import BlobFiles
from node_agent.engines.base import EngineFailure
from node_agent.ports import HostPorts
from node_agent.secret_keeper import SecretKeeper
from node_agent.state import StateStore
from node_agent.steps import Fault, Remove, RepairServices, Start
from node_agent.wire import FailureReason, Phase
from reconciler import cycle, execute, loop, observe, record
from reconciler.core import accept, lifecycle
from reconciler.core.checks import catalog
from reconciler.core.lifecycle import Trigger
from reconciler.core.observed import Known, NodeSeen, Unknown
from reconciler.core.plan import guards, moves
from reconciler.ports import Changes
from reconciler.server.agent_api import AgentApi
from renderers import common, services
from tests.fakes.store import MemoryStore
from tests.sim.catalog import DRAFT, digest_of
from tests.sim.disk import OS
from tests.sim.faults import KINDS
from tests.sim.node import INVENTORY
from tests.sim.run import Runner

Bend = Callable[[ExitStack], None]


@dataclass(frozen=True)
class Mutation:
    """`kinds` are the faults that bring it out; `seeds_max` is how soon it must be caught, from the
    seed `start` on: what is rare begins not far from where it was seen.
    """

    name: str
    bend: Bend
    seeds_max: int = 60
    kinds: Sequence[str] = KINDS
    start: int = 0


@dataclass(frozen=True)
class Caught:
    name: str
    rule: str
    seeds: int
    message: str


def _set(target: Any, name: str, wrong: Any) -> Bend:
    def bend(stack: ExitStack) -> None:
        stack.enter_context(patch.object(target, name, wrong))

    return bend


# --- the control plane ---------------------------------------------------------------------------

_node_seen, _settle_removal = observe.node_seen, lifecycle._settle_removal
_accept = accept.accept
_outcome, _make_task = lifecycle._outcome, execute.make_task


def _silence_is_emptiness(node: Any, now_ms: int, *rest: Any) -> Any:
    seen = _node_seen(node, now_ms, *rest)
    if isinstance(seen, Unknown):
        return Known(NodeSeen(node.name, "", 0, 0, INVENTORY, {}))
    return seen


def _holds_nothing(*given: Any, **named: Any) -> Any:
    return replace(_accept(*given, **named), held={})


def _gone_unproved(known: Any, report: Any, now_ms: int) -> Any:
    if report.phase is Phase.REMOVING:
        return lifecycle._move(lifecycle._freed(known), known.state, Trigger.REMOVED, now_ms)
    return _settle_removal(known, report, now_ms)


def _ready_at_once(known: Any, report: Any) -> Any:
    up = report.phase is Phase.STARTING and lifecycle.allowed(known.state, Trigger.READY)
    return Trigger.READY if up else _outcome(known, report)


def _without_intents(ports: Any, after: Any, settled: Any, outcome: Any, *rest: Any) -> None:
    _write(ports, after, settled, replace(outcome, intents=()), *rest)


_write = record.write


def _tasks_before_records(ports: Any, after: Any, settled: Any, outcome: Any, *rest: Any) -> None:
    ports.store.commit(Changes(intents=outcome.intents))
    _write(ports, after, settled, replace(outcome, intents=()), *rest)


def _events_apart(ports: Any, after: Any, settled: Any, outcome: Any, *rest: Any) -> None:
    ports.store.commit(Changes(events=(*settled.events, *outcome.events)))
    _write(ports, after, settled, outcome, *rest)


def _nobody_leads(stack: ExitStack) -> None:
    """The lease alone may be late, and what is written alone comes too late: both go."""
    stack.enter_context(patch.object(loop.Loop, "_lead", lambda _: True))
    stack.enter_context(patch.object(MemoryStore, "_refuse_unless_leading", lambda *_: None))


def _takes_any_report(self: Any, node: Any, report: Any, payload: bytes, now_ms: int) -> bool:
    store = self._deps.store
    seq = store.node(node.name).report_seq + 1
    saved: bool = store.save_report(node.name, payload.decode(), seq, report.last_seq, now_ms)
    store.acknowledge(node.name, report.acks)
    return saved


def _another_image(*given: Any) -> Any:
    return _image(*given).model_copy(update={"digest": digest_of(DRAFT)})


_image = common._image


def _whoever_revokes(*given: Any) -> str:
    word = _word(*given)
    return "promoted" if word == "revoked" else word


_word = catalog._word


def _new_correlation(action: Any, known: Any, seq: int, signer: Any) -> Any:
    return _make_task(action, replace(known, correlation_id="0" * 32), seq, signer)


def _applied_devices_only_of_target(records: Any) -> Any:
    bare = {k: replace(r, former_gpu_uuids=(), former_host_ports=()) for k, r in records.items()}
    return _occupied(bare)


_occupied = guards._occupied


# --- the agent -----------------------------------------------------------------------------------


def _starts_beside(current: Any, wanted: Any, units: Any, progress: Any, now_ms: int) -> Any:
    return Start(current, wanted)


def _forgets_numbers(self: Any) -> int:
    return 0


def _in_memory_only(self: Any, found: Any) -> None:
    self._instances[found.instance] = found


def _written_in_place(self: Any, name: str, text: str) -> None:
    path = self._folder / name
    handle = OS.open(path, OS.O_WRONLY | OS.O_CREAT | OS.O_TRUNC, 0o600)
    handle.write(text)
    OS.fsync(handle)
    OS.fsync(OS.open(path.parent, OS.O_DIRECTORY))


def _unflushed(handle: Any) -> None:
    pass


def _runs_so_it_is_ready(target: Any, running: Any, *rest: Any) -> Any:
    if running is not None:
        return status._Standing(Phase.READY)
    return _standing(target, running, *rest)


_standing = status._standing


def _proof_without_looking(self: Any, found: Any, instance: str) -> Any:
    proof = _prove(self, found, instance)
    zero = {"containers": 0, "networks": 0, "volumes": 0, "paths": 0}
    return proof.model_copy(update=zero)


_prove = acting.Acting._prove


def _tears_down_nothing(target: Any, units: Any, progress: Any, now_ms: int) -> Any:
    return _tear_down(target, (), progress, now_ms)


_tear_down = converge._tear_down


def _proves_what_stands(stack: ExitStack) -> None:
    stack.enter_context(patch.object(converge, "_tear_down", _tears_down_nothing))
    stack.enter_context(patch.object(acting.Acting, "_prove", _proof_without_looking))


def _believes_all(stack: ExitStack) -> None:
    stack.enter_context(patch.object(tasks, "_judge_freshness", lambda *_: None))


def _runs_again(self: Any, task_id: str) -> bool:
    return False


# --- services ------------------------------------------------------------------------------------


def _waits_for_nobody(one: Any, ones: Any) -> Any:
    return ()


def _takes_all_for_altered(current: Any, wanted: Any, units: Any, *rest: Any) -> Any:
    """What runs is taken away before the next form is put in force, changed or not."""
    other = next((one for one in units if one.alive and one.spec_hash != wanted.spec_hash), None)
    names = tuple(one.name for one in other.services if one.alive) if other is not None else ()
    if other is not None and names and current.status != "running":
        return RepairServices(other, wanted, names)
    return _topology(current, wanted, units, *rest)


_topology = converge._topology


def _version_in_all(*given: Any) -> Any:
    """As a label of the version would, were it on the containers."""
    found = _laid_out(*given)
    env = {"VERSION": given[0].version}
    return tuple(one.model_copy(update={"env": env}) for one in found)


_laid_out = services._laid_out


def _sweeps_old_forms(self: Any, state: Any, step: Any, called_off: Any) -> Any:
    """Volumes go with the form that is not needed any more."""
    outcome = _carry_out(self, state, step, called_off)
    if isinstance(step, Remove) and step.unit.engine == "compose":
        self.engine("compose").sweep(step.unit.instance)
    return outcome


_carry_out = acting.Acting.carry_out


def _stays_down(one: Any) -> Any:
    """Whoever ends is taken for down for good."""
    return Fault(FailureReason.EXITED, "it ended") if one.lost else None


# --- what a launch takes -------------------------------------------------------------------------


def _starts_without(self: Any, *given: Any, **named: Any) -> None:
    with suppress(EngineFailure):
        _fetch(self, *given, **named)


_fetch = SecretKeeper.provide


def _provides_late(self: Any, *given: Any, starts: bool = False) -> None:
    """Secrets are fetched just before a start, when what ran is stopped."""
    if starts:
        _provide(self, *given, starts=starts)


_provide = acting.Acting.provide


MUTATIONS: tuple[Mutation, ...] = (
    Mutation(
        "Unknown is taken for empty",
        _set(observe, "node_seen", _silence_is_emptiness),
        kinds=("network", "power", "crash"),
        start=50,
    ),
    Mutation("no removal budget", _set(guards, "budget_holds", lambda *_: {}), kinds=("commits",)),
    Mutation(
        "what is in quarantine is not held",
        _set(cycle, "accept", _holds_nothing),
        seeds_max=150,
        kinds=("commits",),
        start=60,
    ),
    Mutation(
        "gone without a proof",
        _set(lifecycle, "_settle_removal", _gone_unproved),
        seeds_max=200,
        start=40,
    ),
    Mutation("started is as good as ready", _set(lifecycle, "_outcome", _ready_at_once)),
    Mutation("the intent is forgotten", _set(record, "write", _without_intents)),
    Mutation("tasks are stored before their records", _set(record, "write", _tasks_before_records)),
    Mutation("events are stored on their own", _set(record, "write", _events_apart)),
    Mutation("the lease is ignored", _nobody_leads, kinds=("second", "pause")),
    Mutation(
        "a GPU is given twice",
        _set(guards, "hold_for_resources", lambda actions, _: list(actions)),
        kinds=(),
    ),
    Mutation(
        "a GPU is free once nobody wants it",
        _set(guards, "_occupied", _applied_devices_only_of_target),
        seeds_max=400,
        kinds=(),
        start=30,
    ),
    Mutation("a rename is a removal", _set(moves, "_followed", lambda *_, **__: {}), kinds=()),
    Mutation("a replayed report counts", _set(AgentApi, "_save", _takes_any_report)),
    Mutation("another image than was named", _set(common, "_image", _another_image)),
    Mutation("a task of another operation", _set(execute, "make_task", _new_correlation)),
    Mutation(
        "starts before the old one stopped",
        _set(converge, "_start_on_trial", _starts_beside),
        kinds=(),
    ),
    Mutation(
        "believes tasks late and out of order",
        _believes_all,
        kinds=("replay", "network", "skew"),
        start=40,
    ),
    Mutation(
        "forgets its last number",
        _set(StateStore, "last_seq", property(_forgets_numbers)),
        seeds_max=200,
        kinds=("replay", "network"),
        start=100,
    ),
    Mutation(
        "runs a task again",
        _set(StateStore, "was_executed", _runs_again),
        seeds_max=300,
        kinds=("replay", "network"),
        start=25,
    ),
    Mutation(
        "acknowledges before it is on disk",
        _set(StateStore, "_save", _in_memory_only),
        kinds=("crash", "power"),
    ),
    Mutation(
        "state is written in place",
        _set(disk.FolderDisk, "write", _written_in_place),
        kinds=("crash", "disk", "power"),
    ),
    Mutation("state is not flushed", _set(OS, "fsync", _unflushed), kinds=("power",)),
    Mutation("calls ready what merely runs", _set(status, "_standing", _runs_so_it_is_ready)),
    Mutation("proves what it did not remove", _proves_what_stands, kinds=()),
    Mutation(
        "a service does not wait for others",
        _set(node_services, "unmet", _waits_for_nobody),
        kinds=(),
    ),
    Mutation(
        "an upgrade takes all services away",
        _set(converge, "_topology", _takes_all_for_altered),
        kinds=(),
    ),
    Mutation("a version is part of each service", _set(services, "_laid_out", _version_in_all)),
    Mutation(
        "volumes go with an old form",
        _set(acting.Acting, "carry_out", _sweeps_old_forms),
        kinds=(),
    ),
    Mutation(
        "a lost service stays down",
        _set(node_services, "down_for_good", _stays_down),
        kinds=("services",),
    ),
    Mutation(
        "what is revoked is launched",
        _set(catalog, "_word", _whoever_revokes),
        seeds_max=150,
        kinds=("commits",),
        start=40,
    ),
    Mutation(
        "starts without its secret",
        _set(SecretKeeper, "provide", _starts_without),
        kinds=("secrets",),
    ),
    Mutation(
        "what runs goes before the next has its secret",
        _set(acting.Acting, "provide", _provides_late),
        kinds=("secrets",),
    ),
    Mutation(
        "a blob that was altered counts",
        _set(BlobFiles, "is_intact", BlobFiles.is_there),
        kinds=("blobs", "drift"),
    ),
    Mutation(
        "what is found tells nothing of its engine and port",
        _set(HostPorts, "note_found", lambda *_: None),
        kinds=("lost",),
    ),
)


def caught(mutation: Mutation) -> Caught | None:
    """How a mutation was caught; None when it was not, within its seeds."""
    runner = Runner()
    for number in range(mutation.seeds_max):
        with ExitStack() as stack:
            mutation.bend(stack)
            result = runner.run(mutation.start + number, mutation.kinds)
        if result.rule:
            return Caught(mutation.name, result.rule, number + 1, result.message)
    return None


def table(found: Sequence[Caught]) -> str:
    """mutation, the rule that objected, seeds needed."""
    lines = [f"{one.name:<42} {one.rule:<10} {one.seeds:>3}" for one in found]
    return "\n".join((f"{'mutation':<42} {'caught by':<10} seeds", *lines))
