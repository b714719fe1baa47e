"""What holds actions back that would otherwise be carried out.

Rules, in the order in which they are asked; the first reason found is the one that is told:
- a suspension or a rule to leave drift alone beats everything, what the nodes say included;
- then what an instance itself gave as a reason (`plan.instances`);
- then tombstones, windows, manual mode, and only after these the order: nobody waits for a change
  of a neighbour that is itself put off;
- then the budgets for what is left to remove, and last the GPUs and ports that are still in use.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from reconciler.core.actions import Action, Held, Launch, Remove, Replace, action_id
from reconciler.core.desired import Desired
from reconciler.core.names import InstanceKey
from reconciler.core.observed import Observed
from reconciler.core.plan import Finding, terms
from reconciler.core.plan.budgets import approval_hint, budget_holds, removals_id, removals_wanted
from reconciler.core.plan.order import hold_for_order
from reconciler.core.records import UNBEGUN, InstanceRecord, node_name
from reconciler.core.trust.standing import CODES

IGNORED = "ignored"
NEEDS_A_PERSON = CODES | frozenset(
    {
        "awaiting_apply",
        "canary_stepped_back",
        "dependency_cycle",
        "name_in_use_on_node",
        "removal_budget",
        "secret_missing",
        "tombstone_missing",
        "version_deprecated",
    }
)
"""Held until somebody does something; everything else that is held goes on by itself."""

Records = Mapping[InstanceKey, InstanceRecord]


@dataclass(frozen=True)
class Situation:
    """All that guards look at beside the actions. `plan_id` is empty once somebody applied it."""

    desired: Desired
    observed: Observed
    records: Records
    moving: Mapping[InstanceKey, InstanceRecord]
    now_ms: int
    plan_id: str = ""


def hold_back(actions: Sequence[Action], case: Situation) -> list[Action]:
    """The same actions, each with why it is held if it is."""
    closed = terms.closed_projects(actions, case.desired.guards, case.now_ms)
    actions = [_by_time(_by_people(action, case), case, closed) for action in actions]
    actions = hold_for_order(actions, case.desired, case.observed, case.records, case.moving)
    holds = budget_holds(actions, case.desired.guards, case.records, case.now_ms)
    actions = [
        replace(a, held=a.held or holds.get(a.instance)) if isinstance(a, Remove) else a
        for a in actions
    ]
    return hold_for_resources(actions, case.records)


def _by_people(action: Action, case: Situation) -> Action:
    above = terms.suspension(action, case.desired, case.now_ms) or terms.known_drift(
        action, case.desired.guards, case.now_ms
    )
    held = above or action.held or terms.tombstone(action, case.desired, case.records)
    return action if held is action.held else replace(action, held=held)


def _by_time(action: Action, case: Situation, closed: Mapping[str, Held]) -> Action:
    if action.held is not None:
        return action
    held = terms.timing(action, closed)
    if held is None and case.desired.guards.manual and case.plan_id:
        held = terms.awaiting(action, case.records, case.plan_id)
    return action if held is None else replace(action, held=held)


def guard_findings(actions: Sequence[Action], records: Records) -> list[Finding]:
    """What people have to do for what is held to go ahead, once for each reason."""
    wanted = removals_id(removals_wanted(actions, records))
    found = {
        (held.code, held.message): f"AppInstance/{action.instance}"
        for action in reversed(actions)
        if (held := action.held) is not None and held.code in NEEDS_A_PERSON
    }
    hints = {"removal_budget": approval_hint(wanted)}
    return [
        Finding("stalled", code, name, message, hints.get(code, ""))
        for (code, message), name in sorted(found.items())
    ]


def hold_for_resources(actions: Sequence[Action], records: Records) -> list[Action]:
    """Holds launches whose GPUs, fixed host ports or name others on the node still occupy."""
    if all(a.held is not None or not isinstance(a, Launch | Replace) for a in actions):
        return list(actions)
    occupied, named = _occupied(records), dict(_named(records))
    for action in actions:
        # Who is called so goes before who was: both may want the name once it is free.
        if isinstance(action, Launch | Replace) and action.workload.instance == action.instance:
            named.setdefault((action.node, action.instance), action.instance)
    by_instance = {a.instance: a for a in actions}
    result: list[Action] = []
    for action in actions:
        if not isinstance(action, Launch | Replace) or action.held is not None:
            result.append(action)
            continue
        owner = named.setdefault((action.node, action.workload.instance), action.instance)
        others = {
            occupied[claim]
            for claim in _claims(action)
            if occupied.get(claim, action.instance) != action.instance
        }
        if owner != action.instance:
            result.append(replace(action, held=_name_taken(action, owner)))
        else:
            result.append(_wait_for(action, others, by_instance) if others else action)
    return result


def _name_taken(action: Launch | Replace, owner: InstanceKey) -> Held:
    if owner == action.workload.instance:
        message = f"on {action.node} that is the name of {owner}, which would be replaced"
        return Held("name_in_use_on_node", message)
    return Held(
        "name_in_use_on_node",
        f"{owner} was renamed and is still called {action.workload.instance} on {action.node}; "
        f"give this one another name, or wait until {owner} has gone from there",
    )


def _wait_for(
    action: Launch | Replace, others: set[InstanceKey], by_instance: Mapping[InstanceKey, Action]
) -> Action:
    names = ", ".join(sorted(others))
    waits = {action_id(by_instance[o]) for o in others if o in by_instance}
    held = Held("resource_in_use", f"waits for GPUs or ports still held by {names}")
    return replace(action, held=held, depends_on=tuple(sorted({*action.depends_on, *waits})))


def _claims(action: Launch | Replace) -> list[tuple[str, str, str]]:
    workload = action.workload
    gpus = [(action.node, "gpu", uuid) for uuid in workload.limits.gpu_uuids]
    ports = [(action.node, "port", str(p.host)) for p in workload.ports if p.host is not None]
    return [*gpus, *ports]


def _occupied(records: Records) -> dict[tuple[str, str, str], InstanceKey]:
    taken: dict[tuple[str, str, str], InstanceKey] = {}
    for key in sorted(records):
        record = records[key]
        if record.state in UNBEGUN:
            continue
        for uuid in (*record.former_gpu_uuids, *record.gpu_uuids):
            taken[(record.node, "gpu", uuid)] = key
        for port in (*record.former_host_ports, *record.host_ports):
            taken[(record.node, "port", str(port))] = key
    return taken


def _named(records: Records) -> dict[tuple[str, str], InstanceKey]:
    """(node, the name it has there) → whose it is."""
    return {
        (record.node, node_name(record)): key
        for key, record in records.items()
        if record.state not in UNBEGUN
    }
