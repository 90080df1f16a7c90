"""The models that take part in PPO, and what each is asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf.config import PPOConfig
from rlhf.devices import Compute
from rlhf.forward import logprobs_of
from rlhf.logprobs import token_logprobs
from rlhf.memory import Budget
from rlhf.models import Model, adapter_off, attach_lora, disable_dropout, head, hidden_states, load_policy
from rlhf.ppo.critic import Critic, SharedCritic, separate_critic, shared_critic, values_of
from rlhf.reward_model import load_reward_model
from rlhf.sequences import Sample, micro_batches, rows_of
from rlhf.tokens import Codec, same_vocabulary

Score = Callable[[Sequence[tuple[str, str]]], Tensor]
"""From (prompt, response) texts to one score each, [b]: a reward model, or any function."""


@dataclass
class Actors:
    """`reference`: a frozen model, or None where the policy has LoRA adapters, which are switched off for it.
    `critic`: None for estimators that need none."""

    policy: Model
    codec: Codec
    reference: Model | None
    critic: Critic | None
    score: Score
    compute: Compute

    def reference_logprobs(self, samples: Sequence[Sample], budget: Budget, temperature: float) -> list[Tensor]:
        if self.reference is not None:
            return logprobs_of(self.reference, samples, self.compute, budget, temperature)
        with adapter_off(self.policy) as reference:
            return logprobs_of(reference, samples, self.compute, budget, temperature)

    def logprobs_and_values(
        self, samples: Sequence[Sample], budget: Budget, temperature: float
    ) -> tuple[list[Tensor], list[Tensor] | None]:
        """Old log-probs and values. A shared critic reads the hidden states of the same pass."""
        critic = self.critic
        if isinstance(critic, SharedCritic):
            return self._shared(critic, samples, budget, temperature)
        logprobs = logprobs_of(self.policy, samples, self.compute, budget, temperature)
        return logprobs, None if critic is None else values_of(critic, samples, self.compute, budget)

    @torch.no_grad()
    def _shared(
        self, critic: SharedCritic, samples: Sequence[Sample], budget: Budget, temperature: float
    ) -> tuple[list[Tensor], list[Tensor]]:
        def work(tokens: int) -> tuple[list[Tensor], list[Tensor]]:
            logprobs: list[Tensor] = [torch.empty(0)] * len(samples)
            values: list[Tensor] = [torch.empty(0)] * len(samples)
            for batch in micro_batches(samples, tokens, self.compute.device):
                with self.compute.autocast():
                    states = hidden_states(self.policy, batch.ids, batch.positions)[batch.before]
                    flat = token_logprobs(states, head(self.policy), batch.targets, temperature)
                    flat_values = critic.values_of_states(states)
                for into, what in ((logprobs, flat), (values, flat_values)):
                    for index, row in zip(batch.members, rows_of(what.float().cpu(), batch.lengths), strict=True):
                        into[index] = row
            return logprobs, values

        return budget.run(work, "the rollouts")


def load_actors(policy_name: str, reward_name: str, config: PPOConfig, compute: Compute) -> Actors:
    """The actors of a run: the policy at `policy_name`, which is the reference too, and the reward model's score.

    Set torch's seed before: a new value head, or new adapters, are drawn from it.
    """
    policy, codec = load_policy(policy_name, compute, trained=True)
    reward_model = load_reward_model(reward_name, compute)
    budget = Budget(config.optimisation.batch_tokens)
    critic: Critic | None = None
    reference: Model | None = None
    if config.lora is None:
        reference, _ = load_policy(policy_name, compute)
    else:
        policy = attach_lora(policy, config.lora)
        disable_dropout(policy)
    if config.advantage == "gae" and config.critic == "shared":
        critic = shared_critic(policy)
    elif config.advantage == "gae":
        same = same_vocabulary(codec, reward_model.codec)
        critic = separate_critic(reward_name if same else policy_name, compute, config.lora)

    def score(exchanges: Sequence[tuple[str, str]]) -> Tensor:
        return reward_model.score(exchanges, compute, budget)

    return Actors(policy, codec, reference, critic, score, compute)
