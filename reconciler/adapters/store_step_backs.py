"""Canaries that went back, in SQL: the part of `ports.Store` that remembers them."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Protocol

from pydantic import TypeAdapter
from sqlalchemy import Connection, select

from reconciler.adapters import store_schema as tables
from reconciler.adapters.store_engine import insert
from reconciler.adapters.store_rows import delete_where
from reconciler.core.records import StepBack
from reconciler.ports import Changes

_STEP_BACK: TypeAdapter[StepBack] = TypeAdapter(StepBack)


class _Sql(Protocol):
    def _read(self) -> AbstractContextManager[Connection]: ...


class SqlStepBacks:
    """Mixed into `SqlStore`."""

    def step_backs(self: _Sql) -> Mapping[str, StepBack]:
        table = tables.step_backs
        query = select(table.c.promotion, table.c.document).order_by(table.c.promotion)
        with self._read() as connection:
            rows = connection.execute(query)
            return {name: _STEP_BACK.validate_json(document) for name, document in rows}


def write_step_backs(connection: Connection, changes: Changes) -> None:
    """Those that are over first: a canary may go back again, with other content."""
    table = tables.step_backs
    delete_where(connection, table.c.promotion, changes.steps_over)
    for back in changes.step_backs:
        document = _STEP_BACK.dump_json(back).decode()
        statement = insert(connection, table).values(promotion=back.promotion, document=document)
        connection.execute(statement.on_conflict_do_nothing(index_elements=[table.c.promotion]))
