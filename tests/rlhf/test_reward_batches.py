"""How the reward model computes a step: shared beginnings, checkpointing, compilation, targets. CHECKS: 5, 13, 23."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import pytest
import torch

from rlhf.config import RewardConfig
from rlhf.devices import Compute
from rlhf.memory import Budget
from rlhf.models import trainable
from rlhf.ppo.critic import separate_critic
from rlhf.reward_batches import share
from rlhf.reward_model import RewardModel, combine, load_reward_model, save_reward_model
from rlhf.reward_training import Pair, _backward, differences, member_rewards_of_pairs
from rlhf.sequences import Sample, pack
from tests.rlhf.conftest import MODELS, make_tokenizer

WORDS = ["the", "cat", "dog", "sees", "likes", "red", "blue", "sea", "sky", "fish", "big", "small"]


def load(family: str, folder: Path, heads: int = 1, **options: bool | str) -> RewardModel:
    if not folder.exists():
        MODELS[family]().save_pretrained(folder)
        make_tokenizer().save_pretrained(folder)
    torch.manual_seed(0)
    compute = Compute(torch.device("cpu"), torch.float32, **options)  # type: ignore[arg-type]
    return load_reward_model(str(folder), compute, trained=True, heads=heads)


def long_pairs(reward: RewardModel, count: int = 6) -> list[Pair]:
    """Prompts of 18 words and more; the first two pairs have responses that begin alike, or where one begins the
    other."""
    pairs = []
    for index in range(count):
        prompt = " ".join(WORDS[(index + at) % len(WORDS)] for at in range(18 + index))
        good, bad = [("red fish sea", "red fish sky dog"), ("red", "red"), ("sea", "blue sky dog")][index % 3]
        margin = math.log(0.8 / 0.2)
        pairs.append(Pair(reward.encode(prompt, good), reward.encode(prompt, bad), 0.8, 1.0 + index % 2, margin))
    short = Pair(reward.encode("why", "yes"), reward.encode("why", "no no"), 0.6, 1.0, 0.4)
    return [*pairs, short]


@pytest.mark.parametrize("family", sorted(MODELS))
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("heads", [1, 3])
def test_a_shared_prompt_changes_no_number(family: str, attention: str, heads: int, tmp_path: Path) -> None:
    reward = load(family, tmp_path / "m", heads, attention=attention)
    assert reward.abilities == (True, True)
    pairs, compute = long_pairs(reward), Compute(torch.device("cpu"), torch.float32)
    found = {}
    for sharing in (True, False):
        config = RewardConfig(centering=0.1, share_prefix=sharing)
        members = member_rewards_of_pairs(reward, pairs, compute, Budget(100), sharing)
        loss = float(_backward(reward, pairs, 100, config, compute))
        gradients = {name: value.grad.clone() for name, value in trainable(reward.model).items()}
        reward.model.zero_grad()
        found[sharing] = (members, loss, gradients)
    torch.testing.assert_close(found[True][0], found[False][0], atol=1e-5, rtol=0)
    assert found[True][1] == pytest.approx(found[False][1], abs=1e-6)
    for name, value in found[True][2].items():
        torch.testing.assert_close(value, found[False][2][name], atol=1e-5, rtol=1e-4)


def test_what_pairs_share_leaves_each_its_last_token() -> None:
    one, other = Sample([1, 2, 3], [4, 5, 9]), Sample([1, 2, 3], [4, 6, 7, 9])
    assert share(one, other) == (4, [1, 2, 3, 4, 5, 9, 6, 7, 9], 6)
    assert share(one, one) == (5, [1, 2, 3, 4, 5, 9, 9], 6)
    assert share(Sample([8], [2]), one).common == 0


def test_a_sliding_window_is_not_shared(tmp_path: Path) -> None:
    """A mask of the whole row would take the place of the layers' own, which are narrower."""
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    MistralForCausalLM(
        MistralConfig(
            vocab_size=40,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            sliding_window=8,
            eos_token_id=2,
            pad_token_id=0,
        )
    ).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    reward = load("mistral", tmp_path)
    assert not reward.abilities.shared
    compute, pairs = Compute(torch.device("cpu"), torch.float32), long_pairs(reward)
    singles = [
        float(reward.model(input_ids=torch.tensor([[*s.prompt, *s.response]])).logits[0, 0])
        for pair in pairs
        for s in pair[:2]
    ]
    expected = torch.tensor(singles).view(-1, 2)
    gap = differences(reward, pairs, compute, Budget(1000))
    torch.testing.assert_close(gap, expected[:, 0] - expected[:, 1], atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", sorted(MODELS))
def test_checkpointing_gives_the_same_gradients(family: str, tmp_path: Path) -> None:
    gradients = []
    for checkpointing in (False, True):
        reward = load(family, tmp_path / "m", gradient_checkpointing=checkpointing)
        assert reward.model.is_gradient_checkpointing == checkpointing
        compute = Compute(torch.device("cpu"), torch.float32, gradient_checkpointing=checkpointing)
        _backward(reward, long_pairs(reward), 1000, RewardConfig(), compute)
        gradients.append({name: value.grad for name, value in trainable(reward.model).items()})
    for name, value in gradients[0].items():
        torch.testing.assert_close(value, gradients[1][name], atol=1e-6, rtol=1e-5)


@pytest.mark.slow
def test_compiled_agrees(tmp_path: Path) -> None:
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        pytest.skip("torch.compile needs a C++ compiler on the CPU")
    compute = Compute(torch.device("cpu"), torch.float32)
    found = []
    for compiled in (False, True):
        reward = load("llama", tmp_path / "m", compile=compiled)
        pairs = long_pairs(reward)
        loss = float(_backward(reward, pairs, 1000, RewardConfig(), compute))
        gradients = {name: value.grad for name, value in trainable(reward.model).items()}
        found.append((loss, gradients, differences(reward, pairs, compute, Budget(1000))))
    assert found[0][0] == pytest.approx(found[1][0], abs=1e-5)
    torch.testing.assert_close(found[0][2], found[1][2], atol=1e-4, rtol=0)
    assert found[0][1].keys() == found[1][1].keys()
    for name, value in found[0][1].items():
        torch.testing.assert_close(value, found[1][1][name], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("soft", lambda d, p, m: -p * math.log(_s(d)) - (1 - p) * math.log(_s(-d))),
        ("hard", lambda d, p, m: -math.log(_s(d))),
        ("margin", lambda d, p, m: -math.log(_s(d - m))),
    ],
)
def test_targets_by_hand(target: str, expected: object, tmp_path: Path) -> None:
    reward = load("llama", tmp_path / "m")
    compute, pairs = Compute(torch.device("cpu"), torch.float32), long_pairs(reward)
    gaps = differences(reward, pairs, compute, Budget(1000)).tolist()
    weights = [pair.weight for pair in pairs]
    by_hand = [expected(gap, pair.p_chosen, pair.margin) for gap, pair in zip(gaps, pairs, strict=True)]  # type: ignore[operator]
    mean = sum(w * loss for w, loss in zip(weights, by_hand, strict=True)) / sum(weights)
    config = RewardConfig(target=target, centering=0)  # type: ignore[arg-type]
    assert float(_backward(reward, pairs, 1000, config, compute)) == pytest.approx(mean, abs=1e-5)


def _s(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_the_pessimistic_score_by_hand() -> None:
    members = torch.tensor([[1.0, 3.0], [2.0, 2.0]])
    assert combine(members, 0.5).tolist() == [1.5, 2.0]
    assert combine(members[:, :1], 0.5).tolist() == [1.0, 2.0]


def test_a_critic_starts_from_the_mean_of_the_heads(tmp_path: Path) -> None:
    reward = load("llama", tmp_path / "m", heads=3)
    reward.ensemble.pessimism, reward.shift = 0.5, 0.25
    reward.offsets = torch.tensor([0.1, 0.2, -0.3])
    folder = save_reward_model(tmp_path / "saved", reward)
    compute = Compute(torch.device("cpu"), torch.float32)
    critic = separate_critic(str(folder), compute)
    sample = reward.encode("the cat", "red fish")
    value = critic.values(pack([Sample([*sample.prompt, *sample.response], [0])], [0], torch.device("cpu")))
    members = reward.score_members([sample], compute, Budget(100))
    torch.testing.assert_close(value.detach(), members.mean(1), atol=1e-5, rtol=0)
    assert float(members.std()) > 0
    again = load_reward_model(str(folder), compute)
    torch.testing.assert_close(again.score_members([sample], compute, Budget(100)), members, atol=1e-6, rtol=0)
