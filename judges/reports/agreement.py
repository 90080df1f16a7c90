"""How far judges agree with each other. Agreement is no accuracy: judges share their errors."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations

import pyarrow as pa

from judges.reports import Figures
from judges.reports.accounting import split_by_judge
from judges.reports.proportions import bounds, share
from judges.reports.winners import decided


def agreement(votes: pa.Table) -> list[Figures]:
    """For each two judges, how often they agree; see `agree`. A judge's winner is that of its order-averaged p_a."""
    winners = {name: decided(own) for name, own in split_by_judge(votes).items()}
    return [{"judges": [one, two], **agree(winners[one], winners[two])} for one, two in combinations(winners, 2)]


def agree(one: Mapping[str, str], two: Mapping[str, str]) -> Figures:
    """{"agreement", "low", "high", "kappa", "pairs"} of two judges' winners, a or b, on the pairs that both decided.

    The interval is Wilson's. `kappa` is Cohen's (1960): (agreement - chance) / (1 - chance), with the chance that two
    judges agree who choose a as often as these do; None where they could do nothing else.
    """
    both = sorted(one.keys() & two.keys())
    same = sum(one[pair] == two[pair] for pair in both)
    return {
        "agreement": share(same, len(both)),
        **bounds(same, len(both)),
        "kappa": _kappa([(one[pair], two[pair]) for pair in both]),
        "pairs": len(both),
    }


def _kappa(chosen: list[tuple[str, str]]) -> float | None:
    n = len(chosen)
    if not n:
        return None
    observed = sum(x == y for x, y in chosen) / n
    sides = {side for pair in chosen for side in pair}
    chance = sum(sum(x == s for x, _ in chosen) * sum(y == s for _, y in chosen) for s in sides) / n**2
    return (observed - chance) / (1 - chance) if chance < 1 else None
