"""How good a reward model is, on pairs that it was not trained on.

All take D [n], the reward of the chosen minus that of the rejected response in log-odds, so that sigmoid(D) is the
model's probability for the chosen one, and the soft labels p [n] >= 0.5. Pairs of one prompt resemble each other, so
the prompts, given as `clusters`, are the independent observations behind every interval; without them each pair is one.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from store.statistics import wilson

Interval = dict[str, Any]
"""{"mean", "low", "high", "n"}: n counts pairs; a value that the data cannot give is null."""

Array = np.ndarray[Any, np.dtype[np.float64]]

DRAWS = 1000
"""Bootstrap draws of the calibration error."""


def accuracy(
    differences: Tensor,
    p_chosen: Tensor | None = None,
    clusters: Sequence[str] | None = None,
    level: float = 0.95,
) -> Interval:
    """Share of pairs whose chosen response has the larger reward; mean null where n is 0.

    Equal rewards are not won. A pair whose label is an exact tie has no right answer and is left out of n. The interval
    is Wilson's at the effective sample size n / (design effect), with the prompts' spread as the sampling variance.
    """
    won = (differences > 0).double().numpy()
    names = _names(clusters, len(won))
    if p_chosen is not None:
        keep = (p_chosen != 0.5).numpy()
        won, names = won[keep], [name for name, kept in zip(names, keep, strict=True) if kept]
    count = len(won)
    if not count:
        return {"mean": None, "low": None, "high": None, "n": 0}
    mean = float(won.mean())
    simple, clustered = mean * (1 - mean) / count, _variance(won - mean, names)
    # Prompts whose pairs are won alike by chance would promise more than the pairs are: n is the most there can be.
    effective = count * min(1.0, simple / clustered) if clustered > 0 and simple > 0 else float(len(set(names)))
    low, high = wilson(mean * effective, effective, NormalDist().inv_cdf(0.5 + level / 2))
    return {"mean": mean, "low": low, "high": high, "n": count}


def log_loss(differences: Tensor, p_chosen: Tensor) -> float:
    """Mean cross-entropy of sigmoid(D) against the soft labels, in nats."""
    return float(_cross_entropies(differences, p_chosen).mean())


def log_loss_interval(
    differences: Tensor, p_chosen: Tensor, clusters: Sequence[str] | None = None, level: float = 0.95
) -> Interval:
    """`log_loss` with its interval."""
    values = _cross_entropies(differences, p_chosen).numpy()
    return _mean_interval(values, _names(clusters, len(values)), level)


def _cross_entropies(differences: Tensor, p_chosen: Tensor) -> Tensor:
    differences, labels = differences.double(), p_chosen.double()
    return -(labels * F.logsigmoid(differences) + (1 - labels) * F.logsigmoid(-differences))


def accuracy_by_group(
    differences: Tensor,
    p_chosen: Tensor,
    groups: Sequence[str],
    clusters: Sequence[str] | None = None,
    level: float = 0.95,
) -> dict[str, Interval]:
    rows: dict[str, list[int]] = defaultdict(list)
    for index, group in enumerate(groups):
        rows[group].append(index)
    names = _names(clusters, len(groups))
    return {
        group: accuracy(differences[index], p_chosen[index], [names[at] for at in index], level)
        for group, index in sorted(rows.items())
    }


def calibration_curve(
    differences: Tensor,
    p_chosen: Tensor,
    bins: int = 10,
    clusters: Sequence[str] | None = None,
    level: float = 0.95,
) -> list[dict[str, Any]]:
    """Bins of predicted probability: {"low", "high", "predicted", "observed", "observed_low", "observed_high", "n"};
    empty bins are left out.

    Each pair counts in both directions: "chosen" is by definition the side with the larger label, and looking at that
    side alone makes a perfect model seem too timid. The two directions are one observation to the interval, which is
    null where a bin has a single prompt.
    """
    predicted, observed, which = _both_ways(differences, p_chosen, bins)
    names = _names(clusters, len(differences)) * 2
    curve: list[dict[str, Any]] = []
    for index in np.unique(which):
        inside = which == index
        found = _mean_interval(
            observed[inside], [name for name, kept in zip(names, inside, strict=True) if kept], level
        )
        curve.append(
            {
                "low": float(index / bins),
                "high": float((index + 1) / bins),
                "predicted": float(predicted[inside].mean()),
                "observed": found["mean"],
                "observed_low": None if found["low"] is None else max(0.0, found["low"]),
                "observed_high": None if found["high"] is None else min(1.0, found["high"]),
                "n": int(inside.sum()),
            }
        )
    return curve


def calibration_error(
    differences: Tensor,
    p_chosen: Tensor,
    bins: int = 10,
    clusters: Sequence[str] | None = None,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """ECE = sum_b n_b / n |predicted_b - observed_b| over the bins of `calibration_curve` (Guo et al. 2017).

    The interval is a percentile bootstrap over prompts. ECE is a sum of absolute values: on few pairs it is above 0 for
    a perfect model too, and so is the interval.
    """
    if not len(differences):
        return {"mean": None, "low": None, "high": None, "n": 0}
    predicted, observed, which = _both_ways(differences, p_chosen, bins)
    names = _names(clusters, len(differences))
    order = {name: index for index, name in enumerate(dict.fromkeys(names))}
    at = np.array([order[name] for name in names] * 2)
    gaps = np.zeros((len(order), bins))  # sum of predicted - observed, by prompt and bin
    np.add.at(gaps, (at, which), predicted - observed)
    weight = np.bincount(at, minlength=len(order)).astype(float)

    def error(counts: Array) -> Array:
        """[...] of how often each prompt counts [..., prompts]."""
        found: Array = np.abs(counts @ gaps).sum(-1) / (counts @ weight)
        return found

    mean = float(error(np.ones(len(order))))
    if len(order) < 2:
        return {"mean": mean, "low": None, "high": None, "n": len(differences)}
    generator = np.random.default_rng(seed)
    counts = generator.multinomial(len(order), np.full(len(order), 1 / len(order)), DRAWS).astype(float)
    low, high = np.quantile(error(counts), [0.5 - level / 2, 0.5 + level / 2])
    return {"mean": mean, "low": float(low), "high": float(high), "n": len(differences)}


def length_slope(differences: Tensor, lengths: Tensor) -> float | None:
    """Log-odds per additional response token: least squares of D on the length difference, through the origin.

    lengths: [n] tokens of the chosen minus tokens of the rejected response. None where all are equal.
    """
    lengths = lengths.double()
    square = float(lengths.square().sum())
    return float((differences.double() * lengths).sum()) / square if square else None


def length_slope_interval(
    differences: Tensor, lengths: Tensor, clusters: Sequence[str] | None = None, level: float = 0.95
) -> Interval:
    """`length_slope` with its interval, by the cluster-robust (sandwich) variance."""
    slope, count = length_slope(differences, lengths), len(differences)
    if slope is None:
        return {"mean": None, "low": None, "high": None, "n": count}
    x, y = lengths.double().numpy(), differences.double().numpy()
    names = _names(clusters, count)
    # The scores of least squares, brought to the scale of a mean: sum x e / sum x^2.
    variance = _variance(x * (y - slope * x) * count / float((x * x).sum()), names)
    return _around(slope, variance, names, level)


def _both_ways(differences: Tensor, p_chosen: Tensor, bins: int) -> tuple[Array, Array, np.ndarray[Any, Any]]:
    """(predicted, observed, bin) [2 n] of each pair in both directions."""
    one = torch.sigmoid(differences.double())
    predicted = torch.cat([one, 1 - one]).numpy()
    observed = torch.cat([p_chosen.double(), 1 - p_chosen.double()]).numpy()
    return predicted, observed, np.minimum((predicted * bins).astype(int), bins - 1)


def _names(clusters: Sequence[str] | None, count: int) -> list[str]:
    return list(clusters) if clusters is not None else [str(index) for index in range(count)]


def _mean_interval(values: Array, names: Sequence[str], level: float) -> Interval:
    if not len(values):
        return {"mean": None, "low": None, "high": None, "n": 0}
    mean = float(values.mean())
    return _around(mean, _variance(values - mean, names), names, level)


def _around(mean: float, variance: float, names: Sequence[str], level: float) -> Interval:
    """Student's t interval with one degree of freedom less than there are prompts."""
    from scipy import stats

    prompts = len(set(names))
    if prompts < 2:
        return {"mean": mean, "low": None, "high": None, "n": len(names)}
    half = float(stats.t.ppf(0.5 + level / 2, prompts - 1)) * math.sqrt(variance)
    return {"mean": mean, "low": mean - half, "high": mean + half, "n": len(names)}


def _variance(residuals: Array, names: Sequence[str]) -> float:
    """Of the mean of n values whose residuals are given: G / (G - 1) sum_g (sum_{i in g} e_i)^2 / n^2, G clusters.

    Liang and Zeger 1986; for clusters of one it is the usual s^2 / n.
    """
    sums: dict[str, float] = defaultdict(float)
    for residual, name in zip(residuals.tolist(), names, strict=True):
        sums[name] += residual
    count = len(sums)
    if count < 2:
        return 0.0
    return count / (count - 1) * math.fsum(value * value for value in sums.values()) / len(residuals) ** 2
