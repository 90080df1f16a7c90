"""Inclusion probabilities: the chance of each judged pair to be audited, fixed before anything is drawn.

    pi_i = min(1, k q_i),   q_i = eps / N + (1 - eps) sqrt(u_i) / sum_j sqrt(u_j),   k such that sum_i pi_i = n

u is the estimated judge error, eps >= 0.3 the uniform share. Without caps k = n; with caps, what the certain pairs
leave over goes to the others in proportion. Sampling in proportion to the root of the error's second moment minimises
the variance of the estimate: Zrnic and Candes, Active Statistical Inference (arXiv 2403.03208), section 4; the uniform
share keeps weights 1 / pi_i bounded by N / (eps n).

Uniform and targeted parts are two independent Poisson draws. The uniform one takes every pair with the same
pi_u = min_i pi_i >= eps n / N, the largest uniform sample that fits; the targeted one makes up the rest:

    pi_i = 1 - (1 - pi_u) (1 - pi_t,i)   <=>   pi_t,i = (pi_i - pi_u) / (1 - pi_u)

So what the first drew is a true uniform sample of all pairs, fit for a Wilson interval, whatever the second does; and
the inclusion probability of the union is exactly pi_i. (Splitting one mixture draw by a coin afterwards would give the
same union, but no pair could then be known to be in both.)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from audit.opinions import Floats


@dataclass(frozen=True)
class Inclusion:
    """`total`: [N] pi_i. `uniform`: pi_u, one number for all. `targeted`: [N] pi_t,i. All in 0..1."""

    total: Floats
    uniform: float
    targeted: Floats


def inclusion(error: Floats, budget: int, uniform_fraction: float) -> Inclusion:
    """`error`: [N] estimated judge errors u >= 0. `budget`: n, the expected number drawn; N or more draws all."""
    if len(error) == 0:
        return Inclusion(np.zeros(0), 0.0, np.zeros(0))
    total = _cap(_shares(error, uniform_fraction), budget)
    uniform = float(total.min())
    targeted = np.zeros_like(total) if uniform >= 1 else (total - uniform) / (1 - uniform)
    return Inclusion(total, uniform, targeted)


def _shares(error: Floats, uniform_fraction: float) -> Floats:
    """[N] q_i > 0 with sum 1."""
    root: Floats = np.sqrt(error)
    flat: Floats = np.full(len(error), 1 / len(error))
    if root.sum() == 0:
        return flat
    shares: Floats = uniform_fraction * flat + (1 - uniform_fraction) * root / root.sum()
    return shares


def _cap(share: Floats, budget: int) -> Floats:
    """min(1, k share), summing to min(budget, N)."""
    if budget >= len(share):
        return np.ones_like(share)
    certain = np.zeros(len(share), dtype=np.bool_)
    while True:
        scaled: Floats = share * (budget - certain.sum()) / share[~certain].sum()
        new = ~certain & (scaled >= 1)
        if not new.any():
            result: Floats = np.where(certain, 1.0, scaled)
            return result
        certain |= new
