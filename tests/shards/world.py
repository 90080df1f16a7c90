"""Pairs, judges, and the votes that come of them with and without shards."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from flows.shards.judging import VOTES_PART, judge_in_shards
from flows.shards.merge import merged, open_parts
from judges.judge import Judge
from judges.pairs import Pair, pairs_to_table
from store.sharding import ShardsConfig

from ..judges.conftest import make_pair

PAIRS = [make_pair(number) for number in range(700)]
"""Three shards of 256, the last one not full."""


def in_shards(judges: Sequence[Judge], folder: Path, pairs: Sequence[Pair] = PAIRS, **config: Any) -> pa.Table:
    limits = config.pop("limits", None)
    done = judge_in_shards(
        judges,
        [pairs_to_table(pairs)],
        total=len(pairs),
        folder=folder,
        seed=0,
        config=ShardsConfig(**config),
        limits=limits,
    )
    return pa.concat_tables(merged(open_parts([one / VOTES_PART for one in done]))).combine_chunks()


def content(votes: pa.Table) -> pa.Table:
    """Without what depends on the clock."""
    return votes.drop_columns(["latency_s"])
