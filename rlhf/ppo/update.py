"""The optimisation of one update: epochs x minibatches steps on the policy and on the critic.

A minibatch is a fixed share of the responses; micro-batches below it bound memory and change nothing, since each loss
is a sum over tokens divided by the minibatch's token count. With many processes that count and the gradients are to be
summed over all of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from rlhf.config import PPOConfig
from rlhf.generation import row_seed
from rlhf.logprobs import token_logprobs, token_logprobs_and_entropy
from rlhf.losses import policy_loss, value_loss
from rlhf.memory import Budget
from rlhf.models import head, hidden_states
from rlhf.optimisation import Optimizer
from rlhf.ppo.actors import Actors
from rlhf.ppo.critic import SeparateCritic, SharedCritic
from rlhf.ppo.rollout import NotFiniteError, Rollouts, Targets
from rlhf.sequences import MicroBatch, Sample, flat_of, micro_batches


@dataclass
class Sums:
    """Sums over the tokens of a minibatch, added up on the device and read once."""

    policy: Tensor | float = 0.0
    value: Tensor | float = 0.0
    clipped: Tensor | float = 0.0
    kl: Tensor | float = 0.0
    entropy: Tensor | float = 0.0

    def per_token(self, tokens: int) -> dict[str, float]:
        return {field.name: float(getattr(self, field.name)) / tokens for field in fields(self)}


@dataclass
class Stats:
    """Averages over the minibatches that were really computed."""

    totals: dict[str, float]
    counts: dict[str, int]

    def add(self, name: str, value: float) -> None:
        self.totals[name] = self.totals.get(name, 0.0) + value
        self.counts[name] = self.counts.get(name, 0) + 1

    def mean(self, name: str) -> float | None:
        return self.totals[name] / self.counts[name] if name in self.totals else None


def optimise(
    actors: Actors,
    rollouts: Rollouts,
    goal: Targets,
    config: PPOConfig,
    policy_optimizer: Optimizer,
    critic_optimizer: Optimizer | None,
    budget: Budget,
    seed: int,
    update: int,
) -> dict[str, Any]:
    """Take the steps; returns the update's averages. Raises NotFiniteError, without a step, where a loss is none.

    The epochs end early, without the step that found it, once a minibatch's approximate KL passes `max_update_kl`.
    """
    stats = Stats({}, {})
    count = len(rollouts.samples)
    size = count // config.minibatches
    ended = False
    for epoch in range(config.epochs):
        generator = torch.Generator().manual_seed(row_seed(seed, "minibatches", update, epoch))
        order = torch.randperm(count, generator=generator).tolist()
        for number in range(config.minibatches):
            members = order[number * size : (number + 1) * size]
            where = _where(rollouts, members, update, epoch, number)
            if not _policy_step(actors, rollouts, goal, members, config, policy_optimizer, budget, stats, where):
                ended = True
                break
            if critic_optimizer is not None:
                _critic_step(actors, rollouts, goal, members, config, critic_optimizer, budget, stats, where)
        if ended:
            break
    return {
        "policy_loss": stats.mean("policy"),
        "value_loss": stats.mean("value"),
        "clip_fraction": stats.mean("clipped"),
        "approx_kl": stats.mean("kl"),
        "policy_entropy": stats.mean("entropy") if config.entropy_coefficient else None,
        "grad_norm": stats.mean("grad_norm"),
        "value_grad_norm": stats.mean("value_grad_norm"),
        "optimizer_steps": stats.counts.get("grad_norm", 0),
        "stopped_early": ended,
    }


def _policy_step(
    actors: Actors,
    rollouts: Rollouts,
    goal: Targets,
    members: Sequence[int],
    config: PPOConfig,
    optimizer: Optimizer,
    budget: Budget,
    stats: Stats,
    where: str,
) -> bool:
    """One step of the policy, with a shared critic also of its head. False where the KL ended the update."""
    tokens = int(rollouts.lengths[list(members)].sum())

    def work(size: int) -> Sums:
        sums = Sums()
        for batch in _micro_batches(rollouts, members, size, actors):
            with actors.compute.autocast():
                loss = _policy_micro_batch(actors, batch, rollouts, goal, config, sums)
            (loss / tokens).backward()  # type: ignore[no-untyped-call]
        return sums

    sums = budget.run(work, "the policy update", optimizer.zero_grad).per_token(tokens)
    if not all(math.isfinite(value) for value in sums.values()):
        optimizer.zero_grad()
        raise NotFiniteError(f"The policy loss of {where} is not a number")
    for name, value in sums.items():
        if name != "value" or isinstance(actors.critic, SharedCritic):
            stats.add(name, value)
    if config.max_update_kl is not None and sums["kl"] > config.max_update_kl:
        optimizer.zero_grad()
        return False
    norm = optimizer.step()
    if norm is None:
        raise NotFiniteError(f"The policy gradient of {where} is not a number")
    stats.add("grad_norm", norm)
    return True


def _policy_micro_batch(
    actors: Actors, batch: MicroBatch, rollouts: Rollouts, goal: Targets, config: PPOConfig, sums: Sums
) -> Tensor:
    """[] sum over the micro-batch's tokens of everything the policy's parameters are trained on."""

    def flat(padded: Tensor) -> Tensor:
        return flat_of(padded, batch.members, batch.lengths).to(actors.compute.device)

    states = hidden_states(actors.policy, batch.ids, batch.positions)[batch.before]
    temperature = config.decoding.temperature
    if config.entropy_coefficient:
        logprobs, entropy = token_logprobs_and_entropy(states, head(actors.policy), batch.targets, temperature)
        sums.entropy = sums.entropy + entropy.detach().sum()
    else:
        # The entropy needs the softmax over the whole vocabulary: it is computed only where it is optimised.
        logprobs, entropy = token_logprobs(states, head(actors.policy), batch.targets, temperature), None
    result = policy_loss(logprobs, flat(rollouts.logprobs), flat(goal.advantages), config.clip)
    sums.policy = sums.policy + result.loss.detach()
    sums.clipped = sums.clipped + result.clipped
    sums.kl = sums.kl + result.kl
    loss = result.loss if entropy is None else result.loss - config.entropy_coefficient * entropy.sum()
    if isinstance(actors.critic, SharedCritic) and goal.returns is not None and rollouts.values is not None:
        values = actors.critic.values_of_states(states)
        fit = value_loss(values, flat(rollouts.values), flat(goal.returns), config.value_clip)
        sums.value = sums.value + fit.detach()
        loss = loss + config.value_coefficient * fit
    return loss


def _critic_step(
    actors: Actors,
    rollouts: Rollouts,
    goal: Targets,
    members: Sequence[int],
    config: PPOConfig,
    optimizer: Optimizer,
    budget: Budget,
    stats: Stats,
    where: str,
) -> None:
    critic, old_values, returns = actors.critic, rollouts.values, goal.returns
    if not isinstance(critic, SeparateCritic) or old_values is None or returns is None:
        raise ValueError("a critic step needs a separate critic, its old values and returns")
    tokens = int(rollouts.lengths[list(members)].sum())

    def work(size: int) -> float:
        total = torch.zeros((), device=actors.compute.device)
        for batch in _micro_batches(rollouts, members, size, actors):
            old, goals = (
                flat_of(padded, batch.members, batch.lengths).to(actors.compute.device)
                for padded in (old_values, returns)
            )
            with actors.compute.autocast():
                loss = value_loss(critic.values(batch), old, goals, config.value_clip) / tokens
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        return float(total)

    loss = budget.run(work, "the critic update", optimizer.zero_grad)
    norm = optimizer.step() if math.isfinite(loss) else None
    if norm is None:
        optimizer.zero_grad()
        raise NotFiniteError(f"The value loss of {where} is not a number")
    stats.add("value", loss)
    stats.add("value_grad_norm", norm)


def _micro_batches(rollouts: Rollouts, members: Sequence[int], size: int, actors: Actors) -> list[MicroBatch]:
    """Micro-batches whose `members` count in the whole batch of rollouts."""
    samples: list[Sample] = [rollouts.samples[index] for index in members]
    return [
        batch._replace(members=[members[index] for index in batch.members])
        for batch in micro_batches(samples, size, actors.compute.device)
    ]


def _where(rollouts: Rollouts, members: Sequence[int], update: int, epoch: int, number: int) -> str:
    names = ", ".join(rollouts.prompts[index].prompt_id for index in members[:4])
    more = f" and {len(members) - 4} more" if len(members) > 4 else ""
    return f"update {update}, epoch {epoch + 1}, minibatch {number + 1} (prompts {names}{more})"
