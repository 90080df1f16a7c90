"""Votes tables from short descriptions, for tests of figures and aggregation."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from judges.pairs import Pair, pairs_to_table
from judges.votes import vote_id
from store.schemas import VOTES

from .conftest import make_pair


def vote(
    pair: str, judge: str, order: str, p_a: float | None, status: str | None = None, **other: Any
) -> dict[str, Any]:
    """A vote; the status follows from `p_a` (None: a parse failure) unless given."""
    status = status or ("parse_failure" if p_a is None else "tie" if p_a == 0.5 else "scored")
    winner = None if p_a is None or status != "scored" else "a" if p_a > 0.5 else "b"
    row = {
        "vote_id": vote_id(pair, judge, order),
        "pair_id": pair,
        "prompt_id": f"x-{pair}",
        "rollout_a": f"{pair}-a",
        "rollout_b": f"{pair}-b",
        "judge": judge,
        "fingerprint": f"fingerprint-of-{judge}",
        "order": order,
        "status": status,
        "winner": winner,
        "p_a": p_a,
        "mass": 0.9 if p_a is not None else None,
        "tokens_in": 10,
        "tokens_out": 1,
        "cost": 0.25,
        "latency_s": 0.5,
        "attempts": 1,
        "error": "broken" if status == "error" else None,
    }
    return {**row, **other}


def votes_table(*rows: dict[str, Any]) -> pa.Table:
    return pa.Table.from_pylist(list(rows), schema=VOTES.schema)


def pairs_table(*names: str, prompt: str | None = None, **texts: tuple[str, str]) -> pa.Table:
    """PAIRS of these ids, each of a prompt of its own unless `prompt` is given; `texts`: responses of single pairs."""
    rows = []
    for number, name in enumerate(names):
        a, b = texts.get(name, (f"first of {name}", f"second of {name}"))
        row = vars(make_pair(number, a, b)) | {"pair_id": name, "rollout_a": f"{name}-a", "rollout_b": f"{name}-b"}
        rows.append(row | {"prompt_id": prompt or f"x-{name}"})
    return pairs_to_table(Pair(**row) for row in rows)
