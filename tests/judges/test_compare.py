"""`compare`: two judges on the same pairs, votes that are there already, and a round with one in the other's place."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from judges.compare import Answers, Round, ask, compare_votes, refuse_one_judge, refuse_stranger, replaced
from judges.judge import Judge, load_judge
from judges.metrics import judge_accuracy
from judges.pairs import pairs_from_table, pairs_to_table
from judges.panel import judge_pairs
from store.errors import UsageError
from store.resources import DATASETS
from store.schemas import GOLD, VERDICTS
from store.tables import read_table

from .conftest import Folder
from .votes_builder import pairs_table, vote, votes_table


@pytest.fixture(scope="module")
def gold() -> pa.Table:
    return read_table(DATASETS / "tiny" / "calibration.parquet", GOLD).slice(0, 40)


@pytest.fixture
def oracle() -> Judge:
    return load_judge("tiny-oracle")


def test_both_are_measured_on_the_same_pairs(gold: pa.Table, oracle: Judge, rubric_judge: Judge) -> None:
    answers = [ask(judge, gold, seed=0) for judge in (oracle, rubric_judge)]
    found = compare_votes(oracle, answers[0], rubric_judge, answers[1], gold, examples=4)
    votes = judge_pairs([oracle, rubric_judge], pairs_from_table(gold), seed=0)
    accuracy = judge_accuracy(votes, gold)
    for side, name in zip(found["judges"], ("tiny-oracle", "rules"), strict=True):
        assert side["accuracy"] == accuracy[name]
        assert (side["votes"]["attempted"], side["reused_votes"]) == (80, 0)
    difference = found["accuracy_difference"]
    assert difference["difference"] == pytest.approx(
        accuracy["tiny-oracle"]["accuracy"] - accuracy["rules"]["accuracy"]
    )
    assert difference["low"] <= difference["difference"] <= difference["high"]
    gaps = [abs(one["p_a"][0] - one["p_a"][1]) for one in found["examples"]]
    assert gaps == sorted(gaps, reverse=True)
    assert len(gaps) == 4
    json.dumps(found, allow_nan=False)


def test_pairs_without_gold_are_enough(gold: pa.Table, oracle: Judge, rubric_judge: Judge) -> None:
    pairs = gold.drop_columns(["winner"])
    found = compare_votes(oracle, ask(oracle, pairs, seed=0), rubric_judge, ask(rubric_judge, pairs, seed=0), pairs)
    assert found["accuracy_difference"] is None
    assert found["judges"][0]["accuracy"] is None
    assert found["agreement"]["pairs"] > 0


def test_a_judge_is_not_compared_with_itself(oracle: Judge) -> None:
    with pytest.raises(UsageError, match="the same judge"):
        refuse_one_judge(oracle, load_judge("tiny-oracle"))


def test_known_votes_are_not_asked_again(gold: pa.Table, oracle: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    votes = judge_pairs([oracle], pairs_from_table(gold.slice(0, 30)), seed=0)
    asked: list[int] = []

    def counted(judges: list[Judge], pairs: list[object], **how: object) -> pa.Table:
        asked.append(len(pairs))
        return judge_pairs(judges, pairs, **how)  # type: ignore[arg-type]

    monkeypatch.setattr("judges.compare.judge_pairs", counted)
    found = ask(oracle, gold, [(gold, votes)], seed=0)
    assert (asked, found.reused, found.votes.num_rows) == ([10], 60, 80)
    whole = judge_pairs([oracle], pairs_from_table(gold), seed=0)
    columns = ["vote_id", "p_a", "status", "winner"]
    by_id = [table.select(columns).sort_by("vote_id").to_pylist() for table in (found.votes, whole)]
    assert by_id[0] == by_id[1]


def test_votes_on_other_texts_or_with_errors_are_not_known(gold: pa.Table, oracle: Judge) -> None:
    votes = judge_pairs([oracle], pairs_from_table(gold), seed=0)
    other = [replace(pair, response_b=pair.response_b + "!") for pair in pairs_from_table(gold)]
    assert ask(oracle, gold, [(pairs_to_table(other), votes)], seed=0).reused == 0
    statuses = pa.array(["error", *["scored"] * (votes.num_rows - 1)])
    at = votes.schema.get_field_index("status")
    broken = votes.set_column(at, votes.schema.field(at), statuses)
    assert ask(oracle, gold, [(gold, broken)], seed=0).reused == votes.num_rows - 2, "both orders or none"


def test_new_votes_are_kept_where_there_is_a_place(gold: pa.Table, oracle: Judge, tmp_path: Path) -> None:
    first = ask(oracle, gold, seed=0, shards=tmp_path)
    sizes = [path.stat().st_size for path in sorted(tmp_path.rglob("*.jsonl"))]
    again = ask(oracle, gold, seed=0, shards=tmp_path)
    assert [path.stat().st_size for path in sorted(tmp_path.rglob("*.jsonl"))] == sizes != []
    assert again.votes.equals(first.votes)


NAMES = ("p1", "p2", "p3", "p4")
PAIRS = pairs_table(*NAMES)


def _of(judge: str, *p_a: float | None) -> list[dict[str, object]]:
    return [vote(name, judge, order, p) for name, p in zip(NAMES, p_a, strict=True) for order in ("ab", "ba")]


def _judges(oracle: Judge, rubric_judge: Judge) -> tuple[pa.Table, pa.Table]:
    """Votes of a panel of the oracle and a third judge, and the rubric's, by hand; under the judges' fingerprints."""
    panel = votes_table(*_of("out", 0.9, 0.9, 0.1, None), *_of("third", 0.4, 0.8, 0.4, 0.9))
    new = votes_table(*_of("in", 0.1, 0.72, 0.1, 0.9))
    prints = {"fingerprint-of-out": oracle.fingerprint, "fingerprint-of-in": rubric_judge.fingerprint}
    return _printed(panel, prints), _printed(new, prints)


def _printed(votes: pa.Table, prints: dict[str, str]) -> pa.Table:
    names = [prints.get(one, one) for one in votes["fingerprint"].to_pylist()]
    return votes.set_column(
        votes.schema.get_field_index("fingerprint"), votes.schema.field("fingerprint"), pa.array(names)
    )


def test_a_swap_is_counted_by_hand(oracle: Judge, rubric_judge: Judge) -> None:
    panel, new = _judges(oracle, rubric_judge)
    round_ = Round(PAIRS, panel, "mean")
    found = replaced(round_, oracle, rubric_judge, new, None, PAIRS)
    # Means before: .65 .85 .25 .9; after: .25 .76 .25 .9.
    assert (found["labelled"], found["direction_changes"]["count"], found["moved"]["count"]) == (4, 1, 1)
    assert found["direction_changes"]["rate"] == 0.25
    assert (found["gained"], found["lost"], found["to_or_from_tie"], found["already_in_panel"]) == (0, 0, 0, False)
    majority = replaced(replace(round_, method="majority"), oracle, rubric_judge, new, None, PAIRS)
    # Majorities before: tie, a, b, a; after: b, a, b, a.
    assert (majority["to_or_from_tie"], majority["direction_changes"]["count"]) == (1, 0)
    refuse_stranger(oracle, round_)
    with pytest.raises(UsageError, match=r"no votes in the last round, whose judges are out, third"):
        refuse_stranger(rubric_judge, round_)


def test_labels_can_be_lost_and_people_override(oracle: Judge, rubric_judge: Judge) -> None:
    panel, new = _judges(oracle, rubric_judge)
    alone = panel.filter(pc.equal(panel["fingerprint"], oracle.fingerprint))
    round_ = Round(PAIRS, alone, "mean")
    silent = new.filter(pc.equal(new["pair_id"], "p1"))
    found = replaced(round_, oracle, rubric_judge, silent, None, PAIRS)
    assert (found["labelled"], found["lost"], found["gained"]) == (1, 2, 0)
    person = {
        "verdict_id": "v",
        "pair_id": "p1",
        "auditor": "x",
        "shown_left": "a",
        "seconds": 1.0,
        "simulated": False,
        "created_at": 0,
        "winner": "a",
    }
    verdicts = pa.Table.from_pylist([person], schema=VERDICTS.schema)
    found = replaced(replace(round_, verdicts=verdicts), oracle, rubric_judge, new, None, PAIRS)
    assert found["direction_changes"]["count"] == 0, "p1 turned, but a person has decided it"


def test_weights_are_fitted_again(oracle: Judge, rubric_judge: Judge) -> None:
    """The judge that goes earned all the weight; the one that comes is always wrong on gold, and weighs nothing."""
    panel, new = _judges(oracle, rubric_judge)
    names = [f"g{n}" for n in range(40)]
    gold = pairs_table(*names).append_column("winner", pa.array(["a", "b"] * 20))
    right = [0.99 if n % 2 == 0 else 0.01 for n in range(40)]

    def on_gold(judge: str, p_a: list[float]) -> list[dict[str, object]]:
        return [vote(name, judge, order, p) for name, p in zip(names, p_a, strict=True) for order in ("ab", "ba")]

    third = [0.6 if n % 4 < 2 else 0.4 for n in range(40)]
    gold_votes = _printed(
        votes_table(*on_gold("out", right), *on_gold("third", third)), {"fingerprint-of-out": oracle.fingerprint}
    )
    wrong = _printed(
        votes_table(*on_gold("in", [1 - p for p in right])), {"fingerprint-of-in": rubric_judge.fingerprint}
    )
    round_ = Round(PAIRS, panel, "stacked", gold, gold_votes)
    found = replaced(round_, oracle, rubric_judge, new, wrong, PAIRS)
    trusted = replaced(replace(round_, gold=None, gold_votes=None), oracle, rubric_judge, new, None, PAIRS)
    assert found["labelled"] == trusted["labelled"] == 4
    assert found["moved"] != trusted["moved"]


def test_a_newcomer_that_is_in_the_panel_counts_once(oracle: Judge, rubric_judge: Judge) -> None:
    panel, new = _judges(oracle, rubric_judge)
    both = pa.concat_tables([panel, new])
    found = replaced(Round(PAIRS, both, "mean"), oracle, rubric_judge, new, None, PAIRS)
    assert found["already_in_panel"]


def test_examples_are_pairs_on_which_the_winner_differs(oracle: Judge, rubric_judge: Judge) -> None:
    panel, new = _judges(oracle, rubric_judge)
    out = Answers(panel.filter(pc.equal(panel["fingerprint"], oracle.fingerprint)), 0)
    found = compare_votes(oracle, out, rubric_judge, Answers(new, 0), PAIRS)
    assert [(one["pair_id"], one["gold"]) for one in found["examples"]] == [("p1", None)]


def test_judges_that_agree_everywhere_have_no_examples(oracle: Judge, rubric_judge: Judge) -> None:
    _, new = _judges(oracle, rubric_judge)
    found = compare_votes(oracle, Answers(new, 0), rubric_judge, Answers(new, 0), PAIRS)
    assert (found["examples"], found["agreement"]["agreement"]) == ([], 1)


def test_a_renamed_judge_is_no_other(judge_folder: Folder) -> None:
    with pytest.raises(UsageError, match="fingerprint"):
        refuse_one_judge(load_judge(judge_folder()), load_judge(judge_folder("renamed", description="x")))
