"""Zero and unit of the reward, neither of which pairs determine.

zero   reference responses score 0 in the mean (Huang et al. 2024), so that a positive reward is better than they are.
unit   the standard deviation of the rewards over given responses is 1 (Ziegler et al. 2019, arXiv 1909.08593, section
       2.1). A KL coefficient, a clip or a penalty then means the same for every reward model: it is in standard
       deviations of what the policy writes at the start.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from rlhf.devices import Compute
from rlhf.memory import Budget
from rlhf.reward_model import RewardModel
from store.errors import RlaifError

Exchanges = Sequence[tuple[str, str]]
"""(prompt, response) texts."""

LEAST = 1e-6
"""Below this standard deviation, in log-odds, all rewards are taken for equal."""


def set_zero(reward_model: RewardModel, exchanges: Exchanges, compute: Compute, budget: Budget) -> None:
    """Shift the rewards so that `exchanges` score 0 in the mean: each member's own, then the ensemble's.

    Members whose zeros differed would seem to disagree about everything.
    """
    others = reward_model.ensemble.others
    for model in (reward_model, *others):
        model.shift = 0.0
        model.offsets = torch.zeros_like(model.offsets)
        model.ensemble.shift = 0.0
        samples = [model.encode(*exchange) for exchange in exchanges]
        means = model.score_members(samples, compute, budget)[:, : model.heads].double().mean(0)
        model.shift = -float(means.mean())
        model.offsets = (means.mean() - means).to(model.offsets)
    if others or reward_model.heads > 1:
        reward_model.ensemble.shift = -float(reward_model.score(exchanges, compute, budget).double().mean())


def set_unit(reward_model: RewardModel, exchanges: Exchanges, compute: Compute, budget: Budget) -> float:
    """Scale the rewards so that those of `exchanges` have standard deviation 1; returns what it was, in log-odds.

    Raises RlaifError where all rewards are equal.
    """
    spread = float(reward_model.score(exchanges, compute, budget).double().std(unbiased=False))
    if not spread > LEAST:
        raise RlaifError(
            f"The reward model gives {len(exchanges)} responses the same reward (standard deviation {spread:.1g}), so "
            "it has no unit: train it longer or with a higher learning rate, or set scale to none."
        )
    reward_model.rescale(1 / spread)
    return spread
