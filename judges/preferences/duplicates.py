"""Pairs whose two responses are nearly the same text: a preference between them is mostly noise.

Measure: the Jaccard index of the responses' sets of token 5-grams (Broder 1997), with tokens as they are written, case
and punctuation included, since these may be what one response is better for. Where a response has fewer than five
tokens, n is its number of tokens. Responses whose lengths in characters differ by a larger factor than the limit allows
are not near-duplicates; most pairs of free text need no look beyond that.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from judges.preferences.shingles import shingles, tokens

N = 5

Mask = npt.NDArray[np.bool_]


def near_duplicates(table: pa.Table, kept: Mask, limit: float) -> Mask:
    """[rows] pairs of PREFERENCES whose responses have a similarity of `limit` (0..1) or more, among the `kept`."""
    lengths = [pc.utf8_length(table[side]).to_numpy() for side in ("chosen", "rejected")]
    close = np.minimum(*lengths) >= limit * np.maximum(*lengths)
    rows = np.flatnonzero(kept & close)
    some = table.select(["chosen", "rejected"]).take(rows)
    found = np.zeros(len(kept), dtype=np.bool_)
    for row, one, other in zip(rows, some["chosen"].to_pylist(), some["rejected"].to_pylist(), strict=True):
        found[row] = similarity(one, other) >= limit
    return found


def similarity(one: str, other: str) -> float:
    """0..1; see the module. 1 for texts that are the same but for white space."""
    parts = tokens(one), tokens(other)
    n = min(N, *map(len, parts))
    first, second = (shingles(part, n) for part in parts)
    return len(first & second) / len(first | second)
