"""Reads the files of a round for the page. What cannot be read is None, and named in `problems`.

Only a stage directory with a manifest is looked at (docs/architecture.md, law 1). Only the columns that the report
needs are read from the tables, since the texts of a large vote table do not fit into memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from audit.verdicts import Verdict, from_table
from flows.report.values import STATUSES
from judges.metrics import Cause, causes
from judges.reports.causes import COLUMNS as CAUSE_COLUMNS
from store.errors import UsageError
from store.files import read_json
from store.manifest import Manifest
from store.schemas import VERDICTS
from store.tables import read_table

_VOTE_COLUMNS = ["judge", "fingerprint", "status"]


@dataclass(frozen=True)
class Reader:
    folder: Path
    manifests: Mapping[str, Manifest]
    problems: list[str]

    def table(
        self, stage: str, name: str, columns: list[str] | None = None, optional: bool = False
    ) -> pd.DataFrame | None:
        """Columns of a finished stage's table (None: all); an `optional` one may be missing without a word."""
        if stage not in self.manifests:
            return None
        path = self.folder / stage / name
        if not path.exists():
            if not optional:
                self.problems.append(f"{stage}/{name} is missing, so what depends on it is not shown.")
            return None
        try:
            present = pq.ParquetDataset(path, partitioning=None).schema.names
            missing = [column for column in columns or [] if column not in present]
            wanted = None if columns is None else [column for column in columns if column in present]
            frame: pd.DataFrame = pq.read_table(path, columns=wanted, partitioning=None).to_pandas()
        except (pa.ArrowException, OSError, ValueError) as error:
            first = (str(error).splitlines() or ["unknown error"])[0]
            self.problems.append(f"{stage}/{name} cannot be read ({first}), so what depends on it is not shown.")
            return None
        if missing:
            self.problems.append(f"{stage}/{name} lacks {', '.join(missing)}, so what depends on it is not shown.")
            return None
        return frame

    def votes(self, stage: str, name: str, optional: bool = False) -> pa.Table | None:
        """Who voted and what became of it; the texts of votes are not read."""
        frame = self.table(stage, name, _VOTE_COLUMNS, optional)
        if frame is None or frame.empty:
            return None
        unknown = sorted(set(frame["status"].astype(str)) - set(STATUSES))
        if unknown:
            self.problems.append(f"{stage}/{name} has votes of the unknown status {', '.join(unknown)}: not shown.")
            return None
        return pa.Table.from_pandas(frame, preserve_index=False)

    def causes(self, stage: str, name: str) -> list[Cause]:
        """Why votes of a table have no answer. Only their texts are read."""
        path = self.folder / stage / name
        if stage not in self.manifests or not path.exists():
            return []
        silent = [("status", "in", ["error", "parse_failure", "abstain"])]
        try:
            return causes(pq.read_table(path, columns=list(CAUSE_COLUMNS), filters=silent, partitioning=None))
        except (pa.ArrowException, OSError, ValueError, KeyError) as error:
            first = (str(error).splitlines() or ["unknown error"])[0]
            self.problems.append(f"The causes of votes without an answer in {stage}/{name} are not shown ({first}).")
            return []

    def verdicts(self) -> list[Verdict] | None:
        path = self.folder / "audit" / "verdicts.parquet"
        if "audit" not in self.manifests or not path.is_file():
            return None
        try:
            return from_table(read_table(path, VERDICTS, allow_empty=True))
        except UsageError as error:
            self.problems.append(f"audit/verdicts.parquet is not shown: {error}")
            return None

    def json(self, stage: str, name: str) -> dict[str, Any] | None:
        if stage not in self.manifests:
            return None
        try:
            value = read_json(self.folder / stage / name)
        except UsageError as error:
            self.problems.append(f"{stage}/{name} is not shown: {error}")
            return None
        if not isinstance(value, dict):
            self.problems.append(f"{stage}/{name} holds no mapping, so it is not shown.")
            return None
        return value
