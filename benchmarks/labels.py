"""Labels that deserve to be trained on: accuracy, calibration, speed. `python benchmarks/labels.py [--all]`

1.  LLMBar: every method with 0, 5, 20, 50 and 100 gold pairs (labels_llmbar.py).
2.  LLMBar: twenty gold pairs and eighty-four verdicts placed by the audit's selection (labels_selection.py).
3.  A million votes on a hundred thousand pairs: seconds, memory, and files against pyarrow's own (labels_speed.py);
    and the whole stage from files to files, as a user runs it (labels_stage.py).
4.  Simulated panels: `--part methods` compares the methods, `--part forms` is how the form and the constants of the
    stack were chosen (labels_simulated.py), `--part placing` how the sharpness of the audit was (labels_selection.py).
    All three are left out unless asked for.

The data lies in ../shared/data; a part whose data is absent says so. Nothing is tuned on it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

# The folder of a script comes first on Python's path, and there a benchmark could be taken for a package of its name.
ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)

from benchmarks import labels_llmbar, labels_selection, labels_simulated  # noqa: E402

LLMBAR = ROOT.parent / "shared" / "data" / "llmbar"
SIZES = [0, 5, 20, 50, 100]
METHODS = ["stacked", "weighted", "mean", "majority"]
WANTED = {"stacked/20": 85.0, "stacked/50": 87.0, "stacked/100": 87.5}
WANTED_ECE, WANTED_AUDITED = 0.05, 92.0
SECONDS, MEMORY_MB, FILE_SPEED = 20.0, 2000.0, 0.7


def accuracy(draws: int, show_all: bool) -> None:
    if not LLMBAR.is_dir():
        print(f"LLMBar: left out, its votes are not at {LLMBAR}")
        return
    bench = labels_llmbar.read(LLMBAR)
    found = labels_llmbar.table(bench, METHODS, SIZES, draws, show_all)
    labels_llmbar.plain_ridge(bench, SIZES[1:], draws)
    for name, wanted in WANTED.items():
        verdict(f"accuracy {name}", f"{found[name]:.2f} %", f">= {wanted} %", found[name] >= wanted)
    for kind in ("ece", "pooled"):
        error = found[f"stacked/50/{kind}"]
        verdict(f"calibration error stacked/50 ({kind})", f"{error:.3f}", f"<= {WANTED_ECE}", error <= WANTED_ECE)


def audited(draws: int, show_all: bool) -> None:
    if not LLMBAR.is_dir():
        print(f"LLMBar: left out, its votes are not at {LLMBAR}")
        return
    figures = labels_selection.table(labels_llmbar.read(LLMBAR), draws, show_all)
    name = labels_selection.PLACINGS[2].name
    found = figures[name]
    verdict(f"final labels, placed {name}", f"{found:.2f} %", f">= {WANTED_AUDITED} %", found >= WANTED_AUDITED)


def speed() -> None:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(ROOT / "benchmarks" / "labels_speed.py"), folder]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    print(f"{found['votes']:,} votes on {found['pairs']:,} pairs")
    print("  " + ", ".join(f"{name} {seconds:.2f} s" for name, seconds in found["seconds"].items()))
    whole, peak = found["check + stacked + preferences + ratings"], found["peak_mb"]
    verdict("check + stacked + preferences + ratings", f"{whole:.2f} s", f"<= {SECONDS} s", whole <= SECONDS)
    # Making the votes, which is no part of the work, takes most of it.
    verdict("peak memory of the process", f"{peak:.0f} MB", f"<= {MEMORY_MB:.0f} MB", peak <= MEMORY_MB)
    for name, figures in found["files"].items():
        for side in ("write", "read"):
            told = f"{100 * figures[side]:.0f} % of pyarrow's speed"
            verdict(f"{name} {side}", told, f">= {100 * FILE_SPEED:.0f} %", figures[side] >= FILE_SPEED)


def stage() -> None:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(ROOT / "benchmarks" / "labels_stage.py"), folder]
        told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = json.loads(told.splitlines()[-1])
    seconds, peak = found["seconds"], found["peak_mb"]
    what = "rlaif stage aggregate, from files to files"
    print(f"  {found['cpu_s']:.2f} s of CPU time in all threads")
    verdict(what, f"{seconds:.2f} s", f"<= {SECONDS} s", seconds <= SECONDS)
    verdict("its peak memory", f"{peak:.0f} MB", f"<= {MEMORY_MB:.0f} MB", peak <= MEMORY_MB)


def verdict(what: str, found: str, wanted: str, fine: bool) -> None:
    print(f"  {'ok  ' if fine else 'MISS'} {what}: {found} (wanted {wanted})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", action="store_true", help="print every draw: seed:accuracy/calibration error")
    parser.add_argument("--draws", type=int, default=100, help="random draws of the gold [100]")
    parts = ("accuracy", "audited", "speed", "methods", "forms", "placing")
    parser.add_argument("--part", choices=parts, action="append", help="one part only; may be repeated")
    parser.add_argument("--seeds", type=int, nargs=2, default=[3000, 3020], help="simulated panels, first and end")
    given = parser.parse_args()
    for part in given.part or parts[:3]:
        if part == "accuracy":
            accuracy(given.draws, given.all)
        elif part == "audited":
            audited(given.draws, given.all)
        elif part == "speed":
            speed()
            stage()
        elif part == "placing":
            labels_selection.placing(range(*given.seeds))
        elif part == "methods":
            labels_simulated.methods(range(*given.seeds))
        else:
            labels_simulated.choose(range(*given.seeds))


if __name__ == "__main__":
    main()
