"""The estimator that combines judges and people: by hand, against ppi-python, and its coverage by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest

from audit.estimates.means import corrected_mean, hajek_mean
from audit.inclusion import inclusion
from store.statistics import wilson


def population(n: int, steep: float, accuracy: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A judge that is right with probability c, and confidence f whose log-odds are c's times `steep`."""
    c = rng.beta(8 * accuracy, 8 * (1 - accuracy), n).clip(1e-6, 1 - 1e-6)
    f = 1 / (1 + ((1 - c) / c) ** steep)
    return (rng.random(n) < c).astype(float), f


def test_by_hand() -> None:
    """The formula of Zrnic and Candes, term by term, with the constant that makes the weighted residuals vanish."""
    y, chance, f = np.array([1.0, 0.0, 1.0]), np.array([0.5, 0.25, 1.0]), np.array([0.9, 0.6, 0.8])
    predictions = np.array([0.9, 0.6, 0.8, 0.7, 0.5, 0.4, 0.95])
    tuning = 0.5
    c = sum((a - tuning * b) / p for a, b, p in zip(y, f, chance, strict=True)) / sum(1 / p for p in chance)
    audited = {0: (1.0, 0.5), 1: (0.0, 0.25), 2: (1.0, 1.0)}
    total = 0.0
    for i, prediction in enumerate(predictions):
        total += c + tuning * prediction
        if i in audited:
            value, p = audited[i]
            total += (value - c - tuning * prediction) / p
    found = corrected_mean(y, chance, f, predictions, tuning=tuning)
    assert found is not None
    assert found.value == pytest.approx(total / 7, abs=1e-12)
    assert (found.tuning, found.n) == (0.5, 3)


def test_without_the_constant_where_the_weights_sum_to_n() -> None:
    """At pi = n / N the constant cancels: the published formula to the letter."""
    rng = np.random.default_rng(0)
    y, f = population(200, 1.0, 0.7, rng)
    drawn = rng.permutation(200)[:40]
    found = corrected_mean(y[drawn], np.full(40, 0.2), f[drawn], f, tuning=0.6)
    xi = np.isin(np.arange(200), drawn)
    assert found is not None
    assert found.value == pytest.approx(np.mean(0.6 * f + xi / 0.2 * (y - 0.6 * f)), abs=1e-12)


def test_tuning_minimises_the_variance() -> None:
    rng = np.random.default_rng(1)
    y, f = population(3000, 2.0, 0.7, rng)
    chance = inclusion(np.minimum(f, 1 - f), 600, 0.3).total
    drawn = rng.random(3000) < chance

    def error(tuning: float | None) -> float:
        found = corrected_mean(y[drawn], chance[drawn], f[drawn], f, tuning=tuning)
        assert found is not None
        return found.std_error

    best = corrected_mean(y[drawn], chance[drawn], f[drawn], f)
    assert best is not None
    assert 0.05 < best.tuning < 0.95
    grid = {tuning: error(tuning) for tuning in np.linspace(0, 1, 41)}
    assert abs(min(grid, key=grid.__getitem__) - best.tuning) < 0.05
    assert best.std_error < 0.97 * error(0.0)


def test_a_prediction_that_misleads_is_not_believed() -> None:
    rng = np.random.default_rng(2)
    y, f = population(1000, 1.0, 0.7, rng)
    found = corrected_mean(y[:200], np.full(200, 0.2), 1 - f[:200], 1 - f)
    alone = hajek_mean(y[:200], np.full(200, 0.2), 1000)
    assert found is not None
    assert alone is not None
    assert found.tuning == 0
    assert found.value == pytest.approx(alone.value)


def test_a_census_knows() -> None:
    y = np.array([1.0, 0.0, 1.0, 1.0])
    found = corrected_mean(y, np.ones(4), np.full(4, 0.9), np.full(4, 0.9))
    assert found is not None
    assert (found.value, found.std_error, found.low, found.high) == (0.75, 0.0, 0.75, 0.75)
    sample = hajek_mean(y, np.ones(4), 4, target="all")
    assert sample is not None
    assert sample.low < 0.5 < 0.9 < sample.high, "these four tell little about all pairs of the kind"


def test_no_error_seen_proves_nothing() -> None:
    """All right: Wilson's lower bound for as many, with Student's t, and the finite population's size."""
    found = hajek_mean(np.ones(30), np.full(30, 0.03), 1000)
    assert found is not None
    assert (found.value, found.high, found.std_error) == (1.0, 1.0, 0.0)
    n = 30 / 0.97
    low, _ = wilson(n, n, 2.045229642)  # the 0.975 quantile at 29 degrees of freedom, from tables
    assert found.low == pytest.approx(low, abs=1e-6)


def test_nothing_counts() -> None:
    assert hajek_mean(np.zeros(0), np.zeros(0), 10) is None
    assert hajek_mean(np.ones(2), np.full(2, 0.5), 10, counts=np.array([False, False])) is None


def test_pairs_that_do_not_count_are_a_domain() -> None:
    """The mean over pairs that count, whose share is itself estimated: a ratio, checked by brute force."""
    rng = np.random.default_rng(3)
    y, f = population(400, 1.0, 0.8, rng)
    counts = rng.random(400) < 0.7
    truth = y[counts].mean()
    chance = inclusion(np.minimum(f, 1 - f), 120, 0.3).total
    values, errors = [], []
    for _ in range(400):
        drawn = rng.random(400) < chance
        found = corrected_mean(y[drawn] * counts[drawn], chance[drawn], f[drawn], f, counts[drawn])
        assert found is not None
        values.append(found.value)
        errors.append(found.std_error)
    assert np.mean(values) == pytest.approx(truth, abs=4 * np.std(values) / 20 + 0.003)
    assert math.sqrt(np.mean(np.square(errors))) == pytest.approx(np.std(values), rel=0.15)


@pytest.mark.parametrize(("steep", "accuracy"), [(1.0, 0.6), (1.0, 0.85), (2.5, 0.75)])
@pytest.mark.parametrize("uniform", [1.0, 0.3])
def test_nominal_95_percent_intervals_cover(steep: float, accuracy: float, uniform: float) -> None:
    """Both targets, by 400 simulated audits of new pairs each; benchmarks/estimates.py makes more, of more kinds."""
    covered = {"judged": 0, "all": 0}
    widths: dict[str, list[float]] = {"corrected": [], "hajek": []}
    for seed in range(400):
        rng = np.random.default_rng(seed)
        y, f = population(600, steep, accuracy, rng)
        chance = inclusion(np.minimum(f, 1 - f), 100, uniform).total
        drawn = rng.random(600) < chance
        for target, truth in (("judged", y.mean()), ("all", accuracy)):
            found = corrected_mean(y[drawn], chance[drawn], f[drawn], f, target=target)
            assert found is not None
            covered[target] += found.low <= truth <= found.high
        alone = hajek_mean(y[drawn], chance[drawn], 600)
        corrected = corrected_mean(y[drawn], chance[drawn], f[drawn], f)
        assert alone is not None
        assert corrected is not None
        widths["hajek"].append(alone.high - alone.low)
        widths["corrected"].append(corrected.high - corrected.low)
    # 95 % with three standard errors of 400 draws, 3.3 points, and a point for the small-sample corrections.
    assert 0.915 <= covered["judged"] / 400 <= 0.985
    assert 0.915 <= covered["all"] / 400 <= 0.985
    assert np.mean(widths["corrected"]) < np.mean(widths["hajek"]), "the judges' opinions help"


# Of ppi-python 0.2.3 on `labelled_and_not`: ppi_mean_pointestimate and ppi_mean_ci with alpha=0.05, and the former with
# lam=0.425, which is our lambda of 1/2: its unlabelled pairs are the 850 others, ours all 1,000.
PPI_VALUE, PPI_LOW, PPI_HIGH, PPI_FIXED = 0.78787093, 0.7243685, 0.85137336, 0.7874505


def labelled_and_not() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """y, f and who is labelled, without a random generator, so that recorded figures stay right."""
    i = np.arange(1000)
    f = 0.5 + 0.5 * ((i * 37) % 101) / 101
    y = (((i * 61) % 97) / 97 < f).astype(float)
    return y, f, (i * 7919) % 1000 < 150


def test_agrees_with_ppi_python_at_equal_chances() -> None:
    y, f, labelled = labelled_and_not()
    found = corrected_mean(y[labelled], np.full(150, 0.15), f[labelled], f, target="all")
    fixed = corrected_mean(y[labelled], np.full(150, 0.15), f[labelled], f, target="all", tuning=0.5)
    assert found is not None
    assert fixed is not None
    assert fixed.value == pytest.approx(PPI_FIXED, abs=1e-7)
    # It takes the variance of f over all pairs for lambda, we over the labelled ones: a difference of second order.
    assert found.value == pytest.approx(PPI_VALUE, abs=0.01 * found.std_error)
    assert found.std_error == pytest.approx((PPI_HIGH - PPI_LOW) / 2 / 1.959964, rel=0.02)


def test_agrees_with_ppi_python_itself() -> None:
    reason = "needs ppi-python (pip install --no-deps ppi-python numba, beside the tests' environment)"
    ppi = pytest.importorskip("ppi_py", reason=reason)
    for seed in range(20):
        rng = np.random.default_rng(seed)
        y, f = population(1000, 2.0, 0.8, rng)
        labelled = np.isin(np.arange(1000), rng.permutation(1000)[:150])
        found = corrected_mean(y[labelled], np.full(150, 0.15), f[labelled], f, target="all")
        assert found is not None
        parts = (y[labelled], f[labelled], f[~labelled])
        same = ppi.ppi_mean_pointestimate(*parts, lam=found.tuning * 0.85)
        assert found.value == pytest.approx(float(np.squeeze(same)), abs=1e-12)
        low, high = (float(np.squeeze(end)) for end in ppi.ppi_mean_ci(*parts, alpha=0.05))
        assert found.value == pytest.approx((low + high) / 2, abs=0.5 * found.std_error)
        assert found.std_error == pytest.approx((high - low) / 2 / 1.959964, rel=0.05)
