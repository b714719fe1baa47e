"""`ports.Store` in SQL, on SQLite or PostgreSQL.

Rules:
- Every method is one transaction. What is decided from what was read is decided under a lock:
  SQLite's write lock, or PostgreSQL's row locks (FOR UPDATE, or a conditional UPDATE). No clock.
- Accepted objects and records are read whole at every pass and seldom change. Each has an edition,
  counted up in the transaction that writes there, by whichever process: what was read stays good
  for as long as the edition is the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from operator import itemgetter
from types import MappingProxyType
from typing import Any

from pydantic import TypeAdapter
from sqlalchemy import (
    Column,
    Connection,
    case,
    delete,
    func,
    or_,
    select,
    update,
)

from node_agent.wire import TaskAck
from reconciler.adapters import store_schema as tables
from reconciler.adapters.store_audit import append_audit, audit_head, audit_rows, use_once
from reconciler.adapters.store_engine import insert, open_engine, reader, translated, writer
from reconciler.adapters.store_evidence import SqlEvidence
from reconciler.adapters.store_rows import (
    ACCEPTED_EDITION,
    EVENT,
    EVENT_CURSOR,
    RECORD,
    RECORDS_EDITION,
    UNSETTLED,
    accepted_objects,
    delete_where,
    drop_join_tokens,
    edition,
    enrol,
    insert_events,
    insert_intents,
    instance_records,
    intents_query,
    known_node,
    next_edition,
    refuse_unless_leading,
    refused_changes,
    replace_accepted,
    save_single,
    single,
    supersede_intents,
    to_intent,
    to_node,
    upsert,
)
from reconciler.adapters.store_step_backs import SqlStepBacks, write_step_backs
from reconciler.adapters.store_transfers import SqlTransfers
from reconciler.core.names import InstanceKey, Revision, member_key
from reconciler.core.records import (
    REPORT_GAP_MAX_MS,
    Accepted,
    AuditEntry,
    AuditRow,
    EnrolledNode,
    InstanceRecord,
    Intent,
    NumberedEvent,
    PassSummary,
)
from reconciler.ports import Changes

Records = Mapping[InstanceKey, InstanceRecord]
_SUMMARY: TypeAdapter[PassSummary] = TypeAdapter(PassSummary)
_MOMENT: TypeAdapter[int] = TypeAdapter(int)
_ACCEPTED_REVISION = "accepted_revision"
_ACCEPTED_AT_MS = "accepted_at_ms"
_LAST_PASS = "last_pass"  # noqa: S105 - the name of a row


class SqlStore(SqlEvidence, SqlStepBacks, SqlTransfers):
    """See `ports.Store`. `open` it once a process; it is safe to share between threads."""

    def __init__(self, url: str, busy_timeout_ms: int) -> None:
        self._engine = open_engine(url, busy_timeout_ms)
        self._reader = reader(self._engine)
        self._writer = writer(self._engine)
        self._where = self._engine.url.render_as_string(hide_password=True)
        self._accepted: tuple[int, Accepted] = (-1, Accepted())
        self._records: tuple[int, Records] = (-1, {})
        """With the edition that each is; -1 for nothing read yet."""

    @classmethod
    def open(cls, url: str, busy_timeout_ms: int = 5_000) -> SqlStore:
        """Opens and migrates the store; raises Refused when that cannot be, Transient when busy."""
        return cls(url, busy_timeout_ms)

    def close(self) -> None:
        self._engine.dispose()

    @contextmanager
    def _read(self) -> Iterator[Connection]:
        with translated(self._where), self._reader.begin() as connection:
            yield connection

    @contextmanager
    def _write(self) -> Iterator[Connection]:
        with translated(self._where), self._writer.begin() as connection:
            yield connection

    # --- leases ----------------------------------------------------------------------------------

    def lease(self, name: str, holder: str, now_ms: int, ttl_ms: int) -> str:
        table = tables.leases
        with self._write() as connection:
            taken = insert(connection, table).values(
                name=name, holder=holder, expires_at_ms=now_ms + ttl_ms
            )
            free = or_(table.c.holder == holder, table.c.expires_at_ms <= now_ms)
            connection.execute(
                taken.on_conflict_do_update(
                    index_elements=[table.c.name],
                    set_={
                        "holder": taken.excluded.holder,
                        "expires_at_ms": taken.excluded.expires_at_ms,
                    },
                    where=free,
                )
            )
            query = select(table.c.holder).where(table.c.name == name)
            return str(connection.execute(query).scalar_one())

    def renew(self, name: str, holder: str, now_ms: int, ttl_ms: int) -> bool:
        table = tables.leases
        mine = update(table).where(table.c.name == name, table.c.holder == holder)
        with self._write() as connection:
            renewed = connection.execute(mine.values(expires_at_ms=now_ms + ttl_ms))
            return renewed.rowcount == 1

    def release(self, name: str, holder: str) -> None:
        table = tables.leases
        with self._write() as connection:
            connection.execute(delete(table).where(table.c.name == name, table.c.holder == holder))

    # --- the last accepted revision --------------------------------------------------------------

    def accepted(self) -> Accepted:
        with self._read() as connection:
            self._accepted = found = self._read_accepted(connection)
        return found[1]

    def _read_accepted(self, connection: Connection) -> tuple[int, Accepted]:
        known, now = self._accepted, edition(connection, ACCEPTED_EDITION)
        if known[0] == now:
            return known
        revision = single(connection, _ACCEPTED_REVISION)
        at_ms = _MOMENT.validate_json(single(connection, _ACCEPTED_AT_MS) or "0")
        objects, refused = accepted_objects(connection), refused_changes(connection)
        if revision is None:
            return now, Accepted(None, objects, refused, at_ms)
        return now, Accepted(Revision(revision), objects, refused, at_ms)

    def save_accepted(
        self, accepted: Accepted, holder: str = "", audit: Sequence[AuditEntry] = ()
    ) -> None:
        # Mostly nothing is new: look before taking the write lock.
        if self.accepted() is accepted:
            return
        with self._write() as connection:
            refuse_unless_leading(connection, holder)
            now = next_edition(connection, ACCEPTED_EDITION)
            known = self._accepted
            if known[0] != now - 1:
                known = self._read_accepted(connection)
            if known[1] != accepted:
                replace_accepted(connection, known[1], accepted)
                save_single(connection, _ACCEPTED_REVISION, accepted.revision)
                save_single(connection, _ACCEPTED_AT_MS, str(accepted.at_ms))
                append_audit(connection, audit)
        self._accepted = (now, accepted)

    # --- instance records, events and intents ----------------------------------------------------

    def records(self) -> Records:
        with self._read() as connection:
            known, now = self._records, edition(connection, RECORDS_EDITION)
            if known[0] != now:
                self._records = known = (now, MappingProxyType(instance_records(connection)))
        return known[1]

    def commit(self, changes: Changes) -> None:
        records = {record.key: record for record in changes.records}
        now = -1
        with self._write() as connection:
            refuse_unless_leading(connection, changes.holder)
            supersede_intents(connection, changes.closed)
            insert_intents(connection, changes.intents)
            insert_events(connection, changes.events)
            if records or changes.forgotten:
                now = next_edition(connection, RECORDS_EDITION)
            documents = [
                {"key": key, "document": RECORD.dump_json(record).decode()}
                for key, record in records.items()
            ]
            upsert(connection, tables.instances.c.key, documents)
            delete_where(connection, tables.instances.c.key, changes.forgotten)
            if changes.summary is not None:
                summary = _SUMMARY.dump_json(changes.summary).decode()
                save_single(connection, _LAST_PASS, summary)
            write_step_backs(connection, changes)
            append_audit(connection, changes.audit)
        known = self._records
        if known[0] == now - 1:
            # What was just stored need not be read again.
            after = {**known[1], **records}
            for key in changes.forgotten:
                after.pop(key, None)
            self._records = (now, MappingProxyType(dict(sorted(after.items(), key=itemgetter(0)))))

    def events(
        self, after: int = 0, limit: int = 1000, instance: InstanceKey | None = None
    ) -> Sequence[NumberedEvent]:
        table = tables.events
        query = select(table.c.cursor, table.c.document).where(table.c.cursor > after)
        if instance is not None:
            of_members = table.c.instance.startswith(member_key(instance, ""), autoescape=True)
            query = query.where((table.c.instance == instance) | of_members)
        with self._read() as connection:
            rows = connection.execute(query.order_by(table.c.cursor).limit(max(limit, 0)))
            return [NumberedEvent(cursor, EVENT.validate_json(text)) for cursor, text in rows]

    def last_cursor(self) -> int:
        table = tables.counters
        with self._read() as connection:
            query = select(table.c.value).where(table.c.name == EVENT_CURSOR)
            return int(connection.execute(query).scalar_one_or_none() or 0)

    def open_intents(self, now_ms: int) -> Sequence[Intent]:
        table = tables.intents
        overdue = (table.c.state == "queued") & (table.c.expires_at_ms <= now_ms)
        query = intents_query().where(table.c.state.in_(UNSETTLED))
        with self._read() as connection:
            found = [to_intent(row) for row in connection.execute(query)]
        if not any(one.state == "queued" and one.expires_at_ms <= now_ms for one in found):
            return found
        with self._write() as connection:
            connection.execute(update(table).where(overdue).values(state="expired"))
            return [to_intent(row) for row in connection.execute(query)]

    def intents(self, instance: InstanceKey | None = None) -> Sequence[Intent]:
        query = intents_query()
        if instance is not None:
            query = query.where(tables.intents.c.instance == instance)
        with self._read() as connection:
            return [to_intent(row) for row in connection.execute(query)]

    def next_seq(self, node: str) -> int:
        intents, nodes = tables.intents, tables.nodes
        with self._read() as connection:
            queued = connection.execute(
                select(func.max(intents.c.seq)).where(intents.c.node == node)
            ).scalar_one()
            reported = connection.execute(
                select(nodes.c.last_task_seq).where(nodes.c.name == node)
            ).scalar_one_or_none()
        return max(queued or 0, reported or 0) + 1

    def tasks_for(self, node: str, now_ms: int) -> Sequence[Intent]:
        table = tables.intents
        query = intents_query().where(
            table.c.node == node, table.c.state == "queued", table.c.expires_at_ms > now_ms
        )
        with self._read() as connection:
            found = [to_intent(row) for row in connection.execute(query)]
        return sorted(found, key=lambda intent: intent.seq)

    def acknowledge(self, node: str, acks: Sequence[TaskAck]) -> None:
        table = tables.intents
        if not acks:
            return
        with self._write() as connection:
            for ack in acks:
                # An expired task may have been taken over just in time: the agent's word stands.
                connection.execute(
                    update(table)
                    .where(
                        table.c.node == node,
                        table.c.task_id == ack.task_id,
                        table.c.state.in_(("queued", "expired")),
                    )
                    .values(
                        state="accepted" if ack.accepted else "refused",
                        detail="" if ack.accepted else f"{ack.code}: {ack.message}",
                    )
                )

    # --- the audit trail -------------------------------------------------------------------------

    def append_audit(self, entries: Sequence[AuditEntry]) -> None:
        if entries:
            with self._write() as connection:
                append_audit(connection, entries)

    def audit(self, after: int = 0, limit: int = 1000) -> Sequence[AuditRow]:
        with self._read() as connection:
            return audit_rows(connection, after, limit)

    def audit_head(self) -> tuple[int, str]:
        with self._read() as connection:
            return audit_head(connection)

    def use_once(self, name: str, expires_at_ms: int, now_ms: int) -> bool:
        with self._write() as connection:
            return use_once(connection, name, expires_at_ms, now_ms)

    # --- nodes -----------------------------------------------------------------------------------

    def add_join_token(self, secret_hash: str, node: str, expires_at_ms: int) -> None:
        with self._write() as connection:
            connection.execute(
                insert(connection, tables.join_tokens).values(
                    secret_hash=secret_hash, node=node, expires_at_ms=expires_at_ms
                )
            )

    def redeem_join_token(
        self, secret_hash: str, node: str, public_key: str, now_ms: int
    ) -> EnrolledNode | None:
        tokens = tables.join_tokens
        spend = (
            update(tokens)
            .where(
                tokens.c.secret_hash == secret_hash,
                tokens.c.node == node,
                tokens.c.used_at_ms.is_(None),
                tokens.c.expires_at_ms > now_ms,
            )
            .values(used_at_ms=now_ms)
        )
        with self._write() as connection:
            if connection.execute(spend).rowcount != 1:
                return None
            return enrol(connection, node, public_key, now_ms)

    def nodes(self) -> Sequence[EnrolledNode]:
        with self._read() as connection:
            rows = connection.execute(select(tables.nodes).order_by(tables.nodes.c.name))
            return [to_node(row) for row in rows]

    def node(self, name: str) -> EnrolledNode | None:
        return self._one_node(tables.nodes.c.name, name)

    def node_by_key(self, key_id: str) -> EnrolledNode | None:
        return self._one_node(tables.nodes.c.key_id, key_id)

    def revoke_node(
        self, name: str, reason: str, now_ms: int, audit: Sequence[AuditEntry] = ()
    ) -> EnrolledNode:
        table = tables.nodes
        with self._write() as connection:
            known = known_node(connection, name)
            drop_join_tokens(connection, name)
            if known.revoked_at_ms is not None:
                return known
            revoked = update(table).where(table.c.name == name)
            connection.execute(revoked.values(revoked_at_ms=now_ms, revoked_reason=reason))
            append_audit(connection, audit)
            return replace(known, revoked_at_ms=now_ms, revoked_reason=reason)

    def forget_node(self, name: str, audit: Sequence[AuditEntry] = ()) -> None:
        with self._write() as connection:
            known_node(connection, name)
            drop_join_tokens(connection, name)
            delete_where(connection, tables.nodes.c.name, [name])
            append_audit(connection, audit)

    def save_certificate(self, name: str, serial: str, ends_at_ms: int) -> None:
        table = tables.nodes
        newest = {"certificate_serial": serial, "certificate_ends_at_ms": ends_at_ms}
        with self._write() as connection:
            connection.execute(update(table).where(table.c.name == name).values(newest))

    def _one_node(self, column: Column[Any], value: str) -> EnrolledNode | None:
        with self._read() as connection:
            row = connection.execute(select(tables.nodes).where(column == value)).one_or_none()
            return to_node(row) if row is not None else None

    def save_report(
        self, node: str, report_json: str, report_seq: int, last_task_seq: int, now_ms: int
    ) -> bool:
        table = tables.nodes
        # An agent that lost its memory reports less than before; its task numbers still only rise.
        highest = case(
            (table.c.last_task_seq > last_task_seq, table.c.last_task_seq), else_=last_task_seq
        )
        unbroken = table.c.reported_at_ms >= now_ms - REPORT_GAP_MAX_MS
        heard_since = case((unbroken, func.coalesce(table.c.heard_since_ms, now_ms)), else_=now_ms)
        statement = (
            update(table)
            .where(table.c.name == node, table.c.report_seq < report_seq)
            .values(
                report_json=report_json,
                reported_at_ms=now_ms,
                heard_since_ms=heard_since,
                report_seq=report_seq,
                last_task_seq=highest,
            )
        )
        with self._write() as connection:
            return connection.execute(statement).rowcount == 1

    # --- passes ----------------------------------------------------------------------------------

    def request_pass(self, reason: str, now_ms: int) -> None:
        with self._write() as connection:
            connection.execute(
                insert(connection, tables.pass_requests)
                .values(reason=reason, asked_at_ms=now_ms)
                .on_conflict_do_nothing(index_elements=[tables.pass_requests.c.reason])
            )

    def take_requests(self) -> Sequence[str]:
        table = tables.pass_requests
        query = select(table.c.reason).order_by(table.c.asked_at_ms, table.c.reason)
        # Asked several times a second and mostly for nothing: look before taking the write lock.
        with self._read() as connection:
            if connection.execute(query.limit(1)).first() is None:
                return []
        with self._write() as connection:
            taken = [str(reason) for (reason,) in connection.execute(query.with_for_update())]
            delete_where(connection, table.c.reason, taken)
            return taken

    def last_pass(self) -> PassSummary | None:
        with self._read() as connection:
            document = single(connection, _LAST_PASS)
            return _SUMMARY.validate_json(document) if document is not None else None
