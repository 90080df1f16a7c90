"""The whole stage aggregate on a million votes, as a user runs it (part of labels.py): seconds and peak memory.

`rlaif stage aggregate --votes ... --pairs ... --gold ... --gold-votes ... --out ...` in a process of its own, from
parquet files to parquet files: import, hashing of the inputs, checks, the default method fitted on gold, gate,
preferences with their filters, ratings and the manifest. `python benchmarks/labels_stage.py FOLDER [--profile]` runs it
alone; --profile says where the time goes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks.labels_speed import JUDGES, PAIRS_COUNT, pairs_of  # noqa: E402
from benchmarks.simulated_panels import panel, votes_table  # noqa: E402
from store.schemas import GOLD, PAIRS, VOTES  # noqa: E402
from store.tables import write_table  # noqa: E402

GOLD_COUNT = 100
RATIONALE = "The first response answers the question that was asked, and the second one only repeats part of it. "
"""What each vote says, beside its probability: judges that reason fill most of a table with it."""


def write_inputs(folder: Path, rationale: bool = True) -> dict[str, Path]:
    """Files of a million votes on a hundred thousand pairs, and of a hundred gold pairs with their votes."""
    world = panel(1, "noisy", PAIRS_COUNT + GOLD_COUNT, JUDGES)
    world.p_a[np.isnan(world.p_a)] = 0.5
    pairs = pairs_of(world.truth)
    votes = votes_table(world)
    at = pc.index_in(votes["pair_id"], value_set=pairs["pair_id"].combine_chunks())
    for name in ("prompt_id", "rollout_a", "rollout_b"):
        votes = votes.set_column(votes.schema.get_field_index(name), VOTES.schema.field(name), pairs[name].take(at))
    if rationale:
        said = pc.binary_join_element_wise(votes["vote_id"], pa.scalar(RATIONALE * 3), " ")
        votes = votes.set_column(votes.schema.get_field_index("rationale"), "rationale", said)
    first = pc.less(pc.cast(votes["pair_id"], pa.int64()), PAIRS_COUNT)
    winner = pa.array(np.where(world.truth[PAIRS_COUNT:] > 0, "a", "b"))
    gold = pairs.slice(PAIRS_COUNT).append_column(GOLD.schema.field("winner"), winner)
    tables = {
        "votes": (VOTES, votes.filter(first)),
        "pairs": (PAIRS, pairs.slice(0, PAIRS_COUNT)),
        "gold": (GOLD, gold),
        "gold-votes": (VOTES, votes.filter(pc.invert(first))),
    }
    return {name: write_table(folder / f"{name}.parquet", table, data) for name, (table, data) in tables.items()}


def measure(inputs: dict[str, Path], out: Path, profile: Path | None = None) -> dict[str, float]:
    """Of the command: `seconds` from its start to its end, `cpu_s` of all its threads, `peak_mb` of memory."""
    options = [part for name, path in inputs.items() for part in (f"--{name}", str(path))]
    profiler = ["-m", "cProfile", "-o", str(profile)] if profile else []
    command = [sys.executable, *profiler, "-m", "flows", "stage", "aggregate", *options, "--out", str(out)]
    begin = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=sys.path[0])
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - begin
    if status:
        raise SystemExit(f"rlaif stage aggregate failed with status {os.waitstatus_to_exitcode(status)}")
    return {"seconds": seconds, "cpu_s": usage.ru_utime + usage.ru_stime, "peak_mb": usage.ru_maxrss / 1024}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where inputs and outputs go; it must exist")
    parser.add_argument("--profile", action="store_true", help="run it under cProfile and print the dearest calls")
    given = parser.parse_args()
    command = [sys.executable, __file__, str(given.folder)]
    if os.environ.get("RLAIF_INPUTS") != "there":
        write_inputs(given.folder)
        # A new process: a child's peak memory is at least what its parent held when it was started.
        arguments = [*command, *(["--profile"] if given.profile else [])]
        raise SystemExit(subprocess.run(arguments, env={**os.environ, "RLAIF_INPUTS": "there"}, check=False).returncode)
    inputs = {name: given.folder / f"{name}.parquet" for name in ("votes", "pairs", "gold", "gold-votes")}
    profile = given.folder / "profile" if given.profile else None
    found = measure(inputs, given.folder / "out", profile)
    if profile is not None:
        import pstats

        pstats.Stats(str(profile)).sort_stats("cumulative").print_stats(60)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
