"""Statistics of an evaluation: means over prompts with intervals that know about prompts.

Responses to one prompt resemble each other, so the prompts are the independent observations: values are averaged within
each prompt, and the interval is of the mean over prompts (cluster-robust for equal weights per prompt).

    expected reward = 1/N sum_n 1/K sum_k r(x_n, y_nk);    win rate = 1/N sum_n 1/K sum_k p(y_nk beats its opponent)
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import optimize, stats

Interval = dict[str, Any]
"""{"mean", "low", "high", "n"}: n counts prompts; a value that the data cannot give is null."""


def mean_by_cluster(values: Sequence[float], clusters: Sequence[str]) -> dict[str, float]:
    """The mean within each cluster."""
    grouped: dict[str, list[float]] = defaultdict(list)
    for value, cluster in zip(values, clusters, strict=True):
        grouped[cluster].append(value)
    return {cluster: math.fsum(inside) / len(inside) for cluster, inside in grouped.items()}


def clustered_mean(
    values: Sequence[float],
    clusters: Sequence[str],
    confidence: float = 0.95,
    bounds: tuple[float, float] | None = None,
) -> Interval:
    """Mean over clusters with Student's t interval on the cluster means.

    With `bounds`, the least and largest possible value, the interval stays inside them; and where all clusters agree,
    so that their spread says nothing, it is the exact one of n equal observations: n wins out of n prove a win rate
    above ((1 - confidence) / 2)^(1/n) (Clopper and Pearson 1934), not of 1. Without bounds a single cluster, or
    clusters that all agree, give no interval.
    """
    means = np.array(sorted(mean_by_cluster(values, clusters).values()))
    count = len(means)
    if not count:
        return {"mean": None, "low": None, "high": None, "n": 0}
    mean = float(means.mean())
    low: float | None = None
    high: float | None = None
    spread = float(means.std(ddof=1)) if count > 1 else 0.0
    if spread > 0:
        half = float(stats.t.ppf(0.5 + confidence / 2, count - 1) * spread / math.sqrt(count))
        low, high = mean - half, mean + half
    if bounds is not None:
        least, largest = bounds
        shrink = ((1 - confidence) / 2) ** (1 / count)
        low = max(least, least + (mean - least) * shrink if low is None else low)
        high = min(largest, largest - (largest - mean) * shrink if high is None else high)
    return {"mean": mean, "low": low, "high": high, "n": count}


def by(
    labels: Sequence[str],
    values: Sequence[float],
    clusters: Sequence[str],
    confidence: float = 0.95,
    bounds: tuple[float, float] | None = None,
) -> dict[str, Interval]:
    """`clustered_mean` for each label, such as the prompts' groups or splits."""
    rows: Mapping[str, list[int]] = defaultdict(list)
    for index, label in enumerate(labels):
        rows[label].append(index)
    return {
        label: clustered_mean([values[i] for i in index], [clusters[i] for i in index], confidence, bounds)
        for label, index in sorted(rows.items())
    }


def length_controlled_win_rate(wins: Sequence[float], length_differences: Sequence[float]) -> float | None:
    """The win rate that would be seen at equal lengths, in 0..1; None with fewer than ten comparisons.

    Logistic regression of the win probability on the length difference d (policy minus reference, in tokens):
    P(win) = sigmoid(a + b tanh(d / std d)), and the result is sigmoid(a). After Dubois et al. 2024 (arXiv 2404.04475),
    without their term for the prompt's difficulty. A small ridge keeps separable data finite.
    """
    y, d = np.asarray(wins, dtype=float), np.asarray(length_differences, dtype=float)
    if len(y) < 10:
        return None
    spread = float(d.std())
    x = np.tanh(d / spread) if spread > 0 else np.zeros_like(d)

    def loss(theta: np.ndarray[Any, Any]) -> float:
        z = theta[0] + theta[1] * x
        return float((np.logaddexp(0, z) - y * z).mean() + 1e-4 * (theta**2).sum())

    a = float(optimize.minimize(loss, np.zeros(2), method="BFGS").x[0])
    return 1 / (1 + math.exp(-a))
