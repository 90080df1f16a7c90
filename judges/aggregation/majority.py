"""Majority of single votes, ties kept: p_a is 1 where more votes chose a, 0 where more chose b, else 0.5.

Each valid vote (one judge, one order) counts once; a tie counts for neither side. A baseline: judges share their
errors, so that the majority can be worse than its best member (on LLMBar 55.4 %, a tie being no win, against 84.5 %).
"""

from __future__ import annotations

from typing import Self

import pyarrow as pa
import pyarrow.compute as pc

from judges.aggregation.labels import LABELS, labels_of
from judges.aggregation.mean import order_averaged


class MajorityVote:
    """See the module. Learns nothing."""

    def fit(self, votes: pa.Table, gold: pa.Table | None = None) -> Self:
        return self

    def predict(self, votes: pa.Table) -> pa.Table:
        """LABELS of the pairs with at least one valid vote."""
        pairs = order_averaged(votes).group_by("pair_id", use_threads=False).aggregate([("p_a", "mean")])
        labels = labels_of(pairs.rename_columns({"p_a_mean": "p_a"}), votes)
        lead = pc.sign(pc.subtract(labels["votes_a"], labels["votes_b"]))
        p_a = pc.divide(pc.add(lead, 1).cast(pa.float64()), 2.0)
        return labels.set_column(labels.schema.get_field_index("p_a"), LABELS.schema.field("p_a"), p_a)
