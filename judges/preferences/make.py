"""Labels become preferences: which response is chosen, how surely, and in which split, in TRL's plain format.

Every labelled pair becomes a preference unless a filter leaves it out. The filters run in the order of REASONS, and a
pair is counted once, for the first that drops it: pairs = preferences + the sum of what was dropped.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from judges.preferences.contamination import HeldOut
from judges.preferences.duplicates import near_duplicates
from judges.preferences.limits import over_group_ratio, over_prompt_limit
from store.hashing import short_id
from store.schemas import PAIRS, PREFERENCES

MAX_MARGIN = 7.0
"""Log-odds beyond which a label is not more certain in any useful way (p = 0.999); p_chosen itself is not clipped."""

REASONS = (
    "no_valid_vote",
    "tie",
    "low_confidence",
    "held_out_prompt",
    "near_duplicate",
    "over_prompt_limit",
    "group_balance",
)

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Preferences:
    """`table`: PREFERENCES, sorted by prompt_id and pair_id. `dropped`: reason -> pairs left out, every reason named.
    `reason_of`: pair_id -> why it was left out. `by_group`: group -> {"pairs", "preferences"}."""

    table: pa.Table
    dropped: dict[str, int] = field(default_factory=dict)
    reason_of: dict[str, str] = field(default_factory=dict)
    by_group: dict[str, dict[str, int]] = field(default_factory=dict)


def make_preferences(
    pairs: pa.Table,
    labels: pa.Table,
    *,
    min_confidence: float = 0.5,
    keep_ties: bool = True,
    human_weight: float = 1.0,
    validation_fraction: float = 0.1,
    max_similarity: float | None = None,
    max_pairs_per_prompt: int = 0,
    max_group_ratio: float | None = None,
    held_out: HeldOut | None = None,
) -> Preferences:
    """One preference a labelled pair: `chosen` is the likelier winner, at exactly 0.5 response a, which is random.

    `agreement` is the share of judges' votes with a winner that chose `chosen`; 0 where no vote has a winner. Reasons
    for dropping, in this order: `no_valid_vote`; `tie` (unless kept); `low_confidence` (p_chosen below
    `min_confidence`); `held_out_prompt` (the prompt is one of `held_out`, or nearly); `near_duplicate` (the responses
    are alike to `max_similarity` at least, see `duplicates`); `over_prompt_limit` (beyond `max_pairs_per_prompt`; 0: no
    limit); `group_balance` (beyond `max_group_ratio` times the smallest group). See `limits` for who stays.
    """
    pairs = pairs.select(PAIRS.schema.names).sort_by([("prompt_id", "ascending"), ("pair_id", "ascending")])
    reasons = np.zeros(pairs.num_rows, dtype=np.int64)

    def drop(reason: str, which: Mask) -> None:
        reasons[(reasons == 0) & which] = REASONS.index(reason) + 1

    at = pc.index_in(pairs["pair_id"], value_set=labels["pair_id"].combine_chunks())
    drop("no_valid_vote", _mask(pc.is_null(at)))
    labelled = np.flatnonzero(reasons == 0)
    table = _preferences(pairs.take(labelled), labels.take(at.drop_null()), human_weight, validation_fraction)

    def drop_labelled(reason: str, which: Mask) -> None:
        whole = np.zeros(len(reasons), dtype=np.bool_)
        whole[labelled] = which
        drop(reason, whole)

    p_chosen = table["p_chosen"].to_numpy()
    if not keep_ties:
        drop_labelled("tie", p_chosen == 0.5)
    drop_labelled("low_confidence", p_chosen < min_confidence)
    if held_out is not None:
        drop("held_out_prompt", held_out.contains(pairs))
    if max_similarity is not None:
        drop_labelled("near_duplicate", near_duplicates(table, reasons[labelled] == 0, max_similarity))
    if max_pairs_per_prompt:
        drop_labelled("over_prompt_limit", over_prompt_limit(table, reasons[labelled] == 0, max_pairs_per_prompt))
    if max_group_ratio is not None:
        drop_labelled("group_balance", over_group_ratio(table, reasons[labelled] == 0, max_group_ratio))
    kept = table.filter(pa.array(reasons[labelled] == 0))
    counts = np.bincount(reasons, minlength=len(REASONS) + 1)[1:].tolist()
    out = np.flatnonzero(reasons)
    names = pairs["pair_id"].take(pa.array(out)).to_pylist()
    return Preferences(
        kept,
        dict(zip(REASONS, counts, strict=True)),
        {name: REASONS[code - 1] for name, code in zip(names, reasons[out].tolist(), strict=True)},
        _by_group(pairs["group"], kept["group"]),
    )


def split_of(prompt_id: str, validation_fraction: float) -> str:
    """train or test, by the prompt's hash alone: a prompt keeps its split in every round, whatever else is sampled."""
    return "test" if int(short_id("split", prompt_id), 16) / 2**64 < validation_fraction else "train"


def margin(p: float) -> float:
    """Log-odds of p, clipped to +-MAX_MARGIN, in nats."""
    if p <= 0 or p >= 1:
        return math.copysign(MAX_MARGIN, p - 0.5)
    return max(-MAX_MARGIN, min(MAX_MARGIN, math.log(p) - math.log1p(-p)))


def _preferences(pairs: pa.Table, labels: pa.Table, human_weight: float, fraction: float) -> pa.Table:
    """PREFERENCES of pairs and their labels, row by row."""
    p_a = labels["p_a"].combine_chunks()
    a_wins = pc.greater_equal(p_a, 0.5)
    p_chosen = pc.max_element_wise(p_a, pc.subtract(1.0, p_a))
    votes = [labels[f"votes_{side}"].combine_chunks().cast(pa.float64()) for side in "ab"]
    with_winner = pc.add(*votes)
    agreement = pc.divide(pc.if_else(a_wins, *votes), pc.max_element_wise(with_winner, 1.0))
    human = pc.equal(labels["source"].combine_chunks(), "human")
    responses = [pairs[f"response_{side}"].combine_chunks() for side in "ab"]
    prompts = pairs["prompt_id"].combine_chunks().dictionary_encode()
    splits = pa.array([split_of(prompt, fraction) for prompt in prompts.dictionary.to_pylist()], pa.string())
    columns = {
        "pair_id": pairs["pair_id"],
        "prompt_id": pairs["prompt_id"],
        "prompt": pairs["prompt"],
        "chosen": pc.if_else(a_wins, *responses),
        "rejected": pc.if_else(a_wins, *responses[::-1]),
        "p_chosen": p_chosen,
        "margin": pa.array([margin(p) for p in p_chosen.to_pylist()], pa.float64()),
        "weight": pc.if_else(human, pa.scalar(float(human_weight)), pa.scalar(1.0)),
        "source": labels["source"],
        "n_votes": labels["n_votes"],
        "agreement": agreement,
        "group": pairs["group"],
        "split": splits.take(prompts.indices),
    }
    return pa.table(columns, schema=PREFERENCES.schema)


def _by_group(before: pa.ChunkedArray, after: pa.ChunkedArray) -> dict[str, dict[str, int]]:
    counts = [{row["values"]: row["counts"] for row in pc.value_counts(one).to_pylist()} for one in (before, after)]
    return {group: {"pairs": counts[0][group], "preferences": counts[1].get(group, 0)} for group in sorted(counts[0])}


def _mask(values: pa.ChunkedArray) -> Mask:
    return np.asarray(values.to_numpy(), dtype=np.bool_)
