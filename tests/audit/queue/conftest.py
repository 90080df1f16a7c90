"""A queue on each of the real databases, under a clock that tests move."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from audit.queue.database import Database
from audit.queue.model import Role
from audit.queue.people import People, User
from audit.queue.queue import Queue, Rules
from tests.audit.queue.helpers import FakeClock, add_people


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
