"""PPO against TRL 1.12.0's, the last release that has one: `python benchmarks/training.py ppo`

A random Llama of 5.3M parameters with a vocabulary of 8,192 words answers prompts of 16 tokens with up to 64, 64
responses an update, 4 epochs of one optimizer step. Two cases: `full`, where no response ends before its 64th token,
and `natural`, where lengths are geometric with mean 24. Both sides load the same policy, reference, reward model and
critic, see the same prompts, sample at temperature 1 over the full distribution, and compute in float32 with the same
number of threads. A third process is ours with the value head on the policy's trunk, which TRL does not have.

The processes of a case stand still but for one at a time: they take turns after every update. The first update of each
is not counted. Medians, their ratio and the peak of resident memory are printed beside the targets; utilisation is the
counted arithmetic of the update phase (benchmarks/training_flops.py) over its time, by the rate of bare torch.matmul in
the same process a moment earlier.

On a machine that others use too: --threads 1 --clock cpu.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)

from benchmarks import peers, training_ppo_world  # noqa: E402
from benchmarks.training_figures import CLOCKS, Line, show  # noqa: E402
from flows.processes.execute import ENVIRONMENT  # noqa: E402

TRL = ["trl==1.12.0", "torch==2.13.0", "transformers==5.23.0", "accelerate==1.15.0", "datasets==5.2.0"]
OURS = Path(__file__).with_name("training_ppo_ours.py")
THEIRS = Path(__file__).with_name("training_ppo_trl.py")

SPEED = {"full": 2.0, "natural": 4.0}
SHARED, MEMORY, UTILISATION = 1.5, 0.6, 0.6


class Side:
    """A process that makes one update whenever it is asked to."""

    def __init__(self, interpreter: Path, script: Path, job: dict[str, Any]):
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        environment |= {"OMP_NUM_THREADS": str(job["threads"]), "TOKENIZERS_PARALLELISM": "false"}
        environment |= {"HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}
        if script == OURS:
            environment |= ENVIRONMENT  # as the stage starts it
        self.script, self.rows = script, list[dict[str, Any]]()
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the process
        self.process = subprocess.Popen(
            [str(interpreter), str(script), json.dumps(job)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
        )

    def update(self) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith('{"'):
                row: dict[str, Any] = json.loads(line)
                self.rows.append(row)
                return row
        self.errors.seek(0)
        raise SystemExit(f"{self.script.name} ended early:\n{self.errors.read()[-3000:]}")

    def median(self, name: str) -> float:
        """Over all updates but the first, in which caches are filled."""
        return float(statistics.median(row[name] for row in self.rows[1:]))

    def __enter__(self) -> Side:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        self.errors.close()


def job_of(options: argparse.Namespace, folder: Path, **more: Any) -> dict[str, Any]:
    return {
        "folder": str(folder),
        "turns": True,
        "updates": options.rounds + 2,
        "batch": options.batch,
        "micro_batch": options.trl_micro_batch,
        "batch_tokens": options.batch_tokens,
        "epochs": options.epochs,
        "response_tokens": training_ppo_world.SMALL.response_tokens,
        "missing_stop_penalty": 1.0,
        "learning_rate": 1e-5,
        "kl_coefficient": 0.05,
        "value_coefficient": 0.1,
        "bf16": False,
        "device": "cpu",
        "seed": 0,
        "threads": options.threads,
        "clock": options.clock,
        "critic": "separate",
        **more,
    }


def measure(case: str, folder: Path, python: Path, options: argparse.Namespace) -> dict[str, Side]:
    """The sides of one case with the rows of their updates; their processes have ended."""
    plans = {
        "TRL 1.12.0": (python, THEIRS, job_of(options, folder)),
        "ours": (Path(sys.executable), OURS, job_of(options, folder)),
        "ours, shared": (Path(sys.executable), OURS, job_of(options, folder, critic="shared")),
    }
    with ExitStack() as stack:
        sides = {name: stack.enter_context(Side(*plan)) for name, plan in plans.items()}
        for number in range(1 + options.rounds):
            # Who goes first changes, so that nobody always follows the same neighbour.
            names = list(sides)[number % 3 :] + list(sides)[: number % 3]
            for name in names:
                row = sides[name].update()
                shown = "  ".join(f"{key} {value:.4g}" for key, value in row.items())
                print(f"  {case:<8} {name:<13} {number or 'warm-up'}: {shown}", flush=True)
    return sides


def report(found: dict[str, dict[str, Side]]) -> list[Line]:
    lines = []
    for case, sides in found.items():
        trl, ours, shared = (sides[name].median("seconds") for name in ("TRL 1.12.0", "ours", "ours, shared"))
        lines.append(Line(f"{case}: s an update, TRL / ours", ours, trl, trl / ours, ">=", SPEED[case]))
        lines.append(Line(f"{case}: s, separate / shared", shared, ours, ours / shared, ">=", SHARED))
        held, theirs = (sides[name].rows[-1]["peak_mb"] for name in ("ours", "TRL 1.12.0"))
        lines.append(Line(f"{case}: peak MB, ours / TRL", held, theirs, held / theirs, "<=", MEMORY))
        for name in ("ours", "ours, shared"):
            used, rate = sides[name].median("utilisation"), sides[name].median("matmul_gflop_per_s")
            what = f"{case}: GFLOP/s of matmul's, {name}"
            lines.append(Line(what, used * rate, rate, used, ">=", UTILISATION))
    return lines


def main(arguments: Sequence[str] | None = None) -> bool:
    """Whether every target was met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    peers.add_option(parser)
    parser.add_argument("--cases", nargs="+", choices=SPEED, default=list(SPEED))
    parser.add_argument("--rounds", type=int, default=3, help="updates that count")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--batch", type=int, default=64, help="responses an update")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--batch-tokens", type=int, default=2048, help="our tokens of one forward pass")
    parser.add_argument("--trl-micro-batch", type=int, default=64, help="TRL's responses of one forward pass")
    options = parser.parse_args(arguments)
    python = peers.python(options.environments, "trl-1.12.0", TRL)
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for case in options.cases:
            world = training_ppo_world.make(
                Path(folder) / case, training_ppo_world.END_PROBABILITY[case], options.batch * (options.rounds + 2)
            )
            print(f"{case}: {options.threads} threads, seconds by the {options.clock} clock", flush=True)
            found[case] = measure(case, world, python, options)
    return show(report(found))


if __name__ == "__main__":
    raise SystemExit(0 if main() else 1)
