"""Where errors are expected: the penalised logistic curve, against scikit-learn's."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import logit

from audit.estimates.expected import expected


def test_against_scikit_learn() -> None:
    linear_model = pytest.importorskip("sklearn.linear_model", reason="needs scikit-learn")
    rng = np.random.default_rng(4)
    f = rng.uniform(0.05, 0.95, 60)
    y = rng.choice([0.0, 0.5, 1.0], 60, p=[0.2, 0.1, 0.7])
    counts = (rng.random(60) < 0.8).astype(float)
    x = logit(f) - np.average(logit(f), weights=counts)
    # C is the variance of the slope; the intercept is free there too. An answer of 1/2 is half a 1 and half a 0.
    curve = linear_model.LogisticRegression(C=2.0, tol=1e-10, max_iter=1000)
    weights = np.concatenate([counts * y, counts * (1 - y)])
    curve.fit(np.tile(x, 2)[:, None], np.repeat([1, 0], 60), sample_weight=weights)
    assert expected(y, f, counts, 0.5) == pytest.approx(curve.predict_proba(x[:, None])[:, 1], abs=1e-5)


def test_errors_are_expected_where_they_were_found() -> None:
    f = np.repeat([0.55, 0.95], 40)
    y = np.concatenate([np.tile([1.0, 0.0], 20), np.ones(40)])
    doubtful, safe = expected(y, f, np.ones(80), 0.75)[[0, -1]]
    assert 0.4 < doubtful < 0.6 < 0.95 < safe < 1
    # Where the judge's doubt is no sign of errors, neither is the curve.
    anywhere = expected(np.tile([1.0, 1.0, 1.0, 0.0], 20), f, np.ones(80), 0.75)
    assert np.ptp(anywhere) < 0.02
    assert anywhere.mean() == pytest.approx(0.75, abs=0.01)


def test_where_nothing_differs_there_is_nothing_to_learn() -> None:
    assert np.array_equal(expected(np.array([1.0, 0.0]), np.zeros(2), np.ones(2), 0.9), [0.9, 0.9])
    assert np.array_equal(expected(np.ones(3), np.array([0.5, 0.6, 0.9]), np.ones(3), 1.0), np.ones(3))
    some = expected(np.array([1.0, 1.0, 0.0]), np.array([0.5, 0.6, 0.9]), np.array([1.0, 1.0, 0.0]), 1.0)
    assert np.array_equal(some, np.ones(3)), "the only other answer does not count"


def test_what_does_not_count_is_not_learnt_from() -> None:
    f, y = np.array([0.2, 0.4, 0.7, 0.9, 0.6]), np.array([0.0, 1.0, 1.0, 1.0, 0.0])
    counts = np.array([1.0, 1.0, 1.0, 1.0, 0.0])
    assert expected(np.append(y[:4], 1.0), f, counts, 0.5) == pytest.approx(expected(y, f, counts, 0.5))
