"""The tables behind finished labels, which the manifest of their stage names: for reports that read them again."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from judges.aggregation.labels import BARE_VOTES, checked_votes, of_judges
from judges.preferences.sides import sides_of
from store.errors import UsageError
from store.hashing import hash_path
from store.manifest import Manifest
from store.schemas import PAIRS, Table
from store.tables import read_table


def votes_behind(manifest: Manifest) -> tuple[pa.Table, pa.Table | None]:
    """The votes that counted, as the stage checked them, and its PAIRS; None where it had none.

    Raises UsageError where one of the two is gone or is not what it was.
    """
    pairs = read_input(manifest, "pairs", PAIRS) if manifest.inputs.get("pairs") else None
    given = read_input(manifest, "votes", BARE_VOTES)
    votes, _ = checked_votes(given, sides_of(given) if pairs is None else pairs)
    return of_judges(votes, manifest.config.get("judges")), pairs


def read_input(manifest: Manifest, name: str, table: Table) -> pa.Table:
    """The files of an input as one table. Raises UsageError where one is gone or is not what it was."""
    parts = []
    for entry in manifest.inputs[name]:
        path = Path(entry["value"])
        data = read_table(path, table, allow_empty=True)
        if hash_path(path) != entry["identity"]:
            raise UsageError(f"{path} is not what these labels were made of any more: run the stage aggregate again.")
        parts.append(data.select(table.schema.names))
    return pa.concat_tables(parts)
