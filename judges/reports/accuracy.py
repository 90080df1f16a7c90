"""How often judges, and labels made of their votes, are right on pairs with a known answer."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from scipy.optimize import minimize

from judges.reports import Figures
from judges.reports.accounting import split_by_judge
from judges.reports.bias import length_differences
from judges.reports.proportions import paired_difference, proportion, share
from judges.reports.winners import preferences, winner
from judges.requests import ORDERS
from store.errors import UsageError

FEWEST = 10
"""Pairs below which nothing is said about length."""


def judge_accuracy(votes: pa.Table, gold: pa.Table) -> dict[str, Figures]:
    """judge -> accuracy against gold winners, with 95 % Wilson intervals.

    `accuracy`, `low`, `high`, `n`: of the order-averaged preference; `orders`: the same for each order alone, and
    `mean_over_orders` the mean of those two, the figure usually published. The denominator is every attempted pair (or
    vote) whose gold is a or b: an error or a tie is not right, and neither is a pair whose two hard verdicts cancel.
    Gold ties are counted in `gold_ties` and not scored. `by_group`: the first four for each group. `length`: see
    `length_controlled`. Raises UsageError for a gold winner other than a, b or tie.
    """
    winner_of = gold_winners(gold)
    lengths = length_differences(gold)
    group_of = dict(zip(gold["pair_id"].to_pylist(), gold["group"].to_pylist(), strict=True))
    report = {}
    for name, own in split_by_judge(votes).items():
        judged = sorted(set(own["pair_id"].to_pylist()) & set(winner_of))
        right = right_pairs(own, winner_of)
        figures = proportion(sum(right.values()), len(right))
        orders = {order: [0, 0] for order in ORDERS}
        for row in own.select(["pair_id", "order", "winner"]).to_pylist():
            if row["pair_id"] in right:
                orders[row["order"]][0] += row["winner"] == winner_of[row["pair_id"]]
                orders[row["order"]][1] += 1
        figures["orders"] = {order: proportion(*counts) for order, counts in orders.items()}
        single = [figures["orders"][order]["accuracy"] for order in ORDERS]
        figures["mean_over_orders"] = None if None in single else sum(single) / len(single)
        figures["gold_ties"] = len(judged) - len(right)
        figures["by_group"] = {
            group: proportion(sum(right[pair] for pair in members), len(members))
            for group in sorted({group_of[pair] for pair in right})
            if (members := [pair for pair in right if group_of[pair] == group])
        }
        ahead = {pair: lengths[pair] * (1 if winner_of[pair] == "a" else -1) for pair in right}
        figures["length"] = length_controlled(right, ahead)
        report[name] = figures
    return report


def gold_winners(gold: pa.Table) -> dict[str, str]:
    """pair_id -> a, b or tie. Raises UsageError for another winner."""
    found = dict(zip(gold["pair_id"].to_pylist(), gold["winner"].to_pylist(), strict=True))
    if odd := sorted(set(found.values()) - {"a", "b", "tie"}):
        raise UsageError(f"The gold pairs have the winner {odd[0]!r}: use a, b or tie.")
    return found


def right_pairs(votes: pa.Table, winner_of: Mapping[str, str]) -> dict[str, bool]:
    """pair_id -> whether one judge's order-averaged winner is the gold one, of all its pairs whose gold is a or b."""
    p_a = preferences(votes)
    judged = sorted({pair for pair in votes["pair_id"].to_pylist() if winner_of.get(pair, "tie") != "tie"})
    return {pair: winner(p_a.get(pair)) == winner_of[pair] for pair in judged}


def paired_accuracy(one: pa.Table, other: pa.Table, gold: pa.Table) -> Figures:
    """Accuracy of judge `one` minus that of `other` on the pairs that both were asked about; see
    `paired_difference`. With the counts `both_right`, `only_first`, `only_second`, `neither`."""
    winner_of = gold_winners(gold)
    first, second = right_pairs(one, winner_of), right_pairs(other, winner_of)
    shared = sorted(first.keys() & second.keys())
    cells = [(first[pair], second[pair]) for pair in shared]
    counts = {
        "both_right": cells.count((True, True)),
        "only_first": cells.count((True, False)),
        "only_second": cells.count((False, True)),
        "neither": cells.count((False, False)),
    }
    return {**paired_difference(*counts.values()), **counts}


def label_accuracy(labels: pa.Table, gold: pa.Table) -> Figures:
    """How often aggregated labels are right, by each convention for a label of exactly one half.

    `accuracy`, `low`, `high`, `n`: a tie is not right. `half_ties`: a tie counts one half, as if a fair coin broke it.
    `ties_to_a`: a tie counts as a, as in a majority that takes the first of the most frequent answers; it depends on
    which response is a, and is there to compare with figures that were made so. `ties`: how many of the n. The
    denominator is every gold pair whose winner is a or b, with a label or without.
    """
    winner_of = {pair: found for pair, found in gold_winners(gold).items() if found != "tie"}
    p_a = dict(zip(labels["pair_id"].to_pylist(), labels["p_a"].to_pylist(), strict=True))
    n = len(winner_of)
    right = sum(winner(p_a.get(pair)) == found for pair, found in winner_of.items())
    ties = [found for pair, found in winner_of.items() if p_a.get(pair) == 0.5]
    return {
        **proportion(right, n),
        "half_ties": share(right + len(ties) / 2, n),
        "ties_to_a": share(right + ties.count("a"), n),
        "ties": len(ties),
    }


def length_controlled(right: Mapping[str, bool], ahead: Mapping[str, int]) -> Figures:
    """Accuracy at equal lengths. `ahead`: characters that the gold winner is longer than the loser.

    `controlled_accuracy`: of the logistic regression P(right) = sigmoid(a + b tanh(d / sd d)) with d = `ahead`, the
    value sigmoid(a) at d = 0; the form is that of length-controlled win rates (Dubois et al. 2024, arXiv 2404.04475),
    a small ridge keeps separable data finite. None with fewer than ten pairs. `longer_better` and `shorter_better`:
    accuracy where the gold winner is the longer or the shorter response; a judge without a taste for length has them
    near each other.
    """
    sides = {"longer_better": [pair for pair in right if ahead[pair] > 0]}
    sides["shorter_better"] = [pair for pair in right if ahead[pair] < 0]
    figures: Figures = {
        name: proportion(sum(right[pair] for pair in members), len(members)) for name, members in sides.items()
    }
    y = np.array([right[pair] for pair in right], dtype=np.float64)
    d = np.array([ahead[pair] for pair in right], dtype=np.float64)
    return {"controlled_accuracy": _at_equal_length(y, d) if len(y) >= FEWEST else None, **figures}


def _at_equal_length(y: npt.NDArray[np.float64], d: npt.NDArray[np.float64]) -> float:
    if y.min() == y.max():
        return float(y[0])
    spread = float(d.std())
    x = np.tanh(d / spread) if spread > 0 else np.zeros_like(d)

    def loss(theta: npt.NDArray[np.float64]) -> float:
        z = theta[0] + theta[1] * x
        return float((np.logaddexp(0, z) - y * z).mean() + 1e-4 * (theta**2).sum())

    return 1 / (1 + math.exp(-float(minimize(loss, np.zeros(2), method="BFGS").x[0])))
