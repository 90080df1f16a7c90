"""Gold-anchored weights: against scikit-free closed forms, and on simulated panels whose errors are shared."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from scipy.optimize import approx_fprime
from scipy.special import expit, logit

from judges.aggregation.mean import MeanPreference
from judges.aggregation.stacked import StackedJudges, fit_weights, log_odds
from store.tables import GOLD, VOTES


def votes_of(p: np.ndarray, first_bias: np.ndarray | None = None) -> pa.Table:
    """Votes of judges j on pairs i with log-odds p[i, j], each order shifted by the preference for the first slot."""
    rows = []
    for i, row in enumerate(p):
        for j, odds in enumerate(row):
            for order, sign in (("ab", 1.0), ("ba", -1.0)):
                shift = 0.0 if first_bias is None else sign * first_bias[j]
                value = float(expit(odds + shift))
                rows.append(
                    {
                        "vote_id": f"{i}-{j}-{order}",
                        "pair_id": f"{i:05d}",
                        "prompt_id": "p",
                        "rollout_a": "a",
                        "rollout_b": "b",
                        "judge": f"judge-{j}",
                        "fingerprint": f"f{j}",
                        "order": order,
                        "status": "scored",
                        "tokens_in": 0,
                        "tokens_out": 0,
                        "cost": 0.0,
                        "latency_s": 0.0,
                        "attempts": 1,
                        "winner": "a" if value > 0.5 else "b",
                        "p_a": value,
                        "mass": 1.0,
                    }
                )
    return pa.Table.from_pylist(rows, schema=VOTES.schema)


def gold_of(winners: list[str]) -> pa.Table:
    names = ["prompt_id", "prompt", "rollout_a", "rollout_b", "response_a", "response_b", "group", "split"]
    rows = [{**dict.fromkeys(names, "x"), "pair_id": f"{i:05d}", "winner": w} for i, w in enumerate(winners)]
    return pa.Table.from_pylist(rows, schema=GOLD.schema)


def test_the_minimum_is_where_the_slope_is_zero() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, 3)), rng.integers(0, 2, 40).astype(float)
    w = fit_weights(x, y, 0.7)

    def slow(v: np.ndarray) -> float:
        p = [1 / (1 + np.exp(-sum(a * b for a, b in zip(v, row, strict=True)))) for row in x]
        loss = -sum(t * np.log(q) + (1 - t) * np.log(1 - q) for t, q in zip(y, p, strict=True))
        return loss + 0.35 * sum((a - 1 / 3) ** 2 for a in v)

    slope = approx_fprime(w, slow, 1e-6)
    assert np.all(slope[w > 1e-6] == pytest.approx(0, abs=1e-3))
    assert np.all(slope[w <= 1e-6] >= -1e-3)


def test_a_preference_for_a_slot_cancels() -> None:
    odds = np.array([[0.5, -1.0], [1.5, 0.3]])
    _, _, plain = log_odds(votes_of(odds))
    _, _, biased = log_odds(votes_of(odds, np.array([0.0, 2.0])))
    assert biased == pytest.approx(plain)
    assert plain == pytest.approx(odds)


def test_without_gold_it_is_the_mean_of_log_odds() -> None:
    odds = np.array([[1.0, -0.5], [0.2, 0.4]])
    labels = StackedJudges().fit(votes_of(odds)).predict(votes_of(odds))
    assert labels["p_a"].to_pylist() == pytest.approx(expit(odds.mean(1)).tolist())


def test_the_label_mirrors_when_a_and_b_change_places() -> None:
    rng = np.random.default_rng(1)
    odds = rng.normal(size=(30, 3))
    gold = gold_of(["a" if value > 0 else "b" for value in odds[:, 0]])
    method = StackedJudges().fit(votes_of(odds), gold)
    there = method.predict(votes_of(odds))["p_a"].to_numpy()
    back = method.predict(votes_of(-odds))["p_a"].to_numpy()
    assert there + back == pytest.approx(1.0)


def test_separable_gold_and_ties_stay_finite() -> None:
    odds = np.array([[4.0], [-4.0], [0.0]])
    method = StackedJudges().fit(votes_of(odds), gold_of(["a", "b", "tie"]))
    labels = method.predict(votes_of(odds))["p_a"].to_numpy()
    assert np.isfinite(labels).all()
    assert labels[0] > 0.95
    assert labels[2] == pytest.approx(0.5)


def test_an_inverted_judge_gets_no_weight() -> None:
    rng = np.random.default_rng(2)
    truth = np.sign(rng.normal(size=80))
    odds = np.stack([truth * 1.5 + rng.normal(size=80), -truth * 1.5 + rng.normal(size=80)], 1)
    method = StackedJudges().fit(votes_of(odds), gold_of(["a" if t > 0 else "b" for t in truth]))
    assert method.weights["f1"] == pytest.approx(0.0)
    assert method.weights["f0"] > 0.5


def test_a_judge_without_a_valid_vote_adds_nothing() -> None:
    odds = np.array([[1.0, 2.0]])
    votes = votes_of(odds)
    failed = pa.array(["scored", "scored", "error", "error"])
    votes = votes.set_column(votes.schema.get_field_index("status"), "status", failed)
    labels = StackedJudges().fit(votes).predict(votes)
    assert labels["n_votes"].to_pylist() == [2]
    assert logit(labels["p_a"][0].as_py()) == pytest.approx(1.0)


def test_twenty_gold_pairs_beat_the_mean_where_judges_share_an_error() -> None:
    """One good judge, four that follow the same wrong taste; scored on pairs that were no gold, mean of 20 panels."""
    gains = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        truth = np.sign(rng.normal(size=420))
        taste = rng.normal(size=420) * 2
        good = truth * 1.2 + rng.normal(size=420)
        odds = np.stack([good, *(truth * 0.2 + taste + rng.normal(size=420) * 0.5 for _ in range(4))], 1)
        names = ["a" if t > 0 else "b" for t in truth]
        method = StackedJudges().fit(votes_of(odds[:20]), gold_of(names[:20]))
        held = votes_of(odds[20:])
        right = [
            float(np.mean((labels["p_a"].to_numpy() > 0.5) == (truth[20:] > 0)))
            for labels in (method.predict(held), MeanPreference().fit(held).predict(held))
        ]
        gains.append(right[0] - right[1])
    assert np.mean(gains) > 0.1
    assert min(gains) > 0.0
