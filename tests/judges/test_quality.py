"""Quality from flaws: the formula by hand, the fit against an independent solver, what gold can and cannot teach."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from scipy.optimize import minimize
from scipy.special import expit

from judges.aggregation.gold import FOLDS
from judges.judge import Judge, load_judge
from judges.quality import features, fit_flaw_weights, quality
from judges.ratings import Rollout, rating_id, votes_from_ratings
from judges.settings import Question
from store.hashing import short_id
from store.schemas import GOLD, RATINGS

from .conftest import Folder, make_pair

PROMPT = "{{ prompt }} {{ response }} {% for question in questions %}{{ question.name }} {% endfor %}"
QUESTIONS = [
    {"name": "wrong", "question": "Is it wrong?", "weight": 3},
    {"name": "rude", "question": "Is it rude?", "weight": 1},
    {"name": "long", "question": "Is it long?", "weight": 1, "unsure": 0.2},
]
NAMES = ["wrong", "rude", "long"]
TRUE = np.array([2.0, 1.0, 0.0])
"""Log-odds that each flaw is worth, for those who made the gold."""


@pytest.fixture
def judge(judge_folder: Folder) -> Judge:
    return load_judge(judge_folder("flaws", PROMPT, mode="flaws", questions=QUESTIONS, scale=0.1))


def world(judge: Judge, pairs: int, seed: int = 0) -> tuple[pa.Table, pa.Table]:
    """RATINGS and GOLD whose winners follow from TRUE with logistic noise."""
    chance = np.random.default_rng(seed)
    ratings, gold = [], []
    for number in range(pairs):
        pair = make_pair(number)
        x = []
        for rollout, response in ((pair.rollout_a, pair.response_a), (pair.rollout_b, pair.response_b)):
            answers = chance.choice(["yes", "no", "unsure"], size=3, p=[0.4, 0.5, 0.1])
            flaws = dict(zip(NAMES, answers.tolist(), strict=True))
            x.append(features(flaws, judge.settings.questions))
            ratings.append(rating(judge, Rollout(rollout, pair.prompt_id, pair.prompt, response), flaws))
        p_a = expit((x[1] - x[0]) @ TRUE)
        gold.append({**vars(pair), "winner": "a" if chance.random() < p_a else "b"})
    return pa.Table.from_pylist(ratings, schema=RATINGS.schema), pa.Table.from_pylist(gold, schema=GOLD.schema)


def rating(judge: Judge, rollout: Rollout, flaws: dict[str, str] | None, status: str = "scored") -> dict[str, Any]:
    spent = {"tokens_in": 0, "tokens_out": 0, "cost": 0.0, "latency_s": 0.0, "attempts": 1}
    score = quality(flaws, judge.settings.questions) if flaws else None
    about = {"rollout_id": rollout.rollout_id, "prompt_id": rollout.prompt_id, "judge": judge.name}
    ids = {"rating_id": rating_id(rollout, judge.fingerprint), "fingerprint": judge.fingerprint}
    return {**about, **ids, **spent, "status": status, "score": score, "flaws": flaws}


def test_the_formula(judge: Judge) -> None:
    questions = judge.settings.questions

    def of(*answers: str) -> float:
        return quality(dict(zip(NAMES, answers, strict=True)), questions)

    assert of("no", "no", "no") == 1
    assert of("yes", "yes", "yes") == 0
    assert of("yes", "no", "no") == pytest.approx(1 - 3 / 5)
    assert of("no", "unsure", "unsure") == pytest.approx(1 - (0.5 + 0.2) / 5)
    free = (*questions[:1], Question(name="rude", question="?", weight=0), questions[2])
    assert quality({"wrong": "no", "rude": "yes", "long": "no"}, free) == 1
    with pytest.raises(KeyError):
        quality({"wrong": "no", "rude": "yes"}, questions)


def test_the_fit_is_the_minimum_of_the_objective(judge: Judge) -> None:
    """Against a solver that knows no gradient, on the objective written out pair by pair."""
    ratings, gold = world(judge, 60)
    fitted = fit_flaw_weights(judge, ratings, gold, ridge=0.7)
    x = {row["rollout_id"]: features(dict(row["flaws"]), judge.settings.questions) for row in ratings.to_pylist()}
    prior = np.array([3, 1, 1]) / (0.1 * 5)

    def objective(v: np.ndarray) -> float:
        total = 0.7 / 2 * float(((v - prior) ** 2).sum())
        for row in gold.to_pylist():
            p_a = 1 / (1 + math.exp(-float(v @ (x[row["rollout_b"]] - x[row["rollout_a"]]))))
            total -= math.log(p_a if row["winner"] == "a" else 1 - p_a)
        return total

    found = minimize(
        objective,
        prior,
        method="Nelder-Mead",
        bounds=[(0, None)] * 3,
        options={"xatol": 1e-8, "fatol": 1e-10, "maxiter": 5000},
    )
    assert list(fitted.weights.values()) == pytest.approx(found.x.tolist(), abs=1e-4)
    assert fitted.scale == pytest.approx(1 / sum(fitted.weights.values()))


def test_without_gold_the_configured_weights_come_out(judge: Judge) -> None:
    ratings, gold = world(judge, 5)
    fitted = fit_flaw_weights(judge, ratings, gold.slice(0, 0))
    assert list(fitted.weights.values()) == pytest.approx([6, 2, 2])
    assert (fitted.scale, fitted.gold_pairs) == (pytest.approx(judge.settings.scale), 0)
    assert fitted.fitted == {"accuracy": None, "low": None, "high": None, "n": 0}
    stiff = fit_flaw_weights(judge, ratings, gold, ridge=1e9)
    assert list(stiff.weights.values()) == pytest.approx([6, 2, 2], abs=1e-3)


def test_much_gold_finds_the_true_weights(judge: Judge) -> None:
    ratings, gold = world(judge, 6000)
    fitted = fit_flaw_weights(judge, ratings, gold)
    assert list(fitted.weights.values()) == pytest.approx(TRUE.tolist(), abs=0.25)
    assert min(fitted.weights.values()) >= 0


def test_a_pair_mirrored_teaches_the_same(judge: Judge) -> None:
    ratings, gold = world(judge, 40)
    swap = {"rollout_a": "rollout_b", "rollout_b": "rollout_a", "response_a": "response_b", "response_b": "response_a"}
    mirrored = gold.rename_columns([swap.get(name, name) for name in gold.column_names]).select(gold.column_names)
    winners = pa.array([{"a": "b", "b": "a"}[winner] for winner in gold["winner"].to_pylist()])
    mirrored = mirrored.set_column(mirrored.schema.get_field_index("winner"), "winner", winners)
    one, other = fit_flaw_weights(judge, ratings, gold), fit_flaw_weights(judge, ratings, mirrored)
    assert list(one.weights.values()) == pytest.approx(list(other.weights.values()), abs=1e-5)


def test_fitted_weights_and_scale_give_the_fitted_votes(judge: Judge, judge_folder: Folder) -> None:
    """What the fit says is what votes are once weights and scale are copied into judge.yaml."""
    ratings, gold = world(judge, 50)
    fitted = fit_flaw_weights(judge, ratings, gold)
    questions = [{**question, "weight": fitted.weights[str(question["name"])]} for question in QUESTIONS]
    copied = load_judge(judge_folder("copied", PROMPT, mode="flaws", questions=questions, scale=fitted.scale))
    assert copied.fingerprint == judge.fingerprint
    pairs = [make_pair(number) for number in range(50)]
    x = {row["rollout_id"]: features(dict(row["flaws"]), judge.settings.questions) for row in ratings.to_pylist()}
    # Not all pairs: those with a response about which the judge is unsure altogether say nothing.
    v = np.array(list(fitted.weights.values()))
    for row in votes_from_ratings(copied, pairs, ratings).to_pylist():
        p_a = expit(float(v @ (x[row["rollout_b"]] - x[row["rollout_a"]])))
        assert row["p_a"] == pytest.approx(p_a, abs=1e-6)


def test_accuracy_of_fitted_weights_is_out_of_fold(judge: Judge) -> None:
    """Against the folds fitted one by one; a prompt's pairs are in one fold."""
    for seed in range(3):
        ratings, gold = world(judge, 25, seed)
        x = {row["rollout_id"]: features(dict(row["flaws"]), judge.settings.questions) for row in ratings.to_pylist()}
        rows = gold.to_pylist()
        fold = np.array([int(short_id("fold", row["prompt_id"]), 16) % FOLDS for row in rows])
        right = 0
        for number in range(FOLDS):
            others = fit_flaw_weights(judge, ratings, gold.filter(pa.array(fold != number)), ridge=0.01)
            for row in (row for row, its in zip(rows, fold, strict=True) if its == number):
                better = np.array(list(others.weights.values())) @ (x[row["rollout_b"]] - x[row["rollout_a"]])
                right += (round(better, 9) > 0) if row["winner"] == "a" else (round(better, 9) < 0)
        assert fit_flaw_weights(judge, ratings, gold, ridge=0.01).fitted["accuracy"] == pytest.approx(right / 25)
    honest = fit_flaw_weights(judge, *world(judge, 2000))
    assert honest.fitted["accuracy"] > 0.6
    assert honest.fitted["n"] == honest.configured["n"] == 2000


def test_what_scores_nothing_teaches_nothing(judge: Judge) -> None:
    ratings, gold = world(judge, 30)
    rows = ratings.to_pylist()
    rows[0] |= {"status": "abstain", "score": None, "flaws": dict.fromkeys(NAMES, "unsure")}
    rows[2] |= {"status": "parse_failure", "score": None, "flaws": None}
    rows[5] |= {"fingerprint": "another judge's"}
    fitted = fit_flaw_weights(judge, pa.Table.from_pylist(rows, schema=RATINGS.schema), gold)
    assert fitted.gold_pairs == 27


def test_gold_ties_pull_together_and_are_not_scored(judge: Judge) -> None:
    ratings, gold = world(judge, 40)
    ties = gold.set_column(gold.schema.get_field_index("winner"), "winner", pa.array(["tie"] * 40))
    fitted = fit_flaw_weights(judge, ratings, ties, ridge=0.01)
    assert max(fitted.weights.values()) < 0.2
    assert fitted.fitted["n"] == 0


def test_other_modes_have_no_weights(judge_folder: Folder, judge: Judge) -> None:
    ratings, gold = world(judge, 3)
    with pytest.raises(TypeError, match="no questions"):
        fit_flaw_weights(load_judge(judge_folder()), ratings, gold)
