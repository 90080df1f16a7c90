"""What the benchmarks against TRL 1.16's trainers share: their options, and the runs of both sides, which alternate.

Every run is a process of its own. Ours is the benchmark's script again with --worker and its options; TRL's is a script
that runs in TRL's environment and is told all by a plan, a JSON file. Both print their figures as JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import peers, training_data

TRL = "TRL 1.16.0"
_CONSTRAINTS = Path(__file__).resolve().parent.parent / "constraints-trl.txt"
_SIZES = ("vocabulary", "hidden", "layers", "longest", "test")

Options = dict[str, Any]
Figures = dict[str, Any]


def parser(description: str | None, rate: float) -> argparse.ArgumentParser:
    """The options of both benchmarks but for what is counted (pairs, dialogues) and --test. `rate`: its default."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    peers.add_option(parser)
    parser.add_argument("--data", type=Path, default=training_data.DATA, help="folder that holds hh_rlhf")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--batch-tokens", type=int, default=4096, help="our tokens of one forward pass")
    parser.add_argument("--rate", type=float, default=rate)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--vocabulary", type=int, default=8000)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--longest", type=int, default=512, help="longer dialogues are left out on both sides")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    return parser


def main(
    parser: argparse.ArgumentParser,
    work: Callable[[Path, Options], Figures],
    compare: Callable[[Path, argparse.Namespace, Options], None],
) -> None:
    """With --worker one run of our side, `work`; else `compare` in a folder of its own, where the data is there."""
    given = parser.parse_args()
    options = {name: value for name, value in vars(given).items() if not isinstance(value, Path)}
    if given.worker:
        print(json.dumps(work(given.worker, options)))
        return
    if not (given.data / "hh_rlhf").is_dir():
        print(f"left out: the dialogues are not at {given.data / 'hh_rlhf'}")
        return
    with tempfile.TemporaryDirectory() as name:
        compare(Path(name), given, options)


def make(folder: Path, data: Path, options: Options) -> int:
    """Write what both sides read (see training_data.make); the number of training rows."""
    return training_data.make(folder, data, **{name: options[name] for name in _SIZES})


def ours(script: Path, folder: Path, options: Options, names: Sequence[str], *more: str) -> Figures:
    """A run of our side with the named ones of `options`, and `more` as they are."""
    arguments = [f"--{name.replace('_', '-')}={options[name]}" for name in names]
    return peers.run(Path(sys.executable), script, ["--worker", str(folder), *arguments, *more], options["threads"])


def trl(environments: Path) -> Path:
    """The interpreter of TRL's environment."""
    return peers.python(environments, "trl-1.16.0", _CONSTRAINTS, resolve=False)


def theirs(python: Path, script: Path, folder: Path, plan: Options) -> Figures:
    """A run of TRL's side."""
    path = folder / "plan.json"
    path.write_text(json.dumps(plan | {"folder": str(folder)}))
    return peers.run(python, script, [str(path)], plan["threads"])


def alternate(seeds: Sequence[int], sides: Mapping[str, Callable[[int], Figures]]) -> list[list[Figures]]:
    """The figures of each side's runs, one a seed, printed as they come. A side takes the seed."""
    found: dict[str, list[Figures]] = {side: [] for side in sides}
    for seed in seeds:
        for side, run in sides.items():
            found[side].append(run(seed))
            line = ", ".join(f"{name} {value:.5g}" for name, value in found[side][-1].items())
            print(f"  seed {seed} {side:<16} {line}", flush=True)
    return list(found.values())
