"""A person's verdict: its row, its table, and which verdicts are in force.

Verdicts are append-only. A changed mind is a new row that names the one it replaces in `supersedes`; nothing is edited.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from itertools import groupby
from typing import Any

import pyarrow as pa

from store.schemas import VERDICTS


@dataclass(frozen=True)
class Verdict:
    """One row of the verdicts table. `winner` None is a skip. NaN: `seconds` where nobody measured them,
    `inclusion_probability` where nobody drew the pair."""

    verdict_id: str
    pair_id: str
    auditor: str
    winner: str | None
    shown_left: str
    seconds: float
    created_at: datetime
    inclusion_probability: float
    simulated: bool = False
    flaws: tuple[str, ...] | None = None
    comment: str | None = None
    supersedes: str | None = None

    def says(self) -> tuple[Any, ...]:
        """What the auditor stated: two verdicts with the same statement are one, however often they arrive."""
        return (self.pair_id, self.auditor, self.winner, self.shown_left, self.flaws, self.comment)

    def to_json(self) -> dict[str, Any]:
        numbers = {"seconds": self.seconds, "inclusion_probability": self.inclusion_probability}
        known = {name: None if math.isnan(value) else value for name, value in numbers.items()}
        return asdict(self) | {"created_at": self.created_at.isoformat()} | known

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Verdict:
        flaws = None if value["flaws"] is None else tuple(value["flaws"])
        known = {
            name: math.nan if value[name] is None else value[name] for name in ("seconds", "inclusion_probability")
        }
        created_at = datetime.fromisoformat(value["created_at"])
        return cls(**(value | {"flaws": flaws, "created_at": created_at} | known))


def in_order(verdicts: Iterable[Verdict]) -> list[Verdict]:
    """By time, then id: the same rows whatever the order in which they arrived."""
    return sorted(verdicts, key=lambda verdict: (verdict.created_at, verdict.verdict_id))


def chain(verdicts: Iterable[Verdict]) -> list[Verdict]:
    """Let each auditor's later verdict on a pair supersede the earlier one, where the auditor's tool did not say so.

    A verdict that another one supersedes by name stays as it is: linking it too could close a circle.
    """
    rows = in_order(verdicts)
    replaced = {row.supersedes for row in rows if row.supersedes}
    linked = []
    for _, group in groupby(sorted(rows, key=_person_and_pair), key=_person_and_pair):
        earlier: Verdict | None = None
        for row in group:
            if earlier is not None and row.supersedes is None and row.verdict_id not in replaced:
                row = replace(row, supersedes=earlier.verdict_id)
            linked.append(row)
            earlier = row
    return in_order(linked)


def in_force(verdicts: Iterable[Verdict]) -> list[Verdict]:
    """The verdicts that no other one supersedes. Only the same person, on the same pair, can supersede one."""
    rows = list(verdicts)
    replaced = {(row.supersedes, *_person_and_pair(row)) for row in rows if row.supersedes}
    return [row for row in rows if (row.verdict_id, *_person_and_pair(row)) not in replaced]


def handled(verdicts: Iterable[Verdict], overlap: int = 1, skips_count: bool = True) -> set[str]:
    """The pairs on which at least `overlap` different auditors gave their answer.

    `skips_count`: a skip is an answer too, since nobody else is asked. In the queue others are: there only a winner or
    a tie in force counts.
    """
    people: dict[str, set[str]] = {}
    rows = list(verdicts)
    if not skips_count:
        rows = [row for row in in_force(rows) if row.winner is not None]
    for row in rows:
        people.setdefault(row.pair_id, set()).add(row.auditor)
    return {pair_id for pair_id, auditors in people.items() if len(auditors) >= overlap}


def to_table(verdicts: Iterable[Verdict]) -> pa.Table:
    """A verdicts table: chained, in order of time."""
    rows = [asdict(row) | {"inclusion_probability": _or_null(row.inclusion_probability)} for row in chain(verdicts)]
    return pa.Table.from_pylist(rows, schema=VERDICTS.schema)


def from_table(data: pa.Table) -> list[Verdict]:
    """The rows of a verdicts table; NaN where a row has no inclusion probability."""
    rows = []
    for row in data.select(VERDICTS.schema.names).to_pylist():
        flaws = None if row["flaws"] is None else tuple(row["flaws"])
        chance = math.nan if row["inclusion_probability"] is None else row["inclusion_probability"]
        rows.append(Verdict(**(row | {"flaws": flaws, "inclusion_probability": chance})))
    return rows


def _person_and_pair(row: Verdict) -> tuple[str, str]:
    return (row.auditor, row.pair_id)


def _or_null(value: float) -> float | None:
    return None if math.isnan(value) else value
