"""Training of the reward model on preferences: soft Bradley-Terry, early stopping on validation log-loss.

The loss of a step is the weighted mean over its pairs, sum_i w_i loss_i / sum_i w_i, whatever the micro-batches; each
head of an ensemble has a loss of its own, and their mean is descended. What stops training (validation) and what is
reported (test) are different prompts; the caller splits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rlhf import reward_batches
from rlhf.checkpoints import CheckpointFolder
from rlhf.config import RewardConfig
from rlhf.curve import batches
from rlhf.devices import Compute, on_device
from rlhf.losses import bradley_terry_loss
from rlhf.memory import Budget
from rlhf.models import restore, snapshot, trainable, unwrap
from rlhf.optimisation import Optimizer
from rlhf.reward_batches import Inputs, Shared
from rlhf.reward_metrics import log_loss
from rlhf.reward_model import RewardModel, combine
from rlhf.sequences import Sample, split_padded
from rlhf.sharding import divided, rounds
from rlhf.tracking import Log, no_log
from store.errors import RlaifError
from store.stage import Progress, silent


class Pair(NamedTuple):
    """One encoded preference. `margin`: the least difference that this pair asks for, in log-odds."""

    chosen: Sample
    rejected: Sample
    p_chosen: float
    weight: float
    margin: float = 0.0

    @property
    def length(self) -> int:
        return self.chosen.length + self.rejected.length


class Fit(NamedTuple):
    """`curve`: one row an evaluation. `best_step`: the optimizer step whose weights the model has now."""

    curve: list[dict[str, Any]]
    best_step: int
    steps: int


@dataclass
class Run:
    """What changes beside the weights; JSON. `losses`: of the steps since the last evaluation."""

    step: int = 0
    curve: list[dict[str, Any]] = field(default_factory=list)
    best: float | None = None
    best_step: int = 0
    worse: int = 0
    losses: list[float] = field(default_factory=list)
    done: bool = False


def train_reward_model(
    reward_model: RewardModel,
    train: Sequence[Pair],
    validation: Sequence[Pair],
    config: RewardConfig,
    seed: int,
    compute: Compute,
    progress: Progress = silent,
    log: Log = no_log,
    checkpoints: Path | None = None,
) -> Fit:
    """Train in place and leave the weights with the least validation log-loss (the last ones without such pairs).

    A run that was killed goes on from the last checkpoint in `checkpoints`. Raises RlaifError where the loss is not a
    number.
    """
    model = reward_model.model
    steps = max(1, round(config.epochs * len(train) / config.batch_size))
    every = max(1, round(len(train) / config.batch_size / config.evaluations_per_epoch))
    optimizer = Optimizer(trainable(model).values(), config.optimisation, steps)
    budget = Budget(config.optimisation.batch_tokens)
    labels = torch.tensor([pair.p_chosen for pair in validation])
    run, best_weights = Run(), snapshot(model) if validation else {}
    store = CheckpointFolder(checkpoints, world=compute.world) if checkpoints and config.checkpoint_every else None
    if store is not None and (found := store.latest()) is not None:
        state, best_weights = store.resume(found, {"model": model}, {"model": optimizer})
        run = Run(**state)
        progress("reward model", run.step, steps, f"resumed at step {run.step}")
    for members in islice(batches(len(train), config.batch_size, seed), run.step, steps):
        if run.done:
            break
        run.step += 1
        rate = optimizer.learning_rate
        loss, norm = _step(reward_model, train, members, config, compute, budget, optimizer, run.step)
        run.losses.append(loss)
        progress("reward model", run.step, steps, f"loss {loss:.3f}")
        if run.step % every == 0 or run.step == steps:
            row: dict[str, Any] = {"step": run.step, "epoch": run.step * config.batch_size / len(train)}
            row["train_loss"] = sum(run.losses) / len(run.losses)
            run.losses.clear()
            row |= {"learning_rate": rate, "grad_norm": norm, "validation_log_loss": None, "validation_accuracy": None}
            run.curve.append(row)
            if validation:
                difference = differences(reward_model, validation, compute, budget, config.share_prefix)
                loss_now = log_loss(difference, labels)
                row |= {"validation_log_loss": loss_now, "validation_accuracy": float((difference > 0).float().mean())}
                if run.best is None or loss_now < run.best:
                    run.best, run.best_step, best_weights, run.worse = loss_now, run.step, snapshot(model), 0
                else:
                    run.worse += 1
            else:
                run.best_step = run.step
            log(run.step, row)
        run.done = run.step == steps or bool(config.patience and run.worse >= config.patience)
        if store is not None and (run.done or run.step % config.checkpoint_every == 0):
            store.save(run.step, {"model": model}, {"model": optimizer}, asdict(run), best_weights)
    if validation:
        restore(model, best_weights)
    return Fit(run.curve, run.best_step, run.step)


def _step(
    reward_model: RewardModel,
    train: Sequence[Pair],
    members: Sequence[int],
    config: RewardConfig,
    compute: Compute,
    budget: Budget,
    optimizer: Optimizer,
    step: int,
) -> tuple[float, float]:
    """(loss, norm of the gradient) of one optimizer step."""
    pairs = [train[index] for index in members]
    rate = optimizer.learning_rate
    own = budget.run(
        lambda tokens: _backward(reward_model, pairs, tokens, config, compute),
        "the reward model",
        optimizer.zero_grad,
        alone=not compute.sharded,
    )
    loss = float(compute.world.sum(own))
    norm = optimizer.step() if math.isfinite(loss) else None
    if norm is None:
        where = f"reward-model step {step} (pairs {', '.join(str(index) for index in members[:4])}, ...)"
        raise RlaifError(f"The loss of {where} is not a number: lower the learning rate ({rate:g}).")
    return loss, norm


@torch.no_grad()
def differences(
    reward_model: RewardModel, pairs: Sequence[Pair], compute: Compute, budget: Budget, share_prefix: bool = True
) -> Tensor:
    """[pairs] reward of the chosen minus reward of the rejected response, of the whole ensemble; float32 on the CPU."""
    members = member_rewards_of_pairs(reward_model, pairs, compute, budget, share_prefix)
    rewards = combine(members.flatten(0, 1), reward_model.ensemble.pessimism).view(-1, 2)
    return rewards[:, 0] - rewards[:, 1]


@torch.no_grad()
def member_rewards_of_pairs(
    reward_model: RewardModel, pairs: Sequence[Pair], compute: Compute, budget: Budget, share_prefix: bool = True
) -> Tensor:
    """[pairs, 2, members] rewards of the chosen and the rejected response, float32 on the CPU."""

    def share(mine: Sequence[Pair]) -> Sequence[Tensor]:
        def work(tokens: int) -> Tensor:
            rewards = torch.zeros(len(mine), 2, reward_model.heads)
            for part, inputs in forward_passes(reward_model, mine, tokens, share_prefix):
                with compute.autocast():
                    rewards[part] = _pairwise(reward_model.member_rewards(inputs)).cpu()
            return rewards

        return budget.run(work, "the rewards").unbind()

    rows = divided(reward_model.model, compute, pairs, share)
    own = torch.stack(rows) if rows else torch.zeros(0, 2, reward_model.heads)
    others = reward_model.ensemble.others
    found = [member_rewards_of_pairs(one, pairs, compute, budget, share_prefix) for one in others]
    return torch.cat([own, *found], 2)


def forward_passes(
    reward_model: RewardModel, pairs: Sequence[Pair], tokens: int, share_prefix: bool = True
) -> Iterator[tuple[list[int], Inputs]]:
    """(indices of pairs, what the model gets for them), of `tokens` tokens at most each, chosen before rejected.

    Pairs of about the same length are together. Where the model can (see rlhf.reward_batches), pairs whose texts begin
    alike are computed with that beginning once.
    """
    sharing = [
        reward_batches.share(pair.chosen, pair.rejected) if share_prefix and reward_model.abilities.shared else None
        for pair in pairs
    ]
    together = {index: one for index, one in enumerate(sharing) if one and one.common >= reward_batches.SHARED_LEAST}
    shared = list(together)
    for part in split_padded([len(together[index].ids) for index in shared], tokens):
        members = [shared[at] for at in part]
        yield members, _shared(reward_model, [together[index] for index in members])
    apart = [index for index in range(len(pairs)) if index not in together]
    for part in reward_model.parts([_cost(reward_model, pairs[index]) for index in apart], tokens):
        members = [apart[at] for at in part]
        samples = [sample for index in members for sample in (pairs[index].chosen, pairs[index].rejected)]
        yield members, reward_model.inputs(samples)


def _cost(reward_model: RewardModel, pair: Pair) -> int:
    """Tokens that the pair costs: padded rows are as long as their longest."""
    return pair.length if reward_model.abilities.packed else 2 * max(pair.chosen.length, pair.rejected.length)


def _pairwise(rewards: Tensor) -> Tensor:
    """[p, 2, k] from [2 p, k], chosen before rejected."""
    return rewards.reshape(-1, 2, rewards.shape[-1])


def _shared(reward_model: RewardModel, pairs: Sequence[Shared]) -> Inputs:
    model = reward_model.model
    return reward_batches.shared_rows(pairs, unwrap(model).device, reward_batches.mask_type(model))


def _backward(
    reward_model: RewardModel, pairs: Sequence[Pair], tokens: int, config: RewardConfig, compute: Compute
) -> Tensor:
    """[] this process's part of the loss of one step, whose gradient it leaves in the parameters.

    A pair's two sides share a forward pass, since its loss needs both.
    """
    weights = sum(pair.weight for pair in pairs)
    mine = [pairs[index] for index in compute.world.share([pair.length for pair in pairs])]

    def passes(of: Sequence[Pair]) -> list[tuple[list[Pair], Inputs]]:
        found = forward_passes(reward_model, of, tokens, config.share_prefix)
        return [([of[index] for index in part], inputs) for part, inputs in found]

    total = torch.zeros((), device=compute.device)
    for (members, inputs), counts in rounds(
        reward_model.model, compute.world, passes(mine), lambda: passes(pairs[:1])[0]
    ):
        with compute.autocast():
            rewards = _pairwise(reward_model.member_rewards(inputs))
        columns = [[_target(pair, config), _margin(pair, config), pair.weight * counts] for pair in members]
        target, margin, weight = on_device(torch.tensor(columns), compute.device).T[:, :, None]
        losses = bradley_terry_loss(
            rewards[:, 0],
            rewards[:, 1],
            target,
            margin=margin,
            label_smoothing=config.label_smoothing,
            centering=config.centering,
        )
        loss = (losses.mean(1, keepdim=True) * weight).sum() / weights
        loss.backward()
        total += loss.detach()
    return total


def _target(pair: Pair, config: RewardConfig) -> float:
    """The label of the loss. A tie is half won however sure the other labels are made."""
    if config.target == "soft" or pair.p_chosen == 0.5:
        return pair.p_chosen
    return float(pair.p_chosen > 0.5)


def _margin(pair: Pair, config: RewardConfig) -> float:
    """Soft labels carry their own margin: their loss is least where the difference is the log-odds of the label."""
    return config.margin + (pair.margin if config.target == "margin" else 0.0)
