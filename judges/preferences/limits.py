"""Filters that cut a number of pairs down: so many a prompt, and no group much larger than the smallest.

Who stays: pairs that people answered first, then pairs drawn by the hash of their id. Never the surest first: that
would leave the easy pairs, and a reward model that has seen no doubt.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from store.hashing import short_id

Mask = npt.NDArray[np.bool_]


def over_prompt_limit(table: pa.Table, kept: Mask, most: int) -> Mask:
    """[rows] pairs of PREFERENCES beyond the `most` of their prompt. `kept`: [rows] those that are still there."""
    return _beyond(table, kept, "prompt_id", most)


def over_group_ratio(table: pa.Table, kept: Mask, ratio: float) -> Mask:
    """[rows] pairs beyond `ratio` (1 or more) times the size of the smallest group that has a pair left: the imbalance
    ratio of the classes, as the literature on imbalanced data has it, is then at most `ratio`."""
    if not kept.any():
        return np.zeros(len(kept), dtype=np.bool_)
    sizes = pc.value_counts(table["group"].filter(pa.array(kept))).field("counts")
    return _beyond(table, kept, "group", max(1, int(ratio * pc.min(sizes).as_py() + 1e-9)))


def _beyond(table: pa.Table, kept: Mask, column: str, most: int) -> Mask:
    rows = np.flatnonzero(kept)
    some = table.select([column, "pair_id", "source"]).take(rows)
    ranked = pa.table(
        {
            "row": rows,
            "of": some[column],
            "judged": pc.not_equal(some["source"], "human"),
            "draw": [short_id("keep", pair_id) for pair_id in some["pair_id"].to_pylist()],
        }
    ).sort_by([("of", "ascending"), ("judged", "ascending"), ("draw", "ascending")])
    _, first = np.unique(ranked["of"].combine_chunks().dictionary_encode().indices.to_numpy(), return_index=True)
    starts = np.zeros(len(rows), dtype=np.int64)
    starts[first] = first
    rank = np.arange(len(rows)) - np.maximum.accumulate(starts)
    beyond = np.zeros(len(kept), dtype=np.bool_)
    beyond[ranked["row"].to_numpy()[rank >= most]] = True
    return beyond
