"""Figures about judges, against hand-counted cases."""

from __future__ import annotations

import json
import math
from itertools import product
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from judges.judge import load_judge
from judges.metrics import (
    account,
    agreement,
    judge_accuracy,
    judge_report,
    label_accuracy,
    origins_of,
    own_names,
    paired_accuracy,
    proportion,
    self_preference,
    split_by_judge,
)
from judges.reports.accuracy import length_controlled
from judges.reports.agreement import agree
from judges.reports.proportions import clustered_mean, paired_difference
from store.errors import UsageError
from store.hashing import hash_path

from .conftest import Folder
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


def test_a_judge_that_was_renamed_is_one_judge() -> None:
    rows = [vote("p1", "old", "ab", 0.9), vote("p1", "old", "ba", 0.8) | {"judge": "new"}]
    tables = split_by_judge(votes_table(*rows))
    assert {name: own.num_rows for name, own in tables.items()} == {"new": 2}


def test_agreement() -> None:
    (row,) = agreement(VOTES)
    assert (row["judges"], row["agreement"], row["pairs"]) == (["j", "k"], 0.5, 2)
    assert row["low"] == pytest.approx(1 - row["high"])


def test_kappa_is_cohens() -> None:
    # The textbook table: 20 both yes, 15 both no, 5 and 10 apart; kappa = (0.7 - 0.5) / (1 - 0.5).
    answers = [("a", "a")] * 20 + [("a", "b")] * 5 + [("b", "a")] * 10 + [("b", "b")] * 15
    one = {f"p{n}": x for n, (x, _) in enumerate(answers)}
    two = {f"p{n}": y for n, (_, y) in enumerate(answers)}
    found = agree(one, two)
    assert (found["agreement"], found["pairs"]) == (0.7, 50)
    assert found["kappa"] == pytest.approx(0.4)
    assert agree({"p": "a"}, {"p": "a"})["kappa"] is None, "agreement was certain"
    assert set(agree({"p": "a"}, {"q": "a"}).values()) == {None, 0}


@pytest.mark.parametrize("cells", [(20, 5, 10, 15), (400, 30, 20, 50), (3, 0, 1, 2), (10, 90, 80, 20)])
def test_kappa_and_its_interval_are_those_of_the_libraries(cells: tuple[int, ...]) -> None:
    metrics = pytest.importorskip("sklearn.metrics", reason="needs the extra labels")
    rater = pytest.importorskip("statsmodels.stats.inter_rater", reason="needs the extra labels")
    said = [pair for pair, count in zip(product("ab", "ab"), cells, strict=True) for _ in range(count)]
    found = agree(*({str(n): pair[at] for n, pair in enumerate(said)} for at in (0, 1)))
    assert found["kappa"] == pytest.approx(metrics.cohen_kappa_score(*zip(*said, strict=True)), abs=1e-12)
    if sum(cells) > 40:  # statsmodels has the interval of large samples (Fleiss, Cohen and Everitt 1969)
        large = rater.cohens_kappa(np.reshape(cells, (2, 2)))
        assert found["kappa_low"] == pytest.approx(large.kappa_low, abs=0.03)
        assert found["kappa_high"] == pytest.approx(large.kappa_upp, abs=0.03)


# Fagerland, Lydersen and Laake (2014), recommended tests and confidence intervals for paired binomial proportions:
# airway hyper-responsiveness (Bentur et al. 2009) and complete response to therapy (Cavo et al. 2012).
@pytest.mark.parametrize(
    ("table", "difference", "low", "high", "p_value"),
    [((1, 1, 7, 12), -0.286, -0.507, -0.026, 0.0703), ((59, 6, 16, 80), -0.062, -0.119, -0.005, 0.0525)],
)
def test_the_paired_interval_is_newcombes(
    table: tuple[int, int, int, int], difference: float, low: float, high: float, p_value: float
) -> None:
    found = paired_difference(*table)
    assert [round(found[name], 3) for name in ("difference", "low", "high")] == [difference, low, high]
    assert found["p_value"] == pytest.approx(p_value, abs=5e-5)
    mirrored = paired_difference(table[0], table[2], table[1], table[3])
    assert mirrored["low"] == pytest.approx(-found["high"])


def test_the_paired_interval_covers() -> None:
    rng = np.random.default_rng(3)
    shares = np.array([0.5, 0.2, 0.1, 0.2])
    inside = []
    for table in rng.multinomial(60, shares, size=1000):
        found = paired_difference(*(int(count) for count in table))
        inside.append(found["low"] <= 0.1 <= found["high"])
    assert 0.93 <= np.mean(inside) <= 0.98


def test_no_difference_has_an_interval_all_the_same() -> None:
    found = paired_difference(20, 0, 0, 0)
    assert (found["difference"], found["p_value"]) == (0, 1)
    assert -0.2 < found["low"] < 0 < found["high"] < 0.2
    assert paired_difference(0, 0, 0, 0)["difference"] is None


def test_clusters_widen_an_interval() -> None:
    rng = np.random.default_rng(0)
    values = np.repeat(rng.normal(size=100), 10)
    alone = clustered_mean(values.tolist(), list(range(1000)))
    together = clustered_mean(values.tolist(), np.repeat(np.arange(100), 10).tolist())
    assert alone["mean"] == pytest.approx(values.mean())
    assert together["mean"] == pytest.approx(values.mean())
    ratio = (together["high"] - together["low"]) / (alone["high"] - alone["low"])
    assert ratio == pytest.approx(np.sqrt(10), rel=0.15)
    assert clustered_mean([1.0, 2.0], ["p", "p"])["low"] is None
    assert clustered_mean([], [])["mean"] is None


def test_the_slot_preference_has_an_interval() -> None:
    names = [f"p{n}" for n in range(40)]
    rows = []
    for number, name in enumerate(names):
        first = 0.9 if number < 10 else 0.2  # ten pairs go to the first slot, thirty to b in either order
        rows += [vote(name, "j", "ab", first), vote(name, "j", "ba", 0.1 if number < 10 else 0.2)]
    found = judge_report(votes_table(*rows), pairs_table(*names))["j"]
    assert (found["order_flips"], found["order_flip_rate"], found["order_flip_of_all"]) == (10, 0.25, 0.25)
    assert found["first_slot_rate"] == 50 / 80
    assert 0.5 < found["first_slot_low"] < 50 / 80 < found["first_slot_high"] < 0.75
    assert found["by_group"]["g"]["order_flips"] == 10


def test_figures_by_group_are_those_of_the_group_alone() -> None:
    groups = ["x", "y", "x", "y"]
    pairs = PAIRS.set_column(PAIRS.schema.get_field_index("group"), "group", pa.array(groups))
    whole = judge_report(VOTES, pairs)["j"]["by_group"]
    alone = votes_table(*(row for row in VOTES.to_pylist() if row["pair_id"] in ("p1", "p3")))
    of_x = judge_report(alone, pairs)["j"]
    assert whole["x"] == {name: of_x[name] for name in whole["x"]}
    assert whole["y"]["error"] == 1


def test_the_length_slope_has_an_interval_over_prompts() -> None:
    rng = np.random.default_rng(1)
    names = [f"p{n}" for n in range(300)]
    texts = {name: ("x" * int(rng.integers(10, 400)), "y" * int(rng.integers(10, 400))) for name in names}
    rows = []
    for name, (a, b) in texts.items():
        p = float(np.clip(0.5 + 0.1 * (len(a) - len(b)) / 100 + rng.normal(0, 0.1), 0, 1))
        rows += [vote(name, "j", order, p) for order in ("ab", "ba")]
    found = judge_report(votes_table(*rows), pairs_table(*names, **texts))["j"]
    assert found["length_slope_low"] < 0.1 < found["length_slope_high"]
    assert found["length_slope_high"] - found["length_slope_low"] < 0.03


def test_accuracy_at_equal_lengths() -> None:
    """A judge drawn to length, on gold that is longer more often than not: its accuracy is not its skill."""
    rng = np.random.default_rng(2)
    names = [f"p{n}" for n in range(3000)]
    ahead = rng.normal(120, 100, len(names)).round()
    right = rng.random(len(names)) < 1 / (1 + np.exp(-(0.7 + 1.5 * np.tanh(ahead / ahead.std()))))
    figures = length_controlled(
        dict(zip(names, right.tolist(), strict=True)), dict(zip(names, ahead.astype(int).tolist(), strict=True))
    )
    skill = 1 / (1 + math.exp(-0.7))
    assert right.mean() > skill + 0.1
    assert figures["controlled_accuracy"] == pytest.approx(skill, abs=0.04)
    longer, shorter = figures["longer_better"], figures["shorter_better"]
    assert longer["accuracy"] == pytest.approx(right[ahead > 0].mean())
    assert shorter["high"] < longer["low"]
    assert length_controlled({"p": True}, {"p": 5})["controlled_accuracy"] is None, "one pair says nothing"


def test_accuracy_by_group_and_side() -> None:
    texts = {"p1": ("long" * 9, "short"), "p2": ("long" * 9, "short")}
    gold = pairs_table("p1", "p2", **texts).append_column("winner", pa.array(["a", "b"]))
    found = judge_accuracy(VOTES, gold)["j"]
    assert found["by_group"] == {"g": {name: found[name] for name in ("accuracy", "low", "high", "n")}}
    assert (found["length"]["longer_better"]["n"], found["length"]["longer_better"]["accuracy"]) == (1, 1)
    assert (found["length"]["shorter_better"]["n"], found["length"]["shorter_better"]["accuracy"]) == (1, 0)


FAMILY = {"fingerprint-of-j": frozenset({"qwen"}), "fingerprint-of-k": frozenset({"llama"})}


MIXED = pairs_table(*(f"p{n}" for n in range(30)))


def _mixed(p_of_j: float, p_of_k: float, n: int = 30) -> tuple[pa.Table, dict[str, str]]:
    names = [f"p{number}" for number in range(n)]
    rows = [
        vote(name, judge, order, p if number % 3 else 1 - p)
        for number, name in enumerate(names)
        for judge, p in (("j", p_of_j), ("k", p_of_k))
        for order in ("ab", "ba")
    ]
    origins = {f"{name}-a": "qwen" for name in names} | {f"{name}-b": "mistral" for name in names}
    return votes_table(*rows), origins


def test_self_preference_is_what_goes_beyond_gold_and_beyond_the_others() -> None:
    votes, origins = _mixed(0.9, 0.1)
    gold = MIXED.append_column("winner", pa.array(["a", "b"] * 15))
    found = self_preference(votes, MIXED, FAMILY, origins, gold)
    j = found["j"]
    assert (j["own_win_share"], j["pairs"], j["reason"]) == (pytest.approx(2 / 3), 30, None)
    assert j["beyond_gold"]["mean"] == pytest.approx(2 / 3 - 1 / 2)
    assert j["beyond_others"]["mean"] == pytest.approx(2 / 3 - 1 / 3)
    assert j["beyond_others"]["low"] < 1 / 3 < j["beyond_others"]["high"]
    assert j["by_group"] == {"g": {name: value for name, value in j.items() if name != "by_group"}}
    assert found["k"]["reason"] == "no response is of the judge's family or model"
    assert found["k"]["by_group"] == {}
    json.dumps(found, allow_nan=False)


def test_a_judge_that_only_sees_better_responses_has_no_self_preference() -> None:
    votes, origins = _mixed(0.9, 0.9)
    found = self_preference(votes, MIXED, FAMILY, origins)["j"]
    assert found["own_win_share"] == pytest.approx(2 / 3)
    assert (found["beyond_others"]["mean"], found["beyond_gold"]) == (0, None)


def test_self_preference_says_why_it_is_not_there() -> None:
    votes, origins = _mixed(0.9, 0.1)
    one_policy = dict.fromkeys(origins, "qwen")
    assert self_preference(votes, MIXED, FAMILY, one_policy)["j"]["reason"].startswith("no pair has exactly one")
    assert self_preference(votes, MIXED, {}, origins)["j"]["reason"] == "the judge has no family and no model"
    alone = votes_table(*(row for row in votes.to_pylist() if row["judge"] == "j"))
    assert self_preference(alone, MIXED, FAMILY, origins)["j"]["reason"].startswith("neither gold nor a judge")
    rivals = {**FAMILY, "fingerprint-of-k": frozenset({"mistral"})}
    assert self_preference(votes, MIXED, rivals, origins)["j"]["beyond_others"] is None, (
        "the other has a side in it too"
    )


def test_origins_are_families_where_they_are_known() -> None:
    rollouts = pa.table({"rollout_id": ["r", "s"], "policy": ["hash", "hash"]})
    assert origins_of(rollouts) == {"r": "hash", "s": "hash"}
    assert origins_of(rollouts.append_column("family", pa.array(["qwen", None]))) == {"r": "qwen", "s": "hash"}


def test_labels_are_measured_by_every_convention() -> None:
    names = ("p1", "p2", "p3", "p4", "p5")
    gold = pairs_table(*names).append_column("winner", pa.array(["a", "a", "b", "b", "tie"]))
    labels = pa.table({"pair_id": ["p1", "p2", "p3"], "p_a": [0.9, 0.5, 0.5]})
    found = label_accuracy(labels, gold)
    assert (found["accuracy"], found["half_ties"], found["ties_to_a"], found["ties"]) == (1 / 4, 2 / 4, 2 / 4, 2)


def test_paired_accuracy_is_of_the_same_pairs() -> None:
    gold = pairs_table("p1", "p2", "p3", "p4").append_column("winner", pa.array(["a", "b", "a", "a"]))
    j, k = (votes_table(*(row for row in VOTES.to_pylist() if row["judge"] == name)) for name in ("j", "k"))
    found = paired_accuracy(j, k, gold)
    # Shared are p1 (j right, k wrong) and p2 (both wrong).
    assert [found[name] for name in ("both_right", "only_first", "only_second", "neither")] == [0, 1, 0, 1]
    assert (found["difference"], found["n"]) == (0.5, 2)


def test_a_judges_own_names_are_its_family_and_its_model(judge_folder: Folder, tiny_model: Path) -> None:
    judge = load_judge(judge_folder(family="qwen"))
    assert own_names(judge) == {"qwen", str(tiny_model), hash_path(tiny_model)}
    assert own_names(load_judge("tiny-oracle")) == frozenset()
    assert own_names(load_judge("vllm-server")) == {"judge"}
    assert own_names(load_judge("tiny-cascade")) > own_names(load_judge("tiny-good"))
