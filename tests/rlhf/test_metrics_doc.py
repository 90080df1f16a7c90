"""docs/metrics.md has one line for every metric that is logged, and none that is not."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf.config import DPOConfig, PPOConfig, RewardConfig, SFTConfig
from rlhf.devices import Compute
from rlhf.dpo import train_dpo
from rlhf.models import load_policy
from rlhf.ppo.actors import load_actors
from rlhf.ppo.guard import Wins
from rlhf.ppo.importance import importance, importance_metrics
from rlhf.ppo.trainer import train
from rlhf.reward_model import load_reward_model
from rlhf.reward_training import train_reward_model
from rlhf.sft import encode_demonstrations, train_sft
from tests.rlhf.ppo_world import PROMPTS, config_of
from tests.rlhf.test_dpo import PAIRS
from tests.rlhf.test_reward_model import pairs_of

DOC = Path(__file__).parents[2] / "docs" / "metrics.md"


def documented(stage: str) -> dict[str, str]:
    section = DOC.read_text().split(f"\n## {stage}\n", 1)[1].split("\n## ", 1)[0]
    return dict(re.findall(r"^\| `([^`]+)` \| (.+) \|$", section, re.MULTILINE))


class Names:
    """A log that collects the names."""

    def __init__(self) -> None:
        self.found: set[str] = set()

    def __call__(self, step: int, values: Mapping[str, Any]) -> None:
        self.found |= {re.sub(r"^(term|unmeasured)/.*", r"\1/<name>", name) for name in values}


def test_sft(policy_folder: Path, compute: Compute) -> None:
    names = Names()
    model, codec = load_policy(str(policy_folder), compute, trained=True)
    train_sft(model, encode_demonstrations(codec, [("dog", "cat")]), SFTConfig(), 0, compute, log=names)
    assert names.found == set(documented("sft"))


def test_reward(policy_folder: Path, compute: Compute) -> None:
    names = Names()
    torch.manual_seed(0)
    model = load_reward_model(str(policy_folder), compute, trained=True)
    pairs = pairs_of(model, 8)
    train_reward_model(model, pairs[2:], pairs[:2], RewardConfig(epochs=1), 0, compute, log=names)
    assert names.found == set(documented("reward"))


def test_dpo(policy_folder: Path, compute: Compute) -> None:
    names = Names()
    model, _ = load_policy(str(policy_folder), compute, trained=True)
    train_dpo(model, PAIRS, PAIRS, DPOConfig(), 0, compute, log=names)
    assert names.found == set(documented("dpo"))


def test_ppo(policy_folder: Path, reward_folder: Path, compute: Compute, tmp_path: Path) -> None:
    names = Names()

    def probe(items: Any) -> Wins:
        return [0.5] * len(items)

    for number, options in enumerate(({}, {"critic": "shared", "entropy_coefficient": 0.1})):
        config: PPOConfig = config_of(updates=1, probe={"every": 1, "prompts": 3}, **options)
        torch.manual_seed(0)
        actors = load_actors(str(policy_folder), str(reward_folder), config, compute)
        train(actors, PROMPTS, config, 0, tmp_path / str(number), probe=probe, log=names)
    # What another engine adds: its weights, from any log-probs.
    logprobs = torch.zeros(1, 2)
    sampled = type("Sampled", (), {"sampling_logprobs": [0.0, 0.0]})
    found = importance(logprobs, [sampled], 2.0)  # type: ignore[list-item]
    names(0, importance_metrics(found, logprobs, torch.ones(1, 2, dtype=torch.bool)))
    assert names.found == set(documented("ppo"))


@pytest.mark.parametrize("stage", ["sft", "reward", "dpo", "ppo"])
def test_each_meaning_is_one_line(stage: str) -> None:
    meanings = documented(stage)
    assert meanings
    assert all(5 < len(meaning) < 120 for meaning in meanings.values())
