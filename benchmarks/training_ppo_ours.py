"""Our side of the PPO benchmark, a process of its own: updates by `rlhf.ppo.trainer.train`, as the stage runs it.

Speaks with training_ppo.py: one JSON line an update, then it waits for a line on its input where `job["turns"]` is set.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)

import torch  # noqa: E402

from benchmarks import training_figures, training_flops  # noqa: E402
from rlhf.config import PPOConfig  # noqa: E402
from rlhf.devices import choose  # noqa: E402
from rlhf.ppo import trainer  # noqa: E402
from rlhf.ppo.actors import load_actors  # noqa: E402
from rlhf.sampling import Prompt  # noqa: E402


def config_of(job: dict[str, Any]) -> PPOConfig:
    return PPOConfig.model_validate(
        {
            "updates": job["updates"],
            "batch_size": job["batch"],
            "minibatches": 1,
            "epochs": job["epochs"],
            "critic": job["critic"],
            "max_update_kl": None,
            "reward_clip": None,
            "missing_stop_penalty": job["missing_stop_penalty"],
            "value_coefficient": job["value_coefficient"],
            "value_learning_rate": job["learning_rate"],
            "optimisation": {
                "learning_rate": job["learning_rate"],
                "schedule": "constant",
                "warmup_fraction": 0,
                "batch_tokens": job["batch_tokens"],
            },
            "kl": {"coefficient": job["kl_coefficient"], "budget": 1e9},
            "monitors": dict.fromkeys(("repetition", "length_drift", "perplexity_drift", "kl_budget_used")),
            "probe": {"every": 0},
            "checkpoint_every": 0,
            "decoding": {"max_new_tokens": job["response_tokens"]},
            "device": {"device": job["device"], "threads": job["threads"], **job.get("compute", {})},
        }
    )


class Turns:
    """Times each update and its update phase, and tells them."""

    def __init__(self, job: dict[str, Any], policy: Any, compute: Any):
        self.job, self.compute = job, compute
        self.clock = training_figures.CLOCKS[job["clock"]]
        self.shape = training_flops.Shape.of(policy.config)
        self.optimise: Any = trainer.optimise  # type: ignore[attr-defined]
        self.rollout_work, self.tokens = 0, 0
        self.phase, self.work, self.mean_length, self.rate = 0.0, 0, 0.0, float("nan")

    def timed_optimise(self, actors: Any, rollouts: Any, *rest: Any) -> Any:
        start = self.clock()
        found = self.optimise(actors, rollouts, *rest)
        if self.compute.device.type == "cuda":
            torch.cuda.synchronize()
        self.phase = self.clock() - start
        self.mean_length = float(rollouts.lengths.float().mean())
        lengths = [(len(sample.prompt), len(sample.response)) for sample in rollouts.samples]
        separate = self.job["critic"] == "separate"
        self.work = training_flops.update(self.shape, lengths, self.job["epochs"], separate)
        self.rollout_work = training_flops.rollout(self.shape, lengths, separate)
        self.tokens = sum(prompt + response for prompt, response in lengths)
        return found

    def wait(self) -> None:
        if self.job["turns"]:
            sys.stdin.readline()
            # Beside each update, since a shared machine's rate changes from minute to minute.
            tokens, device, dtype = self.job["batch_tokens"], self.compute.device, self.compute.dtype
            self.rate = training_flops.matmul_rate(self.shape, tokens, device, dtype, self.clock)
        self.started = self.clock()

    def log(self, update: int, row: Mapping[str, Any]) -> None:
        if update == self.job["updates"]:
            return  # the row of the last policy, which no update follows
        seconds = self.clock() - self.started
        told = {
            "seconds": seconds,
            "update_seconds": self.phase,
            "tokens": self.tokens,
            "rollout_gflop": self.rollout_work / 1e9,
            "gflop": self.work / 1e9,
            "matmul_gflop_per_s": self.rate / 1e9,
            "utilisation": self.work / self.phase / self.rate,
            "peak_mb": training_figures.peak_mb(self.job["device"]),
            "score": row["score"],
            "kl": row["kl"],
            "stops": row["stop_rate"],
            "mean_length": self.mean_length,
        }
        print(json.dumps(told), flush=True)
        if update + 1 < self.job["updates"]:
            self.wait()


def main() -> None:
    job = json.loads(sys.argv[1])
    folder = Path(job["folder"])
    config = config_of(job)
    compute = choose(config.device)
    torch.manual_seed(job["seed"])
    actors = load_actors(str(folder / "policy"), str(folder / "reward"), config, compute)
    texts = json.loads((folder / "prompts.json").read_text())
    prompts = [Prompt(str(index), text) for index, text in enumerate(texts)]
    turns = Turns(job, actors.policy, compute)
    trainer.optimise = turns.timed_optimise  # type: ignore
    with tempfile.TemporaryDirectory() as checkpoints:
        turns.wait()
        trainer.train(actors, prompts, config, job["seed"], Path(checkpoints), log=turns.log)


if __name__ == "__main__":
    main()
