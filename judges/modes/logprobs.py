"""Preferences from log-probabilities of answer tokens: shared arithmetic of the modes that read them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from store.schemas import Status


def shares(logprobs: Sequence[float]) -> tuple[list[float], float]:
    """The options' probabilities given that one of them is the answer, and their covered mass in 0..1.

    p_i = P(i) / sum_j P(j), as in RLAIF (Lee et al. 2023, section 2.1); the denominator is the covered mass. A
    log-probability may be -inf. Without any mass the shares are empty.
    """
    highest = max(logprobs)
    if highest == -math.inf:
        return [], 0.0
    weights = [math.exp(logprob - highest) for logprob in logprobs]
    total = math.fsum(weights)
    return [weight / total for weight in weights], min(1.0, math.exp(highest) * total)


def preference(first: float, second: float, min_mass: float) -> tuple[Status, float | None, float]:
    """Status, p_first and covered mass. Less than `min_mass` is an abstention; equal sides are a tie."""
    found, mass = shares((first, second))
    if not found or mass < min_mass:
        return Status.ABSTAIN, None, mass
    return (Status.TIE if found[0] == 0.5 else Status.SCORED), found[0], mass
