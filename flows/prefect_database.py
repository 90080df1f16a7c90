"""The database of a new local Prefect server, from one that this machine keeps.

Prefect makes an empty database by over a hundred migrations, which take longer than all the rest of a server's start.
So the first one is kept, and new workspaces begin with a copy; the server brings it up to date, as it does with any.
"""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing, suppress
from importlib.metadata import version
from pathlib import Path

from flows.cache import cache_folder
from store.errors import RlaifError
from store.files import atomic_write

_QUESTIONS = ("pragma quick_check", "select count(*) from alembic_version")


def begin_database(database: Path) -> bool:
    """Put the kept database where there is none yet. Whether the server has to make a whole one, which is then worth
    keeping."""
    if database.exists():
        return False
    kept = _kept()
    if not _is_whole(kept):
        return True
    with atomic_write(database) as beside:
        shutil.copyfile(kept, beside)
    return False


def keep_database(database: Path) -> None:
    """Keep what a server has just made, before a run writes to it. Where that fails, the next one waits as long."""
    with (
        suppress(RlaifError, OSError, sqlite3.Error),
        atomic_write(_kept()) as beside,
        closing(sqlite3.connect(f"{database.resolve().as_uri()}?mode=ro", uri=True)) as source,
        closing(sqlite3.connect(beside)) as copy,
    ):
        source.backup(copy)
        copy.execute("pragma journal_mode = delete")  # one file, with no log beside it


def _kept() -> Path:
    return cache_folder() / f"prefect-{version('prefect')}.db"


def _is_whole(path: Path) -> bool:
    if not path.is_file():
        return False
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as database:
            found = [database.execute(question).fetchone() for question in _QUESTIONS]
    except sqlite3.Error:
        return False
    return found == [("ok",), (1,)]
