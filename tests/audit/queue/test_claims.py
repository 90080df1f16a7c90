"""Who gets what, for how long: leases, tokens, overlap, order."""

from __future__ import annotations

import threading

import pytest
import sqlalchemy as sa

from audit.queue.database import Database
from audit.queue.errors import AlreadyDecided, BadInput, Closed, LeaseExpired, NotAllowed, NotFound
from audit.queue.model import Answer, Claim, Kind, NewItem
from audit.queue.people import People, User
from audit.queue.queue import Queue
from audit.queue.tables import cursors, slots, verdicts
from tests.audit.queue.helpers import FakeClock, new_items


def claim(queue: Queue, user: User) -> Claim:
    claim = queue.claim(user.id)
    assert claim is not None
    return claim


def answer(queue: Queue, user: User, choice: str = "left") -> str:
    got = claim(queue, user)
    queue.submit(user.id, got.item.item_id, got.token, Answer(choice), f"key {got.item.item_id} {got.token}")
    return got.item.item_id


def test_every_item_goes_to_one_person(queue: Queue, auditors: list[User]) -> None:
    queue.add_batch("round", new_items(20))
    got = [answer(queue, auditors[i % 4]) for i in range(20)]
    assert len(set(got)) == 20
    assert all(queue.claim(user.id) is None for user in auditors)


def test_overlap_means_exactly_so_many_different_people(queue: Queue, database: Database, auditors: list[User]) -> None:
    queue.add_batch("round", new_items(10), overlap=3)
    for user in auditors:
        while queue.claim(user.id) is not None:
            answer(queue, user)
    with database.read() as connection:
        rows = connection.execute(sa.select(verdicts.c.item_id, verdicts.c.user_id)).all()
    assert len(rows) == len(set(rows)) == 30
    assert {sum(row.item_id == item for row in rows) for item in {row.item_id for row in rows}} == {3}


def test_own_unexpired_claim_comes_first_and_is_renewed(queue: Queue, clock: FakeClock, auditors: list[User]) -> None:
    queue.add_batch("round", new_items(3))
    first = claim(queue, auditors[0])
    clock.jump(50)
    again = claim(queue, auditors[0])
    assert (again.item, again.token) == (first.item, first.token)
    assert (again.expires_at - first.expires_at).total_seconds() == 50


def test_next_item_is_preloaded_and_becomes_current(queue: Queue, auditors: list[User]) -> None:
    queue.add_batch("round", new_items(3))
    user = auditors[0]
    first = claim(queue, user)
    second = queue.peek_next(user.id, first.item.item_id)
    assert second is not None
    assert second.item.item_id != first.item.item_id
    assert queue.peek_next(user.id, first.item.item_id) == second
    assert [held.item.item_id for held in queue.held(user.id)] == [first.item.item_id, second.item.item_id]
    assert claim(queue, auditors[1]).item.item_id not in (first.item.item_id, second.item.item_id)
    queue.submit(user.id, first.item.item_id, first.token, Answer("left"), "k")
    assert claim(queue, user).item == second.item


def test_lease_expires_and_the_late_answer_is_refused_by_its_token(
    queue: Queue, clock: FakeClock, auditors: list[User]
) -> None:
    queue.add_batch("round", new_items(1))
    late, other = auditors[:2]
    old = claim(queue, late)
    clock.jump(61)
    new = claim(queue, other)
    assert new.item.item_id == old.item.item_id
    with pytest.raises(LeaseExpired):
        queue.submit(late.id, old.item.item_id, old.token, Answer("left"), "late")
    with pytest.raises(AlreadyDecided):
        queue.reclaim(late.id, old.item.item_id)
    queue.submit(other.id, new.item.item_id, new.token, Answer("right"), "k")
    assert queue.progress(late.id).answered == 0


def test_late_answer_is_refused_without_another_claimant_too_and_reclaim_mends_it(
    queue: Queue, clock: FakeClock, auditors: list[User]
) -> None:
    queue.add_batch("round", new_items(1))
    user = auditors[0]
    old = claim(queue, user)
    clock.jump(60)
    with pytest.raises(LeaseExpired):
        queue.submit(user.id, old.item.item_id, old.token, Answer("left"), "k")
    with pytest.raises(LeaseExpired):
        queue.heartbeat(user.id, old.item.item_id, old.token)
    new = queue.reclaim(user.id, old.item.item_id)
    assert new.token != old.token
    assert new.item == old.item  # on the same sides, or the typed answer would be turned round
    with pytest.raises(LeaseExpired):
        queue.submit(user.id, old.item.item_id, old.token, Answer("left"), "k")
    queue.submit(user.id, old.item.item_id, new.token, Answer("left"), "k")


def test_heartbeat_renews_but_not_for_ever(queue: Queue, clock: FakeClock, auditors: list[User]) -> None:
    queue.add_batch("round", new_items(1))
    held = claim(queue, auditors[0])
    for _ in range(11):
        clock.jump(50)
        queue.heartbeat(auditors[0].id, held.item.item_id, held.token)
    clock.jump(51)
    with pytest.raises(LeaseExpired):
        queue.heartbeat(auditors[0].id, held.item.item_id, held.token)


@pytest.mark.parametrize("back", [30, 3600, 10**6])
def test_clock_that_jumps_back_hands_nothing_out_twice(
    queue: Queue, clock: FakeClock, auditors: list[User], back: float
) -> None:
    queue.add_batch("round", new_items(1))
    first, second = auditors[:2]
    old = claim(queue, first)
    clock.jump(-back)
    assert queue.claim(second.id) is None  # not lent twice
    clock.jump(back + 61)
    new = claim(queue, second)
    clock.jump(-back - 61)
    # The old lease seems alive by this clock, but somebody else has the item.
    with pytest.raises(LeaseExpired):
        queue.submit(first.id, old.item.item_id, old.token, Answer("left"), "k")
    assert queue.claim(first.id) is None
    queue.submit(second.id, new.item.item_id, new.token, Answer("left"), "k")


def test_skip_passes_on_and_is_never_lost(queue: Queue, auditors: list[User], lead: User) -> None:
    queue.add_batch("round", new_items(1))
    for user in auditors:
        got = claim(queue, user)
        queue.skip(user.id, got.item.item_id, got.token, "not my field", "k")
        assert queue.claim(user.id) is None
    assert queue.batches()[0].open == 1
    assert queue.batches()[0].skips == 4
    queue.requeue(lead.id, got.item.item_id, more=0)
    assert claim(queue, auditors[0]).item.item_id == got.item.item_id


def test_release_gives_back_to_anybody_and_twice_is_once(queue: Queue, auditors: list[User]) -> None:
    queue.add_batch("round", new_items(1))
    got = claim(queue, auditors[0])
    for _ in range(2):
        queue.release(auditors[0].id, got.item.item_id, got.token)
    again = claim(queue, auditors[0])
    queue.release(auditors[0].id, got.item.item_id, got.token)  # a stale tab's: it changes nothing
    assert claim(queue, auditors[0]).token == again.token
    assert queue.release_all(auditors[0].id) == 1
    assert claim(queue, auditors[1]).item.item_id == got.item.item_id


def test_who_let_one_place_go_can_have_the_items_other_place(queue: Queue, auditors: list[User]) -> None:
    """The person's cursor has passed the item's other place by then; the item must not be lost to them."""
    queue.add_batch("round", [*new_items(1, overlap=2)])
    first, second = auditors[:2]
    got = claim(queue, first)
    assert queue.peek_next(first.id, got.item.item_id) is None  # looks past the other place
    queue.release(first.id, got.item.item_id, got.token)
    answer(queue, second)
    assert answer(queue, first) == got.item.item_id


def test_higher_priority_comes_first_whenever_it_arrives(queue: Queue, auditors: list[User]) -> None:
    queue.add_batch("later", new_items(5))
    answer(queue, auditors[0])
    queue.add_batch("urgent", [NewItem("u", "urgent", "x", "y", priority=9)])
    assert claim(queue, auditors[0]).item.prompt == "urgent"


def test_order_is_random_and_ids_and_tokens_tell_nothing(queue: Queue, auditors: list[User]) -> None:
    gold = [NewItem(f"g{i}", f"gold {i}", "x", "y", kind=Kind.GOLD, gold_winner="a") for i in range(20)]
    queue.add_batch("round", [*gold, *new_items(40)])
    prompts = []
    while (got := queue.claim(auditors[0].id)) is not None:
        assert "g" not in got.item.item_id
        assert len(got.item.item_id) == 32
        assert set(vars(got.item)) == {
            "item_id",
            "batch_id",
            "prompt",
            "left",
            "right",
            "guidelines_version",
            "constitution_version",
        }
        prompts.append(got.item.prompt)
        queue.submit(auditors[0].id, got.item.item_id, got.token, Answer("tie"), f"k{len(prompts)}")
    # 20 gold items given first and 40 pairs behind them: C(60, 20) orders, so these have a chance below 1e-15.
    assert not all(prompt.startswith("gold") for prompt in prompts[:20])
    assert not all(prompt.startswith("gold") for prompt in prompts[-20:])


def test_closed_batch_takes_what_is_held_and_nothing_else(queue: Queue, clock: FakeClock, auditors: list[User]) -> None:
    batch = queue.add_batch("round", new_items(3))
    holds, late = claim(queue, auditors[0]), claim(queue, auditors[1])
    queue.close_batch(batch)
    queue.close_batch(batch)
    assert queue.claim(auditors[2].id) is None
    queue.submit(auditors[0].id, holds.item.item_id, holds.token, Answer("left"), "k")
    clock.jump(61)
    assert queue.claim(auditors[2].id) is None
    with pytest.raises(Closed):
        queue.reclaim(auditors[1].id, late.item.item_id)
    with pytest.raises(Closed):
        queue.undo(auditors[0].id, "u")
    progress = queue.batch_progress(batch)
    assert (progress.open, progress.held, progress.answered, progress.closed) == (0, 0, 1, 2)


def test_foreign_item_and_none_at_all_look_the_same(queue: Queue, auditors: list[User]) -> None:
    queue.add_batch("round", new_items(1))
    theirs = claim(queue, auditors[0])
    said = set()
    for item in (theirs.item.item_id, "0" * 32, "\0", "\ud800", "x" * 10_000):
        for call in (
            lambda item=item: queue.view(auditors[1].id, item),
            lambda item=item: queue.reclaim(auditors[1].id, item),
            lambda item=item: queue.heartbeat(auditors[1].id, item, theirs.token),
            lambda item=item: queue.submit(auditors[1].id, item, theirs.token, Answer("left"), "k"),
            lambda item=item: queue.skip(auditors[1].id, item, theirs.token, "", "k"),
            lambda item=item: queue.release(auditors[1].id, item, theirs.token),
        ):
            with pytest.raises(NotFound) as caught:
                call()
            said.add(str(caught.value))
    assert len(said) == 1


def test_disabled_people_and_strangers_get_nothing(queue: Queue, people: People, auditors: list[User]) -> None:
    queue.add_batch("round", new_items(1))
    people.disable(auditors[0].name)
    for user in (auditors[0].id, 10**9):
        with pytest.raises(NotAllowed):
            queue.claim(user)
        with pytest.raises(NotAllowed):
            queue.progress(user)


def test_quarantined_people_see_an_empty_queue(queue: Queue, people: People, auditors: list[User]) -> None:
    queue.add_batch("round", new_items(1))
    people.quarantine(auditors[0].name, "presses left")
    assert queue.claim(auditors[0].id) is None
    people.release_quarantine(auditors[0].name)
    assert queue.claim(auditors[0].id) is not None


def test_same_batch_again_is_the_same_batch(queue: Queue) -> None:
    first = queue.add_batch("round", new_items(5))
    assert queue.add_batch("round", reversed(new_items(5))) == first
    assert queue.batch_progress(first).items == 5
    with pytest.raises(BadInput, match="exists with other items"):
        queue.add_batch("round", new_items(6))


@pytest.mark.parametrize(
    ("items", "overlap"),
    [
        ([], 1),
        (new_items(1), 0),
        (new_items(1), 101),
        (new_items(1) * 2, 1),
        (new_items(1, priority=100), 1),
        (new_items(1, inclusion_probability=0.0), 1),
        (new_items(1, inclusion_probability=float("nan")), 1),
        (new_items(1, kind=Kind.GOLD), 1),
        (new_items(1, gold_winner="a"), 1),
        (new_items(1, kind=Kind.GOLD, gold_winner="left"), 1),
        ([NewItem("\0", "x", "y", "z")], 1),
        ([NewItem("\udfff", "x", "y", "z")], 1),
    ],
)
def test_bad_batch_is_refused_whole(queue: Queue, items: list[NewItem], overlap: int) -> None:
    with pytest.raises(BadInput):
        queue.add_batch("round", items, overlap)
    assert queue.batches() == []


def test_quota_is_reported_once(queue: Queue, auditors: list[User]) -> None:
    queue.add_batch("round", new_items(4), quota=0.5)
    answer(queue, auditors[0])
    assert queue.quotas_reached() == []
    answer(queue, auditors[0])
    assert [batch.pairs_complete for batch in queue.quotas_reached()] == [2]
    assert queue.quotas_reached() == []


def test_threads_of_one_person_share_one_claim(queue: Queue, auditors: list[User]) -> None:
    """Two tabs that ask at the same moment, and an item with a place for each."""
    queue.add_batch("round", new_items(8, overlap=2))
    got: list[Claim | None] = []
    threads = [threading.Thread(target=lambda: got.append(queue.claim(auditors[0].id))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({(claim.item.item_id, claim.token) for claim in got if claim}) == 1
    assert len(got) == 8
    assert len(queue.held(auditors[0].id)) == 1


def test_one_person_alone_is_never_shown_an_item_twice_and_cursor_follows(
    queue: Queue, database: Database, auditors: list[User]
) -> None:
    """What makes claims flat: slots that a person cannot have lie behind the person's cursor."""
    queue.add_batch("round", new_items(30, overlap=2))
    assert len({answer(queue, auditors[0]) for _ in range(30)}) == 30
    assert queue.claim(auditors[0].id) is None
    with database.read() as connection:
        behind = connection.execute(
            sa.select(sa.func.count())
            .select_from(slots)
            .where(slots.c.state == 0, slots.c.position > sa.select(cursors.c.position).scalar_subquery())
        ).scalar_one()
    assert behind == 0
    assert len({answer(queue, auditors[1]) for _ in range(30)}) == 30
