"""Loading, saving, LoRA, memory. CHECKS: 15, 20 (adapter off), 25; bad input of models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf.config import Decoding, Device, Lora, Optimisation
from rlhf.devices import Compute, choose
from rlhf.engines.transformers import TransformersEngine
from rlhf.forward import logprobs_of, response_logprobs
from rlhf.memory import Budget, is_out_of_memory
from rlhf.models import adapter_off, attach_lora, load_policy, restore, save_model, snapshot, trainable
from rlhf.optimisation import Optimizer, rate_factor
from rlhf.reward_model import RewardModel, load_reward_model, score_head
from rlhf.sequences import Sample, pack
from rlhf.tokens import make_codec
from store.errors import TransientError, UsageError
from tests.rlhf.conftest import make_llama, make_tokenizer

IDS = torch.arange(3, 9)[None]


def test_load_and_save_round_trip(policy_folder: Path, compute: Compute, tmp_path: Path) -> None:
    model, codec = load_policy(str(policy_folder), compute)
    again, _ = load_policy(str(save_model(tmp_path / "copy", model, codec)), compute)
    assert torch.equal(model(input_ids=IDS).logits, again(input_ids=IDS).logits)
    assert not any(path.name.startswith(".") for path in tmp_path.iterdir())
    assert not trainable(model)


@pytest.mark.parametrize("kind", ["missing", "empty", "no weights", "reward", "garbage"])
def test_what_is_no_policy_is_refused_in_one_sentence(
    kind: str, tmp_path: Path, policy_folder: Path, reward_folder: Path, compute: Compute
) -> None:
    folder = tmp_path / "model"
    if kind != "missing":
        folder.mkdir()
    if kind == "no weights":
        (folder / "config.json").write_bytes((policy_folder / "config.json").read_bytes())
    if kind == "garbage":
        (folder / "config.json").write_text("{}")
    if kind == "reward":
        # Its trunk would load and its untied head would be random.
        model = make_llama(tie_word_embeddings=False)
        codec = make_codec(make_tokenizer(), model.config)
        save_model(tmp_path / "policy", model, codec)
        reward = load_reward_model(str(tmp_path / "policy"), compute, trained=True)
        folder.rmdir()
        save_model(folder, reward.model, reward.codec)
    with pytest.raises(UsageError) as caught:
        load_policy(str(folder), compute)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


def test_a_causal_model_is_no_finished_reward_model(policy_folder: Path, compute: Compute) -> None:
    with pytest.raises(UsageError, match=r"score\.weight"):
        load_reward_model(str(policy_folder), compute)


def test_lora_reference_is_the_policy_with_its_adapter_off(policy_folder: Path, compute: Compute) -> None:
    plain, _ = load_policy(str(policy_folder), compute)
    model, _ = load_policy(str(policy_folder), compute, trained=True)
    model = attach_lora(model, Lora(rank=2, dropout=0.5))
    assert all("lora" in name for name in trainable(model))
    with torch.no_grad():
        for value in trainable(model).values():
            value.normal_()
    model.eval()
    with torch.no_grad():
        assert not torch.allclose(model(input_ids=IDS).logits, plain(input_ids=IDS).logits, atol=1e-2)
        with adapter_off(model) as reference:
            torch.testing.assert_close(reference(input_ids=IDS).logits, plain(input_ids=IDS).logits)


def test_lora_policy_is_saved_merged(policy_folder: Path, compute: Compute, tmp_path: Path) -> None:
    model, codec = load_policy(str(policy_folder), compute, trained=True)
    model = attach_lora(model, Lora(rank=2))
    with torch.no_grad():
        for value in trainable(model).values():
            value.normal_(std=0.1)
        expected = model(input_ids=IDS).logits
    again, _ = load_policy(str(save_model(tmp_path / "merged", model, codec)), compute)
    torch.testing.assert_close(again(input_ids=IDS).logits, expected, atol=1e-4, rtol=1e-4)


def test_lora_reward_head_is_trained_saved_and_reloaded(policy_folder: Path, compute: Compute, tmp_path: Path) -> None:
    torch.manual_seed(0)
    start = load_reward_model(str(policy_folder), compute, trained=True)
    reward = RewardModel(attach_lora(start.model, Lora(rank=2), "SEQ_CLS"), start.codec)
    assert any("score" in name for name in trainable(reward.model))
    with torch.no_grad():
        for value in trainable(reward.model).values():
            value.normal_(std=0.5)
    exchanges = [("why dog", "cat"), ("the sky", "blue sea")]
    before = reward.score(exchanges, compute, Budget(1000))
    head = next(value for name, value in trainable(reward.model).items() if "score" in name).detach().clone()
    reward.shift = 1.5
    save_model(tmp_path / "reward", reward.model, reward.codec)
    again = load_reward_model(str(tmp_path / "reward"), compute)
    assert torch.equal(score_head(again.model).weight, head)
    torch.testing.assert_close(again.score(exchanges, compute, Budget(1000)), before + 1.5, atol=1e-4, rtol=1e-4)


def test_snapshot_restores_and_refuses_others() -> None:
    model = make_llama()
    saved = snapshot(model)
    with torch.no_grad():
        for value in trainable(model).values():
            value.add_(1)
    restore(model, saved)
    assert all(torch.equal(value, saved[name]) for name, value in trainable(model).items())
    with pytest.raises(ValueError, match="other parameters"):
        restore(model, {"x": torch.zeros(1)})


def test_gradients_are_clipped_and_bad_ones_never_stepped() -> None:
    weight = torch.nn.Parameter(torch.zeros(3, 3))
    optimizer = Optimizer([weight], Optimisation(max_grad_norm=0.5, warmup_fraction=0), 10)
    seen: list[float] = []
    optimizer.adamw.register_step_pre_hook(lambda *_: seen.append(float(weight.grad.norm())))  # type: ignore[union-attr]
    weight.grad = torch.full((3, 3), 100.0)
    assert optimizer.step() == pytest.approx(300)
    assert seen == [pytest.approx(0.5, abs=1e-5)]
    before = weight.detach().clone()
    weight.grad = torch.full((3, 3), float("nan"))
    assert optimizer.step() is None
    assert torch.equal(weight, before)
    assert optimizer.taken == 1


def test_weight_decay_is_of_matrices_alone() -> None:
    matrix, scale = (torch.nn.Parameter(torch.ones(*shape)) for shape in ((2, 2), (2,)))
    config = Optimisation(learning_rate=0.1, weight_decay=0.5, warmup_fraction=0)
    optimizer = Optimizer([matrix, scale], config, 10)
    for value in (matrix, scale):
        value.grad = torch.zeros_like(value)
    optimizer.step()
    torch.testing.assert_close(matrix.detach(), torch.full((2, 2), 0.95))
    assert torch.equal(scale.detach(), torch.ones(2))


def test_rate_rises_and_falls() -> None:
    assert [rate_factor(step, 10, 0.2, "constant") for step in range(4)] == pytest.approx([1 / 3, 2 / 3, 1, 1])
    linear = [rate_factor(step, 10, 0.0, "linear") for step in range(10)]
    assert linear == pytest.approx([1 - step / 10 for step in range(10)])
    cosine = [rate_factor(step, 10, 0.0, "cosine") for step in range(11)]
    assert cosine[0] == 1
    assert cosine[5] == pytest.approx(0.5)
    assert cosine[10] == pytest.approx(0)


def test_out_of_memory_halves_three_times_then_gives_up(capsys: pytest.CaptureFixture[str]) -> None:
    sizes: list[int] = []

    def work(limit: int) -> object:
        def run(size: int) -> int:
            sizes.append(size)
            if size > limit:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return size

        return run

    resets: list[int] = []
    budget = Budget(64)
    assert budget.run(work(16), "a test", lambda: resets.append(1)) == 16  # type: ignore[arg-type]
    assert sizes == [64, 32, 16]
    assert len(resets) == 2
    assert budget.run(work(16), "a test") == 16  # type: ignore[arg-type]
    assert "going on with 16 tokens a micro-batch" in capsys.readouterr().err
    with pytest.raises(TransientError, match="Out of memory in a test even with 8 tokens"):
        budget.run(work(1), "a test")  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="another"):
        Budget(8).run(lambda _: (_ for _ in ()).throw(RuntimeError("another")), "a test")


@pytest.mark.parametrize(
    "text",
    [
        "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to ...",
        "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "MPS backend out of memory (MPS allocated: 8.00 GB)",
    ],
)
def test_out_of_memory_is_known_by_its_text_too(text: str) -> None:
    assert is_out_of_memory(RuntimeError(text))
    assert not is_out_of_memory(RuntimeError("CUDA error: device-side assert triggered"))


def test_a_gpu_that_only_emulates_bfloat16_computes_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert choose(Device()).dtype == torch.float32
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    assert choose(Device()) == Compute(torch.device("cuda"), torch.bfloat16)


def test_dropout_of_adapters_is_off_where_a_model_is_measured(compute: Compute) -> None:
    torch.manual_seed(0)
    model = attach_lora(make_llama(), Lora(rank=2, dropout=0.5))
    with torch.no_grad():
        for value in trainable(model).values():
            value.add_(0.1)  # an adapter that is still zero would hide its dropout
    samples = [Sample([3, 7, 4], [8, 9, 2])]
    first, second = (logprobs_of(model, samples, compute, Budget(100))[0] for _ in range(2))
    assert torch.equal(first, second)
    batch = pack(samples, [0], compute.device)
    one, other = (response_logprobs(model, batch) for _ in range(2))
    assert not torch.equal(one, other)  # it is on while adapters are trained
    assert torch.equal(first, response_logprobs(model.eval(), batch))


def test_generation_is_not_compiled() -> None:
    shapes: list[int] = []

    def backend(graph: Any, inputs: Any) -> Any:
        shapes.append(len(inputs))
        return graph.forward

    compute = Compute(torch.device("cpu"), torch.float32, compile=True)
    model = make_llama()
    model.base_model.compile(backend=backend, dynamic=True)
    TransformersEngine(model, compute, Budget(4)).generate(
        [[3, 7, 4], [5]], [1, 2], Decoding(max_new_tokens=5), frozenset([2])
    )
    assert not shapes
    logprobs_of(model, [Sample([3, 7, 4], [8, 9, 2])], compute, Budget(100))
    assert shapes


def test_devices() -> None:
    assert choose(Device(device="cpu")).dtype == torch.float32
    with pytest.raises(UsageError, match="not available"):
        choose(Device(device="cuda:77"))
    with pytest.raises(UsageError, match="toaster"):
        choose(Device(device="toaster"))
