"""The queue's side of a round: a selection becomes a batch, what people say in it becomes deliveries for the gate.

What the queue knows beyond a verdict's own columns decides which verdicts count: an answer of a person in quarantine
counts for nothing, and where a lead settled a pair, the lead's verdict alone counts. The rows that do not count stay in
the table of all rows; nothing is deleted.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from audit.answers import Batch
from audit.asking import Heard, Selected, Terms, look
from audit.config import AuditConfig
from audit.gate import Gate, Rule
from audit.inbox import Delivery, Entry
from audit.items import shown_left
from audit.late import Asked, collect_late
from audit.queue.database import Database
from audit.queue.exchange import export_verdicts, selected_items
from audit.queue.model import Clock, Guidelines, Kind, NewItem, VerdictKind
from audit.queue.queue import Queue
from audit.verdicts import Verdict, from_table
from store.errors import UsageError
from store.files import read_json
from store.hashing import short_id
from store.schemas import VERDICTS


def database_url(config: AuditConfig) -> str:
    """Where the queue lies. Raises UsageError for a variable that is not set, and where the config names nothing."""
    if config.database_env is None:
        if config.database is None:
            raise UsageError("audit.database is not set: name the file or URL of the queue's database.")
        return config.database
    url = os.environ.get(config.database_env)
    if not url:
        raise UsageError(
            f"audit.database_env names {config.database_env}, which is not set: put the database's URL into it."
        )
    return url


@contextmanager
def open_queue(url: str, clock: Clock) -> Iterator[Queue]:
    """The queue in a database, made or migrated where needed; closed after the block."""
    database = Database(url)
    try:
        database.migrate()
        yield Queue(database, clock)
    finally:
        database.close()


def ask_queue(terms: Terms, selected: Selected, guidelines: Guidelines) -> Heard:
    """Put the items into the queue and take in what people answered there.

    From then on people work on these: what is left of earlier rounds' batches is handed out no more, though who has an
    item before them may end it, and that still counts as late.
    """
    items = queue_items(selected)
    with open_queue(database_url(terms.config), terms.clock) as queue:

        def of_earlier(asked: Asked) -> Sequence[Verdict]:
            if asked.where.get("source") != "queue":
                return []
            counted = said_in(queue, asked.where["batch"])
            return counted.verdicts if counted else []

        current = selected.pairs["pair_id"].to_pylist()
        if not items:
            return Heard("quota", late=collect_late(terms.earlier, current, of_earlier))
        name = enqueue(queue, items, terms.config.overlap, guidelines, terms.config.quota)
        _close_earlier(queue, terms.earlier, name)
        source = QueueDeliveries(queue.database, need_batch(queue, name))
        batch = Batch(selected.chances, lambda pair_id: shown_left(terms.seed, pair_id), set(selected.gold_ids))
        rule = Rule(terms.config.quota, terms.config.overlap, terms.config.timeout_s, skips_count=False)
        gate = Gate(batch, rule, source, terms.state, terms.clock, source.fills)
        found = look(terms, gate)
        counted = count(gate.ledger.verdicts.values(), source.table)
        late = collect_late(terms.earlier, current, of_earlier)
    return Heard(
        str(found.opened),
        counted.verdicts,
        counted.gold,
        late,
        {"source": "queue", "batch": name},
        {"handled": found.handled, "wanted": found.wanted, "batch": name, "left_out": counted.left_out},
        rows=source.table,
    )


def queue_items(selected: Selected) -> list[NewItem]:
    """The drawn pairs and the hidden gold items. In the queue nobody can tell one from the other."""
    gold = [
        NewItem(
            row["pair_id"],
            row["prompt"],
            row["response_a"],
            row["response_b"],
            Kind.GOLD,
            row["winner"],
            group=row["group"],
            reason="hidden gold: measures the auditor",
        )
        for row in selected.gold.to_pylist()
    ]
    return selected_items(selected.pairs, selected.selection) + gold


def enqueue(queue: Queue, items: Sequence[NewItem], overlap: int, guidelines: Guidelines, quota: float) -> str:
    """Put the items before people; gives the batch's name. The name is made of what is asked, so that asking the same
    again, after a kill, say, changes nothing."""
    asked = sorted(short_id(*map(str, vars(item).values())) for item in items)
    name = "audit-" + short_id(overlap, str(quota), *map(str, vars(guidelines).values()), *asked)
    queue.add_batch(name, items, overlap, guidelines, quota)
    return name


def find_batch(queue: Queue, name: str) -> str | None:
    """The id of the batch of a name."""
    return next((batch.batch_id for batch in queue.batches() if batch.name == name), None)


def need_batch(queue: Queue, name: str) -> str:
    """Raises UsageError where there is none."""
    batch = find_batch(queue, name)
    if batch is None:
        raise UsageError(f"The audit database {queue.database.name} has no batch {name!r}: check which one it is.")
    return batch


@dataclass
class QueueDeliveries:
    """All verdicts of one batch as one delivery, which the ledger takes in where something is new."""

    database: Database
    batch_id: str

    def __post_init__(self) -> None:
        self._look()

    def _look(self) -> None:
        self.table = export_verdicts(self.database, self.batch_id)
        rows = self.table.to_pylist()
        self._aside, self._settled = {row["auditor"] for row in rows if row["quarantined"]}, _settled(rows)

    def fills(self, verdict: Verdict) -> bool:
        """Whether nobody else is asked in its stead: one of a person in quarantine is waited for again, unless a lead
        settled the pair. As of the last call."""
        return verdict.auditor not in self._aside or verdict.pair_id in self._settled

    def __call__(self) -> Iterable[Delivery]:
        """`table` holds the queue's own rows as of the last call."""
        self._look()
        rows = self.table.to_pylist()
        entries = tuple(Entry(f"verdict {row['verdict_id']}", _answer(row)) for row in rows)
        # Rows are append-only: the same ids are the same content.
        yield Delivery("queue", short_id(*(row["verdict_id"] for row in rows)), entries)


@dataclass(frozen=True)
class Counted:
    """`verdicts`: of judged pairs, those that count. `gold`: of hidden gold items. `left_out`: how many rows of judged
    pairs do not count, by reason."""

    verdicts: list[Verdict]
    gold: list[Verdict]
    left_out: dict[str, int]


def count(verdicts: Iterable[Verdict], queue_rows: pa.Table) -> Counted:
    """Which verdicts count, told by the queue's own rows on them."""
    rows = queue_rows.to_pylist()
    of = {row["verdict_id"]: row for row in rows}
    settled = _settled(rows)
    left_out = dict.fromkeys(("quarantined", "settled_by_a_lead"), 0)
    kept, gold = [], []
    for verdict in verdicts:
        row = of[verdict.verdict_id]
        if row["item_kind"] == Kind.GOLD:
            gold.append(verdict)
        elif row["quarantined"]:
            left_out["quarantined"] += 1
        elif verdict.pair_id in settled and row["kind"] != VerdictKind.ADJUDICATION:
            left_out["settled_by_a_lead"] += 1
        else:
            kept.append(verdict)
    return Counted(kept, gold, left_out)


def _settled(rows: Sequence[Mapping[str, Any]]) -> set[str]:
    """The pairs on which the verdict of a lead is in force."""
    replaced = {row["supersedes"] for row in rows}
    return {
        row["pair_id"]
        for row in rows
        if row["kind"] == VerdictKind.ADJUDICATION and row["verdict_id"] not in replaced and not row["quarantined"]
    }


def said_in(queue: Queue, name: str) -> Counted | None:
    """What counts by now of the batch of a name; None where the queue has no such batch."""
    batch = find_batch(queue, name)
    if batch is None:
        return None
    table = export_verdicts(queue.database, batch)
    return count(from_table(table), table)


def _close_earlier(queue: Queue, folders: Sequence[Any], current: str) -> None:
    for folder in folders:
        name = read_json(folder / "asked.json").get("batch")
        if name and name != current and (batch := find_batch(queue, name)):
            queue.close_batch(batch)


def _answer(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of the queue as the ledger reads answers."""
    value = {name: row[name] for name in VERDICTS.schema.names}
    known = value["seconds"] is not None and not math.isnan(value["seconds"])
    return value | {"seconds": value["seconds"] if known else None}
