"""The plan: what would change, why, in which order, and what waits.

Vocabulary: an *action* changes something; a *held* action is one that will not be carried out now,
with why; *waiting* is an action already under way; a *finding* is what a person should know.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from reconciler.core.actions import (
    Action,
    BlobAction,
    Held,
    KeyAction,
    action_id,
    blob_action_id,
    key_action_id,
)
from reconciler.core.desired import Term
from reconciler.core.names import InstanceKey, Revision, content_hash


@dataclass(frozen=True)
class Waiting:
    """An instance that is on its way; `code` is the phase its node reports or `queued`."""

    instance: InstanceKey
    node: str
    code: str
    message: str


@dataclass(frozen=True)
class Finding:
    """Something to know. `stalled` findings need a person before the instance can converge."""

    level: Literal["info", "stalled"]
    code: str
    object: str
    message: str
    hint: str = ""


@dataclass(frozen=True)
class Plan:
    """Actions in an order that satisfies `depends_on`. Same input, byte-identical plan."""

    revision: Revision
    base: str
    actions: tuple[Action, ...] = ()
    waiting: tuple[Waiting, ...] = ()
    findings: tuple[Finding, ...] = ()
    unchanged: int = 0
    ignored: tuple[Finding, ...] = ()
    """Findings that a rule of the Environment silences for now."""
    removals_id: str = ""
    """Id of the whole set of removals wanted, to approve it by; empty when there are none."""
    break_glass: Term | None = None
    """The exception in force that opens windows, if any."""
    wake_at_ms: int | None = None
    """When something held opens by itself."""
    approved: bool = False
    """Whether a person asked for exactly this plan (`gpuaas apply PLAN`)."""
    removals_approved: bool = False
    """Whether the Environment approves of exactly these removals."""
    keys: tuple[KeyAction, ...] = ()
    """What is to be done about signing keys, in this order, before any action."""
    blobs: tuple[BlobAction, ...] = ()
    """Blobs that are to be on nodes ahead and are not there yet."""

    @property
    def ready(self) -> tuple[Action, ...]:
        """What `execute` carries out."""
        return tuple(action for action in self.actions if action.held is None)

    @property
    def held(self) -> tuple[Action, ...]:
        return tuple(action for action in self.actions if action.held is not None)

    @property
    def ready_keys(self) -> tuple[KeyAction, ...]:
        return tuple(action for action in self.keys if action.held is None)

    @property
    def ready_blobs(self) -> tuple[BlobAction, ...]:
        return tuple(action for action in self.blobs if action.held is None)

    @property
    def holds(self) -> tuple[Held, ...]:
        """What holds back each action that is held, of whatever sort."""
        return tuple(
            action.held
            for action in (*self.actions, *self.keys, *self.blobs)
            if action.held is not None
        )

    @property
    def stalled(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.level == "stalled")

    @property
    def empty(self) -> bool:
        """Nothing to do and nothing under way."""
        return not (self.actions or self.waiting or self.keys or self.blobs)

    @property
    def plan_id(self) -> str:
        return plan_id_of(self.revision, self.base, self.actions, self.keys, self.blobs)


def plan_id_of(
    revision: Revision,
    base: str,
    actions: Iterable[Action],
    keys: Iterable[KeyAction] = (),
    blobs: Iterable[BlobAction] = (),
) -> str:
    """What a plan is called: by what it would do, whatever holds it back, in whatever order."""
    rotated = sorted(key_action_id(action) for action in keys)
    pulled = sorted(map(blob_action_id, blobs))
    rest = tuple(ids for ids in (rotated, pulled) if ids)
    return content_hash(revision, base, sorted(map(action_id, actions)), *rest)[:16]
