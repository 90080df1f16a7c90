"""What judging cost: votes, tokens and money of each judge in each stage of a round.

The few votes of PPO's live probe are in no table, so they are not among them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from store.tables import VOTES, read_table

_TABLES = (
    ("judge", "votes.parquet"),
    ("judge", "calibration_votes.parquet"),
    ("evaluate", "votes.parquet"),
)


def judge_costs(round_folder: Path) -> list[dict[str, Any]]:
    """Rows `judge, stage, votes, tokens_in, tokens_out, cost`, by judge; votes on calibration pairs count to the stage
    judge. Tokens and cost are null where no vote of the judge tells them; a cascade's are those of all its members."""
    found: dict[tuple[str, str], list[pa.Table]] = {}
    for stage, name in _TABLES:
        path = round_folder / stage / name
        if not path.is_file():
            continue
        votes = read_table(path, VOTES, allow_empty=True)
        for judge in pc.unique(votes["judge"]).to_pylist():
            found.setdefault((judge, stage), []).append(votes.filter(pc.equal(votes["judge"], judge)))
    return [_row(judge, stage, pa.concat_tables(parts)) for (judge, stage), parts in sorted(found.items())]


def _row(judge: str, stage: str, votes: pa.Table) -> dict[str, Any]:
    sums = {name: pc.sum(votes[name]).as_py() for name in ("tokens_in", "tokens_out", "cost")}
    return {"judge": judge, "stage": stage, "votes": votes.num_rows, **sums}
