"""What quarantine means for the queue: what a person answered is asked of somebody else, and no longer once they are
released.

Verdicts stay as they are. A place whose answer is set aside stays its person's, so that they never get the item again,
and a new place is opened beside it. Each function takes an open connection, in whose transaction the person's row is
locked, so that none of their own calls runs at the same time.
"""

from __future__ import annotations

from datetime import datetime

import sqlalchemy as sa

from audit.queue import places, record
from audit.queue.batches import first_token
from audit.queue.model import VerdictKind
from audit.queue.tables import ASIDE, CLOSED, DONE, HELD, OPEN, slots, users, verdicts


def ask_others(connection: sa.Connection, user: int, now: datetime) -> int:
    """Give back what the person holds, set their answers aside, and ask for each once more; gives how many of these.

    Only in batches that are open, and not on items that a lead settled. Nothing is left to do the second time.
    """
    held = (slots.c.user_id == user, slots.c.state == HELD)
    for row in connection.execute(sa.select(slots.c.id, slots.c.item_id, slots.c.batch_id).where(*held)).all():
        places.give_back(connection, row.id)
        places.log(connection, now, "released", user, row.batch_id, row.item_id)
    settled = sa.exists().where(
        verdicts.c.item_id == slots.c.item_id,
        verdicts.c.kind == VerdictKind.ADJUDICATION.value,
        record.in_force(),
        users.c.id == verdicts.c.user_id,
        users.c.quarantined.is_(None),
    )
    answered = (
        sa.select(slots.c.id, slots.c.item_id, slots.c.batch_id, slots.c.priority)
        .where(slots.c.user_id == user, slots.c.state == DONE, ~settled)
        .order_by(slots.c.priority.desc(), slots.c.position)
    )
    rows = connection.execute(answered).all()
    closed = {batch: places.batch_is_closed(connection, batch) for batch in sorted({row.batch_id for row in rows})}
    rows = [row for row in rows if not closed[row.batch_id]]
    if not rows:
        return 0
    aside = slots.update().where(slots.c.id == sa.bindparam("slot")).values(state=ASIDE)
    connection.execute(aside, [{"slot": row.id} for row in rows])
    position = places.take_numbers(connection, "position", len(rows))
    wanted = [(row.item_id, row.batch_id, row.priority, 1) for row in rows]
    connection.execute(slots.insert(), places.new_slots(wanted, position, (first_token() for _ in rows)))
    return len(rows)


def count_again(connection: sa.Connection, user: int) -> int:
    """Count the person's answers again, and ask nobody else where nobody has begun to; gives how many answers.

    An answer that another person gave meanwhile, or is about to give, is one more than was asked for.
    """
    aside = (slots.c.user_id == user, slots.c.state == ASIDE)
    rows = connection.execute(sa.select(slots.c.id, slots.c.item_id).where(*aside).order_by(slots.c.id)).all()
    for row in rows:
        free = (slots.c.item_id == row.item_id, slots.c.state.in_((OPEN, CLOSED)))
        # What somebody is claiming at this moment is theirs.
        last = sa.select(slots.c.id).where(*free).order_by(slots.c.id.desc()).limit(1).with_for_update(skip_locked=True)
        connection.execute(slots.delete().where(slots.c.id == last.correlate(None).scalar_subquery()))
        connection.execute(slots.update().where(slots.c.id == row.id).values(state=DONE))
    return len(rows)
