"""Collecting the experience of one update: responses, their scores, log-probs under policy and reference, values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from rlhf.advantages import gae, grpo, masked_whiten, rloo
from rlhf.config import PPOConfig
from rlhf.engines.transformers import TransformersEngine
from rlhf.generation import row_seed
from rlhf.kl import kl_estimate
from rlhf.memory import Budget
from rlhf.ppo.actors import Actors
from rlhf.ppo.importance import Importance, importance
from rlhf.rewards import Responses, add_terms, shape_scores, token_rewards
from rlhf.sampling import Prompt, respond_by
from rlhf.sequences import Sample, length_mask, pad_rows
from store.errors import RlaifError


class NotFiniteError(RlaifError):
    """A score, log-prob or loss is not a number. The message names the batch."""


@dataclass(frozen=True)
class Rollouts:
    """b responses, t tokens of the longest. All tensors are float32 on the CPU."""

    prompts: list[Prompt]
    samples: list[Sample]
    responses: list[str]
    lengths: Tensor
    """[b] response tokens, a sampled stop token included."""
    finished: Tensor
    """[b] whether the policy sampled a stop token."""
    scores: Tensor
    """[b] of the reward model."""
    logprobs: Tensor
    """[b, t] under the policy that sampled, at the sampling temperature, recomputed as the update computes them."""
    reference_logprobs: Tensor
    """[b, t] likewise under the reference."""
    values: Tensor | None
    """[b, t] of the critic; None without one."""
    terms: Mapping[str, Tensor] = field(default_factory=dict)
    """[b] of each named reward term, NaN where it could not be measured."""
    importance: Importance | None = None
    """Of the tokens, where another engine sampled them; None: the policy itself did, and every weight is 1."""

    @property
    def mask(self) -> Tensor:
        return length_mask(self.lengths, self.logprobs.shape[1])


class Targets(NamedTuple):
    """What the update fits. `returns` is None without a critic; `shaped` [b] are the scores after clip and terms."""

    advantages: Tensor
    returns: Tensor | None
    shaped: Tensor


class Budgets(NamedTuple):
    """Sizes of micro-batches; they shrink where memory runs out."""

    tokens: Budget
    responses: Budget


def prompts_of_update(prompts: Sequence[Prompt], update: int, count: int, seed: int) -> list[Prompt]:
    """`count` prompts: an endless walk through permutations of all, so the update's number is the whole data cursor."""
    chosen: list[Prompt] = []
    position = update * count
    while len(chosen) < count:
        passes, start = divmod(position + len(chosen), len(prompts))
        generator = torch.Generator().manual_seed(row_seed(seed, "order", passes))
        order = torch.randperm(len(prompts), generator=generator).tolist()
        chosen.extend(prompts[index] for index in order[start : start + count - len(chosen)])
    return chosen


def collect(
    actors: Actors, prompts: Sequence[Prompt], config: PPOConfig, seed: int, update: int, budgets: Budgets
) -> Rollouts:
    """Respond `group_size` times to each prompt with the policy as it is now, and measure the responses.

    Raises NotFiniteError, and TransientError where the rollout engine died.
    """
    repeated = [prompt for prompt in prompts for _ in range(config.group_size)]
    engine = actors.engine or TransformersEngine(actors.policy, actors.compute, budgets.responses)
    engine.sync(actors.policy)
    generated = respond_by(
        engine,
        actors.codec,
        [prompt.prompt for prompt in repeated],
        [row_seed(seed, "ppo", update, row) for row in range(len(repeated))],
        config.decoding,
    )
    engine.sleep()
    samples = [
        Sample(actors.codec.prompt_ids(prompt.prompt), result.ids)
        for prompt, result in zip(repeated, generated, strict=True)
    ]
    responses = [actors.codec.text(result.ids) for result in generated]
    lengths = torch.tensor([len(result.ids) for result in generated])
    finished = torch.tensor([result.finish_reason == "stop" for result in generated])
    about = Responses(repeated, responses, lengths, finished)
    temperature = config.decoding.temperature
    rows, values = actors.logprobs_and_values(samples, budgets.tokens, temperature)
    logprobs = pad_rows(rows)
    rollouts = Rollouts(
        prompts=repeated,
        samples=samples,
        responses=responses,
        lengths=lengths,
        finished=finished,
        scores=actors.score([(p.prompt, r) for p, r in zip(repeated, responses, strict=True)]).float().cpu(),
        logprobs=logprobs,
        reference_logprobs=pad_rows(actors.reference_logprobs(samples, budgets.tokens, temperature)),
        values=None if values is None else pad_rows(values),
        terms={name: actors.compute.world.once(partial(term, about)) for name, term in actors.terms.items()},
        importance=None if engine.exact else importance(logprobs, generated, config.importance_cap),
    )
    _require_finite(rollouts, update)
    return rollouts


def targets(rollouts: Rollouts, config: PPOConfig, beta: float) -> Targets:
    """Rewards, then returns, then advantages: whitened last, so that the critic fits the rewards' own scale."""
    mask = rollouts.mask
    shaped = add_terms(
        shape_scores(rollouts.scores, clip=config.reward_clip, whiten=config.whiten_rewards), rollouts.terms
    )
    kl = kl_estimate(rollouts.logprobs, rollouts.reference_logprobs, config.kl.estimator)
    rewards = token_rewards(shaped, kl, rollouts.lengths, beta)
    if config.advantage == "gae":
        if rollouts.values is None:
            raise ValueError("advantage gae needs a critic")
        advantages, returns = gae(rewards, rollouts.values, mask, config.gamma, config.gae_lambda)
        if config.whiten_advantages:
            advantages = masked_whiten(advantages, mask)
        return Targets(advantages, returns, shaped)
    estimate = rloo if config.advantage == "rloo" else grpo
    per_response = estimate(rewards.sum(1), config.group_size)
    advantages = per_response[:, None] * mask
    if config.whiten_advantages and config.advantage == "rloo":
        # GRPO scales each group by itself already.
        advantages = masked_whiten(advantages, mask)
    return Targets(advantages, None, shaped)


def _require_finite(rollouts: Rollouts, update: int) -> None:
    columns = {
        "score": rollouts.scores.isfinite(),
        "log-prob": rollouts.logprobs.isfinite().all(1),
        "log-prob of the reference": rollouts.reference_logprobs.isfinite().all(1),
        "importance weight": torch.ones(1, dtype=torch.bool)
        if rollouts.importance is None
        else rollouts.importance.weights.isfinite().all(1),
        "value": torch.ones(1, dtype=torch.bool) if rollouts.values is None else rollouts.values.isfinite().all(1),
    }
    for name, fine in columns.items():
        if not fine.all():
            row = int((~fine).nonzero()[0, 0])
            raise NotFiniteError(
                f"A {name} of update {update} is not a number: prompt {rollouts.prompts[row].prompt_id}, "
                f"response {rollouts.responses[row][:80]!r}"
            )
