"""Builds the embedded world: `python datasets/tiny/build [--only data|base|judges|flaws]`.

Same seed, same machine, same versions: same files. Each output replaces its predecessor atomically.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Threads that spin while they wait halve the speed on a busy machine. Read when torch is imported, below.
os.environ.setdefault("GOMP_SPINCOUNT", "0")

HERE = Path(__file__).resolve().parent
TINY, ROOT = HERE.parent, HERE.parents[2]
sys.path[:0] = [str(HERE), str(ROOT)]
SEED = 20
TURNS = int(os.environ.get("TINY_TURNS", 190_000))


@contextmanager
def timed(what: str) -> Iterator[None]:
    print(f"{what} ...", flush=True)
    start = time.perf_counter()
    yield
    print(f"{what}: {time.perf_counter() - start:.0f} s", flush=True)


def save(model: object, tokenizer: object, folder: Path) -> None:
    """Save a model beside `folder`, then swap it in."""
    fresh, old = folder.with_name(f".{folder.name}.new"), folder.with_name(f".{folder.name}.old")
    for leftover in (fresh, old):
        shutil.rmtree(leftover, ignore_errors=True)
    fresh.mkdir(parents=True)
    model.save_pretrained(fresh)  # type: ignore[attr-defined]
    tokenizer.save_pretrained(fresh)  # type: ignore[attr-defined]
    for file in fresh.iterdir():
        file.chmod(0o644)  # safetensors writes files that only their owner can read
    if folder.exists():
        folder.rename(old)
    fresh.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["data", "base", "judges", "flaws"], help="one part; later ones need earlier")
    parser.add_argument("--judge", action="append", help="with --only judges: build only this judge (may be repeated)")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    import torch
    from world import deal_prompts

    torch.set_num_threads(arguments.threads)
    prompts = deal_prompts(SEED)
    oracle_folder = ROOT / "configs" / "judges" / "tiny-oracle"
    if arguments.only in (None, "data"):
        from data import write_data

        with timed("data"):
            write_data(TINY, oracle_folder, prompts, SEED)
    if arguments.only in (None, "base"):
        build_base(prompts, oracle_folder)
    if arguments.only in (None, "judges"):
        from judging import build_judges
        from rating import RATER, build_rater

        build_judges(prompts, TINY, ROOT / "configs" / "judges", SEED, timed, save, arguments.judge)
        if not arguments.judge or RATER in arguments.judge:
            build_rater(prompts, TINY, ROOT / "configs" / "judges", SEED, timed, save)
    if arguments.only in (None, "flaws"):
        from flaws import describe_flaws

        with timed("measuring what judges overlook"):
            print(describe_flaws(prompts, ("tiny-good", "tiny-evaluator", "tiny-middling"), SEED))


def build_base(prompts: list, oracle_folder: Path) -> None:  # type: ignore[type-arg]
    from base import describe, train_base, write_calibration
    from frames import example_frames
    from responses import fluent_texts
    from tokens import train_tokenizer

    from judges.backends.rubric import Rubric

    oracle = Rubric.load(oracle_folder / "rubric.yaml")
    with timed("tokenizer"):
        # Fluent text, without the made-up words that would eat up merges; with the judges' frames.
        texts = [*[prompt.text for prompt in prompts], *fluent_texts([prompt.fact for prompt in prompts[::4]])]
        tokenizer = train_tokenizer([*texts, *example_frames() * 500])
    with timed("base"):
        model = train_base(tokenizer, prompts, TURNS, SEED)
        save(model, tokenizer, TINY / "models" / "base")
    with timed("calibration"):
        write_calibration(TINY / "calibration.parquet", model, tokenizer, prompts, oracle, SEED)
    with timed("measuring the base model"):
        print(describe(model, tokenizer, prompts, oracle, SEED))


if __name__ == "__main__":
    main()
