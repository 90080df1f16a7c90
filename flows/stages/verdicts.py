"""The verdicts that a stage counts: those of auditors who are not in quarantine."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from audit.quarantine import Quarantine, quarantine, without
from flows.stages.tables import read_joined
from store.limits import AuditorLimits
from store.schemas import VERDICTS, Table
from store.stage import Job

GOLD_VERDICTS = Table(
    "verdicts", pa.schema([*VERDICTS.schema, pa.field("gold_winner", pa.string(), nullable=False)]), key="verdict_id"
)
"""Verdicts on hidden gold items. `gold_winner`: a, b or tie, what is known to be right."""


def read_verdicts(job: Job[Any], gold: pa.Table | None, limits: AuditorLimits) -> tuple[pa.Table, Quarantine] | None:
    """The verdicts that count, and the report on the auditors; None where the stage was given none.

    What is known to be right: `gold`, a table with pair_id and winner, and the input gold_verdicts, if there is one.
    """
    if not job.given("verdicts"):
        return None
    verdicts = read_joined(job, "verdicts", VERDICTS, allow_empty=True)
    hidden = GOLD_VERDICTS.schema.empty_table()
    if job.given("gold_verdicts"):
        hidden = read_joined(job, "gold_verdicts", GOLD_VERDICTS, allow_empty=True)
    answers = {"pair_id": hidden["pair_id"].to_pylist(), "winner": hidden["gold_winner"].to_pylist()}
    if gold is not None:
        answers = {name: values + gold[name].to_pylist() for name, values in answers.items()}
    known = pa.table(answers, schema=pa.schema([("pair_id", pa.string()), ("winner", pa.string())]))
    report = quarantine(pa.concat_tables([_with_marks(verdicts), _with_marks(hidden)]), known, limits)
    return without(verdicts, report.names), report


def _with_marks(verdicts: pa.Table) -> pa.Table:
    """The columns of a verdicts table, and `quarantined`, which exports of the queue have."""
    has = "quarantined" in verdicts.column_names
    marks = pc.fill_null(verdicts["quarantined"], False) if has else pa.repeat(False, verdicts.num_rows)
    return verdicts.select(VERDICTS.schema.names).append_column("quarantined", marks)
