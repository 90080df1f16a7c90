"""Late verdicts: what people said about earlier rounds' pairs after those rounds had gone on.

The next round's audit collects them, with the pairs and the judges' votes that they belong to, so that its aggregate
counts them like its own: the label of such a pair then replaces the one of its round where the reward model is trained
on several rounds. Of a pair on which anything is new, all verdicts come, the earlier ones too: its label is made of
all. Each keeps the inclusion probability that its own round recorded.

The folder of an audit holds what this needs: asked_pairs.parquet and asked_votes.parquet (of the drawn pairs),
verdicts.parquet, late_verdicts.parquet, and asked.json, which says where it asked.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from audit.verdicts import Verdict, to_table
from store.files import read_json
from store.schemas import PAIRS, SELECTION, VERDICTS, VOTES, Table
from store.tables import read_table


@dataclass(frozen=True)
class Asked:
    """One earlier audit. `where`: its asked.json. `chances`: drawn pair to inclusion probability."""

    folder: Path
    where: dict[str, Any]
    chances: dict[str, float]


@dataclass(frozen=True)
class Late:
    """Tables of the pairs with late verdicts. `new`: how many of the verdicts had not been counted before."""

    pairs: pa.Table
    votes: pa.Table
    verdicts: pa.Table
    new: int


def nothing_late() -> Late:
    return Late(PAIRS.schema.empty_table(), VOTES.schema.empty_table(), VERDICTS.schema.empty_table(), 0)


def collect_late(
    folders: Sequence[Path], current: Collection[str], verdicts_of: Callable[[Asked], Sequence[Verdict]]
) -> Late:
    """`folders`: of all earlier audits, oldest first. `current`: this round's pairs, which need not come again.

    `verdicts_of` gives all verdicts on an earlier audit's pairs that count by now.
    """
    known = {row for folder in folders for row in _ids(folder)}
    found = nothing_late()
    pairs, votes, rows, new = [found.pairs], [found.votes], [], 0
    for folder in folders:
        if not (folder / "asked.json").is_file():
            continue
        given = verdicts_of(_asked(folder))
        changed = {verdict.pair_id for verdict in given if verdict.verdict_id not in known}
        new += sum(verdict.verdict_id not in known for verdict in given)
        rows += [verdict for verdict in given if verdict.pair_id in changed]
        apart = pa.array(sorted(changed - set(current)), pa.string())
        pairs.append(_of(folder / "asked_pairs.parquet", PAIRS, apart))
        votes.append(_of(folder / "asked_votes.parquet", VOTES, apart))
    return Late(pa.concat_tables(pairs), pa.concat_tables(votes), to_table(rows), new)


def audited_groups(folders: Sequence[Path]) -> set[str]:
    """The groups on which some earlier audit has a verdict."""
    found: set[str] = set()
    for folder in folders:
        verdicts = read_table(folder / "verdicts.parquet", VERDICTS, allow_empty=True)
        answered = verdicts.filter(pc.is_valid(verdicts["winner"]))["pair_id"].combine_chunks()
        found |= set(_of(folder / "asked_pairs.parquet", PAIRS, answered)["group"].to_pylist())
    return found


def _asked(folder: Path) -> Asked:
    selection = read_table(folder / "selection.parquet", SELECTION, allow_empty=True).filter(pc.field("drawn"))
    chances = dict(zip(selection["pair_id"].to_pylist(), selection["inclusion_probability"].to_pylist(), strict=True))
    return Asked(folder, read_json(folder / "asked.json"), chances)


def _ids(folder: Path) -> list[str]:
    tables = [
        read_table(folder / name, VERDICTS, allow_empty=True) for name in ("verdicts.parquet", "late_verdicts.parquet")
    ]
    return [row for table in tables for row in table["verdict_id"].to_pylist()]


def _of(path: Path, table: Table, pair_ids: pa.Array) -> pa.Table:
    data = read_table(path, table, allow_empty=True).select(table.schema.names)
    return data.filter(pc.is_in(data["pair_id"], value_set=pair_ids))
