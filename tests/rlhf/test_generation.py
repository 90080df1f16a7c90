"""Sampling. CHECKS: 2, 4, 16, 17; and determinism, independence of the batch, rows that leave and enter, agreement
with transformers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from rlhf.config import Decoding
from rlhf.devices import Compute
from rlhf.engines.transformers import TransformersEngine
from rlhf.forward import logprobs_of
from rlhf.generation import generate, keep_top, row_seed, sample_tokens
from rlhf.generation.cache import SlotCache
from rlhf.memory import Budget
from rlhf.models import disable_dropout
from rlhf.sampling import Prompt, sample_rollouts
from rlhf.sequences import Sample
from rlhf.tokens import Codec, make_codec
from store.errors import UsageError
from tests.rlhf.conftest import make_gpt2, make_llama, make_tokenizer

STOPS = frozenset({2})
SMALL: dict[str, Any] = {
    "vocab_size": 27,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "eos_token_id": 2,
    "bos_token_id": 2,
    "pad_token_id": 0,
    "initializer_range": 0.3,
}
PROMPTS = [[3, 7, 4], [3, 7, 4], [3, 9, 10, 11, 4], [4], [3, 4], [5, 2, 0, 2, 9, 4], [3, 7, 4]]
SEEDS = [row_seed("t", index) for index in range(len(PROMPTS))]


def make_mistral(**options: Any) -> Any:
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(2)
    return MistralForCausalLM(MistralConfig(**SMALL, num_key_value_heads=1, **options)).eval()


def make_mixed(**options: Any) -> Any:
    """Qwen2 with one layer of each kind."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(3)
    return Qwen2ForCausalLM(
        Qwen2Config(**SMALL, num_key_value_heads=1, use_sliding_window=True, max_window_layers=1, **options)
    ).eval()


def make_neox(**options: Any) -> Any:
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    torch.manual_seed(4)
    return GPTNeoXForCausalLM(GPTNeoXConfig(**SMALL, **options)).eval()


def make_qwen2(**options: Any) -> Any:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(5)
    return Qwen2ForCausalLM(Qwen2Config(**SMALL, num_key_value_heads=1, **options)).eval()


FAMILIES = {"llama": make_llama, "gpt2": make_gpt2, "neox": make_neox, "qwen2": make_qwen2, "mistral": make_mistral}


@pytest.fixture(params=sorted(FAMILIES))
def model(request: pytest.FixtureRequest) -> Any:
    return FAMILIES[request.param]()


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


def test_rows_leave_and_enter(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts of many lengths through few slots: whatever the order, each row is as if alone."""
    random = torch.Generator().manual_seed(0)
    prompts = [torch.randint(3, 20, (1 + row % 13,), generator=random).tolist() for row in range(40)]
    seeds = [row_seed("many", row) for row in range(len(prompts))]
    decoding = Decoding(max_new_tokens=16)
    alone = [generate(model, [p], [s], decoding, STOPS)[0] for p, s in zip(prompts, seeds, strict=True)]
    assert len({len(result.ids) for result in alone}) > 4
    steps: list[tuple[int, int]] = []
    real = SlotCache.step

    def step(cache: SlotCache, width: int) -> Any:
        steps.append((cache.rows, len({int(length) for length in cache.lengths})))
        return real(cache, width)

    monkeypatch.setattr(SlotCache, "step", step)
    done: list[int] = []
    together = generate(model, prompts, seeds, decoding, STOPS, batch_size=6, on_done=done.append)
    assert [result.ids for result in together] == [result.ids for result in alone]
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(torch.tensor(one.sampling_logprobs), torch.tensor(other.sampling_logprobs))
    assert done == sorted(done)
    assert done[-1] == len(prompts)
    # No arithmetic is spent on rows that ended: each step of each row is a token that is kept.
    assert sum(rows for rows, _ in steps) == sum(len(result.ids) - 1 for result in together)
    assert max(rows for rows, _ in steps) == 6
    assert max(lengths for _, lengths in steps) > 1
    # Fixed batches of six would wait for the longest row of each.
    fixed = sum(max(len(row.ids) for row in together[start : start + 6]) - 1 for start in range(0, 40, 6))
    assert len(steps) < fixed


def test_copies_of_a_prompt_share_its_prefill(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_llama()
    passes: list[tuple[int, ...]] = []
    model.model.register_forward_pre_hook(
        lambda _, __, given: passes.append(tuple(given["input_ids"].shape)), with_kwargs=True
    )
    generate(model, [[3, 7, 4]] * 5 + [[3, 9, 4]], [row_seed(i) for i in range(6)], Decoding(max_new_tokens=1), STOPS)
    assert passes == [(2, 3)]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("window", [3, 8])
def test_sliding_windows(attention: str, window: int) -> None:
    """A row's window starts at its own end, not at the longest row's."""
    for model in (make_mistral(sliding_window=window), make_mixed(sliding_window=window)):
        model.set_attn_implementation(attention)
        for prompt, result in zip(
            PROMPTS, generate(model, PROMPTS, SEEDS, Decoding(top_k=1, max_new_tokens=12), STOPS), strict=True
        ):
            ids = list(prompt)
            for token in result.ids:
                with torch.no_grad():
                    assert int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()) == token
                ids.append(token)


def test_the_mask_of_ragged_kernels_means_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flash attention takes the mask as [rows, columns]; the other kernels build theirs from it."""
    model = make_llama()
    expected = generate(model, PROMPTS, SEEDS, Decoding(max_new_tokens=12), STOPS)
    real = SlotCache.step

    def step(cache: SlotCache, width: int) -> Any:
        cache.flash = True
        mask = real(cache, width)
        assert mask.shape == (cache.rows, width)
        return mask

    monkeypatch.setattr(SlotCache, "step", step)
    found = generate(model, PROMPTS, SEEDS, Decoding(max_new_tokens=12), STOPS)
    assert [result.ids for result in found] == [result.ids for result in expected]


def test_unknown_caches_are_refused() -> None:
    model = make_llama()
    model.config.layer_types = ["full_attention", "linear_attention"]
    with pytest.raises(UsageError, match=r"family llama have layers of the kind linear_attention.*engine vllm"):
        generate(model, PROMPTS, SEEDS, Decoding(), STOPS)


def test_the_model_is_left_as_it_was() -> None:
    model = make_llama()
    model.config.use_cache = False
    model.train()
    generate(model, PROMPTS, SEEDS, Decoding(max_new_tokens=2), STOPS)
    assert model.training
    with pytest.raises(IndexError):
        generate(model, [[10_000]], [0], Decoding(max_new_tokens=2), STOPS)
    assert model.training
    assert model.config.use_cache is False


@pytest.mark.parametrize("vocabulary", [5, 64, 65, 200])
def test_a_token_without_probability_is_never_drawn(vocabulary: int) -> None:
    logits = torch.full((4, vocabulary), -math.inf)
    logits[:, [1, vocabulary - 2]] = 0.0
    for noise in (0.0, 0.49, 0.5, 1 - 2**-53):
        chosen, logprob, _ = sample_tokens(logits, torch.full((4,), noise, dtype=torch.float64), Decoding())
        assert set(chosen.tolist()) == {1 if noise < 0.5 else vocabulary - 2}
        torch.testing.assert_close(logprob, torch.full((4,), -math.log(2)))


def test_rounding_never_draws_behind_the_last_probability() -> None:
    logits = 5 * torch.randn(5000, 64, generator=torch.Generator().manual_seed(0))
    logits[:, 50:] = -math.inf
    chosen, _, _ = sample_tokens(logits, torch.full((5000,), 1 - 2**-53, dtype=torch.float64), Decoding())
    assert int(chosen.max()) < 50


def test_draws_equal_a_plain_cumulative_sum() -> None:
    random = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(500, 1000, generator=random)
    noise = torch.rand(500, generator=random, dtype=torch.float64)
    expected = torch.searchsorted(logits.double().softmax(-1).cumsum(-1), noise[:, None], right=True)[:, 0]
    assert torch.equal(sample_tokens(logits, noise, Decoding())[0], expected)


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

    def sample(rows: list[Prompt], batch_size: int = 256) -> list[dict[str, Any]]:
        table = sample_rollouts(
            TransformersEngine(make_llama(), compute, Budget(batch_size)), codec, rows, responses=3,
            decoding=Decoding(max_new_tokens=8), seed=5, policy="hash",
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
        TransformersEngine(make_llama(), compute, Budget(256)), make_codec(tokenizer), [Prompt("p", "dog")],
        responses=4, decoding=Decoding(max_new_tokens=5), seed=0, policy="x",
    )  # fmt: skip
    assert set(table["finish_reason"].to_pylist()) == {"length"}


def test_prompt_without_room_is_refused(codec: Codec, compute: Compute) -> None:
    with pytest.raises(UsageError, match=r"62 tokens.*holds 64"):
        sample_rollouts(
            TransformersEngine(make_llama(), compute, Budget(256)), codec, [Prompt("p", "dog " * 60)], responses=1,
            decoding=Decoding(max_new_tokens=8), seed=0, policy="x",
        )  # fmt: skip
