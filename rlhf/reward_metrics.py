"""How good a reward model is, on pairs that it was not trained on.

All take D [n], the reward of the chosen response minus that of the rejected one, and the soft labels p [n] >= 0.5.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def accuracy(differences: Tensor, p_chosen: Tensor | None = None) -> dict[str, Any]:
    """Share of pairs whose chosen response has the larger reward: {"mean", "n"}, mean null where n is 0.

    Equal rewards are not won. A pair whose label is an exact tie has no right answer and is left out of n.
    """
    if p_chosen is not None:
        differences = differences[p_chosen != 0.5]
    count = len(differences)
    return {"mean": float((differences > 0).double().mean()) if count else None, "n": count}


def log_loss(differences: Tensor, p_chosen: Tensor) -> float:
    """Mean cross-entropy of sigmoid(D) against the soft labels, in nats."""
    differences, labels = differences.double(), p_chosen.double()
    return float(-(labels * F.logsigmoid(differences) + (1 - labels) * F.logsigmoid(-differences)).mean())


def accuracy_by_group(differences: Tensor, p_chosen: Tensor, groups: Sequence[str]) -> dict[str, dict[str, Any]]:
    rows: dict[str, list[int]] = defaultdict(list)
    for index, group in enumerate(groups):
        rows[group].append(index)
    return {group: accuracy(differences[index], p_chosen[index]) for group, index in sorted(rows.items())}


def calibration_curve(differences: Tensor, p_chosen: Tensor, bins: int = 10) -> list[dict[str, float | int]]:
    """Bins of predicted probability: {"low", "high", "predicted", "observed", "n"}; empty bins are left out.

    Each pair counts in both directions: "chosen" is by definition the side with the larger label, and looking at that
    side alone makes a perfect model seem too timid.
    """
    predicted = torch.sigmoid(differences.double())
    predicted = torch.cat([predicted, 1 - predicted])
    observed = torch.cat([p_chosen.double(), 1 - p_chosen.double()])
    which = (predicted * bins).long().clamp(max=bins - 1)
    curve: list[dict[str, float | int]] = []
    for index in range(bins):
        inside = which == index
        if inside.any():
            curve.append(
                {
                    "low": index / bins,
                    "high": (index + 1) / bins,
                    "predicted": float(predicted[inside].mean()),
                    "observed": float(observed[inside].mean()),
                    "n": int(inside.sum()),
                }
            )
    return curve


def length_slope(differences: Tensor, lengths: Tensor) -> float | None:
    """Reward per additional response token: least squares of D on the length difference, through the origin.

    lengths: [n] tokens of the chosen minus tokens of the rejected response. None where all are equal.
    """
    lengths = lengths.double()
    square = float(lengths.square().sum())
    return float((differences.double() * lengths).sum()) / square if square else None
