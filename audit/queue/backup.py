"""Backup and restore: SQLite by its online backup, which waits for nobody, PostgreSQL by pg_dump and pg_restore."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path

from sqlalchemy.engine import URL

from store.errors import RlaifError, UsageError
from store.files import atomic_write


def save(url: URL, path: Path) -> Path:
    """Write a copy, as of one instant, to `path`; whole or not at all."""
    with atomic_write(path) as beside:
        if url.get_backend_name() == "sqlite":
            source = _existing(url.database or "")
            with closing(_read_only(source)) as live, closing(sqlite3.connect(beside)) as copy:
                try:
                    live.backup(copy)
                    # One file, without a log beside it that could be forgotten.
                    copy.execute("PRAGMA journal_mode=DELETE")
                except sqlite3.Error as error:
                    raise RlaifError(f"The backup {path} failed ({error}): free room on its disk.") from error
                _check(copy, path)
        else:
            _postgresql(url, ["pg_dump", "--format=custom", "--no-owner", f"--file={beside}"])
    return path


def load(url: URL, path: Path) -> None:
    """Fill an empty database from a copy."""
    if not path.is_file():
        raise UsageError(f"The backup {path} does not exist: check the path.")
    if url.get_backend_name() == "sqlite":
        with closing(_read_only(path)) as copy:
            _check(copy, path)
            with closing(sqlite3.connect(url.database or "")) as live:
                copy.backup(live)
    else:
        command = ["pg_restore", "--no-owner", "--exit-on-error", "--single-transaction"]
        _postgresql(url, [*command, f"--dbname={url.database or ''}", str(path)])


def _existing(name: str) -> Path:
    if not Path(name).is_file():
        raise UsageError(f"The audit database {name} does not exist: check the path.")
    return Path(name)


def _read_only(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)


def _check(connection: sqlite3.Connection, path: Path) -> None:
    try:
        said = connection.execute("PRAGMA integrity_check").fetchone()[0]
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    except sqlite3.DatabaseError as error:
        raise UsageError(f"{path} is no SQLite database ({error}): give a file that a backup made.") from error
    if said != "ok":
        raise RlaifError(f"The copy {path} is damaged ({said}): look at the disk, use another backup.")
    if "verdicts" not in tables:
        raise UsageError(f"{path} is no backup of an audit database: it has no verdicts.")


def _postgresql(url: URL, command: list[str]) -> None:
    program = shutil.which(command[0])
    if program is None:
        raise UsageError(f"{command[0]} is missing: install PostgreSQL's client programs.")
    # By the environment, since anybody on the machine can read a command line.
    given = {
        "PGHOST": url.host or url.query.get("host"),
        "PGPORT": url.port,
        "PGUSER": url.username,
        "PGPASSWORD": url.password,
        "PGDATABASE": url.database,
    }
    environment = os.environ | {name: str(value) for name, value in given.items() if value is not None}
    done = subprocess.run([program, *command[1:]], env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["no message"])[-1]
        name = url.render_as_string(hide_password=True)
        raise RlaifError(f"{command[0]} failed for the audit database {name} ({said}): see its message.")
