"""How much may be removed at once, and who agreed to more.

Rules:
- A budget that is exceeded holds every removal in its scope, not just the last few, because the
  next pass would take the rest.
- An approval names a set of removals by content, so that it fits whatever commit it comes with and
  nothing but that set. What of it is still held by something else stays approved.
- What began is neither held nor counted as new: it is under way, and takes its share of the budget.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from reconciler.core.actions import Action, Held, Remove
from reconciler.core.desired import Budget, Guards
from reconciler.core.names import InstanceKey, content_hash
from reconciler.core.records import InstanceRecord, State

Records = Mapping[InstanceKey, InstanceRecord]
_KIND = "AppInstance"


@dataclass(frozen=True)
class Scope:
    """What a budget is for; `instances` are all there are in it, those under removal included."""

    name: str
    budget: Budget
    instances: frozenset[InstanceKey]
    leaving: int

    @property
    def allowance(self) -> int:
        return removal_budget(self.budget, len(self.instances))


def removal_budget(budget: Budget, owned: int) -> int:
    """How many instances may be under removal at once; a fleet of one can still shrink."""
    by_percent = -(-owned * budget.removals_max_percent // 100)
    return max(1, min(budget.removals_max, by_percent)) if budget.removals_max else 0


def removals_wanted(actions: Iterable[Action], records: Records) -> tuple[Remove, ...]:
    """Every removal that has not begun, whatever holds it."""
    return tuple(
        action
        for action in actions
        if isinstance(action, Remove)
        and records[action.instance].state is not State.DECOMMISSIONING
    )


def removals_id(removals: Sequence[Remove]) -> str:
    """The name of exactly this set; empty for no removals."""
    if not removals:
        return ""
    return content_hash("removals", sorted((r.instance, r.node, r.epoch) for r in removals))[:16]


def approved_sets(guards: Guards, now_ms: int) -> frozenset[str]:
    """Sets of removals that a person agreed to, as long as that is in force."""
    return frozenset(one.removals for one in guards.approvals if now_ms < one.until_ms)


def budget_holds(
    actions: Sequence[Action], guards: Guards, records: Records, now_ms: int
) -> dict[InstanceKey, Held]:
    """Instance → why its removal is held. Approved ones are not, but count like all others."""
    wanted = removals_wanted(actions, records)
    approved = approved_sets(guards, now_ms)
    if removals_id(wanted) in approved:
        return {}
    fresh = {removal.instance for removal in wanted if removal.held is None}
    asking = {key for key in fresh if records[key].approved_removals not in approved}
    holds: dict[InstanceKey, Held] = {}
    for scope in _scopes(guards, records, wanted):
        count = len(fresh & scope.instances) + scope.leaving
        if count > scope.allowance:
            held = Held("removal_budget", _over(scope, count, removals_id(wanted)))
            holds |= {key: holds.get(key, held) for key in asking & scope.instances}
    return holds


def _scopes(guards: Guards, records: Records, wanted: Iterable[Remove]) -> Iterator[Scope]:
    owned = [r for r in records.values() if r.state is not State.DECOMMISSIONED]
    yield _scope("", guards, owned)
    for kind, budget in sorted(guards.per_kind.items()):
        if kind == _KIND:
            yield _scope(f" of kind {kind}", budget, owned)
    if guards.per_node is not None:
        for node in sorted({removal.node for removal in wanted}):
            there = [record for record in owned if record.node == node]
            yield _scope(f" on node {node}", guards.per_node, there)


def _scope(name: str, budget: Budget, owned: Sequence[InstanceRecord]) -> Scope:
    leaving = sum(record.state is State.DECOMMISSIONING for record in owned)
    return Scope(name, budget, frozenset(record.key for record in owned), leaving)


def _over(scope: Scope, count: int, wanted: str) -> str:
    lower = f"the lower of {scope.budget.removals_max} and {scope.budget.removals_max_percent} %"
    return (
        f"{count} removals{scope.name} exceed the budget of {scope.allowance} at once ({lower} of "
        f"{len(scope.instances)}); if all are meant, approve set {wanted} in the Environment"
    )


def approval_hint(wanted: str) -> str:
    """What to write into the Environment to agree to a set of removals."""
    return (
        "under spec.guards.approvals of the Environment: "
        f'- {{removals: "{wanted}", reason: <why>, until: <when, RFC 3339>}}; '
        "what is to stay gets its file back"
    )
