"""Sampling. CHECKS: 2, 4, 16, 17; and determinism, independence of the batch, agreement with transformers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from rlhf.config import Decoding
from rlhf.devices import Compute
from rlhf.forward import logprobs_of
from rlhf.generation import generate, keep_top, row_seed, sample_tokens
from rlhf.memory import Budget
from rlhf.models import disable_dropout
from rlhf.sampling import Prompt, sample_rollouts
from rlhf.sequences import Sample
from rlhf.tokens import Codec, make_codec
from store.errors import UsageError
from tests.rlhf.conftest import make_gpt2, make_llama, make_tokenizer

STOPS = frozenset({2})
PROMPTS = [[3, 7, 4], [3, 7, 4], [3, 9, 10, 11, 4], [4], [3, 4], [5, 2, 0, 2, 9, 4], [3, 7, 4]]
SEEDS = [row_seed("t", index) for index in range(len(PROMPTS))]


def test_greedy_equals_transformers_generate(model: Any) -> None:
    results = generate(model, PROMPTS, SEEDS, Decoding(top_k=1, max_new_tokens=12), STOPS)
    for prompt, result in zip(PROMPTS, results, strict=True):
        expected = model.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), do_sample=False, max_new_tokens=12,
            eos_token_id=2, pad_token_id=0,
        )[0, len(prompt) :]  # fmt: skip
        assert result.ids == expected.tolist()


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_kept_logprobs_equal_recomputed_ones(model: Any, compute: Compute, temperature: float) -> None:
    results = generate(model, PROMPTS, SEEDS, Decoding(temperature=temperature, max_new_tokens=16), STOPS)
    samples = [Sample(prompt, result.ids) for prompt, result in zip(PROMPTS, results, strict=True)]
    at_temperature = logprobs_of(model, samples, compute, Budget(10_000), temperature)
    at_one = logprobs_of(model, samples, compute, Budget(10_000))
    for result, tempered, plain in zip(results, at_temperature, at_one, strict=True):
        torch.testing.assert_close(torch.tensor(result.sampling_logprobs), tempered, atol=1e-4, rtol=0)
        assert result.logprob == pytest.approx(float(plain.sum()), abs=1e-3)


def test_a_response_does_not_depend_on_its_batch(model: Any) -> None:
    decoding = Decoding(max_new_tokens=16)
    together = generate(model, PROMPTS, SEEDS, decoding, STOPS)
    assert len({tuple(result.ids) for result in together}) > 3
    for batch_size in (1, 2, 5):
        parts = generate(model, PROMPTS, SEEDS, decoding, STOPS, batch_size=batch_size)
        assert [result.ids for result in parts] == [result.ids for result in together]
    last = generate(model, PROMPTS[-1:], SEEDS[-1:], decoding, STOPS)
    assert last[0].ids == together[-1].ids


def test_seeds_make_the_difference() -> None:
    model = make_llama()
    one = generate(model, PROMPTS, SEEDS, Decoding(max_new_tokens=8), STOPS)
    two = generate(model, PROMPTS, [seed + 1 for seed in SEEDS], Decoding(max_new_tokens=8), STOPS)
    assert [result.ids for result in one] != [result.ids for result in two]


def test_stop_is_sampled_or_absent() -> None:
    results = generate(
        make_llama(), [[3, 4]] * 200, [row_seed(i) for i in range(200)], Decoding(max_new_tokens=6), STOPS
    )
    reasons = {result.finish_reason for result in results}
    assert reasons == {"stop", "length"}
    for result in results:
        assert 2 not in result.ids[:-1]
        assert (result.ids[-1] == 2) == (result.finish_reason == "stop")
        assert result.finish_reason == "stop" or len(result.ids) == 6
        assert len(result.sampling_logprobs) == len(result.ids)


def test_samples_follow_the_distribution() -> None:
    logits = torch.tensor([[1.0, 0.0, -1.0, 2.0]])
    noise = torch.rand(100_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    chosen, tempered, plain = sample_tokens(logits.expand(len(noise), -1), noise, Decoding(temperature=0.5))
    expected = torch.softmax(logits[0] / 0.5, -1)
    shares = torch.bincount(chosen, minlength=4) / len(noise)
    torch.testing.assert_close(shares, expected, atol=0.005, rtol=0)
    torch.testing.assert_close(tempered, expected.log()[chosen])
    torch.testing.assert_close(plain, torch.log_softmax(logits[0], -1)[chosen])


def test_top_p_and_top_k_by_hand() -> None:
    p = torch.tensor([[0.1, 0.4, 0.3, 0.2]])
    assert keep_top(p, 1.0, 2).tolist() == [[0, pytest.approx(0.4), pytest.approx(0.3), 0]]
    assert (keep_top(p, 0.5, 0) > 0).tolist() == [[False, True, True, False]]
    assert (keep_top(p, 0.4, 0) > 0).tolist() == [[False, True, False, False]]
    assert (keep_top(p, 1e-9, 0) > 0).sum() == 1
    assert (keep_top(torch.full((1, 4), 0.25), 1.0, 2) > 0).sum() == 2
    end = torch.tensor([1.0 - 2**-53], dtype=torch.float64)
    assert int(sample_tokens(p.log(), end, Decoding(top_k=1))[0]) == 1


def test_dropout_is_off() -> None:
    model = make_gpt2(resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5)
    model.train()
    ids = torch.arange(6)[None]
    assert not torch.equal(model(input_ids=ids).logits, model(input_ids=ids).logits)
    disable_dropout(model)
    assert torch.equal(model(input_ids=ids).logits, model(input_ids=ids).logits)
    llama = make_llama(attention_dropout=0.5)
    llama.train()
    disable_dropout(llama)
    assert torch.equal(llama(input_ids=ids).logits, llama(input_ids=ids).logits)


def test_rollouts_table(codec: Codec, compute: Compute) -> None:
    prompts = [Prompt("p1", "why dog"), Prompt("p2", "the cat sees")]

    def sample(rows: list[Prompt], **options: Any) -> list[dict[str, Any]]:
        table = sample_rollouts(
            make_llama(), codec, rows, responses=3, decoding=Decoding(max_new_tokens=8), seed=5, policy="hash",
            compute=compute, **options,
        )  # fmt: skip
        return table.to_pylist()

    rows = sample(prompts)
    assert [(row["prompt_id"], row["sample"]) for row in rows] == [(p.prompt_id, k) for p in prompts for k in range(3)]
    assert len({row["rollout_id"] for row in rows}) == 6
    assert all(row["logprob"] < 0 and 1 <= row["n_tokens"] <= 8 and row["policy"] == "hash" for row in rows)
    assert [row["response"] for row in sample(prompts[1:], batch_size=1)] == [row["response"] for row in rows[3:]]


def test_model_without_stop_token_runs_to_the_length(compute: Compute) -> None:
    tokenizer = make_tokenizer(template=False)
    tokenizer.eos_token = None
    table = sample_rollouts(
        make_llama(), make_codec(tokenizer), [Prompt("p", "dog")], responses=4, decoding=Decoding(max_new_tokens=5),
        seed=0, policy="x", compute=compute,
    )  # fmt: skip
    assert set(table["finish_reason"].to_pylist()) == {"length"}


def test_prompt_without_room_is_refused(codec: Codec, compute: Compute) -> None:
    with pytest.raises(UsageError, match=r"62 tokens.*holds 64"):
        sample_rollouts(
            make_llama(), codec, [Prompt("p", "dog " * 60)], responses=1, decoding=Decoding(max_new_tokens=8), seed=0,
            policy="x", compute=compute,
        )  # fmt: skip
