"""The guardrails' decisions, by hand and by simulation."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
from scipy import stats

from rlhf.config import Monitors, PPOConfig
from rlhf.ppo.guard import Guard, Look, comparisons, paired
from rlhf.ppo.monitors import drifts, passed


def config_of(**probe: Any) -> PPOConfig:
    return PPOConfig.model_validate({"updates": 40, "probe": {"every": 10, **probe}})


def look(update: int, win: float, score: float, noise: float = 0.05, count: int = 64) -> Look:
    """`count` prompts around a win rate and a score, the prompts' own offsets the same in every look."""
    offsets = [noise * math.sin(3 * index) for index in range(count)]
    jitter = [noise * math.sin(7 * index + update) for index in range(count)]
    wins: list[float | None] = [win + a + b for a, b in zip(offsets, jitter, strict=True)]
    return Look(update, win, wins, [score + 10 * a + b for a, b in zip(offsets, jitter, strict=True)])


def test_decisions_by_hand() -> None:
    config, guard = config_of(patience=2), Guard()
    assert guard.look(look(0, 0.5, 0.0), config) == (True, None)
    assert guard.look(look(10, 0.7, 1.0), config) == (True, None)
    assert guard.look(look(20, 0.6, 0.9), config) == (False, None)  # judges fell, but so did the reward
    assert guard.falling == 0
    assert guard.look(look(30, 0.695, 2.0), config) == (False, None)  # a fall within the noise
    assert guard.falling == 0
    assert guard.look(look(40, 0.6, 2.0), config) == (False, None)
    assert guard.falling == 1
    best, stop = guard.look(look(50, 0.6, 2.0), config)
    assert not best
    assert stop is not None
    assert "since update 10 the judges' win rate fell by 0.098" in stop
    assert guard.over_budget(21, 3, config) is not None
    assert guard.over_budget(19, 3, config) is None


def test_a_tolerated_fall_is_no_fall() -> None:
    for tolerance, stops in ((0.05, True), (0.2, False)):
        config, guard = config_of(tolerance=tolerance), Guard()
        guard.look(look(0, 0.7, 0.0), config)
        assert (guard.look(look(10, 0.55, 1.0), config)[1] is not None) == stops


def test_without_judges_nothing_is_over_optimised() -> None:
    config, guard = config_of(), Guard()
    assert guard.look(Look(0, 1.0, None, [1.0] * 8), config) == (True, None)
    assert guard.look(Look(10, 0.2, None, [9.0] * 8), config) == (False, None)


def test_prompts_that_one_look_could_not_judge_are_left_out() -> None:
    interval = paired([0.9, None, 0.5, 0.1], [0.5, 0.5, None, 0.5], 0.9)
    assert interval["n"] == 2
    assert interval["mean"] == pytest.approx(0.0)
    wins: list[float | None] = [0.9, 0.2, 0.6, 0.7, 0.4]
    then: list[float | None] = [0.5, 0.1, 0.9, 0.2, 0.3]
    expected = stats.ttest_rel(wins, then).confidence_interval(0.9)
    interval = paired(wins, then, 0.9)
    assert (interval["low"], interval["high"]) == pytest.approx((expected.low, expected.high))


def test_pairs_of_probes() -> None:
    assert comparisons(config_of()) == 10  # probes at 0, 10, 20, 30, 40
    assert comparisons(config_of(every=15)) == 6  # at 0, 15, 30 and the end, 40
    assert comparisons(PPOConfig.model_validate({"probe": {"every": 0}})) == 1


def alarms(drift: float, runs: int, patience: int = 1) -> float:
    """The share of runs of 9 probes that are stopped, where the win rate falls by `drift` a probe after the second, and
    single judgments are nearly coin tosses. The reward rises all the time."""
    config = PPOConfig.model_validate({"updates": 80, "probe": {"every": 10, "prompts": 48, "patience": patience}})
    generator = random.Random(1)
    stopped = 0
    for _ in range(runs):
        guard = Guard()
        for number in range(9):
            mean = 0.6 - drift * max(0, number - 1)
            wins: list[float | None] = [float(generator.random() < mean) for _ in range(48)]
            scores = [number + generator.gauss(0, 1) for _ in range(48)]
            value = sum(win for win in wins if win is not None) / 48
            if guard.look(Look(10 * number, value, wins, scores), config)[1]:
                stopped += 1
                break
    return stopped / runs


def test_noise_rarely_stops_a_run_and_a_real_fall_does() -> None:
    """36 pairs of probes, the best picked by luck: an unadjusted test would stop far more than one run in 20."""
    assert alarms(0.0, 300) <= 0.05
    assert alarms(0.08, 100) >= 0.9


def test_monitors_by_hand() -> None:
    first = {"response_length": 10.0, "reference_perplexity": 4.0}
    assert drifts({"response_length": 25.0, "reference_perplexity": 2.0}, first) == {
        "length_drift": 2.5,
        "perplexity_drift": 0.5,
    }
    row = {"update": 7, "repetition": 0.6, "length_drift": 3.5, "perplexity_drift": 1.0, "kl_budget_used": 0.1}
    found, stop = passed(row, Monitors())
    assert found == {
        "repetition": "repetition: 0.6 at update 7, the limit is 0.5",
        "length_drift": "length_drift: 3.5 at update 7, the limit is 3",
    }
    assert stop is None
    strict = Monitors.model_validate({"length_drift": {"at": 3, "action": "stop"}, "repetition": None})
    assert passed(row, strict) == ({"length_drift": found["length_drift"]}, found["length_drift"])
