"""The queue's side of the loop on a real database: enqueue, wait, count, and collect what came late."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pytest

from audit.asking import Heard, Selected, Terms
from audit.config import AuditConfig
from audit.late import audited_groups
from audit.loop import ask_queue, database_url, open_queue
from audit.opinions import opinions
from audit.queue.errors import Closed
from audit.queue.model import Answer, Guidelines, Role
from audit.queue.people import People
from audit.queue.queue import Queue
from audit.selection import hidden_gold, select
from audit.verdicts import to_table
from store.errors import UsageError, WaitingError
from store.files import write_json
from store.schemas import PAIRS, SELECTION, VERDICTS, VOTES
from store.tables import write_table

GUIDE = Guidelines("1", "Compare.")


class Clock:
    def __init__(self) -> None:
        self.now = datetime(2026, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


class Round:
    """A round of eight judged pairs, all drawn, and two hidden gold items; `first` is its first pair's number."""

    def __init__(self, folder: Path, make_pairs, make_votes, clock: Clock, first: int = 0, **config: object) -> None:
        rows = make_pairs(first + 8).slice(first)
        self.votes = make_votes([(i, "j", order, 0.9) for i in range(first, first + 8) for order in ("ab", "ba")])
        gold = make_pairs(1000).slice(990).append_column("winner", pa.array(["a"] * 10))
        selection = select(opinions(rows, self.votes), 8, 0.3, seed=first)
        self.selected = Selected(rows, selection, hidden_gold(gold, rows, 2, seed=first))
        self.folder, self.clock = folder / f"audit-{first}", clock
        given = {"mode": "people", "timeout_s": 1000.0, **config}
        self.config = AuditConfig(**given)  # type: ignore[arg-type]
        self.earlier: list[Path] = []

    def ask(self) -> Heard:
        terms = Terms(self.config, 1, self.folder / ".gate", self.clock, self.clock.sleep, self.earlier)
        return ask_queue(terms, self.selected, GUIDE)

    def finish(self, heard: Heard) -> Path:
        """The folder as the stage leaves it."""
        write_json(self.folder / "asked.json", heard.asked)
        write_table(self.folder / "selection.parquet", SELECTION, self.selected.selection)
        write_table(self.folder / "asked_pairs.parquet", PAIRS, self.selected.pairs)
        write_table(self.folder / "asked_votes.parquet", VOTES, self.votes)
        write_table(self.folder / "verdicts.parquet", VERDICTS, to_table(heard.verdicts))
        write_table(self.folder / "late_verdicts.parquet", VERDICTS, heard.late.verdicts)
        return self.folder


class Desk:
    """Answers in the queue of a round, directly on the database."""

    def __init__(self, round_: Round) -> None:
        self.round = round_
        self.users: dict[str, int] = {}

    def __enter__(self) -> Desk:
        self.context = open_queue(self.round.config.database or "", self.round.clock)
        self.queue: Queue = self.context.__enter__()
        self.people = People(self.queue.database, self.round.clock)
        return self

    def __exit__(self, *error: object) -> None:
        self.context.__exit__(None, None, None)

    def user(self, name: str, role: Role = Role.AUDITOR) -> int:
        known = {user.name: user.id for user in self.people.all()}
        return known.get(name) or self.people.add(name, role).id

    def answer(self, name: str, count: int = 100, choose: Callable[[str, str], str] | None = None) -> int:
        """`choose` gets the texts left and right; else it is left. Gives how many were answered."""
        user, done = self.user(name), 0
        choose = choose or (lambda left, right: "left")
        while done < count and (claim := self.queue.claim(user)):
            item = claim.item
            self.queue.submit(user, item.item_id, claim.token, Answer(choose(item.left, item.right)), str(claim.token))
            done += 1
        return done


@pytest.fixture
def make_round(tmp_path: Path, make_pairs, make_votes, new_url) -> Callable[..., Round]:
    """Rounds on one database, of each kind."""
    clock, given = Clock(), {"database": new_url()}
    return lambda first=0, **config: Round(tmp_path, make_pairs, make_votes, clock, first, **{**given, **config})


def first_response(left: str, right: str) -> str:
    """Chooses rollout a, whose text begins with `first`."""
    return "left" if left.startswith("first") else "right"


def test_it_says_that_it_waits_and_a_second_run_asks_nothing_twice(make_round) -> None:
    round_ = make_round()
    with pytest.raises(WaitingError, match="0 of 8 pairs answered") as waiting:
        round_.ask()
    assert waiting.value.until == round_.clock.now + timedelta(seconds=1000)
    assert waiting.value.exit_code == 75
    round_.clock.now += timedelta(seconds=400)
    with pytest.raises(WaitingError) as again:
        round_.ask()
    assert again.value.until == waiting.value.until, "a second look gives people no more time"
    with Desk(round_) as desk:
        (batch,) = desk.queue.batches()
        assert (batch.items, batch.pairs, batch.places) == (10, 8, 10)
        assert desk.answer("ann", choose=first_response) == 10
    heard = round_.ask()
    assert (heard.opened, heard.metrics["handled"], heard.metrics["wanted"]) == ("quota", 8, 8)
    assert len(heard.verdicts) == 8
    assert {verdict.winner for verdict in heard.verdicts} == {"a"}, "sides map back to the rollouts"
    assert all(verdict.inclusion_probability == 1.0 and not verdict.simulated for verdict in heard.verdicts)
    assert len(heard.gold) == 2
    assert {verdict.pair_id for verdict in heard.gold} == set(round_.selected.gold_ids)
    assert heard.rows is not None
    assert heard.rows.num_rows == 10


def test_waiting_here_polls_until_the_time_is_up(make_round) -> None:
    round_ = make_round(wait=True, poll_s=300)
    heard = round_.ask()
    assert heard.opened == "timeout"
    assert round_.clock.now == datetime(2026, 1, 1, 0, 16, 40, tzinfo=UTC)
    assert heard.verdicts == []


def test_gold_items_and_what_was_taken_back_open_no_gate(make_round) -> None:
    round_ = make_round(quota=0.25)
    with pytest.raises(WaitingError):
        round_.ask()
    with Desk(round_) as desk:
        user = desk.user("ann")
        gold = {f"first {number}" for number in (int(name[1:]) for name in round_.selected.gold_ids)}
        pairs = 0
        while pairs < 2:
            claim = desk.queue.claim(user)
            assert claim is not None
            pairs += not gold & {claim.item.left, claim.item.right}
            desk.queue.submit(user, claim.item.item_id, claim.token, Answer("tie"), claim.item.item_id)
        desk.queue.undo(user, "undo")
    with pytest.raises(WaitingError, match="1 of 2 pairs answered"):
        round_.ask()
    with Desk(round_) as desk:
        desk.answer("ann", 1)
    assert round_.ask().opened == "quota"


def test_quarantine_and_a_leads_decision_say_what_counts(make_round) -> None:
    round_ = make_round(overlap=2)
    with pytest.raises(WaitingError):
        round_.ask()
    with Desk(round_) as desk:
        assert desk.answer("ann", choose=first_response) == 10
        assert desk.answer("bob", choose=lambda left, right: "tie") == 10
        lead = desk.user("lena", Role.LEAD)
        rows = {row["pair_id"]: row["item_id"] for row in _rows(desk.queue)}
        case = desk.queue.case(lead, rows["p3"])
        choice = "right" if case.item.left.startswith("first") else "left"
        desk.queue.adjudicate(lead, rows["p3"], Answer(choice), "settle")
        desk.people.quarantine("bob", "ties only")
    # What bob answered is asked of somebody else and waited for, all but the pair that is settled.
    with pytest.raises(WaitingError, match="1 of 8 pairs answered"):
        round_.ask()
    with Desk(round_) as desk:
        assert desk.answer("cy", choose=first_response) == 9
    heard = round_.ask()
    said = {(verdict.pair_id, verdict.auditor): verdict.winner for verdict in heard.verdicts}
    assert said.pop(("p3", "lena")) == "b"
    assert said == {(f"p{i}", name): "a" for i in range(8) if i != 3 for name in ("ann", "cy")}
    assert heard.metrics["left_out"] == {"quarantined": 8, "settled_by_a_lead": 1}
    assert heard.rows is not None
    assert heard.rows.num_rows == 21 + 9, "nothing is deleted"


def _rows(queue: Queue) -> list[dict[str, object]]:
    from audit.queue.exchange import export_verdicts

    rows: list[dict[str, object]] = export_verdicts(queue.database).to_pylist()
    return rows


def test_late_verdicts_come_with_the_next_round(make_round) -> None:
    """Three pairs in time by ann; after the gate bob adds to one of them, and ann answers one more."""
    first = make_round(overlap=2, quota=0.01, timeout_s=0)
    first.config = first.config.model_copy(update={"timeout_s": 50.0})
    with pytest.raises(WaitingError):
        first.ask()
    with Desk(first) as desk:
        ann = desk.answer("ann", 5, first_response)
    first.clock.now += timedelta(seconds=60)
    heard = first.ask()
    assert heard.opened == "timeout"
    in_time = {verdict.pair_id for verdict in heard.verdicts}
    assert ann == 5
    assert len(in_time) + len(heard.gold) == 5
    first.finish(heard)
    with Desk(first) as desk:
        desk.answer("bob", 2, first_response)

    second = make_round(8)
    second.earlier = [first.folder]
    with pytest.raises(WaitingError):
        second.ask()
    with Desk(second) as desk:
        old = next(batch for batch in desk.queue.batches() if batch.name == heard.asked["batch"])
        assert old.closed_at is not None, "people go on with the new round's pairs"
        held = desk.queue.claim(desk.user("cid"))
        assert held is not None
        desk.answer("ann", choose=first_response)
        desk.queue.submit(desk.user("cid"), held.item.item_id, held.token, Answer("tie"), "k")
    news = second.ask()
    assert len(news.verdicts) == 8, "what came late counts beside this round's verdicts, not among them"
    late = news.late.verdicts.to_pylist()
    by_bob = {row["pair_id"] for row in late if row["auditor"] == "bob"}
    assert news.late.new == len(by_bob) == len([row for row in late if row["auditor"] == "bob"])
    assert {row["pair_id"] for row in late} == by_bob
    for pair_id in by_bob:
        people = {row["auditor"] for row in late if row["pair_id"] == pair_id}
        assert people == ({"ann", "bob"} if pair_id in in_time else {"bob"}), "all verdicts of a pair, old and new"
    assert all(row["inclusion_probability"] == 1.0 for row in late)
    assert set(news.late.pairs["pair_id"].to_pylist()) == by_bob
    assert news.late.votes.num_rows == 2 * len(by_bob)
    second.finish(news)

    third = make_round(16, timeout_s=0)
    third.earlier = [first.folder, second.folder]
    assert third.ask().late.new == 0, "late verdicts are collected once"


def test_a_closed_batch_takes_what_was_begun(make_round) -> None:
    first = make_round(timeout_s=0)
    first.finish(first.ask())
    with Desk(first) as desk:
        held = desk.queue.claim(desk.user("ann"))
    second = make_round(8, timeout_s=0)
    second.earlier = [first.folder]
    second.finish(second.ask())
    assert held is not None
    with Desk(first) as desk:
        desk.queue.submit(desk.user("ann"), held.item.item_id, held.token, Answer("left"), "k")
        with pytest.raises(Closed):
            desk.queue.undo(desk.user("ann"), "u")
    third = make_round(16, timeout_s=0)
    third.earlier = [first.folder, second.folder]
    found = third.ask().late
    gold = set(first.selected.gold_ids)
    assert found.new in (0, 1)
    assert found.new == 1 or held.item.prompt in {f"prompt {name[1:]}" for name in gold}


def test_groups_that_audits_saw(make_round) -> None:
    round_ = make_round(timeout_s=0)
    folder = round_.finish(round_.ask())
    assert audited_groups([folder]) == set(), "asked is not seen: nobody answered"
    busy = make_round(8)
    with pytest.raises(WaitingError):
        busy.ask()
    with Desk(busy) as desk:
        desk.answer("ann")
    assert audited_groups([folder, busy.finish(busy.ask())]) == {"g"}


def test_the_database_is_named_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    for given in ("postgresql://u:secret@h/x", "postgresql://h/x?password=secret"):
        with pytest.raises(UsageError, match="database_env") as error:
            AuditConfig(mode="people", database=given)
        assert "secret" not in str(error.value)
    config = AuditConfig(mode="people", database_env="AUDIT_URL")
    with pytest.raises(UsageError, match="AUDIT_URL, which is not set"):
        database_url(config)
    monkeypatch.setenv("AUDIT_URL", "postgresql://u:secret@h/x")
    assert database_url(config) == "postgresql://u:secret@h/x"
    assert "secret" not in json.dumps([config.identity(), config.model_dump(mode="json")])


def test_where_it_runs_is_no_part_of_what_it_makes() -> None:
    here = AuditConfig(mode="people", database="a.db", wait=True, poll_s=1, url="http://localhost:8321")
    assert here.identity() == AuditConfig(mode="people", database_env="X").identity()
    assert here.identity() != AuditConfig(mode="people", overlap=2).identity()
    assert not {"database", "database_env", "wait", "poll_s", "url"} & here.identity().keys()
