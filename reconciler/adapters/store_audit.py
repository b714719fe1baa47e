"""The audit trail and names used once, inside a transaction of the store.

Rules: as in `store_rows.py`. Rows are only ever added, under the lock of one counter, so that
several processes make one chain. It is taken last in a transaction: who waits for it waits for
nobody who waits for them. Number and hash of the newest row are kept apart from the rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from pydantic import TypeAdapter
from sqlalchemy import Connection, Row, delete, select

from reconciler.adapters import store_schema as tables
from reconciler.adapters.store_engine import insert
from reconciler.adapters.store_rows import batches, lock_counter, save_single, single, upsert
from reconciler.core.audit import FIRST, chained
from reconciler.core.records import AuditEntry, AuditRow
from reconciler.errors import Refused

_COUNTER = "audit"
_HEAD = "audit_head"
_ENTRY = tuple(field.name for field in fields(AuditEntry))
_FORGOTTEN_MAX = 1000
"""Expired names deleted at once: the rest goes with the next call."""


@dataclass(frozen=True)
class AuditHead:
    seq: int
    row_hash: str


_HEADS: TypeAdapter[AuditHead] = TypeAdapter(AuditHead)


def append_audit(connection: Connection, entries: Sequence[AuditEntry]) -> None:
    if not entries:
        return
    counted = lock_counter(connection, _COUNTER)
    seq, row_hash = audit_head(connection)
    # They differ only when somebody tampered. The rows go on, and `verify` tells.
    rows = chained(entries, max(seq, counted), row_hash)
    for batch in batches([_to_row(row) for row in rows]):
        connection.execute(insert(connection, tables.audit), batch)
    newest = rows[-1]
    upsert(connection, tables.counters.c.name, [{"name": _COUNTER, "value": newest.seq}])
    head = _HEADS.dump_json(AuditHead(newest.seq, newest.row_hash)).decode()
    save_single(connection, _HEAD, head)


def audit_rows(connection: Connection, after: int, limit: int) -> list[AuditRow]:
    table = tables.audit
    columns = [table.c[name] for name in ("seq", "previous_hash", "row_hash", *_ENTRY)]
    query = select(*columns).where(table.c.seq > after).order_by(table.c.seq)
    return [_from_row(row) for row in connection.execute(query.limit(max(limit, 0)))]


def audit_head(connection: Connection) -> tuple[int, str]:
    document = single(connection, _HEAD)
    if document is None:
        return FIRST
    head = _HEADS.validate_json(document)
    return head.seq, head.row_hash


def use_once(connection: Connection, name: str, expires_at_ms: int, now_ms: int) -> bool:
    table = tables.used_once
    use = insert(connection, table).values(name=name, expires_at_ms=expires_at_ms)
    again = use.on_conflict_do_update(
        index_elements=[table.c.name],
        set_={"expires_at_ms": use.excluded.expires_at_ms},
        where=table.c.expires_at_ms <= now_ms,
    )
    first = connection.execute(again.returning(table.c.name)).first() is not None
    # Rows that another process deletes just now are passed over, not waited for.
    expired = (
        select(table.c.name)
        .where(table.c.expires_at_ms <= now_ms, table.c.name != name)
        .order_by(table.c.expires_at_ms)
        .limit(_FORGOTTEN_MAX)
        .with_for_update(skip_locked=True)
    )
    connection.execute(delete(table).where(table.c.name.in_(expired)))
    return first


def _to_row(row: AuditRow) -> dict[str, Any]:
    place = {"seq": row.seq, "previous_hash": row.previous_hash, "row_hash": row.row_hash}
    return {**place, **vars(row.entry)}


def _from_row(row: Row[Any]) -> AuditRow:
    seq, previous_hash, row_hash, *entry = tuple(row)
    if not isinstance(seq, int):
        # SQLite keeps whatever is written into a column.
        raise Refused("audit_unreadable", f"an audit row has {seq!r} for its number")
    return AuditRow(seq, AuditEntry(*entry), previous_hash, row_hash)
