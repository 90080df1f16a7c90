"""Sampling of responses by the policy itself, with a key-value cache and continuous batching.

`loop` holds the batch that rows leave and enter, `cache` the keys and values of its rows, `draw` the drawing of tokens.
"""

from rlhf.generation.draw import keep_top, row_seed, sample_tokens
from rlhf.generation.loop import Generated, generate

__all__ = ["Generated", "generate", "keep_top", "row_seed", "sample_tokens"]
