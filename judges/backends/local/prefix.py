"""Forward passes over rows that begin alike: what they share is computed once and attended to by all.

The keys and values of a shared prefix are those that a plain pass computes, so that the results are equal up to the
rounding of differently shaped sums. Shapes: b rows, n tokens, v vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import Cache, DynamicLayer

from judges.backends.local.layout import Ids


@dataclass(frozen=True)
class Segment:
    """Tokens already computed: `layers` holds (keys, values) of each layer, [s, heads, n, d]; `mask` [s, n].

    A row of the batch that follows is preceded by row `of[row]` of the segment; None: by its only one.
    """

    layers: list[tuple[Tensor, Tensor]]
    mask: Tensor
    of: Tensor | None = None

    def rows(self, tensor: Tensor, count: int) -> Tensor:
        return tensor[self.of] if self.of is not None else tensor.expand(count, *tensor.shape[1:])


class _Layer(DynamicLayer):  # type: ignore[misc]
    """One layer's view of the segments. They are joined with a pass's own keys and values when that pass asks, so that
    copies for all rows exist for one layer at a time; the pass's own are kept where `keep` says so."""

    def __init__(self, segments: Sequence[Segment], number: int, keep: bool) -> None:
        super().__init__()
        self._pieces = [(segment, *segment.layers[number]) for segment in segments]
        self._keep = keep
        self.added: tuple[Tensor, Tensor] | None = None
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if self._keep:
            self.added = key_states, value_states
        count = len(key_states)
        keys = [segment.rows(keys, count) for segment, keys, _ in self._pieces]
        values = [segment.rows(values, count) for segment, _, values in self._pieces]
        return torch.cat([*keys, key_states], -2), torch.cat([*values, value_states], -2)

    def get_seq_length(self) -> int:
        return sum(segment.mask.shape[1] for segment, *_ in self._pieces)


class SharedForward:
    """A model's forward pass, for rows that segments precede. `shares` says whether the model can do that.

    It can where every layer attends to all that came before and keeps one key and one value a token. It cannot, and
    its prompts are computed whole, where the config has layers of another kind (a sliding window or chunks drop old
    keys, a state-space or linear layer has a state instead of them, a layer may borrow another's), where the rotary
    embedding depends on the length of the whole input (dynamic, longrope), where positions are not given to the model
    but derived by it (ALiBi), or where its forward pass takes no cache.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._accepted = inspect.signature(model.forward).parameters
        self.shares = {"past_key_values", "position_ids"} <= self._accepted.keys() and _attends_to_all(model)
        self._last_mlp = _last_mlp(model)

    def __call__(self, ids: Tensor, mask: Tensor, segments: Sequence[Segment] = ()) -> Tensor:
        """[b, v] logits after the last token of each row; `ids` and `mask` are [b, n], padded on the left."""
        return self._run(ids, mask, self._cache(segments, keep=False) if segments else None, segments)

    def segment(self, ids: Tensor, mask: Tensor, segments: Sequence[Segment] = ()) -> Segment:
        """The rows as a segment for others."""
        cache = self._cache(segments, keep=True) if segments else DynamicCache()
        self._run(ids, mask, cache, segments)
        return Segment([layer.added if segments else (layer.keys, layer.values) for layer in cache.layers], mask)

    def _run(self, ids: Tensor, mask: Tensor, cache: Any, segments: Sequence[Segment]) -> Tensor:
        whole = torch.cat([*(segment.rows(segment.mask, len(ids)) for segment in segments), mask], -1)
        # Logits of the last position only, where the architecture can: of all of them they would fill the memory.
        optional = {"position_ids": position_ids(whole)[:, -ids.shape[1] :], "logits_to_keep": 1}
        known = {name: value for name, value in optional.items() if name in self._accepted}
        if cache is not None:
            known["past_key_values"] = cache
        with self._only_last_position(ids.shape):
            logits = self._model(input_ids=ids, attention_mask=whole, use_cache=cache is not None, **known).logits
        last: Tensor = logits[:, -1]
        return last

    @contextmanager
    def _only_last_position(self, shape: torch.Size) -> Iterator[None]:
        """Nobody reads what the last layer's feed-forward network, most of the layer, makes of the other positions. Its
        [b, 1, h] is added to all [b, n, h], and is right for the last."""
        if self._last_mlp is None:
            yield
            return

        def cut(_: Any, given: tuple[Any, ...]) -> tuple[Any, ...]:
            x = given[0]
            return (x[:, -1:], *given[1:]) if x.ndim == 3 and x.shape[:2] == shape else given

        hook = self._last_mlp.register_forward_pre_hook(cut)
        try:
            yield
        finally:
            hook.remove()

    def _cache(self, segments: Sequence[Segment], keep: bool) -> Cache:
        return Cache(layers=[_Layer(segments, number, keep) for number in range(len(segments[0].layers))])


def generation_cache(segment: Segment, rows: int) -> DynamicCache:
    """A cache that generation may grow: the segment's one row, copied for each of `rows`."""
    cache = DynamicCache()
    for number, (keys, values) in enumerate(segment.layers):
        cache.update(segment.rows(keys, rows), segment.rows(values, rows), number)
    return cache


def left_padded(rows: Sequence[Ids], pad: int) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask, both (rows, longest). The mask comes from lengths: a pad id may be a real token."""
    longest = max(len(row) for row in rows)
    ids = torch.tensor([[pad] * (longest - len(row)) + list(row) for row in rows], dtype=torch.long)
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], dtype=torch.long)
    return ids, mask


def position_ids(mask: Tensor) -> Tensor:
    """Positions that start at 0 with the first real token of each row."""
    return (mask.cumsum(dim=-1) - 1).clamp(min=0)


def _last_mlp(model: Any) -> Any:
    """The feed-forward network of the last layer; None where the model has none by that name, or one for all layers."""
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else None
    layers = getattr(decoder, "layers", None) or getattr(decoder, "h", None) or []
    found = [getattr(layer, "mlp", None) for layer in layers]
    return found[-1] if found and sum(mlp is found[-1] for mlp in found) == 1 else None


def _attends_to_all(model: Any) -> bool:
    config = model.config.get_text_config(decoder=True)
    kinds = getattr(config, "layer_types", None)
    windows = (getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size"))
    whole = set(kinds) == {"full_attention"} if kinds else not any(windows)
    borrowed = getattr(config, "num_kv_shared_layers", None)
    derived = getattr(config, "alibi", False) or not getattr(config, "is_causal", True)
    rope = str(getattr(config, "rope_parameters", None) or {})
    by_length = "'dynamic'" in rope or "'longrope'" in rope
    return whole and not (borrowed or derived or by_length or getattr(model, "_is_stateful", False))
