"""Schema, backups, and what goes wrong with disks and locks."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy.exc import DBAPIError

from audit.queue.database import Database
from audit.queue.errors import BadInput, Busy, Closed, StorageFull
from audit.queue.exchange import export_verdicts
from audit.queue.model import Answer, NewItem, Role
from audit.queue.people import People, User
from audit.queue.queue import Queue
from audit.queue.retention import forget_texts
from audit.queue.tables import METADATA, texts
from store.errors import RlaifError, UsageError
from tests.audit.queue.helpers import FakeClock, in_processes, new_items
from tests.audit.queue.test_claims import answer, claim

LATER = """
import sqlalchemy as sa
from alembic import op

revision, down_revision = "9999", "0001"


def upgrade() -> None:
    with op.batch_alter_table("verdicts", recreate="auto") as table:
        table.add_column(sa.Column("mood", sa.Text, nullable=False, server_default="calm"))
        table.alter_column("comment", new_column_name="remark")
"""


def migrate(url: str) -> None:
    Database(url).migrate()


def test_migrations_make_the_tables_that_queries_use(database: Database) -> None:
    with database.read() as connection:
        assert compare_metadata(MigrationContext.configure(connection), METADATA) == []
    database.check_version()


def test_migration_keeps_data_and_triggers_and_old_programs_stay_out(
    queue: Queue, database: Database, auditors: list[User], tmp_path: Path
) -> None:
    """A later schema, which on SQLite copies the table of verdicts into a new one."""
    queue.add_batch("round", new_items(3))
    answer(queue, auditors[0])
    (tmp_path / "later").mkdir()
    (tmp_path / "later" / "9999_later.py").write_text(LATER)
    newer = Database(database.url.render_as_string(hide_password=False), migrations=(tmp_path / "later",))
    with pytest.raises(UsageError, match="audit migrate"):
        newer.check_version()
    newer.migrate()
    newer.check_version()
    with newer.read() as connection:
        assert connection.execute(sa.text("SELECT mood, winner IS NULL FROM verdicts")).all() == [("calm", False)]
    with pytest.raises(DBAPIError, match="append-only"), newer._engine.begin() as connection:
        connection.execute(sa.text("DELETE FROM verdicts"))
    for refused in (database.check_version, database.migrate):
        with pytest.raises(UsageError, match="upgrade rlaif"):
            refused()
    newer.close()


def test_failed_migration_changes_nothing(queue: Queue, database: Database, tmp_path: Path) -> None:
    queue.add_batch("round", new_items(3))
    broken = LATER.replace(
        '        table.alter_column("comment"', '        raise RuntimeError\n        table.alter_column("comment"'
    )
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "9999_broken.py").write_text(
        broken.replace("def upgrade() -> None:", 'def upgrade() -> None:\n    op.drop_table("texts")')
    )
    newer = Database(database.url.render_as_string(hide_password=False), migrations=(tmp_path / "broken",))
    with pytest.raises(RuntimeError):
        newer.migrate()
    newer.close()
    database.check_version()
    assert queue.batches()[0].open == 3
    with database.read() as connection:
        assert connection.execute(sa.select(sa.func.count()).select_from(texts)).scalar_one() == 3


@pytest.mark.slow
def test_processes_may_migrate_at_once(new_url: Callable[[], str]) -> None:
    url = new_url()
    in_processes(migrate, [(url,)] * 4)
    database = Database(url)
    database.check_version()
    database.close()


def test_database_without_tables_is_named(new_url: Callable[[], str], clock: FakeClock) -> None:
    database = Database(new_url())
    with pytest.raises(UsageError, match="no tables yet"):
        database.check_version()
    with pytest.raises(UsageError, match="audit migrate"):
        Queue(database, clock).batches()
    database.close()


@pytest.mark.parametrize(
    "url", ["mysql://x/y", "sqlite://", "sqlite:///:memory:", "://", "postgresql://u:SECRET@h:port/x"]
)
def test_bad_urls_are_refused_without_their_password(url: str) -> None:
    with pytest.raises(UsageError) as caught:
        Database(url)
    assert "SECRET" not in str(caught.value)


def test_server_that_is_not_there_is_busy(new_postgres: Callable[[], str], clock: FakeClock) -> None:
    down = Database("postgresql://u:SECRET@127.0.0.1:1/x")
    with pytest.raises(Busy, match="cannot be reached") as caught:
        down.ping()
    assert "SECRET" not in str(caught.value)
    missing = Database(new_postgres() + "x")
    with pytest.raises(UsageError, match="does not exist"):
        missing.ping()


def test_backup_during_writes_restores(
    queue: Queue, database: Database, auditors: list[User], new_url: Callable[[], str], tmp_path: Path, clock: FakeClock
) -> None:
    if not database.sqlite and shutil.which("pg_dump") is None:
        pytest.skip("pg_dump is not installed")
    queue.add_batch("round", [*new_items(400), NewItem("hostile", "NUL \0", "lone \ud800", "x")])
    stop, failed = threading.Event(), []

    def write() -> None:
        while not stop.is_set():
            try:
                answer(queue, auditors[0])
            except Exception as error:
                failed.append(error)
                raise

    writer = threading.Thread(target=write)
    writer.start()
    _wait_for(database, 10, writer)
    saved = database.backup(tmp_path / "saved")
    during = export_verdicts(database).num_rows
    _wait_for(database, during + 10, writer)
    stop.set()
    writer.join()
    assert not failed
    copy = Database(new_url())
    copy.restore(saved)
    copy.check_version()
    there, here = export_verdicts(copy).to_pylist(), export_verdicts(database).to_pylist()
    assert 10 <= len(there) <= during
    assert [row["verdict_id"] for row in there] == [row["verdict_id"] for row in here[: len(there)]]
    restored = Queue(copy, clock).batches()[0]
    # As of one instant: a place is answered exactly where its verdict is there.
    assert restored.answered == len(there)
    assert restored.places == 401
    with pytest.raises(DBAPIError, match="append-only"), copy._engine.begin() as connection:
        connection.execute(sa.text("DELETE FROM verdicts"))
    with pytest.raises(UsageError, match="holds data already"):
        copy.restore(saved)
    copy.close()


def _wait_for(database: Database, count: int, writer: threading.Thread) -> None:
    while export_verdicts(database).num_rows < count:
        assert writer.is_alive()
        time.sleep(0.01)


def test_bad_backups_are_refused(new_url: Callable[[], str], tmp_path: Path) -> None:
    database = Database(new_url())
    if not database.sqlite and shutil.which("pg_restore") is None:
        pytest.skip("pg_restore is not installed")
    (tmp_path / "garbage").write_bytes(b"garbage" * 1000)
    sqlite3.connect(tmp_path / "other.db").execute("CREATE TABLE other (x)")
    for name in ("garbage", "other.db", "missing"):
        with pytest.raises(RlaifError):
            database.restore(tmp_path / name)
    with pytest.raises(UsageError, match="no tables yet"):
        database.check_version()
    database.close()


def test_locked_database_is_said_and_nothing_changed(tmp_path: Path, clock: FakeClock) -> None:
    database = Database(str(tmp_path / "a.db"), busy_s=0.2)
    database.migrate()
    user = People(database, clock).add("Ann", Role.AUDITOR)
    queue = Queue(database, clock)
    queue.add_batch("round", new_items(1))
    got = claim(queue, user)
    blocker = sqlite3.connect(tmp_path / "a.db", isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    with pytest.raises(Busy, match="locked") as caught:
        queue.submit(user.id, got.item.item_id, got.token, Answer("left"), "k")
    assert caught.value.status == 503
    assert queue.held(user.id) == [got]  # readers do not wait for writers
    blocker.execute("ROLLBACK")
    assert not queue.submit(user.id, got.item.item_id, got.token, Answer("left"), "k").repeated
    database.close()


def test_locked_rows_on_postgresql_are_said(new_postgres: Callable[[], str], clock: FakeClock) -> None:
    url = new_postgres()
    database, blocker = Database(url, busy_s=0.2), Database(url)
    database.migrate()
    user = People(database, clock).add("Ann", Role.AUDITOR)
    with blocker.write() as connection:
        connection.execute(sa.text("LOCK TABLE users"))
        with pytest.raises(Busy, match="busy"):
            Queue(database, clock).claim(user.id)
    database.close()
    blocker.close()


def test_connections_that_died_at_rest_are_replaced(
    new_postgres: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a restart of the server: nobody meets a connection that died while it rested in the pool."""
    monkeypatch.setattr("audit.queue.database._REST_S", 0.0)
    database = Database(new_postgres())
    database.migrate()
    kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> {}"

    def kill_the_rest() -> None:
        with database.write(), database.read():
            pass  # so that two connections rest
        with database.read() as killer:
            killer.execute(sa.text(kill.format("pg_backend_pid()")))

    kill_the_rest()
    with database.write() as one, database.read() as other:
        assert one.execute(sa.text("SELECT 1")).scalar_one() == other.execute(sa.text("SELECT 1")).scalar_one()
    monkeypatch.setattr("audit.queue.database._REST_S", 1e9)
    kill_the_rest()
    with pytest.raises(Busy), database.write() as one:
        one.execute(sa.text("SELECT 1"))
    database.close()


def test_full_disk_is_said_and_nothing_lost(tmp_path: Path, clock: FakeClock) -> None:
    """A file system of 3 MB where the tests may mount one, else SQLite's own limit of pages."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = (
        os.geteuid() == 0
        and subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)], capture_output=True, check=False
        ).returncode
        == 0
    )
    try:
        database = Database(str(folder / "a.db"))
        database.migrate()
        if not mounted:
            sa.event.listen(database._engine, "begin", lambda c: c.exec_driver_sql("PRAGMA max_page_count = 300"))
        user = People(database, clock).add("Ann", Role.AUDITOR)
        queue = Queue(database, clock)
        queue.add_batch("round", new_items(1))
        got = claim(queue, user)
        big = "x" * (1 << 19)

        def fill() -> None:
            for number in range(20):
                queue.add_batch(f"big {number}", [NewItem("p", big, big, big)])

        with pytest.raises(StorageFull, match="No space left") as caught:
            fill()
        assert caught.value.status == 503
        assert queue.held(user.id) == [got]
        names = [batch.name for batch in queue.batches()]
        assert f"big {len(names) - 1}" not in names  # the one that failed is not there in part
        if mounted:
            with pytest.raises(RlaifError, match=r"room|space"):
                database.backup(folder / "saved.db")
            assert sorted(path.name for path in folder.iterdir() if "saved" in path.name) == []
        database.close()
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("content", [b"this is no database" * 100, b"SQLite format 3\0" + b"\xff" * 5000])
def test_damaged_file_is_said(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.db").write_bytes(content)
    with pytest.raises(RlaifError, match="damaged"):
        Database(str(tmp_path / "a.db")).migrate()


def test_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError):
        Database(str(tmp_path / "file" / "a.db")).migrate()
    with pytest.raises(UsageError, match="cannot be opened"):
        Database(str(tmp_path / "nowhere" / "a.db")).ping()


def test_retention_deletes_texts_of_old_batches_and_keeps_verdicts(
    queue: Queue, database: Database, auditors: list[User], clock: FakeClock
) -> None:
    old, recent = queue.add_batch("old", new_items(2)), queue.add_batch("recent", new_items(2))
    item = answer(queue, auditors[0])
    queue.close_batch(old)
    clock.jump(10 * 86400)
    assert forget_texts(database, clock, timedelta(days=11)) == 0
    before = export_verdicts(database).drop(["seconds"])  # not a number, and so not equal to itself
    assert forget_texts(database, clock, timedelta(days=10)) == 2
    assert forget_texts(database, clock, timedelta(days=10)) == 0
    assert export_verdicts(database).drop(["seconds"]).equals(before)
    assert queue.batch_progress(recent).open == 2
    claim(queue, auditors[0])
    with pytest.raises(Closed):
        queue.case(People(database, clock).add("lead", Role.LEAD).id, item)
    with pytest.raises(BadInput):
        forget_texts(database, clock, timedelta(days=-1))
    if database.path is not None:
        database.close()
        raw = database.path.read_bytes()
        assert raw.count(b"prompt 0") <= 1  # the recent batch's
