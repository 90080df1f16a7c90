"""Bradley-Terry ratings of the responses of each prompt, from soft preferences.

P(a better than b) = 1 / (1 + exp(-(r_a - r_b))) (Bradley and Terry 1952). The ratings maximise, prompt by prompt,

    sum over pairs [p log s(d) + (1 - p) log s(-d)] - sum over responses r^2 / (2 sd^2),   d = r_a - r_b, s = logistic.

Maximum likelihood alone is finite only where the comparison graph is strongly connected (Ford 1957); the Gaussian
prior of standard deviation `prior_sd` keeps every case finite, and centres each prompt at 0. Standard errors come from
the Hessian at the maximum. The objective is concave: Newton's method with halved steps finds the one maximum.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from store.errors import UsageError
from store.schemas import ROLLOUT_RATINGS

PRIOR_SD = 3.0
"""In log-odds. Weak: two responses three apart are already won and lost 95 to 5."""

ELO_PER_LOG_ODDS = 400 / math.log(10)

Reals = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Ratings:
    """`table`: ROLLOUT_RATINGS, sorted by prompt_id and rollout_id. `not_strongly_connected`: prompts whose ratings are
    finite only because of the prior."""

    table: pa.Table
    not_strongly_connected: int

    @property
    def warning(self) -> str | None:
        """A sentence for reports where the prior decides how far apart some ratings are; else None."""
        if not self.not_strongly_connected:
            return None
        prompts = "prompt has" if self.not_strongly_connected == 1 else "prompts have"
        return (
            f"{self.not_strongly_connected} {prompts} responses that win or lose every comparison, or are not compared "
            f"with the others: how far apart they are rated is the prior's doing. Compare more pairs of these prompts."
        )


def rate_rollouts(pairs: pa.Table, labels: pa.Table, prior_sd: float = PRIOR_SD) -> Ratings:
    """Rate all rollouts that occur in a labelled pair.

    `rating`: log-odds, mean 0 within the prompt; `std_error`: of it; `elo` = 1500 + 400 / ln 10 * rating; `reward`:
    logistic(rating), in 0..1. Raises UsageError where a rollout belongs to two prompts.
    """
    p_of = dict(zip(labels["pair_id"].to_pylist(), labels["p_a"].to_pylist(), strict=True))
    labelled = [
        row
        for row in pairs.select(["pair_id", "prompt_id", "rollout_a", "rollout_b"]).to_pylist()
        if row["pair_id"] in p_of
    ]
    prompt_of: dict[str, str] = {}
    for row in labelled:
        for rollout in (row["rollout_a"], row["rollout_b"]):
            if prompt_of.setdefault(rollout, row["prompt_id"]) != row["prompt_id"]:
                raise UsageError(
                    f"Rollout {rollout} occurs in pairs of two prompts: give each rollout an id of its own."
                )
    rollouts = sorted(prompt_of, key=lambda rollout: (prompt_of[rollout], rollout))
    if not rollouts:
        return Ratings(ROLLOUT_RATINGS.schema.empty_table(), 0)
    index = {rollout: at for at, rollout in enumerate(rollouts)}
    a = np.array([index[row["rollout_a"]] for row in labelled], dtype=np.int64)
    b = np.array([index[row["rollout_b"]] for row in labelled], dtype=np.int64)
    p = np.array([p_of[row["pair_id"]] for row in labelled], dtype=np.float64)
    _, prompt = np.unique([prompt_of[rollout] for rollout in rollouts], return_inverse=True)
    rating, error = fit(a, b, p, prompt.astype(np.int64), prior_sd)
    columns = {
        "rollout_id": rollouts,
        "prompt_id": [prompt_of[rollout] for rollout in rollouts],
        "rating": rating,
        "std_error": error,
        "elo": 1500 + ELO_PER_LOG_ODDS * rating,
        "reward": 1 / (1 + np.exp(-rating)),
        "n_comparisons": np.bincount(np.concatenate([a, b]), minlength=len(rollouts)),
    }
    return Ratings(pa.table(columns, schema=ROLLOUT_RATINGS.schema), _weak(a, b, p, prompt))


def fit(a: Ints, b: Ints, p: Reals, prompt: Ints, prior_sd: float = PRIOR_SD) -> tuple[Reals, Reals]:
    """Ratings and standard errors, both (items,). `a`, `b`: (pairs,) items compared; `p`: (pairs,) probability that a
    is better; `prompt`: (items,) 0..P-1, rising. Pairs lie within a prompt.

    Prompts are solved side by side, in blocks of equal size, so that thousands take seconds.
    """
    sizes = np.bincount(prompt)
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    slot = np.arange(len(prompt)) - starts[prompt]
    rating, error = np.zeros(len(prompt)), np.zeros(len(prompt))
    for size in np.unique(sizes):
        chosen = np.flatnonzero(sizes == size)
        block = np.full(len(sizes), -1)
        block[chosen] = np.arange(len(chosen))
        mine = block[prompt[a]] >= 0
        where = block[prompt[a[mine]]]
        found = _newton(len(chosen), int(size), where, slot[a[mine]], slot[b[mine]], p[mine], prior_sd**-2)
        items = block[prompt] >= 0
        rating[items], error[items] = (part.reshape(-1) for part in found)
    return rating, error


def _newton(prompts: int, size: int, where: Ints, i: Ints, j: Ints, p: Reals, precision: float) -> tuple[Reals, Reals]:
    """`where`: (pairs,) block of each pair; `i`, `j`: (pairs,) items within it. Returns two (prompts, size) arrays."""
    r = np.zeros((prompts, size))
    value = _objective(r, where, i, j, p, precision)
    for _ in range(100):
        gradient = _gradient(r, where, i, j, p, precision)
        if np.abs(gradient).max() < 1e-11:
            break
        step = np.linalg.solve(_information(r, where, i, j, precision), gradient[..., None])[..., 0]
        scale = np.ones(prompts)
        for _ in range(40):
            trial = r + scale[:, None] * step
            new = _objective(trial, where, i, j, p, precision)
            # The slack is rounding: at the maximum a step may lose the last bit.
            worse = new < value - 1e-12 * (1 + np.abs(value))
            if not worse.any():
                break
            scale[worse] /= 2
        r, value = trial, new
    covariance = np.linalg.inv(_information(r, where, i, j, precision))
    # Ratings are centred, so the variance of their common level is not theirs; see `_information`.
    variance = np.einsum("pii->pi", covariance) - 1 / ((precision + 1) * size)
    return r - r.mean(axis=1, keepdims=True), np.sqrt(np.maximum(variance, 0.0))


def _objective(r: Reals, where: Ints, i: Ints, j: Ints, p: Reals, precision: float) -> Reals:
    d = r[where, i] - r[where, j]
    likelihood = -p * np.logaddexp(0, -d) - (1 - p) * np.logaddexp(0, d)
    total: Reals = np.bincount(where, likelihood, minlength=len(r)) - precision / 2 * (r**2).sum(axis=1)
    return total


def _gradient(r: Reals, where: Ints, i: Ints, j: Ints, p: Reals, precision: float) -> Reals:
    d = r[where, i] - r[where, j]
    surprise = p - 1 / (1 + np.exp(-d))
    gradient = -precision * r
    np.add.at(gradient, (where, i), surprise)
    np.add.at(gradient, (where, j), -surprise)
    return gradient


def _information(r: Reals, where: Ints, i: Ints, j: Ints, precision: float) -> Reals:
    """Negative Hessian, (prompts, size, size), plus 1 / size everywhere.

    The common level of a prompt's ratings is an eigenvector of the Hessian with the prior's precision as eigenvalue.
    One more there changes no step, since the gradient has no part in that direction, and keeps the matrix well
    conditioned however weak the prior is.
    """
    s = 1 / (1 + np.exp(-(r[where, i] - r[where, j])))
    weight = s * (1 - s)
    size = r.shape[1]
    matrix = np.tile(precision * np.eye(size) + 1 / size, (len(r), 1, 1))
    for row, column, sign in ((i, i, 1), (j, j, 1), (i, j, -1), (j, i, -1)):
        np.add.at(matrix, (where, row, column), sign * weight)
    return matrix


def _weak(a: Ints, b: Ints, p: Reals, prompt: Ints) -> int:
    """Prompts whose items do not all beat each other, directly or through others."""
    won = np.concatenate([a[p > 0], b[p < 1]]), np.concatenate([b[p > 0], a[p < 1]])
    graph = coo_matrix((np.ones(len(won[0])), won), shape=(len(prompt), len(prompt)))
    _, component = connected_components(graph, directed=True, connection="strong")
    parts = np.unique(np.stack([prompt, component]), axis=1)
    return int((np.bincount(parts[0]) > 1).sum())
