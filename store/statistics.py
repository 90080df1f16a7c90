"""Small statistics that several rooms need: numbers in, numbers out, nothing but the standard library.

Imported everywhere, also by programs that only wait for people: scipy, which weighs 60 MB, is left to those who need
it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

Z_95 = NormalDist().inv_cdf(0.975)

MIN_RELIABILITY, MAX_RELIABILITY = 0.55, 0.99
"""Between these a reliability counts. Below, a person who stays in force would count for nothing, and a lone verdict of
theirs for no label; above, a lucky run would outvote any number of others."""


def wilson(successes: float, n: float, quantile: float = Z_95) -> tuple[float, float]:
    """The interval of a proportion (Wilson 1927), in 0..1. Both may be fractions: an effective sample size, say.

    `quantile`: how many standard errors; the default gives 95 %. n must be positive.
    """
    p, q2 = successes / n, quantile * quantile
    middle = (p + q2 / (2 * n)) / (1 + q2 / n)
    half = quantile / (1 + q2 / n) * math.sqrt(max(p * (1 - p), 0) / n + q2 / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)


def newcombe(first: float, m: float, second: float, n: float) -> tuple[float, float, float]:
    """The difference first/m - second/n of two independent proportions, with its 95 % hybrid score interval.

    Newcombe 1998, Interval Estimation for the Difference Between Independent Proportions, method 10. m, n positive.
    """
    p, q = first / m, second / n
    (p_low, p_high), (q_low, q_high) = wilson(first, m), wilson(second, n)
    down, up = math.hypot(p - p_low, q_high - q), math.hypot(p_high - p, q - q_low)
    return p - q, max(-1.0, p - q - down), min(1.0, p - q + up)


def holm(p_values: Sequence[float], level: float) -> list[bool]:
    """Which hypotheses fall when any false alarm among them all may happen with probability `level` at most.

    Step down: the smallest p-value is compared with level / m, the next with level / (m - 1), until one stands (Holm
    1979, A Simple Sequentially Rejective Multiple Test Procedure). The tests may depend on each other.
    """
    fallen = [False] * len(p_values)
    for rank, at in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        if p_values[at] > level / (len(p_values) - rank):
            break
        fallen[at] = True
    return fallen


def vote_weight(reliability: float) -> float:
    """What one person's vote weighs: ln(q / (1 - q)), for a probability q to be right.

    With these weights the weighted majority of independent people is right most often (Nitzan and Paroush 1982; Shapley
    and Grofman 1984). q is kept within MIN_RELIABILITY..MAX_RELIABILITY.
    """
    q = min(max(reliability, MIN_RELIABILITY), MAX_RELIABILITY)
    return math.log(q / (1 - q))


def weighted_share(values: Sequence[float], reliabilities: Sequence[float]) -> float:
    """sum w v / sum w in 0..1, for what people said of one pair: v = 1 for a, 0 for b, 1/2 for a tie; w: `vote_weight`.

    It is above 1/2 exactly where the weighted majority is for a. It is the share of people, by weight, and no
    posterior: one verdict alone is 1 or 0, because a verdict overrides; where people differ it lies between, and for
    equal reliabilities it is their mean. Raises ValueError without values.
    """
    if not values:
        raise ValueError("weighted_share needs at least one value")
    if len(set(values)) == 1:
        return values[0]
    if len(set(reliabilities)) == 1:
        return sum(values) / len(values)  # an even split is 1/2 to the last bit
    weights = [vote_weight(q) for q in reliabilities]
    total = math.fsum(w * v for w, v in zip(weights, values, strict=True))
    return total / math.fsum(weights)
