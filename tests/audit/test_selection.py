from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats

from audit.draws import side, unit
from audit.inclusion import inclusion
from audit.opinions import opinions
from audit.selection import NONE, TARGETED, UNIFORM, draw, nothing_selected, select
from store.tables import SELECTION, conform


def errors(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).beta(0.5, 2, n) / 2


def test_formula_without_caps() -> None:
    """CHECKS, Statistics 1."""
    u, n, eps = errors(1000), 50, 0.3
    expected = n * (eps / len(u) + (1 - eps) * np.sqrt(u) / np.sqrt(u).sum())
    assert expected.max() < 1
    np.testing.assert_allclose(inclusion(u, n, eps).total, expected)


@pytest.mark.parametrize("n", [0, 1, 10, 50, 90, 99, 100])
@pytest.mark.parametrize("eps", [0.3, 0.7, 1.0])
def test_sum_is_the_budget_and_parts_make_the_whole(n: int, eps: float) -> None:
    u = errors(100)
    u[:30] = 0
    chance = inclusion(u, n, eps)
    assert chance.total.sum() == pytest.approx(n)
    assert ((chance.total >= 0) & (chance.total <= 1)).all()
    assert ((chance.targeted >= 0) & (chance.targeted <= 1)).all()
    np.testing.assert_allclose(1 - (1 - chance.uniform) * (1 - chance.targeted), chance.total, atol=1e-12)
    assert chance.uniform >= eps * n / 100 - 1e-12


def test_caps_redistribute_in_proportion() -> None:
    u = np.array([0.5, 1e-6, 1e-6, 4e-6])
    chance = inclusion(u, 2, 0.3)
    assert chance.total[0] == 1
    shares = 0.3 / 4 + 0.7 * np.sqrt(u) / np.sqrt(u).sum()
    np.testing.assert_allclose(chance.total[1:], shares[1:] / shares[1:].sum())


def test_edges() -> None:
    assert inclusion(np.zeros(0), 5, 0.3).total.shape == (0,)
    assert inclusion(np.array([0.1, 0.4]), 7, 0.3).uniform == 1, "a census is a uniform sample"
    np.testing.assert_allclose(inclusion(np.zeros(4), 2, 0.3).total, 0.5)
    assert inclusion(np.full(10, 0.25), 4, 0.3).uniform == pytest.approx(0.4), "equal doubt leaves nothing to target"


def test_draws_have_their_probabilities() -> None:
    u = errors(60)
    chance = inclusion(u, 20, 0.3)
    ids = [f"p{i}" for i in range(60)]
    repeats = 2000
    strata = np.array([draw(ids, chance, seed) for seed in range(repeats)])
    frequency = (strata != NONE).mean(axis=0)
    z = (frequency - chance.total) / np.sqrt(chance.total * (1 - chance.total) / repeats)
    assert np.abs(z).max() < 4.5
    assert stats.chi2.sf((z**2).sum(), 60) > 1e-4
    uniform = (strata == UNIFORM).mean(axis=0)
    assert np.abs(uniform - chance.uniform).max() < 4.5 * np.sqrt(chance.uniform / repeats)
    # Independent between pairs: the number drawn has the variance of a sum of independent draws.
    sizes = (strata != NONE).sum(axis=1)
    assert sizes.mean() == pytest.approx(20, abs=0.5)
    assert sizes.var() == pytest.approx((chance.total * (1 - chance.total)).sum(), rel=0.15)


def test_unit_is_uniform_and_its_purposes_are_independent() -> None:
    x = np.array([unit(1, "x", str(i)) for i in range(5000)])
    y = np.array([unit(1, "y", str(i)) for i in range(5000)])
    assert stats.kstest(x, "uniform").pvalue > 1e-3
    assert abs(np.corrcoef(x, y)[0, 1]) < 0.06
    assert x.min() >= 0
    assert x.max() < 1
    assert unit(1, "x", "ab", "c") != unit(1, "x", "a", "bc")
    assert abs(np.mean([side(1, str(i)) == "a" for i in range(5000)]) - 0.5) < 0.03


@pytest.fixture
def views(make_pairs, make_votes):
    rng = np.random.default_rng(3)
    votes = [
        (i, judge, order, float(rng.beta(0.5, 0.5))) for i in range(200) for judge in "jk" for order in ("ab", "ba")
    ]
    return make_pairs(200), make_votes(votes)


def test_every_pair_has_a_row_and_a_reason(views) -> None:
    table = select(opinions(*views), 40, 0.3, seed=5)
    conform(table, SELECTION, "test")
    assert table["pair_id"].to_pylist() == views[0]["pair_id"].to_pylist()
    assert pa.compute.sum(table["inclusion_probability"]).as_py() == pytest.approx(40)
    rows = table.to_pylist()
    assert {row["stratum"] for row in rows} == {UNIFORM, TARGETED, NONE}
    for row in rows:
        assert row["drawn"] == (row["stratum"] != NONE)
        assert "panel 0." in row["reason"]
        assert row["reason"].startswith(
            {UNIFORM: "drawn uniformly", TARGETED: "drawn for its doubt", NONE: "not drawn"}[row["stratum"]]
        )


def test_selection_does_not_depend_on_the_order_of_rows(views) -> None:
    pairs, votes = views
    rng = np.random.default_rng(0)
    shuffled = opinions(pairs.take(rng.permutation(pairs.num_rows)), votes.take(rng.permutation(votes.num_rows)))
    one = {row["pair_id"]: row["stratum"] for row in select(opinions(pairs, votes), 40, 0.3, 5).to_pylist()}
    two = {row["pair_id"]: row["stratum"] for row in select(shuffled, 40, 0.3, 5).to_pylist()}
    assert one == two
    other = {row["pair_id"]: row["stratum"] for row in select(shuffled, 40, 0.3, 6).to_pylist()}
    assert one != other


def test_targeting_finds_doubt(views) -> None:
    rows = select(opinions(*views), 60, 0.3, seed=5).to_pylist()

    def doubt(stratum: str) -> float:
        return float(np.mean([row["judge_error"] for row in rows if row["stratum"] == stratum]))

    assert doubt(TARGETED) > doubt(NONE)


def test_nothing_selected_is_a_selection_table() -> None:
    assert conform(nothing_selected(), SELECTION, "test").num_rows == 0


def test_budget_zero_draws_nothing_and_says_so(views) -> None:
    table = select(opinions(*views), 0, 0.3, seed=5)
    assert not any(table["drawn"].to_pylist())
    assert set(table["inclusion_probability"].to_pylist()) == {0.0}
