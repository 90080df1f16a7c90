"""A table in parts: cut in its order, and each brought to completion in a folder of its own, some at a time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path

import pyarrow as pa

from store.stage import Progress

Bring = Callable[[pa.Table, Path], None]
"""Has the part's result in the folder when it returns."""


def cut(tables: Iterable[pa.Table], size: int) -> Iterator[pa.Table]:
    """The rows of all tables in their order, `size` at a time."""
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


def bring_all(
    bring: Bring,
    parts: Iterable[pa.Table],
    folder: Path,
    *,
    workers: int,
    total: int,
    unit: str,
    progress: Progress,
) -> list[Path]:
    """`bring` every part, `workers` of them at a time; their folders below `folder`, in order.

    `parts` are read as they are needed. `total`: rows of all; `unit`: what a row is. Raises what `bring` raises, once
    the others that are under way have ended; no further one is begun.
    """
    started, done, rows = time.monotonic(), [], 0
    failed = threading.Event()

    def bring_one(table: pa.Table, out: Path) -> None:
        if not failed.is_set():
            try:
                bring(table, out)
            except BaseException:
                failed.set()
                raise

    with ThreadPoolExecutor(workers, thread_name_prefix="shard") as pool:
        waiting: dict[Future[None], int] = {}

        def one() -> None:
            nonlocal rows
            finished, _ = wait(waiting, return_when=FIRST_COMPLETED)
            for future in finished:
                count = waiting.pop(future)
                future.result()
                rows += count
            seconds = max(time.monotonic() - started, 1e-9)
            progress("shards", rows, total, f"{rows / seconds:.0f} {unit}/s")

        try:
            for number, table in enumerate(parts):
                out = folder / f"{number:06d}"
                done.append(out)
                waiting[pool.submit(bring_one, table, out)] = table.num_rows
                # So few tables are in memory at a time.
                while len(waiting) >= 2 * workers:
                    one()
            while waiting:
                one()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
    return done
