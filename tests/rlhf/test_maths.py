"""KL, rewards, advantages and losses against closed forms and slow loops. CHECKS: 7-13, 18, 19, 22, 23."""

from __future__ import annotations

import math

import pytest
import torch

from rlhf.advantages import gae, grpo, masked_mean, masked_whiten, rloo
from rlhf.kl import KLController, kl_estimate
from rlhf.losses import bradley_terry_loss, policy_loss, value_loss
from rlhf.rewards import (
    Responses,
    add_terms,
    missing_stop,
    over_length,
    shape_scores,
    token_rewards,
    whiten_keeping_mean,
)
from rlhf.sequences import length_mask


def test_kl_estimators_have_the_analytic_mean_and_sign() -> None:
    p, q = torch.tensor([0.5, 0.3, 0.2]).double(), torch.tensor([0.4, 0.25, 0.35]).double()
    true = float((p * (p / q).log()).sum())
    samples = torch.multinomial(p, 400_000, replacement=True, generator=torch.Generator().manual_seed(0))
    log_p, log_q = p.log()[samples], q.log()[samples]
    k1, k2, k3 = (kl_estimate(log_p, log_q, name) for name in ("k1", "k2", "k3"))
    assert k1.min() < 0
    assert k2.min() >= 0
    assert k3.min() >= 0
    assert float(k1.mean()) == pytest.approx(true, abs=0.003)
    assert float(k3.mean()) == pytest.approx(true, abs=0.003)
    assert float(k2.mean()) == pytest.approx(float((p * (p / q).log().square()).sum() / 2), abs=0.003)
    assert k3.var() < k1.var()


def test_kl_in_the_reward_carries_no_gradient() -> None:
    logprobs = torch.randn(3, requires_grad=True)
    assert not any(kl_estimate(logprobs, torch.randn(3), name).requires_grad for name in ("k1", "k2", "k3"))


def test_adaptive_controller_by_hand() -> None:
    controller = KLController(0.1, target=6.0, horizon=1000)
    controller.update(12.0, 100)  # error 1 -> 0.2; 0.1 * (1 + 0.2 * 0.1)
    assert controller.coefficient == pytest.approx(0.102)
    controller.update(5.4, 50)  # error -0.1; * (1 - 0.1 * 0.05)
    assert controller.coefficient == pytest.approx(0.102 * 0.995)
    controller.update(0.0, 1000)  # error -1 -> -0.2
    assert controller.coefficient == pytest.approx(0.102 * 0.995 * 0.8)
    fixed = KLController(0.1)
    fixed.update(100.0, 1000)
    assert fixed.coefficient == 0.1


def test_rewards_of_a_row_sum_to_score_minus_beta_kl() -> None:
    lengths, kl = torch.tensor([3, 1, 5]), torch.randn(3, 5)
    scores = torch.tensor([1.0, -2.0, 0.5])
    rewards = token_rewards(scores, kl, lengths, 0.3)
    mask = length_mask(lengths)
    torch.testing.assert_close(rewards.sum(1), scores - 0.3 * (kl * mask).sum(1))
    assert (rewards[~mask] == 0).all()
    for row, length in enumerate(lengths.tolist()):
        torch.testing.assert_close(rewards[row, length - 1], scores[row] - 0.3 * kl[row, length - 1])


def test_scores_are_clipped_then_whitened_then_the_terms_added() -> None:
    scores, finished = torch.tensor([20.0, -20.0, 1.0, 3.0]), torch.tensor([True, True, False, True])
    assert shape_scores(scores, clip=10).tolist() == [10, -10, 1, 3]
    about = Responses([], [], torch.tensor([3, 9, 7, 6]), finished)
    terms = {"missing_stop": missing_stop(5.0)(about), "length": over_length(6, 0.5)(about)}
    assert terms["missing_stop"].tolist() == [0, 0, -5, 0]
    assert terms["length"].tolist() == [0, -1.5, -0.5, 0]  # 3 and 1 tokens beyond the 6
    assert add_terms(shape_scores(scores, clip=10), terms).tolist() == [10, -11.5, -4.5, 3]
    white = shape_scores(scores, whiten=True)
    torch.testing.assert_close(white.mean(), scores.mean())
    assert float(white.std(unbiased=False)) == pytest.approx(1, abs=1e-4)


def test_a_term_that_measured_nothing_gives_nothing() -> None:
    shaped = add_terms(torch.tensor([1.0, 2.0]), {"rule": torch.tensor([float("nan"), -0.5])})
    assert shaped.tolist() == [1.0, 1.5]


def test_whitening_rewards_keeps_the_mean_and_survives_equal_rewards() -> None:
    torch.testing.assert_close(whiten_keeping_mean(torch.full((4,), 7.0)), torch.full((4,), 7.0))


def reference_gae(rewards: list[float], values: list[float], gamma: float, lam: float) -> list[float]:
    """The definition: A_t = sum_l (gamma lambda)^l delta_{t+l}, delta_t = r_t + gamma V_{t+1} - V_t, in O(T^2)."""
    padded = [*values, 0.0]
    deltas = [rewards[t] + gamma * padded[t + 1] - values[t] for t in range(len(rewards))]
    return [sum((gamma * lam) ** (k - t) * deltas[k] for k in range(t, len(deltas))) for t in range(len(deltas))]


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5), (1.0, 0.0), (0.99, 1.0)])
def test_gae_equals_the_definition(gamma: float, lam: float) -> None:
    torch.manual_seed(0)
    lengths = torch.tensor([4, 1, 7])
    rewards, values = torch.randn(3, 7).double(), torch.randn(3, 7).double()
    advantages, returns = gae(rewards, values, length_mask(lengths), gamma, lam)
    for row, length in enumerate(lengths.tolist()):
        expected = reference_gae(rewards[row, :length].tolist(), values[row, :length].tolist(), gamma, lam)
        torch.testing.assert_close(advantages[row, :length], torch.tensor(expected).double())
        torch.testing.assert_close(returns[row, :length], advantages[row, :length] + values[row, :length])
        assert (advantages[row, length:] == 0).all()


def test_gae_with_lambda_one_is_return_minus_value() -> None:
    torch.manual_seed(0)
    rewards, values, mask = torch.randn(2, 5), torch.randn(2, 5), length_mask([5, 3])
    advantages, returns = gae(rewards, values, mask, 1.0, 1.0)
    to_go = (rewards * mask).flip(1).cumsum(1).flip(1)
    torch.testing.assert_close(advantages, (to_go - values) * mask)
    torch.testing.assert_close(returns, to_go * mask)


def test_garbage_behind_the_end_changes_nothing() -> None:
    torch.manual_seed(0)
    rewards, values, mask = torch.randn(2, 6), torch.randn(2, 6), length_mask([4, 2], 6)
    dirty = [torch.where(mask, value, torch.full_like(value, 1e6)) for value in (rewards, values)]
    for clean, spoilt in zip(gae(rewards, values, mask, 1.0, 0.95), gae(*dirty, mask, 1.0, 0.95), strict=True):
        torch.testing.assert_close(clean, spoilt)
    torch.testing.assert_close(masked_whiten(values, mask), masked_whiten(dirty[1], mask))
    torch.testing.assert_close(masked_mean(values, mask), masked_mean(dirty[1], mask))


def test_rloo_and_grpo_by_hand() -> None:
    rewards = torch.tensor([1.0, 2.0, 6.0, 5.0, 5.0, 5.0])
    torch.testing.assert_close(rloo(rewards, 3), torch.tensor([-3.0, -1.5, 4.5, 0.0, 0.0, 0.0]))
    centred = torch.tensor([-2.0, -1.0, 3.0]) / (math.sqrt(7) + 1e-4)
    torch.testing.assert_close(grpo(rewards, 3), torch.cat([centred, torch.zeros(3)]))


@pytest.mark.parametrize(
    ("advantage", "ratio", "expected", "clipped"),
    [
        (1.0, 1.1, -1.1, 0),
        (1.0, 1.5, -1.2, 1),  # a gain is capped
        (1.0, 0.5, -0.5, 0),  # a loss is not
        (-1.0, 1.5, 1.5, 0),
        (-1.0, 0.5, 0.8, 1),
        (-1.0, 0.9, 0.9, 0),
    ],
)
def test_policy_loss_by_hand(advantage: float, ratio: float, expected: float, clipped: int) -> None:
    old = torch.tensor([-1.0])
    new = (old + math.log(ratio)).requires_grad_()
    result = policy_loss(new, old, torch.tensor([advantage]), 0.2)
    result.loss.backward()
    assert float(result.loss) == pytest.approx(expected, abs=1e-6)
    assert int(result.clipped) == clipped
    assert (float(new.grad[0]) == 0) == bool(clipped)
    assert float(result.kl) == pytest.approx(ratio - 1 - math.log(ratio), abs=1e-6)


@pytest.mark.parametrize(
    ("value", "old", "target", "expected"),
    [
        (1.0, 0.0, 2.0, 0.5 * 1.8**2),  # clipped to 0.2: the larger loss counts
        (0.1, 0.0, 2.0, 0.5 * 1.9**2),  # inside the range
        (1.0, 0.0, -1.0, 0.5 * 2.0**2),  # clipped loss is smaller: the plain one counts
        (-1.0, 0.0, -2.0, 0.5 * 1.8**2),
    ],
)
def test_value_loss_takes_the_larger(value: float, old: float, target: float, expected: float) -> None:
    loss = value_loss(torch.tensor([value]), torch.tensor([old]), torch.tensor([target]), 0.2)
    assert float(loss) == pytest.approx(expected, abs=1e-6)


def test_bradley_terry_is_finite_at_large_margins() -> None:
    chosen = torch.tensor([200.0, -200.0], requires_grad=True)
    loss = bradley_terry_loss(chosen, torch.zeros(2), torch.ones(2))
    torch.testing.assert_close(loss, torch.tensor([0.0, 200.0]))
    loss.sum().backward()
    assert chosen.grad.isfinite().all()


def test_soft_labels() -> None:
    a, b = torch.tensor([0.3], requires_grad=True), torch.tensor([0.3], requires_grad=True)
    bradley_terry_loss(a, b, torch.tensor([0.5])).sum().backward()
    assert float(a.grad) == float(b.grad) == 0
    x, y = torch.randn(9), torch.randn(9)
    p = torch.rand(9)
    hard = -torch.log(torch.sigmoid(x.double() - y.double()))
    torch.testing.assert_close(bradley_terry_loss(x, y, torch.ones(9)).double(), hard, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(bradley_terry_loss(x, y, p), bradley_terry_loss(y, x, 1 - p))
    soft = -(p * torch.log(torch.sigmoid(x - y)) + (1 - p) * torch.log(torch.sigmoid(y - x)))
    torch.testing.assert_close(bradley_terry_loss(x, y, p), soft)


def test_smoothing_margin_and_centering() -> None:
    x, y, p = torch.randn(5), torch.randn(5), torch.rand(5)
    smoothed = bradley_terry_loss(x, y, p, label_smoothing=0.1)
    torch.testing.assert_close(smoothed, bradley_terry_loss(x, y, 0.9 * p + 0.1 * (1 - p)))
    torch.testing.assert_close(bradley_terry_loss(x, y, p, margin=0.5), bradley_terry_loss(x - 0.5, y, p))
    centred = bradley_terry_loss(x, y, p, centering=2.0) - bradley_terry_loss(x, y, p)
    torch.testing.assert_close(centred, 2 * ((x + y) / 2) ** 2)
