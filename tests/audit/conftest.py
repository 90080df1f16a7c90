"""Builders of small tables: pairs p0, p1, ... and votes of judges with given order-wise probabilities."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pyarrow as pa
import pytest

from store.tables import PAIRS, VOTES


@pytest.fixture
def make_pairs() -> Callable[[int], pa.Table]:
    def make(n: int) -> pa.Table:
        rows = [
            {
                "pair_id": f"p{i}",
                "prompt_id": f"x{i}",
                "prompt": f"prompt {i}",
                "rollout_a": f"r{i}a",
                "rollout_b": f"r{i}b",
                "response_a": f"first {i}",
                "response_b": f"second {i}",
                "group": "g",
                "split": "train",
                "reference": None,
            }
            for i in range(n)
        ]
        return pa.Table.from_pylist(rows, schema=PAIRS.schema)

    return make


@pytest.fixture
def make_votes() -> Callable[..., pa.Table]:
    """Each vote is (pair, judge, order, p_a), or with a dict of further columns behind."""

    def make(votes: Iterable[tuple[Any, ...]]) -> pa.Table:
        rows = []
        for number, (pair, judge, order, p_a, *rest) in enumerate(votes):
            row = {
                "vote_id": f"v{number}",
                "pair_id": f"p{pair}",
                "prompt_id": f"x{pair}",
                "rollout_a": f"r{pair}a",
                "rollout_b": f"r{pair}b",
                "judge": judge,
                "fingerprint": f"print-{judge}",
                "order": order,
                "status": "scored" if p_a is not None else "abstain",
                "winner": None if p_a is None else "a" if p_a > 0.5 else "b",
                "p_a": p_a,
                "tokens_in": 0,
                "tokens_out": 0,
                "cost": 0.0,
                "latency_s": 0.0,
                "attempts": 1,
            }
            rows.append(row | (rest[0] if rest else {}))
        return pa.Table.from_pylist(rows, schema=VOTES.schema)

    return make
