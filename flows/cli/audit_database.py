"""Which audit database a command of `rlaif audit` means, and how it is opened."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import update_wrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from audit.config import AuditConfig
from flows.cli.options import workspace_for
from store.config import parse

if TYPE_CHECKING:
    from audit.queue.database import Database
    from audit.queue.people import People

F = TypeVar("F", bound=Callable[..., Any])


def now() -> datetime:
    return datetime.now(UTC)


def _where(function: F) -> F:
    """The options that say which database is meant."""
    for option in (
        click.option(
            "--database-env", metavar="NAME", help="Environment variable that holds its URL, for one with a password."
        ),
        click.option("--database", help="SQLite file, or URL without a password, in place of the workspace's."),
        workspace_for("Workspace whose queue is meant."),
    ):
        function = option(function)
    return function


def url_of(workspace: Path, database: str | None, database_env: str | None) -> str:
    if database is None and database_env is None:
        from flows.inspection.audited import workspace_database  # loads scipy

        return workspace_database(workspace)
    from audit.loop import database_url

    given = {"database": database, "database_env": database_env}
    return database_url(parse(AuditConfig, given, source="--database"))


@contextmanager
def open_database(where: dict[str, Any], create: bool = False) -> Iterator[Database]:
    """The database; `create` makes or migrates it, which only commands do that put something in."""
    from audit.queue.database import Database

    database = Database(url_of(**where))
    try:
        if create:
            database.migrate()
        else:
            database.check_version()
        yield database
    finally:
        database.close()


@contextmanager
def open_people(where: dict[str, Any], create: bool = False) -> Iterator[People]:
    from audit.queue.people import People

    with open_database(where, create) as database:
        yield People(database, now)


def database_command(group: click.Group, name: str) -> Callable[[Callable[..., None]], click.Command]:
    """A command of `group` with the options of `_where`, given to the function as the dict `where`."""

    def decorate(function: Callable[..., None]) -> click.Command:
        def call(workspace: Path, database: str | None, database_env: str | None, **given: Any) -> None:
            function({"workspace": workspace, "database": database, "database_env": database_env}, **given)

        return group.command(name)(_where(update_wrapper(call, function)))

    return decorate
