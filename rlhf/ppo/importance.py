"""What is known of tokens that another engine sampled: its log-probs, and the weights that correct for it.

The trainer's log-probs of the same tokens are recomputed in any case, so that the ratio of the first optimisation pass
is 1; the engine's are only for the weights (rlhf.losses.importance_weights), which the policy loss alone has. Rewards,
advantages and the KL are estimated from the engine's sample as if it were the policy's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rlhf.advantages import masked_mean
from rlhf.generation import Generated
from rlhf.losses import importance_weights
from rlhf.sequences import pad_rows


class Importance(NamedTuple):
    """b responses of at most t tokens."""

    engine_logprobs: Tensor
    """[b, t] of the sampled tokens, at the sampling temperature, as the engine computed them."""
    weights: Tensor
    """[b, t] in 0..cap."""
    cap: float


def importance(logprobs: Tensor, generated: Sequence[Generated], cap: float) -> Importance:
    """logprobs: [b, t] of the trainer's policy that the engine has the weights of."""
    engine = pad_rows([torch.tensor(result.sampling_logprobs) for result in generated])
    return Importance(engine, importance_weights(logprobs, engine, cap), cap)


def importance_metrics(found: Importance | None, logprobs: Tensor, mask: Tensor) -> dict[str, float]:
    """Over the sampled tokens; nothing where the policy itself sampled.

    importance_weight: mean weight. importance_truncated: share of weights that the cap cut. engine_logprob_difference
    and engine_logprob_difference_max: mean and largest |log p_trainer - log p_engine|, in nats.
    """
    if found is None:
        return {}
    difference = (logprobs - found.engine_logprobs) * mask
    return {
        "importance_weight": float(masked_mean(found.weights, mask)),
        "importance_truncated": float(masked_mean((difference.exp() > found.cap).float(), mask)),
        "engine_logprob_difference": float(masked_mean(difference.abs(), mask)),
        "engine_logprob_difference_max": float(difference.abs().max()),
    }
