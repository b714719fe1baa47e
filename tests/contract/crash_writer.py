"""A process that commits without end, to be killed: `python crash_writer.py URL START`.

Prints each number once it is committed. Every commit holds two records, two events and an intent.
"""

from __future__ import annotations

import sys

from reconciler.adapters.store_sql import SqlStore
from reconciler.core.names import ActionId, InstanceKey, Revision
from reconciler.core.records import Event, InstanceRecord, Intent, State
from reconciler.ports import Changes

REVISION = Revision("a" * 40)


def changes(number: int) -> Changes:
    keys = [InstanceKey(f"acme/{side}/{number}") for side in ("left", "right")]
    return Changes(
        records=[_record(key) for key in keys],
        events=[Event(f"e-{key}", "x", key, "c", REVISION, number) for key in keys],
        intents=[_intent(number, keys[0])],
    )


def _record(key: InstanceKey) -> InstanceRecord:
    padding = "x" * 3_000
    return InstanceRecord(
        key,
        "app",
        "o",
        "p",
        "node",
        State.RUNNING,
        1,
        "c",
        REVISION,
        "1",
        "h",
        "d",
        message=padding,
    )


def _intent(number: int, key: InstanceKey) -> Intent:
    action_id = ActionId(f"a-{number}")
    return Intent(action_id, "launch", key, "node", f"t-{number}", number, "c", "h", "{}", 0, 1)


if __name__ == "__main__":
    store = SqlStore.open(sys.argv[1])
    number = int(sys.argv[2])
    while True:
        store.commit(changes(number))
        print(number, flush=True)
        number += 1
