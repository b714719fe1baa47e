"""What the control plane remembers: instance records, events, intents. Plain values, no behaviour.

An `InstanceRecord` is also the inventory: only what has a record is ever removed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

from node_agent.wire import Endpoint, ServicePhase
from reconciler.core.authority.facts import RefusedChange
from reconciler.core.names import ActionId, InstanceKey, Revision


class State(StrEnum):
    """The life of an instance; the transitions are in `core.lifecycle`."""

    REQUESTED = "requested"
    DEPLOYING = "deploying"
    RUNNING = "running"
    UPGRADING = "upgrading"
    ROLLING_BACK = "rolling_back"
    DECOMMISSIONING = "decommissioning"
    DECOMMISSIONED = "decommissioned"
    FAILED = "failed"


UNBEGUN = (State.REQUESTED, State.DECOMMISSIONED)
"""Nothing of it is with a node: not handed to one yet, or proved gone from there."""
UNDER_WAY = (State.DEPLOYING, State.UPGRADING, State.ROLLING_BACK, State.DECOMMISSIONING)


@dataclass(frozen=True)
class Condition:
    """One judgement on an object: `status` is "True", "False" or "Unknown"."""

    type: str
    status: Literal["True", "False", "Unknown"]
    reason: str
    message: str
    revision: str
    last_transition_ms: int


@dataclass(frozen=True)
class Change:
    """What a commit changed of an instance and has not come true yet.

    `revision` was first seen `seen_at_ms`; `wanted` is the hash of what should run since then,
    or a word where nothing should.
    """

    revision: Revision
    seen_at_ms: int
    wanted: str


@dataclass(frozen=True)
class InstanceRecord:
    """One instance in our inventory.

    `epoch` counts operations (deploy, upgrade, rollback, decommission); ids of events and tasks
    hang on it, so that they are the same after a crash. `target_*` is what the current operation
    goes for, `applied_*` what last became ready, `previous_version` the version before that.
    """

    key: InstanceKey
    app: str
    org_id: str
    project_id: str
    node: str
    state: State
    epoch: int
    correlation_id: str
    revision: Revision
    target_version: str
    target_hash: str
    target_digest: str
    applied_version: str = ""
    applied_hash: str = ""
    applied_digest: str = ""
    applied_revision: str = ""
    previous_version: str = ""
    reason: str = ""
    message: str = ""
    since_ms: int = 0
    sought_since_ms: int = 0
    """When its operation was first begun; asking once more for the same leaves it as it is."""
    endpoints: tuple[Endpoint, ...] = ()
    services: tuple[ServicePhase, ...] = ()
    """As its node said last, where it is made of several."""
    restarts: int = 0
    told: int = 0
    """Events told of it so far: what happens twice in one operation is two events."""
    attempts: int = 0
    """Launches of the same target that failed in a row; decides the pause before the next."""
    gpu_uuids: tuple[str, ...] = ()
    host_ports: tuple[int, ...] = ()
    """GPUs and fixed host ports of its target, held until its teardown is proved."""
    former_gpu_uuids: tuple[str, ...] = ()
    former_host_ports: tuple[int, ...] = ()
    """Those of what came before its target, held until that is ready: it may run or be put back."""
    access: str = ""
    role: str = ""
    """Its role among the members of its instance; empty where its version has no roles."""
    runtime_name: str = ""
    """What its node calls it, where that is not `key`: an instance keeps it when it is moved."""
    depends_on: tuple[InstanceKey, ...] = ()
    """By its newest manifest, so that removal can go backwards when that is gone."""
    secrets: tuple[str, ...] = ()
    """All secrets that any of its versions reads, as `SecretFile.asked`, until its teardown is
    proved.
    """
    blobs: tuple[str, ...] = ()
    """Digests of all blobs that any of its versions reads, until then too."""
    target_images: tuple[str, ...] = ()
    applied_images: tuple[str, ...] = ()
    """`repository@digest` of what their services run beside `target_digest` and `applied_digest`.
    """
    engine: str = ""
    """The node's engine for its target; empty in records from before that was noted."""
    approved: str = ""
    """The id of an action that a person applied while something else still held it."""
    approved_removals: str = ""
    """The approved set of removals that its own, still held by something else, belongs to."""
    conditions: tuple[Condition, ...] = ()
    change: Change | None = None


def node_name(record: InstanceRecord) -> InstanceKey:
    """The name under which the instance's node knows it."""
    return InstanceKey(record.runtime_name) if record.runtime_name else record.key


def digests_of(record: InstanceRecord) -> frozenset[str]:
    """Of all images that it runs, or is on its way to or back from."""
    own = frozenset((record.target_digest, record.applied_digest)) - {""}
    if not (record.target_images or record.applied_images):
        return own
    further = (*record.target_images, *record.applied_images)
    return own | {image.rpartition("@")[2] for image in further}


@dataclass(frozen=True)
class Event:
    """Something that happened once. `event_id` is a content hash, the same after a retry."""

    event_id: str
    type: str
    instance: InstanceKey
    correlation_id: str
    revision: str
    at_ms: int
    data: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class NumberedEvent:
    """An event with its place in the stream; `cursor` rises by insertion, without reuse."""

    cursor: int
    event: Event


TaskState = Literal["queued", "accepted", "refused", "expired", "superseded"]


@dataclass(frozen=True)
class Intent:
    """A journalled action: written before it is acted on, with the task that carries it out.

    `seq` is the node's task sequence number. `envelope` is the signed task as JSON text.
    """

    action_id: ActionId
    kind: str
    instance: InstanceKey
    node: str
    task_id: str
    seq: int
    correlation_id: str
    target_hash: str
    envelope: str
    created_at_ms: int
    expires_at_ms: int
    state: TaskState = "queued"
    detail: str = ""


@dataclass(frozen=True)
class StepBack:
    """A canary that went back by itself. It holds while the Promotion has this very content.

    `promotion` is its ref, `content` the hash of its spec, `failed` the instances that failed.
    """

    promotion: str
    content: str
    at_ms: int
    failed: tuple[str, ...]
    message: str


REPORT_GAP_MAX_MS = 60_000
"""Agents report more often than that, and after a failure try again sooner."""


@dataclass(frozen=True)
class EnrolledNode:
    """A node that joined: its agent's public key and the last report it signed, if any.

    Of a revoked one nothing is believed. `certificate_serial` is that of its newest certificate.
    `heard_since_ms`: from then on no two reports were further apart than REPORT_GAP_MAX_MS.
    """

    name: str
    public_key: str
    joined_at_ms: int
    report_json: str | None = None
    reported_at_ms: int | None = None
    report_seq: int = 0
    last_task_seq: int = 0
    revoked_at_ms: int | None = None
    revoked_reason: str = ""
    certificate_serial: str = ""
    certificate_ends_at_ms: int | None = None
    heard_since_ms: int | None = None


@dataclass(frozen=True)
class AcceptedObject:
    """The last accepted form of a manifest: `document_json` is its plain JSON."""

    ref: str
    path: str
    line: int
    document_json: str
    revision: Revision
    by: str = ""
    """Whose signed commit gave it this form (`user/ada`); empty where signatures are not asked for.
    """


@dataclass(frozen=True)
class Accepted:
    """The last accepted revision and every object in its last accepted form.

    `refused` are changes of that revision that count as not made, by their subject. `at_ms` is the
    time of its newest commit, as keys are judged by.
    """

    revision: Revision | None = None
    objects: Mapping[str, AcceptedObject] = field(default_factory=dict)
    refused: Mapping[str, RefusedChange] = field(default_factory=dict)
    at_ms: int = 0


@dataclass(frozen=True)
class AuditEntry:
    """Something that was done or refused, and by whom.

    `actor` and `requester_type` are those of `authority.facts.Actor`, or `system` for what the
    control plane does by itself. `before` and `after` are content digests, empty where there is
    nothing. `action` is area.object.verb, such as `state.object.changed` or `auth.token.issued`.
    """

    at_ms: int
    actor: str
    requester_type: str
    action: str
    object: str
    before: str = ""
    after: str = ""
    reason: str = ""
    revision: str = ""
    correlation_id: str = ""
    result: str = "done"
    """`done`, or the code of why it was refused."""
    key_id: str = ""
    """What it was signed with."""
    via: str = ""
    """The forge whose key that is, where one vouched for the actor."""


@dataclass(frozen=True)
class AuditRow:
    """An entry in its place: `row_hash` covers the entry, its number and the hash before it."""

    seq: int
    entry: AuditEntry
    previous_hash: str
    row_hash: str


PassResult = Literal["done", "waiting", "stalled", "failed"]


@dataclass(frozen=True)
class PassSummary:
    """How the last pass ended. `revision` is the one attempted; `findings` are problems as text."""

    result: PassResult
    revision: str
    started_at_ms: int
    duration_ms: int
    actions: int = 0
    held: int = 0
    waiting: int = 0
    message: str = ""
    findings: tuple[Mapping[str, object], ...] = ()
    blocked: Mapping[str, int] = field(default_factory=dict)
    """How many actions are held, and how many instances on their way, by code."""
    rejected: str = ""
    """A newer revision, of which nothing counts; `findings` say why."""
