"""The Environment's guards, exceptions and keys, from words to values that a plan works with.

Rules: total. A time that is no day of the calendar is a problem of the manifest
(`checks.terms`), and counts as long past here, so that no exception outlives a typing error.
"""

from __future__ import annotations

from reconciler.core.desired import (
    Approval,
    Budget,
    Guards,
    IgnoreRule,
    KeyWish,
    Term,
    Window,
)
from reconciler.core.kinds import base
from reconciler.core.kinds.environment import EnvironmentSpec, RemovalBudget, SyncWindow
from reconciler.core.times import parse_time_ms

_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


def guards_of(environment: EnvironmentSpec) -> Guards:
    """Everything that may hold an action back."""
    guards, sync = environment.guards, environment.sync
    return Guards(
        removals_max=guards.removals_max,
        removals_max_percent=guards.removals_max_percent,
        per_node=_budget(guards.per_node) if guards.per_node else None,
        per_kind={kind: _budget(one) for kind, one in sorted(guards.per_kind.items())},
        tombstones=guards.tombstones,
        approvals=tuple(
            Approval(one.removals, one.reason, _time_ms(one.until)) for one in guards.approvals
        ),
        windows=tuple(_window(one) for one in sync.windows),
        break_glass=term_of(sync.break_glass) if sync.break_glass else None,
        suspend=term_of(sync.suspend) if sync.suspend else None,
        ignore=tuple(
            IgnoreRule(
                one.objects,
                frozenset(one.codes),
                Term(one.by, one.reason, _time_ms(one.until)),
            )
            for one in sync.ignore
        ),
        manual=sync.mode == "manual",
    )


def key_wishes(environment: EnvironmentSpec) -> dict[str, KeyWish]:
    """By the name of the key, those that it says anything of."""
    wanted = environment.signing_keys
    named = {
        "artifacts": wanted.artifacts,
        "registry-tokens": wanted.registry_tokens,
        "tasks": wanted.tasks,
    }
    return {
        name: KeyWish(key.version, min(key.min_version or 1, key.version))
        for name, key in named.items()
        if key is not None
    }


def term_of(term: base.Term) -> Term:
    return Term(term.by, term.reason, _time_ms(term.until))


def _budget(budget: RemovalBudget) -> Budget:
    return Budget(budget.removals_max, budget.removals_max_percent)


def _window(window: SyncWindow) -> Window:
    return Window(
        name=window.name,
        kind=window.kind,
        days=frozenset(_DAYS.index(day) for day in window.days) or frozenset(range(7)),
        start_minute=_minute(window.start),
        end_minute=_minute(window.end),
        time_zone=window.time_zone,
        projects=frozenset(window.projects),
    )


def _minute(text: str) -> int:
    hours, minutes = text.split(":")
    return int(hours) * 60 + int(minutes)


def _time_ms(text: str) -> int:
    try:
        return parse_time_ms(text)
    except ValueError:
        return 0
