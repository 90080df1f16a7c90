"""Votes: one judge's answer on one pair in one order, in terms of rollouts, and the journal that keeps them.

A vote is addressed by its content (pair, fingerprint, order), so that a journal never holds two different ones.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import pyarrow as pa

from judges.backends.base import ORDERS, Answer, Order
from judges.judge import Judge
from judges.pairs import Pair
from store.files import explain_os_errors
from store.hashing import short_id
from store.tables import VOTES, Status

_BATCH = 4096  # votes turned into Arrow at a time: dictionaries take ten times the memory
_SYNC_EVERY_S = 1.0


def vote_id(pair_id: str, fingerprint: str, order: str) -> str:
    return short_id(pair_id, fingerprint, order)


def vote_of(judge: Judge, answer: Answer) -> dict[str, Any]:
    """The VOTES row of an answer, mapped from slots to rollouts. What has no preference stays without one."""
    pair, order = answer.request.pair, answer.request.order
    p_a = answer.p_first
    if p_a is not None and order == "ba":
        p_a = 1 - p_a
    winner = None
    if answer.status == Status.SCORED and p_a is not None:
        winner = "a" if p_a > 0.5 else "b"
    price = judge.settings.price
    return {
        "vote_id": vote_id(pair.pair_id, judge.fingerprint, order),
        "pair_id": pair.pair_id,
        "prompt_id": pair.prompt_id,
        "rollout_a": pair.rollout_a,
        "rollout_b": pair.rollout_b,
        "judge": judge.name,
        "fingerprint": judge.fingerprint,
        "order": order,
        "status": str(answer.status),
        "tokens_in": answer.tokens_in,
        "tokens_out": answer.tokens_out,
        "cost": (answer.tokens_in * price.input + answer.tokens_out * price.output) / 1e6,
        "latency_s": answer.latency_s,
        "attempts": answer.attempts,
        "winner": winner,
        "p_a": p_a,
        "mass": answer.mass,
        "rationale": answer.rationale,
        "raw": answer.raw,
        "error": answer.error,
    }


class VoteLog:
    """The votes of one judge on some pairs, in memory or in a journal of JSON lines; a context manager for writing.

    Each line reaches the operating system when its vote arrives, so that a killed process loses none, and the disk
    within a second, for a machine that fails. Votes that ended in an error are asked for again by the next run, whose
    line then counts; a journal may hold votes on other pairs, which are left alone.
    """

    def __init__(self, path: Path | None, judge: Judge, pairs: Sequence[Pair]) -> None:
        self.counts: Counter[str] = Counter()
        """Status -> votes so far, errors of earlier runs left out."""
        self.last_error: str | None = None
        self.transient_errors = 0
        """Errors of this run that another run may not meet."""
        self.total = len(pairs) * len(ORDERS)
        self._path, self._pairs = path, pairs
        self._wanted = {vote_id(pair.pair_id, judge.fingerprint, order) for pair in pairs for order in ORDERS}
        self._fingerprint = judge.fingerprint
        self._done: set[str] = set()
        self._rows: list[dict[str, Any]] = []
        self._batches: list[pa.RecordBatch] = []
        self._file: IO[bytes] | None = None
        self._synced = 0.0
        for row in self._journal():
            if row["status"] != Status.ERROR and row["vote_id"] not in self._done:
                self._done.add(row["vote_id"])
                self.counts[row["status"]] += 1

    def missing(self) -> int:
        return self.total - len(self._done)

    def missing_requests(self) -> Iterator[tuple[Pair, Order]]:
        for pair in self._pairs:
            for order in ORDERS:
                if vote_id(pair.pair_id, self._fingerprint, order) not in self._done:
                    yield pair, order

    def append(self, row: dict[str, Any], transient: bool = False) -> None:
        # `_done` stays as it was at the start: `missing_requests` may still be running over it.
        self.counts[row["status"]] += 1
        self.last_error = row["error"] or self.last_error
        self.transient_errors += transient
        if self._file is None:
            self._rows.append(row)
            if len(self._rows) >= _BATCH:
                self._pack()
            return
        self._file.write(json.dumps(row, allow_nan=False).encode() + b"\n")
        self._file.flush()
        if time.monotonic() - self._synced > _SYNC_EVERY_S:
            os.fsync(self._file.fileno())
            self._synced = time.monotonic()

    def table(self) -> pa.Table:
        """All votes as a VOTES table: from the journal the last line of each vote counts."""
        if self._path is not None:
            last = {row["vote_id"]: at for at, row in enumerate(self._journal())}
            for at, row in enumerate(self._journal()):
                if last[row["vote_id"]] == at:
                    self._rows.append(row)
                    if len(self._rows) >= _BATCH:
                        self._pack()
        self._pack()
        batches, self._batches = self._batches, []
        return pa.Table.from_batches(batches, schema=VOTES.schema)

    def __enter__(self) -> VoteLog:
        if self._path is not None:
            with explain_os_errors(self._path):
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._file = self._path.open("ab+")
                if self._file.tell() > 0:
                    self._file.seek(-1, os.SEEK_END)
                    if self._file.read(1) != b"\n":
                        self._file.write(b"\n")  # closes a line torn by a kill, so that it cannot swallow the next
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self._file = None

    def _pack(self) -> None:
        if self._rows:
            self._batches.append(pa.RecordBatch.from_pylist(self._rows, schema=VOTES.schema))
            self._rows = []

    def _journal(self) -> Iterator[dict[str, Any]]:
        if self._path is None or not self._path.exists():
            return
        with self._path.open("rb") as file:
            for line in file:
                try:
                    row = json.loads(line)
                except ValueError:
                    continue  # torn by a kill in the middle of a write
                if row.get("vote_id") in self._wanted:
                    yield row
