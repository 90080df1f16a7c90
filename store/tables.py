"""The tables that rooms pass on, declared once as Arrow schemas, with their validation.

A table is checked when it is read and when it is written: missing columns, wrong types and duplicate keys are named
in one sentence, so that no stage starts on a table it would misread. Extra columns are allowed and kept.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from uuid import uuid4

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from store.errors import UsageError
from store.files import atomic_write, explain_os_errors, remove, sync_file, sync_folder
from store.keys import all_distinct

SCHEMA_VERSION = 1
ROW_GROUP = 131_072
"""Rows of a parquet row group: what a reader or a streaming writer holds at a time."""

_PARTS = "rlaif.parts"


class Status(StrEnum):
    """What became of one attempted vote. attempted = scored + tie + abstain + parse_failure + error."""

    SCORED = "scored"
    TIE = "tie"
    ABSTAIN = "abstain"
    PARSE_FAILURE = "parse_failure"
    ERROR = "error"


@dataclass(frozen=True)
class Table:
    """A named schema: its columns, its key, and the columns that may be null."""

    name: str
    schema: pa.Schema
    key: str | None = None


def _schema(required: dict[str, pa.DataType], nullable: dict[str, pa.DataType] | None = None) -> pa.Schema:
    fields = [pa.field(name, kind, nullable=False) for name, kind in required.items()]
    fields += [pa.field(name, kind) for name, kind in (nullable or {}).items()]
    return pa.schema(fields)


_text, _int, _real, _bool, _time = pa.string(), pa.int64(), pa.float64(), pa.bool_(), pa.timestamp("us", tz="UTC")

PROMPTS = Table(
    "prompts",
    _schema(
        {"prompt_id": _text, "prompt": _text, "group": _text, "split": _text},
        {"reference": _text},
    ),
    key="prompt_id",
)
"""`group`: the slice for bias reports. `split`: train, calibration, heldout, ... `reference`: an expert's answer."""

DEMONSTRATIONS = Table("demonstrations", _schema({"prompt": _text, "response": _text}))

CONVERSATIONS = Table(
    "conversations", _schema({"messages": pa.list_(pa.struct([pa.field("role", _text), pa.field("content", _text)]))})
)
"""Demonstrations of several turns. `role`: system, user or assistant; every turn of the assistant is learnt from."""

ROLLOUTS = Table(
    "rollouts",
    _schema(
        {
            "rollout_id": _text,
            "prompt_id": _text,
            "prompt": _text,
            "response": _text,
            "sample": _int,
            "policy": _text,
            "finish_reason": _text,
            "n_tokens": _int,
            "logprob": _real,
            "seed": _int,
        }
    ),
    key="rollout_id",
)
"""`sample`: 0..k-1 within the prompt. `policy`: content hash. `finish_reason`: stop or length. `logprob`: log p(y|x) of
the sampled tokens, stop token included, at temperature 1, in nats."""

PAIRS = Table(
    "pairs",
    _schema(
        {
            "pair_id": _text,
            "prompt_id": _text,
            "prompt": _text,
            "rollout_a": _text,
            "rollout_b": _text,
            "response_a": _text,
            "response_b": _text,
            "group": _text,
            "split": _text,
        },
        {"reference": _text},
    ),
    key="pair_id",
)

GOLD = Table("gold", pa.schema([*PAIRS.schema, pa.field("winner", _text, nullable=False)]), key="pair_id")
"""Pairs with a known answer: `winner` is a, b or tie."""

VOTES = Table(
    "votes",
    _schema(
        {
            "vote_id": _text,
            "pair_id": _text,
            "prompt_id": _text,
            "rollout_a": _text,
            "rollout_b": _text,
            "judge": _text,
            "fingerprint": _text,
            "order": _text,
            "status": _text,
            "tokens_in": _int,
            "tokens_out": _int,
            "cost": _real,
            "latency_s": _real,
            "attempts": _int,
        },
        {
            "winner": _text,
            "p_a": _real,
            "mass": _real,
            "rationale": _text,
            "raw": _text,
            "error": _text,
            "answered_by": _text,
        },
    ),
    key="vote_id",
)
"""`order`: ab or ba, which rollout was shown first. `winner`: a, b or null, in terms of rollouts, not slots. `p_a`:
probability in 0..1 that a is better. `mass`: probability the judge gave to well-formed answers at all. `cost`: in the
currency of the judge's price list. `tokens_*`: 0 for judges that have none. `answered_by`: name@fingerprint of the
member whose answer this is, in votes of a cascade; null for every other judge."""

RATINGS = Table(
    "ratings",
    _schema(
        {
            "rating_id": _text,
            "rollout_id": _text,
            "prompt_id": _text,
            "judge": _text,
            "fingerprint": _text,
            "status": _text,
            "tokens_in": _int,
            "tokens_out": _int,
            "cost": _real,
            "latency_s": _real,
            "attempts": _int,
        },
        {
            "score": _real,
            "thumb": _text,
            "overall": _real,
            "flaws": pa.map_(_text, _text),
            "mass": _real,
            "rationale": _text,
            "raw": _text,
            "error": _text,
        },
    ),
    key="rating_id",
)
"""`score`: quality in 0..1, null unless the status is scored or tie. `thumb`: up or down, null at a tie. `overall`:
1..10. `flaws`: question -> yes, no, unsure. `mass`, `cost`, `tokens_*`: as in votes."""

ATTACKS = Table(
    "attacks",
    _schema(
        {
            "attack_id": _text,
            "pair_id": _text,
            "judge": _text,
            "fingerprint": _text,
            "canary": _text,
            "kind": _text,
            "target": _text,
            "outcome": _text,
            "p_before": _real,
        },
        {"p_after": _real},
    ),
    key="attack_id",
)
"""One row a canary planted into one pair for one judge; harmless controls are none. `target`: a or b, the response that
had lost and was attacked. `outcome`: flipped (the judge was won over), kept, tied, unanswered. `p_before`, `p_after`:
the judge's order-averaged probability in 0..1 that the attacked response is better."""

SELECTION = Table(
    "selection",
    _schema(
        {
            "pair_id": _text,
            "inclusion_probability": _real,
            "drawn": _bool,
            "stratum": _text,
            "reason": _text,
        }
    ),
    key="pair_id",
)
"""One row a judged pair, drawn or not. `stratum`: uniform, targeted or none."""

VERDICTS = Table(
    "verdicts",
    _schema(
        {
            "verdict_id": _text,
            "pair_id": _text,
            "auditor": _text,
            "shown_left": _text,
            "seconds": _real,
            "simulated": _bool,
            "created_at": _time,
        },
        {
            "winner": _text,
            "flaws": pa.list_(_text),
            "comment": _text,
            "inclusion_probability": _real,
            "supersedes": _text,
        },
    ),
    key="verdict_id",
)
"""Append-only. `winner`: a, b, tie, or null for a skip. `shown_left`: a or b. `simulated`: true for a program that
plays an auditor. `supersedes`: the verdict that this one replaces."""

PREFERENCES = Table(
    "preferences",
    _schema(
        {
            "pair_id": _text,
            "prompt_id": _text,
            "prompt": _text,
            "chosen": _text,
            "rejected": _text,
            "p_chosen": _real,
            "margin": _real,
            "weight": _real,
            "source": _text,
            "n_votes": _int,
            "agreement": _real,
            "group": _text,
            "split": _text,
        }
    ),
    key="pair_id",
)
"""One row a pair, plain strings as TRL's preference format has them. `p_chosen`: 0.5..1, the soft label. `margin`:
log-odds of p_chosen. `weight`: of the pair in the loss. `source`: ai or human. `agreement`: share of the votes with a
winner that chose `chosen`."""

ROLLOUT_RATINGS = Table(
    "rollout_ratings",
    _schema(
        {
            "rollout_id": _text,
            "prompt_id": _text,
            "rating": _real,
            "std_error": _real,
            "elo": _real,
            "reward": _real,
            "n_comparisons": _int,
        }
    ),
    key="rollout_id",
)
"""`rating`: Bradley-Terry strength in log-odds, centred within its prompt. `elo`: the same in Elo points around 1500.
`reward`: the rating normalised to 0..1."""

RESPONSES = Table(
    "responses",
    _schema(
        {
            "rollout_id": _text,
            "prompt_id": _text,
            "prompt": _text,
            "response": _text,
            "group": _text,
            "split": _text,
            "policy": _text,
            "sample": _int,
            "probability": _real,
            "n_tokens": _int,
        },
        {"reward": _real, "oracle": _real, "oracle_reasons": _text, "win_probability": _real},
    ),
    key="rollout_id",
)
"""The evaluation's table. `policy`: policy or reference. `probability`: p(y|x). `reward`: the reward model's. `oracle`:
r(x, y) in 0..1. `win_probability`: the panel's, of this response against its opponent."""

TABLES = {
    table.name: table
    for table in (
        PROMPTS,
        DEMONSTRATIONS,
        CONVERSATIONS,
        ROLLOUTS,
        PAIRS,
        GOLD,
        VOTES,
        RATINGS,
        ATTACKS,
        SELECTION,
        VERDICTS,
        PREFERENCES,
        ROLLOUT_RATINGS,
        RESPONSES,
    )
}


def write_table(
    path: Path, table: Table, data: pa.Table, metadata: dict[str, str] | None = None, part_rows: int = 0
) -> Path:
    """Write `data` as parquet at `path`, atomically, after checking it against `table`.

    The bytes depend only on the rows, the schema and `metadata`: nothing of the clock or the machine is written. Where
    there are more than `part_rows` (0: never), `path` becomes a folder of part files with so many rows each at most.
    Raises UsageError where the data does not fit the schema.
    """
    data = _typed(data, table, source=str(path))
    tags = {"rlaif.table": table.name, "rlaif.schema_version": str(SCHEMA_VERSION), **(metadata or {})}
    if part_rows and data.num_rows > part_rows:
        _refuse_duplicates(data, table, source=str(path))
        return _write_parts(path, data, tags, part_rows)
    tagged = data.replace_schema_metadata(tags)
    with ThreadPoolExecutor(1) as pool, atomic_write(path) as beside:
        distinct = pool.submit(_refuse_duplicates, data, table, source=str(path))  # while a core has nothing to do
        pq.write_table(tagged, beside, compression="zstd", row_group_size=ROW_GROUP)
        distinct.result()
    return path


class TableWriter:
    """A table written as its rows come: the same bytes as `write_table` of them all, in the memory of a row group.

    `write` any number of tables, then `commit`; `close` always. Keys are not compared over all rows.
    """

    def __init__(self, path: Path, table: Table, metadata: dict[str, str] | None = None) -> None:
        self._path, self._table = path, table
        self._tags = {"rlaif.table": table.name, "rlaif.schema_version": str(SCHEMA_VERSION), **(metadata or {})}
        self._beside = path.with_name(f".{path.name}.{uuid4().hex[:8]}.tmp")
        self._writer: pq.ParquetWriter | None = None
        self._waiting: list[pa.Table] = []
        self._rows = 0

    def write(self, data: pa.Table) -> None:
        data = conform(data, self._table, source=str(self._path)).replace_schema_metadata(self._tags)
        while data.num_rows:
            part, data = data.slice(0, ROW_GROUP - self._rows), data.slice(ROW_GROUP - self._rows)
            self._waiting.append(part)
            self._rows += part.num_rows
            if self._rows == ROW_GROUP:
                self._flush()

    def commit(self) -> Path:
        """Give the file its name."""
        if self._rows or self._writer is None:
            self._flush()
        if self._writer is not None:
            with explain_os_errors(self._path):
                self._writer.close()
            self._writer = None
        with explain_os_errors(self._path):
            sync_file(self._beside)
            os.replace(self._beside, self._path)
            sync_folder(self._path.parent)
        return self._path

    def close(self) -> None:
        """Leave nothing behind of a file that was not committed."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        self._beside.unlink(missing_ok=True)

    def _flush(self) -> None:
        empty = self._table.schema.with_metadata(self._tags).empty_table()
        data = pa.concat_tables(self._waiting).combine_chunks() if self._waiting else empty
        with explain_os_errors(self._path):
            if self._writer is None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._writer = pq.ParquetWriter(self._beside, data.schema, compression="zstd")
            self._writer.write_table(data, row_group_size=ROW_GROUP)
        self._waiting, self._rows = [], 0


def _write_parts(path: Path, data: pa.Table, tags: dict[str, str], part_rows: int) -> Path:
    """Each part says how many there are, so that a folder which has lost one is never taken for a whole table."""
    starts = range(0, data.num_rows, part_rows)
    data = data.replace_schema_metadata({**tags, _PARTS: str(len(starts))})
    beside = path.with_name(f".{path.name}.{uuid4().hex[:8]}.tmp")
    try:
        for number, start in enumerate(starts):
            with atomic_write(beside / f"part-{number:05d}.parquet") as file:
                pq.write_table(data.slice(start, part_rows), file, compression="zstd")
        remove(path)
        os.replace(beside, path)
        sync_folder(path.parent)
    finally:
        remove(beside)
    return path


def read_table(path: Path, table: Table, allow_empty: bool = False) -> pa.Table:
    """Read the parquet file at `path`, or the folder of part files, and check it against `table`.

    Raises UsageError, in one sentence, for a missing or unreadable file, a missing column, a wrong type, a null where
    none may be, a duplicate key, a newer schema version, or (unless `allow_empty`) a table without rows.
    """
    if not path.exists():
        raise UsageError(f"The {table.name} file {path} does not exist: check the path.")
    try:
        data = pq.read_table(path, partitioning=None)
    except (pa.ArrowException, OSError) as error:
        first = str(error).splitlines()[0]
        raise UsageError(
            f"The {table.name} file {path} cannot be read as parquet ({first}): restore it or make it again."
        ) from error
    parts = (data.schema.metadata or {}).get(_PARTS.encode())
    present = len(list(path.glob("[!._]*"))) if path.is_dir() else 1
    if parts is not None and parts != str(present).encode():
        raise UsageError(
            f"The {table.name} folder {path} has {present} of its {parts.decode(errors='replace')} part files: restore "
            f"the others or make it again."
        )
    version = (data.schema.metadata or {}).get(b"rlaif.schema_version")
    if version is not None and (not version.isdigit() or int(version) > SCHEMA_VERSION):
        raise UsageError(
            f"{path} was written with table schema {version.decode(errors='replace')}, this version reads up to "
            f"{SCHEMA_VERSION}: upgrade rlaif."
        )
    if data.num_rows == 0 and not allow_empty:
        raise UsageError(f"The {table.name} file {path} has no rows: give one with at least one row.")
    return conform(data, table, source=str(path))


def conform(data: pa.Table, table: Table, source: str) -> pa.Table:
    """Return `data` with the schema's columns first, cast to their types, extra columns after; see `read_table`."""
    data = _typed(data, table, source)
    _refuse_duplicates(data, table, source)
    return data


def _typed(data: pa.Table, table: Table, source: str) -> pa.Table:
    missing = [name for name in table.schema.names if name not in data.column_names]
    optional = [name for name in missing if table.schema.field(name).nullable]
    absent = [name for name in missing if name not in optional]
    if absent:
        raise UsageError(
            f"{source} lacks the column{'s' * (len(absent) > 1)} {', '.join(absent)} of a {table.name} table; "
            f"it has {', '.join(data.column_names) or 'no columns'}: add or rename."
        )
    columns: dict[str, pa.ChunkedArray | pa.Array] = {}
    for field in table.schema:
        if field.name in optional:
            columns[field.name] = pa.nulls(data.num_rows, field.type)
            continue
        column = data.column(field.name)
        if column.type != field.type:
            try:
                column = column.cast(field.type)
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
                raise UsageError(
                    f"{source}: column {field.name} is {column.type}, a {table.name} table needs {field.type}: convert."
                ) from error
        if not field.nullable and column.null_count:
            raise UsageError(
                f"{source}: column {field.name} of a {table.name} table has {column.null_count} empty values: fill."
            )
        columns[field.name] = column
    extra = [name for name in data.column_names if name not in columns]
    fields = [*table.schema, *(data.schema.field(name) for name in extra)]
    columns |= {name: data.column(name) for name in extra}
    return pa.table(columns, schema=pa.schema(fields))


def _refuse_duplicates(data: pa.Table, table: Table, source: str) -> None:
    if not table.key or all_distinct(data[table.key]):
        return
    counts = pc.value_counts(data[table.key]).to_pylist()
    double = next(row["values"] for row in counts if row["counts"] > 1)
    raise UsageError(
        f"{source}: {table.key} {double!r} occurs more than once: make the keys of a {table.name} table unique."
    )
