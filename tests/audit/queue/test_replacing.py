"""Quarantine in the queue: what is missing then is asked of others, once, and no longer after a release."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta

import pytest
import sqlalchemy as sa

from audit.queue.database import Database
from audit.queue.errors import AlreadyDecided, LeaseExpired, NothingToUndo
from audit.queue.exchange import export_verdicts
from audit.queue.model import Answer, Claim, Role
from audit.queue.people import People, User
from audit.queue.queue import Queue
from audit.queue.tables import slots
from tests.audit.queue.helpers import FakeClock, new_items


def answer(queue: Queue, user: User, claim: Claim) -> None:
    queue.submit(
        user.id, claim.item.item_id, claim.token, Answer("left"), f"{user.id}.{claim.item.item_id}.{claim.token}"
    )


def work(queue: Queue, user: User, most: int = 1000) -> list[str]:
    """Answers what there is; gives the prompts."""
    done: list[str] = []
    while len(done) < most and (claim := queue.claim(user.id)) is not None:
        done.append(claim.item.prompt)
        answer(queue, user, claim)
    return done


def answered_by(database: Database) -> dict[str, list[str]]:
    """pair -> whose answers count."""
    rows = [row for row in export_verdicts(database).to_pylist() if row["winner"] and not row["quarantined"]]
    return {
        pair: sorted(row["auditor"] for row in rows if row["pair_id"] == pair) for pair in {r["pair_id"] for r in rows}
    }


@pytest.mark.parametrize("overlap", [1, 2])
def test_what_was_answered_is_asked_of_others(
    queue: Queue, people: People, auditors: list[User], database: Database, overlap: int
) -> None:
    batch = queue.add_batch("round", new_items(5), overlap)
    for user in auditors[:overlap]:
        assert len(work(queue, user)) == 5
    before = export_verdicts(database).num_rows
    assert queue.batch_progress(batch).complete == 5
    bad = auditors[0]
    for _ in range(3):  # a second time, with a better reason, asks nothing more
        people.quarantine(bad.name, "presses left")
        found = queue.batch_progress(batch)
        assert (found.complete, found.open, found.answered, found.places) == (0, 5, 5 * (overlap - 1), 5 * overlap)
    assert export_verdicts(database).num_rows == before, "nothing is deleted"
    assert queue.claim(bad.id) is None
    assert work(queue, auditors[1]) == [] if overlap == 2 else True, "who answered is not asked again"
    for user in auditors[1:]:
        work(queue, user)
    assert queue.batch_progress(batch).complete == 5
    counted = answered_by(database)
    assert {len(names) for names in counted.values()} == {overlap}
    assert all(len(set(names)) == overlap and bad.name not in names for names in counted.values())


def test_released_before_others_began_asks_nobody_else(
    queue: Queue, people: People, auditors: list[User], database: Database
) -> None:
    batch = queue.add_batch("round", new_items(6), 2)
    work(queue, auditors[0])
    work(queue, auditors[1], 4)
    before = queue.batch_progress(batch)
    people.quarantine(auditors[0].name, "fast")
    taken = queue.claim(auditors[2].id)
    assert taken is not None
    for _ in range(2):
        people.release_quarantine(auditors[0].name)
        found = queue.batch_progress(batch)
        assert (found.complete, found.answered) == (before.complete, before.answered)
        assert found.open + found.held <= before.open + 1, "at most what somebody has before them is one too many"
    answer(queue, auditors[2], taken)
    for user in auditors:
        work(queue, user)
    found = queue.batch_progress(batch)
    assert (found.open, found.held, found.complete) == (0, 0, 6)
    assert Counter(len(set(names)) for names in answered_by(database).values()) in (
        Counter({2: 6}),
        Counter({2: 5, 3: 1}),
    )
    with database.read() as connection:
        twice = sa.select(slots.c.item_id).group_by(slots.c.item_id, slots.c.user_id).having(sa.func.count() > 1)
        assert connection.execute(twice).all() == []


def test_released_after_others_answered_keeps_both(
    queue: Queue, people: People, auditors: list[User], database: Database
) -> None:
    batch = queue.add_batch("round", new_items(3))
    work(queue, auditors[0])
    people.quarantine(auditors[0].name, "fast")
    assert len(work(queue, auditors[1], 2)) == 2
    people.release_quarantine(auditors[0].name)
    assert work(queue, auditors[2]) == []
    assert queue.batch_progress(batch).complete == 3
    assert sorted(len(names) for names in answered_by(database).values()) == [1, 2, 2]
    people.quarantine(auditors[0].name, "fast after all")
    assert len(work(queue, auditors[2])) == 3, "asked again, as all else that this person answered"


def test_what_a_quarantined_person_holds_goes_to_others(queue: Queue, people: People, auditors: list[User]) -> None:
    queue.add_batch("round", new_items(2))
    work(queue, auditors[0], 1)
    held = queue.claim(auditors[0].id)
    assert held is not None
    people.quarantine(auditors[0].name, "left")
    with pytest.raises(LeaseExpired):
        answer(queue, auditors[0], held)
    with pytest.raises(AlreadyDecided):
        queue.reclaim(auditors[0].id, held.item.item_id)
    with pytest.raises(NothingToUndo):
        queue.undo(auditors[0].id, "undo-key")
    assert len(work(queue, auditors[1])) == 2


def test_closed_batches_and_settled_items_stay(queue: Queue, people: People, auditors: list[User], lead: User) -> None:
    first = queue.add_batch("first", new_items(2))
    work(queue, auditors[0])
    queue.close_batch(first)
    second = queue.add_batch("second", new_items(2))
    claims = []
    while (claim := queue.claim(auditors[0].id)) is not None:
        claims.append(claim)
        answer(queue, auditors[0], claim)
    queue.adjudicate(lead.id, claims[0].item.item_id, Answer("tie"), "settled")
    people.quarantine(auditors[0].name, "left")
    assert queue.batch_progress(first).complete == 2
    assert (queue.batch_progress(second).complete, queue.batch_progress(second).open) == (1, 1)
    assert work(queue, auditors[1]) == [claims[1].item.prompt]


def test_a_batch_closed_in_between_is_complete_after_release(
    queue: Queue, people: People, auditors: list[User]
) -> None:
    batch = queue.add_batch("round", new_items(2))
    work(queue, auditors[0])
    people.quarantine(auditors[0].name, "left")
    queue.close_batch(batch)
    assert queue.batch_progress(batch).complete == 0
    people.release_quarantine(auditors[0].name)
    found = queue.batch_progress(batch)
    assert (found.complete, found.answered, found.closed) == (2, 2, 0)


def test_whoever_looked_before_finds_what_opened_since(
    queue: Queue, people: People, auditors: list[User], clock: FakeClock
) -> None:
    """A person's cursor stands behind all that they passed; places opened later lie beyond it."""
    queue.add_batch("round", new_items(4))
    work(queue, auditors[0], 3)
    assert len(work(queue, auditors[1])) == 1
    assert queue.claim(auditors[1].id) is None
    clock.now += timedelta(seconds=5)
    people.quarantine(auditors[0].name, "left")
    assert len(work(queue, auditors[1])) == 3


def test_a_quota_that_is_lost_is_told_again_when_it_is_reached(
    queue: Queue, people: People, auditors: list[User]
) -> None:
    queue.add_batch("round", new_items(4), quota=0.5)
    work(queue, auditors[0], 3)
    work(queue, auditors[1])
    assert len(queue.quotas_reached()) == 1
    people.quarantine(auditors[1].name, "one of four: the quota is reached without it")
    assert queue.quotas_reached() == []
    people.quarantine(auditors[0].name, "left")
    assert queue.quotas_reached() == []
    work(queue, auditors[2], 1)
    assert queue.quotas_reached() == []
    work(queue, auditors[2], 1)
    assert len(queue.quotas_reached()) == 1


def test_all_or_nothing(queue: Queue, people: People, auditors: list[User], monkeypatch: pytest.MonkeyPatch) -> None:
    batch = queue.add_batch("round", new_items(3))
    work(queue, auditors[0])

    def fails(*arguments: object) -> None:
        raise RuntimeError("killed")

    monkeypatch.setattr("audit.queue.replacing.places.new_slots", fails)
    with pytest.raises(RuntimeError, match="killed"):
        people.quarantine(auditors[0].name, "left")
    assert people.get(auditors[0].name).quarantined is None
    assert queue.batch_progress(batch).complete == 3


def test_a_lead_in_quarantine_settles_nothing_they_answered(queue: Queue, people: People, lead: User) -> None:
    queue.add_batch("round", new_items(1))
    (claim,) = [queue.claim(lead.id)]
    assert claim is not None
    answer(queue, lead, claim)
    people.quarantine(lead.name, "own items")
    with pytest.raises(Exception, match="another lead must settle"):
        queue.adjudicate(lead.id, claim.item.item_id, Answer("left"), "own")
    assert people.get(lead.name).role is Role.LEAD
