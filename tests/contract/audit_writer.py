"""A process that adds audit rows: `python audit_writer.py URL NAME COUNT`.

Each is added by itself; a name that is used once goes with it.
"""

from __future__ import annotations

import sys

from reconciler.adapters.store_sql import SqlStore
from reconciler.core.records import AuditEntry

if __name__ == "__main__":
    url, name, count = sys.argv[1:]
    store = SqlStore.open(url, 60_000)
    sys.stdin.readline()
    won = 0
    for number in range(int(count)):
        store.append_audit([AuditEntry(number, name, "system", "test.row.added", name)])
        won += store.use_once(f"name-{number}", 100, 1)
    print(won)
    store.close()
