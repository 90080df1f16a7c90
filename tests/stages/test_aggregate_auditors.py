"""Stage aggregate with several auditors: who differs is weighed, who is a troll is set aside, and all is recomputed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa

from flows.specs import STAGES
from flows.stages.verdicts import GOLD_VERDICTS
from judges.config import AggregateConfig
from store.limits import AuditorLimits
from store.schemas import PAIRS, PREFERENCES, VERDICTS, VOTES
from store.stage import Source, run_stage
from store.tables import read_table, write_table

from ..audit.test_quarantine import Office
from ..judges.votes_builder import pairs_table, vote, votes_table

NAMES = [f"p{i}" for i in range(120)]
GOLD_ITEMS = 100
TRUTH = Office(GOLD_ITEMS + len(NAMES), GOLD_ITEMS, seed=3).truth[GOLD_ITEMS:]


def aggregated(folder: Path, verdicts: pa.Table, hidden: pa.Table | None = None, **config: Any) -> Any:
    # A judge that is right on four pairs of five: one that says nothing would not pass the gate.
    p_a = [0.85 if (truth == "a") == (i % 5 > 0) else 0.15 for i, truth in enumerate(TRUTH)]
    votes = votes_table(
        *(vote(name, "j", order, p) for name, p in zip(NAMES, p_a, strict=True) for order in ("ab", "ba"))
    )
    tables = {"votes": (VOTES, votes), "pairs": (PAIRS, pairs_table(*NAMES)), "verdicts": (VERDICTS, verdicts)}
    if hidden is not None:
        tables["gold_verdicts"] = (GOLD_VERDICTS, hidden)
    inputs = {
        name: [Source(str(write_table(folder / f"{name}.parquet", table, data)), name)]
        for name, (table, data) in tables.items()
    }
    settings = AggregateConfig(**{"method": "stacked", **config})
    return run_stage(
        "aggregate", STAGES["aggregate"].load(), inputs=inputs, config=settings, seed=0, out=folder / "out"
    )


def chosen(outcome: Any) -> dict[str, tuple[str, float]]:
    rows = read_table(outcome.folder / "preferences.parquet", PREFERENCES).to_pylist()
    return {row["pair_id"]: (row["chosen"], row["p_chosen"]) for row in rows}


def office_of_three() -> tuple[pa.Table, pa.Table]:
    """The first 100 items are hidden gold, renamed so that they are none of the pairs."""
    office = Office(220, 100, seed=3)
    office.add("ann", 0.95)
    office.add("bob", 0.7)
    office.add("troll", 0.0)
    gold, said = [], []
    for row in office.rows:
        number = int(row.pair_id[1:])
        values = vars(row) | {"flaws": None}
        if number < 100:
            gold.append(values | {"pair_id": f"gold-{number}", "gold_winner": office.truth[number]})
        else:
            said.append(values | {"pair_id": f"p{number - 100}"})
    return pa.Table.from_pylist(said, schema=VERDICTS.schema), pa.Table.from_pylist(gold, schema=GOLD_VERDICTS.schema)


def test_a_troll_leaves_no_trace(tmp_path: Path) -> None:
    said, hidden = office_of_three()
    for name in ("with", "without"):
        (tmp_path / name).mkdir()
    outcome = aggregated(tmp_path / "with", said, hidden)
    auditors = outcome.manifest.metrics["auditors"]
    assert auditors["quarantined"] == {"troll": ["inverted", "gold"]}
    assert auditors["verdicts_set_aside"] == 220
    honest = [table.filter(pa.compute.not_equal(table["auditor"], "troll")) for table in (said, hidden)]
    other = aggregated(tmp_path / "without", *honest)
    for name in ("preferences.parquet", "ratings.parquet"):
        assert (outcome.folder / name).read_bytes() == (other.folder / name).read_bytes()
    report = pa.parquet.read_table(outcome.folder / "quarantine.parquet").to_pylist()
    assert [row["auditor"] for row in report if row["quarantined"]] == ["troll"]


def test_a_person_can_keep_the_troll(tmp_path: Path) -> None:
    said, hidden = office_of_three()
    outcome = aggregated(tmp_path, said, hidden, auditor_limits=AuditorLimits(trusted=["troll"]))
    assert outcome.manifest.metrics["auditors"]["quarantined"] == {}


def test_the_more_reliable_auditor_decides_where_two_differ(tmp_path: Path) -> None:
    said, hidden = office_of_three()
    outcome = aggregated(tmp_path, said, hidden)
    found, winners = chosen(outcome), {}
    for row in said.to_pylist():
        winners.setdefault(row["pair_id"], {})[row["auditor"]] = row["winner"]
    differ = [pair for pair, by in winners.items() if by["ann"] != by["bob"]]
    assert len(differ) > 20
    for pair in differ:
        text, p = found[pair]
        assert text == f"{'first' if winners[pair]['ann'] == 'a' else 'second'} of {pair}"
        assert 0.6 < p < 0.95
    agree = [pair for pair, by in winners.items() if by["ann"] == by["bob"]]
    assert all(found[pair][1] == 1.0 for pair in agree)
