"""Log-probabilities of given tokens, without holding float32 logits of the whole vocabulary for all of them.

log p(y_t) = z_t[y_t] / T - logsumexp_j(z_t[j] / T), with the logits z in float32 and T the sampling temperature. Old,
new and reference log-probs all use the same T (Huang et al. 2024, "The N+ Implementation Details of RLHF with PPO").

The head runs over chunks of tokens, small enough that a CPU finds a chunk's logits in its cache again. What a chunk
keeps for its backward pass is its softmax, in the type of the logits, and that becomes their gradient in place:

    d log p(y) / d z = (onehot(y) - softmax(z / T)) / T

Once `kept` elements are held, further chunks keep nothing and compute their logits a second time in the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

Head = Callable[[Tensor], Tensor]
"""From hidden states [n, d] to logits [n, v]."""

CHUNK = {"cpu": 1 << 22, "cuda": 1 << 27}
"""Elements of the logits that are computed at once, by kind of device: 16 MiB in float32, and 512 MiB."""
KEPT = {"cpu": 1 << 25, "cuda": 1 << 30}
"""Elements of the softmax kept for the backward pass: 128 MiB in float32, and 2 GiB in bfloat16."""


def token_logprobs(
    hidden: Tensor,
    head: Head,
    targets: Tensor,
    temperature: float = 1.0,
    chunk_elements: int | None = None,
    kept_elements: int | None = None,
) -> Tensor:
    """[n] float32 log-probs of `targets` [n], where `hidden` [n, d] are the states that predict them.

    Its gradient can be taken once: a second backward pass through the same graph raises RuntimeError.
    """

    def logprobs(h: Tensor, y: Tensor) -> Tensor:
        value: Tensor = _Selected.apply(head(h), y, temperature)  # type: ignore[no-untyped-call]
        return value

    return _chunked(logprobs, hidden, head, targets, chunk_elements, kept_elements)


def token_logprobs_and_entropy(
    hidden: Tensor,
    head: Head,
    targets: Tensor,
    temperature: float = 1.0,
    chunk_elements: int | None = None,
    kept_elements: int | None = None,
) -> tuple[Tensor, Tensor]:
    """[n] log-probs and [n] entropies, in nats, of the distribution at `temperature`; float32."""

    def both(h: Tensor, y: Tensor) -> Tensor:
        logp = torch.log_softmax(_precise(head(h)) / temperature, -1)
        return torch.stack([logp.gather(-1, y[:, None])[:, 0], -(logp.exp() * logp).sum(-1)], -1)

    if not len(targets):
        return (empty := hidden.new_zeros(0, dtype=torch.float32)), empty
    pair = _chunked(both, hidden, head, targets, chunk_elements, kept_elements)
    return pair[:, 0], pair[:, 1]


class _Selected(torch.autograd.Function):
    """[n] log-softmax(logits [n, v] / temperature) at targets [n]."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, temperature: float) -> Tensor:
        scaled = _precise(logits)
        if temperature != 1:
            scaled = scaled / temperature
        largest, place = scaled.max(-1, keepdim=True)
        probabilities = torch.softmax(scaled, -1)
        # The largest probability is 1 / sum_j exp(z_j - max): the normaliser without one more pass over the vocabulary.
        normaliser = largest - probabilities.gather(-1, place).log()
        ctx.temperature = temperature
        ctx.save_for_backward(probabilities.to(logits.dtype), targets)
        return (scaled.gather(-1, targets[:, None]) - normaliser)[:, 0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        gradient, targets = ctx.saved_tensors
        scale = (grad / ctx.temperature).to(gradient.dtype)[:, None]
        # In place: nobody else holds the softmax, and autograd refuses to come here a second time.
        gradient.mul_(-scale).scatter_add_(-1, targets[:, None], scale)
        return gradient, None, None


def _precise(logits: Tensor) -> Tensor:
    """At least float32: sums over a vocabulary lose too much in bfloat16."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _chunked(
    function: Callable[[Tensor, Tensor], Tensor],
    hidden: Tensor,
    head: Head,
    targets: Tensor,
    chunk: int | None,
    kept: int | None,
) -> Tensor:
    if not len(targets):
        return hidden.new_zeros(0, dtype=torch.float32)
    kind = "cpu" if hidden.device.type == "cpu" else "cuda"
    vocabulary = _vocabulary(hidden, head)
    size = max(1, (CHUNK[kind] if chunk is None else chunk) // vocabulary)
    room = (KEPT[kind] if kept is None else kept) if torch.is_grad_enabled() else float("inf")
    parts = []
    for h, y in zip(torch.split(hidden, size), torch.split(targets, size), strict=True):
        room -= len(y) * vocabulary
        part = function(h, y) if room >= 0 else checkpoint(function, h, y, use_reentrant=False)
        parts.append(cast(Tensor, part))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _vocabulary(hidden: Tensor, head: Head) -> int:
    with torch.no_grad():
        return int(head(hidden[:1]).shape[-1])
