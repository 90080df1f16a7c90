"""Mean of order-averaged probabilities: the soft label of RLAIF (Lee et al. 2023, section 2.1), over several judges.

For pair i and judge j with valid orders O(i, j): p_ij = mean over o in O(i, j) of p_a, and p_i = mean over j of p_ij.
Averaging over the orders first cancels a judge's preference for a slot, and gives each judge the same weight however
many of its orders are valid. Precondition: each judge has at most one vote a pair and order (`checked_votes`).
"""

from __future__ import annotations

from typing import Self

import pyarrow as pa
import pyarrow.compute as pc

from judges.aggregation.labels import is_valid, labels_of
from store.schemas import Status


class MeanPreference:
    """See the module. Learns nothing."""

    def fit(self, votes: pa.Table, gold: pa.Table | None = None) -> Self:
        return self

    def predict(self, votes: pa.Table) -> pa.Table:
        """LABELS of the pairs with at least one valid vote."""
        by_pair = order_averaged(votes).group_by("pair_id", use_threads=False).aggregate([("p_a", "mean")])
        return labels_of(by_pair.rename_columns({"p_a_mean": "p_a"}), votes)


def order_averaged(votes: pa.Table) -> pa.Table:
    """Columns pair_id, judge, fingerprint, p_a (mean over the valid orders, 0..1) and orders (1 or 2)."""
    valid = votes.filter(is_valid(votes))
    p_a = pc.if_else(pc.equal(valid["status"], str(Status.TIE)), pa.scalar(0.5), valid["p_a"])
    table = valid.select(["pair_id", "judge", "fingerprint"]).append_column("p_a", p_a)
    # One thread: the order of summation, and so the last bit, must not depend on the machine.
    grouped = table.group_by(["pair_id", "judge", "fingerprint"], use_threads=False)
    averaged = grouped.aggregate([("p_a", "mean"), ("p_a", "count")])
    return averaged.rename_columns({"p_a_mean": "p_a", "p_a_count": "orders"}).sort_by(
        [("pair_id", "ascending"), ("judge", "ascending"), ("fingerprint", "ascending")]
    )


def soft_preferences(votes: pa.Table) -> dict[str, float]:
    """pair_id -> probability that a is better, as `MeanPreference`; pairs without a valid vote are absent."""
    by_pair = order_averaged(votes).group_by("pair_id", use_threads=False).aggregate([("p_a", "mean")])
    return dict(zip(by_pair["pair_id"].to_pylist(), by_pair["p_a_mean"].to_pylist(), strict=True))
