"""Stage aggregate from files to files, on anybody's votes."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from flows.specs import STAGES
from judges.config import AggregateConfig
from store.errors import RlaifError, UsageError
from store.stage import Source, run_stage
from store.tables import GOLD, PAIRS, PREFERENCES, ROLLOUT_RATINGS, VERDICTS, VOTES, Table, read_table, write_table

from ..judges.votes_builder import pairs_table, vote, votes_table

PAIR_ROWS = pairs_table("p1", "p2", "p3", "p4", "p5")
VOTE_ROWS = votes_table(
    vote("p1", "j", "ab", 0.9),
    vote("p1", "j", "ba", 0.7),
    vote("p2", "j", "ab", 0.5),
    vote("p2", "j", "ba", 0.5),
    vote("p3", "j", "ab", None),
    vote("p3", "j", "ba", None, "error"),
    vote("p4", "j", "ab", 0.3),
    vote("p5", "j", "ab", 0.6),
    vote("p5", "j", "ba", 0.5),
    vote("p9", "j", "ab", 0.6),
)


def verdict(number: int, pair: str, winner: str) -> dict[str, Any]:
    about = {"auditor": "ann", "shown_left": "a", "seconds": 2.0, "simulated": True, "inclusion_probability": 0.5}
    return {
        "verdict_id": f"v{number}",
        "pair_id": pair,
        "winner": winner,
        "created_at": datetime(2026, 1, 1, tzinfo=UTC),
        **about,
    }


VERDICT_ROWS = pa.Table.from_pylist([verdict(0, "p1", "b"), verdict(1, "p3", "a")], schema=VERDICTS.schema)


def aggregated(
    folder: Path,
    votes: pa.Table = VOTE_ROWS,
    verdicts: pa.Table | None = None,
    gold: pa.Table | None = None,
    gold_votes: pa.Table | None = None,
    **config: Any,
) -> Any:
    tables: dict[str, tuple[Table, pa.Table | None]] = {
        "votes": (VOTES, votes),
        "pairs": (PAIRS, PAIR_ROWS),
        "verdicts": (VERDICTS, verdicts),
        "gold": (GOLD, gold),
        "gold_votes": (VOTES, gold_votes),
    }
    inputs = {
        name: [Source(str(write_table(folder / f"{name}.parquet", table, data)), name)]
        for name, (table, data) in tables.items()
        if data is not None
    }
    stage = STAGES["aggregate"]
    return run_stage(
        "aggregate",
        stage.load(),
        inputs=inputs,
        config=AggregateConfig(**{"method": "mean", **config}),
        seed=0,
        out=folder / "out",
    )


def test_votes_become_preferences_and_ratings(tmp_path: Path) -> None:
    outcome = aggregated(tmp_path)
    preferences = read_table(outcome.folder / "preferences.parquet", PREFERENCES)
    ratings = read_table(outcome.folder / "ratings.parquet", ROLLOUT_RATINGS)
    assert dict(zip(preferences["pair_id"].to_pylist(), preferences["p_chosen"].to_pylist(), strict=True)) == {
        "p1": 0.8,
        "p2": 0.5,
        "p4": 0.7,
        "p5": 0.55,
    }
    assert ratings.num_rows == 8
    metrics = outcome.manifest.metrics
    assert metrics["dropped"] == {"no_valid_vote": 1, "tie": 0, "low_confidence": 0}
    assert metrics["pairs"] == metrics["preferences"] + sum(metrics["dropped"].values()) == 5
    assert metrics["votes_excluded"] == {"unknown_pair": 1}
    assert (metrics["human"], metrics["ties"], metrics["pairs_in_one_order"]) == (0, 1, 1)
    assert metrics["mean_confidence"] == pytest.approx((0.8 + 0.5 + 0.7 + 0.55) / 4)
    assert sum(metrics["splits"].values()) == 4
    json.dumps(metrics, allow_nan=False)


def test_verdicts_override(tmp_path: Path) -> None:
    outcome = aggregated(tmp_path, verdicts=VERDICT_ROWS, human_weight=2.0)
    rows = {row["pair_id"]: row for row in read_table(outcome.folder / "preferences.parquet", PREFERENCES).to_pylist()}
    assert (rows["p1"]["chosen"], rows["p1"]["p_chosen"]) == ("second of p1", 1.0)
    assert (rows["p1"]["source"], rows["p1"]["weight"], rows["p1"]["agreement"]) == ("human", 2.0, 0.0)
    assert (rows["p3"]["chosen"], rows["p3"]["n_votes"]) == ("first of p3", 0)
    metrics = outcome.manifest.metrics
    assert (metrics["human"], metrics["people_against_judges"], metrics["verdicts"]["simulated"]) == (2, 1, 2)


def test_filters_are_counted(tmp_path: Path) -> None:
    metrics = aggregated(tmp_path, min_confidence=0.7, keep_ties=False).manifest.metrics
    assert metrics["dropped"] == {"no_valid_vote": 1, "tie": 1, "low_confidence": 1}


def test_the_majority(tmp_path: Path) -> None:
    outcome = aggregated(tmp_path, method="majority")
    assert read_table(outcome.folder / "preferences.parquet", PREFERENCES)["p_chosen"].to_pylist() == [
        1.0,
        0.5,
        1.0,
        1.0,
    ]


def test_the_same_votes_in_another_order_give_the_same_bytes(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    one = aggregated(tmp_path / "one")
    two = aggregated(tmp_path / "two", VOTE_ROWS.take(list(range(VOTE_ROWS.num_rows))[::-1]))
    for name in ("preferences.parquet", "ratings.parquet"):
        assert (one.folder / name).read_bytes() == (two.folder / name).read_bytes()


def test_nothing_left_is_said(tmp_path: Path) -> None:
    with pytest.raises(RlaifError, match=r"None of the 5 pairs .*low_confidence 4"):
        aggregated(tmp_path, min_confidence=0.99)


def test_corrupt_votes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"p_a = 7\.0"):
        aggregated(tmp_path, votes_table(vote("p1", "j", "ab", 7.0)))


def gold_table(*pairs: str, winner: str = "a") -> pa.Table:
    rows = pairs_table(*pairs)
    return rows.append_column(GOLD.schema.field("winner"), pa.array([winner] * rows.num_rows, pa.string()))


def test_gold_raises_the_weight_of_a_judge_that_is_right(tmp_path: Path) -> None:
    names = [f"g{number}" for number in range(20)]
    known = votes_table(*(vote(name, "j", order, 0.7) for name in names for order in ("ab", "ba")))
    gold = gold_table(*names)
    outcome = aggregated(tmp_path, gold=gold, gold_votes=known, method="stacked")
    assert outcome.manifest.metrics["gold_pairs"] == 20
    assert outcome.manifest.metrics["judge_weights"]["j"] > 1.5


def test_gold_without_votes_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="gold_votes"):
        aggregated(tmp_path, gold=gold_table("g1"), method="stacked")


def test_an_unknown_gold_winner_is_named(tmp_path: Path) -> None:
    known = votes_table(vote("g1", "j", "ab", 0.7))
    with pytest.raises(UsageError, match="the winner 'left'"):
        aggregated(tmp_path, gold=gold_table("g1", winner="left"), gold_votes=known, method="stacked")
