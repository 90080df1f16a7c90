"""Items in, verdicts out: parquet tables and CSV.

A verdicts table of the queue has, beside the columns of every verdicts table: `item_id`, `batch`, `kind` (answer, skip,
withdrawn, adjudication), `item_kind` (pair, gold, canary), `group`, `stratum`, `confidence`, `quarantined` (the
person's verdicts are in doubt: leave them out and compute again), `guidelines_version` and `constitution_version`.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import sqlalchemy as sa

from audit.answers import storable
from audit.queue.database import Database
from audit.queue.model import Kind, NewItem
from audit.queue.tables import batches, items, users, verdicts
from store.errors import UsageError
from store.files import atomic_write
from store.hashing import short_id
from store.schemas import VERDICTS

_SIDES = (("response_a", "response_b"), ("chosen", "rejected"))
_PROBABILITIES = "inclusion_probability"
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")

_text = pa.string()
_SCHEMA = pa.schema(
    [
        *VERDICTS.schema,
        pa.field("item_id", _text, nullable=False),
        pa.field("batch", _text, nullable=False),
        pa.field("kind", _text, nullable=False),
        pa.field("item_kind", _text, nullable=False),
        pa.field("group", _text, nullable=False),
        pa.field("stratum", _text, nullable=False),
        pa.field("confidence", pa.int64()),
        pa.field("quarantined", pa.bool_(), nullable=False),
        pa.field("guidelines_version", _text, nullable=False),
        pa.field("constitution_version", _text, nullable=False),
    ]
)


def read_items(path: Path, kind: Kind = Kind.PAIR, overlap: int | None = None, priority: int = 0) -> list[NewItem]:
    """Items from any parquet file with `prompt` and two responses (`response_a`, `response_b` or `chosen`, `rejected`).

    Responses, and prompts too, may be plain texts or conversations (lists of messages with role and content). A missing
    `pair_id` is made from the texts. `winner` is read for kind gold (chosen wins over rejected), `group`, `stratum`,
    `reason` and `inclusion_probability` where they are there. Raises UsageError.
    """
    try:
        data = pq.read_table(path, partitioning=None)
    except (pa.ArrowException, OSError) as error:
        raise UsageError(f"The file {path} cannot be read as parquet ({error}): check the path.") from error
    names = set(data.column_names)
    sides = next((pair for pair in _SIDES if names.issuperset(pair)), None)
    if sides is None or "prompt" not in names:
        raise UsageError(
            f"{path} needs the columns prompt and response_a, response_b (or chosen, rejected); "
            f"it has {', '.join(data.column_names) or 'none'}: rename them."
        )
    known = {*sides, "prompt", "pair_id", "winner", "group", "stratum", "reason", _PROBABILITIES}
    rows = data.select([name for name in data.column_names if name in known]).to_pylist()
    return [_new_item(row, sides, kind, overlap, priority, f"{path}, row {n}") for n, row in enumerate(rows, start=1)]


def selected_items(
    pairs: pa.Table, selection: pa.Table, overlap: int | None = None, priority: int = 0
) -> list[NewItem]:
    """Items from the drawn rows of a selection table, with their inclusion probabilities. Raises UsageError where a
    drawn pair is not among the pairs."""
    drawn = {row["pair_id"]: row for row in selection.filter(pc.field("drawn")).to_pylist()}
    wanted = pairs.filter(pc.is_in(pairs["pair_id"], value_set=pa.array(list(drawn), pa.string()))).to_pylist()
    if len(wanted) < len(drawn):
        lost = min(set(drawn) - {row["pair_id"] for row in wanted})
        raise UsageError(f"The pair {lost!r} was drawn but is not among the pairs: give both tables of one round.")
    extra = ("stratum", "reason", _PROBABILITIES)
    rows = [row | {name: drawn[row["pair_id"]][name] for name in extra} for row in wanted]
    return [_new_item(row, _SIDES[0], Kind.PAIR, overlap, priority, f"pair {row['pair_id']}") for row in rows]


def export_verdicts(database: Database, batch_id: str | None = None, with_simulated: bool = True) -> pa.Table:
    """A verdicts table of all rows, superseded ones too, oldest first.

    Parquet holds UTF-8: a lone surrogate in a comment becomes a visible escape such as \\ud800 here, and here alone.
    """
    return pa.Table.from_pylist(list(_rows(database, batch_id, with_simulated)), schema=_SCHEMA)


def csv_lines(verdicts_table: pa.Table) -> Iterator[str]:
    """CSV, a header first, in which no cell can act as a formula: an apostrophe is put before what begins like one.

    OWASP, CSV injection. Every text is quoted.
    """
    yield _line(verdicts_table.column_names)
    for batch in verdicts_table.to_batches():
        for row in batch.to_pylist():
            yield _line([_cell(value) for value in row.values()])


def write_csv(path: Path, verdicts_table: pa.Table) -> Path:
    """Raises RlaifError for a full disk, UsageError for a folder that cannot be written to."""
    with atomic_write(path) as beside, beside.open("w", encoding="utf-8", newline="") as file:
        file.writelines(csv_lines(verdicts_table))
    return path


def _rows(database: Database, batch_id: str | None, with_simulated: bool) -> Iterator[dict[str, Any]]:
    earlier = verdicts.alias("earlier")
    found = (
        sa.select(verdicts, users.c.name, users.c.simulated, users.c.quarantined)
        .add_columns(items.c.public_id.label("item_public_id"), items.c.pair_id, items.c.kind.label("item_kind"))
        .add_columns(items.c.group, items.c.stratum, items.c.inclusion_probability)
        .add_columns(batches.c.public_id.label("batch_public_id"), batches.c.guidelines_version)
        .add_columns(batches.c.constitution_version, earlier.c.public_id.label("earlier_public_id"))
        .join(users, users.c.id == verdicts.c.user_id)
        .join(items, items.c.id == verdicts.c.item_id)
        .join(batches, batches.c.id == items.c.batch_id)
        .outerjoin(earlier, earlier.c.id == verdicts.c.supersedes)
        .order_by(verdicts.c.id)
    )
    if batch_id is not None:
        found = found.where(batches.c.public_id == batch_id)
    if not with_simulated:
        found = found.where(users.c.simulated.is_(False))
    with database.read() as connection:
        for row in connection.execute(found):
            yield {
                "verdict_id": row.public_id,
                "pair_id": row.pair_id,
                "auditor": row.name,
                "winner": row.winner,
                "shown_left": row.shown_left,
                "seconds": math.nan if row.seconds is None else row.seconds,
                "simulated": row.simulated,
                "created_at": row.created_at,
                "flaws": json.loads(row.flaws),
                "comment": storable(row.comment) or None,
                "inclusion_probability": row.inclusion_probability,
                "supersedes": row.earlier_public_id,
                "item_id": row.item_public_id,
                "batch": row.batch_public_id,
                "kind": row.kind,
                "item_kind": row.item_kind,
                "group": storable(row.group),
                "stratum": storable(row.stratum),
                "confidence": row.confidence,
                "quarantined": row.quarantined is not None,
                "guidelines_version": row.guidelines_version,
                "constitution_version": row.constitution_version,
            }


def _new_item(
    row: dict[str, Any], sides: tuple[str, str], kind: Kind, overlap: int | None, priority: int, where: str
) -> NewItem:
    prompt, first, second = (_plain(row[name], f"{where}: {name}") for name in ("prompt", *sides))
    winner = row.get("winner") if sides == _SIDES[0] else "a"
    if kind is Kind.GOLD and winner is None:
        raise UsageError(f"{where} has no winner, which a gold item needs: fill the column winner with a, b or tie.")
    return NewItem(
        pair_id=str(row.get("pair_id") or short_id(prompt, first, second)),
        prompt=prompt,
        response_a=first,
        response_b=second,
        kind=kind,
        gold_winner=winner if kind is Kind.GOLD else None,
        priority=priority,
        overlap=overlap,
        inclusion_probability=row.get(_PROBABILITIES),
        group=row.get("group") or "",
        stratum=row.get("stratum") or "",
        reason=row.get("reason") or "",
    )


def _plain(value: Any, where: str) -> str:
    """A text, or the messages of a conversation one after the other; a single message stands without its role."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value and all(isinstance(part, dict) and "content" in part for part in value):
        said = [str(part["content"]) for part in value]
        if len(value) == 1:
            return said[0]
        return "\n\n".join(f"{part.get('role', '')}: {text}" for part, text in zip(value, said, strict=True))
    raise UsageError(f"{where} is neither a text nor a list of messages: convert it.")


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, list):
        value = "; ".join(value)
    text = str(value.isoformat() if hasattr(value, "isoformat") else value).replace("\0", "\\0")
    return "'" + text if text.startswith(_FORMULA) else text


def _line(cells: Iterable[str]) -> str:
    out = io.StringIO()
    csv.writer(out, quoting=csv.QUOTE_ALL).writerow(cells)
    return out.getvalue()
