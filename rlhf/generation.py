"""Sampling of responses with a key-value cache.

Prompts are padded on the left so that all rows grow at the same column; rows that stopped leave the batch (the cache is
compacted), so the longest response does not keep the others' memory and arithmetic. Several responses of one prompt
share its prefill.

Each row draws from a random stream of its own, by inverse transform of one uniform number a token. So a response
depends on the weights, its prompt and its seed, and not on the batch it happened to be generated in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rlhf.config import Decoding
from rlhf.models import Model, head, trunk
from store.hashing import short_id

COMPACT_BELOW = 0.75
"""The cache is compacted when fewer than this share of its rows still run: copying it each step costs more."""


class Generated(NamedTuple):
    """One response. `ids`: the sampled tokens; a stop token is the last one if and only if it was sampled.

    `logprob`: log p(y|x) at temperature 1; `sampling_logprobs`: each token's log-prob at the sampling temperature, over
    the full distribution also where top_p or top_k cut it. `finish_reason`: stop or length.
    """

    ids: list[int]
    logprob: float
    sampling_logprobs: list[float]
    finish_reason: str


def row_seed(*parts: str | int) -> int:
    """The seed of one response's random stream, from what makes it that response."""
    return int(short_id(*parts), 16) >> 1


@dataclass
class _Batch:
    """The rows that still run. `column` is the cache's length."""

    index: Tensor  # [b] which request each row is
    mask: Tensor  # [b, column] 1 on real tokens
    position: Tensor  # [b] position of the next token
    logits: Tensor  # [b, v] of the next token, float32


@torch.no_grad()
def generate(
    model: Model,
    prompts: Sequence[Sequence[int]],
    seeds: Sequence[int],
    decoding: Decoding,
    stop_ids: frozenset[int],
    *,
    batch_size: int = 256,
    autocast: Callable[[], Any] | None = None,
    on_done: Callable[[int], None] | None = None,
) -> list[Generated]:
    """One response a prompt, in their order. Equal prompts that stand side by side share their prefill.

    prompts: ids, each at least one. seeds: one a prompt, see `row_seed`. on_done: told the number of finished rows.
    """
    results: list[Generated | None] = [None] * len(prompts)
    training = model.training
    model.eval()  # with gradient checkpointing, transformers drops the cache in training mode
    # Sorted by length, batches have little left padding; stable, so equal prompts stay neighbours.
    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), tuple(prompts[i])))
    for start in range(0, len(order), batch_size):
        part = order[start : start + batch_size]
        with autocast() if autocast is not None else torch.no_grad():
            done = _generate_batch(model, [prompts[i] for i in part], [seeds[i] for i in part], decoding, stop_ids)
        for index, result in zip(part, done, strict=True):
            results[index] = result
        if on_done is not None:
            on_done(start + len(part))
    model.train(training)
    return [result for result in results if result is not None]


def _generate_batch(
    model: Model,
    prompts: list[Sequence[int]],
    seeds: list[int],
    decoding: Decoding,
    stop_ids: frozenset[int],
) -> list[Generated]:
    device = next(model.parameters()).device
    body, logits_of = trunk(model), head(model)
    noise = _noise(seeds, decoding.max_new_tokens).to(device)
    stops = torch.tensor(sorted(stop_ids), dtype=torch.long, device=device)
    cache, batch = _prefill(model, prompts, device)
    count = len(prompts)
    tokens = torch.zeros(count, decoding.max_new_tokens, dtype=torch.long, device=device)
    sampling = torch.zeros(count, decoding.max_new_tokens, device=device)
    total = torch.zeros(count, device=device)
    lengths = torch.zeros(count, dtype=torch.long, device=device)
    stopped = torch.zeros(count, dtype=torch.bool, device=device)
    running = torch.ones(count, dtype=torch.bool, device=device)  # of the rows in the batch
    for step in range(decoding.max_new_tokens):
        chosen, at_temperature, at_one = sample_tokens(batch.logits, noise[batch.index, step], decoding)
        live = batch.index[running]
        tokens[live, step] = chosen[running]
        sampling[live, step] = at_temperature[running]
        total[live] += at_one[running]
        lengths[live] += 1
        ended = torch.isin(chosen, stops) & running
        stopped[batch.index[ended]] = True
        running = running & ~ended
        left = int(running.sum())
        if not left or step + 1 == decoding.max_new_tokens:
            break
        if left < COMPACT_BELOW * len(running):
            keep = running.nonzero()[:, 0]
            cache.batch_select_indices(keep)
            batch = _Batch(batch.index[keep], batch.mask[keep], batch.position[keep], batch.logits)
            chosen, running = chosen[keep], running[keep]
        mask = torch.cat([batch.mask, batch.mask.new_ones(len(batch.mask), 1)], 1)
        output = body(
            input_ids=chosen[:, None],
            attention_mask=mask,
            position_ids=batch.position[:, None],
            past_key_values=cache,
            use_cache=True,
        )
        logits = logits_of(output.last_hidden_state[:, -1]).float()
        batch = _Batch(batch.index, mask, batch.position + 1, logits)
    return _collect(tokens, sampling, total, lengths, stopped)


def _prefill(model: Model, prompts: list[Sequence[int]], device: torch.device) -> tuple[Any, _Batch]:
    from transformers import DynamicCache

    unique: list[Sequence[int]] = []
    copies: list[int] = []
    for prompt in prompts:
        if not unique or list(unique[-1]) != list(prompt):
            unique.append(prompt)
        copies.append(len(unique) - 1)
    width = max(len(prompt) for prompt in unique)
    ids = torch.zeros(len(unique), width, dtype=torch.long)
    mask = torch.zeros(len(unique), width, dtype=torch.long)
    for row, prompt in enumerate(unique):
        ids[row, width - len(prompt) :] = torch.tensor(prompt, dtype=torch.long)
        mask[row, width - len(prompt) :] = 1
    ids, mask = ids.to(device), mask.to(device)
    cache = DynamicCache(config=model.config)
    output = trunk(model)(
        input_ids=ids,
        attention_mask=mask,
        position_ids=(mask.cumsum(1) - 1).clamp(min=0),
        past_key_values=cache,
        use_cache=True,
    )
    logits = head(model)(output.last_hidden_state[:, -1]).float()
    select = torch.tensor(copies, device=device)
    if len(copies) > len(unique):
        cache.batch_select_indices(select)
    mask = mask[select]
    return cache, _Batch(torch.arange(len(prompts), device=device), mask, mask.sum(1), logits[select])


def _noise(seeds: list[int], steps: int) -> Tensor:
    """[b, steps] uniform numbers in [0, 1), a row from its own seed; drawn on the CPU, so the same on any device."""
    generator = torch.Generator()
    rows = [torch.rand(steps, generator=generator.manual_seed(seed), dtype=torch.float64) for seed in seeds]
    return torch.stack(rows)


def sample_tokens(logits: Tensor, noise: Tensor, decoding: Decoding) -> tuple[Tensor, Tensor, Tensor]:
    """Sampled tokens [b], their log-probs at the sampling temperature [b], and at temperature 1 [b].

    logits: [b, v]; noise: [b] in [0, 1). Both log-probs are of the full distribution.
    """
    plain = torch.log_softmax(logits, -1)
    scaled = plain if decoding.temperature == 1 else torch.log_softmax(logits / decoding.temperature, -1)
    probabilities = keep_top(scaled.exp().double(), decoding.top_p, decoding.top_k)
    # Double precision: in float32 the cumulative sum over a large vocabulary would swallow the tail.
    cumulative = probabilities.cumsum(-1)
    point = noise[:, None] * cumulative[:, -1:]
    chosen = torch.searchsorted(cumulative, point, right=True).clamp(max=logits.shape[-1] - 1)
    return chosen[:, 0], scaled.gather(-1, chosen)[:, 0], plain.gather(-1, chosen)[:, 0]


def keep_top(probabilities: Tensor, top_p: float, top_k: int) -> Tensor:
    """[b, v] with zero outside the top k, then outside the smallest set with mass `top_p` (Holtzman et al. 2020).

    The most likely token always stays. Not renormalised.
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


def _collect(tokens: Tensor, sampling: Tensor, total: Tensor, lengths: Tensor, stopped: Tensor) -> list[Generated]:
    # One transfer for all rows: a copy a row would stall a GPU.
    ids, logprobs = tokens.tolist(), sampling.tolist()
    return [
        Generated(ids[row][:length], logprob, logprobs[row][:length], "stop" if stop else "length")
        for row, (length, logprob, stop) in enumerate(
            zip(lengths.tolist(), total.tolist(), stopped.tolist(), strict=True)
        )
    ]
