"""Preferences: the chosen side, the soft label, the split, and what is left out and counted."""

from __future__ import annotations

import math

import pyarrow as pa
import pytest

from judges.aggregation.labels import LABELS
from judges.preferences import MAX_MARGIN, REASONS, make_preferences, margin, split_of
from store.schemas import PREFERENCES
from store.tables import conform

from ..votes_builder import pairs_table


def labels(**p_a: float) -> pa.Table:
    rows = [
        {"pair_id": pair, "p_a": p, "source": "ai", "n_votes": 4, "votes_a": 3, "votes_b": 1} for pair, p in p_a.items()
    ]
    return pa.Table.from_pylist(rows, schema=LABELS.schema)


PAIRS = pairs_table("p1", "p2", "p3", "p4")
NOTHING = dict.fromkeys(REASONS, 0)


def test_chosen_and_rejected() -> None:
    made = make_preferences(PAIRS, labels(p1=0.8, p2=0.1, p3=0.5))
    conform(made.table, PREFERENCES, "preferences")
    one, two, tie = made.table.to_pylist()
    assert (one["chosen"], one["rejected"], one["p_chosen"]) == ("first of p1", "second of p1", 0.8)
    assert (two["chosen"], two["rejected"], two["p_chosen"]) == ("second of p2", "first of p2", 0.9)
    assert one["margin"] == pytest.approx(math.log(4))
    assert (one["agreement"], two["agreement"]) == (0.75, 0.25)
    assert (tie["chosen"], tie["p_chosen"], tie["margin"]) == ("first of p3", 0.5, 0.0)
    assert made.dropped == {**NOTHING, "no_valid_vote": 1}
    assert made.reason_of == {"p4": "no_valid_vote"}


def test_what_is_left_out_is_counted() -> None:
    made = make_preferences(PAIRS, labels(p1=0.8, p2=0.35, p3=0.5), min_confidence=0.7, keep_ties=False)
    assert made.table["pair_id"].to_pylist() == ["p1"]
    assert made.dropped == {**NOTHING, "no_valid_vote": 1, "tie": 1, "low_confidence": 1}
    assert made.reason_of == {"p2": "low_confidence", "p3": "tie", "p4": "no_valid_vote"}


def test_people_have_their_weight() -> None:
    human = labels(p1=1.0).set_column(2, LABELS.schema.field("source"), pa.array(["human"]))
    (row,) = make_preferences(PAIRS, human, human_weight=3.0).table.to_pylist()
    assert (row["source"], row["weight"], row["p_chosen"], row["margin"]) == ("human", 3.0, 1.0, MAX_MARGIN)


def test_a_prompt_has_one_split_and_the_share_is_met() -> None:
    splits = [split_of(f"prompt {number}", 0.2) for number in range(5000)]
    assert 0.18 < splits.count("test") / 5000 < 0.22
    assert {split_of("x", 0.0) for _ in range(9)} == {"train"}
    # A larger share only adds prompts: those in test stay there.
    assert all(split_of(f"prompt {n}", 0.3) == "test" for n in range(5000) if splits[n] == "test")
    pairs = pa.concat_tables([pairs_table(*(f"{i}.{j}" for j in range(4)), prompt=f"x{i}") for i in range(20)])
    table = make_preferences(
        pairs, labels(**dict.fromkeys(pairs["pair_id"].to_pylist(), 0.8)), validation_fraction=0.5
    ).table
    assert len(set(zip(table["prompt_id"].to_pylist(), table["split"].to_pylist(), strict=True))) == 20
    assert set(table["split"].to_pylist()) == {"train", "test"}


def test_rows_are_in_one_order() -> None:
    some = labels(p1=0.8, p2=0.1, p3=0.6)
    backwards = make_preferences(PAIRS.take([3, 2, 1, 0]), some.take([2, 0, 1])).table
    assert backwards.equals(make_preferences(PAIRS, some).table)


def test_margins_stay_finite() -> None:
    assert [margin(p) for p in (0.0, 1.0, 1e-300, 1 - 1e-16, 0.5)] == [
        -MAX_MARGIN,
        MAX_MARGIN,
        -MAX_MARGIN,
        MAX_MARGIN,
        0.0,
    ]
    assert margin(0.75) == pytest.approx(math.log(3))
