"""How far judges agree with each other. Agreement is no accuracy: judges share their errors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from itertools import combinations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from judges.reports import Figures
from judges.reports.accounting import split_by_judge
from judges.reports.proportions import RESAMPLES, bounds, share
from judges.reports.winners import SIDES, decided

Counts = npt.NDArray[np.int64]


def agreement(votes: pa.Table) -> list[Figures]:
    """For each two judges, how often they agree; see `agree`. A judge's winner is that of its order-averaged p_a."""
    winners = {name: decided(own) for name, own in split_by_judge(votes).items()}
    return [{"judges": [one, two], **agree(winners[one], winners[two])} for one, two in combinations(winners, 2)]


def agree(one: Mapping[str, str], two: Mapping[str, str]) -> Figures:
    """{"agreement", "low", "high", "kappa", "kappa_low", "kappa_high", "pairs"} of two judges' winners, a or b, on the
    pairs that both decided.

    The interval of the agreement is Wilson's. `kappa` is Cohen's (1960, A Coefficient of Agreement for Nominal Scales):
    (agreement - chance) / (1 - chance), with the chance that two judges agree who choose a as often as these do; None
    where they could do nothing else. Its interval is the percentile bootstrap over pairs, from a fixed seed.
    """
    cells = Counter((one[pair], two[pair]) for pair in one.keys() & two.keys())
    counts = np.array([cells[first, second] for first in SIDES for second in SIDES], dtype=np.int64)
    n, same = int(counts.sum()), int(counts[0] + counts[3])
    return {"agreement": share(same, n), **bounds(same, n), **_kappa_with_interval(counts), "pairs": n}


def _kappa_with_interval(counts: Counts) -> Figures:
    figures: Figures = {"kappa": None, "kappa_low": None, "kappa_high": None}
    n = int(counts.sum())
    value = float(_kappa(counts))
    if np.isnan(value):
        return figures
    # Pairs drawn with replacement are draws from the four counts.
    resamples = _kappa(np.random.default_rng(0).multinomial(n, counts / n, RESAMPLES))
    low, high = np.nanquantile(resamples, [0.025, 0.975]).tolist()
    return {"kappa": value, "kappa_low": low, "kappa_high": high}


def _kappa(counts: Counts) -> npt.NDArray[np.float64]:
    """[...] of counts [..., 4], how often (a, a), (a, b), (b, a) and (b, b); nan where agreement was certain.

    By hand, because all resamples are then done at once: scikit-learn's `cohen_kappa_score`, which the tests compare it
    with, takes them one by one, a second for each two judges.
    """
    aa, ab, ba, bb = np.moveaxis(counts, -1, 0)
    n = counts.sum(axis=-1)
    chance = (aa + ab) * (aa + ba) + (ba + bb) * (ab + bb)
    certain = n * n == chance
    return np.where(certain, np.nan, ((aa + bb) * n - chance) / np.where(certain, 1, n * n - chance))
