"""Stage aggregate from files to files, on anybody's votes."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flows.specs import STAGES
from judges.aggregation.labels import LABELS
from judges.config import AggregateConfig
from judges.gate import GateError
from judges.preferences import REASONS
from store.errors import RlaifError, UsageError
from store.files import write_json
from store.schemas import GOLD, PAIRS, PREFERENCES, PROMPTS, ROLLOUT_RATINGS, VERDICTS, VOTES, Table
from store.stage import Source, run_stage
from store.tables import read_table, write_table

from ..judges.votes_builder import pairs_table, vote, votes_table

NOTHING = dict.fromkeys(REASONS, 0)
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
    pairs: pa.Table = PAIR_ROWS,
    **config: Any,
) -> Any:
    tables: dict[str, tuple[Table, pa.Table | None]] = {
        "votes": (VOTES, votes),
        "pairs": (PAIRS, pairs),
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
    assert metrics["dropped"] == {**NOTHING, "no_valid_vote": 1}
    assert metrics["pairs"] == metrics["preferences"] + sum(metrics["dropped"].values()) == 5
    assert metrics["votes_excluded"] == {"unknown_pair": 1, "unknown_judge": 0}
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
    assert metrics["dropped"] == {**NOTHING, "no_valid_vote": 1, "tie": 1, "low_confidence": 1}


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


def test_gold_teaches_what_a_vote_for_the_longer_response_is_worth(tmp_path: Path) -> None:
    """The judge is right where both are as long, and wrong where it prefers the longer one."""
    names = [f"g{number}" for number in range(40)]
    texts = {name: ("word " * 40, "word") if number % 2 else ("word 1", "word 2") for number, name in enumerate(names)}
    winners = pa.array(["b" if number % 2 else "a" for number in range(40)], pa.string())
    gold = pairs_table(*names, **texts).append_column(GOLD.schema.field("winner"), winners)
    pairs = pairs_table("p1", "p2", "p3", p1=("text " * 40, "text"), p2=("text", "text " * 40), p3=("text 1", "text 2"))

    def said(some: list[str]) -> pa.Table:
        return votes_table(*(vote(name, "j", order, 0.7) for name in some for order in ("ab", "ba")))

    how: dict[str, Any] = {"votes": said(["p1", "p2", "p3"]), "gold": gold, "gold_votes": said(names), "pairs": pairs}
    how["gate"] = {"max_length_slope": None, "min_gold_agreement": None}  # made to follow lengths, and to fail
    found = {}
    for lengths in (True, False):
        outcome = aggregated(tmp_path / str(lengths), **how, method="stacked", lengths=lengths)
        rows = read_table(outcome.folder / "labels.parquet", LABELS).to_pylist()
        found[lengths] = {row["pair_id"]: row["p_a"] for row in rows}, outcome.manifest.metrics["length_weight"]
    labels, weight = found[True]
    assert weight < 0
    assert labels["p1"] < 0.5 < labels["p3"] < labels["p2"]
    labels, weight = found[False]
    assert weight is None
    assert labels["p1"] == labels["p2"] == labels["p3"]


def test_gold_without_votes_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="gold_votes"):
        aggregated(tmp_path, gold=gold_table("g1"), method="stacked")


def test_an_unknown_gold_winner_is_named(tmp_path: Path) -> None:
    known = votes_table(vote("g1", "j", "ab", 0.7))
    with pytest.raises(UsageError, match="the winner 'left'"):
        aggregated(tmp_path, gold=gold_table("g1", winner="left"), gold_votes=known, method="stacked")


def rows_of(outcome: Any, name: str, table: Table) -> dict[str, dict[str, Any]]:
    return {row["pair_id"]: row for row in read_table(outcome.folder / f"{name}.parquet", table).to_pylist()}


def on_files(folder: Path, inputs: dict[str, Path], **config: Any) -> Any:
    sources = {name: [Source(str(path), name)] for name, path in inputs.items()}
    settings = AggregateConfig(**{"method": "mean", **config})
    stage = STAGES["aggregate"]
    return run_stage("aggregate", stage.load(), inputs=sources, config=settings, seed=0, out=folder / "out")


def test_labels_say_what_became_of_each(tmp_path: Path) -> None:
    outcome = aggregated(tmp_path, verdicts=VERDICT_ROWS, keep_ties=False)
    rows = rows_of(outcome, "labels", LABELS)
    assert sorted(rows) == ["p1", "p2", "p3", "p4", "p5"]
    assert (rows["p1"]["p_a"], rows["p1"]["p_a_judges"], rows["p1"]["source"]) == (0.0, 0.8, "human")
    assert rows["p3"]["p_a_judges"] is None
    assert {pair: row["dropped"] for pair, row in rows.items() if row["dropped"]} == {"p2": "tie"}
    assert (rows["p4"]["rollout_a"], rows["p4"]["prompt_id"]) == ("p4-a", "x-p4")


def test_votes_alone_give_labels_without_texts(tmp_path: Path) -> None:
    votes = write_table(tmp_path / "votes.parquet", VOTES, VOTE_ROWS)
    outcome = on_files(tmp_path, {"votes": votes})
    assert sorted(outcome.manifest.outputs) == ["labels.parquet", "ratings.parquet"]
    rows = rows_of(outcome, "labels", LABELS)
    (tmp_path / "with").mkdir()
    known = rows_of(aggregated(tmp_path / "with", VOTE_ROWS), "labels", LABELS)
    # p9 is in no pairs table, so it counts only where there is none.
    assert {pair: row["p_a"] for pair, row in rows.items()} == {
        **{pair: row["p_a"] for pair, row in known.items()},
        "p9": 0.6,
    }
    assert outcome.manifest.metrics["preferences"] is None
    assert outcome.manifest.metrics["pairs"] == 6


def test_anybodys_votes_need_no_more_than_their_answers(tmp_path: Path) -> None:
    whole, bare = rows_of(aggregated(tmp_path, method="majority"), "labels", LABELS), tmp_path / "bare"
    bare.mkdir()
    few = VOTE_ROWS.drop(["mass", "raw", "rationale", "error", "tokens_in", "tokens_out", "cost", "latency_s"])
    pq.write_table(few.drop(["attempts", "winner"]), bare / "votes.parquet")
    pairs = write_table(bare / "pairs.parquet", PAIRS, PAIR_ROWS)
    outcome = on_files(bare, {"votes": bare / "votes.parquet", "pairs": pairs}, method="majority")
    assert rows_of(outcome, "labels", LABELS) == whole, "a probability says who won"
    assert {pair: row["p_a"] for pair, row in whole.items()} == {"p1": 1.0, "p2": 0.5, "p4": 0.0, "p5": 1.0}


def test_part_files_and_lineage(tmp_path: Path) -> None:
    outcome = aggregated(tmp_path, part_rows=2)
    path = outcome.folder / "preferences.parquet"
    assert len(list(path.iterdir())) == 2
    assert read_table(path, PREFERENCES).num_rows == 4
    assert "preferences.parquet/part-00001.parquet" in outcome.manifest.outputs
    tags = pq.read_schema(path / "part-00000.parquet").metadata
    assert json.loads(tags[b"rlaif.judges"]) == {"fingerprint-of-j": "j"}
    assert set(json.loads(tags[b"rlaif.lineage"])) == {"votes", "pairs", "gold"}


def test_no_preference_is_made_of_held_out_prompts(tmp_path: Path) -> None:
    rows = [
        {"prompt_id": row["prompt_id"], "prompt": row["prompt"], "group": "g", "split": split}
        for row, split in zip(PAIR_ROWS.to_pylist(), ["train", "train", "train", "heldout_new", "train"], strict=True)
    ]
    prompts = write_table(tmp_path / "prompts.parquet", PROMPTS, pa.Table.from_pylist(rows))
    votes = write_table(tmp_path / "votes.parquet", VOTES, VOTE_ROWS)
    pairs = write_table(tmp_path / "pairs.parquet", PAIRS, PAIR_ROWS)
    files = {"votes": votes, "pairs": pairs, "prompts": prompts}
    metrics = on_files(tmp_path, files).manifest.metrics
    assert metrics["dropped"] == {**NOTHING, "no_valid_vote": 1, "held_out_prompt": 1}
    assert on_files(tmp_path, files, held_out=["test"]).manifest.metrics["dropped"]["held_out_prompt"] == 0


BAD = votes_table(*(vote(f"p{at}", "j", order, p) for at in range(1, 6) for order, p in (("ab", 0.9), ("ba", 0.1))))


def test_the_gate_stops_the_stage_and_a_reason_passes_it(tmp_path: Path) -> None:
    limits = {"max_flip_rate": 0.3, "max_judge_flip_rate": None}
    with pytest.raises(GateError, match=r"order flips of panel 1\.000 .*above max_flip_rate = 0\.3") as stopped:
        aggregated(tmp_path, BAD, gate=limits)
    assert "broken" in stopped.value.details
    assert not (tmp_path / "out").exists()
    outcome = aggregated(tmp_path, BAD, gate={**limits, "override": "we know"})
    assert outcome.manifest.metrics["gate"]["override"] == "we know"
    assert outcome.manifest.metrics["gate"]["broken"] == ["order flips of panel"]
    assert outcome.manifest.config["gate"]["override"] == "we know"


@pytest.mark.parametrize("many", [False, True], ids=["of_one_judge", "of_the_judge_stage"])
def test_a_report_on_canaries_reaches_the_gate(tmp_path: Path, many: bool) -> None:
    votes = write_table(tmp_path / "votes.parquet", VOTES, VOTE_ROWS)
    report = {
        "judge": {"name": "j", "fingerprint": "fingerprint-of-j"},
        "canaries": {"all": {"attempted": 50, "flipped": 45}},
    }
    checks = write_json(tmp_path / "checks.json", [report, report] if many else report)
    with pytest.raises(GateError, match=r"canary flips of j 0\.900"):
        on_files(tmp_path, {"votes": votes, "checks": checks})
    write_json(checks, {"judge": "j"})
    with pytest.raises(UsageError, match="no report on canaries"):
        on_files(tmp_path, {"votes": votes, "checks": checks})


# What may be wrong with a votes table from elsewhere.


@pytest.mark.parametrize("p_a", [float("nan"), -0.1, 1.1, float("inf")])
def test_what_is_no_probability_is_refused(tmp_path: Path, p_a: float) -> None:
    with pytest.raises(UsageError, match=r"no probability in 0\.\.1"):
        aggregated(tmp_path, votes_table({**vote("p1", "j", "ab", 0.6), "p_a": p_a}))
    assert not (tmp_path / "out").exists()


def test_doubled_votes_are_refused(tmp_path: Path) -> None:
    again = {**vote("p1", "j", "ab", 0.2), "vote_id": "another"}
    with pytest.raises(UsageError, match="2 votes on pair p1 in order ab"):
        aggregated(tmp_path, pa.concat_tables([VOTE_ROWS, votes_table(again)]))


def test_votes_of_unknown_judges_are_left_out_and_counted(tmp_path: Path) -> None:
    stranger = votes_table(vote("p1", "stranger", "ab", 0.1), vote("p1", "stranger", "ba", 0.1))
    both = pa.concat_tables([VOTE_ROWS, stranger])
    outcome = aggregated(tmp_path, both, judges=["j"])
    assert outcome.manifest.metrics["votes_excluded"] == {"unknown_pair": 1, "unknown_judge": 2}
    assert rows_of(outcome, "labels", LABELS)["p1"]["p_a"] == 0.8
    assert aggregated(tmp_path, both).manifest.metrics["votes_excluded"]["unknown_judge"] == 0
    with pytest.raises(UsageError, match="names nobody-else, who has no vote; votes are of j"):
        aggregated(tmp_path, VOTE_ROWS, judges=["j", "nobody-else"])


def test_judges_that_gold_says_nothing_about_are_named(tmp_path: Path) -> None:
    stranger = votes_table(vote("p1", "stranger", "ab", 0.1), vote("p1", "stranger", "ba", 0.1))
    names = [f"g{number}" for number in range(20)]
    known = votes_table(*(vote(name, "j", order, 0.7) for name in names for order in ("ab", "ba")))
    metrics = aggregated(
        tmp_path, pa.concat_tables([VOTE_ROWS, stranger]), gold=gold_table(*names), gold_votes=known, method="stacked"
    ).manifest.metrics
    assert metrics["judges_without_gold"] == ["stranger"]


def test_gold_without_votes_and_votes_outside_the_gold_are_counted(tmp_path: Path) -> None:
    known = votes_table(*(vote(name, "j", "ab", 0.7) for name in ("g1", "g2", "elsewhere")))
    metrics = aggregated(tmp_path, gold=gold_table("g1", "g2", "g3"), gold_votes=known).manifest.metrics
    assert (metrics["gold_pairs_without_votes"], metrics["gold_votes_excluded"]) == (1, 1)


def test_gold_of_other_pairs_than_its_votes_is_refused(tmp_path: Path) -> None:
    known = votes_table(vote("elsewhere", "j", "ab", 0.7))
    with pytest.raises(UsageError, match=r"None of the 2 gold pairs .* has a vote of these judges"):
        aggregated(tmp_path, gold=gold_table("g1", "g2"), gold_votes=known)


def test_ratings_that_the_prior_decides_are_said(tmp_path: Path) -> None:
    sure = votes_table(*(vote("p1", "j", order, 1.0) for order in ("ab", "ba")))
    said = aggregated(tmp_path / "sure", sure).manifest.metrics["ratings_warning"]
    assert said.startswith("1 prompt has responses that win or lose every comparison")
    assert aggregated(tmp_path / "unsure").manifest.metrics["ratings_warning"] is None


def test_verdicts_that_contradict_each_other_are_counted_and_judges_stay(tmp_path: Path) -> None:
    said = [verdict(0, "p1", "b"), verdict(1, "p1", "a"), verdict(2, "p77", "a")]
    outcome = aggregated(tmp_path, verdicts=pa.Table.from_pylist(said, schema=VERDICTS.schema))
    counts = outcome.manifest.metrics["verdicts"]
    assert (counts["contradictory"], counts["unknown_pair"], counts["standing"]) == (2, 1, 0)
    assert rows_of(outcome, "labels", LABELS)["p1"]["source"] == "ai"


def test_votes_on_other_rollouts_are_refused(tmp_path: Path) -> None:
    turned = {**vote("p1", "j", "ab", 0.9), "rollout_a": "p1-b", "rollout_b": "p1-a"}
    with pytest.raises(UsageError, match="give the pairs that were judged"):
        aggregated(tmp_path, votes_table(turned))


def test_another_schema_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "votes.parquet"
    pq.write_table(VOTE_ROWS.replace_schema_metadata({"rlaif.schema_version": "9"}), path)
    with pytest.raises(UsageError, match="schema 9"):
        on_files(tmp_path, {"votes": path})
