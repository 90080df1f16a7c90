"""Log-probs, packing and masks. CHECKS, reward model and PPO: 2, 3, 4, 5, 8 (in part), 29."""

from __future__ import annotations

import itertools
import math
import random
from typing import Any

import pytest
import torch

from rlhf.devices import Compute
from rlhf.forward import logprobs_of, response_logprobs
from rlhf.logprobs import token_logprobs, token_logprobs_and_entropy
from rlhf.memory import Budget
from rlhf.models import head, hidden_states
from rlhf.sequences import Sample, flat_of, length_mask, micro_batches, pack, pad_rows, rows_of, split, split_padded

CPU = torch.device("cpu")


def random_samples(count: int, seed: int = 0, longest: int = 20) -> list[Sample]:
    generator = torch.Generator().manual_seed(seed)

    def ids(least: int) -> list[int]:
        length = int(torch.randint(least, longest, (1,), generator=generator))
        return torch.randint(0, 27, (length,), generator=generator).tolist()

    return [Sample(ids(1), ids(1)) for _ in range(count)]


def single(model: Any, sample: Sample, temperature: float = 1.0) -> torch.Tensor:
    """The slow way: the model's own forward pass on one unpadded sequence, and a loop over tokens."""
    ids = torch.tensor([[*sample.prompt, *sample.response]])
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0].double()
    values = []
    for step, token in enumerate(sample.response):
        row = logits[len(sample.prompt) + step - 1] / temperature
        values.append(float(row[token] - torch.log(torch.exp(row - row.max()).sum()) - row.max()))
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("budget", [1, 60, 100_000])
def test_packed_logprobs_equal_a_token_by_token_loop_of_singles(
    model: Any, compute: Compute, temperature: float, budget: int
) -> None:
    samples = [*random_samples(23), Sample([5], [2]), Sample([5, 6], [7])]
    packed = logprobs_of(model, samples, compute, Budget(budget), temperature)
    for sample, row in zip(samples, packed, strict=True):
        torch.testing.assert_close(row.double(), single(model, sample, temperature), atol=1e-5, rtol=0)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packing_does_not_depend_on_the_attention_kernel(model: Any, compute: Compute, attention: str) -> None:
    samples = random_samples(8)
    model.set_attn_implementation(attention)
    for sample, row in zip(samples, logprobs_of(model, samples, compute, Budget(10_000)), strict=True):
        torch.testing.assert_close(row.double(), single(model, sample), atol=1e-5, rtol=0)


@pytest.mark.parametrize("row_tokens", [1, 39, 64, 500])
def test_row_width_does_not_change_logprobs(model: Any, row_tokens: int) -> None:
    samples = random_samples(9)
    with torch.no_grad():
        batch = pack(samples, range(9), CPU, row_tokens)
        rows = rows_of(response_logprobs(model, batch), batch.lengths)
    for sample, row in zip(samples, rows, strict=True):
        torch.testing.assert_close(row.double(), single(model, sample), atol=1e-5, rtol=0)


@pytest.mark.parametrize("whole", [False, True])
def test_unused_ends_of_rows_are_never_read(model: Any, whole: bool) -> None:
    samples = random_samples(5)
    batch = pack(samples, range(5), CPU, whole=whole)
    used = torch.zeros(batch.ids.numel(), dtype=torch.bool)
    for sample, last in zip(samples, batch.last.tolist(), strict=True):
        used[last - sample.length + (1 if whole else 2) : last + 1] = True
    garbage = batch.ids.flatten().clone()
    garbage[~used] = 9
    assert (~used).any()
    with torch.no_grad():
        before = response_logprobs(model, batch)
        after = response_logprobs(model, batch._replace(ids=garbage.view_as(batch.ids)))
    torch.testing.assert_close(before, after, atol=1e-6, rtol=0)


@pytest.mark.parametrize("whole", [False, True])
def test_rows_hold_each_token_once_and_no_position_beyond_the_longest(whole: bool) -> None:
    generator = random.Random(0)
    samples = [Sample([1] * generator.randint(1, 20), [2] * generator.randint(1, 50)) for _ in range(40)]
    batch = pack(samples, range(40), CPU, row_tokens=1, whole=whole)
    longest = max(sample.length for sample in samples) - (0 if whole else 1)
    assert batch.positions.max() == longest - 1
    assert longest <= batch.ids.shape[1] <= 1.5 * longest
    assert int((batch.ids == 2).sum()) == sum(len(sample.response) - (0 if whole else 1) for sample in samples)
    assert int((batch.ids == 1).sum()) == sum(len(sample.prompt) for sample in samples)
    assert int((batch.ids != 0).sum()) >= 0.93 * batch.ids.numel()


def test_gradients_through_packing_equal_those_of_singles(model: Any) -> None:
    samples = random_samples(6)
    response_logprobs(model, pack(samples, range(6), CPU)).sum().backward()
    packed = {name: value.grad.clone() for name, value in model.named_parameters()}
    model.zero_grad()
    for index in range(6):
        response_logprobs(model, pack(samples, [index], CPU)).sum().backward()
    for name, value in model.named_parameters():
        torch.testing.assert_close(packed[name], value.grad, atol=2e-4, rtol=1e-4)


def test_every_id_may_be_a_real_token(model: Any, compute: Compute) -> None:
    """Id 0 is both padding and, here, a real token; id 2 is EOS."""
    samples = [Sample([0, 0, 3], [0, 2, 0, 2]), Sample([2], [0])]
    for sample, row in zip(samples, logprobs_of(model, samples, compute, Budget(1000)), strict=True):
        assert len(row) == len(sample.response)
        torch.testing.assert_close(row.double(), single(model, sample), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kept", [0, 20 * 30, 10**9])
@pytest.mark.parametrize("chunk", [1, 7 * 30, 10**9])
def test_neither_chunks_nor_what_they_keep_change_values_or_gradients(chunk: int, kept: int) -> None:
    torch.manual_seed(0)
    hidden, weight = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((50, 8), (8, 30)))
    targets, upstream = torch.randint(0, 30, (50,)), torch.randn(50)
    value = token_logprobs(hidden, lambda h: h @ weight, targets, 0.7, chunk, kept)
    expected = torch.log_softmax(hidden @ weight / 0.7, -1)[torch.arange(50), targets]
    torch.testing.assert_close(value, expected)
    ours = torch.autograd.grad((value.square() * upstream).sum(), [hidden, weight])
    theirs = torch.autograd.grad((expected.square() * upstream).sum(), [hidden, weight])
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)


def test_gradient_of_logprobs_agrees_with_finite_differences() -> None:
    torch.manual_seed(0)
    logits = (3 * torch.randn(4, 6, dtype=torch.float64)).requires_grad_()
    targets = torch.tensor([0, 5, 2, 2])
    token_logprobs(logits, lambda h: h, targets, 1.3).sum().backward()
    assert logits.grad is not None
    with torch.no_grad():
        for row in range(4):
            for column in range(6):
                step = torch.zeros_like(logits)
                step[row, column] = 1e-6
                above, below = (token_logprobs(logits + way * step, lambda h: h, targets, 1.3).sum() for way in (1, -1))
                torch.testing.assert_close(logits.grad[row, column], (above - below) / 2e-6, atol=1e-7, rtol=1e-6)


def test_logprobs_of_tokens_that_the_softmax_rounds_to_zero_are_exact() -> None:
    logits = torch.tensor([[0.0, -200.0, 1e4], [5.0, 5.0, 5.0]], requires_grad=True)
    value = token_logprobs(logits, lambda h: h, torch.tensor([1, 0]))
    torch.testing.assert_close(value, torch.tensor([-10200.0, -math.log(3)]))
    value.sum().backward()
    torch.testing.assert_close(logits.grad, torch.tensor([[0.0, 1.0, -1.0], [2 / 3, -1 / 3, -1 / 3]]))


def test_logprobs_of_bfloat16_logits_are_summed_in_float32() -> None:
    torch.manual_seed(0)
    logits = torch.randn(3, 4000).bfloat16().requires_grad_()
    targets = torch.tensor([1, 2, 3])
    value = token_logprobs(logits, lambda h: h, targets)
    exact = torch.log_softmax(logits.detach().double(), -1)
    torch.testing.assert_close(value.double(), exact[torch.arange(3), targets], atol=1e-5, rtol=0)
    value.sum().backward()
    assert logits.grad is not None
    assert logits.grad.dtype == torch.bfloat16
    onehot = torch.nn.functional.one_hot(targets, 4000)
    torch.testing.assert_close(logits.grad.double(), onehot - exact.exp(), atol=4e-3, rtol=1e-2)


def test_the_gradient_of_logprobs_can_be_taken_once_only() -> None:
    logits = torch.randn(3, 5, requires_grad=True)
    total = token_logprobs(logits, lambda h: h, torch.tensor([0, 1, 2])).sum()
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="inplace"):
        total.backward()


def test_entropy_is_that_of_the_tempered_distribution() -> None:
    torch.manual_seed(0)
    hidden, targets = torch.randn(5, 30), torch.arange(5)
    logprobs, entropy = token_logprobs_and_entropy(hidden, lambda h: h, targets, 0.7)
    expected = torch.distributions.Categorical(logits=hidden / 0.7)
    torch.testing.assert_close(entropy, expected.entropy())
    torch.testing.assert_close(logprobs, expected.log_prob(targets))


def test_head_matches_the_models_own_logits_where_a_family_scales_them() -> None:
    from transformers import CohereConfig, CohereForCausalLM, Gemma2Config, Gemma2ForCausalLM

    small = {"vocab_size": 27, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    small |= {"num_attention_heads": 2, "num_key_value_heads": 2, "pad_token_id": 0, "eos_token_id": 2}
    ids = torch.arange(6)[None]
    for other in (
        Gemma2ForCausalLM(Gemma2Config(**small, head_dim=8, final_logit_softcapping=0.1, bos_token_id=1)),
        CohereForCausalLM(CohereConfig(**small, logit_scale=0.25, bos_token_id=1)),
    ):
        other.eval()
        with torch.no_grad():
            ours = head(other)(hidden_states(other, ids, ids))
            torch.testing.assert_close(ours, other(input_ids=ids).logits[0])


def test_split_keeps_order_and_budget() -> None:
    costs = [5, 5, 5, 20, 1, 1]
    assert split(costs, 10) == [[0, 1], [2], [3], [4, 5]]
    assert [batch.members for batch in micro_batches([Sample([1], [1] * (c - 1)) for c in costs[:2]], 10, CPU)] == [
        [0, 1]
    ]


def test_padded_passes_cost_the_least_that_any_cut_costs() -> None:
    """Against every cut of the sorted lengths there is."""

    def cost(parts: list[list[int]], lengths: list[int], budget: int) -> float:
        return sum(len(part) * max(lengths[index] for index in part) + budget / 16 for part in parts)

    for seed in range(30):
        generator = random.Random(seed)
        lengths = [generator.randint(1, 60) for _ in range(generator.randint(1, 9))]
        budget = generator.choice([16, 64, 160])
        parts = split_padded(lengths, budget)
        assert sorted(index for part in parts for index in part) == list(range(len(lengths)))
        assert all(len(part) == 1 or len(part) * max(lengths[i] for i in part) <= budget for part in parts)
        order = sorted(range(len(lengths)), key=lengths.__getitem__)
        best = float("inf")
        for cuts in itertools.product([False, True], repeat=len(order) - 1):
            ends = [at + 1 for at, cut in enumerate(cuts) if cut]
            tried = [order[a:b] for a, b in itertools.pairwise([0, *ends, len(order)])]
            if all(len(part) == 1 or len(part) * max(lengths[i] for i in part) <= budget for part in tried):
                best = min(best, cost(tried, lengths, budget))
        assert cost(parts, lengths, budget) == pytest.approx(best)
    assert split_padded([], 16) == []
    assert split_padded([5, 3, 4], 1) == [[1], [2], [0]], "one at a time, as where a batch cannot be padded"


def test_padding_and_cutting_are_inverse() -> None:
    rows = [torch.arange(3.0), torch.arange(1.0), torch.arange(4.0)]
    padded = pad_rows(rows)
    assert padded.shape == (3, 4)
    assert length_mask([3, 1, 4]).sum(1).tolist() == [3, 1, 4]
    torch.testing.assert_close(flat_of(padded, [2, 0], [4, 3]), torch.cat([rows[2], rows[0]]))
