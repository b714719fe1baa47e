"""Opens the database of the store: connections, migrations, and errors in our own words.

Rules:
- What differs between SQLite and PostgreSQL is here and nowhere else.
- SQLite: WAL, every commit synced to disk, a write takes its lock at BEGIN, so that a transaction
  never reads first and finds out later that it may not write.
- Only `Transient` and `Refused` leave.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pydantic import ValidationError
from sqlalchemy import (
    URL,
    Connection,
    Engine,
    Table,
    create_engine,
    event,
    inspect,
    make_url,
    select,
    text,
)
from sqlalchemy.dialects import sqlite
from sqlalchemy.exc import (
    ArgumentError,
    DBAPIError,
    IntegrityError,
    NoSuchModuleError,
    SQLAlchemyError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from reconciler.adapters import store_schema
from reconciler.errors import GpuaasError, Refused, Transient

_WRITE = "gpuaas_write"
_MIGRATION_LOCK = 0x67707561
_DIALECTS = ("sqlite", "postgresql")


def open_engine(url: str, busy_timeout_ms: int) -> Engine:
    """A migrated database at `url` (`sqlite:///FILE` or `postgresql+psycopg://…`).

    Raises Refused for a database that is newer than this code, corrupt or out of reach.
    """
    parsed = _parse(url)
    where = parsed.render_as_string(hide_password=True)
    with translated(where):
        engine = _create(parsed, busy_timeout_ms)
        try:
            if engine.dialect.name == "sqlite":
                _switch_to_wal(engine, busy_timeout_ms)
            _migrate(engine, where)
        except BaseException:
            engine.dispose()
            raise
    return engine


def reader(engine: Engine) -> Engine:
    """For transactions that only read: one snapshot, whatever others write meanwhile."""
    if engine.dialect.name == "postgresql":
        return engine.execution_options(isolation_level="REPEATABLE READ")
    return engine


def writer(engine: Engine) -> Engine:
    """For transactions that write."""
    return engine.execution_options(**{_WRITE: True})


def insert(connection: Connection, table: Table) -> Any:
    """The dialect's INSERT, for its `on_conflict_…` methods, which have the same form in both."""
    if connection.dialect.name == "postgresql":
        from sqlalchemy.dialects import postgresql  # noqa: PLC0415 - see _migrate

        return postgresql.insert(table)
    return sqlite.insert(table)


@contextmanager
def translated(where: str) -> Iterator[None]:
    """Turns what the database library raises into `Transient` or `Refused`."""
    try:
        yield
    except ValidationError as error:
        raise Refused(
            "store_corrupt",
            f"a stored {error.title} cannot be read",
            where=where,
            hint=_REBUILD,
        ) from error
    except (SQLAlchemyError, sqlite3.Error, OverflowError) as error:
        raise _translate(error, where) from error


def _parse(url: str) -> URL:
    try:
        parsed = make_url(url)
        parsed.get_dialect()
    except (ArgumentError, NoSuchModuleError):
        raise Refused("store_url", "the store's URL cannot be used", hint=_url_hint()) from None
    in_memory = parsed.get_backend_name() == "sqlite" and parsed.database in (None, "", ":memory:")
    if parsed.get_backend_name() not in _DIALECTS or in_memory:
        raise Refused("store_url", "the store's URL cannot be used", hint=_url_hint())
    return parsed


def _url_hint() -> str:
    return "use sqlite:///FILE or postgresql+psycopg://USER@HOST/DATABASE"


def _create(url: URL, busy_timeout_ms: int) -> Engine:
    if url.get_backend_name() != "sqlite":
        return _create_postgresql(url)
    # The file holds reports and hashed tokens: created here, so that only its owner may read it.
    try:
        os.close(os.open(str(url.database), os.O_CREAT | os.O_RDWR, 0o600))
    except OSError as error:
        raise Refused(
            "store_cannot_open",
            f"cannot open the store: {error.strerror}",
            where=str(url.database),
            hint="check that the folder exists and belongs to this user",
        ) from None
    engine = create_engine(
        url, hide_parameters=True, connect_args={"timeout": busy_timeout_ms / 1000}
    )
    event.listen(engine, "connect", _on_sqlite_connect)
    event.listen(engine, "begin", _on_sqlite_begin)
    return engine


def _create_postgresql(url: URL) -> Engine:
    try:
        return create_engine(url, hide_parameters=True, pool_pre_ping=True)
    except ImportError:
        raise Refused(
            "store_driver",
            f"the driver of {url.drivername} is not installed",
            hint="install psycopg and use postgresql+psycopg://",
        ) from None


def _on_sqlite_connect(connection: sqlite3.Connection, _record: object) -> None:
    # None: the driver begins nothing by itself; `_on_sqlite_begin` does.
    connection.isolation_level = None
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("PRAGMA foreign_keys=ON")


def _on_sqlite_begin(connection: Connection) -> None:
    write = connection.get_execution_options().get(_WRITE, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


def _switch_to_wal(engine: Engine, busy_timeout_ms: int) -> None:
    # The switch is the one statement that does not wait for a lock, so the waiting is done here.
    until = time.monotonic() + busy_timeout_ms / 1000
    raw = engine.raw_connection()
    try:
        while True:
            try:
                raw.cursor().execute("PRAGMA journal_mode=WAL")
                return
            except sqlite3.Error as error:
                if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                    raise
            time.sleep(0.02)
    finally:
        raw.close()


def _migrate(engine: Engine, where: str) -> None:
    with engine.begin() as connection:
        if _stored_revision(connection) == store_schema.REVISION:
            return
    # Alembic takes longer to import than all else takes to start, and is seldom needed.
    from reconciler.adapters.store_migrate import migrate  # noqa: PLC0415

    with writer(engine).begin() as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:n)"), {"n": _MIGRATION_LOCK})
        # Asked again under the lock: another process may have migrated meanwhile.
        if _stored_revision(connection) != store_schema.REVISION:
            migrate(connection, where)


def _stored_revision(connection: Connection) -> str | None:
    """The one revision that a migrated store is at; None before, or while there are several."""
    table = store_schema.migrated
    if not inspect(connection).has_table(table.name):
        return None
    found = list(connection.execute(select(table.c.version_num)).scalars())
    return str(found[0]) if len(found) == 1 else None


_REBUILD = "restore it from a backup, or delete it: it is rebuilt from Git and nodes"
_OWNER = "check the file's owner and mode"

_SQLITE_ERRORS: dict[int, tuple[type[GpuaasError], str, str, str]] = {
    sqlite3.SQLITE_BUSY: (Transient, "store_busy", "another process holds the store's lock", ""),
    sqlite3.SQLITE_LOCKED: (Transient, "store_busy", "another process holds the store's lock", ""),
    sqlite3.SQLITE_FULL: (Transient, "store_full", "no space left for the store", "free some"),
    sqlite3.SQLITE_IOERR: (Transient, "store_io", "the disk failed under the store", "check it"),
    sqlite3.SQLITE_READONLY: (Refused, "store_read_only", "the store may not be written", _OWNER),
    sqlite3.SQLITE_PERM: (Refused, "store_cannot_open", "cannot open the store", _OWNER),
    sqlite3.SQLITE_CANTOPEN: (Refused, "store_cannot_open", "cannot open the store", _OWNER),
    sqlite3.SQLITE_CORRUPT: (Refused, "store_corrupt", "the store is damaged", _REBUILD),
    sqlite3.SQLITE_NOTADB: (Refused, "store_corrupt", "the file is not a store", _REBUILD),
}

# SQLSTATE classes of PostgreSQL that pass by themselves.
_POSTGRESQL_TRANSIENT = {
    "08": ("store_unreachable", "the database does not answer"),
    "40": ("store_busy", "the database asked to try again"),
    "53": ("store_full", "the database is out of resources"),
    "55": ("store_busy", "another process holds a lock in the store"),
    "57": ("store_unreachable", "the database is shutting down or starting"),
}


def _translate(error: Exception, where: str) -> GpuaasError:
    if isinstance(error, PoolTimeoutError):
        return Transient("store_busy", "every connection to the store is in use", where=where)
    if isinstance(error, IntegrityError):
        return Transient(
            "store_conflict", "another process wrote the same thing first", where=where
        )
    # What fails while a connection is set up arrives unwrapped.
    original = error.orig if isinstance(error, DBAPIError) else error
    if isinstance(original, sqlite3.Error):
        # The low byte is the primary code; the rest only refines it.
        code = getattr(original, "sqlite_errorcode", 0) & 0xFF
        if code in _SQLITE_ERRORS:
            family, name, message, hint = _SQLITE_ERRORS[code]
            return family(name, message, where=where, hint=hint)
    state = str(getattr(original, "sqlstate", None) or "")
    if state[:2] in _POSTGRESQL_TRANSIENT:
        return Transient(*_POSTGRESQL_TRANSIENT[state[:2]], where=where)
    lost = isinstance(error, DBAPIError) and (error.connection_invalidated or _unconnected(error))
    if lost:
        return Transient("store_unreachable", "the database does not answer", where=where)
    name = type(original).__name__
    return Refused("store_error", f"the store failed ({name})", where=where)


def _unconnected(error: DBAPIError) -> bool:
    return type(error.orig).__module__.startswith("psycopg") and error.statement is None
