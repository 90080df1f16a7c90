"""SFT against TRL 1.16's SFTTrainer with its packing on: `python benchmarks/training_sft.py`

Both start from the same weights and learn the same dialogues of hh_rlhf, completion only. TRL packs them into rows of
--longest tokens (its default strategy, bfd) and steps on --rows of them; our optimizer steps on as many dialogues as
hold about the same number of tokens, so that both take about the same number of steps at the same learning rates. Runs
alternate, one process each; the speed is that of the training loop alone, without loading and tokenising.

Printed: useful tokens a second (prompts and completions, no padding) and their ratio (wanted: 1.2 or more); the same a
second of CPU time, which a busy machine disturbs less; the loss on held-out completions, which our side measures for
both (wanted: no more than 1 % above TRL's); peak memory.
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

SPEED, EXCESS = 1.2, 1.01
PEER = ROOT / "benchmarks" / "training_sft_trl.py"


def ours(folder: Path, options: dict[str, Any]) -> dict[str, Any]:
    """One run of this project's SFT; what the benchmark's worker process does."""
    import torch

    from rlhf.config import Optimisation, SFTConfig
    from rlhf.devices import Compute
    from rlhf.models import load_policy
    from rlhf.sft import train_sft

    torch.set_num_threads(options["threads"])
    compute = Compute(torch.device("cpu"), torch.float32)
    model, codec = load_policy(str(folder / "model"), compute, trained=True)
    samples = encode(codec, folder / "train.jsonl")[: options["dialogues"]]
    tokens = sum(sample.length for sample in samples)
    config = SFTConfig(
        epochs=options["epochs"],
        batch_size=max(1, round(options["rows"] * options["longest"] * len(samples) / tokens)),
        optimisation=Optimisation(
            learning_rate=options["rate"], warmup_fraction=0, batch_tokens=options["batch_tokens"]
        ),
        checkpoint_every=0,
    )
    clock, cpu = time.monotonic(), time.process_time()
    curve = train_sft(model, samples, config, options["seed"], compute)
    seconds, cpu = time.monotonic() - clock, time.process_time() - cpu
    found = {
        "tokens_per_s": tokens * options["epochs"] / seconds,
        "tokens_per_cpu_s": tokens * options["epochs"] / cpu,
        "steps": len(curve),
        "peak_mb": peers.peak_mb(),
    }
    return found | {"loss": held_out(model, codec, folder)}


def encode(codec: Any, path: Path) -> list[Any]:
    from rlhf.sequences import Sample

    # TRL encodes prompt and completion apart too, and closes the completion with the end token.
    return [Sample(codec.prompt_ids(row["prompt"]), codec.response_ids(row["chosen"]))
            for row in training_data.read(path)]  # fmt: skip


def held_out(model: Any, codec: Any, folder: Path) -> float:
    """Nats a completion token on the test dialogues."""
    import torch

    from rlhf.demonstrations import Demonstrations
    from rlhf.devices import Compute
    from rlhf.memory import Budget
    from rlhf.sft import mean_loss

    compute = Compute(torch.device("cpu"), torch.float32)
    return mean_loss(model, Demonstrations(encode(codec, folder / "test.jsonl")), compute, Budget(4096))


def measure(folder: Path, trained: Path) -> float:
    """The held-out loss of a model that the peer trained."""
    import torch

    from rlhf.devices import Compute
    from rlhf.models import load_policy

    return held_out(*load_policy(str(trained), Compute(torch.device("cpu"), torch.float32)), folder)


def main() -> None:
    parser = training_sides.parser(__doc__, rate=1e-3)
    parser.add_argument("--dialogues", type=int, default=1024, help="training dialogues")
    parser.add_argument("--test", type=int, default=500, help="held-out dialogues")
    parser.add_argument("--rows", type=int, default=4, help="TRL's packed rows an optimizer step")
    training_sides.main(parser, ours, compare)


def compare(folder: Path, given: argparse.Namespace, options: dict[str, Any]) -> None:
    rows = training_sides.make(folder, given.data, options)
    if rows < given.dialogues:
        raise SystemExit(f"There are {rows} training dialogues: give --dialogues up to that.")
    python = training_sides.trl(given.environments)
    names = ("epochs", "dialogues", "rows", "batch_tokens", "rate", "threads", "longest", "seed")
    print(f"{given.dialogues} dialogues, {given.epochs} epochs, {given.threads} threads", flush=True)

    def run(seed: int) -> dict[str, Any]:
        return training_sides.ours(Path(__file__).resolve(), folder, {**options, "seed": seed}, names)

    def theirs(seed: int) -> dict[str, Any]:
        trained = folder / f"trl-{seed}"
        plan = {**options, "seed": seed, "out": str(trained)}
        return training_sides.theirs(python, PEER, folder, plan) | {"loss": measure(folder, trained)}

    report(*training_sides.alternate(given.seeds, {"ours": run, training_sides.TRL: theirs}))


def report(ours_: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> None:
    speeds = [median(run["tokens_per_s"] for run in runs) for runs in (ours_, theirs)]
    busy = [median(run["tokens_per_cpu_s"] for run in runs) for runs in (ours_, theirs)]
    losses = [mean(run["loss"] for run in runs) for runs in (ours_, theirs)]
    memory = [median(run["peak_mb"] for run in runs) for runs in (ours_, theirs)]
    fine = ["ok" if speeds[0] / speeds[1] >= SPEED else "MISSED", "ok" if losses[0] / losses[1] <= EXCESS else "MISSED"]
    print(f"\n{'':<34}{'ours':>10}{'TRL 1.16.0':>14}{'ratio':>8}")
    print(
        f"{'useful tokens/s (median)':<34}{speeds[0]:>10.0f}{speeds[1]:>14.0f}{speeds[0] / speeds[1]:>8.2f} {fine[0]}"
    )
    print(f"{'useful tokens/s of CPU time':<34}{busy[0]:>10.0f}{busy[1]:>14.0f}{busy[0] / busy[1]:>8.2f}")
    print(f"{'held-out loss, nats/token (mean)':<34}{losses[0]:>10.4f}{losses[1]:>14.4f}{losses[0] / losses[1]:>8.3f} "
          f"{fine[1]}")  # fmt: skip
    print(f"{'peak memory, MB (median)':<34}{memory[0]:>10.0f}{memory[1]:>14.0f}{memory[0] / memory[1]:>8.2f}")


if __name__ == "__main__":
    main()
