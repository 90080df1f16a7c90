"""Populations of judged pairs with a known truth, on which audits are simulated.

A pair has `right`, whether the judge is right (or, for a win rate, who wins: 1, 1/2, 0), `prediction`, what the panel
says of that, and `doubt`, which steers the audit. In the simulated ones the judge is right with a probability c of a
Beta distribution around its accuracy, wide where `sharpness` is small, and the panel's confidence is

    calibrated     c itself
    overconfident  c with its log-odds times 2.5: it is wrong on pairs that look safe, and are hardly audited
    timid          c with its log-odds times 0.4
    blind          nothing to do with c
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import expit, logit

Array = npt.NDArray[np.float64]

KINDS = ("calibrated", "overconfident", "timid", "blind")


@dataclass(frozen=True)
class Population:
    """[N] each; `accuracy`: the probability behind `right`, nan where it is not known."""

    right: Array
    prediction: Array
    doubt: Array
    accuracy: float = float("nan")


def judged(kind: str, accuracy: float, pairs: int, rng: np.random.Generator, sharpness: float = 8.0) -> Population:
    """A judge's answers on `pairs` pairs."""
    c = rng.beta(sharpness * accuracy, sharpness * (1 - accuracy), pairs).clip(1e-6, 1 - 1e-6)
    steep = {"calibrated": 1.0, "overconfident": 2.5, "timid": 0.4}
    f = expit(steep[kind] * logit(c)) if kind in steep else rng.beta(4, 2, pairs)
    right = (rng.random(pairs) < c).astype(np.float64)
    return Population(right, f, np.minimum(f, 1 - f), accuracy)


def contested(bias: float, wins: float, pairs: int, rng: np.random.Generator) -> Population:
    """Wins of one side, a tenth of the pairs ties; the panel's log-odds are off by `bias` towards that side."""
    c = rng.beta(3 * wins, 3 * (1 - wins), pairs).clip(1e-6, 1 - 1e-6)
    outcome = (rng.random(pairs) < c).astype(np.float64)
    outcome = np.where(rng.random(pairs) < 0.1, 0.5, outcome)
    f = expit(logit(c) + bias)
    return Population(outcome, f, np.minimum(f, 1 - f), 0.9 * wins + 0.05)
