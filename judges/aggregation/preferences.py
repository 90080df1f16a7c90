"""Labels become preferences: which response is chosen, how surely, and in which split, in TRL's plain format."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from store.hashing import short_id
from store.tables import PREFERENCES

MAX_MARGIN = 7.0
"""Log-odds beyond which a label is not more certain in any useful way (p = 0.999); p_chosen itself is not clipped."""


@dataclass(frozen=True)
class Preferences:
    """`table`: PREFERENCES, sorted by prompt_id and pair_id. `dropped`: reason -> pairs left out."""

    table: pa.Table
    dropped: dict[str, int] = field(default_factory=dict)


def make_preferences(
    pairs: pa.Table,
    labels: pa.Table,
    *,
    min_confidence: float = 0.5,
    keep_ties: bool = True,
    human_weight: float = 1.0,
    validation_fraction: float = 0.1,
) -> Preferences:
    """One preference a labelled pair: `chosen` is the likelier winner, at exactly 0.5 response a, which is random.

    `agreement` is the share of judges' votes with a winner that chose `chosen`; 0 where no vote has a winner. Reasons
    for dropping: `no_valid_vote`, `tie` (unless kept), `low_confidence` (p_chosen below `min_confidence`).
    """
    label_of = {row["pair_id"]: row for row in labels.to_pylist()}
    dropped = {"no_valid_vote": 0, "tie": 0, "low_confidence": 0}
    rows = []
    for pair in pairs.to_pylist():
        label = label_of.get(pair["pair_id"])
        reason = _reason(label, min_confidence, keep_ties)
        if label is None or reason:
            dropped[reason] += 1
            continue
        rows.append(_preference(pair, label, human_weight, validation_fraction))
    rows.sort(key=lambda row: (row["prompt_id"], row["pair_id"]))
    return Preferences(pa.Table.from_pylist(rows, schema=PREFERENCES.schema), dropped)


def split_of(prompt_id: str, validation_fraction: float) -> str:
    """train or test, by the prompt's hash alone: a prompt keeps its split in every round, whatever else is sampled."""
    return "test" if int(short_id("split", prompt_id), 16) / 2**64 < validation_fraction else "train"


def margin(p: float) -> float:
    """Log-odds of p, clipped to +-MAX_MARGIN, in nats."""
    if p <= 0 or p >= 1:
        return math.copysign(MAX_MARGIN, p - 0.5)
    return max(-MAX_MARGIN, min(MAX_MARGIN, math.log(p) - math.log1p(-p)))


def _reason(label: dict[str, Any] | None, min_confidence: float, keep_ties: bool) -> str:
    if label is None:
        return "no_valid_vote"
    if label["p_a"] == 0.5 and not keep_ties:
        return "tie"
    return "low_confidence" if max(label["p_a"], 1 - label["p_a"]) < min_confidence else ""


def _preference(pair: dict[str, Any], label: dict[str, Any], human_weight: float, fraction: float) -> dict[str, Any]:
    chosen, rejected = ("a", "b") if label["p_a"] >= 0.5 else ("b", "a")
    p_chosen = max(label["p_a"], 1 - label["p_a"])
    with_winner = label["votes_a"] + label["votes_b"]
    return {
        "pair_id": pair["pair_id"],
        "prompt_id": pair["prompt_id"],
        "prompt": pair["prompt"],
        "chosen": pair[f"response_{chosen}"],
        "rejected": pair[f"response_{rejected}"],
        "p_chosen": p_chosen,
        "margin": margin(p_chosen),
        "weight": human_weight if label["source"] == "human" else 1.0,
        "source": label["source"],
        "n_votes": label["n_votes"],
        "agreement": label[f"votes_{chosen}"] / with_winner if with_winner else 0.0,
        "group": pair["group"],
        "split": split_of(pair["prompt_id"], fraction),
    }
