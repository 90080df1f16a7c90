"""A judge's winner of a pair: that of the mean of its orders."""

from __future__ import annotations

from collections import defaultdict

import pyarrow as pa
import pyarrow.compute as pc

from judges.aggregation.mean import order_averaged
from judges.requests import ORDERS

SIDES = ("a", "b")


def winner(p_a: float | None) -> str | None:
    """a, b, or None at exactly one half and where there is no probability."""
    return None if p_a is None or p_a == 0.5 else "a" if p_a > 0.5 else "b"


def preferences(votes: pa.Table) -> dict[str, float]:
    """pair_id -> order-averaged p_a of one judge's valid votes; pairs without any are absent."""
    averaged = order_averaged(votes)
    return dict(zip(averaged["pair_id"].to_pylist(), averaged["p_a"].to_pylist(), strict=True))


def decided(votes: pa.Table) -> dict[str, str]:
    """pair_id -> winner of the pairs that a judge decided."""
    return {pair: found for pair, p_a in preferences(votes).items() if (found := winner(p_a)) is not None}


def in_both_orders(votes: pa.Table) -> dict[str, tuple[str, str]]:
    """pair_id -> winners in the orders ab and ba, of the pairs of one judge that have a winner in both."""
    found: dict[str, dict[str, str]] = defaultdict(dict)
    with_winner = votes.filter(pc.is_valid(votes["winner"]))
    for row in with_winner.select(["pair_id", "order", "winner"]).to_pylist():
        found[row["pair_id"]][row["order"]] = row["winner"]
    return {pair: (one["ab"], one["ba"]) for pair, one in found.items() if len(one) == len(ORDERS)}
