"""The keys and values of the rows of a running batch: a slot a row, written in place.

Slots [0, rows) hold the running rows, each with its tokens in columns 0, 1, ...; so a row may enter with a prompt of
any length while the others are in the middle of theirs, and columns behind a row's own length are masked. transformers'
own caches either copy all keys at each step (DynamicCache) or make all rows grow at one column (StaticCache). vLLM's
pages (Kwon et al. 2023, arXiv 2309.06180) waste less memory on long contexts and need kernels of their own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from store.errors import UsageError

GROWTH = 64
"""Columns are added so many at a time: each time all keys are copied once."""


class SlotLayer(CacheLayerMixin):  # type: ignore[misc]
    """One layer's keys and values, [slots, heads, columns, head size]."""

    is_sliding = False  # all columns are kept: what a window hides is masked

    def __init__(self, owner: SlotCache) -> None:
        super().__init__()
        self.owner = owner

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        shape = (self.owner.slots, key_states.shape[1], self.owner.columns)
        # Under autocast keys come out of their rotation in float32, and each step would convert all of them again.
        kind = key_states.device.type
        low = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        # Zeros: a masked column counts 0 times its value, which must not be a NaN.
        self.keys = key_states.new_zeros(*shape, key_states.shape[-1], dtype=low)
        self.values = value_states.new_zeros(*shape, value_states.shape[-1], dtype=low)
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        owner, width = self.owner, key_states.shape[2]
        if owner.entering is not None:
            rows = slice(owner.rows, owner.rows + len(owner.entering))
            self.keys[rows, :, :width] = key_states[owner.entering]
            self.values[rows, :, :width] = value_states[owner.entering]
            return key_states, value_states
        every = torch.arange(owner.rows, device=key_states.device)
        self.keys[every, :, owner.lengths] = key_states[:, :, 0].to(self.keys)
        self.values[every, :, owner.lengths] = value_states[:, :, 0].to(self.values)
        return self.keys[: owner.rows, :, : owner.width], self.values[: owner.rows, :, : owner.width]

    def get_seq_length(self) -> int:
        return 0 if self.owner.entering is not None else self.owner.width - 1

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return (query_length if self.owner.entering is not None else self.owner.width), 0

    def get_max_length(self) -> int:
        return -1


class SlotCache(Cache):  # type: ignore[misc]
    """What transformers sees of it: a cache that is either empty (rows enter) or holds `width` columns (a step).

    `rows`: running rows. `lengths`: [rows] their tokens, on the device. `width`: columns that a step attends to.
    Raises UsageError where the model's layers keep something else than keys and values of each token.
    """

    def __init__(self, config: Any, slots: int, device: torch.device) -> None:
        config = config.get_text_config()
        kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
        if unknown := kinds - {"full_attention", "sliding_attention"}:
            raise UsageError(
                f"Models of the family {config.model_type} have layers of the kind {sorted(unknown)[0]}, for which the "
                "engine transformers keeps no cache: use the engine vllm or another model."
            )
        super().__init__(layers=[SlotLayer(self) for _ in range(config.num_hidden_layers)])
        self.window = getattr(config, "sliding_window", None)
        # As transformers' caches read it: without kinds, a window is that of all layers.
        self.mixed = "sliding_attention" in kinds
        self.flash = "flash" in (config._attn_implementation or "")
        self.eager = config._attn_implementation == "eager"
        self.slots, self.columns = slots, 0
        self.rows, self.width = 0, 0
        self.lengths = torch.zeros(0, dtype=torch.long, device=device)
        self.entering: Tensor | None = None

    def enter(self, copies: Tensor, longest: int) -> None:
        """The next forward pass brings new rows: of its batch of prompts, padded on the right to `longest`, `copies`
        [k] says which one each of the k new rows has."""
        self._reserve(longest)
        # Rows may leave, and be moved, before the next step: what is moved must hold the new prompts too.
        self.width = max(self.width, longest)
        self.entering = copies

    def entered(self, lengths: Tensor) -> None:
        """That pass is over; lengths: [k] of the new rows' prompts."""
        self.lengths = torch.cat([self.lengths, lengths])
        self.rows, self.entering = len(self.lengths), None

    def leave(self, keep: Tensor, moved: Tensor, holes: Tensor) -> None:
        """Rows `moved` [m] take the slots `holes` [m] of rows that leave; the rows then are the old ones `keep` [rows].

        Only the rows that move are copied.
        """
        for layer in self.layers:
            if len(moved):
                layer.keys[holes, :, : self.width] = layer.keys[moved, :, : self.width]
                layer.values[holes, :, : self.width] = layer.values[moved, :, : self.width]
        self.lengths = self.lengths[keep]
        self.rows = len(keep)

    def step(self, width: int) -> Tensor | dict[str, Tensor]:
        """The next forward pass brings one token of each row; `width`: tokens of the longest row, that one included.

        Returns the attention mask as the model takes it.
        """
        self._reserve(width)
        self.width = width
        column = torch.arange(width, device=self.lengths.device)
        full = column <= self.lengths[:, None]
        if self.flash:  # the kernel's rows are ragged: it finds the window's border by itself
            return full
        if self.window is None or self.window >= width:
            mask = self._given(full)
            return {"full_attention": mask, "sliding_attention": mask} if self.mixed else mask
        near = self._given(full & (column > self.lengths[:, None] - self.window))
        return {"full_attention": self._given(full), "sliding_attention": near} if self.mixed else near

    def stepped(self) -> None:
        self.lengths = self.lengths + 1

    def _given(self, mask: Tensor) -> Tensor:
        """[rows, 1, 1, width] as the attention kernel wants it."""
        mask = mask[:, None, None, :]
        if not self.eager:
            return mask
        dtype = self.layers[0].keys.dtype
        return torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, torch.finfo(dtype).min)

    def _reserve(self, columns: int) -> None:
        if columns <= self.columns:
            return
        new = -(-columns // GROWTH) * GROWTH
        for layer in self.layers:
            if layer.is_initialized:
                for name in ("keys", "values"):
                    old = getattr(layer, name)
                    grown = old.new_zeros(*old.shape[:2], new, old.shape[-1])
                    grown[: self.rows, :, : self.columns] = old[: self.rows]
                    setattr(layer, name, grown)
        self.columns = new
