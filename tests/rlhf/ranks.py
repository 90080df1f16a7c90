"""What test_two_processes.py runs: every case of training, in one process or in those that torchrun started.

    python -m tests.rlhf.ranks FOLDER none|fsdp

FOLDER has policy/ and reward/; the main process writes FOLDER/<case>-<processes>-<sharding>.json (numbers that must not
depend on the number of processes) and .safetensors (trained weights). With several processes each case is also killed
on the way and resumed: `resumed` in the json says whether rows and weights were those of the uninterrupted run, to the
bit.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import mkdtemp
from typing import Any
from unittest import mock

import torch
from safetensors.torch import save_file
from torch import Tensor

from rlhf import dpo as dpo_module
from rlhf import sft as sft_module
from rlhf.config import Device, DPOConfig, Lora, PPOConfig, RewardConfig, SFTConfig
from rlhf.devices import Compute, choose
from rlhf.distributed import current, join, leave
from rlhf.memory import Budget
from rlhf.models import attach_lora, load_policy, trainable
from rlhf.ppo.actors import load_actors
from rlhf.ppo.trainer import train
from rlhf.reward_model import load_reward_model
from rlhf.reward_training import Pair, train_reward_model
from rlhf.sampling import Prompt
from rlhf.sequences import Sample
from rlhf.sft import encode_demonstrations, train_sft
from rlhf.sharding import is_shard, shard
from tests.rlhf.conftest import WORDS

PROMPTS = [Prompt(f"p{index}", f"{word} why") for index, word in enumerate(WORDS[:10])]
PPO: dict[str, Any] = {
    "updates": 3,
    # Three responses a minibatch: two processes get unequal shares.
    "batch_size": 6,
    "minibatches": 2,
    "epochs": 2,
    "value_learning_rate": 1e-2,
    "optimisation": {"learning_rate": 1e-2, "warmup_fraction": 0, "batch_tokens": 12, "max_grad_norm": 0.5},
    "decoding": {"max_new_tokens": 6},
    "kl": {"coefficient": 0.05, "target": 1.0, "budget": 1000},
    "max_update_kl": None,
    "whiten_rewards": True,
    "checkpoint_every": 2,
    "probe": {"every": 2, "prompts": 5},
}
Case = tuple[list[dict[str, Any]], list[torch.nn.Module]]
"""Rows of numbers, and the trained models."""


class Killed(BaseException):
    """A kill: nothing in the package catches it."""


@dataclass
class Setting:
    """`place`: folder of checkpoints. `kill_at`: the step at which the run is killed; 0: never."""

    folder: Path
    compute: Compute
    place: Path
    kill_at: int = 0

    def progress(self, what: str, done: int, total: int, note: str = "") -> None:
        if done == self.kill_at and "resumed" not in note:
            raise Killed


def ppo(setting: Setting, **options: Any) -> Case:
    config = PPOConfig.model_validate(PPO | options)
    torch.manual_seed(0)
    folder = setting.folder
    actors = load_actors(str(folder / "policy"), str(folder / "reward"), config, setting.compute)
    rows = train(actors, PROMPTS, config, 5, setting.place, progress=setting.progress).rows
    timeless = [{key: value for key, value in row.items() if "seconds" not in key} for row in rows]
    return timeless, [actors.policy, *([actors.critic] if actors.critic is not None else [])]


def sft(setting: Setting, lora: dict[str, Any] | None = None) -> Case:
    optimisation = {"learning_rate": 1e-2, "batch_tokens": 12}
    # Seven demonstrations, three a step: the third step ends the first epoch.
    config = SFTConfig.model_validate(
        {"epochs": 3, "batch_size": 3, "checkpoint_every": 3, "lora": lora, "optimisation": optimisation}
    )
    torch.manual_seed(0)
    model, codec = load_policy(str(setting.folder / "policy"), setting.compute, trained=True)
    if config.lora is not None:
        model = attach_lora(model, config.lora)
    texts = [(f"{word} why", " ".join(WORDS[: 1 + index])) for index, word in enumerate(WORDS[:7])]
    samples = encode_demonstrations(codec, texts)
    shard(model, setting.compute)
    rows = train_sft(model, samples, config, 0, setting.compute, setting.progress, checkpoints=setting.place)
    return rows, [model]


def sft_short_of_memory(setting: Setting) -> Case:
    """The last process runs out of memory in the middle of its first step; under FSDP it may not (see rlhf.memory)."""
    calls = 0
    real = sft_module.response_logprobs

    def once_full(*arguments: Any) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(*arguments)

    if setting.compute.sharded or setting.compute.world.rank < setting.compute.world.size - 1:
        return sft(setting)
    with mock.patch.object(sft_module, "response_logprobs", once_full):
        return sft(setting)


def reward(setting: Setting, heads: int = 1, lora: dict[str, Any] | None = None) -> Case:
    optimisation = {"learning_rate": 1e-2, "batch_tokens": 20}
    config = RewardConfig.model_validate(
        {"epochs": 3, "batch_size": 3, "checkpoint_every": 2, "patience": 0, "optimisation": optimisation}
    )
    torch.manual_seed(0)
    model = load_reward_model(str(setting.folder / "policy"), setting.compute, trained=True, heads=heads)
    if lora is not None:
        model.model = attach_lora(model.model, Lora.model_validate(lora), "SEQ_CLS")
    pairs = [
        Pair(model.encode(f"{word} why", "yes " + word), model.encode(f"{word} why", "no"), 0.5 + index / 20, 1 + index)
        for index, word in enumerate(WORDS[:10])
    ]
    shard(model.model, setting.compute)
    fit = train_reward_model(
        model, pairs[:7], pairs[7:], config, 0, setting.compute, setting.progress, checkpoints=setting.place
    )
    return [*fit.curve, {"best_step": fit.best_step}], [model.model]


def dpo(setting: Setting, lora: dict[str, Any] | None = None) -> Case:
    optimisation = {"learning_rate": 1e-2, "batch_tokens": 20}
    config = DPOConfig.model_validate(
        {"epochs": 2, "batch_size": 3, "checkpoint_every": 2, "optimisation": optimisation}
    )
    torch.manual_seed(0)
    compute = setting.compute
    model, codec = load_policy(str(setting.folder / "policy"), compute, trained=True)
    if lora is not None:
        model = attach_lora(model, Lora.model_validate(lora))
    shard(model, compute)
    pairs = []
    for index, word in enumerate(WORDS[:10]):
        prompt = codec.prompt_ids(f"{word} why")
        sides = (Sample(prompt, codec.response_ids(text)) for text in ("yes " + word, "no"))
        pairs.append(dpo_module.Pair(*sides, 0.5 + index / 20, 1.0 + index))
    pairs = dpo_module.with_reference(model, pairs, compute, Budget(20))
    rows = dpo_module.train_dpo(
        model, pairs[:7], pairs[7:], config, 0, compute, setting.progress, checkpoints=setting.place
    )
    return rows, [model]


CASES: dict[str, Callable[[Setting], Case]] = {
    "ppo_separate": ppo,
    "ppo_shared": partial(ppo, critic="shared", entropy_coefficient=0.01),
    "ppo_rloo": partial(ppo, advantage="rloo", group_size=3),
    "ppo_lora": partial(ppo, lora={"rank": 2}),
    "sft": sft,
    "sft_short_of_memory": sft_short_of_memory,
    "sft_lora": partial(sft, lora={"rank": 2}),
    "reward": reward,
    "reward_heads": partial(reward, heads=3),
    "reward_lora": partial(reward, lora={"rank": 2}),
    "dpo": dpo,
    "dpo_lora": partial(dpo, lora={"rank": 2}),
}


def whole_weights(models: list[torch.nn.Module]) -> dict[str, Tensor]:
    found = {}
    for number, model in enumerate(models):
        for name, value in trainable(model).items():
            full = value.full_tensor() if is_shard(value) else value  # type: ignore[operator]
            found[f"{number}/{name}"] = full.detach().clone().contiguous()
    return found


def is_resumed_exactly(
    case: Callable[[Setting], Case], setting: Setting, rows: list[dict[str, Any]], weights: dict[str, Tensor]
) -> bool:
    with suppress(Killed):
        case(replace(setting, kill_at=3))
        return False
    found, models = case(setting)
    again = whole_weights(models)
    return found == rows and all(torch.equal(value, again[name]) for name, value in weights.items())


def main() -> None:
    """Arguments: folder, sharding, dtype, and the names of the cases."""
    folder, sharding, dtype, *names = Path(sys.argv[1]), *sys.argv[2:]
    torch.set_num_threads(1)
    join(gpu=False, timeout_s=120)
    world = current()
    compute = choose(Device.model_validate({"device": "cpu", "sharding": sharding, "dtype": dtype}))
    for name, case in ((name, CASES[name]) for name in names):
        places = [world.once(lambda: Path(mkdtemp(dir=folder))) for _ in range(2)]
        rows, models = case(Setting(folder, compute, places[0]))
        weights = whole_weights(models)
        same = len({json.dumps(found) for found in world.gather(rows)}) == 1
        resumed = world.size == 1 or is_resumed_exactly(case, Setting(folder, compute, places[1]), rows, weights)
        if world.is_main:
            found = {"rows": rows, "processes_agree": same, "resumed": resumed}
            (folder / f"{name}-{world.size}-{sharding}.json").write_text(json.dumps(found))
            save_file(weights, folder / f"{name}-{world.size}-{sharding}.safetensors")
    leave()


if __name__ == "__main__":
    main()
