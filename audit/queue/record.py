"""Verdict rows: appended, read back, and turned from sides into rollouts and back.

A person's side of an item is a hash of the batch's secret seed, the item and the person: the same whenever that person
sees the item, so that an answer typed before a lease expired still means the same after the item was taken again.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.sql.elements import ColumnElement

from audit.draws import side
from audit.queue.errors import KeyReused
from audit.queue.model import Answer, Receipt, VerdictKind
from audit.queue.tables import items, verdicts


@dataclass(frozen=True)
class Statement:
    """What a verdict row says. `winner`: a, b, tie or None; `flaws`: such as `a: wrong`, sorted."""

    kind: VerdictKind
    winner: str | None
    confidence: int | None = None
    flaws: tuple[str, ...] = ()
    comment: str = ""
    seconds: float | None = None

    @classmethod
    def of(cls, answer: Answer, left: str, kind: VerdictKind = VerdictKind.ANSWER) -> Statement:
        right = other(left)
        flaws = {f"{left}: {flaw}" for flaw in answer.flaws_left} | {f"{right}: {flaw}" for flaw in answer.flaws_right}
        winner = {"left": left, "right": right, "tie": "tie"}[answer.choice]
        return cls(kind, winner, answer.confidence, tuple(sorted(flaws)), answer.comment, answer.seconds)


def other(rollout: str) -> str:
    return "b" if rollout == "a" else "a"


def left_for(seed: int, item: str, user: int) -> str:
    """Which rollout, a or b, stands on this person's left."""
    return side(seed, item, str(user))


def choice(winner: str, left: str) -> str:
    """The winner in terms of sides: left, right or tie."""
    return winner if winner == "tie" else "left" if winner == left else "right"


def flaws_of(rollout: str, flaws: Iterable[str]) -> tuple[str, ...]:
    prefix = f"{rollout}: "
    return tuple(flaw.removeprefix(prefix) for flaw in flaws if flaw.startswith(prefix))


def to_answer(row: Any, left: str) -> Answer:
    """The answer of a verdict row with a winner, on the sides of a person who sees `left` on the left."""
    flaws = json.loads(row.flaws)
    return Answer(
        choice(row.winner, left),
        row.confidence,
        flaws_of(left, flaws),
        flaws_of(other(left), flaws),
        row.comment,
        row.seconds,
    )


def append(
    connection: sa.Connection,
    user: int,
    item: int,
    left: str,
    said: Statement,
    key: str,
    now: datetime,
    since: datetime,
    supersedes: int | None,
) -> str:
    """Append a row; gives its public id. `since`: when the person got the item."""
    last = connection.execute(
        sa.select(verdicts.c.created_at).where(verdicts.c.user_id == user).order_by(verdicts.c.id.desc()).limit(1)
    ).scalar()
    began = since if last is None else max(since, last)
    public_id = secrets.token_hex(16)
    connection.execute(
        verdicts.insert().values(
            public_id=public_id,
            item_id=item,
            user_id=user,
            key=key,
            kind=said.kind.value,
            winner=said.winner,
            shown_left=left,
            confidence=said.confidence,
            flaws=json.dumps(said.flaws),
            comment=said.comment,
            seconds=said.seconds,
            elapsed=max(0.0, (now - began).total_seconds()),
            created_at=now,
            supersedes=supersedes,
        )
    )
    return public_id


def repeated(
    connection: sa.Connection, user: int, item_id: str, key: str, says: Callable[[str], Statement]
) -> Receipt | None:
    """The receipt of a call that came before under this key; None for a new key.

    `says`: from the side on the person's left to what the call says. Raises KeyReused where it said something else.
    """
    found = (
        sa.select(verdicts, items.c.public_id.label("item_public_id"))
        .join(items, items.c.id == verdicts.c.item_id)
        .where(verdicts.c.user_id == user, verdicts.c.key == key)
    )
    row = connection.execute(found).first()
    if row is None:
        return None
    said = says(row.shown_left)
    stored = (row.item_public_id, row.kind, row.winner, row.confidence, json.loads(row.flaws), row.comment)
    if stored != (item_id, said.kind.value, said.winner, said.confidence, list(said.flaws), said.comment):
        raise KeyReused("This page sent something else under the same key before: reload it, then answer again.")
    return Receipt(row.public_id, row.item_public_id, row.created_at, repeated=True)


_LATER = verdicts.alias("later")
_IN_FORCE = ~sa.exists().where(_LATER.c.supersedes == verdicts.c.id)
# Made once: every call of a person asks for it, and making it takes longer than the database needs to answer.
_LATEST = (
    sa.select(verdicts)
    .where(
        verdicts.c.item_id == sa.bindparam("item"),
        verdicts.c.user_id == sa.bindparam("user"),
        verdicts.c.kind != VerdictKind.ADJUDICATION.value,
        _IN_FORCE,
    )
    .order_by(verdicts.c.id.desc())
    .limit(1)
)


def in_force() -> ColumnElement[bool]:
    """The condition that no other row supersedes a row."""
    return _IN_FORCE


def latest(connection: sa.Connection, user: int, item: int) -> Any:
    """The person's row in force on an item (adjudications aside), or None."""
    return connection.execute(_LATEST, {"item": item, "user": user}).first()


def previous_answer(connection: sa.Connection, user: int, item: int, left: str) -> Answer | None:
    """What the person had answered before taking it back."""
    row = latest(connection, user, item)
    if row is None or row.kind != VerdictKind.WITHDRAWN.value or row.supersedes is None:
        return None
    before = connection.execute(sa.select(verdicts).where(verdicts.c.id == row.supersedes)).one()
    return None if before.winner is None else to_answer(before, left)
