"""Rollout engines where no vLLM is needed: weights on their way, the importance correction, what is refused, and the
order of messages to an engine that sleeps. CHECKS: 1, 26. The real vLLM: test_vllm_rollouts.py."""

from __future__ import annotations

import dataclasses
import math
import os
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rlhf.config import VLLM, Decoding, Lora, PPOConfig, SampleConfig
from rlhf.devices import Compute
from rlhf.engines import open_engine
from rlhf.engines import vllm as vllm_module
from rlhf.engines.base import Done
from rlhf.engines.transformers import TransformersEngine
from rlhf.engines.vllm import VLLMEngine
from rlhf.engines.weights import SHARED_MEMORY, Pushed, merged_state
from rlhf.generation import Generated
from rlhf.losses import importance_weights, policy_loss
from rlhf.memory import Budget
from rlhf.models import attach_lora, load_policy
from rlhf.ppo.actors import Actors, load_actors
from rlhf.ppo.importance import importance, importance_metrics
from rlhf.ppo.report import describe
from rlhf.ppo.rollout import Budgets, Rollouts, collect, targets
from rlhf.ppo.trainer import _optimizers
from rlhf.ppo.update import optimise
from rlhf.sampling import Prompt
from store.child import Child
from store.errors import TransientError, UsageError
from tests.rlhf.conftest import WORDS, make_llama, make_tokenizer

PROMPTS = [Prompt(f"p{index}", f"{word} why") for index, word in enumerate(WORDS[:8])]
STOPS = frozenset({2})


def config_of(**values: Any) -> PPOConfig:
    base: dict[str, Any] = {
        "batch_size": 8,
        "minibatches": 1,
        "epochs": 1,
        "advantage": "gae",
        "optimisation": {"learning_rate": 1e-3, "warmup_fraction": 0},
        "decoding": {"max_new_tokens": 6, "temperature": 0.7},
        "max_update_kl": None,
    }
    return PPOConfig.model_validate({**base, **values})


class OffEngine(TransformersEngine):
    """An engine whose arithmetic is off: its log-probs are those of the policy plus `off` on every second token."""

    exact = False

    def __init__(self, model: Any, compute: Compute, off: float) -> None:
        super().__init__(model, compute, Budget(64))
        self.off, self.calls = off, list[str]()

    def sync(self, policy: Any) -> None:
        self.calls.append("sync")

    def sleep(self) -> None:
        self.calls.append("sleep")

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        decoding: Decoding,
        stop_ids: frozenset[int],
        on_done: Done | None = None,
    ) -> list[Generated]:
        self.calls.append("generate")
        return [
            result._replace(
                sampling_logprobs=[
                    value + (self.off if step % 2 else 0) for step, value in enumerate(result.sampling_logprobs)
                ]
            )
            for result in super().generate(prompts, seeds, decoding, stop_ids, on_done)
        ]


@pytest.fixture
def actors(policy_folder: Path, reward_folder: Path, compute: Compute) -> Actors:
    torch.manual_seed(0)
    return load_actors(str(policy_folder), str(reward_folder), config_of(), compute)


def gather(actors: Actors, config: PPOConfig) -> Rollouts:
    return collect(actors, PROMPTS, config, 0, 0, Budgets(Budget(8192), Budget(64)))


def test_the_policy_itself_needs_no_correction(actors: Actors) -> None:
    rollouts = gather(actors, config_of())
    assert rollouts.importance is None
    assert not any("importance" in name or "engine" in name for name in describe(rollouts, targets_of(rollouts), 0.05))


def targets_of(rollouts: Rollouts) -> Any:
    return targets(rollouts, config_of(), 0.05)


@pytest.mark.parametrize(("off", "cap"), [(-0.2, 2.0), (-1.5, 2.0), (0.4, 2.0), (-0.2, 1.0)])
def test_weights_and_metrics_of_another_engine(actors: Actors, compute: Compute, off: float, cap: float) -> None:
    config = config_of(importance_cap=cap)
    engine = OffEngine(actors.policy, compute, off)
    actors = dataclasses.replace(actors, engine=engine)
    rollouts = gather(actors, config)
    assert engine.calls == ["sync", "generate", "sleep"]
    assert rollouts.importance is not None
    mask = rollouts.mask
    odd = torch.arange(mask.shape[1]).expand_as(mask)[mask] % 2 == 1
    weights = rollouts.importance.weights[mask]
    torch.testing.assert_close(weights[odd], torch.full_like(weights[odd], min(math.exp(-off), cap)))
    torch.testing.assert_close(weights[~odd], torch.full_like(weights[~odd], 1.0).clamp(max=cap), atol=1e-4, rtol=0)
    row = describe(rollouts, targets_of(rollouts), 0.05)
    share = float(odd.float().mean())
    if cap > 1:  # at a cap of 1 rounding decides whether an equal log-prob is cut
        assert row["importance_truncated"] == pytest.approx(share if math.exp(-off) > cap else 0)
    assert row["importance_weight"] == pytest.approx(float(weights.mean()))
    assert row["engine_logprob_difference"] == pytest.approx(abs(off) * share, abs=1e-4)
    assert row["engine_logprob_difference_max"] == pytest.approx(abs(off), abs=1e-4)


def test_padding_does_not_enter_the_metrics() -> None:
    results = [Generated([3, 4, 2], math.nan, [-1.0, -2.0, -3.0], "stop"), Generated([3], math.nan, [-1.0], "length")]
    logprobs = torch.tensor([[-1.5, -2.0, -3.0], [-1.0, -99.0, -99.0]])
    mask = torch.tensor([[True, True, True], [True, False, False]])
    row = importance_metrics(importance(logprobs, results, 2.0), logprobs, mask)
    assert row == pytest.approx(
        {
            "importance_weight": (math.exp(-0.5) + 3) / 4,
            "importance_truncated": 0,
            "engine_logprob_difference": 0.125,
            "engine_logprob_difference_max": 0.5,
        }
    )


def test_weights_scale_the_loss_and_carry_no_gradient() -> None:
    new = torch.tensor([-1.0, -2.0, -0.5, -3.0], dtype=torch.float64, requires_grad=True)
    old = torch.tensor([-1.1, -1.5, -0.5, -3.5], dtype=torch.float64)
    engine = torch.tensor([-1.0, -4.0, -0.5, -3.4], dtype=torch.float64)
    advantages = torch.tensor([1.0, -1.0, 0.5, 2.0], dtype=torch.float64)
    weights = importance_weights(old, engine, 2.0)
    assert weights.tolist() == pytest.approx([math.exp(-0.1), 2.0, 1.0, math.exp(-0.1)])
    loss = policy_loss(new, old, advantages, 0.2, weights).loss
    slow = 0.0
    for at in range(4):
        ratio = math.exp(float(new[at].detach()) - float(old[at]))
        bounded = min(max(ratio, 0.8), 1.2)
        slow += float(weights[at]) * max(-float(advantages[at]) * ratio, -float(advantages[at]) * bounded)
    assert float(loss.detach()) == pytest.approx(slow)
    (gradient,) = torch.autograd.grad(loss, new)
    (plain,) = torch.autograd.grad(policy_loss(new, old, advantages, 0.2).loss, new)
    torch.testing.assert_close(gradient, weights * plain)
    assert not importance_weights(new, engine, 2.0).requires_grad


def test_the_update_uses_the_weights(actors: Actors, compute: Compute) -> None:
    """Weights of one half everywhere halve the policy's gradient, and leave the critic's alone."""
    config = config_of()
    rollouts = gather(dataclasses.replace(actors, engine=OffEngine(actors.policy, compute, 0.0)), config)
    assert rollouts.importance is not None
    norms = []
    for weight in (1.0, 0.5):
        changed = rollouts.importance._replace(weights=torch.full_like(rollouts.importance.weights, weight))
        torch.manual_seed(0)
        state = {name: value.clone() for name, value in actors.policy.state_dict().items()}
        stats = optimise(
            actors,
            dataclasses.replace(rollouts, importance=changed),
            targets_of(rollouts),
            config,
            *_optimizers(actors, config),
            Budget(50),
            0,
            0,
        )
        actors.policy.load_state_dict(state)
        norms.append(stats["grad_norm"])
    assert norms[1] == pytest.approx(norms[0] / 2, rel=1e-3)


@pytest.mark.parametrize("tied", [True, False])
def test_pushed_weights_load_as_the_merged_model(tied: bool, compute: Compute) -> None:
    model = attach_lora(make_llama(tie_word_embeddings=tied), Lora(rank=2))
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_" in name:
                value.normal_(std=0.3, generator=torch.Generator().manual_seed(0))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    ids = torch.tensor([[3, 7, 9, 4]])
    pushed = Pushed()
    try:
        folder = pushed.write(model, torch.float32)
        assert pushed.folder is not None
        assert not SHARED_MEMORY.is_dir() or folder.is_relative_to(SHARED_MEMORY)
        assert os.stat(pushed.folder).st_mode & 0o077 == 0
        make_tokenizer().save_pretrained(folder)
        loaded, _ = load_policy(str(folder), compute)
        torch.testing.assert_close(loaded(ids).logits, model(input_ids=ids).logits, atol=1e-5, rtol=1e-5)
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        assert pushed.write(model, torch.float32) != folder
    finally:
        pushed.close()
    assert not folder.exists()


def test_weights_are_cast_and_tied_ones_stay_one() -> None:
    state = merged_state(make_llama(tie_word_embeddings=True), torch.bfloat16)
    assert {value.dtype for value in state.values()} == {torch.bfloat16}
    assert state["lm_head.weight"].data_ptr() == state["model.embed_tokens.weight"].data_ptr()


def test_where_and_how_an_engine_runs_is_no_part_of_a_result() -> None:
    for config in (PPOConfig, SampleConfig):
        plain = config.model_validate({"engine": "vllm"})
        other = config.model_validate({"engine": "vllm", "vllm": {"gpu_memory_utilization": 0.9, "timeout_s": 5}})
        assert plain.identity() == other.identity() != config().identity()


def test_ppo_refuses_a_cut_distribution_for_any_engine() -> None:
    with pytest.raises(ValueError, match="PPO needs the full distribution"):
        config_of(engine="vllm", decoding={"top_p": 0.9})


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed here")
def test_missing_vllm_is_one_line(compute: Compute) -> None:
    with (
        pytest.raises(UsageError, match=r"^engine vllm needs the package vllm: pip install 'rlaif\[vllm\]'\.$"),
        open_engine("any", config_of(engine="vllm"), compute),
    ):
        pass
    with open_engine("any", config_of(), compute) as engine:
        assert engine is None


def test_what_the_device_cannot_do_is_refused(compute: Compute, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_module, "find_spec", lambda name: True)
    with pytest.raises(UsageError, match=r"vllm\.sleep gives up the memory of a GPU, this run computes on cpu"):
        VLLMEngine("any", VLLM(sleep=True), compute)
    with pytest.raises(UsageError, match="sharding fsdp"):
        VLLMEngine("any", VLLM(), dataclasses.replace(compute, sharded=True))


ENGINE = """
import sys
from pathlib import Path
from store.child import serve, write

def work(inbox, replies):
    write(replies, {"end": True, "context": 64}) if inbox.get() else None
    while (message := inbox.get()) is not None:
        with open(LOG, "a") as log:
            tags = [*message.get("tags", []), *([str(message["level"])] if "level" in message else [])]
            there = " there" if message["do"] == "sync" and list(Path(message["path"]).glob("*.safetensors")) else ""
            log.write(" ".join([message["do"], *tags]) + there + chr(10))
        if message["do"] == "generate":
            sys.exit(0)
        write(replies, {"end": True})

sys.exit(serve(work, lambda: None))
"""


@pytest.fixture
def make_scripted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[VLLM, Compute], VLLMEngine]:
    """An engine whose process is a script that writes down what it is told: there is no GPU here to sleep on."""
    log = tmp_path / "told"
    (tmp_path / "an_engine.py").write_text(ENGINE.replace("LOG", repr(str(log))))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(vllm_module, "find_spec", lambda name: True)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
    monkeypatch.setattr(vllm_module, "Child", lambda _, environment, name: Child("an_engine", environment, name))
    return lambda settings, compute: VLLMEngine("any", settings, compute)


def test_an_engine_that_shares_a_gpu_wakes_in_two_steps(
    make_scripted: Callable[[VLLM, Compute], VLLMEngine], tmp_path: Path
) -> None:
    engine = make_scripted(VLLM(sleep=True), Compute(torch.device("cuda"), torch.float32))
    try:
        for _ in range(2):
            engine.sync(make_llama())
            engine.sleep()
            engine.sleep()
    finally:
        engine.close()
    told = (tmp_path / "told").read_text().split("\n")
    assert told == ["sync there", "sleep 2", "wake weights", "sync there", "wake kv_cache", "sleep 2", ""]


def test_an_engine_without_sleep_is_left_awake_and_its_end_is_one_sentence(
    make_scripted: Callable[[VLLM, Compute], VLLMEngine], compute: Compute, tmp_path: Path
) -> None:
    engine = make_scripted(VLLM(), compute)
    try:
        engine.sync(make_llama())
        engine.sleep()
        with pytest.raises(TransientError, match=r"^The rollout engine vllm stopped: .*its log is \S+\.$"):
            engine.generate([[3]], [0], Decoding(max_new_tokens=4), STOPS)
    finally:
        engine.close()
        engine.close()
    assert (tmp_path / "told").read_text().split("\n") == ["sync there", "generate", ""]


def test_rollouts_record_no_tensor_of_the_graph(actors: Actors, compute: Compute) -> None:
    rollouts = gather(dataclasses.replace(actors, engine=OffEngine(actors.policy, compute, 0.1)), config_of())
    tensors: list[Tensor] = [value for value in vars(rollouts).values() if isinstance(value, Tensor)]
    assert rollouts.importance is not None
    assert not any(value.requires_grad for value in [*tensors, *rollouts.importance[:2]])
