"""Log-odds by slot: what a preference for the first slot does to one vote, to two, and to random orders."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit, logit

from judges.aggregation.slots import BIAS_PRIOR_VOTES, CLIP, over_slots, slot_preference, slot_votes

from ..votes_builder import vote, votes_table


def both(odds: np.ndarray, first: float, orders: tuple[str, ...] = ("ab", "ba")) -> list[dict[str, object]]:
    sign = {"ab": 1.0, "ba": -1.0}
    return [
        vote(f"p{i:03d}", "j", order, float(expit(value + sign[order] * first)), "scored")
        for i, value in enumerate(odds)
        for order in orders
    ]


def test_rows_columns_and_what_is_missing() -> None:
    found = slot_votes(
        votes_table(
            vote("p2", "k", "ba", 0.9),
            vote("p1", "j", "ab", 0.5),
            vote("p2", "j", "ab", None),
            vote("p3", "j", "ab", None, "abstain"),
            vote("p1", "k", "ab", 1.0),
        )
    )
    assert found.pairs.to_pylist() == ["p1", "p2"]
    assert found.judges == ["fingerprint-of-j", "fingerprint-of-k"]
    nan = np.nan
    expected = [[[0, logit(1 - CLIP)], [nan, nan]], [[nan, nan], [nan, logit(0.9)]]]
    assert found.log_odds == pytest.approx(np.array(expected), nan_ok=True)


def test_a_preference_for_a_slot_cancels_over_both_orders() -> None:
    odds = np.random.default_rng(0).normal(size=40)
    found = slot_votes(votes_table(*both(odds, 1.5)))
    assert over_slots(found, slot_preference(found))[:, 0] == pytest.approx(odds)
    assert slot_preference(found)[0] == pytest.approx(1.5 * 40 / (40 + BIAS_PRIOR_VOTES))


def test_it_is_taken_from_single_votes_where_orders_are_random() -> None:
    rng = np.random.default_rng(1)
    odds = rng.normal(size=2000) + 0.7  # a wins more often than b: no reason to believe in a slot preference
    rows = [row for i, row in enumerate(both(odds, 1.0)) if (i % 2) == (rng.random() < 0.5)]
    found = slot_votes(votes_table(*rows))
    assert slot_preference(found)[0] == pytest.approx(1.0, abs=0.15)
    seen = np.array([int(pair[1:]) for pair in found.pairs.to_pylist()])
    assert np.abs(over_slots(found, slot_preference(found))[:, 0] - odds[seen]).mean() < 0.2


def test_one_order_alone_tells_nothing_of_slots() -> None:
    found = slot_votes(votes_table(*both(np.full(30, 1.0), 0.0, ("ab",))))
    assert slot_preference(found).tolist() == [0.0]
    assert over_slots(found, slot_preference(found))[:, 0] == pytest.approx(np.ones(30))
