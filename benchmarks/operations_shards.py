"""Judging in shards: pairs a second and peak memory, and how both grow. `python benchmarks/operations.py shards`

Synthetic pairs (two responses of some 30 words) stream from a parquet file through shards to one sorted votes file. The
judge is a program that answers at once, so all that is measured is what the system itself costs: reading, rendering,
journalling each vote durably, parts, hashes, manifests and the merge. Each case is a process of its own; `--runner ray`
and `dask` start a cluster on this machine with `--workers` workers. `cpu_s`: processor seconds of it and its children,
which a busy machine leaves alone, where seconds grow. Memory in MiB: `driver` is the peak of the driving process, `all`
the largest sum over it and its children (pages they share count in each). `again_s`: a rerun that finds all done.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from flows.shards.judging import VOTES_PART, judge_in_shards
from flows.shards.merge import open_parts, write_merged
from judges.judge import load_judge
from judges.pairs import pair_id
from store.hashing import hash_file
from store.schemas import PAIRS, VOTES
from store.sharding import ShardsConfig
from store.table_writer import TableWriter

_RULES = {"version": 1, "rules": [{"name": "empty", "kind": "empty", "amount": 1.0}]}
_BATCH = 4096


def null_judge(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "judge.yaml").write_text("name: null-judge\nbackend: rubric\nrubric: rubric.json\n")
    (folder / "rubric.json").write_text(json.dumps(_RULES))
    return folder


def write_pairs(path: Path, number: int) -> Path:
    chance = random.Random(number)
    words = [f"word{n}" for n in range(1000)]
    writer = TableWriter(path, PAIRS)
    for start in range(0, number, _BATCH):
        rows = []
        for n in range(start, min(number, start + _BATCH)):
            prompt, a, b = f"prompt{n // 3:08d}", f"rollout{n:08d}a", f"rollout{n:08d}b"
            row = {"pair_id": pair_id(prompt, a, b), "prompt_id": prompt, "prompt": f"What is {prompt}?"}
            row |= {"rollout_a": a, "rollout_b": b, "group": "g", "split": "train"}
            row |= {f"response_{side}": " ".join(chance.choices(words, k=30)) for side in "ab"}
            rows.append(row)
        writer.write(pa.Table.from_pylist(rows, schema=PAIRS.schema))
    return writer.commit()


class Memory(threading.Thread):
    """The largest sum of resident memory over this process and its children, in MiB, and their processor seconds."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak_mb = self.own_mb = 0.0
        self._stop_now = threading.Event()
        self._cpu: dict[int, float] = {}

    def run(self) -> None:
        me = psutil.Process()
        while not self._stop_now.wait(0.25):
            total = 0
            for process in [me, *me.children(recursive=True)]:
                try:
                    resident = process.memory_info().rss
                    total += resident
                    times = process.cpu_times()
                    self._cpu[process.pid] = times.user + times.system
                    if process is me:
                        # Not the kernel's own peak, which begins with that of the process that started this one.
                        self.own_mb = max(self.own_mb, resident / 2**20)
                except psutil.Error:
                    continue
            self.peak_mb = max(self.peak_mb, total / 2**20)

    def stop(self) -> None:
        self._stop_now.set()
        self.join()

    @property
    def cpu_s(self) -> float:
        return sum(self._cpu.values())


def one(path: Path, runner: str, workers: int, size: int, folder: Path) -> dict[str, Any]:
    """One case, in this process."""
    number = pq.read_metadata(path).num_rows
    idle = round(psutil.Process().memory_info().rss / 2**20)

    def tables() -> Iterator[pa.Table]:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(_BATCH):
                yield pa.Table.from_batches([batch])

    memory = Memory()
    memory.start()
    clock = time.monotonic()
    parts = judge_in_shards(
        [load_judge(null_judge(folder / "judge"))],
        tables(),
        total=number,
        folder=folder / "parts",
        seed=0,
        config=ShardsConfig(runner=runner, workers=workers, size=size),  # type: ignore[arg-type]
    )
    judged = time.monotonic() - clock
    out = folder / "votes.parquet"
    write_merged(open_parts([part / VOTES_PART for part in parts]), VOTES, [(out, None, {})])
    whole = time.monotonic() - clock
    rows = pq.read_metadata(out).num_rows
    if rows != 2 * number:
        sys.exit(f"{rows} votes of {number} pairs: something was lost or doubled.")
    memory.stop()
    clock = time.monotonic()
    judge_in_shards(
        [load_judge(folder / "judge")],
        tables(),
        total=number,
        folder=folder / "parts",
        seed=0,
        config=ShardsConfig(workers=workers, size=size),
    )
    return {
        "pairs": number,
        "runner": runner,
        "shards": len(parts),
        "seconds": round(whole, 1),
        "merge_s": round(whole - judged, 1),
        "pairs_per_s": round(number / whole),
        "cpu_s": round(memory.cpu_s, 1),
        "pairs_per_cpu_s": round(number / memory.cpu_s),
        "again_s": round(time.monotonic() - clock, 1),
        "idle_mb": idle,
        "driver_mb": round(memory.own_mb),
        "all_mb": round(memory.peak_mb),
        "votes_mb": round(out.stat().st_size / 2**20, 1),
        "sha256_of_ids": _ids(out),
    }


def _ids(path: Path) -> str:
    """Of the votes without their latencies: the same for every runner and size of shards."""
    same = path.with_name("same.parquet")
    with pq.ParquetFile(path) as file, pq.ParquetWriter(same, _without_latency(file.schema_arrow)) as writer:
        for group in range(file.metadata.num_row_groups):
            table = file.read_row_group(group)
            writer.write_table(table.drop_columns(["latency_s"]))
    return hash_file(same)[:12]


def _without_latency(schema: pa.Schema) -> pa.Schema:
    return schema.remove(schema.get_field_index("latency_s"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--runner", nargs="+", default=["local", "ray"], choices=["local", "ray", "dask"])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--size", type=int, default=8192)
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one is not None:
        folder = arguments.one.parent
        print(json.dumps(one(arguments.one, arguments.runner[0], arguments.workers, arguments.size, folder)))
        return
    columns = ("pairs", "runner", "shards", "seconds", "merge_s", "pairs_per_s", "cpu_s", "pairs_per_cpu_s", "again_s")
    columns += ("idle_mb", "driver_mb", "all_mb", "votes_mb", "sha256_of_ids")
    print("  ".join(f"{name:>15}" for name in columns), flush=True)
    for runner in arguments.runner:
        for number in arguments.pairs:
            with tempfile.TemporaryDirectory() as place:
                path = write_pairs(Path(place) / "pairs.parquet", number)
                command = [sys.executable, __file__, "--one", str(path), "--runner", runner]
                command += ["--workers", str(arguments.workers), "--size", str(arguments.size)]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            found = json.loads(done.stdout.splitlines()[-1])
            print("  ".join(f"{found[name]!s:>15}" for name in columns), flush=True)


if __name__ == "__main__":
    main()
