"""How far a plan reaches: what a reviewer should see before anything else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from reconciler.core.actions import Control, Launch, Move, Remove, Replace
from reconciler.core.names import InstanceKey
from reconciler.core.plan import Plan
from reconciler.core.records import InstanceRecord, State


@dataclass(frozen=True)
class Radius:
    """Counts of what is carried out now (`held` apart), and whom it touches, all sorted.

    `percent` is the share of running instances that is changed or removed, rounded up; `gpus` are
    those of the touched instances.
    """

    starts: int
    changes: int
    removals: int
    moves: int
    held: int
    instances: int
    percent: int
    gpus: int
    tenants: tuple[str, ...]
    projects: tuple[str, ...]
    nodes: tuple[str, ...]
    removed: tuple[InstanceKey, ...]


def blast_radius(plan: Plan, records: Mapping[InstanceKey, InstanceRecord]) -> Radius:
    """Of the plan as it would be carried out now, against our inventory."""
    ready = plan.ready
    touched = sorted({action.instance for action in ready})
    there = [r for r in records.values() if r.state is not State.DECOMMISSIONED]
    disturbed = {a.instance for a in ready if isinstance(a, Replace | Control | Remove)}
    return Radius(
        starts=sum(isinstance(a, Launch) for a in ready),
        changes=sum(isinstance(a, Replace | Control) for a in ready),
        removals=sum(isinstance(a, Remove) for a in ready),
        moves=sum(isinstance(a, Move) for a in ready),
        held=len(plan.held),
        instances=len(there),
        percent=-(-100 * len(disturbed) // len(there)) if there else 0,
        gpus=sum(_gpus(action, records) for action in ready),
        tenants=tuple(sorted({key.split("/")[0] for key in touched})),
        projects=tuple(sorted({key.rpartition("/")[0] for key in touched})),
        nodes=tuple(sorted({action.node for action in ready if not isinstance(action, Move)})),
        removed=tuple(sorted(a.instance for a in ready if isinstance(a, Remove))),
    )


def _gpus(action: object, records: Mapping[InstanceKey, InstanceRecord]) -> int:
    if isinstance(action, Launch | Replace):
        return len(action.workload.limits.gpu_uuids)
    if isinstance(action, Control | Remove) and action.instance in records:
        return len(records[action.instance].gpu_uuids)
    return 0
