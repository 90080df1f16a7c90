"""The PPO loop. CHECKS: 1, 7, 13, 14, 16, 20, 21, 26, 29; critic-free estimators; LoRA."""

from __future__ import annotations

import dataclasses
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from rlhf.devices import Compute
from rlhf.forward import logprobs_of
from rlhf.memory import Budget
from rlhf.models import snapshot
from rlhf.ppo import update as update_module
from rlhf.ppo.actors import Actors, load_actors
from rlhf.ppo.critic import separate_critic, values_of
from rlhf.ppo.report import describe, repetition
from rlhf.ppo.rollout import collect, prompts_of_update, targets
from rlhf.ppo.trainer import _optimizers, train
from rlhf.ppo.update import optimise
from rlhf.reward_model import load_reward_model, score_head
from rlhf.rewards import build_terms
from rlhf.sequences import Sample
from store.errors import UsageError
from tests.rlhf.conftest import WORDS, make_tokenizer
from tests.rlhf.ppo_world import PROMPTS, budgets, config_of, count_dogs, one_batch


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("critic", ["separate", "shared"])
def test_first_pass_has_ratio_one(make_actors: Callable[..., Actors], critic: str, temperature: float) -> None:
    decoding = {"max_new_tokens": 6, "temperature": temperature}
    config = config_of(critic=critic, minibatches=1, epochs=1, decoding=decoding)
    actors = make_actors(config)
    rollouts, goal = one_batch(actors, config)
    torch.testing.assert_close(rollouts.logprobs, rollouts.reference_logprobs)
    stats = optimise(actors, rollouts, goal, config, *_optimizers(actors, config), Budget(30), 0, 0)
    assert stats["approx_kl"] == pytest.approx(0, abs=1e-7)
    assert stats["clip_fraction"] == 0
    # At ratio one the loss is minus the mean advantage, which whitening made zero.
    assert stats["policy_loss"] == pytest.approx(0, abs=1e-5)


def test_first_values_are_the_reward_models_outputs(
    make_actors: Callable[..., Actors], reward_folder: Path, compute: Compute
) -> None:
    actors = make_actors(config_of())
    reward_model = load_reward_model(str(reward_folder), compute)
    samples = [Sample([3, 7, 4], [8, 9, 2]), Sample([3, 4], [11])]
    rows = values_of(actors.critic, samples, compute, Budget(1000))  # type: ignore[arg-type]
    for sample, row in zip(samples, rows, strict=True):
        for step in range(len(sample.response)):
            prefix = Sample(sample.prompt, sample.response[:step])
            expected = reward_model.score_samples([prefix], compute, Budget(1000))
            assert float(row[step]) == pytest.approx(float(expected), abs=1e-5)


@pytest.mark.parametrize("critic", ["separate", "shared"])
def test_gradient_does_not_depend_on_the_micro_batch(make_actors: Callable[..., Actors], critic: str) -> None:
    found = []
    for tokens in (1, 40, 10_000):
        # Gradients, not weights after AdamW, which forgets a factor; unclipped for the same reason.
        slow = {"learning_rate": 1e-9, "max_grad_norm": 1e9}
        config = config_of(critic=critic, entropy_coefficient=0.01, optimisation=slow, value_learning_rate=1e-9)
        actors = make_actors(config, count_dogs)
        gradients: list[Tensor] = []
        for optimizer in filter(None, optimizers := _optimizers(actors, config)):
            optimizer.adamw.register_step_pre_hook(
                lambda adamw, *_, gradients=gradients: gradients.extend(
                    value.grad.clone() for group in adamw.param_groups for value in group["params"]
                )
            )
        optimise(actors, *one_batch(actors, config), config, *optimizers, Budget(tokens), 0, 0)
        found.append(gradients)
    for one, *others in zip(*found, strict=True):
        for other in others:
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("minibatches", "epochs"), [(1, 1), (4, 3), (8, 2)])
def test_optimizer_steps_are_epochs_times_minibatches(
    make_actors: Callable[..., Actors], minibatches: int, epochs: int
) -> None:
    config = config_of(minibatches=minibatches, epochs=epochs)
    actors = make_actors(config)
    policy, critic = _optimizers(actors, config)
    assert critic is not None
    steps: list[str] = []
    policy.adamw.register_step_pre_hook(lambda *_: steps.append("policy"))
    critic.adamw.register_step_pre_hook(lambda *_: steps.append("critic"))
    stats = optimise(actors, *one_batch(actors, config), config, policy, critic, Budget(50), 0, 0)
    assert steps.count("policy") == steps.count("critic") == minibatches * epochs == stats["optimizer_steps"]


def test_minibatches_cover_every_response_once_an_epoch(
    make_actors: Callable[..., Actors], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(minibatches=4, epochs=2)
    actors = make_actors(config)
    seen: list[list[int]] = []
    real = update_module._policy_step
    monkeypatch.setattr(update_module, "_policy_step", lambda *args: seen.append(list(args[3])) or real(*args))
    optimise(actors, *one_batch(actors, config), config, *_optimizers(actors, config), Budget(500), 0, 0)
    assert [len(members) for members in seen] == [2] * 8
    for epoch in (seen[:4], seen[4:]):
        assert sorted(index for members in epoch for index in members) == list(range(8))
    assert seen[:4] != seen[4:]


def test_kl_within_an_update_ends_its_epochs(make_actors: Callable[..., Actors]) -> None:
    config = config_of(epochs=8, max_update_kl=1e-4)
    actors = make_actors(config)
    stats = optimise(actors, *one_batch(actors, config), config, *_optimizers(actors, config), Budget(500), 0, 0)
    assert stats["stopped_early"]
    assert 1 <= stats["optimizer_steps"] < 16


@pytest.mark.parametrize("lora", [None, {"rank": 2}])
def test_reference_never_changes_and_the_policy_does(
    make_actors: Callable[..., Actors], tmp_path: Path, lora: dict[str, int] | None
) -> None:
    config = config_of(lora=lora)
    actors = make_actors(config, count_dogs)
    samples = [Sample([3, 7, 4], [8, 9, 2])]
    before = actors.reference_logprobs(samples, Budget(1000), 1.0)[0]
    policy = logprobs_of(actors.policy, samples, actors.compute, Budget(1000))[0]
    torch.testing.assert_close(before, policy)
    checksum = None if actors.reference is None else [p.detach().clone() for p in actors.reference.parameters()]
    train(actors, PROMPTS, config, 0, tmp_path / "c")
    assert torch.equal(before, actors.reference_logprobs(samples, Budget(1000), 1.0)[0])
    assert not torch.allclose(policy, logprobs_of(actors.policy, samples, actors.compute, Budget(1000))[0])
    if checksum is not None:
        assert all(torch.equal(a, b) for a, b in zip(checksum, actors.reference.parameters(), strict=True))


@pytest.mark.parametrize(
    "options",
    [
        {"critic": "separate"},
        {"critic": "shared"},
        {"advantage": "rloo", "group_size": 4},
        {"advantage": "grpo", "group_size": 4},
    ],
    ids=["separate", "shared", "rloo", "grpo"],
)
def test_every_variant_learns_a_simple_reward(
    make_actors: Callable[..., Actors], tmp_path: Path, options: dict[str, Any]
) -> None:
    config = config_of(updates=12, batch_size=32, missing_stop_penalty=0, **options)
    result = train(make_actors(config, count_dogs), PROMPTS, config, 0, tmp_path / "c")
    scores = [row["score"] for row in result.rows]
    assert len(scores) == 13
    assert result.stopped is None
    assert result.kept == 12
    assert sum(scores[-3:]) / 3 > sum(scores[:2]) / 2 + 0.15


@pytest.mark.parametrize("advantage", ["rloo", "grpo"])
def test_responses_are_compared_with_those_to_the_same_prompt(
    make_actors: Callable[..., Actors], advantage: str
) -> None:
    """A reward that depends on the prompt alone says nothing of any response."""
    config = config_of(
        advantage=advantage,
        group_size=4,
        batch_size=16,
        missing_stop_penalty=0,
        reward_clip=None,
        whiten_advantages=False,
        kl={"coefficient": 0, "budget": 1000},
    )
    actors = make_actors(config, lambda exchanges: torch.tensor([float(len(prompt)) ** 2 for prompt, _ in exchanges]))
    rollouts, goal = one_batch(actors, config)
    assert len({prompt.prompt_id for prompt in rollouts.prompts}) == 4
    assert len(set(goal.shaped.tolist())) > 1
    assert goal.advantages.abs().max() < 1e-3


def test_terms_are_added_by_name_and_counted_where_unmeasured(make_actors: Callable[..., Actors]) -> None:
    config = config_of(
        missing_stop_penalty=0,
        terms=[{"kind": "length", "budget": 2, "per_token": 0.5}, {"kind": "rule", "name": "rude", "judge": "x"}],
    )
    with pytest.raises(UsageError, match="'rude' asks the judge 'x', which was not given"):
        make_actors(config)
    actors = make_actors(config_of(), lambda e: torch.ones(len(e)))
    rude = torch.tensor([-1.0, 0.0, math.nan, 0.0, 0.0, 0.0, 0.0, 0.0])
    actors.terms = build_terms(config, {"rude": lambda responses: rude})
    rollouts, goal = one_batch(actors, config)
    over = [-0.5 * max(0, len(sample.response) - 2) for sample in rollouts.samples]
    assert goal.shaped.tolist() == pytest.approx([1 + a + b for a, b in zip(over, [-1, *[0] * 7], strict=True)])
    row = describe(rollouts, goal, 0.0)
    assert row["term/length"] == pytest.approx(sum(over) / 8)
    assert row["term/rude"] == pytest.approx(-1 / 7)
    assert row["unmeasured/rude"] == pytest.approx(1 / 8)
    assert row["reward"] == pytest.approx(float(goal.shaped.mean()))


def test_doubled_term_names_are_refused() -> None:
    with pytest.raises(ValidationError, match="two reward terms have the name 'length'"):
        config_of(terms=[{"kind": "length", "budget": 2}, {"kind": "length", "budget": 5}])


@pytest.mark.parametrize("options", [{}, {"advantage": "grpo", "group_size": 2}, {"whiten_rewards": True}])
def test_equal_rewards_are_harmless(
    make_actors: Callable[..., Actors], tmp_path: Path, options: dict[str, Any]
) -> None:
    config = config_of(updates=2, **options)
    result = train(make_actors(config, lambda e: torch.ones(len(e))), PROMPTS, config, 0, tmp_path / "c")
    assert result.stopped is None
    assert all(math.isfinite(row["reward"]) for row in result.rows)


def test_missing_stop_is_penalised_and_never_invented(make_actors: Callable[..., Actors]) -> None:
    config = config_of(batch_size=64, missing_stop_penalty=3, reward_clip=None, decoding={"max_new_tokens": 3})
    actors = make_actors(config, lambda e: torch.zeros(len(e)))
    rollouts = collect(actors, PROMPTS * 7, config, 0, 0, budgets())
    ended = [2 in sample.response for sample in rollouts.samples]
    assert True in ended
    assert False in ended
    assert rollouts.finished.tolist() == ended
    shaped = targets(rollouts, config, 0.0).shaped
    assert shaped.tolist() == [0.0 if end else -3.0 for end in ended]


def test_metrics_are_masked(make_actors: Callable[..., Actors]) -> None:
    config = config_of()
    actors = make_actors(config)
    rollouts, goal = one_batch(actors, config)

    def widen(value: Tensor) -> Tensor:
        return torch.cat([value, torch.full((len(value), 9), 1e4)], 1)

    wide = dataclasses.replace(
        rollouts,
        logprobs=widen(rollouts.logprobs),
        reference_logprobs=widen(rollouts.reference_logprobs) * -1 * torch.cat(
            [-torch.ones_like(rollouts.logprobs), torch.ones(len(rollouts.lengths), 9)], 1
        ),
        values=widen(rollouts.values),  # type: ignore[arg-type]
    )  # fmt: skip
    wide_goal = targets(wide, config, 0.05)
    assert describe(wide, wide_goal, 0.05) == pytest.approx(describe(rollouts, goal, 0.05))
    width = goal.advantages.shape[1]
    torch.testing.assert_close(wide_goal.advantages[:, :width], goal.advantages)


def test_cut_distributions_are_refused() -> None:
    for decoding in ({"top_p": 0.9}, {"top_k": 5}):
        with pytest.raises(ValidationError, match="full distribution"):
            config_of(decoding=decoding)


def test_no_prompts_is_one_sentence(make_actors: Callable[..., Actors], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No prompt is in the splits train"):
        train(make_actors(config_of()), [], config_of(), 0, tmp_path)


def test_prompts_are_walked_through_evenly() -> None:
    drawn = [prompt.prompt_id for update in range(5) for prompt in prompts_of_update(PROMPTS, update, 4, 0)]
    assert sorted(drawn[:10]) == sorted(drawn[10:]) == sorted(prompt.prompt_id for prompt in PROMPTS)
    assert drawn[:10] != drawn[10:]
    assert len(prompts_of_update(PROMPTS[:3], 1, 8, 0)) == 8


def test_critic_of_another_vocabulary_starts_from_the_policy(
    policy_folder: Path, reward_folder: Path, tmp_path: Path, compute: Compute
) -> None:
    other = tmp_path / "reward"
    shutil.copytree(reward_folder, other)
    make_tokenizer(words=WORDS[::-1]).save_pretrained(other)
    torch.manual_seed(0)
    actors = load_actors(str(policy_folder), str(other), config_of(), compute)
    assert actors.critic is not None
    critic = separate_critic(str(policy_folder), compute)
    trunk = {k: v for k, v in snapshot(critic).items() if "score" not in k}
    assert all(torch.equal(value, snapshot(actors.critic)[name]) for name, value in trunk.items())
    assert float(score_head(critic.model).weight.abs().max()) < 2


def test_in_the_warmup_the_critic_alone_learns(make_actors: Callable[..., Actors], tmp_path: Path) -> None:
    kl = {"coefficient": 0.05, "target": 6.0, "budget": 1000}
    config = config_of(updates=3, critic_warmup=2, kl=kl)
    actors = make_actors(config, score=count_dogs)
    before, rows = snapshot(actors.policy), []

    def log(update: int, row: Any) -> None:
        same = all(torch.equal(value, before[name]) for name, value in snapshot(actors.policy).items())
        rows.append((same, row.get("optimizer_steps"), row.get("value_loss"), row["kl_coefficient"]))

    train(actors, PROMPTS, config, 0, tmp_path, log=log)
    assert [row[:2] for row in rows] == [(True, 0), (True, 0), (False, 4), (False, None)]
    assert rows[0][2] > rows[1][2] > 0
    assert [row[3] for row in rows[:3]] == [0.05] * 3  # no KL of a policy that stands still moves its control
    assert rows[3][3] < 0.05
    assert _optimizers(actors, config)[0].steps == 4


@pytest.mark.parametrize(
    "options",
    [{"critic_warmup": 4}, {"critic_warmup": 1, "critic": "shared"}, {"critic_warmup": 1, "advantage": "rloo"}],
)
def test_a_warmup_that_makes_no_sense_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="critic_warmup"):
        config_of(**options, **({"group_size": 2} if "advantage" in options else {}))


def test_logged_averages_divide_by_what_was_accumulated() -> None:
    stats = update_module.Stats({}, {})
    for value in (1.0, 2.0, 6.0):
        stats.add("kl", value)
    stats.add("value", 4.0)
    assert stats.mean("kl") == pytest.approx(3)
    assert stats.mean("value") == pytest.approx(4)
    assert stats.mean("grad_norm") is None


def test_repetition_by_hand() -> None:
    assert repetition([[1, 2, 3, 1, 2, 3]]) == pytest.approx(1 / 4)
    assert repetition([[1, 1, 1, 1], [1, 2]]) == pytest.approx(1 / 2)
    assert repetition([[1]]) == 0
