"""What there is to say of somebody: who it is, what that one may do, and who else may. Values."""

from __future__ import annotations

from dataclasses import dataclass

from reconciler.core.authority.facts import Actor
from reconciler.core.authority.judge import Refusal
from reconciler.core.kinds.keys import Key
from reconciler.core.names import ObjectRef


@dataclass(frozen=True)
class Held:
    """Permissions that one object gives at one scope; `everything`: all there are."""

    scope: str
    why: str
    permissions: tuple[str, ...]
    everything: bool
    until_ms: int


@dataclass(frozen=True)
class Who:
    """Somebody by what the repo says of him. `keys` are those of the document that names him."""

    actor: Actor
    object: ObjectRef
    display_name: str
    disabled: bool
    keys: tuple[Key, ...]
    holds: tuple[Held, ...]


@dataclass(frozen=True)
class Answer:
    """Whether a change may be made; if not, why, and who else might make it."""

    asked: str
    actor: Actor
    refusal: Refusal | None
    others: tuple[str, ...] = ()
    ref: ObjectRef | None = None

    @property
    def may(self) -> bool:
        return self.refusal is None
