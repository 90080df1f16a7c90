"""Places: how an open slot is found for a person, lent, and given back.

A claim is one atomic UPDATE ... RETURNING; on PostgreSQL it passes over what others are claiming at this moment. Two
things keep it equally fast from a thousand to a hundred thousand items, also for a person who judged thousands:

*   Open slots lie in an index of their own, by priority and position.
*   A slot that a person cannot have (the item's other answer is theirs, or they skipped it) is looked at once. Below
    the person's cursor lies nothing for them. That stays true because whatever opens again (given back, expired, asked
    for once more) gets a new position behind all others of its priority, with all open slots of its item. New
    positions come from one counter row, which is locked until commit: nobody sees a position before all lower ones.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.sql.elements import ColumnElement

from audit.queue.database import Database
from audit.queue.tables import CLOSED, HELD, OPEN, batches, counters, cursors, events, skips, slots

_ATTEMPTS = 50
_SWEEP = 200


@dataclass(frozen=True)
class Lease:
    """`turn`: order in which the holder works on it."""

    now: datetime
    until: datetime
    turn: int


def state_is(state: int, table: Any = slots) -> ColumnElement[bool]:
    """Written out, not as a parameter: a partial index serves only a condition that is known when it is planned."""
    condition: ColumnElement[bool] = table.c.state == sa.literal_column(str(state))
    return condition


def take_numbers(connection: sa.Connection, counter: str, count: int) -> int:
    """The first of `count` numbers that nobody else gets. Others wait until this transaction ends."""
    statement = (
        counters.update()
        .where(counters.c.name == counter)
        .values(value=counters.c.value + count)
        .returning(counters.c.value)
    )
    last: int = connection.execute(statement).scalar_one()
    return last - count + 1


def claim_next(connection: sa.Connection, user: int, lease: Lease) -> int | None:
    """Lend the best open slot that this person may have; gives its id. The caller holds the person's row locked."""
    priority = _priority_below(connection, None)
    while priority is not None:
        slot = _claim_at(connection, user, priority, lease)
        if slot is not None:
            return slot
        priority = _priority_below(connection, priority)
    return None


def claim_item(connection: sa.Connection, user: int, item: int, lease: Lease) -> int | None:
    """Lend an open slot of one item to a person who has none of it."""
    wanted = sa.select(slots.c.id).where(state_is(OPEN), slots.c.item_id == item)
    return _lend(connection, user, wanted.order_by(slots.c.id), lease)


def give_back(connection: sa.Connection, slot: int) -> None:
    """Open a held slot again, or close it where its batch was closed meanwhile."""
    row = connection.execute(sa.select(slots.c.item_id, slots.c.batch_id).where(slots.c.id == slot)).one()
    state = CLOSED if batch_is_closed(connection, row.batch_id) else OPEN
    connection.execute(
        slots.update()
        .where(slots.c.id == slot)
        .values(state=state, user_id=None, turn=None, claimed_at=None, expires_at=None)
    )
    move_to_end(connection, row.item_id)


def move_to_end(connection: sa.Connection, item: int) -> None:
    """Put the item's open slots behind all others of their priority, where every person's cursor still has to pass."""
    position = take_numbers(connection, "position", 1)
    found = sa.select(slots.c.id).where(state_is(OPEN), slots.c.item_id == item).order_by(slots.c.id)
    ids = connection.execute(found).scalars().all()
    if len(ids) > 1:
        take_numbers(connection, "position", len(ids) - 1)
    for offset, slot in enumerate(ids):
        connection.execute(slots.update().where(slots.c.id == slot, state_is(OPEN)).values(position=position + offset))


def batch_is_closed(connection: sa.Connection, batch: int) -> bool:
    """Keeps the batch from being closed until this transaction ends."""
    found = sa.select(batches.c.closed_at).where(batches.c.id == batch).with_for_update(read=True)
    return connection.execute(found).scalar_one() is not None


def expire(database: Database, now: datetime) -> int:
    """Give back what is held past its lease.

    A transaction of its own: it may wait for the counter of positions, which no claim does while it holds a slot.
    """
    overdue = sa.select(slots.c.id, slots.c.item_id, slots.c.batch_id, slots.c.user_id).where(
        state_is(HELD), slots.c.expires_at <= now
    )
    count = 0
    while True:
        with database.read() as connection:
            if connection.execute(overdue.limit(1)).first() is None:
                return count
        with database.write() as connection:
            locked = overdue.order_by(slots.c.expires_at).limit(_SWEEP).with_for_update(skip_locked=True)
            rows = connection.execute(locked).all()
            for row in rows:
                give_back(connection, row.id)
                log(connection, now, "expired", row.user_id, row.batch_id, row.item_id)
        if not rows:  # somebody else is at it
            return count
        count += len(rows)


def log(
    connection: sa.Connection,
    at: datetime,
    kind: str,
    user: int | None = None,
    batch: int | None = None,
    item: int | None = None,
) -> None:
    """Note what happened; never any content."""
    connection.execute(events.insert().values(at=at, kind=kind, user_id=user, batch_id=batch, item_id=item))


def new_slots(items: Iterable[tuple[int, int, int, int]], position: int, tokens: Iterable[int]) -> list[dict[str, Any]]:
    """Rows for (item, batch, priority, how many), from `position` on."""
    rows: list[dict[str, Any]] = []
    source = iter(tokens)
    for item, batch, priority, count in items:
        for _ in range(count):
            rows.append(
                {
                    "item_id": item,
                    "batch_id": batch,
                    "priority": priority,
                    "position": position + len(rows),
                    "state": OPEN,
                    "token": next(source),
                }
            )
    return rows


def _priority_below(connection: sa.Connection, priority: int | None) -> int | None:
    below = [] if priority is None else [slots.c.priority < priority]
    found = sa.select(slots.c.priority).where(state_is(OPEN), *below).order_by(slots.c.priority.desc()).limit(1)
    return connection.execute(found).scalar()


def _claim_at(connection: sa.Connection, user: int, priority: int, lease: Lease) -> int | None:
    here = (state_is(OPEN), slots.c.priority == priority)
    known = sa.select(cursors.c.position).where(cursors.c.user_id == user, cursors.c.priority == priority)
    start = connection.execute(known).scalar()
    cursor = -1 if start is None else start
    slot = None
    for attempt in range(_ATTEMPTS):
        # The end is read first: what is added between the two statements lies behind it, and is not passed over.
        end = connection.execute(sa.select(sa.func.max(slots.c.position)).where(*here)).scalar()
        if end is None or end <= cursor:
            break
        fit = sa.and_(*here, slots.c.position > cursor, _may_have(user))
        first = connection.execute(
            sa.select(slots.c.position).where(fit, slots.c.position <= end).order_by(slots.c.position).limit(1)
        ).scalar()
        cursor = end if first is None else first - 1
        if first is None:
            break
        wanted = sa.select(slots.c.id).where(fit).order_by(slots.c.position)
        # Others hold all that fits locked: wait for them, since they may yet fail and leave it.
        slot = _lend(connection, user, wanted, lease, wait=attempt > 0)
        if slot is not None:
            break
    if cursor >= 0 and cursor != start:
        _advance(connection, user, priority, cursor, known=start is not None)
    return slot


def _may_have(user: int) -> ColumnElement[bool]:
    other = slots.alias("other")
    has_place = sa.exists().where(other.c.item_id == slots.c.item_id, other.c.user_id == user)
    skipped = sa.exists().where(skips.c.item_id == slots.c.item_id, skips.c.user_id == user)
    return sa.and_(~has_place, ~skipped)


def _lend(connection: sa.Connection, user: int, wanted: sa.Select[Any], lease: Lease, wait: bool = False) -> int | None:
    one = wanted.limit(1).with_for_update(of=slots, skip_locked=not wait).correlate(None).scalar_subquery()
    statement = (
        slots.update()
        .where(slots.c.id == one)
        .values(
            state=HELD,
            user_id=user,
            token=slots.c.token + 1,
            turn=lease.turn,
            claimed_at=lease.now,
            expires_at=lease.until,
        )
        .returning(slots.c.id)
    )
    slot: int | None = connection.execute(statement).scalar()
    return slot


def _advance(connection: sa.Connection, user: int, priority: int, position: int, known: bool) -> None:
    if known:
        here = (cursors.c.user_id == user, cursors.c.priority == priority)
        connection.execute(cursors.update().where(*here).values(position=position))
    else:
        connection.execute(cursors.insert().values(user_id=user, priority=priority, position=position))
