"""What only a store on disk can show of the audit trail: several processes, and older stores."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections import Counter
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import create_engine

import reconciler.adapters
from reconciler.adapters.store_sql import SqlStore
from reconciler.core.audit import FIRST, verify
from reconciler.core.names import Revision
from reconciler.core.records import Accepted, AcceptedObject, AuditEntry, EnrolledNode
from reconciler.errors import Refused
from reconciler.ports import Changes
from tests.contract.test_store import a_record, an_event, an_intent

_ROOT = Path(__file__).parents[2]
_WRITER = Path(__file__).with_name("audit_writer.py")
_MIGRATIONS = Path(reconciler.adapters.__file__).parent / "migrations"
COMMIT = Revision("b" * 40)
ENTRY = AuditEntry(1, "user/ada", "user", "state.app.changed", "App/a")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.db"


def test_two_processes_make_one_chain(path: Path) -> None:
    url = f"sqlite:///{path}"
    SqlStore.open(url).close()
    environment = {**os.environ, "PYTHONPATH": str(_ROOT)}
    with ExitStack() as stack:
        writers = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, str(_WRITER), url, name, "60"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    env=environment,
                )
            )
            for name in ("one", "two")
        ]
        for writer in writers:
            assert writer.stdin is not None
            writer.stdin.write("go\n")
            writer.stdin.flush()
        won = [int(writer.communicate()[0]) for writer in writers]
    assert sum(won) == 60  # Every name by one of them.
    with closing(SqlStore.open(url)) as store:
        rows = store.audit()
        assert verify(rows, *FIRST) is None
        assert store.audit_head() == (120, rows[-1].row_hash)
        assert Counter(row.entry.actor for row in rows) == {"one": 60, "two": 60}


def test_a_store_of_the_first_schema_keeps_what_it_has(path: Path) -> None:
    _make_first(path)
    with closing(SqlStore.open(f"sqlite:///{path}")) as store:
        one = AcceptedObject("App/a", "a.yaml", 3, '{"a":1}', COMMIT)
        assert store.accepted() == Accepted(COMMIT, {one.ref: one})
        assert store.records() == {}
        assert [numbered.event.event_id for numbered in store.events()] == ["e-1"]
        assert store.nodes() == [EnrolledNode("gpu-1", "k", 1)]
        assert store.audit_head() == FIRST
        store.commit(
            Changes([a_record()], events=[an_event(2)], intents=[an_intent(1)], audit=[ENTRY])
        )
        assert store.last_cursor() == 2
        assert [row.entry for row in store.audit()] == [ENTRY]


def _make_first(path: Path) -> None:
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS))
    config.set_main_option("path_separator", "os")
    engine = create_engine(f"sqlite:///{path}")
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
    engine.dispose()
    event = (
        '{"event_id":"e-1","type":"apps.instance.running","instance":"acme/research/hello",'
        '"correlation_id":"c","revision":"r","at_ms":1,"data":{}}'
    )
    with closing(sqlite3.connect(path)) as raw:
        raw.execute("INSERT INTO singles VALUES ('accepted_revision', ?)", (COMMIT,))
        raw.execute(
            "INSERT INTO accepted_objects VALUES ('App/a', 'a.yaml', 3, '{\"a\":1}', ?)", (COMMIT,)
        )
        raw.execute("INSERT INTO counters VALUES ('event_cursor', 1)")
        raw.execute("INSERT INTO events VALUES (1, 'e-1', 'acme/research/hello', ?)", (event,))
        raw.execute("INSERT INTO nodes VALUES ('gpu-1', 'k', 'id', 1, NULL, NULL, 0, 0)")
        raw.commit()


@pytest.mark.parametrize(
    ("statement", "code", "message"),
    [
        (
            "UPDATE audit SET seq = 'one' WHERE seq = 1",
            "audit_unreadable",
            "an audit row has 'one' for its number",
        ),
        (
            "UPDATE singles SET document = '[]' WHERE name = 'audit_head'",
            "store_corrupt",
            "a stored AuditHead cannot be read",
        ),
    ],
)
def test_what_is_no_audit_row(path: Path, statement: str, code: str, message: str) -> None:
    with closing(SqlStore.open(f"sqlite:///{path}")) as store:
        store.append_audit([ENTRY])
        _tamper(path, statement)
        with pytest.raises(Refused) as refused:
            _read(store)
        assert (refused.value.code, refused.value.message) == (code, message)


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM audit WHERE seq = 2",
        "DELETE FROM singles WHERE name = 'audit_head'",
        "DELETE FROM counters WHERE name = 'audit'",
        "DELETE FROM audit; DELETE FROM counters WHERE name = 'audit'",
    ],
)
def test_rows_go_on_after_tampering_and_it_stays_visible(path: Path, statement: str) -> None:
    with closing(SqlStore.open(f"sqlite:///{path}")) as store:
        store.append_audit([ENTRY, ENTRY])
        _tamper(path, statement)
        store.append_audit([ENTRY])
        rows = store.audit()
        assert rows[-1].seq == 3
        whole = statement == "DELETE FROM counters WHERE name = 'audit'"
        assert (verify(rows, *FIRST) is None) == whole


def _read(store: SqlStore) -> None:
    store.audit()
    store.audit_head()


def _tamper(path: Path, statement: str) -> None:
    with closing(sqlite3.connect(path)) as raw:
        raw.executescript(statement)
        raw.commit()
