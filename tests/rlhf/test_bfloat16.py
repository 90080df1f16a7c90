"""The precision that a GPU computes in, here on the CPU: what stays in float32, and what frozen weights are kept in."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rlhf.config import Decoding, DPOConfig, Lora, Optimisation, RewardConfig, SFTConfig
from rlhf.devices import Compute
from rlhf.dpo import Pair as DPOPair
from rlhf.dpo import train_dpo, with_reference
from rlhf.engines.weights import merged_state
from rlhf.forward import logprobs_of
from rlhf.generation import generate
from rlhf.generation.cache import SlotLayer
from rlhf.memory import Budget
from rlhf.models import attach_lora, load_policy, merged, trainable
from rlhf.ppo.actors import Actors, load_actors
from rlhf.ppo.critic import SharedCritic
from rlhf.ppo.rollout import collect
from rlhf.ppo.trainer import _optimizers, train
from rlhf.ppo.update import optimise
from rlhf.reward_model import load_reward_model, save_reward_model
from rlhf.reward_training import Pair, train_reward_model
from rlhf.sequences import Sample
from rlhf.sft import train_sft
from tests.rlhf.conftest import make_llama, make_tokenizer
from tests.rlhf.ppo_world import PROMPTS, budgets, config_of, count_dogs, one_batch

LOW = Compute(torch.device("cpu"), torch.bfloat16)
HIGH = Compute(torch.device("cpu"), torch.float32)
SAMPLES = [Sample([3, 7, 4], [8, 9, 2]), Sample([3, 4], [11]), Sample([5, 6, 12, 9, 4], [8, 10, 2])]
VARIANTS = [{}, {"critic": "shared"}, {"lora": {"rank": 2}}]


@pytest.fixture
def untied(tmp_path: Path) -> Path:
    """A policy whose head is no embedding, in numbers that bfloat16 rounds."""
    make_llama(tie_word_embeddings=False).save_pretrained(tmp_path / "untied")
    make_tokenizer().save_pretrained(tmp_path / "untied")
    return tmp_path / "untied"


def actors_of(config: Any, policy: Path, reward: Path, compute: Compute) -> Actors:
    torch.manual_seed(0)
    return load_actors(str(policy), str(reward), config, compute)


@pytest.mark.parametrize("options", VARIANTS, ids=["separate", "shared", "lora"])
def test_the_reference_is_the_policy_to_the_bit_before_the_first_step(
    options: dict[str, Any], untied: Path, reward_folder: Path
) -> None:
    config = config_of(**options)
    rollouts = collect(actors_of(config, untied, reward_folder, LOW), PROMPTS[:8], config, 0, 0, budgets())
    assert torch.equal(rollouts.logprobs, rollouts.reference_logprobs)
    assert not torch.equal(rollouts.logprobs, rollouts.logprobs.bfloat16().float())


@pytest.mark.parametrize("options", VARIANTS, ids=["separate", "shared", "lora"])
def test_every_weight_has_the_gradient_of_float32_but_for_rounding(
    options: dict[str, Any], untied: Path, reward_folder: Path
) -> None:
    config = config_of(minibatches=1, epochs=1, entropy_coefficient=0.01, **options)
    exact = actors_of(config, untied, reward_folder, HIGH)
    rollouts, goal = one_batch(exact, config)
    found: list[dict[str, Tensor]] = []
    for actors in (exact, actors_of(config, untied, reward_folder, LOW)):
        seen: dict[str, Tensor] = {}
        members = {"policy": actors.policy, "critic": actors.critic}
        for optimizer in filter(None, optimizers := _optimizers(actors, config)):
            optimizer.adamw.register_step_pre_hook(
                lambda *_, members=members, seen=seen: seen.update(
                    {
                        f"{who}.{name}": value.grad.clone()
                        for who, model in members.items()
                        for name, value in trainable(model).items()
                        if value.grad is not None
                    }
                )
            )
        stats = optimise(actors, rollouts, goal, config, *optimizers, Budget(60), 0, 0)
        assert all(math.isfinite(value) for value in stats.values() if isinstance(value, float))
        found.append(seen)
    assert found[0].keys() == found[1].keys()
    for name, value in found[1].items():
        assert value.dtype == torch.float32
        if found[0][name].norm() > 1e-6:  # adapters start with a side of zeros
            assert torch.cosine_similarity(value.flatten(), found[0][name].flatten(), 0) > 0.97, name


@pytest.mark.parametrize("trained", [True, False])
def test_rewards_and_values_have_the_digits_of_float32(trained: bool, reward_folder: Path) -> None:
    """In bfloat16 rewards near each other would tie, and a tie is not won."""
    reward = load_reward_model(str(reward_folder), LOW, trained=trained)
    scores = reward.score_samples(SAMPLES * 3, LOW, Budget(30)) - reward.shift
    assert not torch.isclose(scores, scores.bfloat16().float(), atol=0, rtol=1e-5).any()
    with LOW.autocast():
        values = SharedCritic(16, torch.device("cpu")).values_of_states(torch.randn(9, 16))
    assert values.dtype == torch.float32
    assert not torch.equal(values, values.detach().bfloat16().float())


def test_a_frozen_reward_model_scores_as_when_it_was_trained(reward_folder: Path) -> None:
    one, other = (load_reward_model(str(reward_folder), LOW, trained=trained) for trained in (True, False))
    assert torch.equal(*(model.score_samples(SAMPLES, LOW, Budget(30)) for model in (one, other)))


def test_frozen_weights_of_products_are_converted_once(untied: Path) -> None:
    plain = load_policy(str(untied), LOW, trained=True)[0]
    adapted = attach_lora(load_policy(str(untied), LOW, trained=True)[0], Lora(rank=2), compute=LOW)
    kinds = {name: value.dtype for name, value in adapted.named_parameters()}
    assert {kind for name, kind in kinds.items() if "lora_" in name} == {torch.float32}
    assert kinds["base_model.model.lm_head.weight"] == torch.bfloat16
    assert kinds["base_model.model.model.layers.0.mlp.up_proj.base_layer.weight"] == torch.bfloat16
    assert kinds["base_model.model.model.embed_tokens.weight"] == torch.float32
    assert kinds["base_model.model.model.norm.weight"] == torch.float32
    rows = [logprobs_of(model, SAMPLES, LOW, Budget(1000)) for model in (plain, adapted)]
    assert all(torch.equal(one, other) for one, other in zip(*rows, strict=True))
    same = make_llama()  # an embedding that is the head too is looked up, and stays
    attach_lora(same, Lora(rank=2), compute=LOW)
    assert same.lm_head.weight.dtype == torch.float32
    exact = attach_lora(load_policy(str(untied), HIGH, trained=True)[0], Lora(rank=2), compute=HIGH)
    assert {value.dtype for value in exact.parameters()} == {torch.float32}


def test_adapters_are_merged_in_float32(untied: Path) -> None:
    """An update below bfloat16's spacing is what adapters learn in a short run: it must reach the file, and an engine
    gets the sum rounded once."""
    model = attach_lora(load_policy(str(untied), LOW, trained=True)[0], Lora(rank=2), compute=LOW)
    layer = model.base_model.model.model.layers[0].mlp.up_proj
    with torch.no_grad():
        layer.lora_B["default"].weight.normal_(std=1e-5)
    base, delta = layer.base_layer.weight.detach().float(), layer.get_delta_weight("default").detach()
    kept = (base.bfloat16() + delta.bfloat16()).float() != base
    assert float(kept.float().mean()) < 0.2  # the rest would be lost
    pushed = merged_state(model, torch.float32)["model.layers.0.mlp.up_proj.weight"]
    whole = merged(model)
    assert {value.dtype for value in whole.parameters()} == {torch.float32}
    for found in (pushed, whole.model.layers[0].mlp.up_proj.weight):
        torch.testing.assert_close(found, base + delta, atol=1e-9, rtol=0)


def test_keys_and_values_are_kept_in_half_precision(untied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds: set[torch.dtype] = set()
    real = SlotLayer.lazy_initialization

    def watched(layer: SlotLayer, keys: Tensor, values: Tensor) -> None:
        real(layer, keys, values)
        kinds.update({layer.keys.dtype, layer.values.dtype})

    monkeypatch.setattr(SlotLayer, "lazy_initialization", watched)
    model, codec = load_policy(str(untied), LOW, trained=True)
    prompts = [sample.prompt for sample in SAMPLES]
    found = generate(model, prompts, [1, 2, 3], Decoding(max_new_tokens=6), codec.stop_ids, autocast=LOW.autocast)
    assert kinds == {torch.bfloat16}
    again = [Sample(prompt, result.ids) for prompt, result in zip(prompts, found, strict=True)]
    for row, result in zip(logprobs_of(model, again, LOW, Budget(1000)), found, strict=True):
        assert row.tolist() == pytest.approx(result.sampling_logprobs, abs=0.08)


@pytest.mark.parametrize("lora", [None, Lora(rank=4)], ids=["whole", "lora"])
def test_all_training_loops_learn(lora: Lora | None, untied: Path, tmp_path: Path) -> None:
    def policy() -> Any:
        torch.manual_seed(0)
        model = load_policy(str(untied), LOW, trained=True)[0]
        return model if lora is None else attach_lora(model, lora, compute=LOW)

    rate = Optimisation(learning_rate=1e-2, warmup_fraction=0)
    curve = train_sft(policy(), SAMPLES * 4, SFTConfig(epochs=8, batch_size=4, optimisation=rate), 0, LOW)
    assert curve[-1]["loss"] < curve[0]["loss"] / 2
    chosen, rejected = SAMPLES[0], Sample(SAMPLES[0].prompt, [12, 2])
    model = policy()
    pairs = with_reference(model, [DPOPair(chosen, rejected, 1.0, 1.0)] * 8, LOW, Budget(100))
    rows = train_dpo(model, pairs, [], DPOConfig(epochs=8, batch_size=4, optimisation=rate), 0, LOW)
    assert rows[0]["loss"] == pytest.approx(math.log(2), abs=1e-2)
    assert rows[-1]["loss"] < 0.6
    torch.manual_seed(0)
    reward = load_reward_model(str(untied), LOW, trained=True)
    if lora is not None:
        reward.model = attach_lora(reward.model, lora, "SEQ_CLS", LOW)
    data = [Pair(chosen, rejected, 1.0, 1.0)] * 8
    fit = train_reward_model(reward, data, [], RewardConfig(epochs=8, batch_size=4, optimisation=rate), 0, LOW)
    assert fit.curve[-1]["train_loss"] < 0.5
    reward.model = merged(reward.model)
    scores = reward.score_samples([chosen, rejected], LOW, Budget(100))
    again = load_reward_model(str(save_reward_model(tmp_path / "reward", reward)), LOW)
    assert torch.equal(again.score_samples([chosen, rejected], LOW, Budget(100)), scores)
    assert float(scores[0]) > float(scores[1])


@pytest.mark.parametrize("options", VARIANTS, ids=["separate", "shared", "lora"])
def test_ppo_learns_a_simple_reward(options: dict[str, Any], untied: Path, reward_folder: Path, tmp_path: Path) -> None:
    config = config_of(updates=10, batch_size=32, missing_stop_penalty=0, **options)
    actors = actors_of(config, untied, reward_folder, LOW)
    actors.score = count_dogs
    rows = train(actors, PROMPTS, config, 0, tmp_path / "c").rows
    assert rows[0]["kl"] == 0
    assert sum(row["score"] for row in rows[-3:]) / 3 > sum(row["score"] for row in rows[:2]) / 2 + 0.1
