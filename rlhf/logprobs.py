"""Log-probabilities of given tokens, without holding float32 logits of the whole vocabulary for all of them.

log p(y_t) = z_t[y_t] / T - logsumexp_j(z_t[j] / T), with the logits z in float32 and T the sampling temperature. Old,
new and reference log-probs all use the same T (Huang et al. 2024, "The N+ Implementation Details of RLHF with PPO").
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

Head = Callable[[Tensor], Tensor]
"""From hidden states [n, d] to logits [n, v]."""

CHUNK_ELEMENTS = 1 << 24
"""Logits held at once: 64 MiB in float32."""


def token_logprobs(
    hidden: Tensor, head: Head, targets: Tensor, temperature: float = 1.0, chunk_elements: int = CHUNK_ELEMENTS
) -> Tensor:
    """[n] log-probs of `targets` [n], where `hidden` [n, d] are the states that predict them."""
    return _chunked(lambda h, y: _logprobs(head(h), y, temperature), hidden, head, targets, chunk_elements)


def token_logprobs_and_entropy(
    hidden: Tensor, head: Head, targets: Tensor, temperature: float = 1.0, chunk_elements: int = CHUNK_ELEMENTS
) -> tuple[Tensor, Tensor]:
    """[n] log-probs and [n] entropies, in nats, of the distribution at `temperature`."""

    def both(h: Tensor, y: Tensor) -> Tensor:
        logits = head(h).float() / temperature
        logp = torch.log_softmax(logits, -1)
        return torch.stack([logp.gather(-1, y[:, None])[:, 0], -(logp.exp() * logp).sum(-1)], -1)

    if not len(targets):
        return (empty := hidden.new_zeros(0, dtype=torch.float32)), empty
    pair = _chunked(both, hidden, head, targets, chunk_elements)
    return pair[:, 0], pair[:, 1]


def _logprobs(logits: Tensor, targets: Tensor, temperature: float) -> Tensor:
    logits = logits.float()
    return -F.cross_entropy(logits if temperature == 1 else logits / temperature, targets, reduction="none")


def _chunked(
    function: Callable[[Tensor, Tensor], Tensor], hidden: Tensor, head: Head, targets: Tensor, elements: int
) -> Tensor:
    if not len(targets):
        return hidden.new_zeros(0, dtype=torch.float32)
    vocabulary = _vocabulary(hidden, head)
    size = max(1, elements // vocabulary)
    if len(targets) <= size:
        return function(hidden, targets)
    keep = torch.is_grad_enabled()
    parts = []
    for h, y in zip(torch.split(hidden, size), torch.split(targets, size), strict=True):
        # Recomputed in the backward pass: otherwise the graph would hold every chunk's logits after all.
        part = checkpoint(function, h, y, use_reentrant=False) if keep else function(h, y)
        parts.append(cast(Tensor, part))
    return torch.cat(parts)


def _vocabulary(hidden: Tensor, head: Head) -> int:
    with torch.no_grad():
        return int(head(hidden[:1]).shape[-1])
