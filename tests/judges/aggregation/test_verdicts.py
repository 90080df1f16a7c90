"""People's verdicts: which stand, how several combine, and that they override."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pytest

from judges.aggregation.mean import MeanPreference
from judges.aggregation.verdicts import override, read_people
from store.errors import UsageError
from store.schemas import VERDICTS

from ..votes_builder import pairs_table, vote, votes_table

PAIRS = pairs_table("p1", "p2", "p3", "p4")


def verdicts(*rows: tuple[str, str, str | None] | tuple[str, str, str | None, dict[str, Any]]) -> pa.Table:
    made = []
    for number, (pair, auditor, winner, *other) in enumerate(rows):
        about = {"shown_left": "a", "seconds": 3.0, "simulated": False, "created_at": datetime(2026, 1, 1, tzinfo=UTC)}
        row = {"verdict_id": f"v{number}", "pair_id": pair, "auditor": auditor, "winner": winner, **about}
        made.append({**row, **(other[0] if other else {})})
    return pa.Table.from_pylist(made, schema=VERDICTS.schema)


def test_several_auditors_are_averaged() -> None:
    people = read_people(
        verdicts(("p1", "ann", "a"), ("p1", "bob", "a"), ("p1", "cy", "b"), ("p2", "ann", "tie"), ("p3", "ann", "b")),
        PAIRS,
    )
    assert people.p_a == {"p1": pytest.approx(2 / 3), "p2": 0.5, "p3": 0.0}
    assert people.auditors == {"p1": 3, "p2": 1, "p3": 1}


def test_superseded_skipped_and_contradictory_verdicts_do_not_stand() -> None:
    people = read_people(
        verdicts(
            ("p1", "ann", "a"),
            ("p1", "ann", "b", {"supersedes": "v0"}),
            ("p2", "ann", "a"),
            ("p2", "ann", None, {"supersedes": "v2"}),
            ("p3", "ann", "a"),
            ("p3", "ann", "b"),
            ("p3", "bob", "b"),
            ("p4", "ann", "a"),
            ("p4", "ann", "a", {"simulated": True}),
            ("p9", "ann", "a"),
        ),
        PAIRS,
    )
    assert people.p_a == {"p1": 0.0, "p3": 0.0, "p4": 1.0}
    assert people.counts == {
        "verdicts": 10,
        "superseded": 2,
        "skipped": 1,
        "unknown_pair": 1,
        "contradictory": 2,
        "repeated": 1,
        "standing": 3,
        "simulated": 0,
        "pairs": 3,
    }


def test_people_override() -> None:
    votes = votes_table(vote("p1", "j", "ab", 0.9), vote("p2", "j", "ab", 0.8), vote("p3", "j", "ab", 0.7))
    people = read_people(verdicts(("p1", "ann", "b"), ("p2", "ann", "a"), ("p4", "ann", "a")), PAIRS)
    labels, disagreements = override(MeanPreference().fit(votes).predict(votes), people)
    rows = [(row["pair_id"], row["p_a"], row["source"], row["n_votes"]) for row in labels.to_pylist()]
    assert rows == [("p1", 0.0, "human", 1), ("p2", 1.0, "human", 1), ("p3", 0.7, "ai", 1), ("p4", 1.0, "human", 0)]
    assert disagreements == 1


def test_an_unknown_winner_is_named() -> None:
    with pytest.raises(UsageError, match="'left'"):
        read_people(verdicts(("p1", "ann", "left")), PAIRS)


def test_no_verdicts_change_nothing() -> None:
    votes = votes_table(vote("p1", "j", "ab", 0.9))
    labels = MeanPreference().fit(votes).predict(votes)
    assert override(labels, read_people(verdicts(), PAIRS)) == (labels, 0)
