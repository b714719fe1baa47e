"""Which blobs are to be pulled to which nodes ahead, and which nodes may have which blobs. Pure.

Rules:
- An action stands in the plan until its node says that the blob is ready, every byte hashed; what
  is on its way is held with how far it is.
- The agent tries again by itself what can help. What it gave up, refused or lost sight of is asked
  for anew after a pause, as a new task.
- Nothing that runs is touched by it, so no sync window holds it: it is what is done before one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from node_agent.wire import BlobSeen
from reconciler.core.actions import PULL_BLOB, BlobAction, Held, blob_subject
from reconciler.core.desired import BlobWish, Desired
from reconciler.core.names import InstanceKey, ObjectRef
from reconciler.core.observed import Known, Observed, Seen, Unknown
from reconciler.core.plan import Finding
from reconciler.core.plan.terms import in_force
from reconciler.core.records import InstanceRecord, Intent
from reconciler.core.times import time_text

PULLING, FAILED, REFUSED = "blob_pulling", "blob_failed", "task_refused"
FAILED_PAUSE_MS = 300_000
UNSEEN_MS = 60_000
"""Accepted for longer than that and in no report, it was lost."""

_Blob = Seen[BlobSeen | None]


def blob_on(observed: Observed, node: str, digest: str) -> _Blob:
    """What the node says of it; Known(None) where it says nothing of it."""
    seen = observed.node(node)
    if isinstance(seen, Unknown):
        return seen
    return Known(next((one for one in seen.value.blobs if one.digest == digest), None))


def digests_for(
    node: str, records: Iterable[InstanceRecord], intents: Iterable[Intent]
) -> frozenset[str]:
    """The blobs that a node may have: what its instances read, and what it is asked to pull."""
    read = {digest for record in records if record.node == node for digest in record.blobs}
    asked = {one.target_hash for one in intents if one.kind == PULL_BLOB and one.node == node}
    return frozenset(read | asked)


# --- what is over --------------------------------------------------------------------------------


def finished_pulls(
    wishes: Iterable[BlobWish], observed: Observed, intents: Sequence[Intent], now_ms: int
) -> tuple[InstanceKey, ...]:
    """What intents of pulls call themselves by, where they have run their course or are to be asked
    for anew, or nobody wants them any more.
    """
    wanted = {blob_subject(wish.node, wish.digest) for wish in wishes}
    return tuple(
        sorted(
            {
                intent.instance
                for intent in intents
                if intent.kind == PULL_BLOB
                and (intent.instance not in wanted or _is_over(intent, observed, now_ms))
            }
        )
    )


def _is_over(intent: Intent, observed: Observed, now_ms: int) -> bool:
    blob = blob_on(observed, intent.node, intent.target_hash)
    if not isinstance(blob, Known) or intent.state == "queued":
        return isinstance(blob, Known) and blob.value is not None and blob.value.state == "ready"
    if intent.state == "refused" or (blob.value is not None and blob.value.state == "failed"):
        return now_ms >= intent.created_at_ms + FAILED_PAUSE_MS
    if blob.value is None:
        return now_ms >= intent.created_at_ms + UNSEEN_MS
    return blob.value.state == "ready"


# --- what is to be done --------------------------------------------------------------------------


def wanted_of_blobs(
    wishes: Iterable[BlobWish], observed: Observed, intents: Sequence[Intent]
) -> tuple[BlobAction, ...]:
    """Every blob that is not where it should be; `intents` are those that are not finished."""
    asked = {intent.instance: intent for intent in intents if intent.kind == PULL_BLOB}
    found = []
    for wish in wishes:
        blob = blob_on(observed, wish.node, wish.digest)
        if isinstance(blob, Known) and blob.value is not None and blob.value.state == "ready":
            continue
        held = _under_way(asked.get(blob_subject(wish.node, wish.digest)), blob)
        reason = f"{wish.artifact} is to be there ahead"
        found.append(BlobAction(wish.node, wish.digest, wish.source, wish.artifact, reason, held))
    return tuple(found)


def _under_way(intent: Intent | None, blob: _Blob) -> Held | None:
    if isinstance(blob, Unknown):
        return Held(blob.code, blob.reason)
    if intent is None:
        return None
    again_ms = intent.created_at_ms + FAILED_PAUSE_MS
    if intent.state == "refused":
        message = f"node {intent.node} refused its task: {intent.detail}"
        return Held(REFUSED, message, again_ms)
    if intent.state == "queued":
        return Held(PULLING, f"its task waits for node {intent.node}")
    if blob.value is not None and blob.value.state == "failed":
        return Held(FAILED, blob.value.error or "the node gave it up", again_ms)
    return Held(PULLING, _progress(blob.value))


def _progress(blob: BlobSeen | None) -> str:
    if blob is None:
        return "its node has taken the task over"
    size = f" of {blob.size_bytes}" if blob.size_bytes is not None else ""
    again = f"; tried again after {blob.error}" if blob.error else ""
    return f"{blob.bytes_done}{size} bytes are there{again}"


# --- what holds it back --------------------------------------------------------------------------


def hold_blobs(
    actions: Sequence[BlobAction], desired: Desired, plan_id: str, now_ms: int
) -> tuple[BlobAction, ...]:
    """The same, held as the Environment asks for. `plan_id` is empty once it was applied."""
    return tuple(
        action if action.held else replace(action, held=_guarded(action, desired, plan_id, now_ms))
        for action in actions
    )


def _guarded(action: BlobAction, desired: Desired, plan_id: str, now_ms: int) -> Held | None:
    project = "/".join(ObjectRef.parse(action.artifact).path[:2])
    for what, term in (
        ("the environment", in_force(desired.guards.suspend, now_ms)),
        (f"project {project}", in_force(desired.suspended.get(project), now_ms)),
    ):
        if term is not None:
            until = time_text(term.until_ms)
            why = f"{what} is suspended by {term.by} until {until}: {term.reason}"
            return Held("suspended", why, term.until_ms)
    if desired.guards.manual and plan_id:
        message = f"changes are applied by hand here: gpuaas apply {plan_id}"
        return Held("awaiting_apply", message)
    return None


def blob_findings(actions: Iterable[BlobAction]) -> list[Finding]:
    """What failed is told with its node: a person may have to make room."""
    hint = "asked for again by itself; look at the quota and the disk of that node"
    return [
        Finding("info", "blob_not_delivered", action.artifact,
                f"not on node {action.node}: {action.held.message}", hint)
        for action in actions
        if action.held is not None and action.held.code in (FAILED, REFUSED)
    ]  # fmt: skip
