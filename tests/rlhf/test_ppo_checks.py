"""Details of PPO that the loop's own tests leave open, against independent sources: temperature, whitening, clipping,
dropout, the entropy bonus, adaptive KL control, and the gradients of the KL estimators."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf.config import Lora
from rlhf.devices import Compute
from rlhf.kl import KLController, kl_estimate
from rlhf.memory import Budget
from rlhf.models import attach_lora, disable_dropout, snapshot, trainable
from rlhf.ppo.actors import Actors, load_actors
from rlhf.ppo.rollout import Targets, collect, targets
from rlhf.ppo.trainer import _optimizers, train
from rlhf.ppo.update import optimise
from tests.rlhf.conftest import make_gpt2, make_llama, make_tokenizer
from tests.rlhf.ppo_world import PROMPTS, budgets, config_of, count_dogs, one_batch
from tests.rlhf.test_logprobs import single


@pytest.mark.parametrize("options", [{}, {"critic": "shared"}, {"lora": {"rank": 2}}], ids=["plain", "shared", "lora"])
def test_all_logprobs_are_at_the_sampling_temperature(
    make_actors: Callable[..., Actors],
    options: dict[str, Any],
) -> None:
    config = config_of(decoding={"max_new_tokens": 6, "temperature": 0.7}, **options)
    actors = make_actors(config)
    reference = make_llama(seed=9)
    if actors.reference is not None:
        actors.reference = reference  # another model, so that a mix-up shows
    rollouts = collect(actors, PROMPTS[:8], config, 0, 0, budgets())
    for row, sample in enumerate(rollouts.samples):
        count = len(sample.response)
        ours = single(make_llama(), sample, 0.7)
        theirs = single(reference, sample, 0.7) if actors.reference is not None else ours
        torch.testing.assert_close(rollouts.logprobs[row, :count].double(), ours, atol=1e-5, rtol=0)
        torch.testing.assert_close(rollouts.reference_logprobs[row, :count].double(), theirs, atol=1e-5, rtol=0)
        assert not torch.allclose(ours, single(make_llama(), sample), atol=1e-3)


def test_returns_are_computed_before_advantages_are_whitened(make_actors: Callable[..., Actors]) -> None:
    config = config_of(whiten_advantages=False)
    actors = make_actors(config)
    rollouts, plain = one_batch(actors, config)
    white = targets(rollouts, config_of(whiten_advantages=True), config.kl.coefficient)
    assert plain.returns is not None
    torch.testing.assert_close(white.returns, plain.returns)
    torch.testing.assert_close(plain.returns, plain.advantages + rollouts.values * rollouts.mask)  # type: ignore[operator]
    real = white.advantages[rollouts.mask]
    assert float(real.mean()) == pytest.approx(0, abs=1e-5)
    assert float(real.std(unbiased=False)) == pytest.approx(1, abs=1e-3)


def test_every_step_of_an_update_is_clipped(make_actors: Callable[..., Actors]) -> None:
    config = config_of(optimisation={"learning_rate": 1e-3, "max_grad_norm": 0.05, "warmup_fraction": 0})
    actors = make_actors(config, count_dogs)
    policy, critic = _optimizers(actors, config)
    assert critic is not None
    norms: list[float] = []
    for optimizer in (policy, critic):
        optimizer.adamw.register_step_pre_hook(
            lambda adamw, *_: norms.append(
                math.sqrt(
                    sum(
                        float(p.grad.square().sum())
                        for g in adamw.param_groups
                        for p in g["params"]
                        if p.grad is not None
                    )
                )
            )
        )
    stats = optimise(actors, *one_batch(actors, config), config, policy, critic, Budget(500), 0, 0)
    assert len(norms) == 8
    assert max(norms) <= 0.05 + 1e-6
    assert stats["grad_norm"] > 0.05  # what is logged is the norm before clipping


def test_dropout_is_off_in_rollouts_and_updates(reward_folder: Path, tmp_path: Path, compute: Compute) -> None:
    make_gpt2(resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5).save_pretrained(tmp_path / "policy")
    make_tokenizer().save_pretrained(tmp_path / "policy")
    config = config_of(lora={"rank": 2, "dropout": 0.5})
    torch.manual_seed(0)
    actors = load_actors(str(tmp_path / "policy"), str(reward_folder), config, compute)
    with torch.no_grad():
        for value in trainable(actors.policy).values():
            value.add_(0.1)  # an adapter that is still zero would hide its dropout
    actors.policy.train()
    collect(actors, PROMPTS[:8], config, 0, 0, budgets())
    rollouts = collect(actors, PROMPTS[:8], config, 0, 0, budgets())
    first, _ = actors.logprobs_and_values(rollouts.samples, Budget(1000), 1.0)
    second, _ = actors.logprobs_and_values(rollouts.samples, Budget(1000), 1.0)
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
    noisy = attach_lora(make_llama(), Lora(rank=2, dropout=0.5)).train()
    assert any(isinstance(m, torch.nn.Dropout) and m.p == 0.5 for m in noisy.modules())
    disable_dropout(noisy)
    assert all(m.p == 0 for m in noisy.modules() if isinstance(m, torch.nn.Dropout))


def test_the_entropy_bonus_is_the_gradient_of_the_mean_entropy(make_actors: Callable[..., Actors]) -> None:
    """Without advantages the bonus alone is left: one step of gradient descent against a slow loop over tokens."""
    config = config_of(
        minibatches=1, epochs=1, entropy_coefficient=0.3, critic="separate", optimisation={"learning_rate": 1e-3}
    )
    actors = make_actors(config)
    rollouts, goal = one_batch(actors, config)
    policy, critic = _optimizers(actors, config)
    seen: dict[str, torch.Tensor] = {}
    policy.adamw.register_step_pre_hook(
        lambda *_: seen.update(
            {name: value.grad.clone() for name, value in trainable(actors.policy).items() if value.grad is not None}
        )
    )
    still = Targets(torch.zeros_like(goal.advantages), goal.returns, goal.shaped)
    stats = optimise(actors, rollouts, still, config, policy, critic, Budget(500), 0, 0)
    model = make_llama()
    total, count = torch.zeros(()), 0
    for sample in rollouts.samples:
        logits = model(input_ids=torch.tensor([[*sample.prompt, *sample.response]])).logits[0]
        for step in range(len(sample.response)):
            logp = torch.log_softmax(logits[len(sample.prompt) + step - 1], -1)
            total, count = total - (logp.exp() * logp).sum(), count + 1
    assert stats["policy_entropy"] == pytest.approx(float(total.detach()) / count, abs=1e-4)
    (-0.3 * total / count).backward()
    norm = math.sqrt(sum(float(p.grad.square().sum()) for p in model.parameters() if p.grad is not None))
    scale = min(1.0, 1.0 / norm)  # max_grad_norm is 1
    for name, value in trainable(model).items():
        torch.testing.assert_close(seen[name], value.grad * scale, atol=2e-5, rtol=1e-3)


def test_adaptive_control_follows_the_rows(make_actors: Callable[..., Actors], tmp_path: Path) -> None:
    kl = {"coefficient": 0.2, "target": 0.5, "horizon": 40, "budget": 1000}
    config = config_of(updates=3, kl=kl)
    result = train(make_actors(config, count_dogs), PROMPTS, config, 0, tmp_path / "c")
    by_hand = 0.2
    for row in result.rows:
        assert row["kl_coefficient"] == pytest.approx(by_hand)
        by_hand *= 1 + min(max(row["kl"] / 0.5 - 1, -0.2), 0.2) * 8 / 40
    fixed = train(make_actors(config_of()), PROMPTS, config_of(), 0, tmp_path / "d")
    assert {row["kl_coefficient"] for row in fixed.rows} == {0.05}
    assert KLController.of(config.kl).target == 0.5


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_which_estimator_in_the_reward_descends_the_kl(estimator: Any) -> None:
    """The policy gradient of -k as a reward, summed over a small vocabulary, against autograd of -KL(pi || ref)."""
    logits = torch.tensor([0.4, -0.3, 0.9, 0.1], dtype=torch.float64, requires_grad=True)
    reference = torch.log_softmax(torch.tensor([0.0, 0.5, -0.2, 0.3], dtype=torch.float64), -1)
    logp = torch.log_softmax(logits, -1)
    (true,) = torch.autograd.grad(-(logp.exp() * (logp - reference)).sum(), logits, retain_graph=True)
    reward = -kl_estimate(logp, reference, estimator)
    (found,) = torch.autograd.grad((logp.exp().detach() * reward * logp).sum(), logits)
    assert torch.allclose(found, true, atol=1e-12) == (estimator == "k1")


def test_the_policy_of_the_optimiser_is_the_policy_of_the_rollouts(
    make_actors: Callable[..., Actors],
) -> None:
    """Ratios of a second pass over the same batch describe the step taken, and are not one any more."""
    config = config_of(minibatches=1, epochs=2)
    actors = make_actors(config, count_dogs)
    before = snapshot(actors.policy)
    stats = optimise(actors, *one_batch(actors, config), config, *_optimizers(actors, config), Budget(500), 0, 0)
    assert stats["approx_kl"] > 0
    assert any(not torch.equal(value, before[name]) for name, value in snapshot(actors.policy).items())
