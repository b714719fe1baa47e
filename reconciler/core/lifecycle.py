"""The life of an app instance as one table, and the two functions that walk it.

Rules:
- `TRANSITIONS` is the only place that says which state follows which and which events that makes.
- `begin` is what an action does to a record, `settle` what an observation does. Both are pure and
  give the record and its events together, so that they can be stored together.
- An instance is decommissioned on a clean proof from its node, on nothing less.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from node_agent.wire import FailureReason, Phase, WorkloadReport
from node_agent.wire_base import SERVICES_MAX
from reconciler.core.actions import Action, Launch, Move, Remove, Replace
from reconciler.core.desired import Target
from reconciler.core.names import InstanceKey, Revision, content_hash, instance_of, member_name
from reconciler.core.observed import Known, Seen, Unknown
from reconciler.core.records import UNDER_WAY, Event, InstanceRecord, State, node_name
from reconciler.core.services import further_images, serves

EVENT = "apps.instance."


class Trigger(StrEnum):
    """What moves an instance from one state to the next."""

    REQUEST = "request"
    DEPLOY = "deploy"
    UPGRADE = "upgrade"
    ROLL_BACK = "roll_back"
    DECOMMISSION = "decommission"
    READY = "ready"
    FAILED = "failed"
    FELL_BACK = "fell_back"
    STAYED = "stayed"
    REMOVED = "removed"
    MOVE = "move"
    WITHDRAWN = "withdrawn"
    RECALLED = "recalled"


@dataclass(frozen=True)
class Step:
    """Where a trigger leads and the events it makes, in order."""

    to: State
    events: tuple[str, ...]


_ENDED = (State.DECOMMISSIONED,)
LIVE = (State.RUNNING, State.UPGRADING, State.ROLLING_BACK, State.FAILED, State.DEPLOYING)

TRANSITIONS: Mapping[tuple[State | None, Trigger], Step] = {
    **{(s, Trigger.REQUEST): Step(State.REQUESTED, ("requested",)) for s in (None, *_ENDED)},
    **{
        (s, Trigger.DEPLOY): Step(State.DEPLOYING, ("requested", "deploying"))
        for s in (None, *_ENDED)
    },
    **{
        (s, Trigger.DEPLOY): Step(State.DEPLOYING, ("deploying",)) for s in (State.REQUESTED, *LIVE)
    },
    # A record under decommission whose manifest comes back waits for the proof, then starts anew.
    **{(s, Trigger.UPGRADE): Step(State.UPGRADING, ("upgrade_requested",)) for s in LIVE},
    **{(s, Trigger.ROLL_BACK): Step(State.ROLLING_BACK, ("rollback_requested",)) for s in LIVE},
    **{
        (s, Trigger.DECOMMISSION): Step(State.DECOMMISSIONING, ("decommission_requested",))
        for s in (State.REQUESTED, *LIVE)
    },
    (State.DECOMMISSIONING, Trigger.DECOMMISSION): Step(State.DECOMMISSIONING, ()),
    (State.DEPLOYING, Trigger.READY): Step(State.RUNNING, ("running",)),
    (State.UPGRADING, Trigger.READY): Step(State.RUNNING, ("upgraded",)),
    (State.ROLLING_BACK, Trigger.READY): Step(State.RUNNING, ("rolled_back",)),
    (State.FAILED, Trigger.READY): Step(State.RUNNING, ("running",)),
    (State.DEPLOYING, Trigger.FAILED): Step(State.FAILED, ("failed",)),
    (State.UPGRADING, Trigger.FAILED): Step(State.FAILED, ("failed",)),
    (State.ROLLING_BACK, Trigger.FAILED): Step(State.FAILED, ("failed",)),
    (State.RUNNING, Trigger.FAILED): Step(State.FAILED, ("failed",)),
    (State.DECOMMISSIONING, Trigger.FAILED): Step(State.DECOMMISSIONING, ("failed",)),
    # The node put the last version that worked back by itself.
    (State.UPGRADING, Trigger.FELL_BACK): Step(
        State.RUNNING, ("failed", "rollback_requested", "rolled_back")
    ),
    (State.ROLLING_BACK, Trigger.FELL_BACK): Step(State.RUNNING, ("failed",)),
    # What runs there is none of ours to name: our store was lost before it was deployed over.
    (State.DEPLOYING, Trigger.FELL_BACK): Step(State.RUNNING, ("failed",)),
    # The same, where the failure was heard of before what worked was ready again.
    (State.FAILED, Trigger.FELL_BACK): Step(State.RUNNING, ("rollback_requested", "rolled_back")),
    (State.FAILED, Trigger.STAYED): Step(State.RUNNING, ()),
    # It has another name from now on; for its node nothing changes.
    **{(s, Trigger.MOVE): Step(s, ("moved",)) for s in LIVE},
    # Never handed to a node, so there is nothing to tear down.
    (State.REQUESTED, Trigger.WITHDRAWN): Step(
        State.DECOMMISSIONED, ("decommission_requested", "decommissioned")
    ),
    # Wanted stopped before a node ever took it over: it waits as one that was never begun.
    (State.DEPLOYING, Trigger.RECALLED): Step(State.REQUESTED, ()),
    (State.DECOMMISSIONING, Trigger.REMOVED): Step(State.DECOMMISSIONED, ("decommissioned",)),
}

_RAN_ATTEMPTS = 8
"""What ran and then failed was ready in between each time, so its pauses never get to grow: it has
the longest one at once. A new commit that changes it does not wait for that.
"""
_ENDINGS = (FailureReason.EXITED, FailureReason.OUT_OF_MEMORY)
"""Of services that ran: a vital one that is never restarted. Others are mended on their node."""

Moved = tuple[InstanceRecord, tuple[Event, ...]]


def allowed(state: State | None, trigger: Trigger) -> bool:
    return (state, trigger) in TRANSITIONS


def correlation_id(key: str, epoch: int, revision: str) -> str:
    """One id for all that belongs to one operation on one instance."""
    return content_hash("operation", key, epoch, revision)[:32]


def next_epoch(record: InstanceRecord | None) -> int:
    """The number of the next operation; one that was requested but never begun keeps its own."""
    if record is None:
        return 1
    return record.epoch if record.state is State.REQUESTED else record.epoch + 1


def trigger_of(action: Action) -> Trigger | None:
    """What carrying out this action does to the state; None for one that leaves it as it is."""
    if isinstance(action, Launch):
        return Trigger.DEPLOY
    if isinstance(action, Replace):
        return Trigger.UPGRADE if action.direction == "upgrade" else Trigger.ROLL_BACK
    if isinstance(action, Remove):
        return Trigger.DECOMMISSION
    return Trigger.MOVE if isinstance(action, Move) else None


def request(
    target: Target, record: InstanceRecord | None, revision: Revision, now_ms: int
) -> Moved:
    """Notes that an instance is wanted although its launch is held."""
    if record is not None and not allowed(record.state, Trigger.REQUEST):
        return record, ()
    fresh = _fresh(target, next_epoch(record), revision)
    return _move(fresh, record.state if record else None, Trigger.REQUEST, now_ms)


def withdraw(record: InstanceRecord, now_ms: int) -> Moved:
    """Ends an instance that was requested but never begun."""
    freed = _freed(record)
    bare = replace(freed, message="withdrawn before it was started")
    return _move(bare, record.state, Trigger.WITHDRAWN, now_ms)


def recall(record: InstanceRecord, revision: Revision, now_ms: int) -> Moved:
    """Undoes a launch that no node will take over any more. The next one is another operation."""
    epoch = record.epoch + 1
    bare = replace(
        _freed(record),
        epoch=epoch,
        revision=revision,
        correlation_id=correlation_id(record.key, epoch, revision),
        message="stopped before it was started",
    )
    return _move(bare, record.state, Trigger.RECALLED, now_ms)


def begin(
    action: Action,
    target: Target | None,
    record: InstanceRecord | None,
    revision: Revision,
    now_ms: int,
) -> Moved:
    """The record as it is once `action` is journalled. A Remove, Control or Move needs a record,
    and a Move the one that it moves.
    """
    trigger = trigger_of(action)
    if isinstance(action, Move):
        assert record is not None
        return move(action, record, revision, now_ms)
    if isinstance(action, Launch | Replace):
        assert target is not None
        started = _aim(target, record, action.epoch, revision)
    else:
        assert record is not None
        operation = correlation_id(record.key, action.epoch, revision)
        started = replace(
            record,
            epoch=action.epoch,
            correlation_id=operation,
            revision=revision,
            node=action.node,
        )
    if trigger is None:
        return replace(started, sought_since_ms=now_ms), ()
    started = replace(
        started,
        reason="",
        message=action.reason,
        approved="",
        approved_removals="",
        sought_since_ms=_sought_since_ms(started, record, trigger, now_ms),
    )
    return _move(started, record.state if record else None, trigger, now_ms)


def _sought_since_ms(
    started: InstanceRecord, record: InstanceRecord | None, trigger: Trigger, now_ms: int
) -> int:
    """Asking once more for the same thing, with no outcome between, does not start the clock."""
    if record is None or record.state not in UNDER_WAY or record.node != started.node:
        return now_ms
    leaving = trigger is Trigger.DECOMMISSION
    if leaving != (record.state is State.DECOMMISSIONING):
        return now_ms
    same = leaving or record.target_hash == started.target_hash
    return record.sought_since_ms if same and record.sought_since_ms else now_ms


def move(action: Move, record: InstanceRecord, revision: Revision, now_ms: int) -> Moved:
    """The record under its new name. On its node, and in all it has, it stays what it was."""
    name = node_name(record)
    moved = replace(
        record,
        key=action.instance,
        runtime_name="" if name == action.instance else name,
        epoch=action.epoch,
        correlation_id=correlation_id(action.instance, action.epoch, revision),
        revision=revision,
    )
    step = TRANSITIONS[(record.state, Trigger.MOVE)]
    told = replace(moved, reason="", message=action.reason)
    said = {"from": record.key, "to": action.instance}
    events = [_event(told, event, now_ms, said) for event in step.events]
    return replace(moved, told=record.told + len(events)), tuple(events)


def settle(record: InstanceRecord, seen: Seen[WorkloadReport | None], now_ms: int) -> Moved:
    """The record as it is once the node's word is in. Unknown changes nothing."""
    if isinstance(seen, Unknown) or seen.value is None:
        return record, ()
    report = seen.value
    if record.state is State.DECOMMISSIONING:
        return _settle_removal(record, report, now_ms)
    if report.target_hash != record.target_hash:
        return record, ()
    # What is stopped answers nowhere, although its port is kept for it.
    endpoints = () if report.phase is Phase.STOPPED else report.endpoints
    noted = record
    services = report.services[:SERVICES_MAX]
    if (endpoints, report.restarts, services) != (
        record.endpoints,
        record.restarts,
        record.services,
    ):
        noted = replace(record, endpoints=endpoints, restarts=report.restarts, services=services)
    trigger = _outcome(noted, report)
    if trigger is None:
        return noted, ()
    if trigger is Trigger.READY:
        return _move(_applied(noted), noted.state, trigger, now_ms, before=noted)
    reason = report.reason.value if report.reason else "unknown"
    attempts = noted.attempts + (noted.state is not State.FAILED)
    ended = bool(report.services) and report.reason in _ENDINGS and noted.state is State.RUNNING
    if ended or report.reason is FailureReason.FLAPPING:
        attempts = max(attempts, _RAN_ATTEMPTS)
    failed = replace(noted, reason=reason, message=report.message, attempts=attempts)
    return _move(failed, noted.state, trigger, now_ms)


def adopt(
    target: Target,
    record: InstanceRecord | None,
    report: WorkloadReport,
    revision: Revision,
    now_ms: int,
) -> Moved:
    """A record for what already runs as desired although by the store it was never launched."""
    fresh = _aim(target, record, next_epoch(record), revision)
    deploying = replace(fresh, state=State.DEPLOYING, message="found running as desired")
    return settle(replace(deploying, since_ms=now_ms), Known(report), now_ms)


def _settle_removal(record: InstanceRecord, report: WorkloadReport, now_ms: int) -> Moved:
    if report.phase is Phase.REMOVED and report.proof is not None and report.proof.clean:
        freed = replace(_freed(record), endpoints=(), services=())
        gone = replace(freed, reason="", message="teardown proved")
        return _move(gone, record.state, Trigger.REMOVED, now_ms)
    if report.reason is FailureReason.TEARDOWN_INCOMPLETE and record.reason != report.reason.value:
        failed = replace(record, reason=report.reason.value, message=report.message)
        return _move(failed, record.state, Trigger.FAILED, now_ms)
    return record, ()


def _outcome(record: InstanceRecord, report: WorkloadReport) -> Trigger | None:
    if report.phase is Phase.FAILED:
        if record.state is State.FAILED and _is_back(record, report):
            undone = record.target_version == record.previous_version
            return Trigger.STAYED if undone else Trigger.FELL_BACK
        if record.state is State.FAILED or record.reason:
            return None  # already told
        # What was never heard to be ready is nothing that one could be back at.
        back = report.retained and record.applied_hash != ""
        if back and allowed(record.state, Trigger.FELL_BACK):
            return Trigger.FELL_BACK
        return Trigger.FAILED if allowed(record.state, Trigger.FAILED) else None
    up = report.phase is Phase.STOPPED or serves(report)
    there = up and report.running_hash == record.target_hash
    return Trigger.READY if there and allowed(record.state, Trigger.READY) else None


def _is_back(record: InstanceRecord, report: WorkloadReport) -> bool:
    """Whether what last worked serves again after the newer one was given up."""
    return report.retained and report.running_hash == record.applied_hash


def _applied(record: InstanceRecord) -> InstanceRecord:
    changed = record.applied_version not in ("", record.target_version)
    return replace(
        record,
        previous_version=record.applied_version if changed else record.previous_version,
        applied_version=record.target_version,
        applied_hash=record.target_hash,
        applied_digest=record.target_digest,
        applied_images=record.target_images,
        applied_revision=record.revision,
        former_gpu_uuids=(),
        former_host_ports=(),
        attempts=0,
        reason="",
        message="",
    )


def _freed(record: InstanceRecord) -> InstanceRecord:
    """The record of what is gone, which holds nothing any more."""
    bare = replace(record, former_gpu_uuids=(), former_host_ports=())
    return replace(bare, gpu_uuids=(), host_ports=(), secrets=(), blobs=())


def _fresh(target: Target, epoch: int, revision: Revision) -> InstanceRecord:
    instance, workload = target.instance, target.workload
    return InstanceRecord(
        key=instance.key,
        app=instance.app,
        org_id=instance.org_id,
        project_id=instance.project_id,
        node=instance.node,
        state=State.REQUESTED,
        epoch=epoch,
        correlation_id=correlation_id(instance.key, epoch, revision),
        revision=revision,
        target_version=instance.version,
        target_hash=workload.spec_hash,
        target_digest=workload.image.digest,
        target_images=further_images(workload),
        engine=workload.engine,
        gpu_uuids=instance.gpu_uuids,
        host_ports=tuple(port.host for port in workload.ports if port.host is not None),
        access=instance.access,
        role=instance.role,
        runtime_name="" if workload.instance == instance.key else workload.instance,
        depends_on=instance.depends_on,
        secrets=tuple(secret.asked for secret in workload.secrets),
        blobs=tuple(sorted({blob.digest for blob in workload.blobs})),
    )


def _aim(
    target: Target, record: InstanceRecord | None, epoch: int, revision: Revision
) -> InstanceRecord:
    """The record of an operation towards `target`; what worked last is remembered."""
    fresh = _fresh(target, epoch, revision)
    if record is None or record.state is State.DECOMMISSIONED:
        return fresh
    if record.state is State.REQUESTED:
        return replace(
            fresh,
            correlation_id=record.correlation_id,
            change=record.change,
            conditions=record.conditions,
            told=record.told,
        )
    same = record.target_hash == fresh.target_hash
    return replace(
        fresh,
        applied_version=record.applied_version,
        applied_hash=record.applied_hash,
        applied_digest=record.applied_digest,
        applied_images=record.applied_images,
        applied_revision=record.applied_revision,
        former_gpu_uuids=tuple(sorted({*record.former_gpu_uuids, *record.gpu_uuids})),
        former_host_ports=tuple(sorted({*record.former_host_ports, *record.host_ports})),
        previous_version=record.previous_version,
        endpoints=record.endpoints,
        services=record.services,
        restarts=record.restarts,
        attempts=record.attempts if same else 0,
        since_ms=record.since_ms,
        change=record.change,
        conditions=record.conditions,
        told=record.told,
        # Also those that only the former version reads: its node may have to go back to it.
        secrets=tuple(sorted({*record.secrets, *fresh.secrets})),
        blobs=tuple(sorted({*record.blobs, *fresh.blobs})),
    )


def _move(
    record: InstanceRecord,
    state: State | None,
    trigger: Trigger,
    now_ms: int,
    before: InstanceRecord | None = None,
) -> Moved:
    """The step taken, with its events; `before` is the record while the old one still counted."""
    step = TRANSITIONS[(state, trigger)]
    moved = replace(record, state=step.to, since_ms=now_ms)
    told = _back(moved) if trigger is Trigger.FELL_BACK else moved
    former = before or record
    ran = _sides(former.applied_version, former.applied_digest)
    given_up = _sides(record.target_version, record.target_digest)
    events = [
        _event(moved, name, now_ms, ran)
        if name == "failed" or told is moved
        else _event(told, name, now_ms, given_up)
        for name in step.events
    ]
    return replace(moved, told=record.told + len(events)), tuple(events)


def _sides(version: str, digest: str) -> dict[str, str]:
    """What an event leads away from; what it leads to is its version and digest."""
    return {"version_from": version, "digest_from": digest}


def _back(record: InstanceRecord) -> InstanceRecord:
    """The record as an automatic return tells it: what was put back, not what failed."""
    return replace(
        record,
        target_version=record.applied_version,
        target_digest=record.applied_digest,
        message="put back by the node",
    )


def _membership(key: InstanceKey) -> dict[str, str]:
    """Of a further member, what it is called and of which instance."""
    name = member_name(key)
    return {"member": name, "member_of": instance_of(key)} if name else {}


def _event(
    record: InstanceRecord, name: str, now_ms: int, more: Mapping[str, str] | None = None
) -> Event:
    data = {
        "app": record.app,
        "node": record.node,
        "version": record.target_version,
        "digest": record.target_digest,
        "org_id": record.org_id,
        "project_id": record.project_id,
        "reason": record.reason,
        "message": record.message,
        "role": record.role,
        **_membership(record.key),
        **(more or {}),
    }
    if record.change is not None and record.change.revision == record.revision:
        data["revision_seen_ms"] = str(record.change.seen_at_ms)
    return Event(
        event_id=content_hash(
            "event", record.key, record.epoch, record.revision, name, record.told
        )[:32],
        type=EVENT + name,
        instance=record.key,
        correlation_id=record.correlation_id,
        revision=record.revision,
        at_ms=now_ms,
        data={key: value for key, value in data.items() if value},
    )
