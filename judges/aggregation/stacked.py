"""Gold-anchored weights: a ridge logistic stack of the judges, fitted on pairs whose winner is known.

For pair i and judge j let x_ij be the mean over its valid orders of logit(p_a), with p_a clipped to [0.01, 0.99]. A
judge's preference for a slot adds a constant to the one order and takes it from the other, so it cancels in x_ij. Then

    p_i = sigmoid(sum_j w_j x_ij),   w = argmin_{w >= 0}  sum_gold CE(y_i, p_i) + (ridge / 2) sum_j (w_j - 1/J)^2

with y = 1, 0 or 1/2 for a tie. Without intercept the label is the same, mirrored, when a and b change places. The prior
is the plain mean of log-odds: with no gold that is what comes out, and with more gold the judges that earn more weigh
more. Errors that judges share are not counted twice, as they would be under independent confusions. A judge without a
valid vote on a pair adds no evidence there. Stacking: Wolpert 1992, Stacked Generalization; weights not below zero, so
that none is spent on setting two like judges against each other: Breiman 1996, Stacked Regressions.
"""

from __future__ import annotations

from typing import Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from scipy.optimize import minimize
from scipy.special import expit

from judges.aggregation.labels import is_valid, labels_of

Array = npt.NDArray[np.float64]

CLIP = 0.01
RIDGE = 1.0


class StackedJudges:
    """See the module. `weights`: fingerprint -> w; `gold_pairs`: how many it was fitted on."""

    def __init__(self, ridge: float = RIDGE) -> None:
        self.ridge = ridge
        self.weights: dict[str, float] = {}
        self.gold_pairs = 0

    def fit(self, votes: pa.Table, gold: pa.Table | None = None) -> Self:
        """Learn from `votes` on the pairs of `gold` (GOLD: a, b or tie). Without gold, equal weights."""
        if gold is None:
            return self
        target = {"a": 1.0, "b": 0.0, "tie": 0.5}
        winners = dict(zip(gold["pair_id"].to_pylist(), gold["winner"].to_pylist(), strict=True))
        known = votes.filter(pc.is_in(votes["pair_id"], value_set=pa.array(list(winners), pa.string())))
        pairs, judges, x = log_odds(known)
        if not judges:
            return self
        y = np.array([target[winners[pair]] for pair in pairs])
        self.gold_pairs = len(pairs)
        self.weights = dict(zip(judges, fit_weights(x, y, self.ridge).tolist(), strict=True))
        return self

    def predict(self, votes: pa.Table) -> pa.Table:
        """LABELS of the pairs with at least one valid vote. A judge that had no gold keeps the prior's weight."""
        pairs, judges, x = log_odds(votes)
        prior = 1.0 / max(1, len(judges))
        w = np.array([self.weights.get(judge, prior) for judge in judges])
        p_a = expit(x @ w)
        return labels_of(pa.table({"pair_id": pa.array(pairs, pa.string()), "p_a": pa.array(p_a)}), votes)


def log_odds(votes: pa.Table) -> tuple[list[str], list[str], Array]:
    """Sorted pair ids and fingerprints, and x [pairs, judges]: mean log-odds over a judge's valid orders, else 0."""
    valid = votes.filter(is_valid(votes))
    p = np.clip(pc.fill_null(valid["p_a"], 0.5).to_numpy(), CLIP, 1 - CLIP)
    pair_of = pc.dictionary_encode(valid["pair_id"].combine_chunks())
    judge_of = pc.dictionary_encode(valid["fingerprint"].combine_chunks())
    shape = (len(pair_of.dictionary), len(judge_of.dictionary))
    where = (pair_of.indices.to_numpy(), judge_of.indices.to_numpy())
    total, count = np.zeros(shape), np.zeros(shape)
    np.add.at(total, where, np.log(p / (1 - p)))
    np.add.at(count, where, 1.0)
    x = np.divide(total, count, out=np.zeros(shape), where=count > 0)
    pairs, judges = pair_of.dictionary.to_pylist(), judge_of.dictionary.to_pylist()
    rows, columns = np.argsort(np.array(pairs, dtype=object)), np.argsort(np.array(judges, dtype=object))
    return [pairs[i] for i in rows], [judges[j] for j in columns], x[np.ix_(rows, columns)]


def fit_weights(x: Array, y: Array, ridge: float) -> Array:
    """w [judges] >= 0 that minimises the module's objective for x [pairs, judges] and y [pairs].

    The objective is strictly convex for ridge > 0, so there is one minimum, also where the gold is separable.
    """
    prior = np.full(x.shape[1], 1.0 / x.shape[1])

    def objective(w: Array) -> tuple[float, Array]:
        z = x @ w
        loss = float(np.sum(np.logaddexp(0.0, z) - y * z)) + ridge / 2 * float(np.sum((w - prior) ** 2))
        return loss, x.T @ (expit(z) - y) + ridge * (w - prior)

    found = minimize(objective, prior, jac=True, method="L-BFGS-B", bounds=[(0, None)] * len(prior), tol=1e-12)
    return np.asarray(found.x, dtype=np.float64)
