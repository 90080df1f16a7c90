"""An inquiry: all that one judge is asked about, and the table of its answers. It is made for each kind of judge.

A judge that compares two responses is asked about pairs (`judges.votes`), one that rates a response about rollouts
(`judges.ratings`), and one that ranks many about prompts (`judges.lists`). Votes on pairs follow from the answers of
each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import pyarrow as pa

from judges.backends.base import Backend, open_backend
from judges.collect import Ask, Limits, RowOf, collect
from judges.journal import SHARD_ROWS, Journal
from judges.judge import Judge
from store.schemas import Table
from store.stage import Progress, silent

T = TypeVar("T")


@dataclass(frozen=True)
class Inquiry(Generic[T]):
    """`asks`: gives the same asks, in the same order, each time. `row_of`: the row of `table` that a reply becomes."""

    judge: Judge
    table: Table
    asks: Callable[[], Iterator[Ask[T]]]
    row_of: RowOf[T]

    def run(
        self,
        backend: Backend | None = None,
        *,
        seed: int,
        progress: Progress = silent,
        shards: Path | None = None,
        shard_rows: int = SHARD_ROWS,
        limits: Limits | None = None,
    ) -> pa.Table:
        """Ask what `shards` has no answer to yet; returns a row for each ask, in the order of their arrival.

        Without a `backend` the judge's is loaded if anything is missing, and closed. Raises as `collect`.
        """
        limits = limits or Limits()
        folder = shards / self.judge.fingerprint if shards else None
        journal = Journal(folder, self.table, (ask.id for ask in self.asks()), shard_rows)
        if not journal.missing():
            limits.check(self.judge.name, journal, at_end=True)
            return journal.table()
        with _opened(self.judge, backend) as asked:
            collect(
                self.judge,
                asked,
                self.asks(),
                journal,
                self.row_of,
                seed=seed,
                progress=progress,
                limits=limits,
            )
        return journal.table()


@contextmanager
def _opened(judge: Judge, backend: Backend | None) -> Iterator[Backend]:
    if backend is not None:
        yield backend
        return
    own = open_backend(judge)
    try:
        yield own
    finally:
        own.close()
