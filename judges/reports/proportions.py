"""Shares with intervals: single ones, differences of two on the same things, and means over clusters."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

from judges.reports import Figures

RESAMPLES = 2000

Reals = NDArray[np.float64]


def proportion(successes: int, n: int, confidence: float = 0.95) -> Figures:
    """A share with its Wilson interval (Wilson 1927): {"accuracy", "low", "high", "n"}; None without observations."""
    return {"accuracy": share(successes, n), **bounds(successes, n, confidence), "n": n}


def bounds(successes: int, n: int, confidence: float = 0.95) -> Figures:
    """Wilson's {"low", "high"}, both in 0..1; None without observations."""
    if n == 0:
        return {"low": None, "high": None}
    # Imported where it is used: it takes half a second and 60 MB, and whoever only judges needs no interval.
    from scipy.stats import binomtest

    interval = binomtest(successes, n).proportion_ci(confidence, method="wilson")
    return {"low": float(interval.low), "high": float(interval.high)}


def share(part: float, whole: int) -> float | None:
    return part / whole if whole else None


def paired_difference(both: int, first: int, second: int, neither: int) -> Figures:
    """Difference of two proportions measured on the same n things: {"difference", "low", "high", "p_value", "n"}.

    Of the things, `both` are successes of the first and the second, `first` and `second` of one alone. The interval is
    Newcombe's hybrid score interval (Newcombe 1998, Statistics in Medicine 17:2635, method 10); `p_value` is of the
    exact McNemar test: that things which only one of the two gets right are as often the first's as the second's.
    """
    n = both + first + second + neither
    if n == 0:
        return {"difference": None, "low": None, "high": None, "p_value": None, "n": 0}
    one, two = both + first, both + second
    from scipy.stats import binomtest

    p, q = one / n, two / n
    bound_p, bound_q = bounds(one, n), bounds(two, n)
    below_p, above_p = p - bound_p["low"], bound_p["high"] - p
    below_q, above_q = q - bound_q["low"], bound_q["high"] - q
    phi = _correlation(both, first, second, neither)
    low = math.sqrt(max(0.0, below_p**2 - 2 * phi * below_p * above_q + above_q**2))
    high = math.sqrt(max(0.0, above_p**2 - 2 * phi * above_p * below_q + below_q**2))
    difference = (first - second) / n
    return {
        "difference": difference,
        "low": max(-1.0, difference - low),
        "high": min(1.0, difference + high),
        "p_value": float(binomtest(first, first + second).pvalue) if first + second else 1.0,
        "n": n,
    }


def _correlation(both: int, first: int, second: int, neither: int) -> float:
    """Newcombe's phi: of the 2 x 2 table, with a continuity correction where it is positive."""
    n = both + first + second + neither
    product = (both + first) * (second + neither) * (both + second) * (first + neither)
    if product == 0:
        return 0.0
    lead = both * neither - first * second
    return (max(lead - n / 2, 0.0) if lead > 0 else lead) / math.sqrt(product)


def clustered_mean(values: Sequence[float], clusters: Sequence[Hashable]) -> Figures:
    """Mean of values that belong to clusters, such as prompts: {"mean", "low", "high", "n", "clusters"}.

    The interval is the percentile bootstrap over whole clusters, from a fixed seed; None with fewer than two clusters.
    """
    sums: dict[Hashable, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for value, cluster in zip(values, clusters, strict=True):
        sums[cluster][0] += value
        sums[cluster][1] += 1
    figures: Figures = {"mean": None, "low": None, "high": None, "n": len(values), "clusters": len(sums)}
    if not values:
        return figures
    # Sorted: which clusters a seed draws must not depend on the order in which they came.
    total, count = np.array(sorted(sums.values())).T
    figures["mean"] = float(total.sum() / count.sum())
    if len(sums) > 1:
        means = _resampled(total, count)
        figures |= {"low": float(np.quantile(means, 0.025)), "high": float(np.quantile(means, 0.975))}
    return figures


def clustered_slope(x: Reals, y: Reals, clusters: Sequence[Hashable]) -> tuple[float, float | None]:
    """Least squares of y on x through the origin: the slope, and its standard error.

    The error allows for rows of one cluster, such as a prompt, that are alike: Liang and Zeger 1986, Longitudinal Data
    Analysis Using Generalized Linear Models, with G / (G - 1) for G clusters; None with fewer than two. x: not all 0.
    """
    spread = float(x @ x)
    slope = float(x @ y) / spread
    names = {name: number for number, name in enumerate(dict.fromkeys(clusters))}
    if len(names) < 2:
        return slope, None
    scores = np.bincount([names[one] for one in clusters], x * (y - slope * x))
    return slope, math.sqrt(float(scores @ scores) * len(names) / (len(names) - 1)) / spread


def _resampled(total: Reals, count: Reals) -> Reals:
    """Means of RESAMPLES draws of clusters, with replacement, as many as there are."""
    rng, n = np.random.default_rng(0), len(total)
    means = []
    for _ in range(RESAMPLES):
        drawn = rng.integers(0, n, n)
        means.append(total[drawn].sum() / count[drawn].sum())
    return np.array(means)
