"""Weights by calibrated skill: each judge counts by the log-odds of its own accuracy on gold, apart from the others.

With v_ij = 2 p_ij - 1 in -1..1 for the order-averaged probability p_ij of judge j on pair i, and y as 1, 0 or 1/2,

    right_j = sum_gold [y p + (1 - y) (1 - p)]       expected number of right answers
    q_j     = (right_j + 2) / (n_j + 3)              accuracy, smoothed by three pairs of which two are right
    p_i     = sigmoid(sum_j log(q_j / (1 - q_j)) v_ij)

Optimal for judges whose errors are independent given the truth (Nitzan and Paroush 1982, Optimal decision rules in
uncertain dichotomous choice situations). They are not: errors that judges share are counted as often as there are
judges, so the winner is often right and the probability too sure of itself. Here to compare `stacked` with; without
gold all judges weigh log 2.
"""

from __future__ import annotations

from typing import Self

import numpy as np
import pyarrow as pa

from judges.aggregation.gold import aligned, known_answers
from judges.aggregation.labels import labels_of
from judges.aggregation.slots import Array, SlotVotes, over_orders, slot_votes

PRIOR_RIGHT, PRIOR_PAIRS = 2.0, 3.0


class SkillWeighted:
    """See the module. `weights`: fingerprint -> log-odds of its accuracy; `gold_pairs`: on how many pairs."""

    def __init__(self) -> None:
        self.weights: dict[str, float] = {}
        self.gold_pairs = 0

    def fit(self, votes: pa.Table, gold: pa.Table | None = None) -> Self:
        """Learn from `votes` on the pairs of `gold` (pair_id and winner or p_a; see `gold.known_answers`)."""
        if gold is None:
            return self
        found = slot_votes(votes)
        rows, y = aligned(found.pairs, known_answers(gold))
        lean = _lean(found)[rows]
        self.gold_pairs = len(rows)
        known = ~np.isnan(lean)
        right = np.where(known, (1 + np.nan_to_num(lean) * (2 * y - 1)[:, None]) / 2, 0.0).sum(axis=0)
        q = (right + PRIOR_RIGHT) / (known.sum(axis=0) + PRIOR_PAIRS)
        self.weights = dict(zip(found.judges, np.log(q / (1 - q)).tolist(), strict=True))
        return self

    def predict(self, votes: pa.Table) -> pa.Table:
        """LABELS of the pairs with at least one valid vote. A judge that had no gold has the prior's weight."""
        found = slot_votes(votes)
        prior = float(np.log(PRIOR_RIGHT / (PRIOR_PAIRS - PRIOR_RIGHT)))
        w = np.array([self.weights.get(judge, prior) for judge in found.judges])
        z = np.nan_to_num(_lean(found)) @ w
        return labels_of(pa.table({"pair_id": found.pairs, "p_a": (1 + np.tanh(z / 2)) / 2}), votes)


def _lean(votes: SlotVotes) -> Array:
    """v [pairs, judges] = 2 p - 1 averaged over the valid orders, exactly 0 for opposite votes; nan without any."""
    return over_orders(np.tanh(votes.log_odds / 2))
