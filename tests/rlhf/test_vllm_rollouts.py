"""vLLM for real, on the CPU, as the engine of rollouts. CHECKS: 1, 2, 17, 27.

One start of the engine serves all tests but that of the stage; the last one kills it.
"""

from __future__ import annotations

import dataclasses
import math
import os
import signal
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf.config import VLLM, Decoding, Lora, PPOConfig
from rlhf.devices import Compute
from rlhf.engines.vllm import VLLMEngine
from rlhf.engines.weights import SHARED_MEMORY
from rlhf.forward import logprobs_of
from rlhf.generation import Generated, generate, row_seed
from rlhf.memory import Budget
from rlhf.models import attach_lora
from rlhf.ppo.actors import load_actors
from rlhf.ppo.trainer import train
from rlhf.sampling import Prompt
from rlhf.sequences import Sample
from store.errors import TransientError, UsageError
from store.schemas import ROLLOUTS
from store.tables import read_table
from tests.rlhf.conftest import WORDS, make_llama, make_tokenizer
from tests.rlhf.stage_world import run, write_prompts

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(
        find_spec("vllm") is None, reason="vLLM is not installed here: `make test-vllm` tests it in its own environment"
    ),
]

CLOSE = 1e-4
"""Between the log-probs of vLLM's float32 kernels and the trainer's, in nats; measured: 2e-5."""
STOPS = frozenset({2})
PROMPTS = [[3, 7, 4], [3, 7, 4], [3, 9, 10, 11, 4], [4], [3, 4], [5, 2, 0, 2, 9, 4], [3, 7, 4]]
SEEDS = [row_seed("t", index) for index in range(len(PROMPTS))]
GREEDY = Decoding(top_k=1, max_new_tokens=12)
ON_A_CPU = {"enforce_eager": True, "cpu_kv_cache_gib": 1, "max_num_seqs": 16}


def llama(seed: int) -> Any:
    """With tied embeddings, as small models have them, and heads of a size that vLLM's kernels take."""
    return make_llama(seed=seed, hidden_size=64, tie_word_embeddings=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vllm") / "policy"
    llama(0).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def engine(folder: Path, compute: Compute) -> Iterator[VLLMEngine]:
    engine = VLLMEngine(str(folder), VLLM.model_validate(ON_A_CPU), compute)
    yield engine
    engine.close()


def texts(results: Sequence[Generated]) -> list[list[int]]:
    return [result.ids for result in results]


def farthest(model: Any, results: Sequence[Generated], compute: Compute, temperature: float) -> float:
    """Largest difference between the engine's log-probs and the trainer's."""
    samples = [Sample(prompt, result.ids) for prompt, result in zip(PROMPTS, results, strict=True)]
    rows = logprobs_of(model, samples, compute, Budget(10_000), temperature)
    return max(
        float((torch.tensor(result.sampling_logprobs) - row).abs().max())
        for result, row in zip(results, rows, strict=True)
    )


def test_greedy_output_follows_the_weights(engine: VLLMEngine) -> None:
    found = []
    for seed in (0, 5, 6):
        model = llama(seed)
        engine.sync(model)
        results = engine.generate(PROMPTS, SEEDS, GREEDY, STOPS)
        assert texts(results) == texts(generate(model, PROMPTS, SEEDS, GREEDY, STOPS))
        assert all((result.ids[-1] == 2) == (result.finish_reason == "stop") for result in results)
        found.append(texts(results))
    assert found[0] != found[1] != found[2]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_are_the_trainers_within_a_bound(engine: VLLMEngine, compute: Compute, temperature: float) -> None:
    decoding = Decoding(temperature=temperature, max_new_tokens=16)
    for seed in (0, 5):
        model = llama(seed)
        engine.sync(model)
        results = engine.generate(PROMPTS, SEEDS, decoding, STOPS)
        assert {result.finish_reason for result in results} == {"stop", "length"}
        assert farthest(model, results, compute, temperature) < CLOSE
        assert all(math.isnan(result.logprob) == (temperature != 1) for result in results)


def test_a_response_is_of_its_seed(engine: VLLMEngine) -> None:
    decoding = Decoding(max_new_tokens=16)
    engine.sync(llama(0))
    together = texts(engine.generate(PROMPTS, SEEDS, decoding, STOPS))
    assert together[0] != together[1]
    assert texts(engine.generate(PROMPTS[-1:], SEEDS[-1:], decoding, STOPS)) == together[-1:]


def test_adapters_are_pushed_merged_and_left_as_they_are(engine: VLLMEngine, compute: Compute) -> None:
    model = attach_lora(llama(0), Lora(rank=4))
    before = texts(generate(model, PROMPTS, SEEDS, GREEDY, STOPS))
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_B" in name:
                value.normal_(std=0.3, generator=torch.Generator().manual_seed(0))
    state = {name: value.clone() for name, value in model.state_dict().items()}
    engine.sync(model)
    results = engine.generate(PROMPTS, SEEDS, GREEDY, STOPS)
    assert texts(results) == texts(generate(model, PROMPTS, SEEDS, GREEDY, STOPS)) != before
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_a_short_run_of_ppo(
    engine: VLLMEngine, folder: Path, reward_folder: Path, compute: Compute, tmp_path: Path
) -> None:
    values: dict[str, Any] = {
        "updates": 2,
        "batch_size": 8,
        "minibatches": 2,
        "epochs": 2,
        "checkpoint_every": 0,
        "probe": {"every": 0},
        "engine": "vllm",
        "optimisation": {"learning_rate": 1e-2, "warmup_fraction": 0},
        "decoding": {"max_new_tokens": 6, "temperature": 0.7},
        "kl": {"budget": 1000},
        "max_update_kl": None,
    }
    config = PPOConfig.model_validate(values)
    torch.manual_seed(0)
    actors = dataclasses.replace(load_actors(str(folder), str(reward_folder), config, compute), engine=engine)
    prompts = [Prompt(f"p{index}", f"{word} why") for index, word in enumerate(WORDS[:10])]
    result = train(actors, prompts, config, 0, tmp_path)
    assert result.updates == 2
    for row in result.rows:
        # The policy moved far: with the weights of an earlier update the difference would be of the order of 1.
        assert 0 < row["engine_logprob_difference"] <= row["engine_logprob_difference_max"] < CLOSE
        assert row["importance_weight"] == pytest.approx(1, abs=CLOSE)
        assert row["importance_truncated"] == 0
    assert abs(result.rows[-1]["kl"]) > 0.1


def test_prompts_without_room_are_refused(engine: VLLMEngine) -> None:
    with pytest.raises(UsageError, match="5 tokens and max_new_tokens is 60, but the engine vllm holds 64"):
        engine.generate([[3, 7, 4, 4, 4]], [0], Decoding(max_new_tokens=60), STOPS)


def test_stage_sample(folder: Path, tmp_path: Path) -> None:
    inputs = {"policy": folder, "prompts": write_prompts(tmp_path)}
    values = {"responses": 3, "decoding": {"max_new_tokens": 6, "temperature": 0.7}}
    run("sample", tmp_path / "here", values, inputs)
    run("sample", tmp_path / "there", {**values, "engine": "vllm", "vllm": ON_A_CPU}, inputs)
    here, there = (read_table(tmp_path / name / "rollouts.parquet", ROLLOUTS).to_pylist() for name in ("here", "there"))
    assert [(row["prompt_id"], row["sample"]) for row in there] == [(row["prompt_id"], row["sample"]) for row in here]
    # The streams differ, the distribution does not: greedy text is compared above; here, log p(y|x) at temperature 1.
    assert all(row["logprob"] < 0 and 1 <= row["n_tokens"] <= 6 for row in there)
    known = {(row["prompt"], row["response"], row["finish_reason"]): row["logprob"] for row in here}
    shared = [row for row in there if (row["prompt"], row["response"], row["finish_reason"]) in known]
    for row in shared:
        expected = known[row["prompt"], row["response"], row["finish_reason"]]
        assert row["logprob"] == pytest.approx(expected, abs=10 * CLOSE)


def test_stage_sample_in_shards(folder: Path, tmp_path: Path) -> None:
    """By one engine, at which shards take turns; a response has a stream of its own, whatever else is in its shard."""
    inputs = {"policy": folder, "prompts": write_prompts(tmp_path)}
    values = {"responses": 3, "decoding": {"max_new_tokens": 6}, "engine": "vllm", "vllm": ON_A_CPU}
    run("sample", tmp_path / "whole", values, inputs)
    run("sample", tmp_path / "parts", {**values, "shards": {"size": 3, "workers": 2}}, inputs)
    whole, parts = (read_table(tmp_path / name / "rollouts.parquet", ROLLOUTS) for name in ("whole", "parts"))
    assert parts.drop_columns(["logprob"]).equals(whole.drop_columns(["logprob"]))
    assert parts["logprob"].to_pylist() == pytest.approx(whole["logprob"].to_pylist(), abs=CLOSE)


def test_a_killed_engine_is_one_sentence(engine: VLLMEngine) -> None:
    """Last: the engine is gone afterwards."""
    assert engine.pid is not None
    group = engine.pid
    os.killpg(group, signal.SIGKILL)
    with pytest.raises(TransientError, match=r"^The rollout engine vllm was killed.*its log is \S+\.$"):
        engine.generate(PROMPTS, SEEDS, GREEDY, STOPS)
    engine.close()
    with pytest.raises(ProcessLookupError):
        os.killpg(group, 0)
    assert not list(SHARED_MEMORY.glob("rlaif-weights-*"))
