"""Statistics of the evaluation: hand cases, coverage by simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from rlhf.evaluation import by, clustered_mean, length_controlled_win_rate


def test_mean_and_interval_are_over_prompts() -> None:
    values, prompts = [1.0, 1.0, 1.0, 0.0, 0.5], ["a", "a", "a", "b", "c"]
    found = clustered_mean(values, prompts, 0.9)
    expected = stats.ttest_1samp([1.0, 0.0, 0.5], 0).confidence_interval(0.9)
    assert found["mean"] == pytest.approx(0.5)
    assert (found["low"], found["high"]) == pytest.approx((expected.low, expected.high))
    assert found["n"] == 3


def test_order_of_rows_and_copies_of_samples_change_nothing() -> None:
    values, prompts = [0.2, 0.9, 0.4, 0.7], ["a", "b", "c", "d"]
    once = clustered_mean(values, prompts)
    assert clustered_mean(values[::-1] * 5, prompts[::-1] * 5) == pytest.approx(once)


def test_bounds() -> None:
    all_won = clustered_mean([1.0] * 29, [str(i) for i in range(29)], 0.95, (0, 1))
    assert all_won["high"] == 1
    assert all_won["low"] == pytest.approx(stats.binomtest(29, 29).proportion_ci(0.95, "exact").low)
    none_won = clustered_mean([0.0] * 29, [str(i) for i in range(29)], 0.95, (0, 1))
    assert none_won["high"] == pytest.approx(stats.binomtest(0, 29).proportion_ci(0.95, "exact").high)
    one = clustered_mean([0.9], ["a"], 0.95, (0, 1))
    assert 0 <= one["low"] < 0.05
    assert one["high"] > 0.9
    assert clustered_mean([3.0], ["a"])["low"] is None
    assert clustered_mean([3.0, 3.0], ["a", "b"])["low"] is None
    assert clustered_mean([], []) == {"mean": None, "low": None, "high": None, "n": 0}


@pytest.mark.parametrize("prompts", [12, 60])
def test_coverage_with_correlated_samples(prompts: int) -> None:
    """Each prompt has a win rate of its own (mean 0.7); four samples share it."""
    generator = np.random.default_rng(0)
    hits = 0
    for _ in range(600):
        rates = generator.beta(2.1, 0.9, prompts)
        wins = generator.random((prompts, 4)) < rates[:, None]
        found = clustered_mean(
            wins.astype(float).ravel().tolist(), np.repeat(np.arange(prompts), 4).astype(str).tolist(), 0.95, (0, 1)
        )
        hits += found["low"] <= 0.7 <= found["high"]
    assert 0.91 <= hits / 600 <= 0.985


def test_by_label() -> None:
    found = by(["x", "y", "x"], [1.0, 0.0, 0.5], ["1", "2", "3"])
    assert sorted(found) == ["x", "y"]
    assert found["x"] == clustered_mean([1.0, 0.5], ["1", "3"])


def test_length_control_removes_a_win_rate_that_is_only_length() -> None:
    generator = np.random.default_rng(0)
    d = generator.normal(5, 5, 4000)
    wins = (generator.random(4000) < 1 / (1 + np.exp(-2 * np.tanh(d / d.std())))).astype(float)
    assert wins.mean() > 0.65
    assert length_controlled_win_rate(wins.tolist(), d.tolist()) == pytest.approx(0.5, abs=0.04)
    assert length_controlled_win_rate([1.0] * 20, [0.0] * 20) > 0.95
    assert length_controlled_win_rate([1.0] * 9, [0.0] * 9) is None
