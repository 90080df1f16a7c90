"""Judging in shards: every shard is a stage of its own, so that a killed run repeats only those that were not finished.

Shards are cut from the table in its order, at multiples of 256 pairs: a judge's batches are then laid out as without
shards (`judges.collect.CELL`), and its answers the same to the bit, whatever the size of shards, their number and the
order in which they are done.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any
from uuid import uuid4

import pyarrow as pa

from flows.shards.runners import Run, open_runner, workers_of
from flows.shards.work import Shard, mark
from judges.collect import CELL
from judges.config import Judge
from judges.modes import Kind
from judges.panel import Limits
from judges.requests import ORDERS
from judges.settings import LOCAL
from store.config import Config
from store.errors import UsageError
from store.hashing import hash_json
from store.resources import CONFIGS
from store.sharding import ShardsConfig
from store.stage import Job, Metrics, Progress, Source, run_stage, silent

PAIRS_A_CELL = CELL // len(ORDERS)
VOTES_PART, MEMBERS_PART = "votes.parquet", "member_votes.parquet"


def check_judges(judges: Sequence[Judge]) -> None:
    """Raises UsageError for a judge that is asked about more than a pair at a time: its answers belong to many."""
    for one in (one for judge in judges for one in judge.asked):
        if one.mode.kind != Kind.PAIR:
            raise UsageError(
                f"judge.shards is for judges that compare two responses; {one.name} has the mode "
                f"{one.settings.mode}: remove judge.shards, or that judge."
            )


def slices(tables: Iterable[pa.Table], size: int) -> Iterator[pa.Table]:
    """The rows of all tables in their order, `size` at a time, rounded up to whole cells."""
    size = -(-size // PAIRS_A_CELL) * PAIRS_A_CELL
    waiting: list[pa.Table] = []
    rows = 0
    for table in tables:
        while table.num_rows:
            part, table = table.slice(0, size - rows), table.slice(size - rows)
            waiting.append(part)
            rows += part.num_rows
            if rows == size:
                yield pa.concat_tables(waiting).combine_chunks()
                waiting, rows = [], 0
    if rows:
        yield pa.concat_tables(waiting).combine_chunks()


def judge_in_shards(
    judges: Sequence[Judge],
    pairs: Iterable[pa.Table],
    *,
    total: int,
    folder: Path,
    seed: int,
    config: ShardsConfig,
    limits: Limits | None = None,
    progress: Progress = silent,
) -> list[Path]:
    """Let every judge vote on every pair in both orders; the folders of the shards, in order, below `folder`.

    `pairs`: PAIRS tables, read as they are needed. Each folder has a manifest, and votes.parquet and
    member_votes.parquet, sorted as `judge_pairs` sorts; see `flows.shards.merge` for one file of all. `limits` hold in
    each shard. Raises as `judge_pairs`, UsageError for judges that do not compare pairs, TransientError where a shard's
    worker died too often.
    """
    check_judges(judges)
    workers = workers_of(config, any(one.settings.backend in LOCAL for judge in judges for one in judge.asked))
    started, done, pairs_done = time.monotonic(), [], 0
    with open_runner(config, workers) as run, ThreadPoolExecutor(workers, thread_name_prefix="shard") as pool:
        waiting: dict[Future[int], Path] = {}
        try:
            for number, table in enumerate(slices(pairs, config.size)):
                out = folder / f"{number:06d}"
                done.append(out)
                call = _Shards(judges, seed, limits or Limits(), workers, run)
                waiting[pool.submit(call.bring, table, out)] = out
                # So few tables are in memory at a time.
                while len(waiting) >= 2 * workers:
                    pairs_done += _next(waiting)
                    _tell(progress, pairs_done, total, started)
            while waiting:
                pairs_done += _next(waiting)
                _tell(progress, pairs_done, total, started)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
    return done


class _Shards:
    def __init__(self, judges: Sequence[Judge], seed: int, limits: Limits, workers: int, run: Run) -> None:
        self._judges, self._seed, self._limits, self._workers, self._run = judges, seed, limits, workers, run

    def bring(self, table: pa.Table, out: Path) -> int:
        """Bring the shard's folder to completion; gives its number of pairs."""
        data = _encode(table)
        identity = hashlib.sha256(data).hexdigest()
        sources = {
            "pairs": [Source(out.name, identity)],
            "judge": [Source(str(judge.folder), judge.digest) for judge in self._judges],
        }

        def work(job: Job[Any]) -> Metrics:
            token = uuid4().hex
            mark(job.out, token)
            shard = Shard(
                hash_json([identity, [judge.digest for judge in self._judges], self._seed]),
                data,
                tuple((_name(judge), judge.digest) for judge in self._judges),
                self._seed,
                self._limits,
                self._workers,
                str(job.out.resolve()),
                token,
            )
            answer = self._run(shard)
            answer.raise_error()
            (job.out / VOTES_PART).write_bytes(answer.votes)
            (job.out / MEMBERS_PART).write_bytes(answer.member_votes)
            return {"pairs": table.num_rows, "worker": answer.worker}

        run_stage("judge-shard", work, inputs=sources, config=Config(), seed=self._seed, out=out)
        return int(table.num_rows)


def _next(waiting: dict[Future[int], Path]) -> int:
    """Wait for a shard; pairs that were finished. Raises what a shard raised."""
    finished, _ = wait(waiting, return_when=FIRST_COMPLETED)
    for future in finished:
        del waiting[future]
    return sum(future.result() for future in finished)


def _tell(progress: Progress, done: int, total: int, started: float) -> None:
    seconds = max(time.monotonic() - started, 1e-9)
    progress("shards", done, total, f"{done / seconds:.0f} pairs/s")


def _name(judge: Judge) -> str:
    """A shipped judge by its name, since rlaif may be installed elsewhere on another machine."""
    shipped = judge.folder.parent == CONFIGS / "judges"
    return judge.folder.name if shipped else str(judge.folder)


def _encode(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    data: bytes = sink.getvalue().to_pybytes()
    return data
