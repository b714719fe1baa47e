"""What only a store on disk can do: crash, be shared, fill up, rot, and grow old."""

from __future__ import annotations

import itertools
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine, event, make_url
from sqlalchemy.pool import Pool
from sqlalchemy.schema import CreateTable

from reconciler.adapters.store_migrate import newest
from reconciler.adapters.store_schema import REVISION, metadata
from reconciler.adapters.store_sql import SqlStore
from reconciler.core.records import Accepted, AcceptedObject
from reconciler.errors import GpuaasError, Refused, Transient
from reconciler.ports import Changes
from tests.contract.crash_writer import REVISION as COMMIT
from tests.contract.crash_writer import changes

_ROOT = Path(__file__).parents[2]
_WRITER = Path(__file__).with_name("crash_writer.py")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.db"


def url(path: Path) -> str:
    return f"sqlite:///{path}"


@contextmanager
def opened(path: Path, busy_timeout_ms: int = 5_000) -> Iterator[SqlStore]:
    with closing(SqlStore.open(url(path), busy_timeout_ms)) as store:
        yield store


@contextmanager
def writer(path: Path, start: int) -> Iterator[subprocess.Popen[str]]:
    environment = {**os.environ, "PYTHONPATH": str(_ROOT)}
    command = [sys.executable, str(_WRITER), url(path), str(start)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            yield process
        finally:
            process.kill()


def read_numbers(process: subprocess.Popen[str], count: int) -> list[int]:
    assert process.stdout is not None
    return [int(process.stdout.readline()) for _ in range(count)]


class TestEditions:
    """What was read is kept, for as long as nobody wrote."""

    def test_what_another_process_wrote_is_read(self, path: Path) -> None:
        one = AcceptedObject("App/hello", "catalog/hello/app.yaml", 1, "{}", COMMIT)
        with opened(path) as here, opened(path) as there:
            for writer_, reader_ in ((here, there), (there, here), (here, there)):
                assert here.accepted() == there.accepted()
                assert here.records() == there.records()
                count = len(here.records())
                document = f'{{"count":{count}}}'
                accepted = Accepted(COMMIT, {one.ref: replace(one, document_json=document)})
                writer_.save_accepted(accepted)
                writer_.commit(changes(count + 1))
                assert reader_.accepted() == accepted
                assert len(reader_.records()) > count
            there.commit(Changes(forgotten=list(here.records())))
            assert here.records() == {}

    def test_what_nobody_wrote_is_not_read_again(self, path: Path) -> None:
        with opened(path) as store:
            store.commit(changes(1))
            accepted = Accepted(COMMIT, {})
            store.save_accepted(accepted)
            assert store.accepted() is accepted
            assert store.records() is store.records()

    def test_what_was_refused_is_not_remembered(self, path: Path) -> None:
        with opened(path) as store:
            store.commit(changes(1))
            before = store.records()
            with pytest.raises(Refused):
                store.commit(replace(changes(2), intents=changes(1).intents))
            assert store.records() == before


class TestMigrations:
    def test_the_migrated_schema_is_the_metadata(self, path: Path) -> None:
        with opened(path):
            pass
        engine = create_engine(url(path))
        with engine.connect() as connection:
            context = MigrationContext.configure(connection, opts={"compare_type": True})
            assert compare_metadata(context, metadata) == []
        engine.dispose()

    def test_the_newest_migration_is_the_one_a_start_looks_for(self) -> None:
        assert newest() == REVISION

    def test_the_schema_is_fit_for_postgresql(self) -> None:
        dialect = make_url("postgresql+psycopg://").get_dialect()()
        for table in metadata.sorted_tables:
            statement = str(CreateTable(table).compile(dialect=dialect))
            assert statement.strip().startswith(f"CREATE TABLE {table.name}")

    def test_opening_again_keeps_everything(self, path: Path) -> None:
        with opened(path) as store:
            store.commit(changes(1))
        with opened(path) as store:
            assert len(store.records()) == 2
            assert store.last_cursor() == 2

    def test_many_processes_open_a_new_store_at_once(self, path: Path) -> None:
        with writer(path, 10**6) as a, writer(path, 2 * 10**6) as b, writer(path, 3 * 10**6) as c:
            numbers = [read_numbers(process, 3) for process in (a, b, c)]
        assert numbers == [[n, n + 1, n + 2] for n in (10**6, 2 * 10**6, 3 * 10**6)]
        with opened(path) as store:
            cursors = [numbered.cursor for numbered in store.events()]
        assert cursors == list(range(1, len(cursors) + 1))

    def test_a_store_written_by_a_newer_version_is_refused(self, path: Path) -> None:
        with opened(path):
            pass
        with closing(sqlite3.connect(path)) as raw:
            raw.execute("UPDATE alembic_version SET version_num = '9999'")
            raw.commit()
        with pytest.raises(Refused) as refused:
            SqlStore.open(url(path))
        assert str(refused.value) == (
            f"{url(path)}: store_newer: the store has schema 9999, this version knows 0004 and "
            "older (run the gpuaas version that last wrote it, or a later one)"
        )

    def test_only_the_owner_may_read_the_file(self, path: Path) -> None:
        with opened(path) as store:
            store.commit(changes(1))
            modes = {file.stat().st_mode & 0o777 for file in path.parent.iterdir()}
        assert modes == {0o600}


class TestCrash:
    def test_a_killed_writer_leaves_whole_transactions(self, path: Path) -> None:
        """SIGKILL falls anywhere in a commit; what was reported as committed must be there."""
        start = 1
        for round_number in range(6):
            with writer(path, start) as process:
                committed = read_numbers(process, 5 + 3 * round_number)[-1]
                process.send_signal(signal.SIGKILL)
                process.wait()
            with opened(path) as store:
                numbers = _whole_transactions(store)
            assert numbers == list(range(1, len(numbers) + 1))
            assert numbers[-1] >= committed
            start = numbers[-1] + 1


def _whole_transactions(store: SqlStore) -> list[int]:
    """The committed numbers; fails when a part of a transaction is there without the rest."""
    numbers = [intent.seq for intent in store.intents()]
    expected = [changes(number) for number in numbers]
    events = [numbered.event for numbered in store.events(limit=1_000_000)]
    assert events == [event for one in expected for event in one.events]
    assert list(store.records().values()) == sorted(
        (record for one in expected for record in one.records), key=lambda record: record.key
    )
    return numbers


class TestSharing:
    def test_two_stores_on_one_file_redeem_a_token_once(self, path: Path) -> None:
        with opened(path) as one, opened(path) as two:
            one.add_join_token("hash", "node", 100)
            with ThreadPoolExecutor(8) as pool:
                joined = pool.map(
                    lambda n: (one, two)[n % 2].redeem_join_token("hash", "node", f"{n:064x}", 5),
                    range(16),
                )
            assert sum(node is not None for node in joined) == 1

    def test_a_reader_goes_on_while_another_process_writes(self, path: Path) -> None:
        with opened(path, busy_timeout_ms=1) as store:
            store.commit(changes(1))
            with closing(sqlite3.connect(path)) as raw:
                raw.execute("BEGIN IMMEDIATE")
                raw.execute("DELETE FROM instances")
                assert len(store.records()) == 2

    def test_a_held_lock_is_transient(self, path: Path) -> None:
        with opened(path, busy_timeout_ms=1) as store:
            with closing(sqlite3.connect(path)) as raw:
                raw.execute("BEGIN IMMEDIATE")
                with pytest.raises(Transient) as busy:
                    store.commit(changes(1))
            assert busy.value.code == "store_busy"
            assert busy.value.message == "another process holds the store's lock"
            store.commit(changes(1))


class TestFailures:
    def test_a_full_disk_is_transient_and_changes_nothing(self, path: Path) -> None:
        with opened(path) as store:
            store.commit(changes(1))
        with _page_limit(), opened(path) as store:
            with pytest.raises(Transient) as full:
                _commit_without_end(store)
            assert full.value.code == "store_full"
            assert full.value.message == "no space left for the store"
            assert _whole_transactions(store)

    def test_a_file_that_is_no_database(self, path: Path) -> None:
        path.write_bytes(b"not a database, but long enough to be taken for one" * 40)
        with pytest.raises(Refused) as refused:
            SqlStore.open(url(path))
        assert refused.value.code == "store_corrupt"
        assert refused.value.message == "the file is not a store"
        assert "rebuilt from Git and nodes" in refused.value.hint

    def test_a_damaged_file(self, path: Path) -> None:
        with opened(path) as store:
            for number in range(1, 50):
                store.commit(changes(number))
        with closing(sqlite3.connect(path)) as raw:
            raw.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        content = bytearray(path.read_bytes())
        content[4096 * 8 :] = b"\xff" * (len(content) - 4096 * 8)
        path.write_bytes(content)
        with pytest.raises(Refused) as refused:
            _read_everything(path)
        assert refused.value.code == "store_corrupt"
        assert refused.value.message == "the store is damaged"

    def test_a_record_that_cannot_be_read(self, path: Path) -> None:
        with opened(path) as store:
            store.commit(changes(1))
            with closing(sqlite3.connect(path)) as raw:
                raw.execute("UPDATE instances SET document = '{}'")
                raw.commit()
            with pytest.raises(Refused) as refused:
                store.records()
        assert refused.value.code == "store_corrupt"
        assert refused.value.message == "a stored InstanceRecord cannot be read"

    def test_a_folder_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(Refused) as refused:
            SqlStore.open(url(tmp_path / "missing" / "store.db"))
        assert refused.value.code == "store_cannot_open"
        assert refused.value.message == "cannot open the store: No such file or directory"
        assert refused.value.hint == "check that the folder exists and belongs to this user"

    @pytest.mark.parametrize("bad", ["", "store.db", "mysql://u:hush@h/d", "sqlite://", "x://y"])
    def test_a_url_that_cannot_be_used(self, bad: str) -> None:
        with pytest.raises(GpuaasError) as refused:
            SqlStore.open(bad)
        assert refused.value.code == "store_url"
        assert "use sqlite:///FILE or postgresql+psycopg://" in str(refused.value)
        assert "hush" not in str(refused.value)

    def test_a_driver_that_is_not_installed(self) -> None:
        with pytest.raises(Refused) as refused:
            SqlStore.open("postgresql+asyncpg_missing://host/database")
        assert refused.value.code == "store_url"
        with pytest.raises(Refused) as refused:
            SqlStore.open("postgresql+pg8000://host/database")
        assert refused.value.code == "store_driver"
        assert refused.value.message == "the driver of postgresql+pg8000 is not installed"

    def test_a_number_beyond_64_bits(self, path: Path) -> None:
        with opened(path) as store, pytest.raises(Refused) as refused:
            store.events(after=2**70)
        assert refused.value.code == "store_error"
        assert refused.value.message == "the store failed (OverflowError)"

    def test_an_empty_change_is_nothing(self, path: Path) -> None:
        with opened(path) as store:
            store.commit(Changes())
            assert store.last_cursor() == 0


def _commit_without_end(store: SqlStore) -> None:
    for number in itertools.count(2):
        store.commit(changes(number))


@contextmanager
def _page_limit() -> Iterator[None]:
    def limit(connection: sqlite3.Connection, _record: object) -> None:
        connection.execute("PRAGMA max_page_count=60")

    event.listen(Pool, "connect", limit)
    try:
        yield
    finally:
        event.remove(Pool, "connect", limit)


def _read_everything(path: Path) -> None:
    with opened(path) as store:
        store.records()
        store.events(limit=1_000_000)
        store.intents()
