"""Figures about judges, against hand-counted cases."""

from __future__ import annotations

import json
import math

import pyarrow as pa
import pytest

from judges.metrics import account, agreement, judge_accuracy, judge_report, proportion
from store.errors import UsageError

from .votes_builder import pairs_table, vote, votes_table

VOTES = votes_table(
    vote("p1", "j", "ab", 0.9),
    vote("p1", "j", "ba", 0.7),
    vote("p2", "j", "ab", 0.8),
    vote("p2", "j", "ba", 0.4),
    vote("p3", "j", "ab", 0.5),
    vote("p3", "j", "ba", None),
    vote("p4", "j", "ab", None, "error"),
    vote("p4", "j", "ba", None, "abstain"),
    vote("p1", "k", "ab", 0.2),
    vote("p2", "k", "ab", 0.9),
)
PAIRS = pairs_table("p1", "p2", "p3", "p4", p1=("x" * 300, "y" * 100), p2=("x" * 50, "y" * 150))


def test_the_account_is_whole() -> None:
    assert account(VOTES) == {"attempted": 10, "scored": 6, "tie": 1, "abstain": 1, "parse_failure": 1, "error": 1}
    assert account(VOTES.slice(0, 0))["attempted"] == 0
    with pytest.raises(UsageError, match="confused"):
        account(votes_table(vote("p", "j", "ab", 0.5, "confused")))


def test_the_report_of_a_judge() -> None:
    report = judge_report(VOTES, PAIRS)
    j = report["j"]
    assert j["attempted"] == 8
    assert [j[f"{status}_rate"] for status in ("tie", "abstain", "parse_failure", "error")] == [1 / 8] * 4
    assert (j["order_flip_rate"], j["pairs_in_both_orders"]) == (0.5, 2)
    # Shown first won: p1 ab (a), p2 ab (a), p2 ba (b); p1 ba chose a, which was second.
    assert j["first_slot_rate"] == 3 / 4
    assert j["mean_mass"] == pytest.approx(0.9)
    assert (j["tokens_in"], j["tokens_out"], j["cost"], j["mean_latency_s"]) == (80, 8, 2.0, 0.5)
    # Through the origin: sum(x y) / sum(x x), with x the lengths' difference in hundreds; p3 and p4 are nearly even.
    others = [(len("first of p3") - len("second of p3")) / 100]
    x, y = [2.0, -1.0, *others], [0.3, 0.1, 0.0]
    slope = sum(one * two for one, two in zip(x, y, strict=True)) / sum(one * one for one in x)
    assert j["length_slope"] == pytest.approx(slope)
    assert report["k"]["order_flip_rate"] is None, "nothing was seen in both orders"
    json.dumps(report, allow_nan=False)


def test_judges_of_one_name_are_not_pooled() -> None:
    votes = votes_table(
        vote("p1", "j", "ab", 0.9), vote("p1", "j", "ab", 0.1, fingerprint="another-fingerprint", vote_id="v")
    )
    assert set(judge_report(votes, PAIRS)) == {"j@fingerpr", "j@another-"}


def test_accuracy_counts_what_was_attempted() -> None:
    gold = pairs_table("p1", "p2", "p3", "p4", "p5").append_column("winner", pa.array(["a", "b", "a", "tie", "b"]))
    j = judge_accuracy(VOTES, gold)["j"]
    # Order-averaged: p1 right, p2 wrong (0.6), p3 a tie and so not right; p4 has no winner, p5 was not judged.
    assert (j["accuracy"], j["n"], j["gold_ties"]) == (1 / 3, 3, 1)
    assert (j["orders"]["ab"]["accuracy"], j["orders"]["ba"]["accuracy"]) == (1 / 3, 2 / 3)
    assert j["mean_over_orders"] == 1 / 2
    assert j["low"] < 1 / 3 < j["high"]


def test_gold_has_a_b_or_tie() -> None:
    with pytest.raises(UsageError, match="'both'"):
        judge_accuracy(VOTES, pairs_table("p1").append_column("winner", pa.array(["both"])))


def test_the_wilson_interval_is_wilsons() -> None:
    z, n, p = 1.959963984540054, 20, 0.7
    centre, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    found = proportion(14, 20)
    assert found["low"] == pytest.approx((centre - half) / (1 + z * z / n))
    assert found["high"] == pytest.approx((centre + half) / (1 + z * z / n))
    assert proportion(0, 0) == {"accuracy": None, "low": None, "high": None, "n": 0}


def test_agreement() -> None:
    (row,) = agreement(VOTES)
    assert row == {"judges": ["j", "k"], "agreement": 0.5, "pairs": 2}
