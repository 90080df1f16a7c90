"""Flash attention, whose kernels need a GPU: here a slow stand-in behind transformers' own code, with the kernels'
rules (half precision only, no mask but the borders of sequences), against the same model with plain attention."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version
from torch import Tensor
from transformers import modeling_flash_attention_utils as flash

from rlhf.config import Decoding, Device
from rlhf.devices import Compute, choose
from rlhf.forward import response_logprobs
from rlhf.generation import generate
from rlhf.models import hidden_states, load_policy
from rlhf.reward_model import load_reward_model
from rlhf.sequences import Sample, pack
from store.errors import UsageError
from tests.rlhf.conftest import MODELS

SAMPLES = [
    Sample([3, 7, 4], [8, 9, 2]),
    Sample([3, 4], [11]),
    Sample([5, 6, 12, 9, 4], [8] * 30),
    Sample([4] * 25, [7]),
]
CPU = torch.device("cpu")


def attend(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float | None) -> Tensor:
    """[q, heads, size] of one sequence; the last query sees the last key."""
    k, v = (one.repeat_interleave(q.shape[1] // one.shape[1], 1) for one in (k, v))
    scores = torch.einsum("qhd,khd->hqk", q.float(), k.float()) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if causal:
        hidden = torch.ones(q.shape[0], k.shape[0], dtype=torch.bool).triu(1 + k.shape[0] - q.shape[0])
        scores = scores.masked_fill(hidden, float("-inf"))
    return torch.einsum("hqk,khd->qhd", scores.softmax(-1), v.float()).to(q.dtype)


def varlen(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
) -> Tensor:
    CALLS.append(len(cu_seqlens_q) - 1)
    assert {q.dtype, k.dtype, v.dtype} == {torch.bfloat16}, "FlashAttention only supports fp16 and bf16"
    assert cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32
    assert max_seqlen_q == int(cu_seqlens_q.diff().max())
    borders = zip(cu_seqlens_q.tolist(), cu_seqlens_q.tolist()[1:], strict=False)
    others = zip(cu_seqlens_k.tolist(), cu_seqlens_k.tolist()[1:], strict=False)
    parts = [
        attend(q[a:b], k[c:d], v[c:d], causal, softmax_scale) for (a, b), (c, d) in zip(borders, others, strict=True)
    ]
    return torch.cat(parts)


def dense(
    q: Tensor, k: Tensor, v: Tensor, dropout_p: float = 0.0, softmax_scale: float | None = None, causal: bool = False
) -> Tensor:
    assert {q.dtype, k.dtype, v.dtype} == {torch.bfloat16}, "FlashAttention only supports fp16 and bf16"
    return torch.stack([attend(*row, causal, softmax_scale) for row in zip(q, k, v, strict=True)])


CALLS: list[int] = []
"""Sequences that each call of the ragged kernel told apart."""


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flash, "_loaded_implementation", "flash_attention_2")
    for name, function in {
        "_flash_fn": dense,
        "_flash_varlen_fn": varlen,
        "_pad_fn": flash._pad_input,
        "_unpad_fn": flash._unpad_input,
        "_process_flash_kwargs_fn": flash._lazy_define_process_function(varlen),
    }.items():
        monkeypatch.setattr(flash, name, function)
    CALLS.clear()


def pair(make: Callable[..., Any]) -> tuple[Any, Any]:
    """The same model with flash attention, and with plain one."""
    one, other = make(), make()
    one.config._attn_implementation = "flash_attention_2"
    other.config._attn_implementation = "eager"
    return one, other


def compute_of() -> Compute:
    return Compute(CPU, torch.bfloat16)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("family", sorted(MODELS))
def test_sequences_of_several_rows_do_not_see_each_other(family: str) -> None:
    ours, plain = pair(MODELS[family])
    batch = pack(SAMPLES, range(4), CPU, row_tokens=34)
    assert len(batch.ids) > 1
    assert len(batch.ids) < 4
    with compute_of().autocast():
        found = response_logprobs(ours, batch)
        expected = response_logprobs(plain, batch)
        singles = torch.cat([response_logprobs(plain, pack([sample], [0], CPU)) for sample in SAMPLES])
    torch.testing.assert_close(expected, singles, atol=0.08, rtol=0)
    torch.testing.assert_close(found, singles, atol=0.08, rtol=0)
    assert CALLS
    found.sum().backward()
    expected.sum().backward()
    for one, other in zip(ours.parameters(), plain.parameters(), strict=True):
        assert torch.cosine_similarity(one.grad.flatten(), other.grad.flatten(), 0) > 0.99


@pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.19"),
    reason="older versions of transformers look for borders in every layer even where they are told",
)
@pytest.mark.usefixtures("kernels")
def test_layers_are_told_the_borders_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where each layer looks for them itself, a GPU's queue runs dry at each."""
    monkeypatch.setattr(flash, "_is_packed_sequence", lambda *_: pytest.fail("a layer waited for the positions"))
    ours, _ = pair(MODELS["llama"])
    batch = pack(SAMPLES, range(4), CPU)
    with torch.no_grad(), compute_of().autocast():
        hidden_states(ours, batch.ids, batch.positions)
    assert len(CALLS) == ours.config.num_hidden_layers


@pytest.mark.usefixtures("kernels")
def test_generation_equals_plain_attention() -> None:
    ours, plain = pair(MODELS["llama"])
    found, expected = (
        generate(
            model,
            [[3, 7, 4], [5], [3, 9, 4, 6, 7]],
            [1, 2, 3],
            Decoding(max_new_tokens=9),
            frozenset([2]),
            autocast=compute_of().autocast,
        )
        for model in (ours, plain)
    )
    assert [result.ids[:1] for result in found] == [result.ids[:1] for result in expected]
    for one, other in zip(found, expected, strict=True):
        if one.ids == other.ids:  # rounding may decide a token
            assert one.sampling_logprobs == pytest.approx(other.sampling_logprobs, abs=0.1)
    assert sum(one.ids == other.ids for one, other in zip(found, expected, strict=True)) >= 2


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("trained", [True, False])
def test_models_load_with_their_weights_in_float32(
    trained: bool, policy_folder: Path, reward_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import PreTrainedModel

    monkeypatch.setattr(PreTrainedModel, "_check_and_adjust_attn_implementation", lambda self, name, *_, **__: name)
    compute = Compute(CPU, torch.bfloat16, "flash_attention_2")
    policy, _ = load_policy(str(policy_folder), compute, trained=trained)
    assert policy.config._attn_implementation == "flash_attention_2"
    reward = load_reward_model(str(reward_folder), compute, trained=trained)
    assert reward.abilities == (True, False)  # it packs, and takes no mask of a row


def test_float32_is_refused_at_the_start() -> None:
    with pytest.raises(UsageError, match=r"flash_attention_2 computes in bfloat16, this run in float32 on cpu"):
        choose(Device(device="cpu", attention="flash_attention_2"))
