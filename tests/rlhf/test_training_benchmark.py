"""What the benchmarks of training compute: arithmetic against torch's own counter, curves against known ones."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import training_flops, training_ppo_world
from benchmarks.training_figures import Line
from benchmarks.training_flops import Shape, causal_pairs
from benchmarks.training_gpu import peak_rate
from benchmarks.training_quality import compare, reward_at

TINY = training_ppo_world.TINY


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return training_ppo_world.make(tmp_path_factory.mktemp("world"), 0.05, prompts=16, world=TINY)


@pytest.fixture(scope="module")
def policy(world: Path) -> Any:
    from transformers import AutoModelForCausalLM

    # Its matrix products are torch's own, which the counter sees.
    return AutoModelForCausalLM.from_pretrained(world / "policy", attn_implementation="eager")


def counted(model: Any, ids: torch.Tensor, backward: bool) -> int:
    with FlopCounterMode(display=False) as counter:
        output = model(input_ids=ids, use_cache=False)
        if backward:
            output.logits.sum().backward()
    return int(counter.get_total_flops())


@pytest.mark.parametrize(("rows", "length"), [(1, 7), (3, 12)])
def test_counted_arithmetic_is_that_of_torchs_counter(policy: Any, rows: int, length: int) -> None:
    shape = Shape.of(policy.config)
    ids = torch.randint(3, TINY.vocabulary, (rows, length))
    tokens = rows * length
    # A whole model: every position attends to all columns, masked or not, and the head runs everywhere.
    expected = shape.trunk(tokens, tokens * length) + shape.head(tokens)
    # The table of the rotary embedding is a product of frequencies and positions: no part of the training step's work.
    rotary = rotary_work(policy, ids)
    assert counted(policy, ids, backward=False) == expected + rotary
    assert counted(policy, ids, backward=True) == 3 * expected + rotary


def rotary_work(policy: Any, ids: torch.Tensor) -> int:
    positions = torch.arange(ids.shape[1])[None]
    with FlopCounterMode(display=False) as counter:
        policy.model.rotary_emb(torch.zeros(1, 1, 1), positions)
    return int(counter.get_total_flops())


def test_the_update_counts_three_passes_an_epoch_over_each_response() -> None:
    shape = Shape(hidden=8, intermediate=16, layers=2, queries=8, keys=4, vocabulary=30)
    weights = 8 * (8 + 8 + 4 + 4) + 3 * 8 * 16
    trunk = 2 * (2 * weights * 6 + 4 * 8 * 21)  # 6 of the 7 tokens are read, 6 * 7 / 2 pairs
    head = 2 * 8 * 30 * 4
    assert shape.layer_weights == weights
    assert causal_pairs(6) == 21
    assert training_flops.update(shape, [(3, 4)], epochs=5, separate_critic=False) == 15 * (trunk + head)
    assert training_flops.update(shape, [(3, 4)] * 2, epochs=1, separate_critic=True) == 6 * (2 * trunk + head)


def test_the_matmul_rate_is_work_over_the_clocks_time() -> None:
    """Each reading of this clock is a millisecond after the last, so every triple of products takes one."""
    ticks = iter(range(10**9))
    shape = Shape(hidden=4, intermediate=6, layers=2, queries=4, keys=2, vocabulary=10)
    rate = training_flops.matmul_rate(shape, 5, torch.device("cpu"), clock=lambda: next(ticks) / 1000, seconds=0.004)
    products = {(4, 4): 4, (4, 2): 4, (4, 6): 6, (4, 10): 1}
    work = sum(6 * 5 * inner * outer * count for (inner, outer), count in products.items())
    assert rate == pytest.approx(work / (0.001 * sum(products.values())))


def test_responses_of_the_world_end_as_often_as_asked(policy: Any, world: Path) -> None:
    torch.manual_seed(1)
    ids = torch.randint(3, TINY.vocabulary, (64, 20))
    with torch.no_grad():
        chance = torch.softmax(policy(input_ids=ids).logits[:, 8:], -1)[..., training_ppo_world.END]
    assert float(chance.mean()) == pytest.approx(0.05, rel=0.1)
    assert float(chance.log().std()) < 0.2, "alike at every step, or lengths are not geometric"
    p, longest = training_ppo_world.END_PROBABILITY["natural"], training_ppo_world.SMALL.response_tokens
    assert sum((1 - p) ** step for step in range(longest)) == pytest.approx(24, abs=0.3)


def test_reward_is_read_off_the_curve_it_was_made_of() -> None:
    curve = [(kl, 0.3 + 1.5 * math.sqrt(kl) - 0.2 * kl) for kl in (0.0, 0.4, 1.0, 2.5, 6.0)]
    np.testing.assert_allclose(reward_at(curve, np.array([0.25, 4.0])), [0.3 + 0.75 - 0.05, 0.3 + 3.0 - 0.8])


def test_a_side_that_is_better_by_a_constant_is_better_by_it_at_equal_kl() -> None:
    def run(lift: float, last: float) -> list[tuple[float, float]]:
        return [(kl, lift + math.sqrt(kl)) for kl in np.linspace(0, last, 9)]

    curves = {"ours": [run(0.2, 4), run(0.3, 5), run(0.4, 9)], "TRL": [run(0.0, 7), run(0.1, 3), run(0.2, 8)]}
    mean, low, high, grid = compare(curves)
    assert (mean, low, high) == pytest.approx((0.2, 0.2, 0.2))
    assert grid[-1] == 3
    curves["TRL"][0] = run(0.3, 7)
    mean, low, high, _ = compare(curves)
    # Differences -0.1, 0.2, 0.2: mean 0.1, standard error 0.1, t of 2 degrees of freedom 4.303.
    assert (mean, low, high) == pytest.approx((0.1, 0.1 - 0.4303, 0.1 + 0.4303), abs=1e-4)


def test_targets_and_peaks() -> None:
    assert Line("", 1, 2, 2.0, ">=", 2.0).met
    assert not Line("", 1, 2, 0.61, "<=", 0.6).met
    assert peak_rate("NVIDIA H100 PCIe") == 756e12
    assert peak_rate("NVIDIA H100 80GB HBM3") == 989e12
    assert peak_rate("something else") is None
