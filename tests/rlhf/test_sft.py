"""SFT: completion-only loss. CHECKS: 5 (pad == EOS), 13, 14."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from rlhf.config import Optimisation, SFTConfig
from rlhf.curve import batches
from rlhf.devices import Compute
from rlhf.forward import logprobs_of
from rlhf.memory import Budget
from rlhf.models import trainable
from rlhf.sequences import Sample
from rlhf.sft import _backward, encode_demonstrations, train_sft
from rlhf.tokens import Codec, make_codec
from store.errors import RlaifError, UsageError
from tests.rlhf.conftest import make_llama, make_tokenizer
from tests.rlhf.test_logprobs import random_samples


def reference_loss(model: Any, samples: list[Sample]) -> torch.Tensor:
    """Transformers' own loss with labels -100 on the prompt, one sequence at a time, weighted by tokens."""
    total, count = torch.zeros(()), 0
    for sample in samples:
        ids = torch.tensor([[*sample.prompt, *sample.response]])
        labels = ids.clone()
        labels[:, : len(sample.prompt)] = -100
        total = total + model(input_ids=ids, labels=labels).loss * len(sample.response)
        count += len(sample.response)
    return total / count


@pytest.mark.parametrize("budget", [1, 100_000])
def test_loss_and_gradient_equal_transformers_whatever_the_micro_batch(
    model: Any, compute: Compute, budget: int
) -> None:
    samples = random_samples(8)
    expected = reference_loss(model, samples)
    expected.backward()
    gradients = {name: value.grad.clone() for name, value in model.named_parameters()}
    model.zero_grad()
    assert float(_backward(model, samples, budget, compute)) == pytest.approx(float(expected.detach()), abs=1e-5)
    for name, value in model.named_parameters():
        torch.testing.assert_close(value.grad, gradients[name], atol=1e-5, rtol=1e-4)


def test_eos_is_trained_also_where_it_pads(compute: Compute) -> None:
    losses = []
    for pad in ("<pad>", "<eos>"):
        codec = make_codec(make_tokenizer(pad=pad), make_llama().config)
        samples = encode_demonstrations(codec, [("why dog", "cat"), ("the sea", "blue green sea sky")])
        model = make_llama()
        end = model.lm_head.weight[2].detach().clone()
        config = SFTConfig(epochs=20, batch_size=2, optimisation=Optimisation(learning_rate=1e-2))
        curve = train_sft(model, samples, config, 0, compute)
        assert len(curve) == 20
        assert curve[-1]["loss"] < 0.5 * curve[0]["loss"]
        assert not torch.equal(model.lm_head.weight[2], end)
        stops = [float(row[-1]) for row in logprobs_of(model, samples, compute, Budget(1000))]
        assert min(stops) > -1.0
        losses.append([row["loss"] for row in curve])
    assert losses[0] == losses[1]


def test_steps_follow_epochs_and_batch_size(codec: Codec, compute: Compute) -> None:
    samples = encode_demonstrations(codec, [("dog", "cat")] * 10)
    assert len(train_sft(make_llama(), samples, SFTConfig(epochs=2.5, batch_size=5), 0, compute)) == 5
    drawn = batches(10, 4, 0)
    epoch = [index for _ in range(3) for index in next(drawn)]
    assert sorted(epoch) == list(range(10))
    assert [index for _ in range(3) for index in next(drawn)] != epoch


def test_too_long_or_endless_demonstrations_are_refused(codec: Codec) -> None:
    with pytest.raises(UsageError, match=r"have \d+ tokens, but the context of .* holds 64"):
        encode_demonstrations(codec, [("dog", "cat " * 70)])
    tokenizer = make_tokenizer(template=False)
    tokenizer.eos_token = None
    with pytest.raises(UsageError, match="no end token"):
        encode_demonstrations(make_codec(tokenizer), [("dog", "cat")])


def test_a_loss_that_is_no_number_stops(codec: Codec, compute: Compute) -> None:
    model = make_llama()
    with torch.no_grad():
        next(iter(trainable(model).values())).fill_(float("nan"))
    with pytest.raises(RlaifError, match=r"SFT step 1 \(demonstrations 0, \.\.\.\) is not a number"):
        train_sft(model, encode_demonstrations(codec, [("dog", "cat")]), SFTConfig(), 0, compute)
