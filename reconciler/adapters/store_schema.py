"""The tables of the store, the same in SQLite and PostgreSQL.

Rules: a column for what is queried or updated by itself, JSON text for the rest. Times are
milliseconds since the epoch. A change here comes with a migration; a test compares the two.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
)

REVISION = "0004"
"""Of the newest migration; a test holds the two together."""

metadata = MetaData()

# Alembic's own: made and written by it, read here to see whether it has anything to do.
migrated = Table("alembic_version", MetaData(), Column("version_num", Text))

leases = Table(
    "leases",
    metadata,
    Column("name", Text, primary_key=True),
    Column("holder", Text, nullable=False),
    Column("expires_at_ms", BigInteger, nullable=False),
)

# What there is only one of: the last accepted revision, the last pass.
singles = Table(
    "singles",
    metadata,
    Column("name", Text, primary_key=True),
    Column("document", Text, nullable=False),
)

# Cursors are counted here, in the transaction that inserts the events. The row lock makes them
# visible in rising order, which a database sequence does not promise.
counters = Table(
    "counters",
    metadata,
    Column("name", Text, primary_key=True),
    Column("value", BigInteger, nullable=False),
)

accepted_objects = Table(
    "accepted_objects",
    metadata,
    Column("ref", Text, primary_key=True),
    Column("path", Text, nullable=False),
    Column("line", Integer, nullable=False),
    Column("document_json", Text, nullable=False),
    Column("revision", Text, nullable=False),
    Column("signed_by", Text, nullable=False, server_default="", key="by"),
)

refused_changes = Table(
    "refused_changes",
    metadata,
    Column("subject", Text, primary_key=True),
    Column("document", Text, nullable=False),
)

instances = Table(
    "instances",
    metadata,
    Column("key", Text, primary_key=True),
    Column("document", Text, nullable=False),
)

events = Table(
    "events",
    metadata,
    Column("cursor", BigInteger, primary_key=True, autoincrement=False),
    Column("event_id", Text, nullable=False),
    Column("instance", Text, nullable=False),
    Column("document", Text, nullable=False),
    UniqueConstraint("event_id", name="events_event_id"),
    Index("events_instance", "instance", "cursor"),
)

intents = Table(
    "intents",
    metadata,
    Column("action_id", Text, primary_key=True),
    Column("kind", Text, nullable=False),
    Column("instance", Text, nullable=False),
    Column("node", Text, nullable=False),
    Column("task_id", Text, nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("correlation_id", Text, nullable=False),
    Column("target_hash", Text, nullable=False),
    Column("envelope", Text, nullable=False),
    Column("created_at_ms", BigInteger, nullable=False),
    Column("expires_at_ms", BigInteger, nullable=False),
    Column("state", Text, nullable=False),
    Column("detail", Text, nullable=False),
    UniqueConstraint("task_id", name="intents_task_id"),
    UniqueConstraint("node", "seq", name="intents_node_seq"),
    Index("intents_instance", "instance"),
    Index("intents_state", "state", "node"),
)

join_tokens = Table(
    "join_tokens",
    metadata,
    Column("secret_hash", Text, primary_key=True),
    Column("node", Text, nullable=False),
    Column("expires_at_ms", BigInteger, nullable=False),
    Column("used_at_ms", BigInteger, nullable=True),
)

nodes = Table(
    "nodes",
    metadata,
    Column("name", Text, primary_key=True),
    Column("public_key", Text, nullable=False),
    Column("key_id", Text, nullable=False),
    Column("joined_at_ms", BigInteger, nullable=False),
    Column("report_json", Text, nullable=True),
    Column("reported_at_ms", BigInteger, nullable=True),
    Column("report_seq", BigInteger, nullable=False),
    Column("last_task_seq", BigInteger, nullable=False),
    Column("revoked_at_ms", BigInteger, nullable=True),
    Column("revoked_reason", Text, nullable=False, server_default=""),
    Column("certificate_serial", Text, nullable=False, server_default=""),
    Column("certificate_ends_at_ms", BigInteger, nullable=True),
    Column("heard_since_ms", BigInteger, nullable=True),
    UniqueConstraint("key_id", name="nodes_key_id"),
)

pass_requests = Table(
    "pass_requests",
    metadata,
    Column("reason", Text, primary_key=True),
    Column("asked_at_ms", BigInteger, nullable=False),
)

# Every field of an entry is a column, so that nothing in a row is outside of its hash.
audit = Table(
    "audit",
    metadata,
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("previous_hash", Text, nullable=False),
    Column("row_hash", Text, nullable=False),
    Column("at_ms", BigInteger, nullable=False),
    Column("actor", Text, nullable=False),
    Column("requester_type", Text, nullable=False),
    Column("action", Text, nullable=False),
    Column("object", Text, nullable=False),
    Column("before", Text, nullable=False),
    Column("after", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("revision", Text, nullable=False),
    Column("correlation_id", Text, nullable=False),
    Column("result", Text, nullable=False),
    Column("key_id", Text, nullable=False),
    Column("via", Text, nullable=False),
)

used_once = Table(
    "used_once",
    metadata,
    Column("name", Text, primary_key=True),
    Column("expires_at_ms", BigInteger, nullable=False),
    Index("used_once_expires", "expires_at_ms"),
)

# Publish and pull intents of artifacts; their credentials as hashes.
transfers = Table(
    "transfers",
    metadata,
    Column("id", Text, primary_key=True),
    Column("owner", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("created_at_ms", BigInteger, nullable=False),
    Column("expires_at_ms", BigInteger, nullable=False),
    Column("document", Text, nullable=False),
    Index("transfers_owner", "owner", "created_at_ms"),
    Index("transfers_expiry", "state", "expires_at_ms"),
)

evidence = Table(
    "evidence",
    metadata,
    Column("artifact", Text, primary_key=True),
    Column("checked_at_ms", BigInteger, nullable=False),
    Column("document", Text, nullable=False),
)

step_backs = Table(
    "step_backs",
    metadata,
    Column("promotion", Text, primary_key=True),
    Column("document", Text, nullable=False),
)
