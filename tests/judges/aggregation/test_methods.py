"""Mean and majority, and the checks before them."""

from __future__ import annotations

import math
import random
from collections import defaultdict

import pyarrow as pa
import pytest

from judges.aggregation.labels import LABELS, checked_votes
from judges.aggregation.mean import soft_preferences
from judges.aggregation.methods import METHODS
from store.errors import UsageError
from store.tables import conform

from ..votes_builder import pairs_table, vote, votes_table


def predicted(method: str, votes: pa.Table) -> dict[str, float]:
    labels = METHODS[method]().fit(votes).predict(votes)
    conform(labels, LABELS, "labels")
    return dict(zip(labels["pair_id"].to_pylist(), labels["p_a"].to_pylist(), strict=True))


def test_the_mean_averages_orders_before_judges() -> None:
    votes = votes_table(
        vote("p1", "j", "ab", 0.9),
        vote("p1", "j", "ba", 0.5),
        vote("p1", "k", "ab", 0.1),
        vote("p1", "k", "ba", None),
        vote("p2", "j", "ab", None),
        vote("p3", "j", "ab", None, "abstain"),
        vote("p3", "k", "ab", 0.5),
    )
    assert predicted("mean", votes) == {"p1": pytest.approx((0.7 + 0.1) / 2), "p3": 0.5}
    assert soft_preferences(votes) == predicted("mean", votes)
    labels = METHODS["mean"]().fit(votes).predict(votes).to_pylist()
    assert [(row["n_votes"], row["votes_a"], row["votes_b"]) for row in labels] == [(3, 1, 1), (1, 0, 0)]


def test_the_majority_keeps_ties() -> None:
    votes = votes_table(
        *(vote("p1", judge, "ab", p) for judge, p in (("j", 0.51), ("k", 0.51), ("l", 0.01))),
        *(vote("p2", judge, "ab", p) for judge, p in (("j", 0.9), ("k", 0.2))),
        *(vote("p3", judge, "ab", p) for judge, p in (("j", 0.5), ("k", 0.2))),
        vote("p4", "j", "ab", 0.5),
        vote("p5", "j", "ab", None),
    )
    assert predicted("majority", votes) == {"p1": 1.0, "p2": 0.5, "p3": 0.0, "p4": 0.5}


def test_the_mean_equals_a_slow_loop() -> None:
    chance = random.Random(2)
    rows = [
        vote(f"p{i}", judge, order, chance.choice([None, 0.5, chance.random()]))
        for i in range(60)
        for judge in "jkl"
        for order in ("ab", "ba")
    ]
    chance.shuffle(rows)
    by_judge: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if row["p_a"] is not None:
            by_judge[row["pair_id"]][row["judge"]].append(row["p_a"])
    slow = {
        pair: sum(sum(values) / len(values) for values in judges.values()) / len(judges)
        for pair, judges in by_judge.items()
    }
    found = soft_preferences(votes_table(*rows))
    assert found.keys() == slow.keys()
    for pair, p in slow.items():
        assert found[pair] == pytest.approx(p, abs=1e-12)


PAIRS = pairs_table("p1", "p2")


def test_votes_on_unknown_pairs_are_counted() -> None:
    votes, excluded = checked_votes(votes_table(vote("p1", "j", "ab", 0.9), vote("p9", "j", "ab", 0.9)), PAIRS)
    assert (votes.num_rows, excluded) == (1, {"unknown_pair": 1})


def test_hard_verdicts_from_elsewhere_get_their_probability() -> None:
    rows = [
        vote("p1", "j", "ab", 0.9),
        vote("p1", "j", "ba", 0.1),
        vote("p2", "j", "ab", 0.5),
        vote("p2", "j", "ba", None),
    ]
    bare = votes_table(*({**row, "p_a": None} for row in rows))
    votes, _ = checked_votes(bare, PAIRS)
    assert votes["p_a"].to_pylist() == [1.0, 0.0, 0.5, None]


def test_an_invalid_vote_carries_no_probability() -> None:
    votes, _ = checked_votes(votes_table(vote("p1", "j", "ab", 0.9, "parse_failure")), PAIRS)
    assert votes["p_a"].to_pylist() == [None]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([vote("p1", "j", "ab", 0.9), vote("p1", "j", "ab", 0.8, vote_id="other")], "2 votes on pair p1 in order ab"),
        ([vote("p1", "j", "ab", 1.5)], "p_a = 1.5"),
        ([vote("p1", "j", "ab", -0.1)], "p_a = -0.1"),
        ([vote("p1", "j", "ab", math.nan, "scored")], "p_a = nan"),
        ([vote("p1", "j", "ab", None, "scored")], "neither p_a nor winner"),
        ([vote("p1", "j", "ab", 0.9, "guessed")], "'guessed'"),
        ([vote("p1", "j", "first", 0.9)], "'first'"),
        ([vote("p1", "j", "ab", 0.9, winner="response 1")], "'response 1'"),
        ([vote("p1", "j", "ab", 0.9, winner="b")], "p_a = 0.9 and the winner b, which contradict each other"),
        ([vote("p1", "j", "ab", 0.1, winner="a")], "p_a = 0.1 and the winner a, which contradict each other"),
        ([vote("p1", "j", "ab", None, "tie", winner="a")], "tie with p_a = None and the winner a"),
    ],
)
def test_corrupt_votes_are_named(rows: list[dict[str, object]], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        checked_votes(votes_table(*rows), PAIRS)
    assert said in str(caught.value)
