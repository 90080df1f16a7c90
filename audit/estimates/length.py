"""The taste for length: how a preference changes with the length difference, and the win rate at equal lengths.

Logistic regression of the win on the length difference d, after Dubois et al. 2024, Length-Controlled AlpacaEval (arXiv
2404.04475), without their term for the prompt's difficulty:

    P(win) = sigmoid(a + b tanh(d / sd d))

The slope is b, in log-odds for a difference of about one standard deviation. The win rate at equal lengths is
sigmoid(a). Wins may be soft (probabilities, 1/2 for a tie). A ridge of 1e-4 a pair keeps separable data finite.

The covariance is the sandwich, with n / (n - 2): it needs no binomial variance, so soft wins are fine, and with
`clusters` it allows for pairs of one prompt that are alike (Liang and Zeger 1986). Intervals use Student's t.

A slope says what length goes with, not what it causes: longer responses may be better.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from audit.opinions import Floats

FEWEST = 10
"""Pairs, and clusters, below which nothing is said about length."""

_RIDGE = 1e-4


@dataclass(frozen=True)
class LengthControlled:
    """`win_rate` at equal lengths, 0..1; `slope` in log-odds; each with its 95 % interval. `plain`: the mean of the
    wins as they are. `n`: pairs."""

    win_rate: float
    low: float
    high: float
    slope: float
    slope_low: float
    slope_high: float
    plain: float
    n: int


def length_controlled(
    wins: Floats, differences: Floats, clusters: Sequence[str] | None = None, weights: Floats | None = None
) -> LengthControlled | None:
    """See the module; None for fewer than ten pairs or clusters, and where all lengths are equal.

    wins: [n] in 0..1. differences: [n] length of that side's response minus the other's. weights: [n] such as 1 / pi_i
    of audited pairs.
    """
    n = len(wins)
    w = np.ones(n) if weights is None else weights / weights.mean()
    names = np.arange(n) if clusters is None else np.unique(list(clusters), return_inverse=True)[1]
    groups = len(np.unique(names))
    spread = float(differences.std()) if n else 0.0
    if groups < FEWEST or spread == 0:
        return None
    x = np.stack([np.ones(n), np.tanh(differences / spread)], axis=1)
    theta = _fit(x, wins, w)
    p = 1 / (1 + np.exp(-x @ theta))
    bread = np.linalg.inv((x * (w * p * (1 - p))[:, None]).T @ x + n * _RIDGE * np.eye(2))
    scores = x * (w * (wins - p))[:, None]
    summed = np.stack([np.bincount(names, scores[:, column]) for column in range(2)], axis=1)
    covariance = bread @ (summed.T @ summed) @ bread * groups / max(groups - 2, 1)

    from scipy.stats import t  # imported where it is used: it takes half a second and 60 MB

    half = float(t.ppf(0.975, max(groups - 2, 1))) * np.sqrt(np.diag(covariance))
    a, b = theta.tolist()
    return LengthControlled(
        win_rate=_sigmoid(a),
        low=_sigmoid(a - half[0]),
        high=_sigmoid(a + half[0]),
        slope=b,
        slope_low=b - float(half[1]),
        slope_high=b + float(half[1]),
        plain=float((w * wins).sum() / w.sum()),
        n=n,
    )


def _fit(x: Floats, y: Floats, w: Floats) -> Floats:
    """The minimum of sum w (log(1 + e^z) - y z) + n ridge / 2 |theta|^2, strictly convex, by damped Newton steps."""
    n = len(y)

    def loss(theta: Floats) -> float:
        z = x @ theta
        return float((w * (np.logaddexp(0, z) - y * z)).sum() + n * _RIDGE / 2 * (theta**2).sum())

    theta: Floats = np.zeros(2)
    for _ in range(100):
        p = 1 / (1 + np.exp(-x @ theta))
        gradient = x.T @ (w * (p - y)) + n * _RIDGE * theta
        if np.abs(gradient).max() < 1e-10 * n:
            break
        hessian = (x * (w * p * (1 - p))[:, None]).T @ x + n * _RIDGE * np.eye(2)
        step = np.linalg.solve(hessian, gradient)
        while loss(theta - step) > loss(theta) + 1e-12 and np.abs(step).max() > 1e-12:
            step = step / 2
        theta = theta - step
    return theta


def _sigmoid(value: float) -> float:
    return (1 + math.tanh(value / 2)) / 2
