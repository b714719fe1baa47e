"""The part of a store in SQL that keeps publish and pull intents."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from pydantic import TypeAdapter
from sqlalchemy import Connection, select

from reconciler.adapters import store_schema as tables
from reconciler.adapters.store_audit import append_audit
from reconciler.adapters.store_engine import insert
from reconciler.core.records import AuditEntry
from reconciler.core.transfers import Transfer

_TRANSFER: TypeAdapter[Transfer] = TypeAdapter(Transfer)
_BESIDE = ("owner", "state", "created_at_ms", "expires_at_ms")
"""Fields that have a column of their own, to look for rows by."""


class _Sql(Protocol):
    def _read(self) -> AbstractContextManager[Connection]: ...

    def _write(self) -> AbstractContextManager[Connection]: ...


class SqlTransfers:
    """Mixed into `SqlStore`."""

    def save_transfer(self: _Sql, transfer: Transfer, audit: Sequence[AuditEntry] = ()) -> None:
        table = tables.transfers
        row = {name: getattr(transfer, name) for name in _BESIDE}
        row["document"] = _TRANSFER.dump_json(transfer).decode()
        with self._write() as connection:
            statement = insert(connection, table).values(id=transfer.id, **row)
            connection.execute(
                statement.on_conflict_do_update(index_elements=[table.c.id], set_=row)
            )
            append_audit(connection, audit)

    def transfer(self: _Sql, transfer_id: str) -> Transfer | None:
        table = tables.transfers
        with self._read() as connection:
            query = select(table.c.document).where(table.c.id == transfer_id)
            document = connection.execute(query).scalar_one_or_none()
        return _TRANSFER.validate_json(document) if document is not None else None

    def transfers(self: _Sql, owner: str = "") -> Sequence[Transfer]:
        table = tables.transfers
        query = select(table.c.document).order_by(table.c.created_at_ms.desc(), table.c.id)
        if owner:
            query = query.where(table.c.owner == owner)
        with self._read() as connection:
            return [_TRANSFER.validate_json(text) for (text,) in connection.execute(query)]

    def expired_transfers(self: _Sql, now_ms: int, limit: int) -> Sequence[Transfer]:
        table = tables.transfers
        query = select(table.c.document).order_by(table.c.expires_at_ms, table.c.id).limit(limit)
        query = query.where(table.c.state == "open", table.c.expires_at_ms <= now_ms)
        with self._read() as connection:
            return [_TRANSFER.validate_json(text) for (text,) in connection.execute(query)]
