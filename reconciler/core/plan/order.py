"""The order of actions: a real graph, sorted by what depends on what, then by name.

Rules:
- What starts or changes waits until each instance it depends on runs and its node says it serves.
  Nothing sleeps: the report that says so makes the next pass.
- What goes for good goes after everything that depends on it. One that only changes its node does
  not wait: it comes back, like one that is upgraded. Stopping is not held either, since it takes
  nothing away; who depends on it is told.
- Total: a cycle, which validation refuses, holds what is in it and stalls nobody else. Removals
  ignore one, or nobody could ever get rid of it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from graphlib import TopologicalSorter
from typing import TypeVar

from reconciler.core.actions import (
    Action,
    Control,
    Held,
    Launch,
    Move,
    Remove,
    Replace,
    action_id,
)
from reconciler.core.desired import Desired
from reconciler.core.names import ActionId, InstanceKey, instance_of
from reconciler.core.observed import Observed, Unknown
from reconciler.core.plan import Finding
from reconciler.core.records import UNBEGUN, InstanceRecord, State
from reconciler.core.services import serves

Key = TypeVar("Key", bound=str)
Edges = Mapping[InstanceKey, Sequence[InstanceKey]]
Records = Mapping[InstanceKey, InstanceRecord]

_RANK = {"move": 0, "remove": 1, "control": 2, "replace": 3, "launch": 4}
_DONE = {
    "launch": "started", "replace": "changed", "control": "started or stopped", "remove": "removed",
}  # fmt: skip
_NAMES_MAX = 5


@dataclass(frozen=True)
class Graph:
    """Who depends on whom: by manifest for what starts, by record for what goes."""

    needs: Edges
    needed_by: Edges
    cyclic: frozenset[InstanceKey]

    @classmethod
    def of(cls, desired: Desired, records: Records) -> Graph:
        needs = {
            key: target.instance.depends_on
            for key, target in desired.targets.items()
            if target.instance.depends_on
        }
        kept = {key: record.depends_on for key, record in records.items() if record.depends_on}
        needed_by: dict[InstanceKey, list[InstanceKey]] = {}
        for key, others in sorted(kept.items()):
            if records[key].state not in UNBEGUN:
                for other in others:
                    needed_by.setdefault(other, []).append(key)
        return cls(needs, needed_by, in_cycles({**kept, **needs}))


def in_cycles(needs: Mapping[Key, Collection[Key]]) -> frozenset[Key]:
    """Members of cycles, and what lies between two of them."""
    leading = _peeled({key: set(others) & needs.keys() for key, others in needs.items()})
    backwards: dict[Key, set[Key]] = {key: set() for key in leading}
    for key in leading:
        for other in leading.intersection(needs[key]):
            backwards[other].add(key)
    return frozenset(_peeled(backwards))


def _peeled(needs: Mapping[Key, Collection[Key]]) -> set[Key]:
    """What is left after taking out, again and again, whatever needs nothing that is left."""
    needed_by: dict[Key, list[Key]] = {}
    for key, others in needs.items():
        for other in others:
            needed_by.setdefault(other, []).append(key)
    open_needs = {key: len(others) for key, others in needs.items()}
    gone = [key for key, count in open_needs.items() if not count]
    for key in gone:  # grows while it is walked
        for other in needed_by.get(key, ()):
            open_needs[other] -= 1
            if not open_needs[other]:
                gone.append(other)
    return set(needs).difference(gone)


def hold_for_order(
    actions: Sequence[Action],
    desired: Desired,
    observed: Observed,
    records: Records,
    moving: Mapping[InstanceKey, InstanceRecord],
) -> list[Action]:
    """Holds what has to wait for others, naming those, and links it to their actions."""
    graph = Graph.of(desired, records)
    if not graph.needs and not graph.needed_by:
        return list(actions)
    look = _Look(graph, desired, observed, {**records, **moving}, {a.instance: a for a in actions})
    return [look.placed(action) for action in actions]


@dataclass(frozen=True)
class _Look:
    graph: Graph
    desired: Desired
    observed: Observed
    records: Records
    actions: Mapping[InstanceKey, Action]

    def placed(self, action: Action) -> Action:
        if isinstance(action, Remove):
            return self._removal(action)
        starts = isinstance(action, Launch | Replace | Control) and not _stops(action)
        needs = self.graph.needs.get(action.instance, ())
        if not starts or not needs:
            return action
        waiting = [(key, why) for key in sorted(needs) if (why := self._not_ready(key))]
        if action.instance in self.graph.cyclic:
            return _held(action, "dependency_cycle", f"it depends on itself, by {_list(needs)}", ())
        if not waiting:
            return action
        said = f"waits for {_list([f'{key}, which {why}' for key, why in waiting])}"
        return _held(action, "dependency_not_ready", said, self._ids(key for key, _ in waiting))

    def _not_ready(self, key: InstanceKey) -> str:
        """How a dependency stands, where that is not running and ready; else empty."""
        record = self.records.get(key)
        target = self.desired.targets.get(key)
        action = self.actions.get(key)
        if action is not None and action.held is None and not isinstance(action, Move):
            return f"is {_DONE[action.kind]} first"
        if record is None or record.state in UNBEGUN:
            return "does not run yet" if target is not None else "is not there"
        if target is not None and target.instance.run != "running":
            return f"is {target.instance.run} as wanted"
        seen = self.observed.workload(record.node, record.key)
        if isinstance(seen, Unknown):
            return f"nobody can see ({seen.code})"
        report = seen.value
        phase = report.phase.value if report is not None else "gone from its node"
        if record.state is not State.RUNNING:
            return f"is {record.state.value}, {phase}"
        return "" if report is not None and serves(report) else f"is {phase}"

    def _removal(self, action: Remove) -> Action:
        target = self.desired.targets.get(action.instance)
        if target is not None and target.instance.run != "decommissioned":
            return action
        if self.records[action.instance].state is State.DECOMMISSIONING:
            return action
        left = [
            key
            for key in self._dependents(action.instance)
            if not {key, action.instance} <= self.graph.cyclic
        ]
        if not left:
            return action
        said = f"goes after {_list(left)}, which depends on it"
        return _held(action, "dependent_present", said, self._ids(left))

    def _dependents(self, key: InstanceKey) -> list[InstanceKey]:
        """Who depends on it, or on the instance it is a member of."""
        of, found = instance_of(key), list(self.graph.needed_by.get(key, ()))
        above = self.graph.needed_by.get(of, ()) if of != key else ()
        return found + [other for other in above if instance_of(other) != of]

    def _ids(self, keys: Iterable[InstanceKey]) -> tuple[ActionId, ...]:
        return tuple(sorted(action_id(self.actions[key]) for key in keys if key in self.actions))


def _stops(action: Action) -> bool:
    return isinstance(action, Control) and not action.run


def _held(action: Action, code: str, message: str, ids: tuple[ActionId, ...]) -> Action:
    """Another reason to be held stays the one that is told; the order is noted all the same."""
    held = action.held or Held(code, message)
    return replace(action, held=held, depends_on=tuple(sorted({*action.depends_on, *ids})))


def _list(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMES_MAX} more" if len(names) > _NAMES_MAX else ""
    return "; ".join(names[:_NAMES_MAX]) + more


def stopped_dependencies(actions: Sequence[Action], records: Records) -> list[Finding]:
    """Who is left without what it depends on by a stop."""
    needed_by: dict[InstanceKey, list[InstanceKey]] = {}
    for key, record in sorted(records.items()):
        if record.state is State.RUNNING:
            for other in record.depends_on:
                if instance_of(key) != other:  # Its members are stopped with it.
                    needed_by.setdefault(other, []).append(key)
    return [
        Finding(
            "info",
            "dependency_stopped",
            f"AppInstance/{action.instance}",
            f"is stopped although {_list(needed_by[action.instance])} depends on it",
            "stop what depends on it too, or take it out of depends_on",
        )
        for action in actions
        if isinstance(action, Control) and not action.run and action.instance in needed_by
    ]


def ordered(actions: Iterable[Action]) -> tuple[Action, ...]:
    """Dependencies first; among equals moves and removals, since they free what others need.

    Actions that wait for each other in a circle are taken as if they did not.
    """
    by_id = {action_id(action): action for action in actions}
    rank = {key: (_RANK[a.kind], a.node, a.instance) for key, a in by_id.items()}
    needs = {key: {d for d in a.depends_on if d in by_id} for key, a in by_id.items()}
    cyclic = in_cycles(needs)
    graph = TopologicalSorter(
        {key: on - cyclic if key in cyclic else on for key, on in needs.items()}
    )
    graph.prepare()
    result: list[Action] = []
    while graph.is_active():
        batch = sorted(graph.get_ready(), key=lambda key: rank[key])
        result.extend(by_id[key] for key in batch)
        graph.done(*batch)
    return tuple(result)
