"""The queue's database: SQLite by default, PostgreSQL by URL. Connections, transactions, schema, and clear errors.

SQLite runs with a write-ahead log and full synchronisation: what was answered survives a power cut. Writers take the
write lock at the start of their transaction (BEGIN IMMEDIATE), because one that reads first and then writes can find
its snapshot stale and fail at once, whatever the busy timeout.
"""

from __future__ import annotations

import random
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from audit.queue import backup, triggers
from audit.queue.errors import Busy, StorageFull
from store.errors import RlaifError, UsageError
from store.files import explain_os_errors

MIGRATIONS = Path(__file__).parent / "migrations"

_BUSY_SQLITE = {"SQLITE_BUSY", "SQLITE_LOCKED"}
_BUSY_POSTGRESQL = {
    "55P03",  # lock_timeout
    "40001",  # serialization failure
    "40P01",  # deadlock
    "53300",  # too many connections
    "57014",  # statement_timeout
}
_LOOK_AGAIN_S = (0.001, 0.004)
_REST_S = 1.0
"""A connection that rested longer is asked whether it still stands."""
_MIGRATION_LOCK = 0x726C616966  # any number that nobody else uses


class Database:
    """`url`: `sqlite:///path`, `postgresql://user@host/name`, or the plain path of an SQLite file. Connects lazily.

    One for each process: it must not be carried over a fork. Raises UsageError for a URL that cannot be right.
    `busy_s`: how long to wait for another's lock before Busy is raised.
    """

    def __init__(self, url: str, busy_s: float = 30.0, migrations: tuple[Path, ...] = ()) -> None:
        self.url = _parse(url)
        self.sqlite = self.url.get_backend_name() == "sqlite"
        self._busy_s = busy_s
        self._locations = (MIGRATIONS / "versions", *migrations)
        self._engine = self._open()

    @property
    def name(self) -> str:
        """The URL without its password, for messages."""
        return self.url.render_as_string(hide_password=True)

    @property
    def path(self) -> Path | None:
        """The file of an SQLite database."""
        return Path(self.url.database or "") if self.sqlite else None

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """Only to read. On SQLite all statements see the same state; on PostgreSQL each sees the newest, as it would in
        a transaction of the default isolation, and two round trips are saved."""
        with self.explained(), self._engine.connect() as connection:
            if self.sqlite:
                with connection.begin():
                    yield connection
            else:
                yield connection.execution_options(isolation_level="AUTOCOMMIT")

    @contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """A transaction that writes: whole after the block, and nothing of it after an exception.

        Raises Busy, StorageFull, UsageError, each without having changed anything. A connection that breaks while the
        commit is under way leaves it open whether it happened: then make the same call again, with the same key.
        """
        with self.explained(), self._engine.connect() as plain:
            connection = plain.execution_options(rlaif_write=True)
            with connection.begin():
                yield connection

    def migrate(self) -> None:
        """Bring the schema up to this version's, data kept, all or nothing. Safe from several processes at once.

        Raises UsageError for a schema that is newer than this version.
        """
        if self.path is not None:
            with explain_os_errors(self.path):
                self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.write() as connection:
            if not self.sqlite:
                connection.execute(sa.text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _MIGRATION_LOCK})
            current = self._revision(connection)
            if current == self._head():
                return
            self._refuse_newer(current)
            config = self._config()
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
            triggers.install(connection)

    def check_version(self) -> None:
        """Raises UsageError where the database has no schema yet, an older one or a newer one."""
        current = None
        if self.path is None or self.path.exists():
            with self.read() as connection:
                current = self._revision(connection)
        if current == self._head():
            return
        self._refuse_newer(current)
        have = "has no tables yet" if current is None else f"has schema {current}, this version needs {self._head()}"
        raise UsageError(f"The audit database {self.name} {have}: run `rlaif audit migrate`.")

    def ping(self) -> None:
        """Raises Busy where the database does not answer."""
        with self.read() as connection:
            connection.execute(sa.select(1))

    def backup(self, path: Path) -> Path:
        """Write a consistent copy while others go on writing: an SQLite file, or an archive of pg_dump.

        Raises RlaifError for a full disk, UsageError where pg_dump is missing.
        """
        with self.explained():
            return backup.save(self.url, path)

    def restore(self, path: Path) -> None:
        """Fill an empty database from a backup and bring it up to this version. Raises UsageError where the database
        holds data already, or the file is no backup."""
        with self.explained():
            if self.path is not None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.read() as connection:
                if sa.inspect(connection).get_table_names():
                    raise UsageError(f"The audit database {self.name} holds data already: restore into an empty one.")
            self.close()
            backup.load(self.url, path)
        self.migrate()

    def close(self) -> None:
        self._engine.dispose()

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Turn the drivers' errors into one sentence each."""
        try:
            yield
        except DBAPIError as error:
            raise self._explain(error) from error
        except sqlite3.Error as error:
            raise self._explain_sqlite(getattr(error, "sqlite_errorname", ""), str(error)) from error
        except PoolTimeout as error:
            raise Busy(f"All connections to {self.name} are in use: try again in a moment.") from error

    def _open(self) -> sa.Engine:
        if self.sqlite:
            engine = sa.create_engine(self.url, connect_args={"timeout": self._busy_s}, pool_size=8, max_overflow=32)
            sa.event.listen(engine, "connect", _prepare_sqlite)
            sa.event.listen(engine, "begin", self._begin_sqlite)
            return engine
        options = f"-c lock_timeout={int(self._busy_s * 1000)} -c idle_in_transaction_session_timeout=60s"
        try:
            engine = sa.create_engine(
                self.url,
                connect_args={"options": options, "connect_timeout": 10, "application_name": "rlaif audit"},
                pool_size=8,
                max_overflow=8,
            )
        except ImportError as error:
            raise UsageError("PostgreSQL needs psycopg: pip install 'rlaif[postgres]'.") from error
        sa.event.listen(engine, "checkin", _note_rest)
        sa.event.listen(engine, "checkout", _ping_after_rest)
        return engine

    def _begin_sqlite(self, connection: sa.Connection) -> None:
        """Begin; a writer waits here for the lock.

        SQLite's own wait sleeps longer the longer it waited, so that under load who came last is served first and some
        wait for ever. Here everybody who waits has the same chance at any moment.
        """
        driver: Any = connection.connection.driver_connection
        if not connection.get_execution_options().get("rlaif_write", False):
            driver.execute("BEGIN")
            return
        end = time.monotonic() + self._busy_s
        driver.execute("PRAGMA busy_timeout = 0")
        try:
            while True:
                try:
                    driver.execute("BEGIN IMMEDIATE")
                except sqlite3.OperationalError as error:
                    if not error.sqlite_errorname.startswith("SQLITE_BUSY") or time.monotonic() > end:
                        raise
                    time.sleep(random.uniform(*_LOOK_AGAIN_S))  # noqa: S311 - no secret
                else:
                    return
        finally:
            driver.execute(f"PRAGMA busy_timeout = {int(self._busy_s * 1000)}")

    def _config(self) -> Config:
        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS))
        config.set_main_option("path_separator", "newline")
        config.set_main_option("version_locations", "\n".join(map(str, self._locations)))
        return config

    def _scripts(self) -> ScriptDirectory:
        return ScriptDirectory.from_config(self._config())

    def _head(self) -> str:
        return self._scripts().get_current_head() or ""

    def _revision(self, connection: sa.Connection) -> str | None:
        return MigrationContext.configure(connection).get_current_revision()

    def _refuse_newer(self, current: str | None) -> None:
        known = {script.revision for script in self._scripts().walk_revisions()}
        if current is not None and current not in known:
            raise UsageError(
                f"The audit database {self.name} has schema {current}, which is newer than this version knows "
                f"({self._head()}): upgrade rlaif."
            )

    def _explain(self, error: DBAPIError) -> RlaifError:
        said = " ".join(str(error.orig).split())
        if self.sqlite:
            return self._explain_sqlite(getattr(error.orig, "sqlite_errorname", ""), said)
        return self._explain_postgresql(getattr(error.orig, "sqlstate", None) or "", said)

    def _explain_sqlite(self, code: str, said: str) -> RlaifError:
        code = "_".join(code.split("_")[:2])  # SQLITE_BUSY_SNAPSHOT is a SQLITE_BUSY
        if code in _BUSY_SQLITE:
            return Busy(
                f"The audit database {self.name} was locked by another process for over {self._busy_s:g} s; "
                "nothing was changed: try again."
            )
        if code == "SQLITE_FULL":
            return StorageFull(f"No space left for the audit database {self.name}; nothing was changed: free some.")
        if code in ("SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_PERM"):
            return UsageError(
                f"The audit database {self.name} cannot be opened for writing ({said}): "
                "choose a file in a folder that exists and that you may write to."
            )
        if code in ("SQLITE_NOTADB", "SQLITE_CORRUPT"):
            return RlaifError(f"The audit database {self.name} is damaged or none ({said}): restore a backup.")
        if "no such table" in said or "no such column" in said:
            return UsageError(f"The audit database {self.name} lacks tables ({said}): run `rlaif audit migrate`.")
        return RlaifError(f"The audit database {self.name} failed ({said}); nothing was changed: look at its disk.")

    def _explain_postgresql(self, state: str, said: str) -> RlaifError:
        if state in _BUSY_POSTGRESQL:
            return Busy(f"The audit database {self.name} is busy ({said}); nothing was changed: try again.")
        if state == "53100":
            return StorageFull(f"No space left for the audit database {self.name}; nothing was changed: free some.")
        if state.startswith("28") or state == "3D000" or "authentication failed" in said or "does not exist" in said:
            hint = "run `rlaif audit migrate`" if state.startswith("42") else "check the URL and its password"
            return UsageError(f"The audit database {self.name} refuses ({said}): {hint}.")
        if not state or state.startswith(("08", "57")):
            return Busy(f"The audit database {self.name} cannot be reached ({said}): start it or try again.")
        return RlaifError(f"The audit database {self.name} failed ({said}); nothing was changed: see its log.")


def _parse(text: str) -> URL:
    if "://" not in text:
        return URL.create("sqlite", database=text)
    try:
        url = make_url(text)
    except (ArgumentError, ValueError) as error:
        raise UsageError("The audit database's URL cannot be read: write sqlite:///path or postgresql://...") from error
    backend = url.drivername.split("+")[0]
    if backend in ("postgresql", "postgres"):
        return url.set(drivername="postgresql+psycopg")
    if backend != "sqlite":
        raise UsageError(f"The audit database cannot be {backend}: give sqlite:///path or postgresql://user@host/name.")
    if not url.database or url.database == ":memory:":
        raise UsageError("The audit database must be a file: write sqlite:///path.")
    return url


def _prepare_sqlite(connection: Any, _: object) -> None:
    connection.isolation_level = None  # transactions are begun below, not by the driver
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _note_rest(_: object, record: sa.pool.ConnectionPoolEntry) -> None:
    record.info["rests_since"] = time.monotonic()


def _ping_after_rest(connection: Any, record: sa.pool.ConnectionPoolEntry, _: object) -> None:
    """The server may have been restarted meanwhile; a busy connection would have noticed. A ping each time, as the
    pool's own, is a round trip for each call."""
    since = record.info.get("rests_since")
    if since is None or time.monotonic() - since < _REST_S:
        return
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
        connection.rollback()
    except Exception as error:
        raise sa.exc.DisconnectionError from error  # the pool opens another
