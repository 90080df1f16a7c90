"""LLMBar as tables, and the accuracy and calibration of labels on it with a few gold pairs (part of labels.py).

Of the 419 pairs n are drawn as gold, the methods learn from them, and every other pair is scored: accuracy with a tie
as half right, and expected calibration error over ten equal bins of confidence in 0..1, of which a choice between two
uses the upper five. The error of one draw holds the luck of some 370 pairs; `floor` is what labels that are calibrated
by construction would show on as many. `pooled` bins the labels of all draws together: that luck is averaged out, and so
are opposite errors of single draws.
"""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from judges.aggregation.labels import checked_votes
from judges.aggregation.lengths import with_lengths
from judges.aggregation.methods import METHODS
from judges.aggregation.slots import over_orders, slot_votes
from store.schemas import GOLD, VOTES
from store.tables import conform

Array = npt.NDArray[np.float64]

BINS = 10


@dataclass(frozen=True)
class Bench:
    """`votes` (VOTES, with lengths) and `gold` (GOLD) of all pairs, gold in the order of its pair ids."""

    votes: pa.Table
    gold: pa.Table


@dataclass(frozen=True)
class Draw:
    """One draw of the gold: what was learned from n pairs and scored on the rest."""

    seed: int
    accuracy: float
    ece: float
    floor: float
    confidence: Array
    right: Array


def read(folder: Path) -> Bench:
    gold = []
    for line in (folder / "pairs.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        name = row["pair_id"]
        sides = {"rollout_a": f"{name}-1", "rollout_b": f"{name}-2"}
        texts = {"prompt": row["prompt"], "response_a": row["response_1"], "response_b": row["response_2"]}
        about = {"group": row["subset"], "split": "test", "winner": "ab"[int(row["gold"]) - 1]}
        gold.append({"pair_id": name, "prompt_id": name, **sides, **texts, **about})
    with (folder / "votes.csv").open(encoding="utf-8", newline="") as stream:
        votes = [_vote(row) for row in csv.DictReader(stream)]
    table = conform(pa.Table.from_pylist(gold), GOLD, "LLMBar").sort_by("pair_id")
    checked, _ = checked_votes(pa.Table.from_pylist(votes, schema=VOTES.schema), table)
    return Bench(with_lengths(checked, table), table)


def _vote(row: dict[str, str]) -> dict[str, object]:
    """An empty winner is a verdict that the source could not read."""
    winner = {"1": "a", "2": "b"}.get(row["winner"].removesuffix(".0"))
    pair, order = row["pair_id"], {"original": "ab", "swapped": "ba"}[row["order"]]
    return {
        "vote_id": f"{pair}/{row['judge']}/{order}",
        "pair_id": pair,
        "prompt_id": pair,
        "rollout_a": f"{pair}-1",
        "rollout_b": f"{pair}-2",
        "judge": row["judge"],
        "fingerprint": row["judge"],
        "order": order,
        "status": "scored" if winner else "parse_failure",
        "winner": winner,
        **dict.fromkeys(("tokens_in", "tokens_out"), 0),
        **dict.fromkeys(("cost", "latency_s"), 0.0),
        "attempts": 1,
    }


def truth(bench: Bench) -> Array:
    """[pairs] 1 where a is better, else 0."""
    return np.asarray(pc.equal(bench.gold["winner"], "a").to_numpy(), dtype=np.float64)


def draw(bench: Bench, method: str, gold_pairs: int, seed: int) -> Draw:
    order = np.random.default_rng(seed).permutation(bench.gold.num_rows)
    chosen, rest = np.sort(order[:gold_pairs]), np.sort(order[gold_pairs:])
    fitted = METHODS[method]().fit(bench.votes, bench.gold.take(chosen) if gold_pairs else None)
    labels = fitted.predict(bench.votes)
    p = scored(labels, bench.gold["pair_id"])[rest]
    return judged(seed, p, truth(bench)[rest])


def scored(labels: pa.Table, pairs: pa.ChunkedArray) -> Array:
    """p_a of `pairs`; a pair without a label counts as undecided."""
    at = pc.index_in(pairs, value_set=labels["pair_id"].combine_chunks())
    return np.asarray(pc.fill_null(pc.take(labels["p_a"], at), 0.5).to_numpy(), dtype=np.float64)


def judged(seed: int, p: Array, y: Array) -> Draw:
    right = np.where(np.abs(p - 0.5) < 1e-9, 0.5, (p > 0.5) == (y > 0.5)).astype(float)
    confidence = np.maximum(p, 1 - p)
    luck = np.random.default_rng([seed, 1]).random((20, len(p))) < confidence
    floor = float(np.mean([ece(confidence, row.astype(float)) for row in luck]))
    return Draw(seed, float(right.mean()), ece(confidence, right), floor, confidence, right)


def ece(confidence: Array, right: Array) -> float:
    """sum over bins |sum of confidence - sum of right| / pairs (Guo et al. 2017, arXiv 1706.04599, section 2)."""
    at = np.minimum((confidence * BINS).astype(int), BINS - 1)
    gap = np.bincount(at, confidence - right, minlength=BINS)
    return float(np.abs(gap).sum() / len(confidence))


def plain_ridge(bench: Bench, sizes: list[int], draws: int) -> None:
    """To compare with: scikit-learn's logistic regression (C = 1, no intercept) on votes of -1, 0, 1 averaged over both
    orders, on the same draws."""
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError:
        print("plain ridge: left out, scikit-learn is not installed")
        return
    found = slot_votes(bench.votes)
    x, y = np.nan_to_num(over_orders(np.sign(found.log_odds))), truth(bench)
    for size in sizes:
        accuracy = []
        for seed in range(draws):
            order = np.random.default_rng(seed).permutation(len(y))
            chosen, rest = order[:size], order[size:]
            if len(set(y[chosen])) == 2:
                fitted = LogisticRegression(C=1.0, fit_intercept=False).fit(x[chosen], y[chosen])
                accuracy.append(100 * float(np.mean(fitted.predict(x[rest]) == y[rest])))
        made = np.array(accuracy)
        name = "plain ridge (scikit-learn)"
        print(f"{name} {size:4d} {made.mean():6.2f}% {made.std():5.2f} {made.min():6.1f} {made.max():6.1f}")


def table(bench: Bench, methods: list[str], sizes: list[int], draws: int, show_all: bool) -> dict[str, float]:
    """Prints; returns `method/n` -> mean accuracy in %, and `method/n/ece` -> mean and pooled error."""
    figures: dict[str, float] = {}
    print(f"LLMBar, 6 judges x 2 orders, {draws} draws of the gold, seeds 0..{draws - 1}; every other pair is scored")
    print(
        f"{'method':10s}{'gold':>5s}{'accuracy':>10s}{'sd':>6s}{'min':>7s}{'max':>7s}{'ECE':>8s}{'floor':>7s}{'pooled':>8s}"
    )
    for method in methods:
        for size in sizes:
            made = [draw(bench, method, size, seed) for seed in range(draws)]
            accuracy = 100 * np.array([one.accuracy for one in made])
            errors, floors = np.array([one.ece for one in made]), np.array([one.floor for one in made])
            pooled = ece(np.concatenate([one.confidence for one in made]), np.concatenate([one.right for one in made]))
            print(
                f"{method:10s}{size:5d}{accuracy.mean():9.2f}%{accuracy.std():6.2f}{accuracy.min():7.1f}"
                f"{accuracy.max():7.1f}{errors.mean():8.3f}{floors.mean():7.3f}{pooled:8.3f}"
            )
            if show_all:
                print("   " + " ".join(f"{one.seed}:{100 * one.accuracy:.2f}/{one.ece:.3f}" for one in made))
            figures |= {
                f"{method}/{size}": float(accuracy.mean()),
                f"{method}/{size}/ece": float(errors.mean()),
                f"{method}/{size}/pooled": pooled,
            }
    return figures
