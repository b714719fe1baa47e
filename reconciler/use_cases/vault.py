"""A Vault made and kept as it has to be: `plan` shows what differs, `bootstrap` makes it so.

Rules:
- What is there and as declared is not touched; nothing is removed.
- Afterwards it is looked at again: what Vault took and did not keep is told, not believed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from reconciler.core.custody.diff import Change, compare, to_apply, to_mend
from reconciler.core.custody.layout import VaultLayout
from reconciler.core.custody.things import Key, Thing
from reconciler.errors import Refused


class Custodian(Protocol):
    """A Vault, as somebody who may look at all of this, and to bootstrap may write it."""

    def look(self, wanted: Sequence[Thing]) -> Mapping[Key, Mapping[str, str]]: ...

    def make(self, thing: Thing, change: Change) -> None: ...


@dataclass(frozen=True)
class Bootstrapped:
    """What was done, in order, and what was left as it is: `remake` and `foreign`."""

    done: tuple[Change, ...]
    left: tuple[Change, ...]


def differences(custodian: Custodian, wanted: Sequence[Thing]) -> tuple[Change, ...]:
    return compare(wanted, custodian.look(wanted))


def bootstrap(
    custodian: Custodian,
    wanted: Sequence[Thing],
    on_change: Callable[[Change], None] = lambda _: None,
) -> Bootstrapped:
    """Makes all that a program can. `on_change` hears of each when it is made.

    Refused("vault_not_kept") for what is not as it was written.
    """
    return _made(custodian, wanted, to_apply(differences(custodian, wanted)), on_change)


def mend(custodian: Custodian, layout: VaultLayout, wanted: Sequence[Thing]) -> Bootstrapped:
    """Puts right what drifted, as far as that needs no person."""
    return _made(custodian, wanted, to_mend(layout, wanted, differences(custodian, wanted)))


def _made(
    custodian: Custodian,
    wanted: Sequence[Thing],
    changes: Sequence[Change],
    on_change: Callable[[Change], None] = lambda _: None,
) -> Bootstrapped:
    things = {thing.key: thing for thing in wanted}
    for change in changes:
        custodian.make(things[change.key], change)
        on_change(change)
    if not changes:
        return Bootstrapped((), differences(custodian, wanted))
    left = differences(custodian, wanted)
    again = {change.key for change in to_apply(left)} & {change.key for change in changes}
    if again:
        named = ", ".join(f"{kind} {name}" for kind, name in sorted(again))
        raise Refused(
            "vault_not_kept",
            f"written, and not as it was written: {named}",
            hint="does somebody else write it too? see Vault's audit log, and `gpuaas vault plan`",
        )
    return Bootstrapped(tuple(changes), left)
