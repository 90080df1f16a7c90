"""Gold-anchored labels: against numeric integrals, by their symmetries, and on panels whose errors are shared."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from scipy.integrate import dblquad
from scipy.optimize import approx_fprime
from scipy.special import expit, logit

from judges.aggregation.mean import MeanPreference
from judges.aggregation.nonnegative import fit_weights
from judges.aggregation.stacked import StackedJudges, best_temperature, left_out, likeness, posterior
from store.errors import UsageError
from store.schemas import GOLD, VOTES


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


def labels(method: StackedJudges, votes: pa.Table) -> np.ndarray:
    return method.predict(votes)["p_a"].to_numpy()


def test_nonnegative_weights_are_where_the_slope_is_zero() -> None:
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


def test_the_posterior_and_its_evidence_are_those_of_the_integral() -> None:
    """Against a numeric integral over both weights; the evidence leaves out what all models share."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=(25, 2))
    y = (rng.random(25) < expit(x @ np.array([1.0, 0.3]))).astype(float)
    y[0] = 0.5
    found = []
    for strength, ridge in ((1.0, 2.0), (4.0, 0.5)):
        alike = likeness(x)
        precision = ridge * np.linalg.inv(alike)

        def joint(b: float, a: float, strength: float = strength, precision: np.ndarray = precision) -> float:
            w = np.array([a, b])
            z = x @ w
            apart = w - strength / 2
            prior = -apart @ precision @ apart / 2 + np.linalg.slogdet(precision / (2 * np.pi))[1] / 2
            return float(np.exp(np.sum(y * z - np.logaddexp(0, z)) + prior + 15))

        whole = dblquad(joint, -6, 9, -6, 9, epsabs=1e-7)[0]
        mean = dblquad(lambda b, a: a * joint(b, a), -6, 9, -6, 9, epsabs=1e-7)[0] / whole
        model = posterior(x, y, alike, strength, ridge)
        # Laplace's method is exact only for a Gaussian; its maximum and mean differ a little.
        assert model.mean[0] == pytest.approx(mean, abs=0.15)
        found.append((model.log_evidence, np.log(whole)))
    assert found[0][0] - found[1][0] == pytest.approx(found[0][1] - found[1][1], abs=0.1)


def test_judges_that_vote_alike_are_taken_to_deserve_alike() -> None:
    rng = np.random.default_rng(5)
    x = rng.normal(size=(300, 3))
    x[:, 1] = x[:, 0] + 0.1 * rng.normal(size=300)
    alike = likeness(x)
    assert np.trace(alike) == pytest.approx(3)
    assert alike[0, 1] > 0.8
    assert abs(alike[0, 2]) < 0.2
    assert likeness(np.zeros((4, 3))) == pytest.approx(np.eye(3))


def test_without_gold_the_winner_is_that_of_the_mean_log_odds_and_the_label_is_held_back() -> None:
    odds = np.random.default_rng(7).normal(size=(50, 3)) * 3
    method = StackedJudges().fit(votes_of(odds))
    found = labels(method, votes_of(odds))
    assert np.all((found > 0.5) == (np.clip(odds, -logit(0.98), logit(0.98)).mean(1) > 0))
    assert np.all(np.abs(logit(found)) < np.abs(odds).max(axis=1))
    assert method.weights == {}
    assert labels(StackedJudges(), votes_of(odds)) == pytest.approx(found), "never fitted is fitted without gold"
    faint = labels(StackedJudges(), votes_of(odds / 100))
    assert np.abs(faint - 0.5).max() < 0.03, "votes near one half are not blown up where nothing is known"


def test_the_label_mirrors_when_a_and_b_change_places() -> None:
    rng = np.random.default_rng(1)
    odds = rng.normal(size=(30, 3))
    bias = np.array([0.5, -0.3, 1.0])
    gold = gold_of(["a" if value > 0 else "b" for value in odds[:, 0]])
    method = StackedJudges().fit(votes_of(odds, bias), gold)
    there, back = labels(method, votes_of(odds, bias)), labels(method, votes_of(-odds, bias))
    assert there + back == pytest.approx(1.0, abs=1e-12)
    mirrored = StackedJudges().fit(votes_of(-odds, bias), gold_of(["b" if value > 0 else "a" for value in odds[:, 0]]))
    assert labels(mirrored, votes_of(-odds, bias)) == pytest.approx(back, abs=1e-9), "learning mirrors too"


def test_opposite_votes_are_an_exact_tie() -> None:
    odds = np.array([[2.0, 2.0], [-1.0, 3.0], [1.0, 1.0]])
    votes = votes_of(odds, np.array([50.0, 50.0]))
    found = labels(StackedJudges().fit(votes, gold_of(["a", "b", "a"])), votes)
    assert found.tolist() == [0.5, 0.5, 0.5], "each judge says only the first slot, whatever stands there"


def test_it_is_deterministic_and_the_order_of_rows_does_not_matter() -> None:
    rng = np.random.default_rng(8)
    odds = rng.normal(size=(60, 4))
    votes, gold = votes_of(odds), gold_of(["a" if value > 0 else "b" for value in odds.sum(1)])
    first = labels(StackedJudges().fit(votes, gold), votes)
    assert np.array_equal(first, labels(StackedJudges().fit(votes, gold), votes))
    shuffled = votes.take(pa.array(rng.permutation(votes.num_rows)))
    turned = labels(StackedJudges().fit(shuffled, gold.take(pa.array(rng.permutation(60)))), shuffled)
    assert turned == pytest.approx(first, abs=1e-9)


@pytest.mark.parametrize("pairs", [0, 1, 5, 20, 100])
def test_any_number_of_gold_pairs_gives_finite_labels_of_every_pair(pairs: int) -> None:
    rng = np.random.default_rng(9)
    odds = rng.normal(size=(120, 3)) * 2
    gold = gold_of(["a"] * 120).slice(0, pairs)
    method = StackedJudges().fit(votes_of(odds), gold)
    found = labels(method, votes_of(odds))
    assert len(found) == 120
    assert np.all((found > 0) & (found < 1))
    assert method.gold_pairs == pairs


def test_separable_gold_and_ties_stay_finite() -> None:
    odds = np.array([[4.0], [-4.0], [0.0]])
    found = labels(StackedJudges().fit(votes_of(odds), gold_of(["a", "b", "tie"])), votes_of(odds))
    assert np.isfinite(found).all()
    assert found[0] == pytest.approx(1 - found[1])
    assert 0.8 < found[0] < 0.999
    assert found[2] == 0.5


def test_an_inverted_judge_is_read_the_other_way_round() -> None:
    rng = np.random.default_rng(2)
    truth = np.sign(rng.normal(size=80))
    odds = np.stack([truth * 1.5 + rng.normal(size=80), -truth * 1.5 + rng.normal(size=80)], 1)
    method = StackedJudges().fit(votes_of(odds), gold_of(["a" if t > 0 else "b" for t in truth]))
    assert method.weights["f1"] < -0.3
    assert method.weights["f0"] > 0.3


def test_soft_answers_of_people_are_learned_from() -> None:
    odds = np.array([[2.0], [-2.0], [1.0], [0.5]])
    answers = pa.table({"pair_id": [f"{i:05d}" for i in range(4)], "p_a": [1.0, 0.0, 0.75, 0.5]})
    assert StackedJudges().fit(votes_of(odds), answers).gold_pairs == 4
    wrong = answers.set_column(1, "p_a", pa.array([1.0, 0.0, 1.5, 0.5]))
    with pytest.raises(UsageError, match="00002"):
        StackedJudges().fit(votes_of(odds), wrong)
    with pytest.raises(UsageError, match="more than one answer to pair 00000"):
        StackedJudges().fit(votes_of(odds), pa.concat_tables([answers, answers]))
    with pytest.raises(UsageError, match="'left'"):
        StackedJudges().fit(votes_of(odds), pa.table({"pair_id": ["00000"], "winner": ["left"]}))


def test_gold_of_other_pairs_is_as_none() -> None:
    odds = np.random.default_rng(4).normal(size=(5, 2))
    elsewhere = pa.table({"pair_id": ["q1", "q2"], "winner": ["a", "b"]})
    method = StackedJudges().fit(votes_of(odds), elsewhere)
    assert method.gold_pairs == 0
    assert labels(method, votes_of(odds)) == pytest.approx(labels(StackedJudges(), votes_of(odds)))


def test_another_fingerprint_is_another_judge() -> None:
    """A judge inverted on the gold keeps nothing of it once its prompt, and so its fingerprint, has changed."""
    rng = np.random.default_rng(6)
    odds = rng.normal(size=(60, 2)) * 2
    method = StackedJudges().fit(votes_of(odds), gold_of(["b" if row.sum() > 0 else "a" for row in odds]))
    new = votes_of(np.array([[2.0, 2.0]]))
    renamed = new.set_column(
        new.schema.get_field_index("fingerprint"), VOTES.schema.field("fingerprint"), pa.array(["n0", "n0", "n1", "n1"])
    )
    assert labels(method, new)[0] < 0.3
    assert labels(method, renamed)[0] > 0.6


def test_a_judge_without_a_valid_vote_adds_nothing() -> None:
    rng = np.random.default_rng(12)
    odds = rng.normal(size=(40, 2)) * 2
    gold = gold_of(["a" if row.sum() > 0 else "b" for row in odds])
    method = StackedJudges().fit(votes_of(odds), gold)
    votes = votes_of(np.array([[1.0, 2.0]]))
    failed = votes.set_column(
        votes.schema.get_field_index("status"), "status", pa.array(["scored", "scored", "error", "error"])
    )
    assert method.predict(failed)["n_votes"].to_pylist() == [2]
    assert labels(method, failed)[0] == pytest.approx(labels(method, votes_of(np.array([[1.0]])))[0])
    nothing = votes.set_column(votes.schema.get_field_index("status"), "status", pa.array(["error"] * 4))
    assert method.predict(nothing).num_rows == 0
    assert StackedJudges().predict(nothing).num_rows == 0


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
            float(np.mean((table["p_a"].to_numpy() > 0.5) == (truth[20:] > 0)))
            for table in (method.predict(held), MeanPreference().fit(held).predict(held))
        ]
        gains.append(right[0] - right[1])
    assert np.mean(gains) > 0.1
    assert min(gains) > 0.0


def test_what_is_left_out_is_predicted_as_by_a_fit_without_it() -> None:
    rng = np.random.default_rng(11)
    x = rng.normal(size=(30, 2))
    y = (rng.random(30) < expit(x @ [1.5, 0.5])).astype(float)
    found = left_out(x, y, posterior(x, y, np.eye(2), 2.0, 1.0))
    for i in range(30):
        rest = np.arange(30) != i
        model = posterior(x[rest], y[rest], np.eye(2), 2.0, 1.0)
        variance = x[i] @ model.covariance @ x[i]
        p = expit(x[i] @ model.mean / np.sqrt(1 + np.pi / 8 * variance))
        assert (1 + found[i]) / 2 == pytest.approx(p, abs=0.02)


@pytest.mark.parametrize("true", [0.7, 1.0, 1.5])
def test_temperature_of_log_odds_that_are_too_large_or_small(true: float) -> None:
    rng = np.random.default_rng(12)
    odds = rng.normal(0, 2, 20_000)
    y = (rng.random(20_000) < expit(odds / true)).astype(float)
    assert best_temperature(np.tanh(odds / 2), y) == pytest.approx(true, rel=0.05)


def test_a_handful_of_answers_hardly_moves_the_temperature() -> None:
    assert best_temperature(np.full(3, 0.5), np.ones(3)) == pytest.approx(1, abs=0.15)
    assert best_temperature(np.zeros(0), np.zeros(0)) == 1.0
