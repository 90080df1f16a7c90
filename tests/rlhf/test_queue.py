"""What makes a GPU's queue run dry: reading a number back. Counted here on the CPU: a training loop reads as often
with many micro-batches as with one, so that the next one is queued while the last one is still computed."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from rlhf import dpo, sft
from rlhf.config import DPOConfig, RewardConfig
from rlhf.devices import Compute
from rlhf.memory import Budget
from rlhf.ppo.actors import Actors
from rlhf.ppo.trainer import _optimizers
from rlhf.ppo.update import optimise
from rlhf.reward_model import load_reward_model
from rlhf.reward_training import Pair, _backward
from rlhf.sequences import Sample
from tests.rlhf.conftest import make_llama
from tests.rlhf.ppo_world import config_of, one_batch

READS = {"_local_scalar_dense", "nonzero", "masked_select"}
COPIES = ("cpu", "tolist", "numpy")
SAMPLES = [Sample([3, 7, 4], [8, 9, 2]), Sample([3, 4], [11]), Sample([5, 6, 12, 9, 4], [8, 10, 2]), Sample([3], [7])]


class Reads(TorchDispatchMode):
    """Counts them, but for the one a forward pass that transformers makes to see whether a row is packed."""

    def __init__(self) -> None:
        super().__init__()
        self.places: list[str] = []

    def note(self) -> None:
        frames = [frame for frame in traceback.extract_stack() if "/torch/" not in frame.filename]
        last = next(frame for frame in reversed(frames) if frame.filename != __file__)
        if "transformers" not in last.filename:
            self.places.append(f"{last.filename}:{last.lineno}")

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        masks = [index for index in args[1] if index is not None] if function.overloadpacket.__name__ == "index" else []
        if function.overloadpacket.__name__ in READS or any(index.dtype == torch.bool for index in masks):
            self.note()
        return function(*args, **(kwargs or {}))


@pytest.fixture
def reads_of(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], Any]], list[str]]:
    def count(work: Callable[[], Any]) -> list[str]:
        with Reads() as reads, monkeypatch.context() as patch:
            for name in COPIES:
                real = getattr(Tensor, name)

                def noted(tensor: Tensor, *args: Any, real: Any = real, **more: Any) -> Any:
                    reads.note()
                    return real(tensor, *args, **more)

                patch.setattr(Tensor, name, noted)
            work()
        return reads.places

    return count


@pytest.mark.parametrize("critic", ["separate", "shared"])
def test_ppo(critic: str, make_actors: Callable[..., Actors], reads_of: Any) -> None:
    config = config_of(critic=critic, minibatches=1, epochs=1)
    found = []
    for tokens in (1, 10_000):
        actors = make_actors(config)
        batch, optimizers = one_batch(actors, config), _optimizers(actors, config)

        def work(
            actors: Actors = actors, batch: Any = batch, optimizers: Any = optimizers, tokens: int = tokens
        ) -> None:
            optimise(actors, *batch, config, *optimizers, Budget(tokens), 0, 0)

        found.append(reads_of(work))
    assert found[1], "the sums and the norm of a step are read"
    assert found[0] == found[1]


@pytest.mark.parametrize("loop", ["sft", "sft of turns", "dpo", "reward"])
def test_supervised_loops(loop: str, policy_folder: Path, compute: Compute, reads_of: Any) -> None:
    model = make_llama()
    reward = load_reward_model(str(policy_folder), compute, trained=True)
    masks = [[True] * len(sample.response) for sample in SAMPLES] if loop == "sft of turns" else None
    pairs = [dpo.Pair(SAMPLES[0], SAMPLES[2], 1.0, 1.0), dpo.Pair(SAMPLES[1], SAMPLES[3], 1.0, 1.0)] * 2
    work: dict[str, Callable[[int], Any]] = {
        "dpo": lambda tokens: dpo._backward(model, pairs, tokens, DPOConfig(), compute),
        "reward": lambda tokens: _backward(
            reward, [Pair(*pair[:4]) for pair in pairs], tokens, RewardConfig(), compute
        ),
    }
    run = work.get(loop, lambda tokens: sft._backward(model, SAMPLES, tokens, compute, masks))
    assert reads_of(lambda: run(1)) == reads_of(lambda: run(10_000))
