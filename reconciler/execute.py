"""Turns a plan into intents, signed tasks, events and new states, to be stored all at once.

Rules:
- A task exists only together with its journal entry, so a crash leaves both or neither.
- Nothing here waits for a node. What a node makes of a task shows in its report, in a later pass.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from node_agent.wire import TASK_TYPE, AnyTask, ControlTask, LaunchTask, PullBlobTask, RemoveTask
from reconciler.core import lifecycle
from reconciler.core.actions import (
    Action,
    BlobAction,
    Control,
    KeyAction,
    Launch,
    Move,
    Remove,
    Replace,
    action_id,
    blob_action_id,
    blob_subject,
    subject_of,
)
from reconciler.core.desired import Desired
from reconciler.core.names import ActionId, InstanceKey, content_hash
from reconciler.core.observed import Observed
from reconciler.core.plan import Finding, Plan
from reconciler.core.records import Event, InstanceRecord, Intent, node_name
from reconciler.custody.task_key import TaskKey
from reconciler.errors import GpuaasError
from reconciler.ports import Ports, SecretStore
from reconciler.settings import Settings

Handed = Launch | Replace | Control | Remove
Records = Mapping[InstanceKey, InstanceRecord]


@dataclass(frozen=True)
class Outcome:
    """What a plan leads to. `error` is set when nothing could be drawn up; `keys` is done then."""

    records: Records
    intents: tuple[Intent, ...] = ()
    events: tuple[Event, ...] = ()
    error: GpuaasError | None = None
    keys: tuple[KeyAction, ...] = ()
    findings: tuple[Finding, ...] = ()

    @property
    def nodes(self) -> frozenset[str]:
        return frozenset(intent.node for intent in self.intents)


def execute(
    plan: Plan,
    desired: Desired,
    observed: Observed,
    records: Records,
    ports: Ports,
    settings: Settings,
    now_ms: int,
    holder: str = "",
) -> Outcome:
    """Sees to the signing keys, draws up every ready action as an intent with its task, and notes
    what is wanted but held. `holder` as in `rotation`.

    Nodes get to see a task once `record.write` has stored it together with all else of the pass.
    """
    done: tuple[KeyAction, ...] = ()
    findings: tuple[Finding, ...] = ()
    try:
        if plan.ready_keys:
            # Logs: what loads that takes time, and most plans touch no key.
            from reconciler.custody.rotation import rotate_keys  # noqa: PLC0415

            rotated = rotate_keys(plan.ready_keys, desired, ports, settings, holder)
            done, findings = rotated.done, rotated.findings
        signer = TaskSigner(ports.secrets, observed, int(settings.task_ttl_s * 1000), now_ms)
        outcome = _drawn_up(plan, desired, records, ports, signer, now_ms)
    except GpuaasError as error:
        outcome = Outcome(records, error=error)
    return replace(outcome, keys=done, findings=findings)


def _drawn_up(
    plan: Plan,
    desired: Desired,
    records: Records,
    ports: Ports,
    signer: TaskSigner,
    now_ms: int,
) -> Outcome:
    after = dict(records)
    events: list[Event] = []
    intents: list[Intent] = []
    moved: set[InstanceKey] = set()
    sequence = _Sequence(ports)
    for action in plan.actions:
        known = records.get(subject_of(action))
        record, made = _begun(action, plan, desired, known, now_ms)
        events += made
        if record is None:
            continue
        after[record.key] = record
        if isinstance(action, Move):
            moved |= {action.moved_from} if action.held is None else set()
        elif action.held is None:
            task = make_task(action, record, sequence.next(action.node), signer)
            intents.append(signer.intent(action, task))
    intents += [signer.pull_intent(pull, sequence.next(pull.node)) for pull in plan.ready_blobs]
    for key in moved - {action.instance for action in plan.actions}:
        del after[key]
    return Outcome(after, tuple(intents), tuple(events))


def _begun(
    action: Action, plan: Plan, desired: Desired, record: InstanceRecord | None, now_ms: int
) -> tuple[InstanceRecord | None, tuple[Event, ...]]:
    target = desired.targets.get(action.instance)
    if action.held is None:
        return lifecycle.begin(action, target, record, desired.revision, now_ms)
    events: tuple[Event, ...] = ()
    if isinstance(action, Launch) and target is not None:
        record, events = lifecycle.request(target, record, desired.revision, now_ms)
    return _agreed(action, plan, record), events


def _agreed(action: Action, plan: Plan, record: InstanceRecord | None) -> InstanceRecord | None:
    """What a person agreed to stays so while something else holds it back."""
    if record is None:
        return None
    if plan.approved:
        record = replace(record, approved=action_id(action))
    if plan.removals_approved and isinstance(action, Remove):
        record = replace(record, approved_removals=plan.removals_id)
    return record


class _Sequence:
    """Task numbers of this pass: from the store once a node, then counted up."""

    def __init__(self, ports: Ports) -> None:
        self._ports = ports
        self._next: dict[str, int] = {}

    def next(self, node: str) -> int:
        number = self._next.get(node) or self._ports.store.next_seq(node)
        self._next[node] = number + 1
        return number


class TaskSigner:
    """Seals tasks with the newest version of the task key that all agents know.

    Asked of the secret store with the first task only: where nothing is to be signed, it may be
    away.
    """

    def __init__(self, secrets: SecretStore, observed: Observed, ttl_ms: int, now_ms: int) -> None:
        self._secrets = secrets
        self._nodes = observed.nodes
        self.issued_at_ms = now_ms
        self.expires_at_ms = now_ms + ttl_ms

    @cached_property
    def _key(self) -> TaskKey:
        return TaskKey.of(self._secrets, self._nodes)

    def intent(self, action: Action, task: AnyTask) -> Intent:
        target = task.workload.spec_hash if isinstance(task, LaunchTask) else ""
        return self._journalled(action_id(action), action.kind, action.instance, task, target)

    def pull_intent(self, action: BlobAction, seq: int) -> Intent:
        """With a task that is another one each time it is asked for: the node keeps no blob for
        ever. Its target is the digest.
        """
        key, subject = blob_action_id(action), blob_subject(action.node, action.digest)
        task = PullBlobTask(
            task_id=content_hash(key, seq)[:32],
            node=action.node,
            seq=seq,
            issued_at_ms=self.issued_at_ms,
            expires_at_ms=self.expires_at_ms,
            instance=action.artifact,
            correlation_id=content_hash(action.kind, subject, seq)[:32],
            source=action.source,
            digest=action.digest,
        )
        return self._journalled(key, action.kind, subject, task, action.digest)

    def _journalled(
        self, action: ActionId, kind: str, instance: InstanceKey, task: AnyTask, target: str
    ) -> Intent:
        envelope = self._key.seal(task.canonical(), TASK_TYPE)
        return Intent(
            action_id=action,
            kind=kind,
            instance=instance,
            node=task.node,
            task_id=task.task_id,
            seq=task.seq,
            correlation_id=task.correlation_id,
            target_hash=target,
            envelope=json.dumps(envelope, sort_keys=True),
            created_at_ms=self.issued_at_ms,
            expires_at_ms=self.expires_at_ms,
        )


def make_task(action: Handed, record: InstanceRecord, seq: int, signer: TaskSigner) -> AnyTask:
    """The typed task that carries an action out. Its id is the action's: the same after a retry.

    Its kind says which engine it is for: of a launch, that of the workload; else that of what was
    launched last. What came before on another engine, the node stops and removes all the same.
    """
    common = {
        "task_id": action_id(action),
        "node": action.node,
        "seq": seq,
        "issued_at_ms": signer.issued_at_ms,
        "expires_at_ms": signer.expires_at_ms,
        "instance": str(node_name(record)),
        "correlation_id": record.correlation_id,
    }
    if isinstance(action, Remove):
        kind = f"{_family(record.engine)}.remove"
        return RemoveTask.model_validate({**common, "kind": kind})
    if isinstance(action, Control):
        kind = f"{_family(record.engine)}.control"
        return ControlTask.model_validate({**common, "kind": kind, "run": action.run})
    kind = f"{_family(action.workload.engine)}.launch"
    return LaunchTask.model_validate({**common, "kind": kind, "workload": action.workload})


def _family(engine: str) -> str:
    """What the kinds of an engine's tasks begin with."""
    return "compose" if engine == "compose" else "oci"
