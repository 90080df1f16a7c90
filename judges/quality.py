"""From answers about flaws to a quality score, by weights that are configured or fitted on pairs with known winners.

For question q let x_q be 1 if the response has the flaw, 0 if not, and the configured share u_q where the judge was
unsure. With weights w_q >= 0

    score = 1 - sum_q w_q x_q / sum_q w_q        in 0..1, 1 without any flaw
    P(a better than b) = sigmoid((score_a - score_b) / scale) = sigmoid(sum_q v_q (x_bq - x_aq)),
    v_q = w_q / (scale sum_q w_q)                log-odds that flaw q alone is worth

The fit is a ridge logistic regression on the differences of flaws, without intercept, so that a pair mirrored is a
label mirrored:

    v = argmin_{v >= 0}  sum_gold CE(y, sigmoid(sum_q v_q (x_bq - x_aq))) + (ridge / 2) sum_q (v_q - v0_q)^2

with y = 1, 0 or 1/2 for a tie and v0 of the configured weights, which come out where there is no gold. A fitted v is
told as weights v_q and scale 1 / sum_q v_q. Neither is part of the fingerprint: copied into judge.yaml they change
what is made of the answers, and no answer is asked for again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from judges.aggregation.gold import P_A, folds
from judges.aggregation.nonnegative import RIDGE, fit_weights
from judges.judge import Judge
from judges.reports import Figures
from judges.reports.proportions import proportion
from judges.settings import LanguageModelSettings, Question

Array = npt.NDArray[np.float64]


def quality(flaws: Mapping[str, str], questions: Sequence[Question]) -> float:
    """The score of one response in 0..1, from question -> yes, no or unsure. See the module."""
    weights = np.array([question.weight for question in questions])
    return float(1 - weights @ features(flaws, questions) / weights.sum())


def features(flaws: Mapping[str, str], questions: Sequence[Question]) -> Array:
    """x [questions], in 0..1. Raises KeyError where a question has no answer."""
    of_answer = [{"yes": 1.0, "no": 0.0, "unsure": question.unsure} for question in questions]
    return np.array([found[flaws[question.name]] for found, question in zip(of_answer, questions, strict=True)])


@dataclass(frozen=True)
class FittedWeights:
    """`weights`: question -> v. `scale`: to go with them; None where all weights are 0: no flaw tells anything.

    `gold_pairs`: fitted on. `configured` and `fitted`: accuracy on them with its interval, of the weights at hand and
    of fitted ones; the latter out of fold, on prompts that their weights were not fitted on. A pair whose responses
    are scored alike is not right; gold ties are not counted.
    """

    weights: dict[str, float]
    scale: float | None
    gold_pairs: int
    configured: Figures
    fitted: Figures


def fit_flaw_weights(judge: Judge, ratings: pa.Table, gold: pa.Table, ridge: float = RIDGE) -> FittedWeights:
    """Fit the weights of a judge of mode flaws to its RATINGS of the responses of `gold` (GOLD: a, b or tie).

    A pair counts where both of its responses have answers that score; the others say nothing.
    """
    settings = judge.settings
    if not isinstance(settings, LanguageModelSettings) or settings.mode != "flaws":
        raise TypeError(f"Judge {judge.name} answers no questions about flaws.")
    questions = settings.questions
    configured = np.array([question.weight for question in questions])
    prior = configured / (settings.scale * configured.sum())
    x, y, prompts = _differences(judge, questions, ratings, gold)
    out_of_fold = np.zeros(len(y))
    fold_of = folds(prompts)
    for fold in set(fold_of.tolist()):
        inside = fold_of == fold
        out_of_fold[inside] = x[inside] @ fit_weights(x[~inside], y[~inside], ridge, prior)
    v = fit_weights(x, y, ridge, prior)
    total = float(v.sum())
    return FittedWeights(
        {question.name: float(weight) for question, weight in zip(questions, v, strict=True)},
        1 / total if total else None,
        len(y),
        _accuracy(x @ prior, y),
        _accuracy(out_of_fold, y),
    )


def _differences(
    judge: Judge, questions: Sequence[Question], ratings: pa.Table, gold: pa.Table
) -> tuple[Array, Array, list[str]]:
    """x_b - x_a [pairs, questions], y [pairs] and the pairs' prompts."""
    found = {
        row["rollout_id"]: features(dict(row["flaws"]), questions)
        for row in ratings.select(["rollout_id", "fingerprint", "score", "flaws"]).to_pylist()
        if row["fingerprint"] == judge.fingerprint and row["score"] is not None
    }
    rows = [
        row
        for row in gold.select(["prompt_id", "rollout_a", "rollout_b", "winner"]).to_pylist()
        if row["rollout_a"] in found and row["rollout_b"] in found
    ]
    x = np.array([found[row["rollout_b"]] - found[row["rollout_a"]] for row in rows]).reshape(-1, len(questions))
    return x, np.array([P_A[row["winner"]] for row in rows]), [row["prompt_id"] for row in rows]


def _accuracy(log_odds: Array, y: Array) -> Figures:
    decided = y != 0.5
    # Sums of the same weights in another order differ in the last bits: that is no preference.
    sign = np.sign(np.round(log_odds[decided], 9))
    return proportion(int(np.sum(sign == np.where(y[decided] == 1, 1, -1))), int(decided.sum()))
