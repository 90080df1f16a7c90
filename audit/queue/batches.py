"""Batches: putting items in, closing, counting."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from datetime import datetime
from itertools import islice
from typing import Any, TypeVar

import sqlalchemy as sa

from audit.queue.errors import BadInput, NotFound
from audit.queue.model import MAX_OVERLAP, MAX_PRIORITY, BatchProgress, Guidelines, Kind, NewItem
from audit.queue.places import log, new_slots, state_is, take_numbers
from audit.queue.tables import ASIDE, CLOSED, DONE, HELD, OPEN, batches, items, skips, slots, texts

_T = TypeVar("_T")
_ROWS = 500
_LONGEST_NAME = 200
_TOKENS = 1 << 31


def add(
    connection: sa.Connection,
    name: str,
    new: Sequence[NewItem],
    overlap: int,
    guidelines: Guidelines,
    quota: float,
    now: datetime,
) -> str:
    """See `Queue.add_batch`."""
    _check(name, new, overlap, guidelines, quota)
    digest = _digest(new, overlap, guidelines, quota)
    # The counter's row is locked before the name is looked up: two processes that add the same batch take turns.
    first = take_numbers(connection, "item", len(new))
    known = connection.execute(sa.select(batches).where(batches.c.name == name)).first()
    if known is not None:
        if known.digest != digest:
            raise BadInput(f"A batch {name!r} exists with other items or settings: give this one another name.")
        public_id: str = known.public_id
        return public_id
    public_id = secrets.token_hex(8)
    batch = connection.execute(
        batches.insert()
        .values(
            public_id=public_id,
            name=name,
            digest=digest,
            seed=secrets.randbits(62),
            overlap=overlap,
            quota=quota,
            guidelines_version=guidelines.version,
            guidelines=guidelines.text,
            constitution_version=guidelines.constitution_version,
            constitution=guidelines.constitution,
            created_at=now,
        )
        .returning(batches.c.id)
    ).scalar_one()
    # In random order: a place in the queue tells nothing of kind, stratum or where the pair stood in its file.
    shuffled = list(new)
    secrets.SystemRandom().shuffle(shuffled)
    numbered = list(enumerate(shuffled, start=first))
    for part in _parts(numbered):
        connection.execute(items.insert(), [_item(number, batch, item) for number, item in part])
        connection.execute(texts.insert(), [_texts(number, item) for number, item in part])
    places = [(number, batch, item.priority, item.overlap or overlap) for number, item in numbered]
    total = sum(count for *_, count in places)
    position = take_numbers(connection, "position", total)
    for rows in _parts(new_slots(places, position, (first_token() for _ in range(total)))):
        connection.execute(slots.insert(), rows)
    log(connection, now, "batch added", batch=batch)
    return public_id


def find(connection: sa.Connection, batch_id: str) -> Any:
    row = connection.execute(sa.select(batches).where(batches.c.public_id == batch_id)).first()
    if row is None:
        raise NotFound(f"There is no batch {batch_id!r}.")
    return row


def close(connection: sa.Connection, batch_id: str, now: datetime) -> None:
    batch = find(connection, batch_id)
    if batch.closed_at is not None:
        return
    # The batch first: who gives a slot back looks at it, and waits, before opening the slot again.
    connection.execute(batches.update().where(batches.c.id == batch.id).values(closed_at=now))
    connection.execute(slots.update().where(slots.c.batch_id == batch.id, state_is(OPEN)).values(state=CLOSED))
    log(connection, now, "batch closed", batch=batch.id)


def progress(connection: sa.Connection, batch: Any) -> BatchProgress:
    """The counts of one row of the batches table."""
    mine = slots.c.batch_id == batch.id
    states = Counter[int]()
    for state, count in connection.execute(
        sa.select(slots.c.state, sa.func.count()).where(mine).group_by(slots.c.state)
    ):
        states[state] = count
    wanting = sa.exists().where(slots.c.item_id == items.c.id, slots.c.state.not_in((DONE, ASIDE)))
    whole: Counter[bool] = Counter()
    complete: Counter[bool] = Counter()
    is_gold = (items.c.kind == Kind.GOLD.value).label("gold")
    for gold, done, count in connection.execute(
        sa.select(is_gold, ~wanting, sa.func.count()).where(items.c.batch_id == batch.id).group_by(is_gold, ~wanting)
    ):
        whole[bool(gold)] += count
        complete[bool(gold)] += count * bool(done)
    skipped = sa.select(sa.func.count()).select_from(skips.join(items, items.c.id == skips.c.item_id))
    return BatchProgress(
        batch_id=batch.public_id,
        name=batch.name,
        created_at=batch.created_at,
        closed_at=batch.closed_at,
        items=whole.total(),
        complete=complete.total(),
        pairs=whole[False],
        pairs_complete=complete[False],
        places=states.total() - states[ASIDE],
        open=states[OPEN],
        held=states[HELD],
        answered=states[DONE],
        closed=states[CLOSED],
        skips=connection.execute(skipped.where(items.c.batch_id == batch.id)).scalar_one(),
        quota=batch.quota,
        quota_reached_at=batch.quota_reached_at,
    )


def reached(connection: sa.Connection) -> list[Any]:
    """The rows of batches whose quota is reached, but not marked so."""
    waiting = connection.execute(sa.select(batches).where(batches.c.quota_reached_at.is_(None))).all()
    return [row for row in waiting if _is_reached(progress(connection, row))]


def unmark(connection: sa.Connection) -> None:
    """Take the mark off open batches that are below their quota again, so that reaching it is told once more."""
    marked = (batches.c.closed_at.is_(None), batches.c.quota_reached_at.is_not(None))
    for row in connection.execute(sa.select(batches).where(*marked)).all():
        if not _is_reached(progress(connection, row)):
            connection.execute(batches.update().where(batches.c.id == row.id).values(quota_reached_at=None))


def first_token() -> int:
    """Where a slot's fencing tokens start: anywhere, so that one tells nobody how often the item was lent before."""
    return secrets.randbelow(_TOKENS)


def clean(value: str) -> bool:
    """Whether every database and every UTF-8 file can hold the text as it is."""
    return "\0" not in value and not any(0xD800 <= ord(letter) <= 0xDFFF for letter in value)


def _is_reached(batch: BatchProgress) -> bool:
    done, of = (batch.pairs_complete, batch.pairs) if batch.pairs else (batch.complete, batch.items)
    return done >= batch.quota * of


def _check(name: str, new: Sequence[NewItem], overlap: int, guidelines: Guidelines, quota: float) -> None:
    if not (0 < len(name) <= _LONGEST_NAME and clean(name)):
        raise BadInput(f"The batch's name {name!r} is not 1 to {_LONGEST_NAME} plain characters: give another.")
    if not new:
        raise BadInput(f"The batch {name!r} has no items: give at least one.")
    if not 0 < quota <= 1:
        raise BadInput(f"The quota {quota!r} is not above 0 and at most 1: give a share of the items.")
    if not (clean(guidelines.version) and clean(guidelines.constitution_version)):
        raise BadInput("A version of the guidelines or constitution holds NUL or lone surrogates: name it plainly.")
    _check_overlap(overlap, f"batch {name!r}")
    seen: set[str] = set()
    for item in new:
        where = f"The item of pair {item.pair_id!r}"
        if not item.pair_id or not clean(item.pair_id):
            raise BadInput(f"{where} has an id that is empty or holds NUL or lone surrogates: give another.")
        if item.pair_id in seen:
            raise BadInput(f"{where} occurs twice in the batch {name!r}: give each pair once.")
        seen.add(item.pair_id)
        if item.gold_winner not in (None, "a", "b", "tie"):
            raise BadInput(f"{where} has gold winner {item.gold_winner!r}: give a, b or tie.")
        if (item.kind is Kind.GOLD) == (item.gold_winner is None) and item.kind is not Kind.CANARY:
            raise BadInput(f"{where} is of kind {item.kind} with gold winner {item.gold_winner!r}: only gold has one.")
        if not 0 <= item.priority <= MAX_PRIORITY:
            raise BadInput(f"{where} has priority {item.priority!r}: give 0 to {MAX_PRIORITY}.")
        if item.inclusion_probability is not None and not 0 < item.inclusion_probability <= 1:
            raise BadInput(
                f"{where} has inclusion probability {item.inclusion_probability!r}: "
                "what was drawn has one above 0 and at most 1."
            )
        if item.overlap is not None:
            _check_overlap(item.overlap, f"pair {item.pair_id!r}")


def _check_overlap(overlap: int, where: str) -> None:
    if not 1 <= overlap <= MAX_OVERLAP:
        raise BadInput(f"The overlap {overlap!r} of {where} is not 1 to {MAX_OVERLAP}: give how many people answer.")


def _digest(new: Sequence[NewItem], overlap: int, guidelines: Guidelines, quota: float) -> str:
    digest = hashlib.sha256(json.dumps([overlap, quota, asdict(guidelines)]).encode())
    for item in sorted(new, key=lambda item: item.pair_id):
        digest.update(json.dumps(asdict(item)).encode() + b"\n")
    return digest.hexdigest()


def _item(number: int, batch: int, item: NewItem) -> dict[str, Any]:
    return {
        "id": number,
        "public_id": secrets.token_hex(16),
        "batch_id": batch,
        "pair_id": item.pair_id,
        "kind": item.kind.value,
        "gold_winner": item.gold_winner,
        "inclusion_probability": item.inclusion_probability,
        "group": item.group,
        "stratum": item.stratum,
        "reason": item.reason,
        "words": sum(len(text.split()) for text in (item.prompt, item.response_a, item.response_b)),
    }


def _texts(number: int, item: NewItem) -> dict[str, Any]:
    return {
        "item_id": number,
        "prompt": item.prompt,
        "response_a": item.response_a,
        "response_b": item.response_b,
    }


def _parts(rows: Iterable[_T]) -> Iterable[list[_T]]:
    source = iter(rows)
    while part := list(islice(source, _ROWS)):
        yield part
