"""How much longer one response is than the other: what judges are misled by most often, so that labels may know it.

Judges like long responses more than people do (Dubois et al. 2024, Length-Controlled AlpacaEval, arXiv 2404.04475), and
they do so together, which no vote shows. Gold shows it: a method that is told the lengths can learn from it what a vote
for the longer response is worth less, or more.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

LENGTH = "length"
"""Column of votes: log((1 + characters of a) / (1 + characters of b)), of rollouts, not slots; null where unknown."""


def with_lengths(votes: pa.Table, pairs: pa.Table) -> pa.Table:
    """`votes` with the column LENGTH, from the texts of `pairs` (PAIRS or GOLD: pair_id, response_a, response_b)."""
    size = {side: pc.utf8_length(pairs[f"response_{side}"]).to_numpy().astype(np.float64) for side in "ab"}
    # A difference of logarithms is odd to the last bit: a mirrored pair gets the mirrored length.
    length = pa.array(np.log1p(size["a"]) - np.log1p(size["b"]), from_pandas=True)
    at = pc.index_in(votes["pair_id"], value_set=pairs["pair_id"].combine_chunks())
    return votes.append_column(LENGTH, length.take(at.combine_chunks()))
