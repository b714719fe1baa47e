"""The pull tasks that an agent remembers, in one file of its state folder. Values and their rules.

Rules:
- One entry a digest: a newer task for it takes the place of the older one.
- What is old or too much is forgotten, after its task numbers are safe elsewhere (see `state`).
"""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict, TypeAdapter

from node_agent.wire import PullBlobTask

PULLS_FILE = "pulls.json"
PULLS_MAX = 1_000
AHEAD_KEPT_MS = 7 * 24 * 3_600_000
"""For how long a blob is kept for the task that asked for it."""
REMEMBERED_TASKS_MAX = 16


class Pull(BaseModel):
    """A blob that a task asked for; the last `task_ids` that did, the newest last."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    digest: str
    source: str
    artifact: str
    seq: int
    task_ids: tuple[str, ...]
    correlation_id: str
    accepted_at_ms: int


Pulls = Mapping[str, Pull]
"""By digest."""
_PULLS: TypeAdapter[tuple[Pull, ...]] = TypeAdapter(tuple[Pull, ...])


def parse_pulls(stored: bytes) -> Pulls:
    """Raises pydantic.ValidationError."""
    return {pull.digest: pull for pull in _PULLS.validate_json(stored)}


def pulls_text(pulls: Pulls) -> str:
    return _PULLS.dump_json(tuple(pull for _, pull in sorted(pulls.items()))).decode()


def with_pull(pulls: Pulls, task: PullBlobTask, now_ms: int) -> Pulls:
    before = pulls.get(task.digest)
    remembered = (before.task_ids if before else ())[-REMEMBERED_TASKS_MAX + 1 :]
    pull = Pull(
        digest=task.digest,
        source=task.source,
        artifact=task.instance,
        seq=task.seq,
        task_ids=(*remembered, task.task_id),
        correlation_id=task.correlation_id,
        accepted_at_ms=now_ms,
    )
    return {**pulls, task.digest: pull}


def to_forget(pulls: Pulls, now_ms: int) -> frozenset[str]:
    """Digests of those that are old, and of the oldest where there are too many."""
    newest = sorted(pulls.values(), key=lambda pull: (-pull.accepted_at_ms, pull.digest))
    old = {one.digest for one in newest if now_ms - one.accepted_at_ms >= AHEAD_KEPT_MS}
    return frozenset(old | {one.digest for one in newest[PULLS_MAX:]})
