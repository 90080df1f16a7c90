"""Many processes at one database. The sizes of the benchmark, smaller: benchmarks/audit.py has the full ones."""

from __future__ import annotations

import time
from collections import Counter

import pytest
import sqlalchemy as sa

from audit.queue.database import Database
from audit.queue.model import Role
from audit.queue.people import People
from audit.queue.queue import Queue
from audit.queue.tables import DONE, slots, verdicts
from tests.audit.queue.helpers import add_people, answer_all, answer_carelessly, in_processes, new_items, real_clock

pytestmark = pytest.mark.slow


def url_of(database: Database) -> str:
    return database.url.render_as_string(hide_password=False)


@pytest.mark.parametrize(("items", "overlap"), [(1000, 1), (120, 3)])
def test_sixteen_processes_share_the_items(database: Database, items: int, overlap: int) -> None:
    people = add_people(People(database, real_clock), 16)
    queue = Queue(database, real_clock)
    batch = queue.add_batch("round", new_items(items), overlap=overlap)
    start = time.time() + 12
    done = in_processes(answer_all, [(url_of(database), user.id, start, 4.0) for user in people])
    count = Counter(item for mine in done for item in mine)
    assert set(count.values()) == {overlap}  # nobody was given what was given already
    assert len(count) == items  # and nothing was left over
    assert all(len(set(mine)) == len(mine) for mine in done)
    assert min(map(len, done)) > 0  # nobody starved
    progress = queue.batch_progress(batch)
    assert (progress.answered, progress.open, progress.held) == (items * overlap, 0, 0)


def test_law_of_the_overlap_holds_among_expiries_releases_and_undos(database: Database) -> None:
    people = add_people(People(database, real_clock), 16, Role.AUDITOR)
    queue = Queue(database, real_clock)
    batch = queue.add_batch("round", new_items(60), overlap=3)
    start = time.time() + 12
    work = [(url_of(database), user.id, start, 0.7, start + 25) for user in people]
    seen = in_processes(answer_carelessly, work)
    kinds = Counter(what for mine in seen for _, what in mine)
    assert min(kinds[what] for what in ("released", "expired", "answered", "changed")) > 0
    # Whoever is left over finishes: nothing was lost on the way.
    time.sleep(1)
    for user in people:
        answer_all(url_of(database), user.id, 0, 0.1)
    progress = queue.batch_progress(batch)
    assert (progress.answered, progress.complete, progress.open, progress.held) == (180, 60, 0, 0)
    with database.read() as connection:
        later = verdicts.alias()
        in_force = connection.execute(
            sa.select(verdicts.c.item_id, verdicts.c.user_id).where(
                verdicts.c.winner.is_not(None), ~sa.exists().where(later.c.supersedes == verdicts.c.id)
            )
        ).all()
        places = connection.execute(sa.select(slots.c.item_id, slots.c.user_id).where(slots.c.state == DONE)).all()
    # Each place was filled by one verdict, each item by three different people.
    assert Counter(map(tuple, in_force)) == Counter(map(tuple, places))
    assert set(Counter(row.item_id for row in set(in_force)).values()) == {3}
