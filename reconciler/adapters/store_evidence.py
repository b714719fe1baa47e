"""What is known of the signatures of artifacts, in a store in SQL: one JSON document each."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from pydantic import TypeAdapter
from sqlalchemy import Connection, or_, select

from reconciler.adapters import store_schema as tables
from reconciler.adapters.store_audit import append_audit
from reconciler.adapters.store_engine import insert
from reconciler.adapters.store_rows import batches
from reconciler.core.names import ArtifactKey
from reconciler.core.records import AuditEntry
from reconciler.core.trust.evidence import AHEAD_MS, Evidence

_EVIDENCE: TypeAdapter[Evidence] = TypeAdapter(Evidence)


class _Sql(Protocol):
    def _read(self) -> AbstractContextManager[Connection]: ...

    def _write(self) -> AbstractContextManager[Connection]: ...


class SqlEvidence:
    """Mixed into `SqlStore`."""

    def evidence(self: _Sql, keys: Collection[ArtifactKey]) -> Mapping[ArtifactKey, Evidence]:
        if not keys:
            return {}
        table = tables.evidence
        names = sorted({str(key) for key in keys})
        found: dict[ArtifactKey, Evidence] = {}
        with self._read() as connection:
            for batch in batches(names):
                query = select(table.c.document).where(table.c.artifact.in_(batch))
                kept = map(_EVIDENCE.validate_json, connection.execute(query).scalars())
                found.update((one.artifact, one) for one in kept)
        return dict(sorted(found.items()))

    def save_evidence(
        self: _Sql, found: Sequence[Evidence], audit: Sequence[AuditEntry] = ()
    ) -> None:
        if not found:
            return
        with self._write() as connection:
            for batch in batches(sorted(found, key=lambda one: one.artifact)):
                _upsert(connection, batch)
            append_audit(connection, audit)


def _upsert(connection: Connection, found: Sequence[Evidence]) -> None:
    """In place of older evidence only: of two who look at once, the later look counts. One much
    later was by a clock that was wrong.
    """
    table = tables.evidence
    statement = insert(connection, table)
    kept_ms, new_ms = table.c.checked_at_ms, statement.excluded.checked_at_ms
    newer = statement.on_conflict_do_update(
        index_elements=[table.c.artifact],
        set_={name: statement.excluded[name] for name in ("checked_at_ms", "document")},
        where=or_(kept_ms <= new_ms, kept_ms > new_ms + AHEAD_MS),
    )
    rows = [
        {
            "artifact": str(one.artifact),
            "checked_at_ms": one.checked_at_ms,
            "document": _EVIDENCE.dump_json(one).decode(),
        }
        for one in found
    ]
    connection.execute(newer, rows)
