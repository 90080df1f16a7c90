"""A clock to set, items, people, and the processes that work on one database at once."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa

from audit.queue.database import Database
from audit.queue.errors import LeaseExpired
from audit.queue.model import Answer, NewItem, Role
from audit.queue.people import People, User
from audit.queue.queue import Queue, Rules


class FakeClock:
    def __init__(self) -> None:
        self.now = datetime(2026, 1, 1, 12, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def jump(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


def real_clock() -> datetime:
    return datetime.now(UTC)


def new_items(count: int, **more: Any) -> list[NewItem]:
    return [NewItem(f"p{i}", f"prompt {i}", f"first {i}", f"second {i}", **more) for i in range(count)]


def add_people(people: People, count: int, role: Role = Role.AUDITOR) -> list[User]:
    return [people.add(f"{role.value} {i}", role) for i in range(count)]


def in_processes(work: Callable[..., Any], arguments: Sequence[tuple[Any, ...]], timeout_s: float = 300) -> list[Any]:
    """Runs `work` in as many fresh processes as there are arguments, all at once; gives what each returned."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(len(arguments)) as pool:
        return pool.starmap_async(work, arguments, chunksize=1).get(timeout_s)


def answer_all(url: str, user: int, start: float, patience_s: float) -> list[str]:
    """Claims and answers until nothing is left for `patience_s`; gives the items answered."""
    database, done = Database(url, busy_s=60), []
    queue = Queue(database, real_clock)
    time.sleep(max(0.0, start - time.time()))
    idle = time.monotonic()
    while time.monotonic() - idle < patience_s:
        claim = queue.claim(user)
        if claim is None:
            time.sleep(0.02)
            continue
        queue.submit(user, claim.item.item_id, claim.token, Answer("left"), f"key {claim.item.item_id}")
        done.append(claim.item.item_id)
        idle = time.monotonic()
    database.close()
    return done


def answer_carelessly(url: str, user: int, start: float, lease_s: float, stop_at: float) -> list[tuple[str, str]]:
    """Like `answer_all`, but also releases, skips, overruns its leases, and undoes; gives what came of each claim."""
    database, seen = Database(url, busy_s=60), []
    queue, chance = Queue(database, real_clock, Rules(lease_s=lease_s)), random.Random(user)
    time.sleep(max(0.0, start - time.time()))
    number = 0
    while time.time() < stop_at:
        number += 1
        claim = queue.claim(user)
        if claim is None:
            time.sleep(0.02)
            continue
        item, draw, key = claim.item.item_id, chance.random(), f"{number}"
        try:
            if draw < 0.1:
                queue.release(user, item, claim.token)
                seen.append((item, "released"))
                continue
            if draw < 0.15:
                time.sleep(lease_s * 1.2)
            queue.submit(user, item, claim.token, Answer(chance.choice(["left", "right", "tie"])), key)
            seen.append((item, "answered"))
            if draw > 0.95:
                again = queue.undo(user, f"undo {key}")
                queue.submit(user, item, again.token, Answer("tie"), f"again {key}")
                seen.append((item, "changed"))
        except LeaseExpired:
            seen.append((item, "expired"))
    database.close()
    return seen


def submit_and_die(url: str, user: int, key: str, moment: str) -> None:
    """Claims, submits under `key`, and is killed by SIGKILL at a moment of the submit."""
    database = Database(url)
    queue = Queue(database, real_clock)
    claim = queue.claim(user)
    assert claim is not None

    def die(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    engine = database._engine
    if moment == "before the verdict":
        sa.event.listen(engine, "before_cursor_execute", lambda *a: die() if "INSERT INTO verdicts" in a[2] else None)
    elif moment == "before commit":
        sa.event.listen(engine, "commit", die)
    queue.submit(user, claim.item.item_id, claim.token, Answer("left", comment="typed"), key)
    # Committed: the answer to the caller is still to be sent.
    die()
