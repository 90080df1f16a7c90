"""The last round of a workspace as `judges.compare` needs it: its tables, how it aggregated, votes that are there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from audit.quarantine import QUARANTINE, without
from flows.workspace import Workspace
from judges.aggregation.labels import of_judges
from judges.compare import Round
from store.errors import UsageError
from store.manifest import read_manifest
from store.schemas import GOLD, PAIRS, VERDICTS, VOTES
from store.tables import read_table


@dataclass(frozen=True)
class LastRound:
    """`known`: tables of pairs and the votes on them. `shards`: where votes of comparisons are kept. `seed`: of the
    judge stage. `calibration`: the file of its gold pairs."""

    number: int
    tables: Round
    known: list[tuple[pa.Table, pa.Table]]
    shards: Path
    seed: int
    calibration: str | None


def read_last_round(workspace: Path) -> LastRound:
    """The last round whose stages judge and aggregate are complete. Raises UsageError where there is none."""
    space = Workspace.existing(workspace)
    for round_ in reversed(space.rounds()):
        judge, aggregate = read_manifest(round_.stage("judge")), read_manifest(round_.stage("aggregate"))
        if judge is None or aggregate is None:
            continue
        folder = round_.stage("judge")
        pairs = read_table(folder / "pairs.parquet", PAIRS)
        votes = read_table(folder / "votes.parquet", VOTES)
        known = [(pairs, votes)]
        gold = gold_votes = None
        source = next((item["value"] for item in judge.inputs.get("calibration", [])), None)
        if source and aggregate.inputs.get("gold"):
            gold = read_table(Path(source), GOLD)
            gold_votes = read_table(folder / "calibration_votes.parquet", VOTES)
            known.append((gold, gold_votes))
        verdicts = round_.stage("audit") / "verdicts.parquet"
        people, reliability = None, None
        if aggregate.inputs.get("verdicts") and verdicts.is_file():
            said = read_table(verdicts, VERDICTS, allow_empty=True)
            people, reliability = _who_count(said, round_.stage("aggregate"))
        config = aggregate.config
        tables = Round(
            pairs,
            of_judges(votes, config.get("judges")),
            str(config["method"]),
            gold,
            gold_votes,
            people,
            bool(config.get("lengths")),
            reliability,
        )
        return LastRound(round_.number, tables, known, space.root / "comparisons", judge.seed, source)
    raise UsageError(f"{workspace} has no round with judged and aggregated pairs: let rlaif run get that far first.")


def _who_count(verdicts: pa.Table, aggregate: Path) -> tuple[pa.Table, dict[str, float]]:
    """The verdicts of auditors whom the stage did not set aside, and how reliable it took each for."""
    if not (aggregate / "quarantine.parquet").is_file():
        return verdicts, {}
    auditors = read_table(aggregate / "quarantine.parquet", QUARANTINE, allow_empty=True).to_pylist()
    aside = [row["auditor"] for row in auditors if row["quarantined"]]
    return without(verdicts, aside), {row["auditor"]: row["reliability"] for row in auditors if not row["quarantined"]}
