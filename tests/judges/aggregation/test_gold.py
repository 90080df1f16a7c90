"""Known answers: from gold, from people, and both together."""

from __future__ import annotations

import pyarrow as pa
import pytest

from judges.aggregation.gold import aligned, anchors, known_answers
from store.errors import UsageError

from ..votes_builder import vote, votes_table

GOLD = pa.table({"pair_id": ["g2", "g1", "g3"], "winner": ["b", "a", "tie"]})
ROUND = votes_table(vote("p1", "j", "ab", 0.9), vote("p2", "j", "ab", 0.4))
CALIBRATION = votes_table(vote("g1", "j", "ab", 0.9))


def test_winners_become_probabilities() -> None:
    assert known_answers(GOLD).to_pydict() == {"pair_id": ["g1", "g2", "g3"], "p_a": [1.0, 0.0, 0.5]}


def test_answers_find_their_rows() -> None:
    rows, known = aligned(pa.array(["a", "g2", "g3", "z"]), known_answers(GOLD))
    assert (rows.tolist(), known.tolist()) == ([1, 2], [0.0, 0.5])


def test_people_and_gold_anchor_together_and_gold_stands() -> None:
    votes, answers = anchors(ROUND, {"p2": 0.25, "g1": 0.0}, GOLD, CALIBRATION)
    assert votes["pair_id"].to_pylist() == ["g1", "p1", "p2"]
    assert answers.to_pydict() == {"pair_id": ["g1", "g2", "g3", "p2"], "p_a": [1.0, 0.0, 0.5, 0.25]}


def test_people_alone_anchor() -> None:
    votes, answers = anchors(ROUND, {"p2": 1.0})
    assert votes is ROUND
    assert answers.to_pydict() == {"pair_id": ["p2"], "p_a": [1.0]}
    assert anchors(ROUND, {})[1].num_rows == 0


@pytest.mark.parametrize("p_a", [-0.1, 1.1, float("nan"), None])
def test_no_probability_is_named(p_a: float | None) -> None:
    with pytest.raises(UsageError, match="p1"):
        known_answers(pa.table({"pair_id": ["p1"], "p_a": pa.array([p_a], pa.float64())}))
