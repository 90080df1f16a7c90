"""Judging in shards: every shard is a stage of its own, so that a killed run repeats only those that were not finished.

Shards are cut from the table in its order, at multiples of 256 pairs: a judge's batches are then laid out as without
shards (`judges.collect.CELL`), and its answers the same to the bit, whatever the size of shards, their number and the
order in which they are done.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import pyarrow as pa

from flows.shards.exchange import to_stream
from flows.shards.parts import bring_all, cut
from flows.shards.runners import Run, open_runner, workers_of
from flows.shards.work import MEMBERS_PART, VOTES_PART, Shard, close_backends, judge_shard, mark
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

__all__ = ["MEMBERS_PART", "VOTES_PART", "check_judges", "judge_in_shards", "slices"]

PAIRS_A_CELL = CELL // len(ORDERS)


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
    return cut(tables, -(-size // PAIRS_A_CELL) * PAIRS_A_CELL)


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
    with open_runner(config, workers, judge_shard, close_backends) as run:
        shards = _Shards(judges, seed, limits or Limits(), workers, run)
        parts = slices(pairs, config.size)
        return bring_all(shards.bring, parts, folder, workers=workers, total=total, unit="pairs", progress=progress)


class _Shards:
    def __init__(self, judges: Sequence[Judge], seed: int, limits: Limits, workers: int, run: Run[Shard]) -> None:
        self._judges, self._seed, self._limits, self._workers, self._run = judges, seed, limits, workers, run

    def bring(self, table: pa.Table, out: Path) -> None:
        """Bring the shard's folder to completion."""
        data = to_stream(table)
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
            answer.write(job.out)
            return {"pairs": table.num_rows, "worker": answer.worker}

        run_stage("judge-shard", work, inputs=sources, config=Config(), seed=self._seed, out=out)


def _name(judge: Judge) -> str:
    """A shipped judge by its name, since rlaif may be installed elsewhere on another machine."""
    shipped = judge.folder.parent == CONFIGS / "judges"
    return judge.folder.name if shipped else str(judge.folder)
