"""What holds actions back that would otherwise be carried out: budgets and resources in use.

Rules: a removal budget that is exceeded holds every removal, not just the last few, because the
next pass would take the rest. A launch waits for the GPUs and ports a removal has yet to free.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from reconciler.core.actions import Action, Held, Launch, Remove, Replace, action_id
from reconciler.core.desired import Guards
from reconciler.core.names import InstanceKey
from reconciler.core.records import InstanceRecord, State


def removal_budget(guards: Guards, owned: int) -> int:
    """How many instances may be under removal at once; a fleet of one can still shrink."""
    by_percent = -(-owned * guards.removals_max_percent // 100)
    return max(1, min(guards.removals_max, by_percent)) if guards.removals_max else 0


def hold_removals(
    actions: Sequence[Action], guards: Guards, records: Mapping[InstanceKey, InstanceRecord]
) -> list[Action]:
    """Holds all removals when there are more than the budget, those already under way included."""
    owned = [r for r in records.values() if r.state is not State.DECOMMISSIONED]
    under_way = sum(r.state is State.DECOMMISSIONING for r in owned)
    begun = {r.key for r in owned if r.state is State.DECOMMISSIONING}
    fresh = [
        a for a in actions if isinstance(a, Remove) and a.held is None and a.instance not in begun
    ]
    budget = removal_budget(guards, len(owned))
    if len(fresh) + under_way <= budget:
        return list(actions)
    held = Held(
        "removal_budget",
        f"{len(fresh) + under_way} removals exceed the budget of {budget} for one pass "
        f"({guards.removals_max}, {guards.removals_max_percent} % of {len(owned)}); "
        "raise guards in the Environment if this is meant",
    )
    over = {a.instance for a in fresh}
    return [
        replace(a, held=held) if isinstance(a, Remove) and a.instance in over else a
        for a in actions
    ]


def hold_for_resources(
    actions: Sequence[Action],
    records: Mapping[InstanceKey, InstanceRecord],
) -> list[Action]:
    """Holds launches whose GPUs or fixed host ports another instance on the node still occupies."""
    occupied = _occupied(records)
    by_instance = {a.instance: a for a in actions}
    result: list[Action] = []
    for action in actions:
        if not isinstance(action, Launch | Replace) or action.held is not None:
            result.append(action)
            continue
        others = {
            occupied[claim]
            for claim in _claims(action)
            if occupied.get(claim, action.instance) != action.instance
        }
        result.append(_wait_for(action, others, by_instance) if others else action)
    return result


def _wait_for(
    action: Launch | Replace, others: set[InstanceKey], by_instance: Mapping[InstanceKey, Action]
) -> Action:
    names = ", ".join(sorted(others))
    waits = tuple(sorted(action_id(by_instance[o]) for o in others if o in by_instance))
    held = Held("resource_in_use", f"waits for GPUs or ports still held by {names}")
    return replace(action, held=held, depends_on=waits)


def _claims(action: Launch | Replace) -> list[tuple[str, str, str]]:
    workload = action.workload
    gpus = [(action.node, "gpu", uuid) for uuid in workload.limits.gpu_uuids]
    ports = [(action.node, "port", str(p.host)) for p in workload.ports if p.host is not None]
    return [*gpus, *ports]


def _occupied(
    records: Mapping[InstanceKey, InstanceRecord],
) -> dict[tuple[str, str, str], InstanceKey]:
    taken: dict[tuple[str, str, str], InstanceKey] = {}
    for key, record in sorted(records.items()):
        if record.state in (State.DECOMMISSIONED, State.REQUESTED):
            continue
        for uuid in record.gpu_uuids:
            taken[(record.node, "gpu", uuid)] = key
        for port in record.host_ports:
            taken[(record.node, "port", str(port))] = key
    return taken
