"""Retention: texts of old batches go, verdicts stay."""

from __future__ import annotations

from datetime import timedelta

import sqlalchemy as sa

from audit.queue.database import Database
from audit.queue.errors import BadInput
from audit.queue.model import Clock
from audit.queue.places import log
from audit.queue.tables import batches, items, texts


def forget_texts(database: Database, clock: Clock, older_than: timedelta) -> int:
    """Delete prompts and responses of batches that were closed longer ago; gives the number of items.

    Verdict rows stay, with people's comments: they are append-only. An SQLite file keeps its size and reuses the room,
    which is overwritten with zeros first. Raises BadInput for a negative time.
    """
    if older_than < timedelta(0):
        raise BadInput(f"The age {older_than} is negative: give the days after which texts go.")
    count = 0
    with database.write() as connection:
        if database.sqlite:
            connection.exec_driver_sql("PRAGMA secure_delete = ON")
        now = clock()
        old = sa.select(batches.c.id).where(
            batches.c.closed_at <= now - older_than, batches.c.texts_deleted_at.is_(None)
        )
        for batch in connection.execute(old).scalars().all():
            mine = sa.select(items.c.id).where(items.c.batch_id == batch)
            count += connection.execute(texts.delete().where(texts.c.item_id.in_(mine))).rowcount
            connection.execute(batches.update().where(batches.c.id == batch).values(texts_deleted_at=now))
            log(connection, now, "texts deleted", batch=batch)
    return count
