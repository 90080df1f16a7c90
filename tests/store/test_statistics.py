"""Intervals and corrections against scipy, statsmodels and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binomtest

from store.statistics import holm, newcombe, vote_weight, weighted_share, wilson

EXTRA = "needs the extra labels: pip install 'rlaif[labels]'"


def test_wilson_is_scipy_s() -> None:
    for k, n in [(0, 5), (5, 5), (37, 60), (1, 1000)]:
        interval = binomtest(k, n).proportion_ci(method="wilson")
        assert wilson(k, n) == pytest.approx((interval.low, interval.high), abs=1e-12)


def test_newcombe_is_statsmodels() -> None:
    proportion = pytest.importorskip("statsmodels.stats.proportion", reason=EXTRA)
    for k, m, j, n in [(5, 8, 2, 9), (0, 4, 4, 4), (30, 40, 31, 50)]:
        expected = proportion.confint_proportions_2indep(k, m, j, n, method="newcomb")
        assert newcombe(k, m, j, n) == pytest.approx((k / m - j / n, *expected), abs=1e-12)


def test_holm_is_statsmodels() -> None:
    multitest = pytest.importorskip("statsmodels.stats.multitest", reason=EXTRA)
    rng = np.random.default_rng(0)
    for _ in range(50):
        p = (rng.random(12) ** 4).tolist()
        assert holm(p, 0.05) == multitest.multipletests(p, 0.05, method="holm")[0].tolist()
    assert holm([], 0.05) == []


def test_the_weighted_majority_is_right_most_often() -> None:
    """All outcomes of three people of known reliability: no other rule on their votes does better."""
    q = [0.9, 0.65, 0.6]
    best = ours = 0.0
    for votes in np.ndindex(2, 2, 2):
        if_a = math.prod(p if v else 1 - p for v, p in zip(votes, q, strict=True))
        if_b = math.prod(1 - p if v else p for v, p in zip(votes, q, strict=True))
        best += max(if_a, if_b) / 2
        ours += (if_a if weighted_share([float(v) for v in votes], q) > 0.5 else if_b) / 2
    assert ours == pytest.approx(best)


def test_shares() -> None:
    assert weighted_share([1.0], [0.55]) == 1.0, "a verdict overrides, whoever gave it"
    assert weighted_share([1.0, 0.0], [0.8, 0.8]) == 0.5
    assert weighted_share([1.0, 1.0, 0.0], [0.8, 0.8, 0.8]) == pytest.approx(2 / 3)
    assert weighted_share([1.0, 0.0, 0.0], [0.95, 0.6, 0.6]) > 0.5, "one expert against two who guess"
    assert weighted_share([0.5, 1.0], [0.9, 0.7]) > 0.5
    assert vote_weight(0.1) == vote_weight(0.5) > 0
    with pytest.raises(ValueError, match="at least one"):
        weighted_share([], [])
