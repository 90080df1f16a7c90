"""How a person stands with an item: their place in it, and what they did with it before.

Each function takes an open connection; transactions and rules are `audit.queue.queue`'s.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

import sqlalchemy as sa

from audit.queue import places, record
from audit.queue.errors import AlreadyDecided, KeyReused, LeaseExpired, NothingToUndo
from audit.queue.model import VerdictKind
from audit.queue.places import Lease
from audit.queue.tables import DONE, HELD, batches, events, items, skips, slots, verdicts

EXPIRED = (
    "Your time on this item is over, or you opened it again elsewhere. Nothing was sent and your text is still here: "
    "take the item again, if it is free, and send it."
)
OF_ITEM = (
    items.c.id.label("item"),
    items.c.public_id.label("item_id"),
    batches.c.id.label("batch"),
    batches.c.public_id.label("batch_id"),
    batches.c.seed,
    batches.c.guidelines_version,
    batches.c.constitution_version,
)
"""What every step needs to know of an item and its batch."""


def places_held() -> sa.Select[Any]:
    return (
        sa.select(
            slots.c.id.label("slot_id"),
            slots.c.state,
            slots.c.token,
            slots.c.claimed_at,
            slots.c.expires_at,
            *OF_ITEM,
        )
        .join(items, items.c.id == slots.c.item_id)
        .join(batches, batches.c.id == items.c.batch_id)
    )


def change(connection: sa.Connection, row: Any, values: dict[str, Any]) -> None:
    """Change a held slot; LeaseExpired where somebody found its lease ended since it was read."""
    same = (slots.c.id == row.slot_id, slots.c.state == HELD, slots.c.token == row.token)
    if connection.execute(slots.update().where(*same).values(**values)).rowcount != 1:
        raise LeaseExpired(EXPIRED)


def holds(connection: sa.Connection, user: int, item: int, *states: int) -> bool:
    found = sa.select(slots.c.id).where(slots.c.item_id == item, slots.c.user_id == user, slots.c.state.in_(states))
    return connection.execute(found).first() is not None


def had(connection: sa.Connection, user: int, item: int) -> bool:
    mine = (events.c.item_id == item, events.c.user_id == user, events.c.kind == "claimed")
    found = sa.select(events.c.id).where(*mine)
    return connection.execute(found.limit(1)).first() is not None


def passed(connection: sa.Connection, user: int, item: int) -> bool:
    found = sa.select(skips.c.item_id).where(skips.c.item_id == item, skips.c.user_id == user)
    return connection.execute(found).first() is not None


def bar(connection: sa.Connection, user: int, item: int) -> None:
    if not passed(connection, user, item):
        connection.execute(skips.insert().values(item_id=item, user_id=user))


def undone(connection: sa.Connection, user: int, key: str) -> str | None:
    """The item that an undo of this key gave back before."""
    found = (
        sa.select(verdicts.c.kind, items.c.public_id)
        .join(items, items.c.id == verdicts.c.item_id)
        .where(verdicts.c.user_id == user, verdicts.c.key == key)
    )
    row = connection.execute(found).first()
    if row is not None and row.kind != VerdictKind.WITHDRAWN.value:
        raise KeyReused("This key came with an answer before: make a new one for the undo.")
    return None if row is None else row.public_id


def last(connection: sa.Connection, user: int, item_id: str | None) -> Any:
    kinds = [VerdictKind.ANSWER.value, VerdictKind.SKIP.value]
    found = (
        sa.select(verdicts, items.c.public_id.label("item_public_id"))
        .join(items, items.c.id == verdicts.c.item_id)
        .where(verdicts.c.user_id == user, verdicts.c.kind.in_(kinds), record.in_force())
        .order_by(verdicts.c.id.desc())
    )
    if item_id is not None:
        found = found.where(items.c.public_id == item_id)
    row = connection.execute(found.limit(1)).first()
    if row is None:
        raise NothingToUndo("You have no answer that could be taken back.")
    return row


def take_back(connection: sa.Connection, user: int, verdict: Any, lease: Lease) -> int:
    """Hold the place of a verdict that is taken back again, after a skip any that is still open; gives the slot."""
    if verdict.kind == VerdictKind.SKIP.value:
        connection.execute(skips.delete().where(skips.c.item_id == verdict.item_id, skips.c.user_id == user))
        slot = places.claim_item(connection, user, verdict.item_id, lease)
        if slot is None:
            raise AlreadyDecided("Others have the item that you skipped by now: it cannot be taken back.")
        return slot
    held = {"state": HELD, "token": slots.c.token + 1, "turn": lease.turn}
    statement = slots.update().where(slots.c.item_id == verdict.item_id, slots.c.user_id == user, slots.c.state == DONE)
    values = held | {"claimed_at": lease.now, "expires_at": lease.until}
    taken: int = connection.execute(statement.values(**values).returning(slots.c.id)).scalar_one()
    return taken


def counts(connection: sa.Connection, user: int, midnight: datetime) -> tuple[int, int, int]:
    """Of a person: answers in force, those of them since midnight, and items passed on to others."""
    mine = (verdicts.c.user_id == user, verdicts.c.kind == VerdictKind.ANSWER.value, record.in_force())
    today = sa.func.count().filter(verdicts.c.created_at >= midnight)
    answered, answered_today = connection.execute(sa.select(sa.func.count(), today).where(*mine)).one()
    skipped = connection.execute(sa.select(sa.func.count()).where(skips.c.user_id == user)).scalar_one()
    return answered, answered_today, skipped
