"""What differs between two readings of the state repo: object by object, field by field.

Rules:
- What is compared is what a manifest says, not how it is written: comments, order of keys and the
  place in a file are no difference.
- A document that can't be read is neither removed nor added: it is said to be unreadable.
- Entries of a list that have a name of their own are compared by it, the rest by place.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Literal

from reconciler.core.desired import Candidate, StateObject
from reconciler.core.names import ObjectRef
from reconciler.core.parse import escape
from reconciler.core.validate import invalid_objects


class Absent(Enum):
    """The value of a field that is not there. A type of its own: null is a value."""

    ABSENT = "absent"


ABSENT = Absent.ABSENT
ENTRY_KEYS = ("name", "id", "uuid", "key_id")
"""What an entry of a list is told apart by, where every entry has it."""

Kind = Literal["added", "removed", "changed", "moved", "unreadable", "readable"]


@dataclass(frozen=True)
class FieldChange:
    """One field. `pointer` is a JSON pointer, but a named entry of a list stands by its name."""

    pointer: str
    old: object
    new: object


@dataclass(frozen=True)
class ObjectChange:
    """One object. `path` is where it stands, or stood if it was removed.

    moved: another file, the same content. unreadable: its document can't be read any more;
    readable: it could not be read before. `renamed_from` is set on an added instance whose spec is
    that of a removed one; `declared` when its `moved_from` says so.
    """

    ref: ObjectRef
    kind: Kind
    path: str
    fields: tuple[FieldChange, ...] = ()
    path_before: str = ""
    renamed_from: ObjectRef | None = None
    declared: bool = False


def changes(
    before: Mapping[ObjectRef, StateObject],
    after: Mapping[ObjectRef, StateObject],
    *,
    unread_before: frozenset[ObjectRef] = frozenset(),
    unread_after: frozenset[ObjectRef] = frozenset(),
) -> tuple[ObjectChange, ...]:
    """Every difference, sorted by object. `unread_…`: there, but can't be read (see `unread`)."""
    found: list[ObjectChange] = []
    for ref in after.keys() - before.keys():
        kind: Kind = "readable" if ref in unread_before else "added"
        found.append(ObjectChange(ref, kind, after[ref].path))
    for ref in before.keys() - after.keys():
        kind = "unreadable" if ref in unread_after else "removed"
        found.append(ObjectChange(ref, kind, before[ref].path))
    for ref, old in before.items():
        new = after.get(ref)
        if new is None or new is old:
            continue
        fields = field_changes(old.document, new.document)
        if fields:
            found.append(ObjectChange(ref, "changed", new.path, fields, old.path))
        elif new.path != old.path:
            found.append(ObjectChange(ref, "moved", new.path, (), old.path))
    return tuple(sorted(_with_renames(found, before, after), key=lambda change: change.ref))


def unread(candidate: Candidate, other: Mapping[ObjectRef, StateObject]) -> frozenset[ObjectRef]:
    """Objects that `candidate` may hold although they can't be read: invalid, or in such a file.

    `other` is a reading in which they are there: a file's name does not say what it held.
    """
    invalid = invalid_objects(candidate).keys()
    broken = candidate.broken_paths
    missing = ((ref, found.path) for ref, found in other.items() if ref not in candidate.objects)
    hidden = {ref for ref, path in missing if broken and not broken.isdisjoint(_and_above(path))}
    return frozenset(hidden | {ref for ref in invalid if ref not in candidate.objects})


def field_changes(old: object, new: object, pointer: str = "") -> tuple[FieldChange, ...]:
    """Every difference between two JSON values, in the order of their fields."""
    # `==` takes true for 1; the text of a value tells them apart at the same speed.
    if old is new or (old == new and repr(old) == repr(new)):
        return ()
    return tuple(_walk(old, new, pointer))


def value_at(document: object, pointer: str) -> object:
    """What a pointer of `FieldChange` names in a document; ABSENT when nothing stands there."""
    value: Any = document
    for segment in pointer.split("/")[1:]:
        name = segment.replace("~1", "/").replace("~0", "~")
        if isinstance(value, Mapping):
            value = value.get(name, ABSENT)
        elif isinstance(value, list | tuple):
            value = _entry(value, name)
        else:
            return ABSENT
    return value


def dotted(pointer: str) -> str:
    """A pointer for people: `spec.runtime_profile.ports.http`, odd names in brackets."""
    text = ""
    for segment in pointer.split("/")[1:]:
        name = segment.replace("~1", "/").replace("~0", "~")
        plain = name.replace("_", "").replace("-", "").isalnum()
        if plain:
            text += f".{name}" if text else name
        else:
            text += f"[{json.dumps(name, ensure_ascii=False)}]"
    return text


def _and_above(path: str) -> Iterator[str]:
    while path:
        yield path
        path = path.rpartition("/")[0]


def _walk(old: Any, new: Any, pointer: str) -> Iterator[FieldChange]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        yield from _by_key(old, new, pointer)
    elif isinstance(old, list | tuple) and isinstance(new, list | tuple):
        yield from _lists(old, new, pointer)
    elif _told(old) != _told(new):
        yield FieldChange(pointer, old, new)


def _by_key(old: Mapping[str, Any], new: Mapping[str, Any], pointer: str) -> Iterator[FieldChange]:
    for key in (*old, *(key for key in new if key not in old)):
        yield from _walk(old.get(key, ABSENT), new.get(key, ABSENT), f"{pointer}/{escape(key)}")


def _lists(old: Sequence[Any], new: Sequence[Any], pointer: str) -> Iterator[FieldChange]:
    named = _named(old, new)
    if named is not None:
        yield from _by_key(*named, pointer)
    elif _scalars(old) and _scalars(new):
        yield from _of_scalars(old, new, pointer)
    else:
        for index in range(max(len(old), len(new))):
            one = old[index] if index < len(old) else ABSENT
            other = new[index] if index < len(new) else ABSENT
            yield from _walk(one, other, f"{pointer}/{index}")


def _of_scalars(old: Sequence[Any], new: Sequence[Any], pointer: str) -> Iterator[FieldChange]:
    """By entry where that says it all: a lease of GPUs loses one, not every one behind it."""
    was, now = [_told(value) for value in old], [_told(value) for value in new]
    there, wanted = {*was}, {*now}
    kept = [one for one in was if one in wanted]
    if was == now:
        return
    if len(there) < len(was) or len(wanted) < len(now) or kept != [o for o in now if o in there]:
        yield FieldChange(pointer, list(old), list(new))
        return
    replaced = [i for i, pair in enumerate(zip(was, now, strict=False)) if pair[0] != pair[1]]
    if len(was) == len(now) and len(replaced) == len(was) - len(kept):
        for index in replaced:
            yield FieldChange(f"{pointer}/{index}", old[index], new[index])
        return
    for is_bool, value in was:
        if (is_bool, value) not in wanted:
            yield FieldChange(f"{pointer}/{escape(str(value))}", value, ABSENT)
    for is_bool, value in now:
        if (is_bool, value) not in there:
            yield FieldChange(f"{pointer}/{escape(str(value))}", ABSENT, value)


def _told(value: Any) -> tuple[bool, Any]:
    """A value that can be told from any other: in Python `1 == True`."""
    return isinstance(value, bool), value


def _scalars(values: Sequence[Any]) -> bool:
    return not any(isinstance(value, Mapping | list | tuple) for value in values)


def _named(old: Sequence[Any], new: Sequence[Any]) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Both lists by the name of their entries, where all have one and no two the same."""
    for key in ENTRY_KEYS:
        both = tuple(
            {str(entry[key]): entry for entry in entries if _has(entry, key)}
            for entries in (old, new)
        )
        if len(both[0]) == len(old) and len(both[1]) == len(new):
            return both[0], both[1]
    return None


def _has(entry: Any, key: str) -> bool:
    return isinstance(entry, Mapping) and isinstance(entry.get(key), str | int)


def _entry(values: Sequence[Any], name: str) -> Any:
    for value in values:
        keys = (value.get(key) for key in ENTRY_KEYS) if isinstance(value, Mapping) else (value,)
        if name in {str(key) for key in keys if key is not None}:
            return value
    if name.isdecimal() and len(name) < 9 and int(name) < len(values):
        return values[int(name)]
    return ABSENT


# --- renames -------------------------------------------------------------------------------------


def _with_renames(
    found: list[ObjectChange],
    before: Mapping[ObjectRef, StateObject],
    after: Mapping[ObjectRef, StateObject],
) -> Iterator[ObjectChange]:
    """Marks each added instance that has the name or the spec of a removed one."""
    gone: dict[str, list[ObjectRef]] = defaultdict(list)
    for change in sorted(found, key=lambda change: change.ref):
        if change.kind == "removed" and change.ref.kind == "AppInstance":
            gone[_spec_text(before[change.ref])].append(change.ref)
    removed = {ref for refs in gone.values() for ref in refs}
    for change in sorted(found, key=lambda change: change.ref):
        if change.kind != "added" or change.ref.kind != "AppInstance":
            yield change
            continue
        former = _moved_from(after[change.ref])
        alike = gone.get(_spec_text(after[change.ref]), [])
        source = former if former in removed else next(iter(alike), None)
        if source is None:
            yield change
            continue
        if source in alike:
            alike.remove(source)
        fields = field_changes(before[source].document, after[change.ref].document)
        told = tuple(one for one in fields if one.pointer not in _SAID_BY_A_RENAME)
        yield ObjectChange(
            change.ref, "added", change.path, told, "", source, declared=source == former
        )


_SAID_BY_A_RENAME = ("/metadata/name", "/spec/moved_from")


def _moved_from(found: StateObject) -> ObjectRef | None:
    former = value_at(found.document, "/spec/moved_from")
    if not isinstance(former, str):
        return None
    return ObjectRef(found.ref.kind, (*found.ref.path[:-1], former))


def _spec_text(found: StateObject) -> str:
    spec = value_at(found.document, "/spec")
    fields = dict(spec) if isinstance(spec, Mapping) else {}
    fields.pop("moved_from", None)
    return json.dumps(fields, sort_keys=True)
