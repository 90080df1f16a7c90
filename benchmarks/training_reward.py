"""The reward model against TRL 1.16's RewardTrainer on hh_rlhf: `python benchmarks/training_reward.py`

Both start from the same weights (trunk and head), see the same pairs in the same order, take the same AdamW steps at
the same learning rates, and compute the same loss: hard Bradley-Terry without centring. Runs alternate, one process
each; the speed is that of the training loop alone, without loading and tokenising. TRL runs in an environment of its
own with its own defaults but for gradient checkpointing and bf16, which are off on both sides.

Printed: pairs a second and their ratio (wanted: 2 or more); the same a second of CPU time, which a busy machine
disturbs less; held-out accuracy over the seeds (wanted: within one point); peak memory. `--ours` runs our side alone,
with and without shared prompts.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from statistics import mean, median
from typing import Any

# The folder of a script comes first on Python's path, and there a benchmark could be taken for a package of its name.
ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)

from benchmarks import peers, training_data, training_sides  # noqa: E402

SPEED, POINTS = 2.0, 1.0
PEER = ROOT / "benchmarks" / "training_reward_trl.py"


def ours(folder: Path, options: dict[str, Any]) -> dict[str, Any]:
    """One run of this project's reward model; what the benchmark's worker process does."""
    import torch

    from rlhf.config import Optimisation, RewardConfig
    from rlhf.devices import Compute
    from rlhf.memory import Budget
    from rlhf.reward_model import load_reward_model
    from rlhf.reward_training import Pair, differences, train_reward_model

    torch.set_num_threads(options["threads"])
    compute = Compute(torch.device("cpu"), torch.float32)
    reward_model = load_reward_model(str(folder / "reward"), compute, trained=True)

    def pairs(name: str) -> list[Pair]:
        encode = reward_model.encode
        rows = training_data.read(folder / f"{name}.jsonl")
        return [
            Pair(encode(row["prompt"], row["chosen"]), encode(row["prompt"], row["rejected"]), 1.0, 1.0) for row in rows
        ]

    train, test = pairs("train")[: options["pairs"]], pairs("test")
    optimisation = Optimisation(learning_rate=options["rate"], warmup_fraction=0, batch_tokens=options["batch_tokens"])
    config = RewardConfig(
        epochs=options["epochs"],
        batch_size=options["batch"],
        centering=0,
        optimisation=optimisation,
        share_prefix=options["share"],
    )
    clock, cpu = time.monotonic(), time.process_time()
    fit = train_reward_model(reward_model, train, [], config, options["seed"], compute)
    seconds, cpu = time.monotonic() - clock, time.process_time() - cpu
    gap = differences(reward_model, test, compute, Budget(4096))
    return {
        "pairs_per_s": len(train) * options["epochs"] / seconds,
        "pairs_per_cpu_s": len(train) * options["epochs"] / cpu,
        "accuracy": float((gap > 0).double().mean()),
        "loss": fit.curve[-1]["train_loss"],
        "peak_mb": peers.peak_mb(),
    }


def order(count: int, options: dict[str, Any]) -> list[int]:
    """The rows in the order in which our side trains on them, all epochs one after another."""
    from rlhf.curve import batches

    drawn = batches(count, options["batch"], options["seed"])
    return [index for _ in range(count * options["epochs"] // options["batch"]) for index in next(drawn)]


def main() -> None:
    parser = training_sides.parser(__doc__, rate=5e-4)
    parser.add_argument("--pairs", type=int, default=1024, help="training pairs; a multiple of the batch")
    parser.add_argument("--test", type=int, default=1000, help="held-out pairs")
    parser.add_argument("--batch", type=int, default=16, help="pairs an optimizer step")
    parser.add_argument("--ours", action="store_true", help="our side alone, with and without shared prompts")
    parser.add_argument("--no-share", dest="share", action="store_false", help=argparse.SUPPRESS)
    training_sides.main(parser, ours, compare)


def compare(folder: Path, given: argparse.Namespace, options: dict[str, Any]) -> None:
    rows = training_sides.make(folder, given.data, options)
    if rows < given.pairs or given.pairs % given.batch:
        raise SystemExit(f"There are {rows} training pairs: give --pairs a multiple of --batch up to that.")
    print(f"{given.pairs} pairs, {given.epochs} epochs, batch {given.batch}, {given.threads} threads", flush=True)
    names = ("epochs", "pairs", "batch", "batch_tokens", "rate", "threads", "seed")

    def run(seed: int, *more: str) -> dict[str, Any]:
        return training_sides.ours(Path(__file__).resolve(), folder, {**options, "seed": seed}, names, *more)

    if given.ours:
        other = "without sharing"
        found = training_sides.alternate(given.seeds, {"ours": run, other: lambda seed: run(seed, "--no-share")})
    else:
        other, python = training_sides.TRL, training_sides.trl(given.environments)

        def theirs(seed: int) -> dict[str, Any]:
            plan = {**options, "seed": seed}
            return training_sides.theirs(python, PEER, folder, plan | {"order": order(given.pairs, plan)})

        found = training_sides.alternate(given.seeds, {"ours": run, other: theirs})
    report(other, *found)


def report(other: str, ours_: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> None:
    speeds = [median(run["pairs_per_s"] for run in runs) for runs in (ours_, theirs)]
    accuracies = [100 * mean(run["accuracy"] for run in runs) for runs in (ours_, theirs)]
    memory = [median(run["peak_mb"] for run in runs) for runs in (ours_, theirs)]
    ratio, apart = speeds[0] / speeds[1], accuracies[0] - accuracies[1]
    print(f"\n{'':<26}{'ours':>12}{other:>18}")
    print(f"{'pairs/s (median)':<26}{speeds[0]:>12.2f}{speeds[1]:>18.2f}   ratio {ratio:.2f}, {told(ratio >= SPEED)}")
    busy = [median(run["pairs_per_cpu_s"] for run in runs) for runs in (ours_, theirs)]
    print(f"{'pairs/s of CPU time':<26}{busy[0]:>12.2f}{busy[1]:>18.2f}   ratio {busy[0] / busy[1]:.2f}")
    fine = told(abs(apart) <= POINTS)
    print(f"{'accuracy, % (mean)':<26}{accuracies[0]:>12.2f}{accuracies[1]:>18.2f}   {apart:+.2f} points, {fine}")
    print(f"{'peak memory, MB (median)':<26}{memory[0]:>12.0f}{memory[1]:>18.0f}   ratio {memory[0] / memory[1]:.2f}")


def told(fine: bool) -> str:
    return "ok" if fine else "MISSED"


if __name__ == "__main__":
    main()
