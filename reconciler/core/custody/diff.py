"""What a Vault holds, compared with what it has to hold, thing by thing and field by field.

Rules:
- The same meaning is the same text: a duration, a list and the white space of a policy may be
  written in many ways, and none of that is drift.
- What nobody declared is shown and never removed: it may be somebody's, and a guess would be wrong
  once.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from reconciler.core.custody.layout import CLASSES, VaultLayout
from reconciler.core.custody.things import (
    FIXED,
    MOUNT_TYPE_FIELD,
    PRECIOUS,
    Key,
    Kind,
    Thing,
    made_alone,
)

Found = Mapping[Key, Mapping[str, str]]
"""Every thing that is there, by kind and name, with its fields as `found_fields` gives them."""

Op = Literal["create", "change", "remake", "foreign"]

_DURATIONS = frozenset(
    {
        "auto_rebuild_grace_period",
        "auto_rotate_period",
        "default_lease_ttl",
        "delete_version_after",
        "expiry",
        "interval_duration",
        "max_lease_ttl",
        "max_ttl",
        "safety_buffer",
        "secret_id_ttl",
        "token_explicit_max_ttl",
        "token_max_ttl",
        "token_period",
        "token_ttl",
        "ttl",
    }
)
_ABSENT = {"listing_visibility": "hidden"}
"""What a field means that Vault leaves out, where that is not nothing."""
_UNIT_S = {"d": 86400, "h": 3600, "m": 60, "s": 1}
_DURATION = re.compile(r"(?:\d+[dhms])+")
_TOKEN = re.compile(
    r"""("(?:\\.|[^"\\\n])*")|(?:#|//)[^\n]*|/\*.*?\*/|([{}\[\],=]|[^\s"{}\[\],=#/]+|["/])""", re.S
)


@dataclass(frozen=True)
class FieldDrift:
    """One field, as it is and as it has to be."""

    field: str
    found: str
    wanted: str


@dataclass(frozen=True)
class Change:
    """`create`: it is not there. `change`: fields of it differ. `remake`: fields differ that can't
    be changed where they are, so that a person has to decide. `foreign`: nobody declared it.
    """

    op: Op
    kind: Kind
    name: str
    fields: tuple[FieldDrift, ...] = ()

    @property
    def key(self) -> Key:
        return (self.kind, self.name)

    @property
    def object(self) -> str:
        return f"{self.kind} {self.name}"


def compare(wanted: Sequence[Thing], found: Found) -> tuple[Change, ...]:
    """In the order in which they are made; what is foreign comes last, sorted."""
    unusable = {thing.name for thing in wanted if _is_other_mount(thing, found)}
    changes = [
        change
        for thing in wanted
        if thing.within not in unusable
        for change in _of_thing(thing, found.get(thing.key))
    ]
    declared = {thing.key for thing in wanted}
    foreign = sorted(key for key in found if key not in declared)
    return (*changes, *(Change("foreign", kind, name) for kind, name in foreign))


def to_apply(changes: Iterable[Change]) -> tuple[Change, ...]:
    """Those that a program can make."""
    return tuple(change for change in changes if change.op in ("create", "change"))


def to_mend(
    layout: VaultLayout, wanted: Sequence[Thing], changes: Iterable[Change]
) -> list[Change]:
    """Those of them that need no person: a login of the bootstrap class may make them, and nothing
    that was lost gets a namesake.
    """
    things = {thing.key: thing for thing in wanted}
    return [
        change
        for change in to_apply(changes)
        if made_alone(layout, things[change.key])
        and not (change.op == "create" and change.kind in PRECIOUS)
    ]


def is_foreign_policy(layout: VaultLayout, name: str) -> bool:
    """Whether its name is under our prefix and not one of ours, nor under a longer prefix."""
    ours = name.startswith(f"{layout.prefix}-")
    return ours and not any(name.endswith(f"-{secret_class}") for secret_class in CLASSES)


def found_fields(kind: Kind, raw: Mapping[str, Any]) -> dict[str, str]:
    """Vault's own description of a thing as texts."""
    flat: dict[str, Any] = dict(raw)
    if kind == "mount":
        options = raw.get("options") or {}
        flat |= raw.get("config") or {}
        if raw.get("type") == "kv" and str(options.get("version")) == "2":
            flat["type"] = "kv-v2"
    return {name: text_of(name, value) for name, value in flat.items() if _is_plain(value)}


def text_of(field: str, value: Any) -> str:
    """A value of Vault's as the text that would be written for it."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return ",".join(sorted(map(str, value)))
    text = str(value).strip() if field != "policy" else str(value)
    return _seconds(text) if field in _DURATIONS else text


def policy_words(text: str) -> tuple[str, ...]:
    """A policy without its white space and comments: what it grants is the same."""
    return tuple(word for found in _TOKEN.finditer(text) if (word := found[1] or found[2]))


def _is_other_mount(thing: Thing, found: Found) -> bool:
    """Whether a mount of another type has its name: what should be in it can't be."""
    there = found.get(thing.key)
    return (
        thing.kind == "mount"
        and there is not None
        and there.get(MOUNT_TYPE_FIELD) != thing.fields[MOUNT_TYPE_FIELD]
    )


def _of_thing(thing: Thing, found: Mapping[str, str] | None) -> list[Change]:
    change = Change("create", thing.kind, thing.name)
    if found is None:
        return [change]
    drifts = [
        FieldDrift(name, has, text)
        for name, text in sorted(thing.fields.items())
        if not _same(name, has := found.get(name, "") or _ABSENT.get(name, ""), text)
    ]
    fixed = FIXED.get(thing.kind, frozenset())
    loose = tuple(drift for drift in drifts if drift.field not in fixed)
    stuck = tuple(drift for drift in drifts if drift.field in fixed)
    made = [replace(change, op="change", fields=loose)] if loose else []
    return [*made, *([replace(change, op="remake", fields=stuck)] if stuck else [])]


def _same(field: str, found: str, wanted: str) -> bool:
    if field == "policy":
        return policy_words(found) == policy_words(wanted)
    return found == wanted


def _is_plain(value: Any) -> bool:
    return not isinstance(value, dict)


def _seconds(text: str) -> str:
    """`72h`, `1h30m`, `3600` and `3600s` in seconds; what is no duration stays as it is."""
    if text.isdecimal():
        return f"{int(text)}s"
    if not _DURATION.fullmatch(text):
        return text
    parts = re.findall(r"(\d+)([dhms])", text)
    return f"{sum(int(count) * _UNIT_S[unit] for count, unit in parts)}s"
