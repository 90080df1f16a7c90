"""Bradley-Terry against closed forms and a general optimiser."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest
from scipy.optimize import minimize

from judges.aggregation.bradley_terry import fit, rate_rollouts
from judges.aggregation.labels import LABELS
from judges.pairs import pairs_to_table
from store.errors import UsageError
from store.schemas import ROLLOUT_RATINGS
from store.tables import conform

from ..conftest import make_pair

FLAT = 1e5  # a prior so wide that it is none


def comparisons(*rows: tuple[str, str, str, float]) -> tuple[pa.Table, pa.Table]:
    """Rows of prompt, rollout a, rollout b, p_a."""
    pairs = [
        vars(make_pair(n)) | {"pair_id": f"p{n}", "prompt_id": prompt, "rollout_a": a, "rollout_b": b}
        for n, (prompt, a, b, _) in enumerate(rows)
    ]
    made = [
        {"pair_id": f"p{n}", "p_a": p, "source": "ai", "n_votes": 1, "votes_a": 0, "votes_b": 0}
        for n, (*_, p) in enumerate(rows)
    ]
    table = pairs_to_table([type(make_pair(0))(**pair) for pair in pairs])
    return table, pa.Table.from_pylist(made, schema=LABELS.schema)


@pytest.mark.parametrize("p", [0.5, 0.6, 0.9, 0.01])
def test_two_responses_differ_by_the_log_odds(p: float) -> None:
    rating, error = fit(np.array([0]), np.array([1]), np.array([p]), np.array([0, 0]), prior_sd=FLAT)
    assert rating[0] - rating[1] == pytest.approx(math.log(p / (1 - p)), abs=1e-6)
    assert rating.sum() == pytest.approx(0, abs=1e-9)
    # The difference has information p (1 - p); each centred rating is half of it.
    assert error[0] == pytest.approx(math.sqrt(1 / (p * (1 - p))) / 2, rel=1e-4)


def test_consistent_preferences_are_recovered() -> None:
    true = np.array([1.0, 0.2, -0.4, -0.8])
    a, b = (np.array(part) for part in zip(*[(i, j) for i in range(4) for j in range(i)], strict=True))
    p = 1 / (1 + np.exp(-(true[a] - true[b])))
    rating, _ = fit(a, b, p, np.zeros(4, dtype=np.int64), prior_sd=FLAT)
    assert rating == pytest.approx(true - true.mean(), abs=1e-6)


def test_a_general_optimiser_finds_the_same() -> None:
    chance = np.random.default_rng(4)
    prompt = np.repeat(np.arange(5), [2, 4, 4, 6, 3])
    starts = np.concatenate([[0], np.cumsum(np.bincount(prompt))])
    a, b = (
        np.array(part)
        for part in zip(
            *[(i, j) for x in range(5) for i in range(starts[x], starts[x + 1]) for j in range(starts[x], i)],
            strict=True,
        )
    )
    p = chance.choice([0.0, 1.0, 0.3, 0.8, 0.5], len(a))
    rating, error = fit(a, b, p, prompt, prior_sd=2.0)

    def loss(r: np.ndarray) -> float:
        d = r[a] - r[b]
        return float((p * np.logaddexp(0, -d) + (1 - p) * np.logaddexp(0, d)).sum() + (r**2).sum() / 8)

    slow = minimize(loss, np.zeros(len(prompt)), method="BFGS", options={"gtol": 1e-10}).x
    assert rating == pytest.approx(slow, abs=1e-5)
    s = 1 / (1 + np.exp(-(slow[a] - slow[b])))
    hessian = np.eye(len(prompt)) / 4
    for i, j, weight in zip(a, b, s * (1 - s), strict=True):
        hessian[np.ix_([i, j], [i, j])] += weight * np.array([[1, -1], [-1, 1]])
    centre = np.eye(len(prompt)) - (prompt[:, None] == prompt) / np.bincount(prompt)[prompt][:, None]
    covariance = centre @ np.linalg.inv(hessian) @ centre.T
    assert error == pytest.approx(np.sqrt(np.diag(covariance)), abs=1e-5)


def test_hard_and_unconnected_preferences_stay_finite_and_are_counted() -> None:
    ratings = rate_rollouts(
        *comparisons(
            ("x", "r1", "r2", 1.0),
            ("x", "r3", "r4", 0.5),
            ("y", "s1", "s2", 1.0),
            ("y", "s2", "s3", 1.0),
            ("y", "s3", "s1", 1.0),
            ("z", "t1", "t2", 0.7),
        )
    )
    conform(ratings.table, ROLLOUT_RATINGS, "ratings")
    rows = {row["rollout_id"]: row for row in ratings.table.to_pylist()}
    assert ratings.not_strongly_connected == 1, "a cycle of wins is strongly connected, x is not"
    assert all(math.isfinite(value) for row in rows.values() for value in row.values() if isinstance(value, float))
    assert rows["r1"]["rating"] > 1 > -1 > rows["r2"]["rating"]
    assert rows["s1"]["rating"] == pytest.approx(0, abs=1e-9)
    assert rows["t1"]["elo"] - 1500 == pytest.approx(400 / math.log(10) * rows["t1"]["rating"])
    assert rows["t1"]["reward"] == pytest.approx(1 / (1 + math.exp(-rows["t1"]["rating"])))
    assert [rows[name]["n_comparisons"] for name in ("r1", "s1", "t1")] == [1, 2, 1]
    assert list(rows) == sorted(rows)


def test_the_prior_is_named_where_it_decides() -> None:
    one = rate_rollouts(*comparisons(("x", "r1", "r2", 1.0), ("y", "s1", "s2", 0.7)))
    assert one.warning is not None
    assert one.warning.startswith("1 prompt has")
    assert rate_rollouts(*comparisons(("y", "s1", "s2", 0.7))).warning is None


@pytest.mark.parametrize("prior_sd", [FLAT, 1.5])
def test_choix_finds_the_same(prior_sd: float) -> None:
    """Hard comparisons of five responses; choix penalises with alpha |r|^2, ours with |r|^2 / (2 sd^2)."""
    choix = pytest.importorskip("choix", reason="choix is not installed")
    chance = np.random.default_rng(11)
    true = chance.normal(size=5)
    first, second = (np.array(part) for part in zip(*[(i, j) for i in range(5) for j in range(i)] * 12, strict=True))
    won = chance.random(len(first)) < 1 / (1 + np.exp(-(true[first] - true[second])))
    data = [(int(i), int(j)) if w else (int(j), int(i)) for i, j, w in zip(first, second, won, strict=True)]
    theirs = choix.opt_pairwise(5, data, alpha=prior_sd**-2 / 2, method="Newton-CG", tol=1e-12)
    rating, _ = fit(first, second, won.astype(float), np.zeros(5, dtype=np.int64), prior_sd)
    assert rating == pytest.approx(theirs - theirs.mean(), abs=1e-6)
    if prior_sd == FLAT:
        spectral = choix.ilsr_pairwise(5, data, tol=1e-12)
        assert rating == pytest.approx(spectral - spectral.mean(), abs=1e-6)


def test_a_prompt_is_rated_by_itself() -> None:
    alone = rate_rollouts(*comparisons(("x", "r1", "r2", 0.8), ("x", "r2", "r3", 0.6))).table
    beside = rate_rollouts(
        *comparisons(("x", "r1", "r2", 0.8), ("x", "r2", "r3", 0.6), ("y", "s1", "s2", 0.99), ("z", "t1", "t2", 0.1))
    ).table
    assert beside.slice(0, 3)["rating"].to_pylist() == pytest.approx(alone["rating"].to_pylist(), abs=1e-9)


def test_thousands_of_prompts_at_once() -> None:
    chance = np.random.default_rng(0)
    n = 5000
    prompt = np.repeat(np.arange(n), 4)
    a = np.concatenate([np.arange(n) * 4 + i for i in (0, 1, 2)])
    b = np.concatenate([np.arange(n) * 4 + i for i in (1, 2, 3)])
    p = chance.uniform(0.01, 0.99, 3 * n)
    rating, _ = fit(a, b, p, prompt, prior_sd=FLAT)
    # A chain of comparisons is solved exactly by the log-odds of each.
    assert rating[a] - rating[b] == pytest.approx(np.log(p / (1 - p)), abs=1e-4)


def test_a_rollout_of_two_prompts_is_named() -> None:
    with pytest.raises(UsageError, match="r1"):
        rate_rollouts(*comparisons(("x", "r1", "r2", 0.8), ("y", "r1", "r3", 0.6)))


def test_nothing_to_rate() -> None:
    pairs, labels = comparisons(("x", "r1", "r2", 0.8))
    assert rate_rollouts(pairs, labels.slice(0, 0)).table.num_rows == 0
