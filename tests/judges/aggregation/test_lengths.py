"""Lengths of responses in the stack: what gold teaches about them, and that nothing else does."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from scipy.integrate import quad
from scipy.special import expit

from judges.aggregation.gold import anchors
from judges.aggregation.lengths import LENGTH, with_lengths
from judges.aggregation.stacked import StackedJudges, posterior
from store.schemas import PAIRS

from .test_stacked import gold_of, labels, votes_of


def measured(votes: pa.Table, lengths: np.ndarray) -> pa.Table:
    """`votes` with the length lengths[i] of pair i."""
    rows = [int(pair) for pair in votes["pair_id"].to_pylist()]
    return votes.append_column(LENGTH, pa.array(lengths[rows], from_pandas=True))


def misled(pairs: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Log-odds of four judges that like long responses more than good ones; truth (+1, -1); lengths."""
    rng = np.random.default_rng(seed)
    truth, length = rng.choice([-1.0, 1.0], pairs), rng.normal(size=pairs)
    return (truth + 1.5 * length)[:, None] + rng.normal(0, 0.5, (pairs, 4)), truth, length


def right(p: np.ndarray, truth: np.ndarray) -> float:
    return float(np.mean((p > 0.5) == (truth > 0)))


def test_log_ratios_of_characters_by_rollout_and_null_for_strangers() -> None:
    names = [field.name for field in PAIRS.schema if not field.nullable]
    texts = [("00000", "eleven char", "ab"), ("00001", "ö\u4e2d", "xyz")]
    rows = [{**dict.fromkeys(names, "x"), "pair_id": i, "response_a": a, "response_b": b} for i, a, b in texts]
    pairs = pa.Table.from_pylist(rows, schema=PAIRS.schema)
    votes = votes_of(np.zeros((3, 1)))
    found = dict(zip(votes["pair_id"].to_pylist(), with_lengths(votes, pairs)[LENGTH].to_pylist(), strict=True))
    assert found == {"00000": pytest.approx(np.log(12 / 3)), "00001": pytest.approx(np.log(3 / 4)), "00002": None}


def test_gold_teaches_that_judges_are_misled_by_length() -> None:
    odds, truth, length = misled(400, 3)
    gold = gold_of(["a" if value > 0 else "b" for value in truth[:40]])
    votes = votes_of(odds)
    without = right(labels(StackedJudges().fit(votes, gold), votes)[40:], truth[40:])
    known = measured(votes, length)
    method = StackedJudges().fit(known, gold)
    assert right(labels(method, known)[40:], truth[40:]) > without + 0.1
    assert method.length_weight is not None
    assert method.length_weight < -0.5


def test_lengths_that_say_nothing_cost_little() -> None:
    rng = np.random.default_rng(8)
    truth = rng.choice([-1.0, 1.0], 400)
    odds = truth[:, None] + rng.normal(0, 1.0, (400, 3))
    gold = gold_of(["a" if value > 0 else "b" for value in truth[:20]])
    votes = votes_of(odds)
    known = measured(votes, rng.normal(size=400))
    first, second = (labels(StackedJudges().fit(table, gold), table) for table in (votes, known))
    assert right(second[20:], truth[20:]) > right(first[20:], truth[20:]) - 0.02


def test_without_gold_lengths_change_no_label() -> None:
    odds, _, length = misled(60, 4)
    votes = votes_of(odds)
    method = StackedJudges().fit(measured(votes, length))
    assert np.array_equal(labels(method, measured(votes, length)), labels(StackedJudges().fit(votes), votes))
    assert method.weights == {}
    assert not method.length_weight


def test_lengths_nobody_knows_are_no_lengths() -> None:
    odds, truth, _ = misled(60, 5)
    votes, gold = votes_of(odds), gold_of(["a" if value > 0 else "b" for value in truth[:30]])
    blank = measured(votes, np.full(60, np.nan))
    method = StackedJudges().fit(blank, gold)
    assert np.array_equal(labels(method, blank), labels(StackedJudges().fit(votes, gold), votes))
    assert method.length_weight is None


def test_a_mirrored_pair_gets_the_mirrored_label_to_the_bit() -> None:
    odds, truth, length = misled(80, 6)
    one = StackedJudges().fit(measured(votes_of(odds), length), gold_of(["a" if v > 0 else "b" for v in truth]))
    mirrored = measured(votes_of(-odds), -length)
    other = StackedJudges().fit(mirrored, gold_of(["b" if v > 0 else "a" for v in truth]))
    first, second = labels(one, measured(votes_of(odds), length)), labels(other, mirrored)
    assert first == pytest.approx(1 - second, abs=1e-12)
    again = labels(one, mirrored)
    assert again == pytest.approx(1 - first, abs=1e-12)


def test_the_lengths_weight_is_the_maximum_of_a_posterior_on_a_grid() -> None:
    """No judge says anything, so that the weight of length has a posterior of one dimension."""
    rng = np.random.default_rng(1)
    t, y = rng.normal(size=30), rng.integers(0, 2, 30).astype(float)
    found = posterior(np.column_stack([np.zeros(30), t]), y, np.eye(1), 1.0, 2.0, others=1)

    def density(v: float) -> float:
        p = expit(v * t)
        return float(np.exp(np.sum(y * np.log(p) + (1 - y) * np.log(1 - p)) - v * v))

    grid = np.linspace(-3, 3, 6001)
    assert found.mean[1] == pytest.approx(grid[np.argmax([density(v) for v in grid])], abs=1e-3)
    total = quad(density, -6, 6)[0]
    spread = quad(lambda v: (v - found.mean[1]) ** 2 * density(v), -6, 6)[0] / total
    assert found.covariance[1, 1] == pytest.approx(spread, rel=0.1)
    assert found.mean[0] == pytest.approx(1.0), "a judge that says nothing keeps its prior"


def test_anchors_keep_lengths_only_where_both_sides_have_them() -> None:
    odds, truth, length = misled(20, 7)
    votes, gold = votes_of(odds), gold_of(["a" if value > 0 else "b" for value in truth])
    known = measured(votes, length)
    assert LENGTH in anchors(known, {}, gold, known)[0].column_names
    assert LENGTH not in anchors(known, {}, gold, votes)[0].column_names
    assert LENGTH not in anchors(votes, {}, gold, known)[0].column_names
