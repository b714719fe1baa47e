"""Where in a file a field stands: JSON pointers to lines and columns.

Rules: looked for only in files that have a problem, by reading them again. Lines and columns count
from 1; the place of a mapping's member is its key. Nothing a user wrote raises.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from typing import NamedTuple

import yaml

from reconciler.core.parse import escape, events, position


class Place(NamedTuple):
    """`text` is the scalar as it was written; empty for mappings and lists."""

    line: int
    column: int
    text: str


def locate(content: bytes, index: int, pointer: str) -> tuple[int, int]:
    """(line, column) of what a JSON pointer names in document `index`, or the nearest thing above.

    Meant for documents with problems only: it reads the file again. (0, 0) when it can't be read.
    """
    found = locate_all(content, {index: {pointer}}).get((index, pointer))
    return (found.line, found.column) if found else (0, 0)


def locate_all(content: bytes, wanted: Mapping[int, Set[str]]) -> dict[tuple[int, str], Place]:
    """Places of many pointers in one reading: (document index, pointer) → Place."""
    pointers = {
        (index, above)
        for index, those in wanted.items()
        for pointer in those
        for above in _pointer_and_above(pointer)
    }
    found: dict[tuple[int, str], Place] = {}
    try:
        for index, pointer, place in _places(content, max(wanted, default=-1), pointers):
            found.setdefault((index, pointer), place)
    except yaml.YAMLError:
        pass  # What stands before the error has its place; the error is a problem of its own.
    return {
        (index, pointer): next(
            found[index, above] for above in _pointer_and_above(pointer) if (index, above) in found
        )
        for index, those in wanted.items()
        for pointer in those
        if (index, "") in found
    }


@dataclass
class _Open:
    """A collection; `member` is the pointer and place of the next value.

    `pointer` is None where nothing below is wanted: pointers to a million nodes take long to write.
    """

    pointer: str | None
    is_map: bool
    items: int = 0
    member: tuple[str | None, tuple[int, int]] | None = None

    def below(self, key: str) -> str | None:
        return None if self.pointer is None else f"{self.pointer}/{escape(key)}"


def _places(
    content: bytes, index_max: int, wanted: Set[tuple[int, str]]
) -> Iterator[tuple[int, str, Place]]:
    """The wanted nodes, which come with all above them.

    Up to document `index_max`, no further: what comes after may be endlessly deep.
    """
    index, stack = -1, list[_Open]()
    for event in events(content):
        if isinstance(event, yaml.DocumentStartEvent):
            index, stack = index + 1, []
            if index > index_max:
                return
        elif isinstance(event, yaml.CollectionEndEvent):
            stack.pop()
        elif isinstance(event, yaml.NodeEvent):
            text = event.value if isinstance(event, yaml.ScalarEvent) else ""
            is_key, pointer, at = _step(stack, event, text)
            if pointer is not None and (index, pointer) not in wanted:
                pointer = None
            if not is_key and pointer is not None:
                yield index, pointer, Place(*at, text)
            if isinstance(event, yaml.CollectionStartEvent):
                stack.append(_Open(pointer, isinstance(event, yaml.MappingStartEvent)))


def _step(
    stack: list[_Open], event: yaml.NodeEvent, text: str
) -> tuple[bool, str | None, tuple[int, int]]:
    """(whether the node is a key, its pointer, its place)."""
    if not stack:
        return False, "", position(event)
    top = stack[-1]
    if not top.is_map:
        top.items += 1
        return False, top.below(str(top.items - 1)), position(event)
    if top.member is None:
        top.member = (top.below(text), position(event))
        pointer, at = top.member
        return True, pointer, at
    (pointer, at), top.member = top.member, None
    return False, pointer, at


def _pointer_and_above(pointer: str) -> Iterator[str]:
    yield pointer
    while pointer:
        pointer = pointer.rpartition("/")[0]
        yield pointer
