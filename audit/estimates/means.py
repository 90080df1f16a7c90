"""The mean of what people say over all judged pairs, from verdicts on a few and judges' opinions on all.

Of N judged pairs, pair i was audited (xi_i = 1) with probability pi_i; there y_i in 0..1 is what people say. f_i in
0..1 is what judges predict for y_i, on every pair. The estimate is that of Zrnic and Candes, Active Statistical
Inference (ICML 2024, arXiv 2403.03208), with c + lambda f_i as the prediction:

    theta = (1/N) sum_i [c + lambda f_i + (xi_i / pi_i) (y_i - c - lambda f_i)],

c such that the weighted residuals of the audited pairs sum to nought. That is the same as dividing by sum xi_i / pi_i
in place of N, so the number of pairs that happened to be drawn adds no noise:

    theta = m + lambda (mean_N f - f_w),
    m = sum w_i y_i / W,    f_w = sum w_i f_i / W,    w_i = xi_i / pi_i,    W = sum w_i

A prediction that says nothing (lambda = 0) leaves m, the weighted mean of Hajek (1971). lambda minimises the variance
below, as in PPI++ (Angelopoulos, Duchi and Zrnic 2023, arXiv 2311.01453), and is kept in 0..1 as there: judges never
make the estimate worse than without them, but for the noise of lambda itself. With equal pi_i = n / N the estimate,
lambda and the variance are those of PPI++ with the drawn pairs labelled and the others unlabelled.

Of pairs that are audited but do not count (ties among people, where it is about who is right) the mean is the ratio of
two such estimates: their residual is 0, their prediction stays in the correction.

Variance. For independent draws and e_i = d_i (y_i - m) / D - lambda (f_i - f_w), where d_i says whether the pair counts
and D is their weighted share,

    V = sum (1 - pi_i) w_i^2 e_i^2 / W^2   [+ sum w_i d_i (y_i - m)^2 / (W N D^2)  for target "all"]

Target "judged" is the mean over these N pairs, which the audit could have found out exactly; "all" is the mean over the
pairs that these are a sample of. Two corrections for small samples (benchmarks/estimates.py says how they were chosen
and what they do):

- residuals are divided by 1 - leverage (HC3; MacKinnon and White 1985), which is taken as 1/2 at least;
- V is mixed with what a model expects it to be, as if that had been seen on one error: n V + V_model over n + 1. The
  model (`expected`) is a logistic regression of y on the judges' log-odds. An audit that met none of a judge's rare
  errors on pairs of large weight would else take them for impossible. Errors are counted as far as the variance depends
  on their weights, so that many found where doubt was high say little of where it was low. Predictions that are all
  alike expect errors anywhere.

Interval: Wilson's with the effective sample size theta (1 - theta) / V and Student's t of as many degrees of freedom as
Kish's sample size W^2 / sum w_i^2 leaves (Dean and Pagano 2015, for complex surveys). Wald's covers too little near 0
and 1, where judges are. Where a handful of errors is all there is, no interval can cover exactly what it promises, as
their number is whole; this one errs to the wide side.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from audit.estimates.expected import expected
from audit.opinions import Bools, Floats
from store.statistics import wilson

Target = Literal["judged", "all"]

_LARGEST_LEVERAGE = 0.5


@dataclass(frozen=True)
class Mean:
    """`value` with its interval `low`..`high`, all in 0..1. `tuning`: lambda, how far the judges were believed. `n`:
    audited pairs that count."""

    value: float
    std_error: float
    low: float
    high: float
    tuning: float
    n: int


def corrected_mean(
    y: Floats,
    chance: Floats,
    prediction: Floats,
    predictions: Floats,
    counts: Bools | None = None,
    target: Target = "judged",
    tuning: float | None = None,
    confidence: float = 0.95,
) -> Mean | None:
    """See the module; None where no audited pair counts.

    y, chance, prediction: [n] y_i in 0..1, pi_i in (0, 1] and f_i of the audited pairs. predictions: [N] f_i of all
    judged pairs, the audited ones among them. counts: [n] d_i, all by default. tuning: lambda, if it is not to be
    estimated. The prediction must not have been fitted on these verdicts: it would be too good, and the interval too
    narrow.
    """
    d = np.ones(len(y)) if counts is None else counts.astype(np.float64)
    if d.sum() == 0:
        return None
    w: Floats = 1 / chance
    total = float(w.sum())
    share = float((w * d).sum()) / total
    m = float((w * d * y).sum()) / (share * total)
    z = d * (y - m) / share
    f = prediction - (w * prediction).sum() / total
    v = (1 - chance) * w**2
    spread = float((v * f**2).sum())
    fitted = tuning is None and spread > 0
    if tuning is None:
        tuning = min(max(float((v * f * z).sum()) / spread, 0.0), 1.0) if spread > 0 else 0.0
    value = m + tuning * (float(predictions.mean()) - float((w * prediction).sum()) / total)

    leverage = w / total + (v * f**2 / spread if fitted else 0)
    e = (z - tuning * f) / (1 - np.minimum(leverage, _LARGEST_LEVERAGE))
    seen = float((v * e**2).sum()) / total**2
    # Of a pair that counts not, the residual is known before it is audited.
    p = expected(y, prediction, d, m)
    model = np.where(d > 0, p * (1 - p) / share**2 + ((p - m) / share - tuning * f) ** 2, (tuning * f) ** 2)
    matters = v / v.mean() if v.sum() > 0 else np.ones(len(v))
    rarer = min(float((matters * d * y).sum()), float((matters * d * (1 - y)).sum()))
    variance = (rarer * seen + float((v * model).sum()) / total**2) / (rarer + 1)
    effective = total**2 / float((w**2).sum())
    if target == "all":
        variance += float((w * z**2).sum()) / total / len(predictions)
        evenly_n = effective * share
    else:
        evenly_n = total**2 / float(v.sum()) * share if v.sum() > 0 else math.inf
    quantile = _student(confidence, effective * share - 1 - fitted)
    low, high = _interval(value, variance, evenly_n, quantile)
    return Mean(min(max(value, 0.0), 1.0), math.sqrt(variance), low, high, tuning, int(d.sum()))


def hajek_mean(
    y: Floats, chance: Floats, judged: int, counts: Bools | None = None, target: Target = "judged"
) -> Mean | None:
    """The weighted mean of people alone, with the same variance and interval; None where no pair counts. judged: N."""
    return corrected_mean(y, chance, np.zeros(len(y)), np.zeros(judged), counts, target)


def _interval(value: float, variance: float, evenly_n: float, quantile: float) -> tuple[float, float]:
    """`evenly_n`: the effective sample size where the residuals have no spread, so that V says nothing."""
    p = min(max(value, 0.0), 1.0)
    n = p * (1 - p) / variance if variance > 0 else 0.0
    if n <= 0:
        n = evenly_n
    return (p, p) if math.isinf(n) else wilson(p * n, n, quantile)


def _student(confidence: float, freedom: float) -> float:
    from scipy.stats import t  # imported where it is used: it takes half a second and 60 MB

    return float(t.ppf(0.5 + confidence / 2, max(freedom, 1.0)))
