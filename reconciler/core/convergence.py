"""Which commits have come true, and how long that took since they were first seen. Pure.

Rules:
- A commit changed an instance when an action for it is in the plan whose cause is a change, carried
  out or held. The record keeps which commit and since when, so that a restart forgets nothing.
- It has come true for the instance once that is converged on what the commit wanted. It has come
  true once it did so for every instance it changed.
- A later commit that wants something else of an instance takes it over. What was overtaken before
  it came true is told of nobody.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from reconciler.core.actions import Action
from reconciler.core.desired import Desired, Target
from reconciler.core.names import InstanceKey, Revision
from reconciler.core.records import Change, InstanceRecord

Records = Mapping[InstanceKey, InstanceRecord]
_GONE = "gone"


@dataclass(frozen=True)
class Arrival:
    """A commit that has come true; `took_ms` counts from when it was first seen."""

    revision: Revision
    took_ms: int


def followed(
    records: Records,
    actions: tuple[Action, ...],
    desired: Desired,
    seen_at_ms: int,
    now_ms: int,
) -> tuple[Records, tuple[Arrival, ...]]:
    """The records with what is still to come true, and what has. `seen_at_ms` is of `desired`."""
    changed: dict[InstanceKey, InstanceRecord] = {}
    for action in actions:
        record = records.get(action.instance)
        if record is None or action.cause != "change":
            continue
        wanted = _wanted(desired.targets.get(action.instance))
        if record.change is None or record.change.wanted != wanted:
            new = Change(desired.revision, seen_at_ms, wanted)
            changed[action.instance] = replace(record, change=new)
    waited = {key: record for key, record in records.items() if record.change is not None}
    arrived: dict[Revision, int] = {}
    for key, record in (waited | changed).items():
        change = record.change
        if change is None or not _converged(record):
            continue
        changed[key] = replace(record, change=None)
        if change.wanted == _wanted(desired.targets.get(key)):
            arrived[change.revision] = change.seen_at_ms
    if not changed:
        return records, ()
    after = {**records, **changed}
    awaited = {record.change.revision for record in after.values() if record.change is not None}
    return after, tuple(
        Arrival(revision, max(0, now_ms - since_ms))
        for revision, since_ms in sorted(arrived.items())
        if revision not in awaited
    )


def _wanted(target: Target | None) -> str:
    """What it should come to, in one word that is another when that is."""
    if target is None or target.instance.run == "decommissioned":
        return _GONE
    return f"{target.workload.spec_hash} {target.instance.run} on {target.instance.node}"


def _converged(record: InstanceRecord) -> bool:
    return any(one.type == "Converged" and one.status == "True" for one in record.conditions)
