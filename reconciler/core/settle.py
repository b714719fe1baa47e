"""What the nodes' reports do to everything we remember, in one step before the plan. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from node_agent.wire import Phase
from reconciler.core import lifecycle
from reconciler.core.actions import PULL_BLOB
from reconciler.core.desired import Desired, Target
from reconciler.core.names import InstanceKey
from reconciler.core.observed import Known, Observed, is_there
from reconciler.core.plan.instances import ACCEPTED_SHOWS_MS
from reconciler.core.records import UNBEGUN, Event, InstanceRecord, Intent, State, node_name

_SETTLED = (State.RUNNING, State.FAILED, State.DECOMMISSIONED)


@dataclass(frozen=True)
class Settled:
    """`records` is the whole inventory, as it was `before` and is now, with the events between."""

    before: Mapping[InstanceKey, InstanceRecord]
    records: Mapping[InstanceKey, InstanceRecord]
    events: tuple[Event, ...]

    @property
    def changed(self) -> tuple[InstanceRecord, ...]:
        return tuple(r for k, r in sorted(self.records.items()) if self.before.get(k) != r)


def settle_all(
    desired: Desired,
    observed: Observed,
    records: Mapping[InstanceKey, InstanceRecord],
    now_ms: int,
    intents: Sequence[Intent] = (),
) -> Settled:
    """`intents` are the open ones: until a node took its task over, its report is older."""
    untaken = {i.instance: i.correlation_id for i in intents if i.state == "queued"}
    pending = {i.instance for i in intents if _is_pending(i, now_ms)}
    after = dict(records)
    events: list[Event] = []
    for key, record in sorted(records.items()):
        if _withdrawn(desired, observed, key, record):
            moved = lifecycle.withdraw(record, now_ms)
        elif key not in pending and _recalled(desired, observed, record):
            moved = lifecycle.recall(record, desired.revision, now_ms)
        elif untaken.get(key) == record.correlation_id:
            # A retry has the target of the launch that failed: it would seem to fail at once.
            moved = (record, ())
        else:
            moved = lifecycle.settle(record, observed.workload(record.node, key), now_ms)
        after[key] = _depending(moved[0], desired)
        events += moved[1]
    for key, record, adopted in _adopted(desired, observed, records, now_ms):
        after[key] = record
        events += adopted
    return Settled(records, after, tuple(events))


def _depending(record: InstanceRecord, desired: Desired) -> InstanceRecord:
    """The record with what its newest manifest says it depends on; the last, once that is gone."""
    target = desired.targets.get(record.key)
    if target is None or target.instance.depends_on == record.depends_on:
        return record
    return replace(record, depends_on=target.instance.depends_on)


def _rests_as_wanted(record: InstanceRecord, target: Target, observed: Observed) -> bool:
    seen = observed.workload(record.node, record.key)
    report = seen.value if isinstance(seen, Known) else None
    rests = report is not None and report.phase is Phase.STOPPED
    return rests and target.instance.run == "stopped"


def finished_intents(
    records: Mapping[InstanceKey, InstanceRecord],
    intents: Sequence[Intent],
    desired: Desired,
    observed: Observed,
) -> tuple[InstanceKey, ...]:
    """Instances whose accepted task has run its course, whatever came of it, and those that came
    to rest without the task that their node refused, or after a later one than it took over.

    What was renamed meanwhile is known by what its node calls it, until nothing is left of it.
    """
    if not intents:
        return ()
    renamed = {(one.node, node_name(one)): one for one in records.values() if one.runtime_name}
    queued = {intent.instance for intent in intents if intent.state == "queued"}
    done = set()
    for intent in intents:
        record = records.get(intent.instance) or renamed.get((intent.node, intent.instance))
        of_control = intent.kind == "control"
        # Blobs are no instances; `plan.blobs` closes what was asked of them.
        name = node_name(record) if record is not None else intent.instance
        if intent.kind == PULL_BLOB:
            continue
        if of_control and not _obeyed(intent, name, desired, observed):
            continue
        if record is None:
            # It was renamed, and is gone: a task that its node took over is nobody's any more.
            over = intent.state == "accepted" and not of_control
        elif intent.state == "accepted" and intent.correlation_id == record.correlation_id:
            over = _ended(record, desired, observed)
        elif intent.state == "refused" or intent.correlation_id != record.correlation_id:
            rests = record.state in (State.RUNNING, *UNBEGUN)
            over = rests and intent.instance not in queued
        else:
            over = False
        if over:
            done.add(intent.instance)
    return tuple(sorted(done))


def _ended(record: InstanceRecord, desired: Desired, observed: Observed) -> bool:
    """One that was stopped before it was ever ready goes on once it is wanted running again."""
    target = desired.targets.get(record.key)
    rests = target is not None and _rests_as_wanted(record, target, observed)
    return record.state in _SETTLED or rests


def _obeyed(intent: Intent, name: str, desired: Desired, observed: Observed) -> bool:
    """Starting and stopping leave the state as it is; that they are done shows on the node only,
    which calls it `name`.
    """
    seen = observed.workload(intent.node, intent.instance)
    target = desired.targets.get(intent.instance)
    if target is None or not isinstance(seen, Known):
        return target is None
    to_stop = target.instance.run == "stopped"
    if seen.value is None:
        # Its agent lost track of it. What rests already needs nobody to stop it.
        return to_stop and observed.unnoted(intent.node, name) is None
    if to_stop:
        return seen.value.phase is Phase.STOPPED or seen.value.running_hash is None
    return seen.value.phase is not Phase.STOPPED


def _withdrawn(
    desired: Desired, observed: Observed, key: InstanceKey, record: InstanceRecord
) -> bool:
    if record.state is not State.REQUESTED or key in desired.held:
        return False
    target = desired.targets.get(key)
    wanted = (
        target is not None
        and target.instance.run != "decommissioned"
        and target.instance.node == record.node
    )
    # A node may have it all the same when our store was lost; then it has to be torn down.
    return not wanted and not is_there(observed.workload(record.node, key))


def _is_pending(intent: Intent, now_ms: int) -> bool:
    """Whether its node may still show what comes of it. What it accepted and does not show after a
    while, it has lost.
    """
    fresh = now_ms < intent.created_at_ms + ACCEPTED_SHOWS_MS
    return intent.state == "queued" or (intent.state == "accepted" and fresh)


def _recalled(desired: Desired, observed: Observed, record: InstanceRecord) -> bool:
    """Nothing starts what is to be stopped, so a launch refused or lost would stay open."""
    target = desired.targets.get(record.key)
    seen = observed.workload(record.node, record.key)
    return (
        record.state is State.DEPLOYING
        and target is not None
        and target.instance.run == "stopped"
        and target.instance.node == record.node
        and isinstance(seen, Known)
        and not is_there(seen)
        and observed.unnoted(record.node, node_name(record)) is None
    )


def _adopted(
    desired: Desired,
    observed: Observed,
    records: Mapping[InstanceKey, InstanceRecord],
    now_ms: int,
) -> list[tuple[InstanceKey, InstanceRecord, tuple[Event, ...]]]:
    """What runs exactly as desired although we never had it launched: our store was lost.

    A pass before its node joined again has noted it as requested by then.
    """
    found = []
    for key, target in sorted(desired.targets.items()):
        known = records.get(key)
        if key in desired.held or (known is not None and known.state not in UNBEGUN):
            continue
        seen = observed.workload(target.instance.node, key)
        if not isinstance(seen, Known) or seen.value is None:
            continue
        if seen.value.target_hash != target.workload.spec_hash:
            continue
        record, events = lifecycle.adopt(target, known, seen.value, desired.revision, now_ms)
        found.append((key, record, events))
    return found
