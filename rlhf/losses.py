"""The losses of PPO and of the reward model, as pure functions.

Token losses return a sum; the caller divides by the token count of the whole minibatch, over all its micro-batches and
processes. The mean of means of micro-batches would weigh a token by the company it keeps.

PPO: Schulman et al. 2017 (arXiv 1707.06347), equation 7, and value clipping as in OpenAI baselines. Bradley-Terry:
Ouyang et al. 2022 (arXiv 2203.02155), equation 1, with a soft target.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class PolicyLoss(NamedTuple):
    """`loss`: sum over tokens. `clipped`: number of tokens whose gradient the clip removed. `kl`: sum of the k3
    estimate of KL(old || new)."""

    loss: Tensor
    clipped: Tensor
    kl: Tensor


def importance_weights(logprobs: Tensor, engine_logprobs: Tensor, cap: float) -> Tensor:
    """min(p_trainer / p_engine, cap) of each sampled token, without gradient; all of one shape.

    logprobs: of the trainer's policy as it was when the engine sampled. They correct the expectation for an engine
    whose arithmetic is not the trainer's; the cap bounds the variance and biases towards what the engine sampled.
    Truncated importance sampling: Ionides 2008 (J. Comput. Graph. Stat. 17, 295-311); a token's own weight before
    PPO's clipped term: Yao et al. 2025, "Your Efficient RL Framework Secretly Brings You Off-Policy RL Training".
    """
    return (logprobs - engine_logprobs).detach().exp().clamp(max=cap)


def policy_loss(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, clip: float, weights: Tensor | None = None
) -> PolicyLoss:
    """Sum over tokens of w * max(-A * ratio, -A * clip(ratio, 1 - c, 1 + c)); all arguments [n].

    weights: w, see `importance_weights`; None: 1.
    """
    log_ratio = logprobs - old_logprobs
    ratio = log_ratio.exp()
    plain = -advantages * ratio
    bounded = -advantages * ratio.clamp(1 - clip, 1 + clip)
    with torch.no_grad():
        clipped = (bounded > plain).sum()
        kl = (ratio - 1 - log_ratio).sum()
    loss = torch.maximum(plain, bounded)
    return PolicyLoss((loss if weights is None else weights * loss).sum(), clipped, kl)


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, clip: float) -> Tensor:
    """[] sum over tokens of max((V - R)^2, (clip(V, V_old - c, V_old + c) - R)^2) / 2; all arguments [n]."""
    bounded = old_values + (values - old_values).clamp(-clip, clip)
    return 0.5 * torch.maximum((values - returns).square(), (bounded - returns).square()).sum()


def bradley_terry_loss(
    chosen: Tensor,
    rejected: Tensor,
    p_chosen: Tensor,
    *,
    margin: Tensor | float = 0.0,
    label_smoothing: float = 0.0,
    centering: float = 0.0,
) -> Tensor:
    """[b] loss of each pair with rewards `chosen` [b] and `rejected` [b].

        q = p (1 - 2 s) + s
        loss = -q log sigmoid(D - m) - (1 - q) log sigmoid(m - D) + c ((r_chosen + r_rejected) / 2)^2,  D the difference

    p_chosen: [b] in 0..1, the soft label p. margin m: the least difference that a sure label asks for. label_smoothing
    s: in 0..0.5. centering c: keeps the rewards near 0, which the pairs alone leave undetermined (Eisenstein et al.
    2023, arXiv 2312.09244). logsigmoid stays finite where log(1 + exp) overflows.
    """
    target = p_chosen * (1 - 2 * label_smoothing) + label_smoothing
    difference = chosen - rejected - margin
    loss = -target * F.logsigmoid(difference) - (1 - target) * F.logsigmoid(-difference)
    if centering:
        loss = loss + centering * ((chosen + rejected) / 2).square()
    return loss
