"""What the store does inside a transaction: rows to records and back, and bulk writes.

Rules: every function gets the open connection of its caller's transaction and never commits.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields, replace
from operator import itemgetter
from typing import Any, TypeVar

from pydantic import TypeAdapter
from sqlalchemy import Column, Connection, Row, Select, delete, select, update

from node_agent.wire import key_id
from reconciler.adapters import store_schema as tables
from reconciler.adapters.store_engine import insert
from reconciler.core.authority.facts import RefusedChange
from reconciler.core.names import InstanceKey
from reconciler.core.records import (
    Accepted,
    AcceptedObject,
    EnrolledNode,
    Event,
    InstanceRecord,
    Intent,
)
from reconciler.errors import Refused, Transient
from reconciler.ports import RECONCILER_LEASE

T = TypeVar("T")
EVENT: TypeAdapter[Event] = TypeAdapter(Event)
RECORD: TypeAdapter[InstanceRecord] = TypeAdapter(InstanceRecord)
REFUSED: TypeAdapter[RefusedChange] = TypeAdapter(RefusedChange)
EVENT_CURSOR = "event_cursor"
ACCEPTED_EDITION = "accepted_edition"
RECORDS_EDITION = "records_edition"
OPEN = ("queued", "accepted")
UNSETTLED = (*OPEN, "refused")
_BATCH = 500


def batches(rows: Sequence[Any]) -> Iterator[Sequence[Any]]:
    for start in range(0, len(rows), _BATCH):
        yield rows[start : start + _BATCH]


def delete_where(connection: Connection, column: Column[Any], values: Sequence[str]) -> None:
    for batch in batches(values):
        connection.execute(delete(column.table).where(column.in_(batch)))


def upsert(connection: Connection, key: Column[Any], rows: Sequence[Mapping[str, Any]]) -> None:
    if not rows:
        return
    statement = insert(connection, key.table)
    others = {name: statement.excluded[name] for name in rows[0] if name != key.name}
    connection.execute(
        statement.on_conflict_do_update(index_elements=[key], set_=others), list(rows)
    )


def refuse_unless_leading(connection: Connection, holder: str) -> None:
    """Transient when somebody else took the reconciler's lease; with no `holder` nobody asks.

    In the transaction that writes, so that nobody takes it in between.
    """
    if not holder:
        return
    table = tables.leases
    query = select(table.c.holder).where(table.c.name == RECONCILER_LEASE).with_for_update()
    if connection.execute(query).scalar_one_or_none() != holder:
        raise Transient("lease_lost", "somebody else leads by now: nothing was stored")


def single(connection: Connection, name: str) -> str | None:
    table = tables.singles
    found: str | None = connection.execute(
        select(table.c.document).where(table.c.name == name)
    ).scalar_one_or_none()
    return found


def save_single(connection: Connection, name: str, document: str | None) -> None:
    if document is None:
        delete_where(connection, tables.singles.c.name, [name])
    else:
        upsert(connection, tables.singles.c.name, [{"name": name, "document": document}])


def accepted_objects(connection: Connection) -> dict[str, AcceptedObject]:
    table = tables.accepted_objects
    columns = (table.c[field.name] for field in fields(AcceptedObject))
    rows = connection.execute(select(*columns).order_by(table.c.ref)).all()
    return {row[0]: AcceptedObject(*row) for row in rows}


def refused_changes(connection: Connection) -> dict[str, RefusedChange]:
    table = tables.refused_changes
    rows = connection.execute(select(table.c.document).order_by(table.c.subject)).all()
    found = [REFUSED.validate_json(document) for (document,) in rows]
    return {refused.subject: refused for refused in found}


def replace_accepted(connection: Connection, before: Accepted, after: Accepted) -> None:
    """Writes what differs."""
    objects, refused = tables.accepted_objects.c.ref, tables.refused_changes.c.subject
    delete_where(connection, objects, sorted(before.objects.keys() - after.objects.keys()))
    delete_where(connection, refused, sorted(before.refused.keys() - after.refused.keys()))
    upsert(connection, objects, [asdict(it) for it in _changed(before.objects, after.objects)])
    documents = [
        {"subject": it.subject, "document": REFUSED.dump_json(it).decode()}
        for it in _changed(before.refused, after.refused)
    ]
    upsert(connection, refused, documents)


def _changed(before: Mapping[str, T], after: Mapping[str, T]) -> list[T]:
    return [
        entry
        for name, entry in sorted(after.items(), key=itemgetter(0))
        if (stored := before.get(name)) is not entry and stored != entry
    ]


def instance_records(connection: Connection) -> dict[InstanceKey, InstanceRecord]:
    table = tables.instances
    rows = connection.execute(select(table.c.document).order_by(table.c.key)).all()
    found = [RECORD.validate_json(document) for (document,) in rows]
    return {record.key: record for record in found}


def edition(connection: Connection, name: str) -> int:
    """How often a table was written to; 0 when never."""
    query = select(tables.counters.c.value).where(tables.counters.c.name == name)
    return int(connection.execute(query).scalar_one_or_none() or 0)


def next_edition(connection: Connection, name: str) -> int:
    """Counts a write, and keeps others from writing there until this transaction ends."""
    table = tables.counters
    count = insert(connection, table).values(name=name, value=1)
    more = count.on_conflict_do_update(
        index_elements=[table.c.name], set_={"value": table.c.value + 1}
    )
    return int(connection.execute(more.returning(table.c.value)).scalar_one())


def intents_query() -> Select[Any]:
    """Oldest first, so that the last one of an instance is the newest word on it."""
    table = tables.intents
    return select(table).order_by(table.c.created_at_ms, table.c.node, table.c.seq)


def to_intent(row: Row[Any]) -> Intent:
    return Intent(**row._mapping)


def insert_intents(connection: Connection, intents: Iterable[Intent]) -> None:
    table = tables.intents
    for intent in intents:
        row = asdict(intent)
        statement = insert(connection, table).values(row)
        written = connection.execute(
            statement.on_conflict_do_update(
                index_elements=[table.c.action_id],
                set_={name: statement.excluded[name] for name in row if name != "action_id"},
                where=table.c.state.not_in(OPEN),
            ).returning(table.c.action_id)
        )
        if written.first() is None:
            raise Refused(
                "intent_exists",
                f"somebody else already acts on {intent.instance} ({intent.kind})",
                where=intent.action_id,
            )


def supersede_intents(connection: Connection, instances: Sequence[str]) -> None:
    table = tables.intents
    for batch in batches(sorted(instances)):
        of_these = table.c.instance.in_(batch) & table.c.state.in_(UNSETTLED)
        connection.execute(update(table).where(of_these).values(state="superseded"))


def insert_events(connection: Connection, events: Sequence[Event]) -> None:
    """Cursors come without gaps: only events that are new take one."""
    table = tables.events
    wanted = {event.event_id: event for event in reversed(events)}
    if not wanted:
        return
    cursor = lock_counter(connection, EVENT_CURSOR)
    for batch in batches(sorted(wanted)):
        known = select(table.c.event_id).where(table.c.event_id.in_(batch))
        for (event_id,) in connection.execute(known):
            del wanted[event_id]
    rows: list[dict[str, Any]] = []
    for event in events:
        if wanted.pop(event.event_id, None) is not None:
            cursor += 1
            rows.append(
                {
                    "cursor": cursor,
                    "event_id": event.event_id,
                    "instance": event.instance,
                    "document": EVENT.dump_json(event).decode(),
                }
            )
    if rows:
        connection.execute(insert(connection, table), rows)
        upsert(connection, tables.counters.c.name, [{"name": EVENT_CURSOR, "value": cursor}])


def lock_counter(connection: Connection, name: str) -> int:
    """Its value, which nobody else changes until this transaction ends."""
    table = tables.counters
    connection.execute(
        insert(connection, table)
        .values(name=name, value=0)
        .on_conflict_do_nothing(index_elements=[table.c.name])
    )
    query = select(table.c.value).where(table.c.name == name).with_for_update()
    return int(connection.execute(query).scalar_one())


def to_node(row: Row[Any]) -> EnrolledNode:
    fields = dict(row._mapping)
    del fields["key_id"]
    return EnrolledNode(**fields)


def enrol(connection: Connection, name: str, public_key: str, now_ms: int) -> EnrolledNode:
    """Task numbers go on. What the key before signed is dropped with that key, and that it was
    revoked.
    """
    table = tables.nodes
    new_id = key_id(public_key)
    owner = select(table.c.name).where(table.c.key_id == new_id, table.c.name != name)
    if connection.execute(owner).first() is not None:
        raise Refused(
            "key_in_use",
            "this agent key belongs to another node",
            where=name,
            hint="delete the agent's copied state folder and join again: a key is for one node",
        )
    known = locked_node(connection, name)
    fresh = EnrolledNode(name, public_key, now_ms)
    if known is not None and known.public_key == public_key:
        if known.revoked_at_ms is not None:
            raise Refused(
                "key_revoked",
                "this agent key was revoked",
                where=name,
                hint="delete the agent's state folder and join again: it makes a new key",
            )
        # What its agent knew then, it may have lost since.
        fresh = replace(known, report_json=None, reported_at_ms=None, heard_since_ms=None)
    elif known is not None:
        fresh = EnrolledNode(name, public_key, now_ms, last_task_seq=known.last_task_seq)
    upsert(connection, table.c.name, [{**asdict(fresh), "key_id": new_id}])
    return fresh


def locked_node(connection: Connection, name: str) -> EnrolledNode | None:
    """The node, which nobody else changes until this transaction ends."""
    query = select(tables.nodes).where(tables.nodes.c.name == name).with_for_update()
    row = connection.execute(query).one_or_none()
    return to_node(row) if row is not None else None


def known_node(connection: Connection, name: str) -> EnrolledNode:
    """The same; Refused for a node that never joined."""
    node = locked_node(connection, name)
    if node is None:
        hint = "see `gpuaas node list` for those that did"
        raise Refused("no_such_node", "no node of that name has joined", where=name, hint=hint)
    return node


def drop_join_tokens(connection: Connection, node: str) -> None:
    """Those that were not used yet: whoever has one would be let in by it."""
    table = tables.join_tokens
    unused = table.c.used_at_ms.is_(None)
    connection.execute(delete(table).where(table.c.node == node, unused))
