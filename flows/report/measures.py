"""Figures that the page derives from what the stages wrote: vote accounting, judges, calibration, rewards by group.

Statistics come from the rooms that own them (judges.metrics, rlhf.evaluation); nothing is filled in.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from flows.report.data import Judge, Round
from flows.report.values import Estimate, VoteCount, estimate, estimates, integer, real, vote_count
from judges.metrics import account, split_by_judge
from judges.metrics import proportion as wilson
from rlhf.evaluation import clustered_mean


def count_votes(votes: pa.Table) -> dict[str, VoteCount]:
    """Votes by judge and outcome. Raises UsageError for a status that is none of the five."""
    return {name: VoteCount(**account(own)) for name, own in split_by_judge(votes).items()}


def total_votes(counts: Mapping[str, VoteCount]) -> VoteCount | None:
    if not counts:
        return None
    rows = [(count.attempted, *count.parts) for count in counts.values()]
    return VoteCount(*(sum(column) for column in zip(*rows, strict=True)))


def training_votes(round_: Round) -> dict[str, VoteCount]:
    """Counted in the table of votes; only where that is not there, what the judge stage reported."""
    if round_.votes is not None:
        return count_votes(round_.votes)
    found = {name: vote_count(item) for name, item in per_judge(round_).items()}
    return {name: item for name, item in found.items() if item is not None}


def judges(round_: Round) -> list[Judge]:
    """The training judges by name, with what the judge stage measured on them."""
    measured, accuracy = per_judge(round_), estimates(round_.metrics("judge").get("judge_accuracy"))
    prints = (
        {name: own["fingerprint"][0].as_py() for name, own in split_by_judge(round_.votes).items()}
        if round_.votes is not None
        else {}
    )
    found = []
    for name in sorted({*measured, *accuracy, *prints}):
        item = measured.get(name, {})
        tokens = [number for side in ("tokens_in", "tokens_out") if (number := integer(item.get(side))) is not None]
        found.append(
            Judge(
                name=name,
                fingerprint=prints.get(name),
                accuracy=accuracy.get(name),
                flip_rate=real(item.get("order_flip_rate", item.get("flip_rate"))),
                first_slot_rate=real(item.get("first_slot_rate", item.get("slot_preference"))),
                cost=real(item.get("cost")),
                tokens=sum(tokens) if tokens else integer(item.get("tokens")),
            )
        )
    return found


def per_judge(round_: Round) -> dict[str, Mapping[str, Any]]:
    """What the judge stage reported on each judge, by name."""
    reported = round_.metrics("judge").get("per_judge")
    if not isinstance(reported, Mapping):
        return {}
    return {str(name): item for name, item in reported.items() if isinstance(item, Mapping)}


@dataclass(frozen=True)
class Agreement:
    """Share of pairs on which two judges prefer the same response, of the `pairs` on which both prefer one."""

    share: float
    pairs: int | None


def agreement(round_: Round) -> dict[tuple[str, str], Agreement]:
    """What the judge stage measured for each two judges, both ways round."""
    table: dict[tuple[str, str], Agreement] = {}
    for item in round_.metrics("judge").get("agreement") or []:
        names, share = item.get("judges"), real(item.get("agreement"))
        if share is not None and isinstance(names, list) and len(names) == 2:
            one, other = str(names[0]), str(names[1])
            table[one, other] = table[other, one] = Agreement(share, integer(item.get("pairs")))
    return table


@dataclass(frozen=True)
class Bin:
    """Pairs on which the reward model is about equally sure; both means are for the response that it prefers."""

    low: float
    high: float
    n: int
    predicted: float
    labelled: float
    std_error: float | None


def calibration_bins(predictions: pd.DataFrame) -> list[Bin]:
    """The reward model's P(chosen) against the judges' soft label, folded so that the model's favourite is the event.

    `chosen` is the judges' favourite, so its label is never below a half and an unfolded curve could not lie on the
    diagonal. Folded, each pair counts once: x = max(p, 1 - p), and y is the label of the response the model prefers.
    """
    frame = predictions[["predicted", "p_chosen"]].dropna()
    p, label = frame["predicted"].to_numpy(dtype=float), frame["p_chosen"].to_numpy(dtype=float)
    flipped = p < 0.5
    p, label = np.where(flipped, 1 - p, p), np.where(flipped, 1 - label, label)
    edges = np.linspace(0.5, 1.0, 11 if len(p) >= 500 else 6)
    place = np.clip(np.searchsorted(edges, p, side="right") - 1, 0, len(edges) - 2)
    bins = []
    for index in range(len(edges) - 1):
        inside = place == index
        n = int(inside.sum())
        if n:
            spread = float(label[inside].std(ddof=1) / np.sqrt(n)) if n > 1 else None
            bins.append(
                Bin(edges[index], edges[index + 1], n, float(p[inside].mean()), float(label[inside].mean()), spread)
            )
    return bins


def unseen(predictions: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Predictions on splits that the reward model was not trained on, and those splits; all where it has no other."""
    # Pairs that early stopping looked at were chosen by, so they count only where there are no others.
    parts = [predictions[predictions["split"] == name] for name in ("test", "validation")]
    chosen = next((part for part in [*parts, predictions[predictions["split"] != "train"]] if len(part)), predictions)
    return chosen, sorted(str(split) for split in chosen["split"].unique())


def proportion(value: Estimate | None, level: float = 0.95) -> Estimate | None:
    """`value` with Wilson's interval, where the stage gave a share and its n but no interval."""
    if value is None or value.low is not None or not value.n or not 0 <= value.mean <= 1:
        return value
    found = estimate(wilson(round(value.mean * value.n), value.n, level))
    return found and replace(found, mean=value.mean)


@dataclass(frozen=True)
class Versus:
    """One figure of reference and policy."""

    label: str
    reference: Estimate
    policy: Estimate


def reward_by_group(responses: pd.DataFrame, level: float) -> tuple[str, list[Versus]]:
    """Which column was used (oracle, else reward) and its mean over prompts by group, for both policies."""
    column = next((name for name in ("oracle", "reward") if responses[name].notna().any()), None)
    if column is None:
        return "oracle", []
    bounds = (0.0, 1.0) if column == "oracle" else None
    rows = []
    for group, frame in responses.dropna(subset=[column]).groupby("group"):
        sides = {}
        for policy, own in frame.groupby("policy"):
            values, clusters = own[column].astype(float).tolist(), own["prompt_id"].tolist()
            sides[str(policy)] = estimate(clustered_mean(values, clusters, level, bounds))
        reference, policy_ = sides.get("reference"), sides.get("policy")
        if reference is not None and policy_ is not None:
            rows.append(Versus(str(group), reference, policy_))
    return column, rows


def hash_order(value: str) -> str:
    """A key for a draw that anyone can repeat and that knows nothing of the outcome."""
    return hashlib.sha256(value.encode("utf-8", "surrogatepass")).hexdigest()
