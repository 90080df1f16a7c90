"""PPO that is killed, runs out of memory, or meets a number that is none; its checkpoints. CHECKS: 28."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rlhf.memory import Budget
from rlhf.models import snapshot
from rlhf.optimisation import Optimizer
from rlhf.ppo import update as update_module
from rlhf.ppo.actors import Actors
from rlhf.ppo.trainer import Result, _optimizers, train
from rlhf.ppo.update import optimise
from store.errors import TransientError
from tests.rlhf.ppo_world import PROMPTS, config_of, count_dogs, one_batch


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
        {"critic_warmup": 3},
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


class Backwards(torch.autograd.Function):
    """A loss that is a number, with a gradient that is none."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor) -> Tensor:
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * math.nan


@pytest.mark.parametrize(
    ("name", "spoil", "said"),
    [
        ("policy_loss", lambda found: found._replace(loss=found.loss * math.nan), "policy loss"),
        ("policy_loss", lambda found: found._replace(loss=Backwards.apply(found.loss)), "policy gradient"),
        ("value_loss", lambda found: found * math.nan, "value loss"),
        ("value_loss", Backwards.apply, "value loss"),
    ],
)
def test_a_loss_that_is_no_number_stops_and_keeps_the_last_good(
    make_actors: Callable[..., Actors],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    spoil: Callable[[Any], Any],
    said: str,
) -> None:
    config = config_of(updates=6, checkpoint_every=1)
    actors = make_actors(config)
    calls = iter(range(1000))
    real = getattr(update_module, name)

    def spoilt(*args: Any) -> Any:
        return spoil(real(*args)) if next(calls) == 10 else real(*args)

    monkeypatch.setattr(update_module, name, spoilt)
    result = train(actors, PROMPTS, config, 0, tmp_path / "c")
    assert result.stopped is not None
    assert f"{said} of update 2, epoch 2, minibatch 1 (prompts p" in result.stopped
    assert result.kept == 2
    assert all(value.isfinite().all() for value in snapshot(actors.policy).values())


def test_a_score_that_is_no_number_names_the_prompt(make_actors: Callable[..., Actors], tmp_path: Path) -> None:
    config = config_of()
    actors = make_actors(config, lambda exchanges: torch.full((len(exchanges),), math.nan))
    result = train(actors, PROMPTS, config, 0, tmp_path / "c")
    assert result.stopped is not None
    assert "score of update 0 is not a number: prompt p" in result.stopped


@pytest.mark.parametrize("which", ["_policy_micro_batch", "value_loss"])
def test_out_of_memory_halves_the_micro_batch_and_goes_on(
    make_actors: Callable[..., Actors],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    which: str,
) -> None:
    """In the middle of a step: what the micro-batches before had left in the gradient must not count twice."""
    config = config_of(minibatches=1, epochs=1)
    real = getattr(update_module, which)
    found = []
    for failing in ((), (2, 4)):
        calls = iter(range(1, 1000))

        def scarce(*args: Any, calls: Any = calls, failing: tuple[int, ...] = failing) -> Any:
            if next(calls) in failing:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return real(*args)

        monkeypatch.setattr(update_module, which, scarce)
        actors = make_actors(config, count_dogs)
        gradients: list[Tensor] = []
        for optimizer in filter(None, optimizers := _optimizers(actors, config)):
            optimizer.adamw.register_step_pre_hook(
                lambda *_, optimizer=optimizer, gradients=gradients: gradients.extend(
                    value.grad.clone() for value in optimizer.parameters if value.grad is not None
                )
            )
        optimise(actors, *one_batch(actors, config), config, *optimizers, Budget(40), 0, 0)
        found.append(gradients)
    assert "going on with 10 tokens a micro-batch (halved 2 of at most 3 times)" in capsys.readouterr().err
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)


def test_out_of_memory_for_good_is_one_sentence(
    make_actors: Callable[..., Actors], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        update_module, "_policy_micro_batch", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError())
    )
    with pytest.raises(TransientError, match="Out of memory in the policy update"):
        train(make_actors(config_of()), PROMPTS, config_of(), 0, tmp_path / "d")
