"""What sways a judge beside quality: the order, the length, and responses of its own family.

Order and slot are measured on pairs that have a winner in both orders, so that it does not matter which response is
better. Length: through the origin, because which response is a was drawn at random. Self-preference has a module of its
own, `judges.reports.selfpreference`.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from judges.aggregation.mean import order_averaged
from judges.reports import Figures
from judges.reports.accounting import mean, outcome_rates, spending, split_by_judge
from judges.reports.proportions import bounds, clustered_slope, paired_difference, share
from judges.reports.winners import in_both_orders
from store.statistics import Z_95


def judge_report(votes: pa.Table, pairs: pa.Table, savings: Mapping[str, Figures] | None = None) -> dict[str, Figures]:
    """judge -> `outcome_rates`, `biases` and `spending` on these pairs, and `by_group` the first two for each group.

    `savings`: of the cascades among the judges, see `judges.cascade.savings`; they go under `saving`.
    """
    lengths = length_differences(pairs)
    prompt_of = dict(zip(pairs["pair_id"].to_pylist(), pairs["prompt_id"].to_pylist(), strict=True))
    groups = dict(zip(pairs["pair_id"].to_pylist(), pairs["group"].to_pylist(), strict=True))
    report = {}
    for name, own in split_by_judge(votes).items():
        own_groups = pa.array([groups.get(pair) for pair in own["pair_id"].to_pylist()], pa.string())
        by_group = {}
        for group in sorted(one for one in pc.unique(own_groups).to_pylist() if one is not None):
            part = own.filter(pc.equal(own_groups, group))
            by_group[group] = outcome_rates(part) | biases(part, lengths, prompt_of)
        report[name] = {
            **outcome_rates(own),
            **biases(own, lengths, prompt_of),
            "mean_mass": mean(own["mass"]),
            **spending(own),
            "by_group": by_group,
            **({"saving": savings[name]} if savings and name in savings else {}),
        }
    return report


def biases(votes: pa.Table, lengths: dict[str, int], prompt_of: dict[str, str]) -> Figures:
    """One judge's.

    `order_flip_rate`: share of the pairs with a winner in both orders whose winner changed with the order, with
    Wilson's interval (`order_flip_low`, `_high`); `order_flips`: their number, `order_flip_of_all`: their share of all
    pairs that were asked about, which is the figure often published. `first_slot_rate`: share of the winners, on those
    pairs with a winner in both orders, that were shown first; 0.5 is no preference. Its interval follows from
    Newcombe's for P(a wins | a first) - P(a wins | b first), since the two orders of a pair are no independent
    observations. `length_slope`: see `length_slope`.
    """
    both = in_both_orders(votes)
    cells = {one: sum(found == one for found in both.values()) for one in (("a", "a"), ("a", "b"), ("b", "a"))}
    always_first, always_second = cells["a", "b"], cells["b", "a"]
    consistent = len(both) - always_first - always_second
    flips = always_first + always_second
    slot = paired_difference(cells["a", "a"], always_first, always_second, consistent - cells["a", "a"])
    flip = bounds(flips, len(both))
    return {
        "pairs_in_both_orders": len(both),
        "order_flips": flips,
        "order_flip_of_all": share(flips, len(pc.unique(votes["pair_id"]))),
        "order_flip_rate": share(flips, len(both)),
        "order_flip_low": flip["low"],
        "order_flip_high": flip["high"],
        "first_slot_rate": _half(slot["difference"]),
        "first_slot_low": _half(slot["low"]),
        "first_slot_high": _half(slot["high"]),
        **length_slope(votes, lengths, prompt_of),
    }


def length_slope(votes: pa.Table, lengths: dict[str, int], prompt_of: dict[str, str]) -> Figures:
    """Change of p_a for each 100 characters that a is longer than b: least squares of p_a - 1/2, through the origin.

    {"length_slope", "length_slope_low", "length_slope_high"}: the interval allows for pairs of one prompt that are
    alike (`clustered_slope`); None with fewer than two prompts. A slope says what length goes with, not what it causes:
    longer responses may be better. See `length_controlled` for the difference.
    """
    known = [row for row in order_averaged(votes).to_pylist() if row["pair_id"] in lengths]
    x = np.array([lengths[row["pair_id"]] / 100 for row in known])
    y = np.array([row["p_a"] - 0.5 for row in known])
    if not x.any():
        return {"length_slope": None, "length_slope_low": None, "length_slope_high": None}
    slope, error = clustered_slope(x, y, [prompt_of[row["pair_id"]] for row in known])
    low, high = (None, None) if error is None else (slope - Z_95 * error, slope + Z_95 * error)
    return {"length_slope": slope, "length_slope_low": low, "length_slope_high": high}


def length_differences(pairs: pa.Table) -> dict[str, int]:
    """pair_id -> characters that response a is longer than b."""
    a, b = pc.utf8_length(pairs["response_a"]), pc.utf8_length(pairs["response_b"])
    return dict(zip(pairs["pair_id"].to_pylist(), pc.subtract(a, b).to_pylist(), strict=True))


def _half(difference: float | None) -> float | None:
    """P(first wins) from P(a | a first) - P(a | b first): pairs that stay with a response count one half."""
    return None if difference is None else 0.5 + difference / 2
