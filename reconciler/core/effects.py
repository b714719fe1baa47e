"""What a change of the state repo means for what runs, by itself: no live state is looked at.

Rules: both sides are whole desired states. What is held is left as it is, whatever its file says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from node_agent.wire import Workload
from reconciler.core.changes import FieldChange, ObjectChange, field_changes
from reconciler.core.desired import Desired, Target
from reconciler.core.names import InstanceKey
from reconciler.core.problems import Problem

EffectKind = Literal["launch", "replace", "move", "rename", "stop", "start", "remove", "held"]
_NEW_NAME = ("instance",)


@dataclass(frozen=True)
class Effect:
    """What happens to one instance. `node` is where it will be, or was if it goes.

    `text` says what changes as short as it can be said, `fields` are those of its workload.
    move: to another node; rename: it keeps running under a new name.
    """

    kind: EffectKind
    instance: InstanceKey
    node: str
    text: str
    fields: tuple[FieldChange, ...] = ()


@dataclass(frozen=True)
class Comparison:
    """Two readings of the state repo. `effects` by environment; problems are those of each side."""

    before: str
    after: str
    changes: tuple[ObjectChange, ...]
    effects: Mapping[str, tuple[Effect, ...]]
    problems_before: tuple[Problem, ...] = ()
    problems_after: tuple[Problem, ...] = ()

    @property
    def same(self) -> bool:
        return not self.changes and not any(self.effects.values())


def effects(before: Desired, after: Desired) -> tuple[Effect, ...]:
    """What the step from one desired state to the other asks for, sorted by instance."""
    old, new = _running(before), _running(after)
    former = {
        key: target.instance.moved_from
        for key, target in new.items()
        if target.instance.moved_from in old and key not in old
    }
    renamed = {one for one in former.values() if one not in new}
    found: list[Effect] = []
    for key in sorted({*old, *new}):
        if key in after.held:
            found += [] if key in before.held else [_held(key, old.get(key), after.held[key])]
        elif key in new:
            moved = former.get(key)
            was = old.get(moved if moved in renamed and moved is not None else key)
            found += _wanted(key, was, new[key])
        elif key not in renamed:
            found.append(_removed(old[key], after.targets.get(key)))
    left = sorted(after.held.keys() - before.held.keys() - old.keys() - new.keys())
    found += [_held(key, None, after.held[key]) for key in left]
    return tuple(sorted(found, key=lambda effect: effect.instance))


def _running(desired: Desired) -> dict[InstanceKey, Target]:
    targets = desired.targets.items()
    return {key: one for key, one in targets if one.instance.run != "decommissioned"}


def _held(key: InstanceKey, old: Target | None, why: str) -> Effect:
    return Effect("held", key, old.instance.node if old else "", why)


def _removed(old: Target, new: Target | None) -> Effect:
    why = "its instance has it no longer" if old.instance.member_of else "its manifest is gone"
    why = "desired: decommissioned" if new is not None else why
    text = f"version {old.instance.version}, {why}"
    return Effect("remove", old.instance.key, old.instance.node, text)


def _wanted(key: InstanceKey, old: Target | None, new: Target) -> list[Effect]:
    version, node = new.instance.version, new.instance.node
    if old is None:
        digest = new.workload.image.digest[7:19]
        paused = ", stopped" if new.instance.run == "stopped" else ""
        return [Effect("launch", key, node, f"version {version} ({digest}){paused}")]
    found: list[Effect] = []
    if old.instance.key != key:
        found.append(Effect("rename", key, node, f"was {old.instance.key}, keeps running"))
    fields = workload_changes(old.workload, new.workload)
    if old.instance.node != node:
        text = f"from {old.instance.node} to {node}"
        found.append(Effect("move", key, node, f"{text}, version {version}", fields))
    elif fields:
        found.append(Effect("replace", key, node, _what(old, new, fields), fields))
    if old.instance.run != new.instance.run:
        kind: EffectKind = "stop" if new.instance.run == "stopped" else "start"
        found.append(Effect(kind, key, node, f"desired: {new.instance.run}"))
    return found


def workload_changes(old: Workload, new: Workload) -> tuple[FieldChange, ...]:
    """What makes the one workload another; its name alone does not."""
    return field_changes(
        old.model_dump(mode="json", exclude={*_NEW_NAME}),
        new.model_dump(mode="json", exclude={*_NEW_NAME}),
    )


def _what(old: Target, new: Target, fields: tuple[FieldChange, ...]) -> str:
    was, now = old.instance.version, new.instance.version
    digests = old.workload.image.digest[7:19], new.workload.image.digest[7:19]
    parts = [f"version {was} → {now}" if was != now else f"version {now}"]
    if digests[0] != digests[1]:
        parts.append(f"image {digests[0]} → {digests[1]}")
    names = {_name(field.pointer) for field in fields} - {"image", "labels"}
    return ", ".join([*parts, *sorted(names)])


def _name(pointer: str) -> str:
    """The field of the workload a pointer lies in: `limits.memory_mib`, `ports`, `service api`."""
    _, first, *rest = pointer.split("/")
    if first == "topology" and rest[:1] == ["services"] and rest[1:]:
        return f"service {rest[1]}"
    return f"{first}.{rest[0]}" if first in ("limits", "readiness") and rest else first
