"""The whole loop on the embedded world: time, memory, and whether the policy became better. `python benchmarks/loop.py`

Runs `rlaif run demo` in a fresh workspace for each seed, two rounds each, and prints every figure beside its target.
Each run is a process of its own, as a user starts it. Nothing is tuned here: the config is the shipped one.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

# figure, how it must compare, target
TARGETS = [
    ("wall_s", "<=", 480.0),
    ("peak_rss_mb", "<=", 4096.0),
    ("best_judge_accuracy", ">=", 0.85),
    ("reward_model_accuracy", ">=", 0.85),
    ("expected_reward_reference", "<=", 0.5),
    ("expected_reward_policy", ">=", 0.8),
    ("win_rate_low", ">=", 0.65),
    ("kl", "<=", 10.0),
]


def run_round(workspace: Path, seed: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "flows"]
    clock = time.monotonic()
    config = ["demo", "--set", f"seed={seed}"] if not workspace.exists() else []
    subprocess.run([*command, "run", *config, "--workspace", str(workspace)], check=True)
    wall = time.monotonic() - clock
    printed = subprocess.run(
        [*command, "status", "--json", "--workspace", str(workspace)], check=True, capture_output=True, text=True
    ).stdout
    status: dict[str, Any] = json.loads(printed)
    figures: dict[str, Any] = status["metrics"]
    figures["wall_s"] = wall
    figures["best_judge_accuracy"] = max(figures["judge_accuracy"].values())
    figures["stages"] = {name: stage["seconds"] for name, stage in status["stages"].items()}
    return figures


def show(title: str, figures: dict[str, Any], targets: list[tuple[str, str, float]]) -> None:
    print(f"\n{title}")
    for name, sign, target in targets:
        value = figures[name]
        fine = value is not None and (value <= target if sign == "<=" else value >= target)
        shown = "-" if value is None else f"{value:.3f}"
        print(f"  {name:<28} {shown:>10}   {sign} {target:<8g} {'ok' if fine else 'MISSED'}")
    stages = ", ".join(f"{name} {seconds:.0f}" for name, seconds in figures["stages"].items() if seconds is not None)
    print(f"  seconds by stage: {stages}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[17])
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for seed in arguments.seeds:
            workspace, best = Path(folder) / str(seed), None
            for number in range(1, arguments.rounds + 1):
                figures = run_round(workspace, seed)
                # A later round starts near the top: it must not fall, it need not win by much.
                targets = TARGETS if best is None else [*TARGETS[:4], ("expected_reward_policy", ">=", best - 0.02)]
                show(f"seed {seed}, round {number}", figures, targets)
                best = figures["expected_reward_policy"]


if __name__ == "__main__":
    main()
