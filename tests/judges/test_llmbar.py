"""Published figures of real judges (LLMBar, Zeng et al. 2024), through our own reports."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest

from judges.aggregation.methods import METHODS
from judges.metrics import judge_accuracy, judge_report, label_accuracy
from judges.parsing import parse_verdict
from store.schemas import GOLD, VOTES
from store.tables import conform

from .votes_builder import vote

DATA = Path(__file__).resolve().parents[3] / "shared" / "data" / "llmbar"
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason=f"the LLMBar pairs and votes are not at {DATA}")

SHOWN = ("Output (a)", "Output (b)")


@pytest.fixture(scope="module")
def source() -> pd.DataFrame:
    return pd.read_csv(DATA / "votes.csv", keep_default_na=False)


@pytest.fixture(scope="module")
def gold() -> pa.Table:
    rows = []
    for line in (DATA / "pairs.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        name = row["pair_id"]
        rows.append(
            {
                "pair_id": name,
                "prompt_id": name,
                "prompt": row["prompt"],
                "rollout_a": f"{name}-1",
                "rollout_b": f"{name}-2",
                "response_a": row["response_1"],
                "response_b": row["response_2"],
                "group": row["subset"],
                "split": "test",
                "winner": {1: "a", 2: "b"}[int(row["gold"])],
            }
        )
    return conform(pa.Table.from_pylist(rows), GOLD, "LLMBar")


@pytest.fixture(scope="module")
def votes(source: pd.DataFrame) -> pa.Table:
    """Empty winners are parse failures: the source could not read a verdict there."""
    rows = [
        vote(
            row.pair_id, row.judge, {"original": "ab", "swapped": "ba"}[row.order], _P_A[row.winner], raw=row.completion
        )
        for row in source.itertuples()
    ]
    return pa.Table.from_pylist(rows, schema=VOTES.schema)


_P_A = {"1.0": 1.0, "2.0": 0.0, "1": 1.0, "2": 0.0, "": None}


@pytest.mark.parametrize(
    ("judge", "accuracy", "flips"), [("GPT-4", 84.5, 7), ("PaLM2", 69.8, 27), ("ChatGPT", 40.0, 34)]
)
def test_accuracy_and_flips_are_the_published_ones(
    votes: pa.Table, gold: pa.Table, judge: str, accuracy: float, flips: int
) -> None:
    assert gold.num_rows == 419
    assert round(100 * judge_accuracy(votes, gold)[judge]["mean_over_orders"], 1) == accuracy
    report = judge_report(votes, gold)[judge]
    # Published of all 419 pairs; our rate leaves out those without a verdict in both orders (4 of PaLM2).
    assert round(100 * report["order_flip_of_all"]) == flips
    assert report["order_flip_rate"] == report["order_flips"] / report["pairs_in_both_orders"]
    assert report["order_flip_low"] < flips / 100 < report["order_flip_high"]


def test_the_majority_by_every_convention(votes: pa.Table, gold: pa.Table) -> None:
    """41 of the 419 majorities are tied. 58.9 % gives them all to response 1; without that it is 55.4 %."""
    found = label_accuracy(METHODS["majority"]().fit(votes).predict(votes), gold)
    figures = {name: round(100 * found[name], 1) for name in ("accuracy", "ties_to_a", "half_ties")}
    assert figures == {"accuracy": 55.4, "ties_to_a": 58.9, "half_ties": 60.3}
    assert (found["ties"], found["n"]) == (41, 419)


def test_an_order_with_an_unread_verdict_is_no_win(votes: pa.Table, gold: pa.Table) -> None:
    report = judge_report(votes, gold)
    assert report["PaLM2"]["parse_failure"] == 8
    assert report["LLaMA2"]["parse_failure"] == 2
    assert judge_accuracy(votes, gold)["PaLM2"]["orders"]["ab"]["n"] == 419, "in the denominator all the same"


def test_no_completion_becomes_a_verdict_by_itself(source: pd.DataFrame) -> None:
    """The source's judges answered in a form that is not ours: none of it may be read as a verdict."""
    assert [text for text in source["completion"].unique() if parse_verdict(text) is not None] == []
    assert [text for text in source["completion"].unique() if parse_verdict(text, SHOWN) is not None] == []


def test_completions_in_our_form_are_read_as_the_source_read_them(source: pd.DataFrame) -> None:
    unread = 0
    for row in source.itertuples():
        verdict = parse_verdict(f"VERDICT: {row.completion}", SHOWN)
        if row.winner == "":
            unread += 1
            assert verdict is None, row.completion
            continue
        assert verdict is not None
        first_is = 1 if row.order == "original" else 2
        chosen = first_is if verdict.choice == "first" else 3 - first_is
        assert chosen == int(float(row.winner)), row
    assert unread == 10
