"""Drawing tokens: each response has a random stream of its own, read by inverse transform, one uniform number a token.

So a token depends on the logits and on the response's seed, not on what else is drawn in the same step.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from rlhf.config import Decoding
from store.hashing import short_id

BLOCK = 64
"""Tokens of the vocabulary whose probabilities are first summed, then, in the block that was hit, looked at singly."""


def row_seed(*parts: str | int) -> int:
    """The seed of one response's random stream, from what makes it that response; in 0..2^63 - 1."""
    return int(short_id(*parts), 16) >> 1


def uniform_noise(seeds: Sequence[int], steps: int) -> Tensor:
    """[b, steps] uniform numbers in [0, 1), a row from its own seed; drawn on the CPU, so the same on any device."""
    generator = torch.Generator()
    rows = [torch.rand(steps, generator=generator.manual_seed(seed), dtype=torch.float64) for seed in seeds]
    return torch.stack(rows)


def sample_tokens(logits: Tensor, noise: Tensor, decoding: Decoding) -> tuple[Tensor, Tensor, Tensor]:
    """Sampled tokens [b], their log-probs at the sampling temperature [b], and at temperature 1 [b].

    logits: [b, v] float32; noise: [b] float64 in [0, 1). Both log-probs are of the full distribution.
    """
    scaled = logits if decoding.temperature == 1 else logits / decoding.temperature
    highest = scaled.amax(-1, keepdim=True)
    weights = (scaled - highest).exp_()
    cut = decoding.top_p < 1 or decoding.top_k > 0
    chosen, mass = _invert(keep_top(weights.double(), decoding.top_p, decoding.top_k) if cut else weights, noise)
    if cut:
        mass = weights.sum(-1, keepdim=True, dtype=torch.float64)
    tempered = (scaled.gather(-1, chosen) - highest).double() - mass.log()
    plain = tempered
    if decoding.temperature != 1:
        plain = logits.gather(-1, chosen) - logits.logsumexp(-1, keepdim=True)
    return chosen[:, 0], tempered[:, 0].float(), plain[:, 0].float()


def _invert(weights: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """The token [b, 1] at which the cumulated weights [b, v] pass `noise` of their sum, and that sum [b, 1].

    A token of weight 0 is never chosen. Sums are in double precision: in float32 that over a large vocabulary would
    swallow the tail; in two levels, since a cumulative sum over all of it costs more than all the rest of the draw.
    """
    count = weights.shape[-1]
    blocks = F.pad(weights, (0, -count % BLOCK)).reshape(len(weights), -1, BLOCK)
    outer = blocks.sum(-1, dtype=torch.float64).cumsum(-1)
    mass = outer[:, -1:]
    point = noise[:, None] * mass
    block = torch.searchsorted(outer, point, right=True).clamp(max=outer.shape[-1] - 1)
    before = F.pad(outer, (1, 0)).gather(-1, block)
    inner = blocks[torch.arange(len(blocks), device=blocks.device), block[:, 0]].double().cumsum(-1)
    # The block's sum may differ in its last bit from the end of its cumulative sum: stay below both.
    end = inner[:, -1:]
    rest = torch.minimum(point - before, torch.nextafter(end, torch.zeros_like(end)))
    token = block * BLOCK + torch.searchsorted(inner, rest, right=True)
    return token.clamp(max=count - 1), mass


def keep_top(probabilities: Tensor, top_p: float, top_k: int) -> Tensor:
    """[b, v] with zero outside the top k, then outside the smallest set with mass `top_p` (Holtzman et al. 2020).

    The most likely token always stays. Neither need the rows sum to 1, nor are they renormalised.
    """
    if top_k and top_k < probabilities.shape[-1]:
        # By rank, not by value: ties at the k-th place must not let more than k tokens through.
        kept = torch.zeros_like(probabilities, dtype=torch.bool)
        kept.scatter_(-1, probabilities.topk(top_k, -1).indices, True)
        probabilities = probabilities * kept
    if top_p < 1:
        ranked, order = probabilities.sort(dim=-1, descending=True, stable=True)
        ranked = ranked / ranked.sum(-1, keepdim=True)
        before = ranked.cumsum(-1) - ranked
        outside = torch.zeros_like(probabilities, dtype=torch.bool).scatter(-1, order, before >= top_p)
        probabilities = probabilities.masked_fill(outside, 0)
    return probabilities
