"""The PPO loop. CHECKS: 1, 7, 13, 14, 16, 20, 21, 26, 28, 29; guardrails; critic-free estimators; LoRA."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor

from rlhf.config import PPOConfig
from rlhf.devices import Compute
from rlhf.forward import logprobs_of
from rlhf.memory import Budget
from rlhf.models import snapshot
from rlhf.optimisation import Optimizer
from rlhf.ppo import update as update_module
from rlhf.ppo.actors import Actors, load_actors
from rlhf.ppo.checkpoint import Checkpoints
from rlhf.ppo.critic import separate_critic, values_of
from rlhf.ppo.guard import ProbeItem
from rlhf.ppo.report import describe, repetition
from rlhf.ppo.rollout import Budgets, Rollouts, Targets, collect, prompts_of_update, targets
from rlhf.ppo.trainer import Result, _optimizers, train
from rlhf.ppo.update import optimise
from rlhf.reward_model import load_reward_model, score_head
from rlhf.rewards import build_terms
from rlhf.sampling import Prompt
from rlhf.sequences import Sample
from store.errors import TransientError, UsageError
from tests.rlhf.conftest import WORDS, make_tokenizer

PROMPTS = [Prompt(f"p{index}", f"{word} why") for index, word in enumerate(WORDS[:10])]


def config_of(**values: Any) -> PPOConfig:
    base: dict[str, Any] = {
        "updates": 4,
        "batch_size": 8,
        "minibatches": 2,
        "epochs": 2,
        "checkpoint_every": 0,
        "value_learning_rate": 1e-2,
        "optimisation": {"learning_rate": 1e-2, "warmup_fraction": 0},
        "decoding": {"max_new_tokens": 6},
        "kl": {"coefficient": 0.05, "budget": 1000},
        "max_update_kl": None,
    }
    return PPOConfig.model_validate({**base, **values})


@pytest.fixture
def make_actors(policy_folder: Path, reward_folder: Path, compute: Compute) -> Callable[..., Actors]:
    def make(config: PPOConfig, score: Callable[[Sequence[tuple[str, str]]], Tensor] | None = None) -> Actors:
        torch.manual_seed(0)
        actors = load_actors(str(policy_folder), str(reward_folder), config, compute)
        if score is not None:
            actors.score = score
        return actors

    return make


def budgets(tokens: int = 8192) -> Budgets:
    return Budgets(Budget(tokens), Budget(64, "responses"))


def count_dogs(exchanges: Sequence[tuple[str, str]]) -> Tensor:
    """A reward without a model: the share of words that are "dog"."""
    return torch.tensor([sum(w == "dog" for w in r.split()) / max(1, len(r.split())) for _, r in exchanges])


def one_batch(actors: Actors, config: PPOConfig) -> tuple[Rollouts, Targets]:
    rollouts = collect(actors, PROMPTS[: config.batch_size // config.group_size], config, 0, 0, budgets())
    return rollouts, targets(rollouts, config, config.kl.coefficient)


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
    after = []
    for tokens in (1, 40, 10_000):
        config = config_of(critic=critic, entropy_coefficient=0.01, optimisation={"learning_rate": 1e-3})
        actors = make_actors(config)
        rollouts, goal = one_batch(actors, config)
        optimise(actors, rollouts, goal, config, *_optimizers(actors, config), Budget(tokens), 0, 0)
        after.append({**snapshot(actors.policy), **snapshot(actors.critic)})  # type: ignore[arg-type]
    for name, value in after[0].items():
        torch.testing.assert_close(value, after[1][name], atol=2e-4, rtol=1e-3)
        torch.testing.assert_close(value, after[2][name], atol=2e-4, rtol=1e-3)


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


def outcome(result: Result, actors: Actors) -> tuple[Any, ...]:
    rows = [{k: v for k, v in row.items() if "seconds" not in k} for row in result.rows]
    critic = {} if actors.critic is None else snapshot(actors.critic)
    return rows, result.samples, snapshot(actors.policy), critic


class Killed(BaseException):
    """A kill: nothing in the package catches it."""


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"critic": "shared"},
        {"lora": {"rank": 2}},
        {"epochs": 1, "kl": {"coefficient": 0.1, "target": 1.0}},
        {"batch_size": 10},
    ],
)
def test_resume_is_bit_exact(make_actors: Callable[..., Actors], tmp_path: Path, options: dict[str, Any]) -> None:
    """4 = 2 + resume + 2. With 10 prompts, 8 a batch pass the end of the data within a batch, 10 between batches."""
    config = config_of(checkpoint_every=2, **options)
    whole = make_actors(config)
    expected = outcome(train(whole, PROMPTS, config, 5, tmp_path / "whole"), whole)

    def kill_at_3(what: str, done: int, total: int, note: str = "") -> None:
        if done == 3:
            raise Killed

    with pytest.raises(Killed):
        train(make_actors(config), PROMPTS, config, 5, tmp_path / "cut", progress=kill_at_3)
    torch.manual_seed(99)
    resumed = make_actors(config)
    seen: list[str] = []
    result = train(
        resumed, PROMPTS, config, 5, tmp_path / "cut", progress=lambda what, done, total, note="": seen.append(note)
    )
    assert seen[0] == "resumed at update 2"
    found = outcome(result, resumed)
    assert found[0] == expected[0]
    assert found[1] == expected[1]
    for one, other in zip(found[2:], expected[2:], strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_checkpoints_are_safe_files_and_few(make_actors: Callable[..., Actors], tmp_path: Path) -> None:
    config = config_of(updates=7, checkpoint_every=2)
    train(make_actors(config), PROMPTS, config, 0, tmp_path / "c")
    names = sorted(path.name for path in (tmp_path / "c").iterdir())
    assert [name for name in names if name.startswith("step")] == ["step-000004", "step-000006"]
    assert len([name for name in names if name.startswith("best")]) <= 2
    folder = tmp_path / "c" / "step-000006"
    assert sorted(p.name for p in folder.iterdir()) == ["state.json", "tensors-0.safetensors"]
    assert json.loads((folder / "state.json").read_text())["run"]["update"] == 6


def test_kl_budget_stops_and_keeps_the_best(make_actors: Callable[..., Actors], tmp_path: Path) -> None:
    config = config_of(
        updates=30, checkpoint_every=1, kl={"coefficient": 0, "budget": 0.5}, optimisation={"learning_rate": 3e-2}
    )
    actors = make_actors(config, count_dogs)
    result = train(actors, PROMPTS, config, 0, tmp_path / "c")
    assert result.stopped is not None
    assert result.stopped.startswith("kl_budget")
    assert "the budget is 0.5" in result.stopped
    assert result.kept < result.updates
    kept = next(row for row in result.rows if row["update"] == result.kept)
    assert kept["kl"] <= 0.5
    again = collect(actors, PROMPTS[:8], config, 0, result.kept, budgets())
    assert float(describe(again, targets(again, config, 0.0), 0.0)["kl"]) < 5


def test_probe_stops_over_optimisation_and_rolls_back(make_actors: Callable[..., Actors], tmp_path: Path) -> None:
    """The judges like the policy of update 2 and less each time after that, while the score rises."""
    verdicts = iter([0.8, 0.55, 0.3, 0.2])
    asked: list[Sequence[ProbeItem]] = []
    scores = iter(range(1000))

    def probe(items: Sequence[ProbeItem]) -> list[float | None]:
        asked.append(items)
        mean = next(verdicts)
        return [mean + 0.01 * (index * len(asked) % 3 - 1) for index in range(len(items))]

    def rising(exchanges: Sequence[tuple[str, str]]) -> Tensor:
        return torch.full((len(exchanges),), float(next(scores))) + torch.rand(len(exchanges)) / 10

    config = config_of(updates=20, probe={"every": 2, "prompts": 10, "patience": 2}, checkpoint_every=1)
    actors = make_actors(config, rising)
    result = train(actors, PROMPTS, config, 0, tmp_path / "c", probe=probe)
    assert result.stopped is not None
    assert result.stopped.startswith("over_optimised: since update 2 the judges' win rate fell by 0.5")
    assert result.kept == 2
    assert result.updates == 6
    assert [row["probe_win_rate"] for row in result.rows] == pytest.approx(
        [0.5, None, 0.8, None, 0.55, None, 0.3], abs=0.011
    )
    assert result.rows[4]["judge_gain"] == pytest.approx(0.05, abs=0.011)
    assert result.rows[4]["reward_gain"] > result.rows[2]["reward_gain"] > 0
    assert all(len(items) == 10 for items in asked)
    assert [item.reference_response for item in asked[0]] == [item.reference_response for item in asked[2]]
    best = Checkpoints(tmp_path / "c").policy_at("best-000002")
    assert best is not None
    assert all(torch.equal(value, best[name]) for name, value in snapshot(actors.policy).items())


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


@pytest.mark.parametrize("action", ["warn", "stop"])
def test_monitors_warn_once_or_stop(
    make_actors: Callable[..., Actors], tmp_path: Path, capsys: pytest.CaptureFixture[str], action: str
) -> None:
    config = config_of(updates=3, monitors={"kl_budget_used": {"at": 1e-9, "action": action}})
    result = train(make_actors(config, count_dogs), PROMPTS, config, 0, tmp_path / "c")
    # Before the first update policy and reference are one model.
    assert result.rows[0]["kl_budget_used"] == pytest.approx(0, abs=1e-9)
    assert result.rows[0]["length_drift"] == result.rows[0]["perplexity_drift"] == 1
    assert len(result.warnings) == 1
    assert result.warnings[0].startswith("kl_budget_used: ")
    assert capsys.readouterr().err.count("Warning, kl_budget_used") == 1
    if action == "stop":
        assert result.stopped == result.warnings[0]
        assert len(result.rows) <= 3
        assert result.kept == 0
    else:
        assert result.stopped is None


def test_a_loss_that_is_no_number_stops_and_keeps_the_last_good(
    make_actors: Callable[..., Actors], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(updates=6, checkpoint_every=1)
    actors = make_actors(config)
    calls = iter(range(1000))
    real = update_module.policy_loss

    def spoilt(*args: Any) -> Any:
        result = real(*args)
        return result._replace(loss=result.loss * math.nan) if next(calls) == 10 else result

    monkeypatch.setattr(update_module, "policy_loss", spoilt)
    result = train(actors, PROMPTS, config, 0, tmp_path / "c")
    assert result.stopped is not None
    assert "policy loss of update 2, epoch 2, minibatch 1 (prompts p" in result.stopped
    assert result.kept == 2
    assert all(value.isfinite().all() for value in snapshot(actors.policy).values())


def test_a_score_that_is_no_number_names_the_prompt(make_actors: Callable[..., Actors], tmp_path: Path) -> None:
    config = config_of()
    actors = make_actors(config, lambda exchanges: torch.full((len(exchanges),), math.nan))
    result = train(actors, PROMPTS, config, 0, tmp_path / "c")
    assert result.stopped is not None
    assert "score of update 0 is not a number: prompt p" in result.stopped


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


def test_out_of_memory_halves_the_micro_batch_and_goes_on(
    make_actors: Callable[..., Actors],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = config_of(updates=1, optimisation={"learning_rate": 1e-3, "batch_tokens": 128})
    expected = make_actors(config)
    train(expected, PROMPTS, config, 0, tmp_path / "a")
    real = update_module._policy_micro_batch
    failures = iter([True, False, True])

    def scarce(actors: Actors, batch: Any, *args: Any) -> Tensor:
        if next(failures, False):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(actors, batch, *args)

    monkeypatch.setattr(update_module, "_policy_micro_batch", scarce)
    actors = make_actors(config)
    train(actors, PROMPTS, config, 0, tmp_path / "b")
    assert "going on with 32 tokens" in capsys.readouterr().err
    for name, value in snapshot(expected.policy).items():
        torch.testing.assert_close(value, snapshot(actors.policy)[name], atol=1e-4, rtol=1e-3)
    monkeypatch.setattr(
        update_module, "_policy_micro_batch", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError())
    )
    with pytest.raises(TransientError, match="Out of memory in the policy update"):
        train(make_actors(config), PROMPTS, config, 0, tmp_path / "d")


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


def test_optimizer_state_survives_its_file(tmp_path: Path) -> None:
    weight = torch.nn.Parameter(torch.ones(2, 2))
    optimizer = Optimizer([weight], config_of().optimisation, 10)
    weight.grad = torch.ones(2, 2)
    optimizer.step()
    save_file(optimizer.tensors(), tmp_path / "o.safetensors")
    other = Optimizer([weight], config_of().optimisation, 10)
    other.load(load_file(tmp_path / "o.safetensors"), optimizer.taken)
    assert other.learning_rate == optimizer.learning_rate
    for name, value in optimizer.adamw.state[weight].items():
        assert torch.equal(other.adamw.state[weight][name], value)
