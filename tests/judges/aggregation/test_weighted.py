"""Weights by each judge's own accuracy."""

from __future__ import annotations

import math

import pyarrow as pa
import pytest

from judges.aggregation.weighted import SkillWeighted

from ..votes_builder import vote, votes_table

VOTES = votes_table(
    *(vote(f"p{i}", "good", order, 0.9) for i in range(4) for order in ("ab", "ba")),
    *(vote(f"p{i}", "bad", order, 0.2) for i in range(4) for order in ("ab", "ba")),
)
GOLD = pa.table({"pair_id": ["p0", "p1", "p2"], "winner": ["a", "a", "tie"]})


def test_weights_are_the_smoothed_log_odds_of_being_right() -> None:
    method = SkillWeighted().fit(VOTES, GOLD)
    right = {"good": 0.9 + 0.9 + 0.5, "bad": 0.2 + 0.2 + 0.5}
    for judge, count in right.items():
        q = (count + 2) / (3 + 3)
        assert method.weights[f"fingerprint-of-{judge}"] == pytest.approx(math.log(q / (1 - q)))
    assert method.gold_pairs == 3
    z = sum(method.weights[f"fingerprint-of-{judge}"] * lean for judge, lean in (("good", 0.8), ("bad", -0.6)))
    assert method.predict(VOTES)["p_a"].to_pylist() == pytest.approx([1 / (1 + math.exp(-z))] * 4)


def test_without_gold_all_judges_weigh_the_same() -> None:
    assert SkillWeighted().fit(VOTES).predict(VOTES)["p_a"][0].as_py() == pytest.approx(
        1 / (1 + math.exp(-math.log(2) * (0.8 - 0.6)))
    )


def test_opposite_orders_are_an_exact_tie() -> None:
    votes = votes_table(vote("p1", "j", "ab", 0.9), vote("p1", "j", "ba", 0.1))
    assert SkillWeighted().predict(votes)["p_a"].to_pylist() == [0.5]
