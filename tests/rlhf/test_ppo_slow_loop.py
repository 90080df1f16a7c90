"""One optimisation step of PPO, from scores to gradients, against a loop over tokens in float64 that shares no code
with it: every number of the config must be where it belongs. CHECKS: 2, 3, 7-13."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from rlhf.memory import Budget
from rlhf.models import trainable
from rlhf.ppo.actors import Actors
from rlhf.ppo.critic import SeparateCritic
from rlhf.ppo.rollout import targets
from rlhf.ppo.trainer import _optimizers
from rlhf.ppo.update import optimise
from tests.rlhf.ppo_world import config_of, one_batch

GAMMA, LAMBDA, CLIP, VALUE_CLIP, VALUE_WEIGHT, BETA, PENALTY = 0.9, 0.8, 0.15, 0.1, 0.3, 0.2, 0.5
TEMPERATURE, REWARD_CLIP, STOP = 0.8, 0.7, 2


def slow_losses(actors: Actors, rollouts: Any, policy: Any, critic: Any) -> tuple[Tensor, Tensor]:
    """(policy loss, value loss), both over the token count, of the float64 models `policy` and `critic`."""
    clipped = [min(max(float(score), -REWARD_CLIP), REWARD_CLIP) for score in rollouts.scores]
    mean = sum(clipped) / len(clipped)
    spread = (sum((score - mean) ** 2 for score in clipped) / len(clipped)) ** 0.5
    rows, count = [], 0
    for index, sample in enumerate(rollouts.samples):
        length = len(sample.response)
        old, reference, values = (
            [float(value) for value in column[index, :length]]
            for column in (rollouts.logprobs, rollouts.reference_logprobs, rollouts.values)
        )
        rewards = [-BETA * (a - b) ** 2 / 2 for a, b in zip(old, reference, strict=True)]  # k2
        rewards[-1] += (clipped[index] - mean) / spread + mean - (0 if sample.response[-1] == STOP else PENALTY)
        after = [*values[1:], 0.0]
        deltas = [r + GAMMA * b - a for r, a, b in zip(rewards, values, after, strict=True)]
        advantages = [sum((GAMMA * LAMBDA) ** (k - t) * deltas[k] for k in range(t, length)) for t in range(length)]
        rows.append((sample, old, values, advantages, [a + v for a, v in zip(advantages, values, strict=True)]))
        count += length
    every = [a for row in rows for a in row[3]]
    centre = sum(every) / count
    scale = (sum((a - centre) ** 2 for a in every) / count) ** 0.5
    policy_loss, value_loss = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for sample, old, values, advantages, returns in rows:
        ids = torch.tensor([[*sample.prompt, *sample.response]])
        logits = policy(input_ids=ids).logits[0] / TEMPERATURE
        body = critic.model.model if isinstance(actors.critic, SeparateCritic) else policy.model
        states = body(input_ids=ids).last_hidden_state[0]
        for t, token in enumerate(sample.response):
            at = len(sample.prompt) + t - 1
            ratio = (torch.log_softmax(logits[at], -1)[token] - old[t]).exp()
            a = (advantages[t] - centre) / scale
            policy_loss = policy_loss - torch.minimum(ratio * a, ratio.clamp(1 - CLIP, 1 + CLIP) * a)
            if isinstance(actors.critic, SeparateCritic):
                value = critic.model.score.weight[0] @ states[at] + critic.bias
            else:
                value = critic.head.weight[0] @ states[at] + critic.head.bias[0]
            near = values[t] + (value - values[t]).clamp(-VALUE_CLIP, VALUE_CLIP)
            value_loss = value_loss + torch.maximum((value - returns[t]) ** 2, (near - returns[t]) ** 2) / 2
    return policy_loss / count, value_loss / count


@pytest.mark.parametrize("critic", ["separate", "shared"])
def test_a_step_equals_a_slow_loop(critic: str, make_actors: Callable[..., Actors]) -> None:
    config = config_of(
        critic=critic,
        minibatches=1,
        epochs=1,
        gamma=GAMMA,
        gae_lambda=LAMBDA,
        clip=CLIP,
        value_clip=VALUE_CLIP,
        value_coefficient=VALUE_WEIGHT,
        reward_clip=REWARD_CLIP,
        whiten_rewards=True,
        missing_stop_penalty=PENALTY,
        kl={"coefficient": BETA, "estimator": "k2", "budget": 1000},
        decoding={"max_new_tokens": 6, "temperature": TEMPERATURE},
        optimisation={"learning_rate": 1e-3, "max_grad_norm": 1e9},
    )
    actors = make_actors(config)
    rollouts, _ = one_batch(actors, config)
    # As if the batch were of an older policy, critic and of another reference: clips bind, and KL is not 0.
    noise = torch.Generator().manual_seed(0)
    columns = {
        name: getattr(rollouts, name) + 0.3 * torch.randn(rollouts.logprobs.shape, generator=noise)
        for name in ("logprobs", "reference_logprobs", "values")
    }
    rollouts = dataclasses.replace(rollouts, **columns)
    double_policy, double_critic = (copy.deepcopy(model).double() for model in (actors.policy, actors.critic))
    expected = dict(zip(("policy", "value"), slow_losses(actors, rollouts, double_policy, double_critic), strict=True))
    (expected["policy"] + expected["value"] * (1 if critic == "separate" else VALUE_WEIGHT)).backward()
    found: dict[str, Tensor] = {}
    members = {"policy": actors.policy, "critic": actors.critic}
    for optimizer in filter(None, optimizers := _optimizers(actors, config)):
        optimizer.adamw.register_step_pre_hook(
            lambda *_: found.update(
                {
                    f"{who}.{name}": value.grad.clone()
                    for who, model in members.items()
                    for name, value in trainable(model).items()
                    if value.grad is not None
                }
            )
        )
    stats = optimise(actors, rollouts, targets(rollouts, config, BETA), config, *optimizers, Budget(30), 0, 0)
    assert stats["policy_loss"] == pytest.approx(float(expected["policy"].detach()), abs=1e-5)
    assert stats["value_loss"] == pytest.approx(float(expected["value"].detach()), abs=1e-5)
    assert stats["clip_fraction"] > 0.1
    for who, model in (("policy", double_policy), ("critic", double_critic)):
        for name, value in trainable(model).items():
            torch.testing.assert_close(found[f"{who}.{name}"].double(), value.grad, atol=2e-5, rtol=1e-3)
