"""Reward at equal KL, ours against TRL 1.12.0's PPO: `python benchmarks/training.py quality`

The task is the embedded world's: its base model (1M parameters) learns to please a reward model, which was trained here
on pairs of the base model's own responses, labelled by the world's oracle, and scaled to standard deviation 1 on them.
Both sides start from the same files, with the same batch, epochs, learning rates and KL coefficient, over three seeds.

Each update gives a point: the mean reward and the mean KL of its responses. A run's points are summed up by the curve
that reward follows along KL when a policy is optimised (Gao et al. 2023, arXiv 2210.10760: r0 + d (a - b d) with d the
square root of KL), fitted by least squares, and read at five KLs that all runs have reached. Printed is the mean
difference of ours and TRL's, with the 95 % interval of Student's t over the seeds. It is worse where the whole interval
lies below 0.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)

import numpy as np  # noqa: E402
from scipy import stats  # noqa: E402

from benchmarks import peers  # noqa: E402
from benchmarks.training_figures import Line, show  # noqa: E402
from benchmarks.training_ppo import OURS, THEIRS, TRL  # noqa: E402

TINY = ROOT / "datasets" / "tiny"
RESPONSE_TOKENS = 32
POINTS = 5

Curve = list[tuple[float, float]]
"""(KL in nats a response, mean reward) of each update."""


def make_world(folder: Path, threads: int, seed: int = 0) -> None:
    """Write policy, reward model and prompts, as training_ppo_ours.py and training_ppo_trl.py read them."""
    import pyarrow.parquet as pq
    import torch

    from judges.backends.rubric import Rubric
    from rlhf.config import Decoding, Optimisation, RewardConfig
    from rlhf.devices import Compute
    from rlhf.generation import row_seed
    from rlhf.memory import Budget
    from rlhf.models import load_policy, save_model
    from rlhf.reward_model import load_reward_model, score_head
    from rlhf.reward_training import Pair, train_reward_model
    from rlhf.sampling import respond

    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    compute = Compute(torch.device("cpu"), torch.float32)
    base = str(TINY / "models" / "base")
    rows = [row for row in pq.read_table(TINY / "prompts.parquet").to_pylist() if row["split"] == "train"]
    oracle = Rubric.load(ROOT / "configs" / "judges" / "tiny-oracle" / "rubric.yaml")

    asked = [row for row in rows for _ in range(4)]
    policy, codec = load_policy(base, compute)
    generated = respond(
        policy,
        codec,
        [row["prompt"] for row in asked],
        [row_seed(seed, "quality", index) for index in range(len(asked))],
        Decoding(max_new_tokens=RESPONSE_TOKENS),
        compute,
        Budget(256, "responses"),
    )
    reward_model = load_reward_model(base, compute, trained=True)
    encoded, scores = [], []
    for row, result in zip(asked, generated, strict=True):
        response = codec.text(result.ids)
        encoded.append(reward_model.encode(row["prompt"], response))
        scores.append(oracle.score(row["prompt"], response, row["reference"], row["group"]).value)
    pairs = [
        Pair(encoded[one], encoded[other], 0.5 + (scores[one] - scores[other]) / 2, 1.0)
        for one, other in zip(range(0, len(asked), 2), range(1, len(asked), 2), strict=True)
    ]
    config = RewardConfig(epochs=3, batch_size=64, optimisation=Optimisation(learning_rate=5e-4))
    train_reward_model(reward_model, pairs, [], config, seed, compute)
    rewards = reward_model.score_samples(encoded, compute, Budget(8192))
    with torch.no_grad():
        score_head(reward_model.model).weight.div_(rewards.std())
    reward_model.shift = 0.0  # TRL reads the layout without it
    agreement = np.corrcoef(rewards.numpy(), scores)[0, 1]
    print(f"reward model: correlation with the oracle {agreement:.2f} on {len(asked)} responses", flush=True)
    save_model(folder / "reward", reward_model.model, reward_model.codec)
    shutil.copytree(base, folder / "policy")
    (folder / "prompts.json").write_text(json.dumps([row["prompt"] for row in rows]))


def run(interpreter: Path, script: Path, job: dict[str, Any]) -> Curve:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"OMP_NUM_THREADS": str(job["threads"]), "TOKENIZERS_PARALLELISM": "false"}
    environment |= {"HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}
    command = [str(interpreter), str(script), json.dumps(job)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{script.name} failed:\n{done.stderr[-3000:]}")
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"')]
    return [(row["kl"], row["score"]) for row in rows]


def reward_at(curve: Curve, kl: np.ndarray) -> np.ndarray:
    """The fitted reward of one run at each KL."""
    distance = np.sqrt(np.clip([point[0] for point in curve], 0, None))
    design = np.stack([np.ones_like(distance), distance, -(distance**2)], 1)
    coefficients = np.linalg.lstsq(design, np.array([point[1] for point in curve]), rcond=None)[0]
    at = np.sqrt(kl)
    fitted: np.ndarray = np.stack([np.ones_like(at), at, -(at**2)], 1) @ coefficients
    return fitted


def compare(curves: dict[str, list[Curve]]) -> tuple[float, float, float, np.ndarray]:
    """(mean difference ours - TRL, low, high, the KLs at which it was read); seeds are paired."""
    reached = min(max(kl for kl, _ in curve) for runs in curves.values() for curve in runs)
    grid = np.linspace(0, reached, POINTS + 1)[1:]
    ours, theirs = (np.array([reward_at(curve, grid).mean() for curve in curves[name]]) for name in ("ours", "TRL"))
    difference = ours - theirs
    mean, error = float(difference.mean()), float(stats.sem(difference)) if len(difference) > 1 else float("nan")
    half = error * float(stats.t.ppf(0.975, len(difference) - 1)) if len(difference) > 1 else float("nan")
    return mean, mean - half, mean + half, grid


def main(arguments: Sequence[str] | None = None) -> bool:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    peers.add_option(parser)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--updates", type=int, default=30)
    parser.add_argument("--batch", type=int, default=64, help="responses an update")
    parser.add_argument("--epochs", type=int, default=4, help="optimizer steps an update")
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    parser.add_argument("--kl-coefficient", type=float, default=0.05)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args(arguments)
    python = peers.python(options.environments, "trl-1.12.0", TRL)
    curves: dict[str, list[Curve]] = {"ours": [], "TRL": []}
    with tempfile.TemporaryDirectory() as name:
        make_world(Path(name), options.threads)
        for seed in options.seeds:
            job = {
                "folder": name,
                "turns": False,
                "updates": options.updates,
                "batch": options.batch,
                "micro_batch": options.batch,
                "batch_tokens": 4096,
                "epochs": options.epochs,
                "response_tokens": RESPONSE_TOKENS,
                # Off: TRL adds it to the score that it logs, we do not.
                "missing_stop_penalty": 0.0,
                "learning_rate": options.learning_rate,
                "kl_coefficient": options.kl_coefficient,
                "value_coefficient": 0.1,
                "bf16": False,
                "device": "cpu",
                "seed": seed,
                "threads": options.threads,
                "clock": "wall",
                "critic": "separate",
            }
            for side, interpreter, script in (("ours", Path(sys.executable), OURS), ("TRL", python, THEIRS)):
                curves[side].append(run(interpreter, script, job))
                shown = " ".join(f"{kl:.2f}:{score:.2f}" for kl, score in curves[side][-1][:: max(1, len(curves) * 2)])
                print(f"  seed {seed} {side:<5} KL:reward {shown}", flush=True)
    mean, low, high, grid = compare(curves)
    print(f"\nours - TRL at KL {', '.join(f'{kl:.2f}' for kl in grid)}: {mean:+.3f} standard deviations of the reward,")
    print(f"95 % interval {low:+.3f} to {high:+.3f} over {len(options.seeds)} seeds")
    levels = {name: float(np.mean([reward_at(curve, grid).mean() for curve in runs])) for name, runs in curves.items()}
    # Without an interval (one seed) the mean itself must not be below 0.
    bound = high if np.isfinite(high) else mean
    return show([Line("reward at equal KL; end of its interval", levels["ours"], levels["TRL"], bound, ">=", 0.0)])


if __name__ == "__main__":
    raise SystemExit(0 if main() else 1)
