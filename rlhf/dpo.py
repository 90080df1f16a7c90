"""Direct preference optimisation on the preferences table: a baseline without reward model, rollouts and critic.

    r(x, y) = beta * (log pi(y|x) - log ref(y|x)),    D = r(x, chosen) - r(x, rejected)
    loss = -q log sigmoid(D) - (1 - q) log sigmoid(-D),    q = p (1 - 2 s) + s

(Rafailov et al. 2023, arXiv 2305.18290, equation 7; with label smoothing s, Mitchell's conservative DPO.) p is the soft
label of the pair, so a coin toss of the judges asks for equal rewards and is not learnt as a victory. That is the soft
Bradley-Terry loss of the reward model with the log-ratio as its reward.

The reference is the policy before the first step: its log-probs are computed once, and no second model is held. Both
responses are packed without padding; the loss of a step is the weighted mean over its pairs, whatever the micro-batches
and processes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rlhf.config import DPOConfig
from rlhf.curve import Curve
from rlhf.devices import Compute, on_device
from rlhf.forward import logprobs_of, response_logprobs
from rlhf.losses import bradley_terry_loss
from rlhf.memory import Budget
from rlhf.models import Model
from rlhf.reward_metrics import accuracy, log_loss
from rlhf.sequences import MicroBatch, Sample, pack, split
from rlhf.sharding import rounds
from rlhf.tracking import Log, no_log
from store.errors import RlaifError
from store.stage import Progress, silent


class Pair(NamedTuple):
    """One encoded preference with the reference's log-probs of both whole responses, in nats."""

    chosen: Sample
    rejected: Sample
    p_chosen: float
    weight: float
    reference_chosen: float = 0.0
    reference_rejected: float = 0.0

    @property
    def length(self) -> int:
        return self.chosen.length + self.rejected.length


def with_reference(model: Model, pairs: Sequence[Pair], compute: Compute, budget: Budget) -> list[Pair]:
    """The pairs with log-probs of both responses under `model`, which is the policy before training."""
    samples = [sample for pair in pairs for sample in (pair.chosen, pair.rejected)]
    sums = [float(row.double().sum()) for row in logprobs_of(model, samples, compute, budget)]
    return [
        pair._replace(reference_chosen=chosen, reference_rejected=rejected)
        for pair, chosen, rejected in zip(pairs, sums[::2], sums[1::2], strict=True)
    ]


def implicit_rewards(model: Model, batch: MicroBatch, pairs: Sequence[Pair], beta: float) -> Tensor:
    """[p, 2] rewards of chosen and rejected response of the p pairs in `batch`, which packs them side by side."""
    logprobs = response_logprobs(model, batch)
    owner = on_device(torch.repeat_interleave(torch.tensor(batch.lengths)), logprobs.device)
    sums = logprobs.new_zeros(len(batch.lengths)).index_add(0, owner, logprobs)
    reference = torch.tensor([[pair.reference_chosen, pair.reference_rejected] for pair in pairs])
    return beta * (sums.view(-1, 2) - on_device(reference, sums.device))


def train_dpo(
    model: Model,
    train: Sequence[Pair],
    validation: Sequence[Pair],
    config: DPOConfig,
    seed: int,
    compute: Compute,
    progress: Progress = silent,
    log: Log = no_log,
    checkpoints: Path | None = None,
) -> list[dict[str, Any]]:
    """Train `model` in place on pairs with their reference log-probs; returns one row an optimizer step.

    The last row has the figures of the validation pairs. A run that was killed goes on from the last checkpoint in
    `checkpoints`. Raises RlaifError where the loss is not a number.
    """
    curve = Curve("dpo", model, len(train), config, compute, progress, log, checkpoints)
    steps, optimizer = curve.steps, curve.optimizer
    budget = Budget(config.optimisation.batch_tokens)
    for step, members in curve.batches(seed):
        rate = optimizer.learning_rate
        pairs = [train[index] for index in members]
        own = budget.run(
            lambda tokens: _backward(model, pairs, tokens, config, compute),  # noqa: B023
            "DPO",
            optimizer.zero_grad,
            alone=not compute.sharded,
        )
        sums = dict(zip(SUMS, compute.world.sum(own).tolist(), strict=True))
        norm = optimizer.step() if math.isfinite(sums["loss"]) else None
        if norm is None:
            raise RlaifError(f"The loss of DPO step {step} is not a number: lower the learning rate ({rate:g}).")
        row: dict[str, Any] = {"step": step, **sums, "learning_rate": rate, "grad_norm": norm}
        row |= {"validation_log_loss": None, "validation_accuracy": None}
        if step == steps and validation:
            row |= validate(model, validation, config.beta, compute, budget)
        curve.add(row)
    return curve.rows


SUMS = ("loss", "chosen_reward", "rejected_reward", "accuracy")


def _backward(model: Model, pairs: Sequence[Pair], tokens: int, config: DPOConfig, compute: Compute) -> Tensor:
    """[4] this process's part of SUMS of one step, whose gradient it leaves in the parameters.

    A pair's two sides share a micro-batch, since its loss needs both.
    """
    weights = sum(pair.weight for pair in pairs)
    mine = [pairs[index] for index in compute.world.share([pair.length for pair in pairs])]
    parts = [[mine[index] for index in part] for part in split([pair.length for pair in mine], tokens)]
    found = []
    for part, factor in rounds(model, compute.world, parts, lambda: [pairs[0]]):
        samples = [sample for pair in part for sample in (pair.chosen, pair.rejected)]
        with compute.autocast():
            rewards = implicit_rewards(model, pack(samples, range(len(samples)), compute.device), part, config.beta)
        p_chosen, weight = on_device(torch.tensor([[pair.p_chosen, pair.weight] for pair in part]), compute.device).T
        losses = bradley_terry_loss(rewards[:, 0], rewards[:, 1], p_chosen, label_smoothing=config.label_smoothing)
        loss = factor * (losses * weight).sum() / weights
        loss.backward()
        with torch.no_grad():
            won = (rewards[:, 0] > rewards[:, 1]).float()
            sums = torch.stack([(value * weight).sum() for value in (losses, rewards[:, 0], rewards[:, 1], won)])
            found.append(factor * (sums / weights))
    # Read once: a transfer a micro-batch would make the next one wait for this one's backward pass.
    totals = torch.zeros(4, dtype=torch.float64)
    for row in torch.stack(found).cpu() if found else ():
        totals += row.double()
    return totals


@torch.no_grad()
def validate(
    model: Model, pairs: Sequence[Pair], beta: float, compute: Compute, budget: Budget
) -> dict[str, float | None]:
    """Log-loss and accuracy of the implicit reward on pairs that were not trained on."""
    samples = [sample for pair in pairs for sample in (pair.chosen, pair.rejected)]
    sums = torch.tensor([float(row.double().sum()) for row in logprobs_of(model, samples, compute, budget)])
    reference = torch.tensor([[pair.reference_chosen, pair.reference_rejected] for pair in pairs])
    rewards = beta * (sums.view(-1, 2) - reference)
    gap, labels = rewards[:, 0] - rewards[:, 1], torch.tensor([pair.p_chosen for pair in pairs])
    return {"validation_log_loss": log_loss(gap, labels), "validation_accuracy": accuracy(gap, labels)["mean"]}
