"""The judges against people in the last round that asked any: what the audit server's page for ML ops shows.

Auditors whom the tests of `audit.quarantine` set aside do not count, as in the stage's own estimates.

While people are at it the verdicts come from the queue itself, so the page is of this moment; afterwards from the
stage's table.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa

from audit.config import AuditConfig
from audit.estimates import Accuracy, estimate
from audit.opinions import opinions
from audit.quarantine import quarantine, without
from audit.verdicts import from_table, to_table
from flows.plan import audit_config
from flows.stages.verdicts import GOLD_VERDICTS
from flows.workspace import Round, Workspace
from store.errors import UsageError
from store.manifest import read_manifest
from store.resources import resolve
from store.schemas import GOLD, PAIRS, SELECTION, VERDICTS, VOTES
from store.tables import read_table


def workspace_database(workspace: Path) -> str:
    """Where the queue of a workspace lies, as its last round's config has it. Raises UsageError."""
    from audit.loop import database_url  # loads a database, which few commands need

    space = Workspace.existing(workspace)
    last = space.last_round()
    config = AuditConfig() if last is None else last.config.audit
    return database_url(audit_config(config.model_copy(update={"inbox": None}), space.root))


def judges_against_people(workspace: Path) -> list[Accuracy]:
    """The panel first, then each judge. Raises UsageError where no round has asked anybody yet."""
    space = Workspace.existing(workspace)
    for round_ in reversed(space.rounds()):
        done = round_.stage("audit")
        waiting = done.with_name(f".{done.name}.partial")
        # What waits comes first: beside it may lie what an earlier config made.
        folder = waiting if (waiting / "selection.parquet").is_file() else done
        if read_manifest(round_.stage("judge")) is None or not (folder / "selection.parquet").is_file():
            continue
        selection = read_table(folder / "selection.parquet", SELECTION, allow_empty=True)
        if selection.num_rows == 0:
            continue
        verdicts, on_gold = _verdicts(round_, folder, selection, workspace)
        judge = round_.stage("judge")
        views = opinions(read_table(judge / "pairs.parquet", PAIRS), read_table(judge / "votes.parquet", VOTES))
        known = round_.config.calibration
        report = quarantine(
            pa.concat_tables([verdicts, on_gold]),
            read_table(resolve(known), GOLD).select(["pair_id", "winner"]) if known else None,
            round_.config.audit.auditor_limits,
        )
        found = estimate(views, selection, without(verdicts, report.names), report.reliability)
        simulated = any(verdicts["simulated"].to_pylist())
        rows = [found.panel, *found.judges]
        return [replace(row, judge=f"{row.judge} (auditors simulated)") for row in rows] if simulated else rows
    raise UsageError(f"No round of {space.root.name} has selected pairs for people yet: let rlaif run get that far.")


def _verdicts(round_: Round, folder: Path, selection: pa.Table, workspace: Path) -> tuple[pa.Table, pa.Table]:
    """Those on judged pairs, and those on hidden gold."""
    if folder == round_.stage("audit"):
        said = read_table(folder / "verdicts.parquet", VERDICTS, allow_empty=True)
        gold = read_table(folder / "gold_verdicts.parquet", GOLD_VERDICTS, allow_empty=True)
        return said, gold.select(VERDICTS.schema.names)
    if round_.config.audit.inbox:
        return VERDICTS.schema.empty_table(), VERDICTS.schema.empty_table()  # nothing is taken in before the gate opens
    from audit.loop import count, open_queue
    from audit.queue.exchange import export_verdicts

    with open_queue(workspace_database(workspace), lambda: datetime.now(UTC)) as queue:
        rows = export_verdicts(queue.database)
    drawn = {row["pair_id"] for row in selection.to_pylist() if row["drawn"]}
    counted = count(from_table(rows), rows)
    return to_table(verdict for verdict in counted.verdicts if verdict.pair_id in drawn), to_table(counted.gold)
