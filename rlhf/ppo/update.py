"""The optimisation of one update: epochs x minibatches steps on the policy and on the critic.

A minibatch is a fixed share of the responses; processes and micro-batches divide it further and change nothing, since
each loss is a sum over tokens divided by the minibatch's token count, and gradients are summed over all processes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass, fields
from typing import Any

import torch
from torch import Tensor

from rlhf.config import PPOConfig
from rlhf.devices import Compute, on_device
from rlhf.generation import row_seed
from rlhf.logprobs import token_logprobs, token_logprobs_and_entropy
from rlhf.losses import policy_loss, value_loss
from rlhf.memory import Budget
from rlhf.models import Model, head, hidden_states
from rlhf.optimisation import Optimizer
from rlhf.ppo.actors import Actors
from rlhf.ppo.critic import SeparateCritic, SharedCritic
from rlhf.ppo.rollout import NotFiniteError, Rollouts, Targets
from rlhf.sequences import MicroBatch, flat_of, micro_batches, pack
from rlhf.sharding import passed, rounds


@dataclass
class Sums:
    """Sums over this process's tokens of a minibatch, added up on the device and read once."""

    policy: Tensor | float = 0.0
    value: Tensor | float = 0.0
    clipped: Tensor | float = 0.0
    kl: Tensor | float = 0.0
    entropy: Tensor | float = 0.0

    def per_token(self, tokens: int, compute: Compute) -> dict[str, float]:
        """Means over the `tokens` of the whole minibatch."""
        numbers = [torch.as_tensor(value, dtype=torch.float32, device=compute.device) for value in astuple(self)]
        totals = compute.world.sum(torch.stack(numbers).cpu().double()).tolist()
        return {field.name: total / tokens for field, total in zip(fields(self), totals, strict=True)}


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

    The epochs end early, without the step that found it, once a minibatch's approximate KL passes `max_update_kl`. In
    the first `critic_warmup` updates the policy takes no step.
    """
    warming = update < config.critic_warmup
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
            if not warming and not _policy_step(
                actors, rollouts, goal, members, config, policy_optimizer, budget, stats, where
            ):
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
        for batch, weight in _micro_batches(rollouts, members, size, actors.policy, actors.compute):
            with actors.compute.autocast():
                loss = _policy_micro_batch(actors, batch, rollouts, goal, config, sums, weight)
            (loss * weight / tokens).backward()  # type: ignore[no-untyped-call]
        return sums

    done = budget.run(work, "the policy update", optimizer.zero_grad, alone=not actors.compute.sharded)
    sums = done.per_token(tokens, actors.compute)
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
    actors: Actors,
    batch: MicroBatch,
    rollouts: Rollouts,
    goal: Targets,
    config: PPOConfig,
    sums: Sums,
    weight: float,
) -> Tensor:
    """[] sum over the micro-batch's tokens of everything the policy's parameters are trained on.

    weight: 0 where the pass is made for other processes' sake only, and is not to count in `sums`.
    """

    def flat(padded: Tensor) -> Tensor:
        return on_device(flat_of(padded, batch.members, batch.lengths), actors.compute.device)

    def forward() -> tuple[Tensor, Tensor, Tensor | None]:
        states = hidden_states(actors.policy, batch.ids, batch.positions)[batch.before]
        temperature = config.decoding.temperature
        if config.entropy_coefficient:
            both = token_logprobs_and_entropy(states, head(actors.policy), batch.targets, temperature)
            return states, *both
        # The entropy needs the softmax over the whole vocabulary: it is computed only where it is optimised.
        return states, token_logprobs(states, head(actors.policy), batch.targets, temperature), None

    states, logprobs, entropy = passed(actors.policy, forward)
    weights = None if rollouts.importance is None else flat(rollouts.importance.weights)
    result = policy_loss(logprobs, flat(rollouts.logprobs), flat(goal.advantages), config.clip, weights)
    sums.policy = sums.policy + weight * result.loss.detach()
    sums.clipped = sums.clipped + weight * result.clipped
    sums.kl = sums.kl + weight * result.kl
    if entropy is not None:
        sums.entropy = sums.entropy + weight * entropy.detach().sum()
    loss = result.loss if entropy is None else result.loss - config.entropy_coefficient * entropy.sum()
    if isinstance(actors.critic, SharedCritic) and goal.returns is not None and rollouts.values is not None:
        values = actors.critic.values_of_states(states)
        fit = value_loss(values, flat(rollouts.values), flat(goal.returns), config.value_clip)
        sums.value = sums.value + weight * fit.detach()
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

    compute = actors.compute

    def work(size: int) -> Tensor:
        total = torch.zeros((), device=compute.device)
        for batch, weight in _micro_batches(rollouts, members, size, critic.model, compute):
            old, goals = (
                on_device(flat_of(padded, batch.members, batch.lengths), compute.device)
                for padded in (old_values, returns)
            )
            with compute.autocast():
                loss = weight * value_loss(critic.values(batch), old, goals, config.value_clip) / tokens
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        return total

    done = budget.run(work, "the critic update", optimizer.zero_grad, alone=not compute.sharded)
    loss = float(compute.world.sum(done))
    norm = optimizer.step() if math.isfinite(loss) else None
    if norm is None:
        optimizer.zero_grad()
        raise NotFiniteError(f"The value loss of {where} is not a number")
    stats.add("value", loss)
    stats.add("value_grad_norm", norm)


def _micro_batches(
    rollouts: Rollouts, members: Sequence[int], size: int, model: Model, compute: Compute
) -> Iterator[tuple[MicroBatch, float]]:
    """This process's micro-batches of the minibatch with their weights; their `members` count in all the rollouts."""
    shared = [members[index] for index in compute.world.share([rollouts.samples[index].length for index in members])]
    samples = [rollouts.samples[index] for index in shared]
    batches = [
        batch._replace(members=[shared[index] for index in batch.members])
        for batch in micro_batches(samples, size, compute.device)
    ]
    yield from rounds(model, compute.world, batches, lambda: pack(rollouts.samples, members[:1], compute.device))


def _where(rollouts: Rollouts, members: Sequence[int], update: int, epoch: int, number: int) -> str:
    names = ", ".join(rollouts.prompts[index].prompt_id for index in members[:4])
    more = f" and {len(members) - 4} more" if len(members) > 4 else ""
    return f"update {update}, epoch {epoch + 1}, minibatch {number + 1} (prompts {names}{more})"
