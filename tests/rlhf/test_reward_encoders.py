"""Reward models on encoders: the layout's own head and pooling, padding by mask. CHECKS: 5, 6, 29."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rlhf.config import Optimisation, RewardConfig
from rlhf.devices import Compute
from rlhf.memory import Budget
from rlhf.ppo.actors import load_actors
from rlhf.reward_model import RewardModel, load_reward_model, save_reward_model
from rlhf.reward_scale import set_unit, set_zero
from rlhf.reward_training import Pair, train_reward_model
from tests.rlhf.encoders import ATTENTION, save_encoder

FAMILIES = ["bert", "deberta", "modernbert", "roberta"]
EXCHANGES = [("the cat", "dog"), ("why", "the dog sees a fish red blue"), ("big small yes", "no"), ("sea", "")]


def load(family: str, folder: Path, trained: bool = True) -> tuple[RewardModel, Compute]:
    compute = Compute(torch.device("cpu"), torch.float32, ATTENTION.get(family, "sdpa"))
    torch.manual_seed(1)
    return load_reward_model(str(folder), compute, trained=trained), compute


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_the_layouts_own_of_the_text_pair(family: str, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    reward, compute = load(family, save_encoder(family, tmp_path / "start"))
    assert not reward.causal
    batched = reward.score(EXCHANGES, compute, Budget(10_000))
    singles = torch.cat([reward.score([one], compute, Budget(1)) for one in EXCHANGES])
    torch.testing.assert_close(batched, singles, atol=1e-5, rtol=0)
    set_zero(reward, EXCHANGES, compute, Budget(1000))
    spread = set_unit(reward, EXCHANGES, compute, Budget(1000))
    folder = save_reward_model(tmp_path / "saved", reward)
    again, _ = load(family, folder, trained=False)
    scores = again.score(EXCHANGES, compute, Budget(1000))
    torch.testing.assert_close(scores, (batched - batched.mean()) / spread, atol=1e-4, rtol=1e-4)
    theirs = AutoModelForSequenceClassification.from_pretrained(folder, attn_implementation=compute.attention).eval()
    words = AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():  # their call takes an empty second text for none
        own = [float(theirs(**words(*one, return_tensors="pt")).logits[0, 0]) for one in EXCHANGES[:3]]
    torch.testing.assert_close(scores[:3] - again.shift, torch.tensor(own), atol=1e-5, rtol=0)


def test_too_long_pairs_keep_their_frame(tmp_path: Path) -> None:
    reward, _ = load("bert", save_encoder("bert", tmp_path / "start"))
    whole = reward.encode("the cat sees dog", "red fish")
    reward.max_length = 7
    cut = reward.encode("the cat sees dog", "red fish")
    assert [*cut.prompt] == [whole.prompt[0], *whole.prompt[-3:]]
    assert [*cut.response] == [*whole.response]
    tail = reward.encode("the cat", "red " * 50 + "fish")
    assert tail.length == 7
    assert [*tail.response][-2:] == [*whole.response][-2:]


@pytest.mark.parametrize("members", [1, 2])
def test_an_encoder_learns_pairs(members: int, tmp_path: Path) -> None:
    folder = save_encoder("bert", tmp_path / "start")
    compute = Compute(torch.device("cpu"), torch.float32)
    torch.manual_seed(1)
    reward = load_reward_model(str(folder), compute, trained=True, heads=members)
    words = ["dog", "cat", "sea", "sky", "red", "blue"]
    pairs = [
        Pair(reward.encode(f"why {word}", f"yes {other}"), reward.encode(f"why {word}", f"no {other} maybe"), 0.9, 1.0)
        for word in words
        for other in words[:3]
    ]
    config = RewardConfig(epochs=6, batch_size=6, optimisation=Optimisation(learning_rate=3e-3))
    fit = train_reward_model(reward, pairs[4:], pairs[:4], config, 0, compute)
    assert fit.curve[-1]["validation_accuracy"] == 1
    again = load_reward_model(str(save_reward_model(tmp_path / "saved", reward)), compute)
    assert again.heads == members
    texts = [("why dog", "yes cat"), ("why dog", "no cat maybe")]
    good, bad = again.score(texts, compute, Budget(100)).tolist()
    assert good > bad
    before = reward.score(texts, compute, Budget(100))
    torch.testing.assert_close(again.score(texts, compute, Budget(100)), before, atol=1e-5, rtol=0)


def test_ppo_takes_its_scores_and_starts_the_critic_elsewhere(policy_folder: Path, tmp_path: Path) -> None:
    from rlhf.config import PPOConfig

    reward, compute = load("bert", save_encoder("bert", tmp_path / "start"))
    folder = save_reward_model(tmp_path / "reward", reward)
    actors = load_actors(str(policy_folder), str(folder), PPOConfig(), compute)
    expected = reward.score(EXCHANGES, compute, Budget(100))
    torch.testing.assert_close(actors.score(EXCHANGES), expected, atol=1e-5, rtol=0)
    assert type(actors.critic.model).__name__ == "LlamaForSequenceClassification"  # type: ignore[union-attr]
