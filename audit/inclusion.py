"""Inclusion probabilities: the chance of each judged pair to be audited, fixed before anything is drawn.

    pi_i = min(1, k q_i),   q_i = eps / N + (1 - eps) u_i^g / sum_j u_j^g,   k such that sum_i pi_i = n

A group g may have a cap c_g on the number expected of it, sum_{i in g} pi_i <= c_g. It is part of the probabilities, so
nothing is thrown away after the draw: within a group that reaches its cap pi_i = min(1, k_g q_i) with its own k_g, and
the others get what it leaves, in proportion. A cap goes before the budget and before the uniform share.

u is the estimated judge error, eps >= 0.3 the uniform share. Without caps k = n; with caps, what the certain pairs
leave over goes to the others in proportion. The uniform share keeps weights 1 / pi_i bounded by N / (eps n).

g decides between two uses of a verdict. g = 1/2, the root of the error's second moment, minimises the variance of
estimates (Zrnic and Candes, Active Statistical Inference, arXiv 2403.03208, section 4); a larger g puts people where
labels are wrong, which they then put right. On simulated panels (`benchmarks/labels.py --part placing`), a fifth of the
pairs audited, g = 2 has 62-72 % of what g = 6 has over 1/2, for intervals 7-13 % wider instead of 26-35 %.

Uniform and targeted parts are two independent Poisson draws. The uniform one takes every pair with the same
pi_u = min_i pi_i (>= eps n / N without caps of groups), the largest uniform sample that fits; the targeted one makes up
the rest:

    pi_i = 1 - (1 - pi_u) (1 - pi_t,i)   <=>   pi_t,i = (pi_i - pi_u) / (1 - pi_u)

So what the first drew is a true uniform sample of all pairs, fit for a Wilson interval, whatever the second does; and
the inclusion probability of the union is exactly pi_i. (Splitting one mixture draw by a coin afterwards would give the
same union, but no pair could then be known to be in both.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from audit.opinions import Floats

EVERY_OTHER = "*"
"""The name that caps each group without a cap of its own."""


@dataclass(frozen=True)
class Inclusion:
    """`total`: [N] pi_i. `uniform`: pi_u, one number for all. `targeted`: [N] pi_t,i. All in 0..1."""

    total: Floats
    uniform: float
    targeted: Floats


def inclusion(
    error: Floats,
    budget: float,
    uniform_fraction: float,
    groups: Sequence[str] = (),
    caps: Mapping[str, float] | None = None,
    sharpness: float = 0.5,
) -> Inclusion:
    """`error`: [N] estimated judge errors u >= 0. `budget`: n, the expected number drawn; N or more draws all.
    `sharpness`: g > 0.

    `groups`: [N] names, looked at only where there are `caps`: most pairs expected of a group, by name or EVERY_OTHER.
    """
    if len(error) == 0:
        return Inclusion(np.zeros(0), 0.0, np.zeros(0))
    shares = _shares(error**sharpness, uniform_fraction)
    total = _cap_groups(shares, budget, np.array(groups), caps) if caps else _cap(shares, budget)
    uniform = float(total.min())
    targeted = np.zeros_like(total) if uniform >= 1 else (total - uniform) / (1 - uniform)
    return Inclusion(total, uniform, targeted)


def _shares(size: Floats, uniform_fraction: float) -> Floats:
    """[N] q_i > 0 with sum 1."""
    flat: Floats = np.full(len(size), 1 / len(size))
    if size.sum() == 0:
        return flat
    shares: Floats = uniform_fraction * flat + (1 - uniform_fraction) * size / size.sum()
    return shares


def _cap_groups(share: Floats, budget: float, groups: NDArray[np.str_], caps: Mapping[str, float]) -> Floats:
    """As `_cap`, with every group's sum at most its cap. What a capped group leaves only ever raises the others, so a
    group once at its cap stays there, and at most as many rounds are needed as there are groups."""
    most = {name: caps.get(name, caps.get(EVERY_OTHER, np.inf)) for name in np.unique(groups)}
    total = np.zeros_like(share)
    free = np.ones(len(share), dtype=np.bool_)
    while free.any():
        total[free] = _cap(share[free], budget)
        over = [name for name, cap in most.items() if total[free & (groups == name)].sum() > cap]
        if not over:
            break
        for name in over:
            members = groups == name
            total[members] = _cap(share[members], most.pop(name))
            budget -= total[members].sum()
            free &= ~members
    return total


def _cap(share: Floats, budget: float) -> Floats:
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
