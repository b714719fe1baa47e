"""What must hold at every tick, told from what was committed and what is there, not from the code.

The rules, by the names under which a violation is told:
- single: of one instance never two units alive anywhere, save those that somebody started by hand;
- named: nothing runs that no revision accepted so far named for that instance;
- inventory: nothing is taken down or swept but what was asked for, nothing foreign is ever touched;
- removal: an instance goes only when the repo says so; never over budget, never unseen;
- events: each once, each life a walk through TRANSITIONS, under the id of its operation;
- tasks: numbers rise, no task is taken over twice, none after its time, none is lost;
- ready: what a record calls running was seen ready with that hash;
- revoked: nothing is launched of which an image is revoked, unless it runs there already;
- kept: what should run and runs alone is not stopped;
- devices: no GPU is in two living units of one node;
- forms: no service is started but those of the form in force;
- order: what a service waits for is as it has to be when it is started;
- replaced: a container that is well and of which nothing changed is not made anew;
- volumes: a volume of a topology goes with its instance only;
- proof: of what is proved to be gone there is nothing;
- escaped: no exception but the simulated end of a process leaves a component (`world.guarded`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from node_agent.state import InstanceTask
from node_agent.units import Unit
from reconciler.core.lifecycle import EVENT, TRANSITIONS, correlation_id
from reconciler.core.names import ActionId, InstanceKey
from reconciler.core.records import Event, InstanceRecord, Intent, State, node_name
from reconciler.ports import Changes
from tests.fakes.store import MemoryStore
from tests.sim.catalog import digest_of, digests_of
from tests.sim.commits import Form, Meaning, Wish
from tests.sim.compose import Topologies
from tests.sim.engine import Docker, Held
from tests.sim.world import Violation, World

Records = Mapping[InstanceKey, InstanceRecord]
_Spot = tuple[State | None, tuple[str, ...]]
"""A state, and the events of the step into it that are still to come."""
_NEXT = {
    "queued": {"accepted", "refused", "expired", "superseded"},
    "expired": {"accepted", "refused", "superseded"},
    "accepted": {"superseded"},
    "refused": {"superseded"},
    "superseded": set(),
}


def walk(spots: frozenset[_Spot], event: str) -> frozenset[_Spot]:
    """Where a life may stand after one more event."""
    found: set[_Spot] = set()
    for state, pending in _quiet(spots):
        if pending:
            if pending[0] == event:
                found.add((state, pending[1:]))
            continue
        for (before, _), step in TRANSITIONS.items():
            if before == state and step.events[:1] == (event,):
                found.add((step.to, step.events[1:]))
    return frozenset(found)


def _quiet(spots: frozenset[_Spot]) -> frozenset[_Spot]:
    """With the steps that make no event."""
    found = set(spots)
    for state, pending in spots:
        if not pending:
            found |= {
                (s.to, ()) for (b, _), s in TRANSITIONS.items() if b == state and not s.events
            }
    return frozenset(found)


_UNBEGUN = (State.DECOMMISSIONED, State.REQUESTED)


@dataclass
class Checker:
    """Hears of everything that matters. `dockers` are the nodes' engines by name."""

    world: World
    store: MemoryStore
    offline_after_ms: int
    dockers: dict[str, Docker] = field(default_factory=dict)
    topologies: dict[str, Topologies] = field(default_factory=dict)
    meanings: dict[str, Meaning] = field(default_factory=dict)
    allowed: dict[str, list[Form]] = field(default_factory=dict)
    """What may be wanted of an instance by what is accepted; several where the repo asks for more
    than there is."""
    budget: tuple[int, int] = (0, 0)
    clocks: dict[str, int] = field(default_factory=dict)
    """Node → how far its clock is off, at present."""

    def __post_init__(self) -> None:
        self._records: dict[InstanceKey, InstanceRecord] = {}
        self._intents: dict[ActionId, Intent] = {}
        self._lives: dict[str, str] = {}
        self._born = 0
        self._digests: dict[str, set[str]] = {}
        self._launched: dict[tuple[str, str, str], str] = {}
        self.asked: set[tuple[str, str]] = set()
        self._removals: set[tuple[str, str]] = set()
        self._revoked: set[str] = set()
        self._seen_ready: set[tuple[str, str, str]] = set()
        self._event_ids: set[str] = set()
        self._spots: dict[str, frozenset[_Spot]] = {}
        self._operations: dict[str, str] = {}
        self._sequence: dict[str, int] = {}
        self._taken: dict[str, tuple[int, set[str]]] = {}
        self._report_seq: dict[str, int] = {}
        self._reports: dict[str, list[tuple[int, bool]]] = {}
        self._engine_operations = -1
        self._accepted = ""
        self._kept: dict[str, dict[str, str]] = {}

    def broken(self, rule: str, message: str) -> None:
        raise Violation(rule, message)

    def life(self, key: str) -> str:
        """The same for what an instance is called before and after it was renamed."""
        if key not in self._lives:
            self._born += 1
            self._lives[key] = f"{key}#{self._born}"
        return self._lives[key]

    def belongs(self, node: str, unit: Unit) -> str | None:
        """The life that a unit was launched for; None when nobody asked for it."""
        return self._launched.get((node, unit.instance, unit.spec_hash))

    # --- what is accepted ---

    def accepted(self, who: str, revision: str) -> None:
        meaning = self.meanings.get(revision)
        if meaning is None:
            return
        if revision != self._accepted:
            self.world.say(who, f"accepts {revision[:8]}")
            self._accepted = revision
        known = {*self.allowed, *meaning.forms, *(str(key) for key in self._records)}
        there = {key for key, forms in self.allowed.items() if forms != [None]}
        # Also what is still on its way out bears its name.
        there |= {str(key) for key, record in self._records.items() if record.state not in _UNBEGUN}
        for key in sorted(known):
            form, before = meaning.form(key), self.allowed.get(key, [None])
            maybe = meaning.perhaps.get(key)
            if maybe is not None:
                self.allowed[key] = before = _lately(before, maybe)
                self._digests.setdefault(self.life(key), set()).update(digests_of(maybe.version))
            if form == "doubt" and meaning.moved.get(key) not in there:
                continue
            if form == "doubt":
                form = None  # It says so in vain: there is one of that name already.
            self.allowed[key] = [form] if _sure(form) else _lately(before, form)
            if isinstance(form, Wish):
                self._digests.setdefault(self.life(key), set()).update(digests_of(form.version))
        self._revoked |= {digest_of(image) for image in meaning.revoked}
        if meaning.rest is None:
            self.budget = meaning.budget

    # --- what is written down ---

    def committed(self, who: str, changes: Changes) -> None:
        before, after = self._records, dict(self.store.records())
        self._no_crash(changes)
        for event in changes.events:
            self._event(event)
        for record in changes.records:
            self._record(before.get(record.key), record)
        for intent in changes.intents:
            self._intent(intent, before, after)
        self._budget(changes, before, after)
        self._records = after
        self.watch_intents()

    def _no_crash(self, changes: Changes) -> None:
        if changes.summary is not None and "internal: unexpected" in changes.summary.message:
            self.broken("escaped", changes.summary.message)

    def _event(self, event: Event) -> None:
        if event.event_id in self._event_ids:
            self.broken("events", f"{event.type} of {event.instance} is stored under a known id")
        self._event_ids.add(event.event_id)
        name = event.type.removeprefix(EVENT)
        if name == "moved":
            self._lives[event.instance] = self._lives.pop(event.data["from"])
        life = self.life(event.instance)
        spots = walk(self._spots.get(life, frozenset({(None, ())})), name)
        if not spots:
            was = sorted(str(s) for s in self._spots.get(life, ()))
            self.broken("events", f"{name} of {event.instance} does not follow {was}")
        self._spots[life] = spots
        begins = name in ("requested", "moved") or name.endswith("_requested")
        by_itself = name == "rollback_requested" and event.data.get("message", "").startswith("put")
        if (begins and not by_itself) or name == "deploying":
            self._operations[life] = event.correlation_id
        elif self._operations.get(life) != event.correlation_id:
            self.broken("events", f"{name} of {event.instance} has another's correlation id")

    def _record(self, before: InstanceRecord | None, record: InstanceRecord) -> None:
        life = self.life(record.key)
        stands = {s for s, pending in _quiet(self._spots.get(life, frozenset())) if not pending}
        if record.state not in stands:
            told = sorted(map(str, stands))
            self.broken("events", f"{record.key} is {record.state}, its events say {told}")
        wanted = correlation_id(record.key, record.epoch, record.revision)
        kept = before.correlation_id if before is not None else ""
        if record.correlation_id not in (wanted, kept):
            self.broken("events", f"{record.key}: correlation id is not that of its operation")
        if before is not None and record.epoch < before.epoch:
            self.broken("events", f"{record.key}: epoch {before.epoch} → {record.epoch}")
        if record.state is State.RUNNING and (before is None or before.state is not State.RUNNING):
            ready = (record.node, str(node_name(record)), record.applied_hash)
            if ready not in self._seen_ready:
                self.broken("ready", f"{record.key} is called running and was never seen ready")

    def _intent(self, intent: Intent, before: Records, after: Records) -> None:
        record = after[intent.instance]
        if intent.seq <= self._sequence.get(intent.node, 0):
            self.broken("tasks", f"task {intent.seq} for {intent.node} after a later one")
        self._sequence[intent.node] = intent.seq
        if intent.correlation_id != record.correlation_id:
            self.broken("events", f"the task of {intent.instance} belongs to another operation")
        # Stopping, starting and asking once more make no event, but are operations of their own.
        self._operations[self.life(intent.instance)] = intent.correlation_id
        name = str(node_name(record))
        self.world.say("journal", f"{intent.kind} {name} on {intent.node} #{intent.seq}")
        self.asked.add((intent.node, name))
        if intent.kind in ("launch", "replace"):
            self._own_name(intent, name, after)
            self._trusted(intent, record)
            life = self.life(intent.instance)
            self._launched[(intent.node, name, intent.target_hash)] = life
        elif intent.kind == "remove":
            self._removal(intent, before.get(intent.instance))
            self._removals.add((intent.node, name))

    def _trusted(self, intent: Intent, record: InstanceRecord) -> None:
        images = {record.target_digest, *record.target_images}
        there = [
            held
            for held in self.dockers[intent.node].alive(str(node_name(record)))
            if images & {*_images(held)}
        ]
        if not there and (bad := images & self._revoked):
            self.broken("revoked", f"{intent.instance} is launched with {min(bad)}")

    def _own_name(self, intent: Intent, name: str, after: Records) -> None:
        for other in after.values():
            there = other.node == intent.node and node_name(other) == name
            unbegun = other.state in _UNBEGUN
            if there and not unbegun and other.key != intent.instance:
                self.broken(
                    "inventory", f"{intent.instance} is launched over {other.key} on {intent.node}"
                )

    def _removal(self, intent: Intent, record: InstanceRecord | None) -> None:
        key = str(intent.instance)
        if record is None or record.state is State.DECOMMISSIONED:
            self.broken("removal", f"{key} is removed, and there is no record of it")
        elif record.state is not State.DECOMMISSIONING:
            forms = self.allowed.get(key, [None])
            if not any(_may_go(form, record.node) for form in forms):
                self.broken("removal", f"{key} is removed from {record.node}; wanted: {forms}")
            if not self._was_seen(intent):
                self.broken("removal", f"{key} is removed while nobody can see {intent.node}")

    def _was_seen(self, intent: Intent) -> bool:
        """Whether a report that the pass may have read was whole and fresh."""
        began = intent.created_at_ms
        told = self._reports.get(intent.node, [])
        last = [one for one in told if one[0] <= began][-1:]
        since = [one for one in told if one[0] > began]
        fresh = began - self.offline_after_ms - 1_000
        return any(complete and at >= fresh for at, complete in (*last, *since))

    def _budget(self, changes: Changes, before: Records, after: Records) -> None:
        ended = State.DECOMMISSIONED
        owned = [
            key
            for key, record in before.items()
            if record.state is not ended and (key not in after or after[key].state is not ended)
        ]
        leaving = [key for key in owned if before[key].state is State.DECOMMISSIONING]
        leaving = [k for k in leaving if k in after and after[k].state is State.DECOMMISSIONING]
        fresh = [
            intent.instance
            for intent in changes.intents
            if intent.kind == "remove"
            and before[intent.instance].state is not State.DECOMMISSIONING
        ]
        most = max(1, min(self.budget[0], -(-len(owned) * self.budget[1] // 100)))
        if fresh and len(fresh) + len(leaving) > most:
            self.broken(
                "removal", f"{fresh} on top of {leaving}: the budget is {most} of {len(owned)}"
            )

    def watch_intents(self) -> None:
        now = {intent.action_id: intent for intent in self.store.intents()}
        for action, old in self._intents.items():
            new = now.get(action)
            if new is None:
                self.broken("tasks", f"the {old.kind} of {old.instance} is lost")
            elif new.seq == old.seq and new.state not in {old.state, *_NEXT[old.state]}:
                self.broken("tasks", f"{old.kind} of {old.instance}: {old.state} → {new.state}")
            taken = self._taken.get(old.node, (0, set()))[1]
            refused = new is not None and new.state == "refused" != old.state
            if refused and new is not None and new.task_id in taken:
                self.broken("tasks", f"{old.node} refuses a {old.kind} that it took over")
        self._intents = now

    # --- what nodes do ---

    def joined(self, node: str) -> None:
        """Its agent knows nothing of before: what it took over and never said it may take again."""
        known = self.store.node(node)
        last = known.last_task_seq if known is not None else 0
        queued = [i.seq for i in self.store.tasks_for(node, self.world.now)]
        last = min([last, *(seq - 1 for seq in queued)])
        told = {i.task_id for i in self.store.intents() if i.node == node and i.state != "queued"}
        self._taken[node] = (last, self._taken.get(node, (0, set()))[1] & told)
        self._report_seq.pop(node, None)

    def taken(self, node: str, task: InstanceTask) -> None:
        last, known = self._taken.setdefault(node, (0, set()))
        if task.task_id in known:
            self.broken("tasks", f"{node} takes {task.kind} of {task.instance} over twice")
        if task.seq <= last:
            self.broken("tasks", f"{node} takes task {task.seq} after {last}")
        if self.world.now + self.clocks.get(node, 0) > task.expires_at_ms + 1_000:
            self.broken("tasks", f"{node} takes {task.kind} of {task.instance} after its time")
        known.add(task.task_id)
        self._taken[node] = (task.seq, known)
        self.world.say(node, f"takes over {task.kind} of {task.instance} #{task.seq}")

    def reported(self, node: str, saved: bool, text: str) -> None:
        if saved:
            report = json.loads(text)
            if report["report_seq"] <= self._report_seq.get(node, 0):
                self.broken("tasks", f"an old report of {node} replaces a newer one")
            self._report_seq[node] = report["report_seq"]
            self._reports.setdefault(node, []).append((self.world.now, bool(report["complete"])))

    def started(self, node: str, unit: Unit, others: list[Held]) -> None:
        if others:
            names = [held.unit.name for held in others]
            self.broken("single", f"{unit.name} is started on {node} beside {names}")

    def ready(self, node: str, unit: Unit) -> None:
        self._seen_ready.add((node, unit.instance, unit.spec_hash))

    def touched(self, node: str, held: Held, how: str) -> None:
        if held.foreign or (node, held.unit.instance) not in self.asked:
            self.broken("inventory", f"{how} of {held.unit.name} on {node}, which is not ours")

    def swept(self, node: str, instance: str) -> None:
        if (node, instance) not in self._removals:
            self.broken("inventory", f"{instance} is swept on {node}, and nobody removed it")

    # --- what is there ---

    def _volumes(self, node: str, there: Mapping[str, str]) -> None:
        """What is in a volume outlives everything but its instance."""
        for volume, instance in self._kept.get(node, {}).items():
            if volume not in there and (node, instance) not in self._removals:
                self.broken("volumes", f"{volume} is gone from {node}, its instance is not")
        self._kept[node] = dict(there)

    def tick(self) -> None:
        operations = sum(docker.operations for docker in self.dockers.values())
        if operations == self._engine_operations:
            return
        self._engine_operations = operations
        alive: dict[str, list[str]] = {}
        for node, docker in self.dockers.items():
            self._volumes(node, self.topologies[node].fake.volumes)
            gpus: dict[str, str] = {}
            for held in docker.alive():
                if held.forced:
                    continue
                unit = held.unit
                life = self.belongs(node, unit)
                if life is None:
                    self.broken("named", f"{unit.name} runs on {node}, and nobody asked for it")
                elif unknown := {*_images(held)} - self._digests.get(life, set()):
                    self.broken("named", f"{unit.name} runs {min(unknown)}, never named")
                alive.setdefault(str(life), []).append(f"{unit.name} on {node}")
                for gpu in held.gpus:
                    if gpu in gpus:
                        self.broken("devices", f"{gpu} is in {gpus[gpu]} and in {unit.name}")
                    gpus[gpu] = unit.name
        for life, units in alive.items():
            if len(units) > 1:
                self.broken("single", f"{life} is alive more than once: {units}")


def _lately(forms: list[Form], form: Form) -> list[Form]:
    """Each once: one revision is accepted many times."""
    return [*[one for one in forms if one != form][-3:], form]


def _images(held: Held) -> tuple[str, ...]:
    return held.images or (str(held.unit.image_digest),)


def _sure(form: Form) -> bool:
    """Whether it is accepted whatever else is wanted: it needs nothing that others may have."""
    if not isinstance(form, Wish):
        return True
    return not (form.gpus or form.port or form.depends_on or form.moved_from)


def _may_go(form: Form, node: str) -> bool:
    if isinstance(form, Wish):
        return form.run == "decommissioned" or form.node != node
    return form is None
