"""The audit queue: correctness under load, and the time until the next pair. `python benchmarks/audit.py`

1.  16 processes x 1,000 items, each claimed and answered as fast as it goes: no item twice, none left, nobody starved
    (the longest wait for a single claim; how evenly the items were shared).
2.  20 people at once (threads of one process, as in the server, each claiming and answering again after half a second
    on average, some 30 times as fast as people read) on 1,000, 10,000 and 100,000 queued items: claim p50 and p95,
    which must stay flat; once more for a person who has judged thousands of items whose other places are still open.
    With the memory of the process.
3.  The same over HTTP with the real server: from a claim, and from an answer, to the next page; see audit_pages.py.

SQLite always; PostgreSQL too where `--postgres URL` names a server on which databases may be made, or where a local
installation can be started. The disk matters: every answer is flushed to it before it counts.
"""

# ruff: noqa: E402

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil
import sqlalchemy as sa

# The folder of a script comes first on Python's path, and there this file would be taken for the package `audit`.
sys.path[0] = str(Path(__file__).resolve().parent.parent)

from audit.queue.database import Database
from audit.queue.model import Answer, NewItem, Role
from audit.queue.people import People
from audit.queue.queue import Queue
from benchmarks.audit_pages import START_S, measure

PROCESSES, EACH = 16, 1_000
PEOPLE, ROUNDS, PAUSE_S = 20, 30, 0.5
JUDGED = 3_000
SIZES = (1_000, 10_000, 100_000)
P95_MS, MEMORY_MB = 50.0, 200.0


def clock() -> datetime:
    return datetime.now(UTC)


def items(count: int, overlap: int = 1) -> list[NewItem]:
    text = "Words of a response that is neither short nor long. " * 20
    return [NewItem(f"p{i}", f"prompt {i}", f"{i} {text}", f"{text} {i}", overlap=overlap) for i in range(count)]


def make(url: str, people: int) -> tuple[Database, Queue, list[int]]:
    database = Database(url, busy_s=60)
    database.migrate()
    accounts = People(database, clock)
    return database, Queue(database, clock), [accounts.add(f"p{i}", Role.AUDITOR).id for i in range(people)]


def work(url: str, user: int, ready: Any) -> tuple[list[str], float, float]:
    """Items answered; the longest claim and the longest submit in seconds."""
    database = Database(url, busy_s=60)
    queue = Queue(database, clock)
    ready.wait()
    done: list[str] = []
    claims, submits = 0.0, 0.0
    while True:
        begin = time.perf_counter()
        claim = queue.claim(user)
        middle = time.perf_counter()
        if claim is None:
            return done, claims, submits
        queue.submit(user, claim.item.item_id, claim.token, Answer("left"), claim.item.item_id)
        claims, submits = max(claims, middle - begin), max(submits, time.perf_counter() - middle)
        done.append(claim.item.item_id)


def many_processes(url: str) -> bool:
    database, queue, people = make(url, PROCESSES)
    total = PROCESSES * EACH
    batch = queue.add_batch("round", items(total))
    database.close()
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, context.Pool(PROCESSES) as pool:
        ready = manager.Barrier(PROCESSES)
        begin = time.perf_counter()
        results = pool.starmap(work, [(url, user, ready) for user in people], chunksize=1)
        wall = time.perf_counter() - begin
    count = Counter(item for done, *_ in results for item in done)
    progress = queue.batch_progress(batch)
    shares = sorted(len(done) for done, *_ in results)
    double, left = sum(n - 1 for n in count.values()), total - progress.answered
    claim, submit = max(result[1] for result in results), max(result[2] for result in results)
    fine = double == 0 and left == 0 and len(count) == total and shares[0] > EACH / 2
    print(f"  {PROCESSES} processes x {EACH:,} items in {wall:.0f} s: {double} double claims, {left} left over")
    print(
        f"    items a process: {shares[0]} to {shares[-1]}; longest claim {claim:.2f} s, longest submit {submit:.2f} s"
    )
    database.close()
    return fine


def percentile(times: list[float], share: float) -> float:
    return 1e3 * statistics.quantiles(times, n=100, method="inclusive")[round(share * 100) - 1]


def twenty_people(url: str, size: int) -> dict[str, float]:
    """Runs in a process of its own, so that its memory is this case's."""
    # Filled by another process: the server's memory must not be that of making the items.
    fill = multiprocessing.get_context("spawn").Process(target=make_full, args=(url, size))
    fill.start()
    fill.join()
    database = Database(url)
    queue = Queue(database, clock)
    people = [user.id for user in People(database, clock).all()]
    claims: list[float] = []
    submits: list[float] = []

    def sit(user: int) -> None:
        chance = random.Random(user)
        for number in range(ROUNDS):
            # People do not press their keys in step; 20 threads that wait equally long would.
            time.sleep(chance.uniform(0, 2 * PAUSE_S))
            begin = time.perf_counter()
            claim = queue.claim(user)
            middle = time.perf_counter()
            if claim is None:
                raise SystemExit(f"{size} items, and none for person {user}")
            queue.submit(user, claim.item.item_id, claim.token, Answer("right"), f"{number}")
            claims.append(middle - begin)
            submits.append(time.perf_counter() - middle)

    threads = [threading.Thread(target=sit, args=(user,)) for user in people]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = {"claim_p50": percentile(claims, 0.5), "claim_p95": percentile(claims, 0.95)}
    found["submit_p95"] = percentile(submits, 0.95)
    found["memory_mb"] = psutil.Process().memory_info().rss / 2**20
    found["judged_p95"] = one_who_judged_much(queue, people[0])
    database.close()
    return found


def over_http(url: str, size: int) -> bool:
    make_full(url, size)
    found = measure(url)
    p50, p95 = percentile(found.claimed, 0.5), percentile(found.claimed, 0.95)
    ok = p95 <= P95_MS and found.memory_mb < MEMORY_MB and found.start_s <= START_S
    print(
        f"  {size:>7,} items, {PEOPLE} people over HTTP: claim and page p50 {p50:.1f} ms, p95 {p95:.1f} ms; answer to "
        f"page p50 {percentile(found.onward, 0.5):.1f} ms, p95 {percentile(found.onward, 0.95):.1f} ms; start to first "
        f"page {found.start_s:.1f} s; server {found.memory_mb:.0f} MB, {1e3 * found.cpu:.1f} ms of CPU an answer "
        f"{'ok' if ok else 'MISSED'}",
        flush=True,
    )
    return ok


def make_full(url: str, size: int) -> None:
    database, queue, _ = make(url, PEOPLE)
    queue.add_batch("round", items(size))
    database.close()


def one_who_judged_much(queue: Queue, user: int) -> float:
    """Two places an item, and one person answers them all: each answer leaves an open place that is not for them."""
    queue.add_batch("overlap", [NewItem(f"o{i}", "x", "y", "z", priority=1, overlap=2) for i in range(JUDGED)])
    times = []
    for number in range(JUDGED):
        begin = time.perf_counter()
        claim = queue.claim(user)
        times.append(time.perf_counter() - begin)
        if claim is None:
            raise SystemExit("an item is missing")
        queue.submit(user, claim.item.item_id, claim.token, Answer("tie"), f"o{number}")
    return percentile(times[-200:], 0.95)


@contextmanager
def servers(postgres: str | None) -> Iterator[dict[str, Any]]:
    """Makers of URLs of empty databases, by name."""
    with tempfile.TemporaryDirectory() as folder:
        found: dict[str, Any] = {"SQLite": lambda: str(Path(folder) / f"{uuid4().hex}.db")}
        if postgres is not None:
            yield found | {"PostgreSQL": _maker(postgres)}
            return
        from tests.audit.queue.servers import binaries, postgresql

        programs = binaries()
        if programs is None:
            print("PostgreSQL: left out, no server is installed")
            yield found
            return
        with postgresql(programs) as url:
            yield found | {"PostgreSQL": _maker(url)}


def _maker(server: str) -> Any:
    server = server.rstrip("/") + "/"

    def new() -> str:
        name = f"rlaif_{uuid4().hex}"
        engine = sa.create_engine(
            server.replace("postgresql://", "postgresql+psycopg://") + "postgres", isolation_level="AUTOCOMMIT"
        )
        with engine.connect() as connection:
            connection.execute(sa.text(f"CREATE DATABASE {name}"))
        engine.dispose()
        return server + name

    return new


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--postgres", help="URL of a server without a database's name")
    parser.add_argument("--only", choices=["processes", "people", "pages"])
    parser.add_argument("--database", choices=["SQLite", "PostgreSQL"])
    parser.add_argument("--case", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(twenty_people(arguments.case[0], int(arguments.case[1]))))
        return
    fine = True
    with servers(arguments.postgres) as databases:
        for name, new in databases.items():
            if arguments.database not in (None, name):
                continue
            print(f"\n{name} ({os.cpu_count()} cores)", flush=True)
            if arguments.only in (None, "processes"):
                fine &= many_processes(new())
            for size in SIZES if arguments.only in (None, "pages") else ():
                fine &= over_http(new(), size)
            for size in SIZES if arguments.only in (None, "people") else ():
                command = [sys.executable, __file__, "--case", new(), str(size)]
                printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                found = json.loads(printed)
                ok = found["claim_p95"] <= P95_MS and found["judged_p95"] <= P95_MS and found["memory_mb"] < MEMORY_MB
                fine &= ok
                print(
                    f"  {size:>7,} items, {PEOPLE} people: claim p50 {found['claim_p50']:.1f} ms, "
                    f"p95 {found['claim_p95']:.1f} ms; submit p95 {found['submit_p95']:.1f} ms; "
                    f"who judged thousands: p95 {found['judged_p95']:.1f} ms; "
                    f"memory {found['memory_mb']:.0f} MB {'ok' if ok else 'MISSED'}"
                )
    print(
        f"\ntargets: no double claim, none left, p95 <= {P95_MS:g} ms, < {MEMORY_MB:g} MB, "
        f"first page <= {START_S:g} s: "
        f"{'ok' if fine else 'MISSED'}"
    )


if __name__ == "__main__":
    main()
