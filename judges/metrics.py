"""What votes say about judges: accounting, order flips, slot preference, cost, length slope, accuracy, agreement.

Judges are told apart by fingerprint. A figure that cannot be computed (no votes of that kind) is None, never 0.
"""

from __future__ import annotations

from collections import defaultdict
from itertools import combinations
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.stats import binomtest

from judges.aggregation.mean import order_averaged
from judges.backends.base import ORDERS
from store.errors import UsageError
from store.tables import Status

Figures = dict[str, Any]


def account(votes: pa.Table) -> dict[str, int]:
    """attempted = scored + tie + abstain + parse_failure + error, as counts. Raises UsageError for another status."""
    found = {row["values"]: row["counts"] for row in pc.value_counts(votes["status"]).to_pylist()}
    counts = {str(status): int(found.get(str(status), 0)) for status in Status}
    if sum(counts.values()) != votes.num_rows:
        raise UsageError(f"The votes have a status outside {', '.join(counts)}: {', '.join(map(str, found))}.")
    return {"attempted": votes.num_rows, **counts}


def split_by_judge(votes: pa.Table) -> dict[str, pa.Table]:
    """The votes of each judge, by name; by name@fingerprint where two judges have the same name."""
    known = votes.select(["judge", "fingerprint"]).group_by(["judge", "fingerprint"]).aggregate([]).to_pylist()
    names = [row["judge"] for row in known]
    tables = {}
    for row in known:
        name = row["judge"] if names.count(row["judge"]) == 1 else f"{row['judge']}@{row['fingerprint'][:8]}"
        tables[name] = votes.filter(pc.equal(votes["fingerprint"], row["fingerprint"]))
    return dict(sorted(tables.items()))


def judge_report(votes: pa.Table, pairs: pa.Table) -> dict[str, Figures]:
    """judge -> its figures on these pairs; see `_of_one_judge`."""
    lengths = _length_differences(pairs)
    return {name: _of_one_judge(own, lengths) for name, own in split_by_judge(votes).items()}


def judge_accuracy(votes: pa.Table, gold: pa.Table) -> dict[str, Figures]:
    """judge -> accuracy against gold winners, with 95 % Wilson intervals (Wilson 1927).

    `accuracy`, `low`, `high`, `n`: of the order-averaged preference; `orders`: the same for each order alone, and
    `mean_over_orders` the mean of those two, the figure usually published. The denominator is every attempted pair (or
    vote) whose gold is a or b: an error or a tie is not right, and neither is a pair whose two hard verdicts cancel.
    Gold ties are counted in `gold_ties` and not scored. Raises UsageError for a gold winner other than a, b or tie.
    """
    winner_of = dict(zip(gold["pair_id"].to_pylist(), gold["winner"].to_pylist(), strict=True))
    if odd := sorted(set(winner_of.values()) - {"a", "b", "tie"}):
        raise UsageError(f"The gold pairs have the winner {odd[0]!r}: use a, b or tie.")
    report = {}
    for name, own in split_by_judge(votes).items():
        judged = sorted(set(own["pair_id"].to_pylist()) & set(winner_of))
        decided = [pair for pair in judged if winner_of[pair] != "tie"]
        averaged = order_averaged(own)
        p_a = dict(zip(averaged["pair_id"].to_pylist(), averaged["p_a"].to_pylist(), strict=True))
        figures = proportion(sum(_winner(p_a.get(pair)) == winner_of[pair] for pair in decided), len(decided))
        orders = {order: [0, 0] for order in ORDERS}
        for row in own.select(["pair_id", "order", "winner"]).to_pylist():
            if winner_of.get(row["pair_id"], "tie") != "tie":
                orders[row["order"]][0] += row["winner"] == winner_of[row["pair_id"]]
                orders[row["order"]][1] += 1
        figures["orders"] = {order: proportion(*counts) for order, counts in orders.items()}
        single = [figures["orders"][order]["accuracy"] for order in ORDERS]
        figures["mean_over_orders"] = None if None in single else sum(single) / len(single)
        figures["gold_ties"] = len(judged) - len(decided)
        report[name] = figures
    return report


def agreement(votes: pa.Table) -> list[Figures]:
    """For each two judges: the share, of pairs that both decided (order-averaged), with the same winner."""
    decided: dict[str, dict[str, str]] = {}
    for name, own in split_by_judge(votes).items():
        averaged = order_averaged(own).to_pylist()
        decided[name] = {row["pair_id"]: winner for row in averaged if (winner := _winner(row["p_a"])) is not None}
    rows = []
    for one, two in combinations(decided, 2):
        both = decided[one].keys() & decided[two].keys()
        same = sum(decided[one][pair] == decided[two][pair] for pair in both)
        rows.append({"judges": [one, two], "agreement": _share(same, len(both)), "pairs": len(both)})
    return rows


def proportion(successes: int, n: int, confidence: float = 0.95) -> Figures:
    """A share with its Wilson interval: {"accuracy", "low", "high", "n"}; None without observations."""
    if n == 0:
        return {"accuracy": None, "low": None, "high": None, "n": 0}
    interval = binomtest(successes, n).proportion_ci(confidence, method="wilson")
    return {"accuracy": successes / n, "low": float(interval.low), "high": float(interval.high), "n": n}


def _of_one_judge(votes: pa.Table, lengths: dict[str, int]) -> Figures:
    """`*_rate`: share of the attempted votes. `order_flip_rate`: share of the pairs with a winner in both orders whose
    winner changed with the order. `first_slot_rate`: share of the votes with a winner that chose the response shown
    first; 0.5 is no preference. `length_slope`: see `_length_slope`. `cost`: in the currency of the price list."""
    counts = account(votes)
    attempted = counts["attempted"]
    winners: dict[str, dict[str, str]] = defaultdict(dict)
    first = 0
    for row in votes.select(["pair_id", "order", "winner"]).to_pylist():
        if row["winner"] is not None:
            winners[row["pair_id"]][row["order"]] = row["winner"]
            first += row["winner"] == row["order"][0]
    in_both = [found for found in winners.values() if len(found) == len(ORDERS)]
    return {
        **counts,
        **{
            f"{status}_rate": _share(counts[status], attempted)
            for status in ("tie", "abstain", "parse_failure", "error")
        },
        "order_flip_rate": _share(sum(found["ab"] != found["ba"] for found in in_both), len(in_both)),
        "pairs_in_both_orders": len(in_both),
        "first_slot_rate": _share(first, counts["scored"]),
        "mean_mass": _mean(votes["mass"]),
        "tokens_in": int(pc.sum(votes["tokens_in"]).as_py() or 0),
        "tokens_out": int(pc.sum(votes["tokens_out"]).as_py() or 0),
        "cost": float(pc.sum(votes["cost"]).as_py() or 0.0),
        "mean_latency_s": _mean(votes["latency_s"]),
        "length_slope": _length_slope(votes, lengths),
    }


def _length_slope(votes: pa.Table, lengths: dict[str, int]) -> float | None:
    """Change of p_a for each 100 characters that a is longer than b: least squares of p_a - 1/2, through the origin.

    Through the origin, because which response is a was drawn at random.
    """
    averaged = order_averaged(votes)
    known = [row for row in averaged.to_pylist() if row["pair_id"] in lengths]
    difference = np.array([lengths[row["pair_id"]] / 100 for row in known])
    preference = np.array([row["p_a"] - 0.5 for row in known])
    spread = float((difference**2).sum())
    return float((difference * preference).sum()) / spread if spread else None


def _length_differences(pairs: pa.Table) -> dict[str, int]:
    a, b = pc.utf8_length(pairs["response_a"]), pc.utf8_length(pairs["response_b"])
    return dict(zip(pairs["pair_id"].to_pylist(), pc.subtract(a, b).to_pylist(), strict=True))


def _winner(p_a: float | None) -> str | None:
    return None if p_a is None or p_a == 0.5 else "a" if p_a > 0.5 else "b"


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _mean(column: pa.ChunkedArray) -> float | None:
    value = pc.mean(column).as_py()
    return None if value is None else float(value)
