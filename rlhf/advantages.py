"""Advantage estimators and whitening. Legend: b responses, t tokens of the longest; `mask` [b, t] true on real tokens.

GAE: Schulman et al. 2016 (arXiv 1506.02438). RLOO: Ahmadian et al. 2024 (arXiv 2402.14740). GRPO: Shao et al. 2024
(arXiv 2402.03300), here with the KL in the reward as for the others, and not as a term of the loss.
"""

from __future__ import annotations

import torch
from torch import Tensor


def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Advantages and returns, both [b, t], zero on padding, from rewards [b, t] and values [b, t] of the states.

        delta_t = r_t + gamma * V_{t+1} - V_t;    A_t = delta_t + gamma * lambda * A_{t+1};    returns_t = A_t + V_t

    V and A are 0 past the last real token: a response is a whole episode, so nothing behind its end is bootstrapped,
    also for one that was cut off at the longest length (its reward is final). Returns are of the advantages before any
    whitening.
    """
    real = mask.to(values.dtype)
    rewards, values = rewards * real, values * real
    advantages = torch.zeros_like(values)
    following = torch.zeros_like(values[:, 0])
    next_value = torch.zeros_like(values[:, 0])
    for step in reversed(range(values.shape[1])):
        delta = rewards[:, step] + gamma * next_value - values[:, step]
        following = (delta + gamma * lam * following) * real[:, step]
        advantages[:, step] = following
        next_value = values[:, step]
    return advantages, advantages + values


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """[] mean over the real entries."""
    return torch.where(mask, values, 0).sum() / mask.to(values.dtype).sum()


def masked_whiten(values: Tensor, mask: Tensor, epsilon: float = 1e-8) -> Tensor:
    """[b, t] with mean 0 and variance 1 over the real entries; zero on padding.

    Every process has the rows of all (see rlhf.distributed), so this is global over the batch.
    """
    mean = masked_mean(values, mask)
    # Two passes: E[x^2] - E[x]^2 cancels where the mean is large against the spread.
    variance = masked_mean((values - mean).square(), mask)
    return torch.where(mask, (values - mean) * torch.rsqrt(variance + epsilon), torch.zeros_like(values))


def rloo(rewards: Tensor, group_size: int) -> Tensor:
    """[b] reward minus the mean of the other responses to the same prompt, from rewards [b] of whole responses.

    Responses of one prompt stand side by side, `group_size` (at least 2) of them.
    """
    groups = rewards.view(-1, group_size)
    others = (groups.sum(1, keepdim=True) - groups) / (group_size - 1)
    return (groups - others).reshape(-1)


def grpo(rewards: Tensor, group_size: int, epsilon: float = 1e-4) -> Tensor:
    """[b] reward minus its group's mean, over its group's standard deviation; 0 where all of a group are equal."""
    groups = rewards.view(-1, group_size)
    centred = groups - groups.mean(1, keepdim=True)
    return (centred / (groups.std(1, keepdim=True) + epsilon)).reshape(-1)
