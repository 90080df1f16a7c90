"""DPO: its loss against a closed form in float64 without packing, its training, its stage."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from rlhf.config import DPOConfig, Lora
from rlhf.devices import Compute
from rlhf.dpo import SUMS, Pair, _backward, implicit_rewards, train_dpo, validate, with_reference
from rlhf.memory import Budget
from rlhf.models import attach_lora, load_policy, snapshot, trainable
from rlhf.sequences import Sample, pack
from store.errors import UsageError
from tests.rlhf.conftest import make_llama
from tests.rlhf.stage_world import run, write_preferences

PAIRS = [
    Pair(Sample([3, 7, 4], [8, 9, 2]), Sample([3, 7, 4], [10, 2]), 0.9, 1.0),
    Pair(Sample([3, 5], [11, 2]), Sample([3, 5], [12, 13, 14, 15, 2]), 0.5, 1.0),
    Pair(Sample([3, 9, 4, 4, 4], [2]), Sample([3, 9, 4, 4, 4], [6, 2]), 1.0, 2.0),
]


def logprob(model: Any, sample: Sample) -> torch.Tensor:
    """log p(y|x), one sequence at a time, from the whole model's logits."""
    ids = torch.tensor([[*sample.prompt, *sample.response]])
    logp = torch.log_softmax(model(input_ids=ids).logits.double(), -1)[0]
    start = len(sample.prompt)
    return sum((logp[start + t - 1, token] for t, token in enumerate(sample.response)), torch.zeros(()).double())


def closed_form(model: Any, reference: Any, beta: float, smoothing: float) -> torch.Tensor:
    total, weights = torch.zeros(()).double(), 0.0
    for pair in PAIRS:
        with torch.no_grad():
            base = logprob(reference, pair.chosen) - logprob(reference, pair.rejected)
        gap = beta * (logprob(model, pair.chosen) - logprob(model, pair.rejected) - base)
        q = pair.p_chosen * (1 - 2 * smoothing) + smoothing
        total = total - pair.weight * (q * torch.log(torch.sigmoid(gap)) + (1 - q) * torch.log(torch.sigmoid(-gap)))
        weights += pair.weight
    return total / weights


@pytest.mark.parametrize("tokens", [1, 20, 1000])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_and_gradient_equal_the_closed_form(compute: Compute, tokens: int, smoothing: float) -> None:
    model, reference = make_llama(seed=0), make_llama(seed=4)
    pairs = with_reference(reference, PAIRS, compute, Budget(1000))
    config = DPOConfig(beta=0.3, label_smoothing=smoothing)
    found = dict(zip(SUMS, _backward(model, pairs, tokens, config, compute).tolist(), strict=True))
    gradients = {name: value.grad.clone() for name, value in trainable(model).items()}  # type: ignore[union-attr]
    model.zero_grad()
    expected = closed_form(model, reference, 0.3, smoothing)
    expected.backward()
    assert found["loss"] == pytest.approx(float(expected.detach()), abs=1e-5)
    for name, value in trainable(model).items():
        torch.testing.assert_close(gradients[name], value.grad, atol=1e-5, rtol=1e-3)


def test_first_loss_is_that_of_a_coin_toss_and_an_even_label_has_no_gradient(compute: Compute) -> None:
    model = make_llama()
    pairs = with_reference(model, PAIRS, compute, Budget(1000))
    found = dict(zip(SUMS, _backward(model, pairs, 1000, DPOConfig(), compute).tolist(), strict=True))
    assert found["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert found["chosen_reward"] == pytest.approx(0, abs=1e-6)
    model.zero_grad()
    _backward(model, [pairs[1]], 1000, DPOConfig(), compute)  # p_chosen 0.5
    assert all(float(value.grad.abs().max()) < 1e-6 for value in trainable(model).values())  # type: ignore[union-attr]


def test_a_hard_label_is_learnt_further_than_a_soft_one(compute: Compute) -> None:
    gaps = []
    for label in (0.6, 1.0):
        model = make_llama()
        pairs = with_reference(model, [PAIRS[0]._replace(p_chosen=label)], compute, Budget(1000))
        config = DPOConfig.model_validate(
            {
                "epochs": 60,
                "batch_size": 1,
                "beta": 1.0,
                "optimisation": {"learning_rate": 3e-2, "schedule": "constant"},
            }
        )
        train_dpo(model, pairs, [], config, 0, compute)
        with torch.no_grad():
            rewards = implicit_rewards(
                model, pack([pairs[0].chosen, pairs[0].rejected], [0, 1], compute.device), pairs, 1.0
            )
        gaps.append(float(rewards[0, 0] - rewards[0, 1]))
    assert gaps[0] == pytest.approx(math.log(0.6 / 0.4), abs=0.1)  # the optimum is the label's log-odds
    assert gaps[1] > 2


def test_reference_of_lora_is_the_policy_without_adapters(policy_folder: Path, compute: Compute) -> None:
    plain, _ = load_policy(str(policy_folder), compute)
    model = attach_lora(load_policy(str(policy_folder), compute, trained=True)[0], Lora(rank=2))
    ours, theirs = (with_reference(one, PAIRS, compute, Budget(1000)) for one in (model, plain))
    assert [pair.reference_chosen for pair in ours] == pytest.approx([pair.reference_chosen for pair in theirs])
    curve = train_dpo(model, ours, ours, DPOConfig(batch_size=3), 0, compute)
    assert set(validate(model, ours, 0.1, compute, Budget(1000))) <= set(curve[-1])


@pytest.mark.parametrize("lora", [None, {"rank": 2}])
def test_stage_learns_the_preference(policy_folder: Path, tmp_path: Path, lora: Any) -> None:
    config = {"epochs": 12, "batch_size": 8, "optimisation": {"learning_rate": 2e-2}, "lora": lora, "tracking": []}
    inputs = {"policy": policy_folder, "preferences": write_preferences(tmp_path)}
    metrics = run("dpo", tmp_path / "dpo", config, inputs).manifest.metrics
    assert metrics["loss_start"] == pytest.approx(math.log(2), abs=1e-4)
    assert metrics["accuracy"] > 0.8
    assert metrics["train_pairs"] + metrics["test_pairs"] == 30
    again = run("dpo", tmp_path / "again", config, inputs)
    assert again.manifest.metrics["loss_end"] == metrics["loss_end"]
    assert len(pq.read_table(tmp_path / "dpo" / "curve.parquet")) == metrics["steps"]
    assert (tmp_path / "dpo" / "policy" / "model.safetensors").is_file()


class Killed(BaseException):
    """A kill: nothing in the package catches it."""


def test_a_killed_run_goes_on_to_the_same_bits(compute: Compute, tmp_path: Path) -> None:
    config = DPOConfig.model_validate({"epochs": 4, "batch_size": 2, "checkpoint_every": 2})

    def weights(folder: Path, kill_at: int | None = None) -> Any:
        def progress(what: str, done: int, total: int, note: str = "") -> None:
            if done == kill_at:
                raise Killed

        model = make_llama()
        pairs = with_reference(model, PAIRS, compute, Budget(1000))
        curve = train_dpo(model, pairs, pairs, config, 0, compute, progress, checkpoints=folder)
        return curve, snapshot(model)

    whole, expected = weights(tmp_path / "whole")
    with pytest.raises(Killed):
        weights(tmp_path / "cut", kill_at=5)
    curve, found = weights(tmp_path / "cut")
    assert curve == whole
    assert all(torch.equal(value, expected[name]) for name, value in found.items())


def test_too_long_a_response_is_one_sentence(policy_folder: Path, tmp_path: Path) -> None:
    import pyarrow as pa

    from store.schemas import PREFERENCES
    from store.tables import write_table

    path = write_preferences(tmp_path)
    rows = pq.read_table(path).to_pylist()
    rows[0]["chosen"] = "yes " * 100
    write_table(path, PREFERENCES, pa.Table.from_pylist(rows, schema=PREFERENCES.schema))
    with pytest.raises(UsageError, match="tokens, but the context of"):
        run("dpo", tmp_path / "dpo", {"tracking": []}, {"policy": policy_folder, "preferences": path})
