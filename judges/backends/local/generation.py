"""Texts of a local model: greedy, or sampled so that a row does not depend on the rows beside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedTokenizerBase

from judges.backends.local.prefix import Segment, generation_cache


class GumbelSampler(LogitsProcessor):  # type: ignore[misc]
    """Sampling at a temperature as the argmax of noisy logits (Gumbel-max), with a random stream for each row.

    Drawn this way, a row's text depends on its own seed and not on the rows beside it in the batch.
    """

    def __init__(self, temperature: float, seeds: Sequence[int]) -> None:
        self._temperature = temperature
        self._streams = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        uniform = torch.stack([torch.rand(scores.shape[-1], generator=stream) for stream in self._streams])
        noise = -torch.log(-torch.log(uniform.clamp(1e-20, 1 - 1e-7)))
        return scores.float() / self._temperature + noise.to(scores.device)


def generate(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    ids: Tensor,
    mask: Tensor,
    preamble: Segment | None,
    max_tokens: int,
    temperature: float,
    seeds: Sequence[int],
) -> list[tuple[str, int]]:
    """The new text of each row and its number of tokens, the stop token included.

    `ids` and `mask`: [b, n] whole prompts. With a `preamble` they begin with its tokens, and padding follows those.
    `seeds`: of each row; at temperature 0 the likeliest token is taken and nothing is drawn.
    """
    sampler = LogitsProcessorList([GumbelSampler(temperature, seeds)] if temperature > 0 else [])
    shared = {} if preamble is None else {"past_key_values": generation_cache(preamble, len(ids))}
    output = model.generate(
        input_ids=ids,
        attention_mask=mask,
        logits_processor=sampler,
        do_sample=False,
        max_new_tokens=max_tokens,
        **shared,
    )
    stops = _stops(model)
    found = []
    for row in output[:, ids.shape[1] :].tolist():
        end = next((at for at, token in enumerate(row) if token in stops), None)
        kept = row if end is None else row[:end]
        text = tokenizer.decode(kept, skip_special_tokens=True)
        found.append((str(text), len(kept) + (end is not None)))
    return found


def _stops(model: Any) -> set[int]:
    stop = model.generation_config.eos_token_id
    return set(stop) if isinstance(stop, list) else {stop} - {None}
