"""Training of the reward model on preferences: soft Bradley-Terry, early stopping on held-out log-loss.

The loss of a step is the weighted mean over its pairs, sum_i w_i loss_i / sum_i w_i, whatever the micro-batches. Pairs
of one prompt are on one side of the split; the split comes with the table.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rlhf.config import RewardConfig
from rlhf.devices import Compute
from rlhf.losses import bradley_terry_loss
from rlhf.memory import Budget
from rlhf.models import restore, snapshot, trainable
from rlhf.optimisation import Optimizer
from rlhf.reward_metrics import log_loss
from rlhf.reward_model import RewardModel
from rlhf.sequences import Sample, pack, split
from rlhf.sft import batches
from store.errors import RlaifError
from store.stage import Progress, silent


class Pair(NamedTuple):
    """One encoded preference."""

    chosen: Sample
    rejected: Sample
    p_chosen: float
    weight: float

    @property
    def length(self) -> int:
        return self.chosen.length + self.rejected.length


class Fit(NamedTuple):
    """`curve`: one row an evaluation. `best_step`: the optimizer step whose weights the model has now."""

    curve: list[dict[str, Any]]
    best_step: int
    steps: int


def train_reward_model(
    reward_model: RewardModel,
    train: Sequence[Pair],
    validation: Sequence[Pair],
    config: RewardConfig,
    seed: int,
    compute: Compute,
    progress: Progress = silent,
) -> Fit:
    """Train in place and leave the weights with the least held-out log-loss (the last ones without held-out pairs).

    Raises RlaifError where the loss is not a number.
    """
    model = reward_model.model
    steps = max(1, round(config.epochs * len(train) / config.batch_size))
    every = max(1, round(len(train) / config.batch_size / config.evaluations_per_epoch))
    optimizer = Optimizer(trainable(model).values(), config.optimisation, steps)
    budget = Budget(config.optimisation.batch_tokens)
    curve: list[dict[str, Any]] = []
    best, best_step, best_weights, worse = math.inf, 0, snapshot(model), 0
    losses: list[float] = []
    for step, members in zip(range(1, steps + 1), batches(len(train), config.batch_size, seed), strict=False):
        rate = optimizer.learning_rate
        pairs = [train[index] for index in members]
        loss = budget.run(
            lambda tokens: _backward(reward_model, pairs, tokens, config, compute),  # noqa: B023
            "the reward model",
            optimizer.zero_grad,
        )
        norm = optimizer.step() if math.isfinite(loss) else None
        if norm is None:
            raise RlaifError(
                f"The loss of reward-model step {step} is not a number: lower the learning rate ({rate:g})."
            )
        losses.append(loss)
        progress("reward model", step, steps, f"loss {loss:.3f}")
        if step % every and step != steps:
            continue
        row: dict[str, Any] = {"step": step, "epoch": step * config.batch_size / len(train)}
        row["train_loss"] = sum(losses) / len(losses)
        losses.clear()
        row |= {"learning_rate": rate, "grad_norm": norm, "validation_log_loss": None, "validation_accuracy": None}
        curve.append(row)
        if not validation:
            best_step = step
            continue
        difference = differences(reward_model, validation, compute, budget)
        labels = torch.tensor([pair.p_chosen for pair in validation])
        held_out = log_loss(difference, labels)
        row |= {"validation_log_loss": held_out, "validation_accuracy": float((difference > 0).float().mean())}
        if held_out < best:
            best, best_step, best_weights, worse = held_out, step, snapshot(model), 0
        else:
            worse += 1
            if config.patience and worse >= config.patience:
                break
    if validation:
        restore(model, best_weights)
    return Fit(curve, best_step, step)


def differences(reward_model: RewardModel, pairs: Sequence[Pair], compute: Compute, budget: Budget) -> Tensor:
    """[pairs] reward of the chosen minus reward of the rejected response."""
    samples = [sample for pair in pairs for sample in (pair.chosen, pair.rejected)]
    rewards = reward_model.score_samples(samples, compute, budget).view(-1, 2)
    return rewards[:, 0] - rewards[:, 1]


def _backward(
    reward_model: RewardModel, pairs: Sequence[Pair], tokens: int, config: RewardConfig, compute: Compute
) -> float:
    """Accumulate the gradient of one step; a pair's two sides share a micro-batch, since its loss needs both."""
    weights = sum(pair.weight for pair in pairs)
    total = torch.zeros((), device=compute.device)
    for part in split([pair.length for pair in pairs], tokens):
        members = [pairs[index] for index in part]
        samples = [sample for pair in members for sample in (pair.chosen, pair.rejected)]
        with compute.autocast():
            rewards = reward_model.rewards(pack(samples, range(len(samples)), compute.device)).view(-1, 2)
        columns = [[pair.p_chosen for pair in members], [pair.weight for pair in members]]
        p_chosen, weight = torch.tensor(columns, device=compute.device)
        losses = bradley_terry_loss(
            rewards[:, 0],
            rewards[:, 1],
            p_chosen,
            margin=config.margin,
            label_smoothing=config.label_smoothing,
            centering=config.centering,
        )
        loss = (losses * weight).sum() / weights
        loss.backward()
        total += loss.detach()
    return float(total)
