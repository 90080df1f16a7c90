"""Signals against published figures and against people whose habits are known."""

from __future__ import annotations

import random

import pytest
from scipy.stats import binomtest

from audit.queue.insight import Insight, Share, spammer_score
from audit.queue.model import Answer, Kind, NewItem
from audit.queue.people import People, User
from audit.queue.queue import Queue
from store.statistics import newcombe, wilson
from tests.audit.queue.helpers import FakeClock, new_items
from tests.audit.queue.test_claims import claim


@pytest.mark.parametrize(("count", "n"), [(0, 10), (3, 7), (50, 100), (10, 10)])
def test_wilson_is_scipys(count: int, n: int) -> None:
    reference = binomtest(count, n).proportion_ci(method="wilson")
    assert wilson(count, n) == pytest.approx((reference.low, reference.high))


@pytest.mark.parametrize(
    ("a", "m", "b", "n", "low", "high"),
    [  # Newcombe 1998, table II, method 10, contrasts (a), (b), (d), (e), (h)
        (56, 70, 48, 80, 0.0524, 0.3339),
        (9, 10, 3, 10, 0.1705, 0.8090),
        (5, 56, 0, 29, -0.0381, 0.1926),
        (0, 10, 0, 20, -0.1611, 0.2775),
        (10, 10, 0, 10, 0.6075, 1.0),
    ],
)
def test_newcombe_is_the_papers(a: int, m: int, b: int, n: int, low: float, high: float) -> None:
    assert newcombe(a, m, b, n)[1:] == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize(
    ("habit", "score"),
    [
        (lambda gold: gold, 1.0),
        (lambda gold: "left" if gold == "right" else "right", -1.0),
        (lambda _: "left", 0.0),
        (lambda _: "tie", 0.0),
    ],
)
def test_score_of_known_habits(habit: object, score: float) -> None:
    gold = ["left"] * 30 + ["right"] * 20 + ["tie"] * 5
    found = spammer_score([(habit(side), side) for side in gold])  # type: ignore[operator]
    assert found is not None
    assert found[0] == score
    assert found[1] <= score <= found[2]
    assert spammer_score([("left", "left")]) is None


def work(queue: Queue, clock: FakeClock, user: User, habit: str, seconds: float) -> None:
    """The better response of every item begins with `first`."""
    chance = random.Random(user.id)
    while (got := queue.claim(user.id)) is not None:
        right = "left" if got.item.left.startswith("first") else "right"
        wrong = "right" if right == "left" else "left"
        if chance.random() < 0.1:  # nobody is perfect
            right, wrong = wrong, right
        said = {"careful": right, "inverter": wrong, "lefty": "left"}[habit]
        clock.jump(seconds)
        queue.submit(user.id, got.item.item_id, got.token, Answer(said, seconds=seconds), got.item.item_id)


class Repeatable(random.Random):
    """Stands in for `secrets`: sides and places fall the same in every run, so that chance fails no test."""

    def token_hex(self, size: int) -> str:
        return self.randbytes(size).hex()

    def randbits(self, size: int) -> int:
        return self.getrandbits(size)

    def randbelow(self, most: int) -> int:
        return self.randrange(most)

    def SystemRandom(self) -> random.Random:  # noqa: N802  its name there
        return self


def test_habits_are_found(
    queue: Queue, people: People, auditors: list[User], clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("audit.queue.batches.secrets", Repeatable(5))
    words = "word " * 30
    gold = [
        NewItem(f"g{i}", "x", f"first {words}", f"second {words}", kind=Kind.GOLD, gold_winner="a") for i in range(40)
    ]
    queue.add_batch("round", [*gold, *new_items(20)], overlap=4)
    habits = [("careful", 30), ("inverter", 30), ("lefty", 0.5), ("careful", 25)]
    for user, (habit, seconds) in zip(auditors, habits, strict=True):
        work(queue, clock, user, habit, seconds)
    insight = Insight(queue.database)
    careful, inverter, lefty, other = insight.signals()
    assert careful.flags == other.flags == ()
    assert careful.score_low is not None
    assert careful.score_low > 0.4
    assert inverter.flags == ("answers gold items the wrong way round",)
    assert set(lefty.flags) == {
        "answers gold items no better than chance",
        "presses left far more often than a fair coin",
        "answers faster than anybody reads",
    }
    assert lefty.left == Share.of(60, 60)
    assert lefty.left_p == pytest.approx(2 * 0.5**60)
    right = {gold.auditor: gold.right.value for gold in insight.gold()}
    assert right["auditor 0"] > 0.75 > right["auditor 2"] > 0.25 > right["auditor 1"]  # type: ignore[operator]
    before = insight.agreement()
    assert (before.items, before.pairs.n) == (60, 360)
    people.quarantine("auditor 1", "inverts")
    people.quarantine("auditor 2", "left")
    after = insight.agreement()
    assert after.pairs.n == 60  # computed again without them, nothing deleted
    assert after.pairs.value is not None
    assert after.pairs.value > 0.7 > before.pairs.value  # type: ignore[operator]
    assert len(insight.ratings()) == 120
    assert [signal.quarantined for signal in insight.signals()] == [False, True, True, False]


def test_throughput_counts_work_and_not_pauses(queue: Queue, auditors: list[User], clock: FakeClock) -> None:
    queue.add_batch("round", new_items(12))
    user = auditors[0]
    for number in range(11):
        clock.jump(18 if number != 5 else 4 * 3600)
        got = claim(queue, user)
        queue.submit(user.id, got.item.item_id, got.token, Answer("tie"), f"{number}")
    got = claim(queue, user)
    queue.skip(user.id, got.item.item_id, got.token, "", "s")
    (mine,) = Insight(queue.database).throughput()
    assert (mine.answers, mine.ties, mine.skips) == (11, 11, 1)
    assert mine.per_hour == pytest.approx(200)
    assert Insight(queue.database).throughput("no such batch") == []


def test_disputes_until_a_lead_settles_them(queue: Queue, auditors: list[User], lead: User) -> None:
    batch = queue.add_batch("round", new_items(3, reason="doubt", group="g"), overlap=2)
    for user, wanted in zip(auditors[:2], ("first", "second"), strict=True):
        while (got := queue.claim(user.id)) is not None:
            same = got.item.prompt == "prompt 0"
            choice = "left" if got.item.left.startswith("first" if same else wanted) else "right"
            queue.submit(user.id, got.item.item_id, got.token, Answer(choice), got.item.item_id)
    insight = Insight(queue.database)
    open_ones = insight.disputes(batch)
    assert {(one.pair_id, one.for_a, one.for_b, one.reason) for one in open_ones} == {
        ("p1", 1, 1, "doubt"),
        ("p2", 1, 1, "doubt"),
    }
    queue.adjudicate(lead.id, open_ones[0].item_id, Answer("left"), "a")
    assert [one.item_id for one in insight.disputes(batch)] == [open_ones[1].item_id]
    assert [one.item_id for one in insight.disputes(batch, settled=True)] == [open_ones[0].item_id]
