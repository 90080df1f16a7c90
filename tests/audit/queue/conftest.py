"""Real databases: an SQLite file and a PostgreSQL server (`RLAIF_TEST_POSTGRES` names another one to use)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest
import sqlalchemy as sa

from audit.queue.database import Database
from audit.queue.model import Role
from audit.queue.people import People, User
from audit.queue.queue import Queue, Rules
from tests.audit.queue.helpers import FakeClock, add_people
from tests.audit.queue.servers import binaries, postgresql


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    pytest.importorskip("psycopg", reason="needs psycopg: pip install 'rlaif[postgres]'")
    given = os.environ.get("RLAIF_TEST_POSTGRES")
    if given:
        yield given.rstrip("/") + "/"
        return
    programs = binaries()
    if programs is None:
        pytest.skip("no PostgreSQL server is installed (Debian: apt-get install postgresql), RLAIF_TEST_POSTGRES unset")
    with postgresql(programs) as url:
        yield url


@pytest.fixture
def new_postgres(postgres_server: str) -> Iterator[Callable[[], str]]:
    """Makes empty databases on the server, dropped at the end."""
    admin = sa.create_engine(
        postgres_server.replace("postgresql://", "postgresql+psycopg://") + "postgres", isolation_level="AUTOCOMMIT"
    )
    names: list[str] = []

    def make() -> str:
        names.append(f"rlaif_{uuid4().hex}")
        with admin.connect() as connection:
            connection.execute(sa.text(f"CREATE DATABASE {names[-1]}"))
        return postgres_server + names[-1]

    yield make
    with admin.connect() as connection:
        for name in names:
            connection.execute(sa.text(f"DROP DATABASE {name} WITH (FORCE)"))
    admin.dispose()


@pytest.fixture(params=["sqlite", "postgresql"])
def new_url(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], str]:
    """Makes URLs of empty databases."""
    if request.param == "postgresql":
        make: Callable[[], str] = request.getfixturevalue("new_postgres")
        return make
    return lambda: f"sqlite:///{tmp_path / uuid4().hex}.db"


@pytest.fixture
def database(new_url: Callable[[], str]) -> Iterator[Database]:
    database = Database(new_url())
    database.migrate()
    yield database
    database.close()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def queue(database: Database, clock: FakeClock) -> Queue:
    return Queue(database, clock, Rules(lease_s=60, longest_hold_s=600))


@pytest.fixture
def people(database: Database, clock: FakeClock) -> People:
    return People(database, clock)


@pytest.fixture
def auditors(people: People) -> list[User]:
    return add_people(people, 4)


@pytest.fixture
def lead(people: People) -> User:
    return people.add("lead", Role.LEAD)
