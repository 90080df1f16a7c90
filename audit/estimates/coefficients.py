"""How far people (or judges) agree beyond chance: Cohen's and Fleiss' kappa, Krippendorff's alpha, Gwet's AC1.

    cohen   two raters, on the items that both rated (scikit-learn)
    fleiss  three or more, on the items that all of the most usual number of raters rated (statsmodels)
    alpha   any number, with gaps, nominal: categories have no order (krippendorff)
    ac1     any number, with gaps; does not collapse where nearly everybody says the same (Gwet 2008, below)

All are (observed - chance) / (1 - chance): 1 is full agreement, 0 what chance gives, below 0 less than that. They
differ in what they call chance. Under skew kappa and alpha can be near 0 while people nearly always agree: read AC1
with them.

Gwet 2008, Computing Inter-Rater Reliability and Its Variance in the Presence of High Agreement, for r_i raters of item
i, r_iq of them in category q, Q categories:

    observed = mean over items with r_i >= 2 of  sum_q r_iq (r_iq - 1) / (r_i (r_i - 1))
    chance   = sum_q s_q (1 - s_q) / (Q - 1),    s_q = mean over all items of r_iq / r_i

Agreement is no accuracy: who shares an error agrees. Intervals are percentile bootstraps over whole items (Efron 1979;
for kappa Klar et al. 2002), from a fixed seed. Needs the extra `labels`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from audit.opinions import Floats
from store.errors import RlaifError, UsageError

RESAMPLES = 1000

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Coefficient:
    """`value` with its 95 % interval; None where it is not defined, as when nobody ever said anything else. `items`:
    those it is over. `undefined`: resamples that gave no value and have no part in the interval."""

    value: float | None
    low: float | None
    high: float | None
    items: int
    undefined: int


@dataclass(frozen=True)
class Agreement:
    """`raters`: all. `items`: those with at least two raters. `observed`: share of pairs of answers on one item
    that are the same, mean over items. `cohen`: None unless there are two raters; `fleiss`: None if there are."""

    raters: int
    items: int
    observed: float | None
    cohen: Coefficient | None
    fleiss: Coefficient | None
    alpha: Coefficient
    ac1: Coefficient

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def agreement(
    ratings: Iterable[tuple[str, str, str]], categories: Iterable[str] | None = None, resamples: int = RESAMPLES
) -> Agreement:
    """`ratings`: (rater, item, category). `categories`: all that could be said; those that were, by default.

    Items with one rater count in AC1's chance and nowhere else. Raises UsageError for two ratings of one rater on one
    item and for a category that is not among the given, RlaifError where the extra `labels` is not installed.
    """
    of_item: dict[str, dict[str, str]] = defaultdict(dict)
    for rater, item, category in ratings:
        if of_item[item].setdefault(rater, category) != category:
            raise UsageError(f"Rater {rater!r} rated item {item!r} twice, differently: keep the one in force.")
    items = [given for _, given in sorted(of_item.items())]
    said = {category for given in items for category in given.values()}
    names = sorted(said if categories is None else set(categories))
    if odd := sorted(said - set(names)):
        raise UsageError(f"The ratings have the category {odd[0]!r}: it must be one of {', '.join(names)}.")
    place = {name: at for at, name in enumerate(names)}
    raters = sorted({rater for given in items for rater in given})
    counts = np.zeros((len(items), max(len(names), 1)), dtype=np.int64)
    for row, given in enumerate(items):
        for category in given.values():
            counts[row, place[category]] += 1
    shared = counts[counts.sum(axis=1) > 1]
    two = len(raters) == 2
    both = [[place[given[rater]] for rater in raters] for given in items if len(given) == 2] if two else []
    return Agreement(
        raters=len(raters),
        items=len(shared),
        observed=float(_observed(shared).mean()) if len(shared) else None,
        cohen=bootstrap(np.array(both, dtype=np.int64).reshape(-1, 2), _cohen(), resamples) if two else None,
        fleiss=None if two else bootstrap(_usual(shared), _fleiss(), resamples),
        alpha=bootstrap(shared, _alpha(), resamples),
        ac1=bootstrap(counts, gwet_ac1, resamples),
    )


def gwet_ac1(counts: Counts) -> float:
    """counts: [items, categories], one rating an item or more; NaN for a single category or no item with two."""
    shared = counts[counts.sum(axis=1) > 1]
    if counts.shape[1] < 2 or not len(shared):
        return np.nan
    share = (counts / counts.sum(axis=1, keepdims=True)).mean(axis=0)
    chance = float((share * (1 - share)).sum()) / (counts.shape[1] - 1)
    return float((_observed(shared).mean() - chance) / (1 - chance))


def _observed(counts: Counts) -> Floats:
    r = counts.sum(axis=1)
    return np.asarray((counts * (counts - 1)).sum(axis=1) / (r * (r - 1)), dtype=np.float64)


def _usual(counts: Counts) -> Counts:
    """The items with the most usual number of raters, the larger of two as usual ones: Fleiss' kappa has no gaps."""
    r = counts.sum(axis=1)
    if not len(r):
        return counts
    number = np.bincount(r)
    return np.asarray(counts[r == len(number) - 1 - int(number[::-1].argmax())])


def _cohen() -> Callable[[Counts], float]:
    try:
        from sklearn.metrics import cohen_kappa_score
    except ImportError as error:
        raise _missing() from error

    def kappa(both: Counts) -> float:
        # With one category there is no chance to disagree; scikit-learn warns and gives NaN.
        return float(cohen_kappa_score(both[:, 0], both[:, 1])) if len(np.unique(both)) > 1 else np.nan

    return kappa


def _fleiss() -> Callable[[Counts], float]:
    try:
        from statsmodels.stats.inter_rater import fleiss_kappa
    except ImportError as error:
        raise _missing() from error
    return lambda counts: float(fleiss_kappa(counts)) if (counts.sum(axis=0) > 0).sum() > 1 else np.nan


def _alpha() -> Callable[[Counts], float]:
    try:
        import krippendorff
    except ImportError as error:
        raise _missing() from error

    def alpha(counts: Counts) -> float:
        # The library refuses a domain of one value. Its default level is interval, which categories have not.
        if (counts.sum(axis=0) > 0).sum() < 2:
            return np.nan
        return float(krippendorff.alpha(value_counts=counts, level_of_measurement="nominal"))

    return alpha


def _missing() -> RlaifError:
    return RlaifError(
        "Agreement coefficients need krippendorff, scikit-learn and statsmodels: pip install rlaif[labels]."
    )


def bootstrap(items: Counts, statistic: Callable[[Counts], float], resamples: int = RESAMPLES) -> Coefficient:
    """`items`: [items, ...], drawn whole with replacement. `statistic`: NaN where it is not defined."""
    n = len(items)
    value = statistic(items) if n else np.nan
    if np.isnan(value):
        return Coefficient(None, None, None, n, 0)
    rng = np.random.default_rng(0)
    found = np.array([statistic(items[rng.integers(0, n, n)]) for _ in range(resamples)])
    defined = found[~np.isnan(found)]
    low, high = np.quantile(defined, [0.025, 0.975]).tolist() if n > 1 and len(defined) else (None, None)
    return Coefficient(float(value), low, high, n, resamples - len(defined))
