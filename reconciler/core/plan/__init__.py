"""The plan: what would change, why, in which order, and what waits.

Vocabulary: an *action* changes something; a *held* action is one that will not be carried out now,
with why; *waiting* is an action already under way; a *finding* is what a person should know.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from reconciler.core.actions import Action, action_id
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

    @property
    def ready(self) -> tuple[Action, ...]:
        """What `execute` carries out."""
        return tuple(action for action in self.actions if action.held is None)

    @property
    def held(self) -> tuple[Action, ...]:
        return tuple(action for action in self.actions if action.held is not None)

    @property
    def stalled(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.level == "stalled")

    @property
    def empty(self) -> bool:
        """Nothing to do and nothing under way."""
        return not self.actions and not self.waiting

    @property
    def plan_id(self) -> str:
        return content_hash(self.revision, self.base, [action_id(a) for a in self.actions])[:16]
