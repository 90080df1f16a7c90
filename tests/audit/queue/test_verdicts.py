"""What people said: stored once, unchanged, on the right rollout, never edited."""

from __future__ import annotations

import json
import multiprocessing
import signal
from collections import Counter

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from audit.queue.database import Database
from audit.queue.errors import AlreadyDecided, BadInput, KeyReused, LeaseExpired, NotAllowed, NotFound, NothingToUndo
from audit.queue.exchange import export_verdicts
from audit.queue.model import MAX_COMMENT, Answer, NewItem
from audit.queue.people import User
from audit.queue.queue import Queue
from audit.queue.tables import texts, verdicts
from audit.verdicts import from_table, in_force
from tests.audit.queue.helpers import FakeClock, new_items, real_clock, submit_and_die
from tests.audit.queue.test_claims import answer, claim

HOSTILE = [
    "<script>alert(1)</script>",
    "{{ 7 * 7 }}{% raw %}",
    "\u202eevil\u202c\u200b\ufeff",
    "NUL \0 inside",
    "lone \ud800 and \udfff surrogates",
    "=cmd|' /C calc'!A0",
    "\r\n\t\x1b[31m",
    "",
    "a" * (1 << 20),
]


def rows(database: Database) -> list[sa.Row]:  # type: ignore[type-arg]
    with database.read() as connection:
        return list(connection.execute(sa.select(verdicts).order_by(verdicts.c.id)))


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_text_comes_back_unchanged(queue: Queue, auditors: list[User], text: str) -> None:
    queue.add_batch("round", [NewItem("p", text, text + "1", text + "2", reason=text, group=text, stratum=text)])
    got = claim(queue, auditors[0])
    assert got.item.prompt == text
    assert {got.item.left, got.item.right} == {text + "1", text + "2"}
    comment = text[:MAX_COMMENT]
    said = Answer("left", 4, ("unsafe", "wrong"), ("too_long",), comment, 1.5)
    queue.submit(auditors[0].id, got.item.item_id, got.token, said, "k")
    assert queue.undo(auditors[0].id, "u").previous == said
    exported = export_verdicts(queue.database).to_pylist()[0]  # parquet must be able to hold it
    assert "\ud800" not in (exported["comment"] or "")


def test_sides_are_drawn_for_each_person_and_item_and_map_back(
    queue: Queue, database: Database, auditors: list[User]
) -> None:
    queue.add_batch("round", new_items(60), overlap=4)
    lefts = Counter[str]()
    by_item: dict[str, set[str]] = {}
    for user in auditors:
        while (got := queue.claim(user.id)) is not None:
            # Everybody means the same rollout, whichever side it stands on.
            choice = "left" if got.item.left.startswith("first") else "right"
            said = Answer(choice, flaws_left=("wrong",) if choice == "right" else ("unsafe",))
            queue.submit(user.id, got.item.item_id, got.token, said, got.item.item_id)
            lefts[choice] += 1
            by_item.setdefault(got.item.item_id, set()).add(choice)
    stored = rows(database)
    assert {row.winner for row in stored} == {"a"}
    assert {(row.shown_left, row.flaws) for row in stored} == {("a", '["a: unsafe"]'), ("b", '["b: wrong"]')}
    # 240 coins: 5 standard deviations; and 60 items on which 4 people almost never all see the same side.
    assert abs(lefts["left"] - 120) < 40
    assert sum(len(choices) == 2 for choices in by_item.values()) > 40


def test_submit_twice_is_stored_once(queue: Queue, database: Database, auditors: list[User], clock: FakeClock) -> None:
    queue.add_batch("round", new_items(2))
    user, got = auditors[0], claim(queue, auditors[0])
    send = (user.id, got.item.item_id, got.token)
    first = queue.submit(*send, Answer("left", seconds=1), "k")
    clock.jump(3600)  # long after the lease: the first sending counted
    again = queue.submit(*send, Answer("left", seconds=2), "k")
    assert (again.verdict_id, again.created_at, again.repeated) == (first.verdict_id, first.created_at, True)
    with pytest.raises(KeyReused):
        queue.submit(*send, Answer("right"), "k")
    with pytest.raises(AlreadyDecided):
        queue.submit(*send, Answer("left"), "another tab")
    with pytest.raises(KeyReused):
        queue.undo(user.id, "k")
    assert len(rows(database)) == 1


def test_key_is_a_persons_own(queue: Queue, database: Database, auditors: list[User]) -> None:
    queue.add_batch("round", new_items(2))
    for user in auditors[:2]:
        got = claim(queue, user)
        assert not queue.submit(user.id, got.item.item_id, got.token, Answer("tie"), "k").repeated
    assert len(rows(database)) == 2


@pytest.mark.parametrize("moment", ["before the verdict", "before commit", "before the response"])
def test_killed_during_submit_leaves_one_verdict(
    queue: Queue, database: Database, auditors: list[User], moment: str
) -> None:
    """SIGKILL in the middle; the page sends the same again."""
    queue.add_batch("round", new_items(1))
    url = database.url.render_as_string(hide_password=False)
    process = multiprocessing.get_context("spawn").Process(
        target=submit_and_die, args=(url, auditors[0].id, "k", moment)
    )
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    stored = moment == "before the response"
    assert len(rows(database)) == stored
    alive = Queue(database, real_clock)
    if stored:
        with pytest.raises(AlreadyDecided):
            alive.reclaim(auditors[0].id, _only_item(database))
        receipt = alive.submit(auditors[0].id, _only_item(database), 0, Answer("left", comment="typed"), "k")
    else:
        again = alive.claim(auditors[0].id)
        assert again is not None
        receipt = alive.submit(auditors[0].id, again.item.item_id, again.token, Answer("left", comment="typed"), "k")
    assert receipt.repeated is stored
    assert [(row.winner is None, row.comment) for row in rows(database)] == [(False, "typed")]


def _only_item(database: Database) -> str:
    with database.read() as connection:
        return str(connection.execute(sa.text("SELECT public_id FROM items")).scalar_one())


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE verdicts SET winner = 'b'",
        "UPDATE verdicts SET user_id = user_id",
        "DELETE FROM verdicts",
        "TRUNCATE verdicts",
        "INSERT OR REPLACE INTO verdicts SELECT * FROM verdicts",
        "REPLACE INTO verdicts (public_id, item_id, user_id, key, kind, shown_left, flaws, comment, elapsed, "
        "created_at) SELECT 'other', item_id, user_id, key, kind, shown_left, flaws, comment, 0, 0 FROM verdicts",
    ],
)
def test_verdicts_are_append_only_in_the_database(
    queue: Queue, database: Database, auditors: list[User], statement: str
) -> None:
    if ("REPLACE" in statement and not database.sqlite) or ("TRUNCATE" in statement and database.sqlite):
        pytest.skip("the other database's statement")
    queue.add_batch("round", new_items(1))
    answer(queue, auditors[0])
    before = rows(database)
    # Straight to the driver, as a person with a database client would.
    with pytest.raises(DBAPIError, match="append-only"), database._engine.begin() as connection:
        connection.execute(sa.text(statement))
    assert rows(database) == before


def test_undo_appends_and_gives_the_item_back(queue: Queue, database: Database, auditors: list[User]) -> None:
    queue.add_batch("round", new_items(3))
    user = auditors[0]
    first, second = answer(queue, user, "left"), answer(queue, user, "right")
    third = claim(queue, user)
    back = queue.undo(user.id, "u1")
    assert queue.undo(user.id, "u1") == back  # a double click takes back one answer, not two
    assert (back.item.item_id, back.previous) == (second, Answer("right"))
    further = queue.undo(user.id, "u2")
    assert further.item.item_id == first
    assert [held.item.item_id for held in queue.held(user.id)] == [first, second, third.item.item_id]
    queue.submit(user.id, first, further.token, Answer("tie"), "k1")
    queue.submit(user.id, second, back.token, Answer("right"), "k2")
    stored = rows(database)
    assert [row.kind for row in stored] == ["answer", "answer", "withdrawn", "withdrawn", "answer", "answer"]
    replaced = {row.supersedes for row in stored}
    assert [row.winner is None for row in stored if row.id not in replaced] == [False, False]
    assert next(row.winner for row in stored if row.id not in replaced) == "tie"
    assert queue.progress(user.id).answered == 2


def test_undone_item_that_runs_out_goes_to_others(
    queue: Queue, database: Database, auditors: list[User], clock: FakeClock
) -> None:
    queue.add_batch("round", new_items(1))
    item = answer(queue, auditors[0])
    queue.undo(auditors[0].id, "u")
    clock.jump(61)
    assert answer(queue, auditors[1]) == item
    with pytest.raises(AlreadyDecided):
        queue.reclaim(auditors[0].id, item)
    table = export_verdicts(database)
    assert [row.auditor for row in in_force(from_table(table)) if row.winner is not None] == ["auditor 1"]


def test_undo_of_a_skip_and_of_nothing(queue: Queue, auditors: list[User]) -> None:
    user, other = auditors[:2]
    with pytest.raises(NothingToUndo):
        queue.undo(user.id, "u0")
    queue.add_batch("round", new_items(1))
    got = claim(queue, user)
    queue.skip(user.id, got.item.item_id, got.token, "tired", "s1")
    assert queue.skip(user.id, got.item.item_id, got.token, "tired", "s1").repeated
    back = queue.undo(user.id, "u1")
    assert back.item == got.item
    queue.skip(user.id, got.item.item_id, back.token, "tired", "s2")
    claim(queue, other)
    with pytest.raises(AlreadyDecided):
        queue.undo(user.id, "u2")
    with pytest.raises(NothingToUndo):
        queue.undo(other.id, "u3", got.item.item_id)


def test_lead_settles_a_disagreement(queue: Queue, database: Database, auditors: list[User], lead: User) -> None:
    queue.add_batch("round", new_items(1), overlap=2)
    for user, wanted in zip(auditors[:2], ("first", "second"), strict=True):
        got = claim(queue, user)
        choice = "left" if got.item.left.startswith(wanted) else "right"
        queue.submit(user.id, got.item.item_id, got.token, Answer(choice, comment=wanted), "k")
    item = got.item.item_id
    case = queue.case(lead.id, item)
    shown = {"left": case.item.left, "right": case.item.right}
    assert [shown[opinion.choice].startswith(opinion.comment) for opinion in case.opinions] == [True, True]
    assert case.decision is None
    with pytest.raises(NotAllowed):
        queue.case(auditors[0].id, item)
    with pytest.raises(NotAllowed):
        queue.adjudicate(auditors[0].id, item, Answer("left"), "k2")
    with pytest.raises(NotFound):
        queue.adjudicate(lead.id, "0" * 32, Answer("left"), "k2")
    first = queue.adjudicate(lead.id, item, Answer("left"), "a1")
    assert queue.adjudicate(lead.id, item, Answer("left"), "a1").verdict_id == first.verdict_id
    queue.adjudicate(lead.id, item, Answer("right"), "a2")
    decision = queue.case(lead.id, item).decision
    assert decision is not None
    assert decision.choice == "right"
    with pytest.raises(AlreadyDecided):
        queue.undo(auditors[0].id, "u")
    stored = rows(database)
    assert [row.kind for row in stored] == ["answer", "answer", "adjudication", "adjudication"]
    assert stored[3].supersedes == stored[2].id


def test_lead_settles_nothing_of_their_own(queue: Queue, auditors: list[User], lead: User) -> None:
    queue.add_batch("round", new_items(1), overlap=2)
    answer(queue, auditors[0])
    mine = claim(queue, lead)
    with pytest.raises(NotAllowed):
        queue.case(lead.id, mine.item.item_id)
    queue.submit(lead.id, mine.item.item_id, mine.token, Answer("left"), "k")
    with pytest.raises(NotAllowed):
        queue.adjudicate(lead.id, mine.item.item_id, Answer("left"), "a")


def test_requeue_asks_more_people(queue: Queue, auditors: list[User], lead: User) -> None:
    queue.add_batch("round", new_items(1))
    item = answer(queue, auditors[0])
    with pytest.raises(NotAllowed):
        queue.requeue(auditors[0].id, item)
    queue.requeue(lead.id, item, more=2)
    assert queue.claim(auditors[0].id) is None
    with pytest.raises(NotFound):
        queue.reclaim(lead.id, item)  # asking for it is not having had it
    assert [answer(queue, user) for user in auditors[1:3]] == [item, item]
    assert queue.claim(auditors[3].id) is None


def test_progress_counts_what_is_in_force(queue: Queue, auditors: list[User], clock: FakeClock) -> None:
    queue.add_batch("round", new_items(5))
    user = auditors[0]
    answer(queue, user)
    clock.jump(24 * 3600)
    answer(queue, user)
    got = claim(queue, user)
    queue.skip(user.id, got.item.item_id, got.token, "", "s")
    claim(queue, user)
    clock.jump(6)
    progress = queue.progress(user.id)
    assert (progress.answered, progress.answered_today, progress.skipped, progress.held) == (2, 1, 1, 1)
    assert progress.queue_open == 2
    queue.undo(user.id, "u")
    assert queue.progress(user.id).skipped == 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"choice": "a"},
        {"choice": ""},
        {"confidence": 0},
        {"confidence": 6},
        {"flaws_left": ("<script>",)},
        {"comment": "x" * (MAX_COMMENT + 1)},
        {"seconds": -1.0},
        {"seconds": float("nan")},
        {"seconds": float("inf")},
    ],
)
def test_bad_answer_is_refused_in_a_sentence(wrong: dict[str, object]) -> None:
    with pytest.raises(BadInput):
        Answer(**({"choice": "left"} | wrong))  # type: ignore[arg-type]


@pytest.mark.parametrize("key", ["", "x" * 201, "\0", "ü", "a\nb"])
def test_bad_key_is_refused(queue: Queue, auditors: list[User], key: str) -> None:
    queue.add_batch("round", new_items(1))
    got = claim(queue, auditors[0])
    with pytest.raises(BadInput):
        queue.submit(auditors[0].id, got.item.item_id, got.token, Answer("left"), key)


@pytest.mark.parametrize("token", [0, -1, 2**80])
def test_foreign_token_is_refused(queue: Queue, auditors: list[User], token: int) -> None:
    queue.add_batch("round", new_items(1))
    got = claim(queue, auditors[0])
    with pytest.raises(LeaseExpired):
        queue.submit(auditors[0].id, got.item.item_id, token, Answer("left"), "k")


def test_no_content_is_in_the_log_of_events(queue: Queue, database: Database, auditors: list[User]) -> None:
    queue.add_batch("round", [NewItem("p", "SECRET", "SECRET", "SECRET", reason="SECRET")])
    got = claim(queue, auditors[0])
    queue.submit(auditors[0].id, got.item.item_id, got.token, Answer("left", comment="SECRET"), "k")
    with database.read() as connection:
        events = [dict(row._mapping) for row in connection.execute(sa.text("SELECT * FROM events"))]
        assert connection.execute(sa.select(sa.func.count()).select_from(texts)).scalar_one() == 1
    assert {event["kind"] for event in events} >= {"batch added", "claimed", "answered"}
    assert "SECRET" not in json.dumps(events)
