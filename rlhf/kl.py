"""Estimators of KL(policy || reference) from samples of the policy, and control of its weight in the reward.

With the log-ratio l = log pi(y) - log ref(y) of a token sampled from pi (Schulman 2020, "Approximating KL divergence",
joschu.net/blog/kl-approx.html):

    k1 = l                    unbiased, can be negative
    k2 = l^2 / 2              biased, small variance, never negative
    k3 = exp(-l) - 1 + l      unbiased, small variance, never negative

Here they are rewards, numbers without gradient. Of the three only -k1 as a reward has the policy gradient of
-KL(pi || ref); an estimator of a value need not be one of its gradient (docs/training/correctness.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from rlhf.config import KLControl

Estimator = Literal["k1", "k2", "k3"]

ERROR_CLIP = 0.2


def kl_estimate(logprobs: Tensor, reference_logprobs: Tensor, estimator: Estimator = "k1") -> Tensor:
    """Per-token estimate, of the shape of its arguments (any), in nats.

    It goes into the reward, which is a number to the policy gradient: the result carries no gradient.
    """
    log_ratio = (logprobs - reference_logprobs).detach()
    if estimator == "k1":
        return log_ratio
    if estimator == "k2":
        return log_ratio.square() / 2
    return torch.expm1(-log_ratio) + log_ratio


@dataclass
class KLController:
    """The coefficient beta. Fixed, or after Ziegler et al. 2019 (arXiv 1909.08593, section 2.2) steered to a target:

        e = clip(KL / target - 1, -0.2, 0.2);    beta <- beta * (1 + e * n / horizon)

    with KL the mean per response in nats, and n the number of responses it was measured on.
    """

    coefficient: float
    target: float | None = None
    horizon: float = 10_000

    @classmethod
    def of(cls, config: KLControl) -> KLController:
        return cls(config.coefficient, config.target, config.horizon)

    def update(self, kl: float, responses: int) -> None:
        if self.target is None:
            return
        error = min(max(kl / self.target - 1, -ERROR_CLIP), ERROR_CLIP)
        self.coefficient *= 1 + error * responses / self.horizon
