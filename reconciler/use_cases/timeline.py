"""Everything that happened to one instance, under all the names it had.

Rule: reads only, page by page; a name is followed back through the events of its renames.
"""

from __future__ import annotations

from collections.abc import Iterator

from reconciler.core.lifecycle import EVENT
from reconciler.core.names import InstanceKey
from reconciler.core.records import NumberedEvent
from reconciler.ports import Store

_PAGE = 1000
_NAMES_MAX = 20


def events_of(store: Store, instance: InstanceKey) -> list[NumberedEvent]:
    """Oldest first."""
    found: dict[int, NumberedEvent] = {}
    names, known = [instance], {instance}
    while names and len(known) <= _NAMES_MAX:
        for numbered in _under(store, names.pop()):
            found[numbered.cursor] = numbered
            former = InstanceKey(numbered.event.data.get("from", ""))
            if numbered.event.type == f"{EVENT}moved" and former and former not in known:
                known.add(former)
                names.append(former)
    return [found[cursor] for cursor in sorted(found)]


def _under(store: Store, instance: InstanceKey) -> Iterator[NumberedEvent]:
    after = 0
    while page := store.events(after=after, limit=_PAGE, instance=instance):
        yield from page
        after = page[-1].cursor
