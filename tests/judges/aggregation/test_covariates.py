"""Bradley-Terry with slot and length, against a general optimiser, plain Bradley-Terry, and what was put in."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit

from judges.aggregation.bradley_terry import fit
from judges.aggregation.covariates import fit_covariates, rate_with_covariates
from store.errors import UsageError

from ..votes_builder import pairs_table, vote, votes_table


def world(seed: int, prompts: int = 30) -> tuple[np.ndarray, ...]:
    """Prompts of three to five responses; every pair in both orders."""
    rng = np.random.default_rng(seed)
    prompt = np.repeat(np.arange(prompts), rng.integers(3, 6, prompts))
    starts = np.searchsorted(prompt, np.arange(prompts + 1))
    whole = [(i, j) for x in range(prompts) for i in range(starts[x], starts[x + 1]) for j in range(starts[x], i)]
    a, b = (np.repeat(part, 2) for part in zip(*whole, strict=True))
    slot = np.tile([1.0, -1.0], len(whole))
    longer = rng.normal(size=len(prompt))
    return rng.normal(size=len(prompt)), prompt, a, b, np.stack([slot, longer[a] - longer[b]], axis=1)


def test_a_general_optimiser_finds_the_same() -> None:
    _, prompt, a, b, x = world(1, prompts=6)
    rng = np.random.default_rng(2)
    p, weight = rng.choice([0.0, 0.3, 0.5, 0.9, 1.0], len(a)), rng.uniform(0.2, 1, len(a))
    rating, error, beta, beta_error = fit_covariates(a, b, p, prompt, x, weight, prior_sd=2.0)
    items = len(prompt)

    def loss(theta: np.ndarray) -> float:
        z = theta[a] - theta[b] + x @ theta[items:]
        return float(weight @ (p * np.logaddexp(0, -z) + (1 - p) * np.logaddexp(0, z)) + (theta[:items] ** 2).sum() / 8)

    slow = minimize(loss, np.zeros(items + 2), method="BFGS", options={"gtol": 1e-9}).x
    centre = np.eye(items) - (prompt[:, None] == prompt) / np.bincount(prompt)[prompt][:, None]
    assert rating == pytest.approx(centre @ slow[:items], abs=1e-5)
    assert beta == pytest.approx(slow[items:], abs=1e-5)
    design = np.zeros((len(a), items + 2))
    design[np.arange(len(a)), a] += 1
    design[np.arange(len(a)), b] -= 1
    design[:, items:] = x
    s = expit(design @ slow)
    hessian = design.T @ (design * (weight * s * (1 - s))[:, None])
    hessian[:items, :items] += np.eye(items) / 4
    covariance = np.linalg.inv(hessian)
    assert beta_error == pytest.approx(np.sqrt(np.diag(covariance)[items:]), abs=1e-5)
    assert error == pytest.approx(np.sqrt(np.diag(centre @ covariance[:items, :items] @ centre.T)), abs=1e-5)


def test_what_was_put_in_comes_out() -> None:
    true, prompt, a, b, x = world(3, prompts=400)
    p = expit(true[a] - true[b] + x @ np.array([0.8, 0.5]))
    rating, _, beta, _ = fit_covariates(a, b, p, prompt, x, np.ones(len(a)), prior_sd=50.0)
    assert beta[0] == pytest.approx(0.8, abs=0.01)
    # Length is a property of a response, as quality is: what is left is what length does not explain.
    level = np.bincount(prompt, true) / np.bincount(prompt)
    assert np.corrcoef(rating, true - level[prompt])[0, 1] > 0.7


def test_without_covariates_it_is_plain_bradley_terry() -> None:
    true, prompt, a, b, x = world(4)
    p = expit(true[a] - true[b])
    rating, error, beta, beta_error = fit_covariates(a, b, p, prompt, 0 * x, np.ones(len(a)))
    plain, plain_error = fit(a, b, p, prompt)
    assert rating == pytest.approx(plain, abs=1e-8)
    assert error == pytest.approx(plain_error, abs=1e-8)
    assert beta.tolist() == [0.0, 0.0]
    assert np.isinf(beta_error).all()


def test_votes_tell_the_slot_and_the_length() -> None:
    rng = np.random.default_rng(5)
    names = [f"p{i:03d}" for i in range(300)]
    texts = {name: ("x" * int(rng.integers(20, 400)), "x" * int(rng.integers(20, 400))) for name in names}
    pairs = pairs_table(*names, **texts)
    rows = []
    for name in names:
        doubled = np.clip(np.log2((len(texts[name][0]) + 1) / (len(texts[name][1]) + 1)), -3, 3)
        for order, sign in (("ab", 1.0), ("ba", -1.0)):
            chance = expit(0.6 * sign + 0.9 * doubled)
            rows.append(vote(name, "j", order, 1.0 if rng.random() < chance else 0.0))
    found = rate_with_covariates(pairs, votes_table(*rows), prior_sd=0.1)
    assert abs(found.beta["slot"] - 0.6) < 3 * found.beta_error["slot"]
    assert abs(found.beta["length"] - 0.9) < 3 * found.beta_error["length"]
    assert 0 < found.beta_error["slot"] < 0.2
    assert len(found.rating) == 600


def test_nothing_to_rate_is_named() -> None:
    with pytest.raises(UsageError, match="nothing to rate"):
        rate_with_covariates(pairs_table("p1"), votes_table(vote("p1", "j", "ab", None)))
