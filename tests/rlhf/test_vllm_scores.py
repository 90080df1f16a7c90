"""A reward model's folder in vLLM: its pooled scores are ours, less the shift that the layout has no place for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from rlhf.devices import Compute
from rlhf.memory import Budget
from rlhf.reward_model import load_reward_model, save_reward_model
from rlhf.reward_scale import set_unit, set_zero
from store.resources import DATASETS

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(
        find_spec("vllm") is None, reason="vLLM is not installed here: make test-vllm makes an environment of its own"
    ),
]

BASE = DATASETS / "tiny" / "models" / "base"
BOUND = 1e-4
SETTINGS = {
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
}
EXCHANGES = [
    ("What is the capital of France?", "The capital is Paris."),
    ("What is the capital of France?", "I do not know."),
    ("Tell me about the sea.", "It is big and blue, and fish live in it."),
    ("Why?", "Yes"),
]

CLASSIFY = """
import json, sys

if __name__ == "__main__":
    from vllm import LLM, PoolingParams, TokensPrompt

    llm = LLM(sys.argv[1], runner="pooling", dtype="float32", max_model_len=128, enforce_eager=True)
    prompts = [TokensPrompt(prompt_token_ids=ids) for ids in json.loads(sys.argv[2])]
    found = llm.classify(prompts, pooling_params=PoolingParams(use_activation=False), use_tqdm=False)
    print("SCORES", json.dumps([float(one.outputs.probs[0]) for one in found]))
"""


@pytest.mark.parametrize("heads", [1, 3])
def test_vllm_scores_as_we_do(heads: int, tmp_path: Path) -> None:
    compute = Compute(torch.device("cpu"), torch.float32)
    torch.manual_seed(0)
    start = load_reward_model(str(BASE), compute, trained=True, heads=heads)
    set_zero(start, EXCHANGES[:2], compute, Budget(1000))
    set_unit(start, EXCHANGES, compute, Budget(1000))
    folder = save_reward_model(tmp_path / "reward", start)
    ours = load_reward_model(str(folder), compute, ensemble=False)  # what others see of an ensemble: the mean head
    samples = [ours.encode(*exchange) for exchange in EXCHANGES]
    script = tmp_path / "classify.py"
    script.write_text(CLASSIFY)
    ids = json.dumps([[*sample.prompt, *sample.response] for sample in samples])
    done = subprocess.run(
        [sys.executable, str(script), str(folder), ids],
        env=os.environ | SETTINGS,
        capture_output=True,
        text=True,
        check=False,
        timeout=1200,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    line = next(line for line in done.stdout.splitlines() if line.startswith("SCORES"))
    theirs = torch.tensor(json.loads(line.removeprefix("SCORES "))) + ours.shift
    torch.testing.assert_close(ours.score(EXCHANGES, compute, Budget(1000)), theirs, atol=BOUND, rtol=0)
    assert float(theirs.std()) > 0.1
