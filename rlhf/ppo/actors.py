"""The models that take part in PPO, and what each is asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rlhf.config import PPOConfig
from rlhf.devices import Compute
from rlhf.engines.base import RolloutEngine
from rlhf.forward import logprobs_of
from rlhf.logprobs import token_logprobs
from rlhf.memory import Budget
from rlhf.models import Model, adapter_off, attach_lora, disable_dropout, head, hidden_states, load_policy
from rlhf.ppo.critic import Critic, SharedCritic, separate_critic, shared_critic, values_of
from rlhf.reward_model import load_reward_model
from rlhf.rewards import Term, build_terms
from rlhf.sequences import Sample, micro_batches, rows_of
from rlhf.sharding import divided, shard
from rlhf.tokens import Codec, same_vocabulary

Score = Callable[[Sequence[tuple[str, str]]], Tensor]
"""From (prompt, response) texts to one score each, [b]: a reward model, or any function."""


@dataclass
class Actors:
    """`reference`: a frozen model, or None where the policy has LoRA adapters, which are switched off for it.
    `critic`: None for estimators that need none. `terms`: named parts of the reward beside the score.
    `engine`: what responds in the policy's stead, None where it does so itself."""

    policy: Model
    codec: Codec
    reference: Model | None
    critic: Critic | None
    score: Score
    compute: Compute
    terms: Mapping[str, Term] = field(default_factory=dict)
    engine: RolloutEngine | None = None

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
        def part(mine: Sequence[Sample]) -> list[tuple[Tensor, Tensor]]:
            return budget.run(lambda tokens: work(mine, tokens), "the rollouts")

        def work(mine: Sequence[Sample], tokens: int) -> list[tuple[Tensor, Tensor]]:
            rows = [(torch.empty(0), torch.empty(0))] * len(mine)
            for batch in micro_batches(mine, tokens, self.compute.device):
                with self.compute.autocast():
                    states = hidden_states(self.policy, batch.ids, batch.positions)[batch.before]
                    flat = token_logprobs(states, head(self.policy), batch.targets, temperature)
                    flat_values = critic.values_of_states(states)
                both = (rows_of(column.float().cpu(), batch.lengths) for column in (flat, flat_values))
                for index, *row in zip(batch.members, *both, strict=True):
                    rows[index] = (row[0], row[1])
            return rows

        rows = divided(self.policy, self.compute, samples, part)
        return [logprobs for logprobs, _ in rows], [values for _, values in rows]


def load_actors(
    policy_name: str, reward_name: str, config: PPOConfig, compute: Compute, judged: Mapping[str, Term] | None = None
) -> Actors:
    """The actors of a run: the policy at `policy_name`, which is the reference too, and the reward model's score.
    `judged`: the reward terms of judges and rules by name; see `rlhf.rewards.build_terms`.

    Set torch's seed before: a new value head, or new adapters, are drawn from it.
    """
    terms = build_terms(config, judged or {})
    policy, codec = load_policy(policy_name, compute, trained=True)
    reference: Model | None = None
    if config.lora is not None:
        policy = attach_lora(policy, config.lora, compute=compute)
        disable_dropout(policy)
    # Divided among the processes as soon as it is there: several whole models at once may not fit on one device.
    shard(policy, compute)
    if config.lora is None:
        reference = shard(load_policy(policy_name, compute)[0], compute)
    reward_model = load_reward_model(reward_name, compute)
    for member in (reward_model, *reward_model.ensemble.others):
        shard(member.model, compute)
    budget = Budget(config.optimisation.batch_tokens)
    critic: Critic | None = None
    if config.advantage == "gae" and config.critic == "shared":
        critic = shared_critic(policy)
    elif config.advantage == "gae":
        same = reward_model.causal and same_vocabulary(codec, reward_model.codec)
        critic = separate_critic(reward_name if same else policy_name, compute, config.lora)

    def score(exchanges: Sequence[tuple[str, str]]) -> Tensor:
        return reward_model.score(exchanges, compute, budget)

    return Actors(policy, codec, reference, critic, score, compute, terms)
