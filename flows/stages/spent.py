"""What a stage asked of judges: calls, tokens and cost of each, whatever became of the answers.

Told by the stage's journals, in which each call is a row. Tables of votes do not tell it: ratings, attacks and PPO's
questions are in none, a vote of a cascade stands for several calls, and a ranking gives many votes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from judges.judge import Judge
from store.files import read_lines

Spent = dict[str, dict[str, float]]
"""Judge -> `calls`, `tokens_in`, `tokens_out`, `cost` (in the currency of its prices)."""

_TAKEN = ("tokens_in", "tokens_out", "cost")


def spent(judges: Iterable[Judge], *journals: Path) -> Spent:
    """Of all rows of these judges' journals below these folders. A row that a mirror brought back a second time counts
    once."""
    names = {one.fingerprint: one.name for judge in judges for one in judge.asked}
    found: Spent = {}
    for folder in journals:
        seen: set[int] = set()
        for path in sorted(folder.rglob("*.jsonl")):
            name = names.get(path.parent.name)
            for row in read_lines(path) if name else ():
                mark = hash((name, *map(str, row.values()))) if isinstance(row, dict) else 0
                if mark and mark not in seen:
                    seen.add(mark)
                    _add(found, str(name), {"calls": 1, **{key: row.get(key) or 0 for key in _TAKEN}})
    return found


def spent_on_votes(votes: pa.Table, member_votes: pa.Table) -> Spent:
    """Of judges that compare pairs, by their tables alone: journals of shards may lie on other machines. A vote that is
    in both tables is one call."""
    columns = ["vote_id", "judge", *_TAKEN]
    asked = pa.concat_tables(
        [votes.filter(pc.is_null(votes["answered_by"])).select(columns), member_votes.select(columns)]
    )
    once = asked.group_by(["judge", "vote_id"], use_threads=False).aggregate([(name, "max") for name in _TAKEN])
    sums = once.group_by("judge", use_threads=False).aggregate(
        [("vote_id", "count"), *((f"{name}_max", "sum") for name in _TAKEN)]
    )
    return {
        row["judge"]: {"calls": row["vote_id_count"], **{name: row[f"{name}_max_sum"] for name in _TAKEN}}
        for row in sums.sort_by("judge").to_pylist()
    }


def joined(*parts: Spent) -> Spent:
    found: Spent = {}
    for part in parts:
        for judge, figures in part.items():
            _add(found, judge, figures)
    return found


def _add(found: Spent, judge: str, figures: Mapping[str, Any]) -> None:
    own = found.setdefault(judge, {"calls": 0, **dict.fromkeys(_TAKEN, 0)})
    for name, value in figures.items():
        own[name] += value
