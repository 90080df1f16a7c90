"""Intervals and calibration error of the reward model's report, against slow or simulated references."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rlhf import reward_metrics
from store.statistics import wilson


def simulated(seed: int, prompts: int, pairs: int, spread: float) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    """(differences, labels, prompts): each prompt shifts the differences of all its pairs by the same amount."""
    generator = torch.Generator().manual_seed(seed)
    shift = torch.randn(prompts, 1, generator=generator) * spread
    gap = (0.7 + shift + torch.randn(prompts, pairs, generator=generator)).flatten()
    return gap, torch.full((prompts * pairs,), 0.8), [f"p{index // pairs}" for index in range(prompts * pairs)]


def test_pairs_of_their_own_have_wilsons_interval() -> None:
    gap = torch.tensor([1.0] * 60 + [-1.0] * 40)
    found = reward_metrics.accuracy(gap, torch.full((100,), 0.9))
    # 99 degrees of freedom make the sampling variance 1 % larger than p (1 - p) / n.
    assert (found["low"], found["high"]) == pytest.approx(wilson(0.6 * 99, 99), abs=1e-9)


def test_the_same_prompt_four_times_is_one_observation() -> None:
    gap, labels, names = simulated(0, 80, 1, 1.0)
    once = reward_metrics.accuracy(gap, labels, names)
    four = reward_metrics.accuracy(gap.repeat(4), labels.repeat(4), names * 4)
    assert (four["low"], four["high"]) == pytest.approx((once["low"], once["high"]), abs=1e-9)
    assert four["n"] == 320
    for measure in (reward_metrics.log_loss_interval, reward_metrics.calibration_error):
        one, more = measure(gap, labels, clusters=names), measure(gap.repeat(4), labels.repeat(4), clusters=names * 4)
        assert (more["low"], more["high"]) == pytest.approx((one["low"], one["high"]), abs=1e-9)


@pytest.mark.parametrize("measure", ["accuracy", "log_loss"])
def test_intervals_cover_the_truth(measure: str) -> None:
    """Of clustered pairs, 95 % intervals hold the value of a very large sample in about 95 % of 300 draws."""

    def value(gap: torch.Tensor, labels: torch.Tensor, names: list[str] | None) -> dict[str, float]:
        found = reward_metrics.accuracy if measure == "accuracy" else reward_metrics.log_loss_interval
        return found(gap, labels, clusters=names)

    truth = value(*simulated(1, 40_000, 5, 1.0)[:2], None)["mean"]
    found = [value(*simulated(seed, 40, 5, 1.0)) for seed in range(2, 302)]
    covered = np.mean([row["low"] <= truth <= row["high"] for row in found])
    assert 0.91 <= covered <= 0.98
    naive = [value(*simulated(seed, 40, 5, 1.0)[:2], None) for seed in range(2, 302)]
    assert np.mean([row["low"] <= truth <= row["high"] for row in naive]) < 0.88


def test_calibration_error_by_hand() -> None:
    gap = torch.logit(torch.tensor([0.75, 0.75, 0.95], dtype=torch.float64))
    labels = torch.tensor([0.9, 0.8, 0.95], dtype=torch.float64)
    found = reward_metrics.calibration_error(gap, labels)
    # Bins 0.7..0.8 (twice 0.75 against 0.85) and its mirror; 0.95 is right.
    assert found["mean"] == pytest.approx(2 / 3 * 0.1)
    assert found["n"] == 3
    perfect = reward_metrics.calibration_error(gap, torch.sigmoid(gap))
    assert perfect["mean"] == pytest.approx(0, abs=1e-12)
    assert reward_metrics.calibration_error(gap[:0], labels[:0])["mean"] is None


def test_length_slope_interval_is_the_sandwich() -> None:
    generator = np.random.default_rng(0)
    x, names = generator.normal(size=60), [f"p{index // 3}" for index in range(60)]
    y = 0.3 * x + generator.normal(size=60)
    found = reward_metrics.length_slope_interval(torch.tensor(y), torch.tensor(x), names)
    slope = (x @ y) / (x @ x)
    score = [sum(x[i] * (y[i] - slope * x[i]) for i in range(60) if names[i] == name) for name in sorted(set(names))]
    error = (20 / 19 * sum(s * s for s in score)) ** 0.5 / (x @ x)
    assert found["mean"] == pytest.approx(slope)
    assert found["high"] - found["mean"] == pytest.approx(2.0930240544 * error)  # t quantile, 19 degrees of freedom
    assert reward_metrics.length_slope_interval(torch.ones(2), torch.zeros(2))["mean"] is None


def test_a_single_prompt_has_no_interval() -> None:
    gap, labels = torch.tensor([1.0, 2.0]), torch.tensor([0.9, 0.9])
    assert reward_metrics.log_loss_interval(gap, labels, ["p", "p"])["low"] is None
    assert reward_metrics.calibration_curve(gap, labels, clusters=["p", "p"])[0]["observed_low"] is None
