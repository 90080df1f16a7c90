"""A small world for the tests of the PPO loop: prompts of two words, settings that learn fast, a reward by counting."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rlhf.config import PPOConfig
from rlhf.memory import Budget
from rlhf.ppo.actors import Actors
from rlhf.ppo.rollout import Budgets, Rollouts, Targets, collect, targets
from rlhf.sampling import Prompt
from tests.rlhf.conftest import WORDS

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


def budgets(tokens: int = 8192) -> Budgets:
    return Budgets(Budget(tokens), Budget(64, "responses"))


def count_dogs(exchanges: Sequence[tuple[str, str]]) -> Tensor:
    """A reward without a model: the share of words that are "dog"."""
    return torch.tensor([sum(w == "dog" for w in r.split()) / max(1, len(r.split())) for _, r in exchanges])


def one_batch(actors: Actors, config: PPOConfig) -> tuple[Rollouts, Targets]:
    rollouts = collect(actors, PROMPTS[: config.batch_size // config.group_size], config, 0, 0, budgets())
    return rollouts, targets(rollouts, config, config.kl.coefficient)
