"""From one score a response to one reward a token: R_t = [t = T] * score - beta * KL_t.

Legend: b responses, t tokens of the longest, `lengths` the real tokens of each. Order of the terms as in Ziegler et al.
2019 and Huang et al. 2024: clip the score, whiten it, take the penalty for a missing stop off, add the KL.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf.sequences import length_mask


def shape_scores(
    scores: Tensor,
    finished: Tensor,
    *,
    clip: float | None = None,
    whiten: bool = False,
    missing_stop_penalty: float = 0.0,
) -> Tensor:
    """[b] the scores that are optimised, from the reward model's [b].

    `finished` [b]: whether the policy itself sampled a stop token. The penalty comes last, so that neither the clip nor
    the whitening can take it away again.
    """
    if clip is not None:
        scores = scores.clamp(-clip, clip)
    if whiten:
        scores = whiten_keeping_mean(scores)
    return scores - missing_stop_penalty * (~finished.bool()).to(scores.dtype)


def whiten_keeping_mean(scores: Tensor, epsilon: float = 1e-8) -> Tensor:
    """[b] scaled to unit variance around their own mean: the mean says how good the batch is, so it stays."""
    mean = scores.mean()
    return (scores - mean) / (scores.var(unbiased=False) + epsilon).sqrt() + mean


def token_rewards(scores: Tensor, kl: Tensor, lengths: Tensor, beta: float) -> Tensor:
    """[b, t] rewards: -beta * kl on every real token, plus the score once, on the last one; zero on padding.

    scores: [b]; kl: [b, t]; lengths: [b], each at least 1. A row sums to score - beta * sum KL.
    """
    mask = length_mask(lengths, kl.shape[1])
    rewards = torch.where(mask, -beta * kl, torch.zeros_like(kl))
    rows = torch.arange(len(scores), device=scores.device)
    rewards[rows, lengths - 1] += scores
    return rewards
