from __future__ import annotations

import math
import random
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pytest

from audit.verdicts import Verdict, chain, from_table, handled, in_force, to_table
from store.schemas import VERDICTS
from store.tables import conform

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def verdict(name: str, minute: int = 0, auditor: str = "ann", pair: str = "p0", **changes: object) -> Verdict:
    base = Verdict(
        verdict_id=name,
        pair_id=pair,
        auditor=auditor,
        winner="a",
        shown_left="b",
        seconds=3.0,
        created_at=NOW + timedelta(minutes=minute),
        inclusion_probability=0.25,
    )
    return replace(base, **changes)  # type: ignore[arg-type]


def links(rows: list[Verdict]) -> dict[str, str | None]:
    return {row.verdict_id: row.supersedes for row in chain(rows)}


def test_a_later_verdict_supersedes_the_same_persons_earlier_one() -> None:
    rows = [
        verdict("v3", 3),
        verdict("v1", 1),
        verdict("v2", 2),
        verdict("w", 2, auditor="bob"),
        verdict("q", pair="p1"),
    ]
    assert links(rows) == {"q": None, "v1": None, "v2": "v1", "w": None, "v3": "v2"}
    assert {row.verdict_id for row in in_force(chain(rows))} == {"v3", "w", "q"}


def test_arrival_order_does_not_matter() -> None:
    rows = [verdict("v1", 1), verdict("v2", 2), verdict("v3", 2), verdict("w", 0, auditor="bob")]
    assert to_table(rows).equals(to_table(reversed(rows)))


def test_a_stated_supersede_is_kept_and_makes_no_circle() -> None:
    rows = [verdict("late", 9), verdict("early", 1, supersedes="late")]
    assert links(rows) == {"late": None, "early": "late"}
    assert [row.verdict_id for row in in_force(chain(rows))] == ["early"]


def test_nobody_supersedes_another_person() -> None:
    rows = [
        verdict("v1"),
        verdict("evil", 5, auditor="bob", supersedes="v1"),
        verdict("x", 6, pair="p1", supersedes="v1"),
    ]
    assert len(in_force(rows)) == 3


def test_handled_counts_different_people() -> None:
    rows = [verdict("1"), verdict("2"), verdict("3", pair="p1"), verdict("4", pair="p1", auditor="bob", winner=None)]
    assert handled(rows, 1) == {"p0", "p1"}
    assert handled(rows, 2) == {"p1"}


def test_table_and_json_keep_everything() -> None:
    rows = [verdict("1", flaws=("rude", ""), comment="ü\0"), verdict("2", 1, pair="p1", winner=None, seconds=math.inf)]
    assert from_table(conform(to_table(rows), VERDICTS, "test")) == rows
    assert [Verdict.from_json(row.to_json()) for row in rows] == rows
    assert math.isnan(Verdict.from_json(verdict("3", seconds=math.nan).to_json()).seconds)
    assert to_table([]).schema.equals(VERDICTS.schema)


def test_missing_probability_reads_as_nan() -> None:
    table = to_table([verdict("1")])
    column = table.schema.get_field_index("inclusion_probability")
    assert math.isnan(
        from_table(table.set_column(column, table.field(column), pa.nulls(1, pa.float64())))[0].inclusion_probability
    )


@pytest.mark.parametrize("seed", range(20))
def test_exactly_one_verdict_a_person_and_pair_is_in_force(seed: int) -> None:
    """Where nobody states a supersede, whatever the times."""
    chance = random.Random(seed)
    rows = [
        verdict(f"v{i}", chance.randrange(5), auditor=chance.choice("ab"), pair=chance.choice(["p", "q"]))
        for i in range(chance.randrange(1, 20))
    ]
    left = in_force(chain(rows))
    assert sorted((row.auditor, row.pair_id) for row in left) == sorted({(row.auditor, row.pair_id) for row in rows})
