"""The closed union of what a plan may ask for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from node_agent.wire import Workload
from reconciler.core.names import ActionId, InstanceKey, content_hash

PULL_BLOB: Literal["pull_blob"] = "pull_blob"
"""The kind of what is asked of blobs; all other kinds are of instances."""


@dataclass(frozen=True)
class Held:
    """Why an action is in the plan but not carried out now. `code` is stable.

    `until_ms` is when it opens by itself, where that is known.
    """

    code: str
    message: str
    until_ms: int | None = None


Cause = Literal["change", "drift", "retry"]
"""change: somebody wrote it; drift: it was so and is no more; retry: it failed."""


@dataclass(frozen=True)
class Precondition:
    """What the node must still report for this instance: the target it was last given."""

    target_hash: str | None


@dataclass(frozen=True)
class Launch:
    """Start an instance that does not run on its node."""

    instance: InstanceKey
    node: str
    workload: Workload
    version: str
    epoch: int
    reason: str
    precondition: Precondition
    depends_on: tuple[ActionId, ...] = ()
    held: Held | None = None
    cause: Cause = "change"
    kind: Literal["launch"] = "launch"


@dataclass(frozen=True)
class Replace:
    """Change what runs: an upgrade, a rollback to the version before, or new parameters."""

    instance: InstanceKey
    node: str
    workload: Workload
    version: str
    version_from: str
    direction: Literal["upgrade", "rollback"]
    epoch: int
    reason: str
    precondition: Precondition
    depends_on: tuple[ActionId, ...] = ()
    held: Held | None = None
    cause: Cause = "change"
    kind: Literal["replace"] = "replace"


@dataclass(frozen=True)
class Control:
    """Stop or start what is there."""

    instance: InstanceKey
    node: str
    run: bool
    epoch: int
    reason: str
    precondition: Precondition
    depends_on: tuple[ActionId, ...] = ()
    held: Held | None = None
    cause: Cause = "change"
    kind: Literal["control"] = "control"


@dataclass(frozen=True)
class Remove:
    """Tear an instance down and prove it."""

    instance: InstanceKey
    node: str
    version_from: str
    epoch: int
    reason: str
    precondition: Precondition
    depends_on: tuple[ActionId, ...] = ()
    held: Held | None = None
    cause: Cause = "change"
    kind: Literal["remove"] = "remove"


@dataclass(frozen=True)
class Move:
    """Give what runs its new name. Nothing is restarted, and no node hears of it."""

    instance: InstanceKey
    moved_from: InstanceKey
    node: str
    epoch: int
    reason: str
    precondition: Precondition
    depends_on: tuple[ActionId, ...] = ()
    held: Held | None = None
    cause: Cause = "change"
    kind: Literal["move"] = "move"


Action = Launch | Replace | Control | Remove | Move


@dataclass(frozen=True)
class KeyAction:
    """Make a version of a signing key, or retire those before one. No instance is touched.

    rotate: `version` signs from now on, once all who verify know it; `version_from` is the newest
    there is, 0 for none. retire: what is below `version` signs and verifies no more; `version_from`
    is the oldest there is.
    """

    kind: Literal["rotate", "retire"]
    key: str
    version: int
    version_from: int
    reason: str
    held: Held | None = None


def key_action_id(action: KeyAction) -> str:
    """In words: it stands in plans that people read."""
    return f"{action.kind}/{action.key}/{action.version}"


@dataclass(frozen=True)
class BlobAction:
    """Have a blob in a node's cache before anything needs it. No instance is touched.

    `artifact` is the ref of the Artifact it was registered as.
    """

    node: str
    digest: str
    source: str
    artifact: str
    reason: str
    held: Held | None = None
    kind: Literal["pull_blob"] = PULL_BLOB


def blob_subject(node: str, digest: str) -> InstanceKey:
    """What its intents have in the place of an instance: none can be called that, as no tenant's
    name has a capital letter.
    """
    return InstanceKey(f"Blob/{node}/{digest}")


def blob_action_id(action: BlobAction) -> ActionId:
    return ActionId(content_hash(action.kind, action.node, action.digest, action.artifact)[:32])


def subject_of(action: Action) -> InstanceKey:
    """Whose record it acts on: that of the former name, for a move."""
    return action.moved_from if isinstance(action, Move) else action.instance


def action_id(action: Action) -> ActionId:
    """The same action has the same id, whenever and wherever it is computed."""
    what: object = None
    if isinstance(action, Launch | Replace):
        what = action.workload.spec_hash
    elif isinstance(action, Control):
        what = action.run
    elif isinstance(action, Move):
        what = action.moved_from
    return ActionId(
        content_hash(action.kind, action.instance, action.node, what, action.epoch)[:32]
    )
