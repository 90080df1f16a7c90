"""Bradley-Terry with covariates: how much of the votes is the slot and the length, and not the response.

For vote v on responses i and j of one prompt, with i as rollout a,

    P(a preferred) = sigmoid(r_i - r_j + beta . x_v)

    x_slot    +1 where a was shown first, -1 where b was
    x_length  log2(characters of a / characters of b), one more in each, cut at +-LENGTH_LIMIT

r is per response, beta is shared by all prompts: log-odds for being first (2 beta_slot between the two orders), and
log-odds a doubling of length. All are estimated together by penalised maximum likelihood,

    sum_v c_v [p log s(z) + (1 - p) log s(-z)] - sum_i r_i^2 / (2 sd^2),   c_v = 1 / votes on the pair

so that a pair counts once, however many judges and orders it has. r is then the rating at equal length and slot, as the
length-controlled win rate has it (Dubois et al. 2024, Length-Controlled AlpacaEval, arXiv 2404.04475); covariates in
paired comparisons: Agresti 2013, Categorical Data Analysis, section 11.6. Standard errors are from the Hessian.

Precondition: many prompts. A slot varies between the votes of a pair, but a length belongs to a response, as r does,
and only the prior tells them apart: beta_length takes whatever of the ratings goes with length, as the slope of a
regression with r as its random effect, and r is what is left. Long responses that are better for another reason are
not told from ones that please by their length. Newton's method on all prompts at once: the Hessian is a block a prompt
with a border for beta, solved by its Schur complement.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from judges.aggregation.bradley_terry import PRIOR_SD, Ints, Reals
from judges.aggregation.labels import is_valid
from store.errors import UsageError

COVARIATES = ("slot", "length")
LENGTH_LIMIT = 3.0
"""A response eight times as long as the other is as long as any."""


@dataclass(frozen=True)
class Controlled:
    """`rating`, `std_error`: by rollout, log-odds centred within its prompt. `beta`, `beta_error`: by covariate; the
    error is inf where all votes are alike in it."""

    rating: dict[str, float]
    std_error: dict[str, float]
    beta: dict[str, float]
    beta_error: dict[str, float]


def rate_with_covariates(pairs: pa.Table, votes: pa.Table, prior_sd: float = PRIOR_SD) -> Controlled:
    """Rate the rollouts of PAIRS by their valid VOTES. Raises UsageError where none is valid."""
    valid = votes.filter(is_valid(votes)).sort_by([("pair_id", "ascending"), ("vote_id", "ascending")])
    at = pc.index_in(valid["pair_id"], value_set=pairs["pair_id"].combine_chunks())
    valid, at = valid.filter(pc.is_valid(at)), at.drop_null()
    if not valid.num_rows:
        raise UsageError("No vote on these pairs is valid: there is nothing to rate.")
    rows = at.to_numpy().astype(np.int64)
    used = pairs.take(at)
    names, codes = np.unique(
        np.concatenate([used["rollout_a"].to_numpy(), used["rollout_b"].to_numpy()]).astype(str), return_inverse=True
    )
    i, j = codes[: len(rows)], codes[len(rows) :]
    _, prompt = np.unique(used["prompt_id"].to_numpy().astype(str), return_inverse=True)
    slot = np.where(pc.equal(valid["order"], "ab").to_numpy(), 1.0, -1.0)
    length = [np.log2(pc.utf8_length(used[f"response_{side}"]).to_numpy() + 1.0) for side in "ab"]
    x = np.stack([slot, np.clip(length[0] - length[1], -LENGTH_LIMIT, LENGTH_LIMIT)], axis=1)
    weight = 1.0 / np.bincount(rows)[rows]
    p = pc.fill_null(valid["p_a"], 0.5).to_numpy()
    group = np.zeros(len(names), dtype=np.int64)
    group[i], group[j] = prompt, prompt
    rating, error, beta, beta_error = fit_covariates(i, j, p, group, x, weight, prior_sd)
    return Controlled(
        dict(zip(names.tolist(), rating.tolist(), strict=True)),
        dict(zip(names.tolist(), error.tolist(), strict=True)),
        dict(zip(COVARIATES, beta.tolist(), strict=True)),
        dict(zip(COVARIATES, beta_error.tolist(), strict=True)),
    )


def fit_covariates(
    a: Ints, b: Ints, p: Reals, prompt: Ints, x: Reals, weight: Reals, prior_sd: float = PRIOR_SD
) -> tuple[Reals, Reals, Reals, Reals]:
    """Ratings and their errors [items], beta and its errors [covariates].

    `a`, `b`: [votes] items compared, both of one prompt; `p`, `weight`: [votes]; `prompt`: [items] 0..P-1; `x`: [votes,
    covariates]. A covariate that never varies from 0 gets beta 0 and error inf.
    """
    live = np.any(x != 0, axis=0)
    inside = x[:, live]
    items, k = len(prompt), int(live.sum())
    size = int(np.bincount(prompt).max())
    order = np.argsort(prompt, kind="stable")
    slot = np.empty(items, dtype=np.int64)
    first = np.concatenate([[0], np.cumsum(np.bincount(prompt))[:-1]])
    slot[order] = np.arange(items) - first[prompt[order]]
    where, i, j = prompt[a], slot[a], slot[b]
    precision, prompts = prior_sd**-2, int(prompt.max()) + 1
    r, beta = np.zeros((prompts, size)), np.zeros(k)

    def value(r: Reals, beta: Reals) -> float:
        z = r[where, i] - r[where, j] + inside @ beta
        fit = -p * np.logaddexp(0, -z) - (1 - p) * np.logaddexp(0, z)
        return float(weight @ fit - precision / 2 * (r**2).sum())

    def pieces(r: Reals, beta: Reals) -> tuple[Reals, Reals, Reals, Reals, Reals]:
        """Gradients of r and beta; blocks, border and corner of the negative Hessian."""
        s = 1 / (1 + np.exp(-(r[where, i] - r[where, j] + inside @ beta)))
        surprise, curve = weight * (p - s), weight * s * (1 - s)
        gradient = -precision * r
        np.add.at(gradient, (where, i), surprise)
        np.add.at(gradient, (where, j), -surprise)
        blocks = np.tile(precision * np.eye(size), (prompts, 1, 1))
        for row, column, sign in ((i, i, 1), (j, j, 1), (i, j, -1), (j, i, -1)):
            np.add.at(blocks, (where, row, column), sign * curve)
        border = np.zeros((prompts, size, k))
        np.add.at(border, (where, i), curve[:, None] * inside)
        np.add.at(border, (where, j), -curve[:, None] * inside)
        return gradient, inside.T @ surprise, blocks, border, inside.T @ (inside * curve[:, None])

    now = value(r, beta)
    for _ in range(100):
        gradient, slope, blocks, border, corner = pieces(r, beta)
        if max(np.abs(gradient).max(), np.abs(slope).max(initial=0.0)) < 1e-10:
            break
        solved = np.linalg.solve(blocks, np.concatenate([gradient[..., None], border], axis=2))
        schur = corner - np.einsum("psk,psl->kl", border, solved[..., 1:])
        step_beta = np.linalg.solve(schur, slope - np.einsum("psk,ps->k", border, solved[..., 0]))
        step_r = solved[..., 0] - solved[..., 1:] @ step_beta
        for halvings in range(40):
            trial = r + step_r / 2**halvings, beta + step_beta / 2**halvings
            new = value(*trial)
            if new >= now - 1e-12 * (1 + abs(now)):
                break
        (r, beta), now = trial, new
    _, _, blocks, border, corner = pieces(r, beta)
    inverse = np.linalg.inv(blocks)
    solved = inverse @ border
    shared = np.linalg.inv(corner - np.einsum("psk,psl->kl", border, solved))
    # Centring takes the mean of each prompt's own items; the border's part sums to 0 within a prompt already.
    count = np.bincount(prompt).astype(float)
    present = np.zeros((prompts, size))
    present[prompt, slot] = 1.0
    centre = (np.eye(size)[None] - present[:, None, :] / count[:, None, None]) * present[:, :, None]
    covariance = inverse + solved @ shared @ solved.transpose(0, 2, 1)
    variance = np.einsum("pst,ptu,psu->ps", centre, covariance, centre)
    level = (r * present).sum(axis=1) / count
    full_beta, full_error = np.zeros(x.shape[1]), np.full(x.shape[1], np.inf)
    full_beta[live], full_error[live] = beta, np.sqrt(np.diag(shared))
    rating = (r - level[:, None])[prompt, slot]
    return rating, np.sqrt(np.maximum(variance[prompt, slot], 0.0)), full_beta, full_error
