"""An item before a lead: what people said of it, what was decided, and asking further people.

Each function takes an open connection; transactions and rules are `audit.queue.queue`'s.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from audit.queue import batches as batch_rows
from audit.queue import places, record
from audit.queue.model import Opinion, VerdictKind
from audit.queue.tables import skips, slots, users, verdicts


def opinions(connection: sa.Connection, item: int, left: str) -> tuple[tuple[Opinion, ...], Opinion | None]:
    """The people's opinions in force on an item, oldest first, and the adjudication in force. `left`: the rollout on
    the reader's left."""
    found = (
        sa.select(verdicts, users.c.name, users.c.simulated, users.c.quarantined)
        .join(users, users.c.id == verdicts.c.user_id)
        .where(verdicts.c.item_id == item, verdicts.c.winner.is_not(None), record.in_force())
        .order_by(verdicts.c.id)
    )
    given: list[Opinion] = []
    decided: list[Opinion] = []
    for row in connection.execute(found):
        (decided if row.kind == VerdictKind.ADJUDICATION.value else given).append(_opinion(row, left))
    return tuple(given), decided[0] if decided else None


def decision(connection: sa.Connection, item: int) -> Any:
    """The row of the adjudication in force, or None."""
    found = sa.select(verdicts).where(
        verdicts.c.item_id == item, verdicts.c.kind == VerdictKind.ADJUDICATION.value, record.in_force()
    )
    return connection.execute(found).first()


def ask_more(connection: sa.Connection, item: int, batch: int, more: int) -> None:
    """Open `more` further places of an item, also to those who skipped it."""
    connection.execute(skips.delete().where(skips.c.item_id == item))
    priority = connection.execute(sa.select(sa.func.max(slots.c.priority)).where(slots.c.item_id == item)).scalar_one()
    if more:
        # The position is a first one only: the item's open places all move to the end below.
        tokens = (batch_rows.first_token() for _ in range(more))
        rows = places.new_slots([(item, batch, priority, more)], 0, tokens)
        connection.execute(slots.insert(), rows)
    places.move_to_end(connection, item)


def _opinion(row: Any, left: str) -> Opinion:
    answer = record.to_answer(row, left)
    return Opinion(
        row.public_id,
        row.name,
        answer.choice,
        answer.confidence,
        answer.flaws_left,
        answer.flaws_right,
        answer.comment,
        answer.seconds,
        row.created_at,
        row.simulated,
        row.quarantined is not None,
    )
