"""The queue: who sees which item, for how long, and what they said.

A lease that ended is refused always, also where nobody else took the item: whether an answer counts must depend on
the clock alone, not on who happened to look in between. `reclaim` takes the item again if it is still free, on the same
sides, so that what was typed is sent with the new token and nothing is lost.

The clock is passed in. Once a lease was seen to end, that is written; a clock that then jumps back revives nothing,
since the token is another by the next claim. A clock that jumps back earlier only makes leases last longer.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from audit.queue import batches as batch_rows
from audit.queue import disputes, places, record, standing
from audit.queue.database import Database
from audit.queue.errors import (
    AlreadyDecided,
    BadInput,
    Closed,
    LeaseExpired,
    NotAllowed,
    NotFound,
    NothingToUndo,
)
from audit.queue.model import (
    MAX_OVERLAP,
    Answer,
    BatchProgress,
    Case,
    Claim,
    Clock,
    Guidelines,
    ItemView,
    NewItem,
    Progress,
    Receipt,
    Role,
    UserId,
    VerdictKind,
    check_comment,
    check_key,
)
from audit.queue.places import Lease, log, state_is
from audit.queue.record import Statement
from audit.queue.tables import ASIDE, DONE, HELD, OPEN, batches, items, slots, texts, users

_COUNT_FOR_S = 5.0
_SWEEP_EVERY = timedelta(seconds=1)
_NO_ITEM = "There is no such item for you: go back to the queue."
_TAKEN = "This item has all its answers by now. Nothing was sent: go on with the next one."
_ANSWERED = "You answered this item already, in another tab perhaps. The first answer stands: undo it to change it."
_SETTLED = "A lead settled this item by now, so the answer on it stays as it is."
_CLOSED = "This batch is closed and takes no answers any more. Nothing was sent: go on with the next item."


@dataclass(frozen=True)
class Rules:
    """`lease_s`: seconds an item stays with a person after the last sign of life. `longest_hold_s`: with signs of life.
    `held`: items a person may hold at once: the one on the screen and the one preloaded."""

    lease_s: float = 600.0
    longest_hold_s: float = 4 * 3600.0
    held: int = 2


class Queue:
    """All calls are safe to make at once from any number of threads, processes and machines on one database.

    Every call of a person raises NotAllowed for an unknown or disabled account.
    """

    def __init__(self, database: Database, clock: Clock, rules: Rules | None = None) -> None:
        self.database = database
        self._clock = clock
        self._rules = rules or Rules()
        self._open_count: tuple[datetime, int] | None = None
        self._swept: datetime | None = None

    # batches

    def add_batch(
        self,
        name: str,
        items: Iterable[NewItem],
        overlap: int = 1,
        guidelines: Guidelines | None = None,
        quota: float = 1.0,
    ) -> str:
        """Put items into the queue, all or none, in random order; gives the batch's id. The same `name` with the same
        items again changes nothing and gives the same id; with other items it raises BadInput."""
        new = list(items)
        with self.database.write() as connection:
            return batch_rows.add(connection, name, new, overlap, guidelines or Guidelines(), quota, self._clock())

    def close_batch(self, batch_id: str) -> None:
        """Hand out no more of it. Who holds an item may still send the answer until the lease ends."""
        with self.database.write() as connection:
            batch_rows.close(connection, batch_id, self._clock())

    def batches(self) -> list[BatchProgress]:
        """All batches, newest first."""
        with self.database.read() as connection:
            rows = connection.execute(sa.select(batches).order_by(batches.c.id.desc())).all()
            return [batch_rows.progress(connection, row) for row in rows]

    def batch_progress(self, batch_id: str) -> BatchProgress:
        """Raises NotFound."""
        with self.database.read() as connection:
            return batch_rows.progress(connection, batch_rows.find(connection, batch_id))

    def quotas_reached(self) -> list[BatchProgress]:
        """The batches whose quota is reached and was not reported before: each is given to exactly one caller, once."""
        with self.database.read() as connection:
            reached = batch_rows.reached(connection)
        mine = []
        for row in reached:
            mark = batches.update().where(batches.c.id == row.id, batches.c.quota_reached_at.is_(None))
            with self.database.write() as connection:
                now = self._clock()
                if connection.execute(mark.values(quota_reached_at=now)).rowcount:
                    log(connection, now, "quota reached", batch=row.id)
                    mine.append(batch_rows.progress(connection, batch_rows.find(connection, row.public_id)))
        return mine

    def guidelines(self, batch_id: str) -> Guidelines:
        """Raises NotFound."""
        with self.database.read() as connection:
            row = batch_rows.find(connection, batch_id)
        return Guidelines(row.guidelines_version, row.guidelines, row.constitution_version, row.constitution)

    # an auditor's calls

    def claim(self, user: UserId) -> Claim | None:
        """The item to work on: the person's own unexpired one first (its lease renewed), else the next; None if there
        is none for this person. One in quarantine gets no new item, as if the queue were empty."""
        self._sweep()
        with self.database.write() as connection:
            person, now = self._person(connection, user), self._clock()
            held = self._held(connection, user, now)
            if held:
                return self._lent(connection, user, held[0], self._renew(connection, held[0], now))
            return self._claim_new(connection, person, now)

    def peek_next(self, user: UserId, current: str) -> Claim | None:
        """The item after `current`, to preload: claimed too, so that nobody else gets it. None as in `claim`."""
        self._sweep()
        with self.database.write() as connection:
            person, now = self._person(connection, user), self._clock()
            held = self._held(connection, user, now)
            others = [row for row in held if row.item_id != current]
            if others:
                return self._lent(connection, user, others[0])
            return self._claim_new(connection, person, now) if len(held) < self._rules.held else None

    def held(self, user: UserId) -> list[Claim]:
        """What the person holds, in the order to work on. Only reads."""
        with self.database.read() as connection:
            self._person(connection, user, lock=False)
            rows = self._held(connection, user, self._clock())
            return [self._lent(connection, user, row) for row in rows]

    def view(self, user: UserId, item_id: str) -> Claim:
        """One held item. Only reads. Raises LeaseExpired where it was this person's, AlreadyDecided where they answered
        it, NotFound else."""
        with self.database.read() as connection:
            self._person(connection, user, lock=False)
            return self._lent(connection, user, self._place(connection, user, item_id, self._clock()))

    def reclaim(self, user: UserId, item_id: str) -> Claim:
        """Take an item again whose lease expired, so that what was typed can be sent with the new token. Raises
        AlreadyDecided where all its places are taken by now, Closed, NotFound where the person never had it."""
        places.expire(self.database, self._clock())
        with self.database.write() as connection:
            person, now = self._person(connection, user), self._clock()
            try:
                row = self._place(connection, user, item_id, now)
            except LeaseExpired:
                item = self._item(connection, item_id)
                if places.batch_is_closed(connection, item.batch):
                    raise Closed(_CLOSED) from None
                if standing.passed(connection, user, item.item):
                    raise AlreadyDecided("You passed this item on to others: undo that to have it again.") from None
                slot = None
                if person.quarantined is None:
                    slot = places.claim_item(connection, user, item.item, self._lease(now))
                if slot is None:
                    raise AlreadyDecided(_TAKEN) from None
                log(connection, now, "claimed again", user, item.batch, item.item)
                return self._claim(connection, user, slot)
            return self._lent(connection, user, row, self._renew(connection, row, now))

    def heartbeat(self, user: UserId, item_id: str, token: int) -> datetime:
        """Renew the lease; gives its new end. Raises LeaseExpired, AlreadyDecided, NotFound."""
        with self.database.write() as connection:
            self._person(connection, user)
            now = self._clock()
            return self._renew(connection, self._place(connection, user, item_id, now, token), now)

    def submit(self, user: UserId, item_id: str, token: int, answer: Answer, key: str) -> Receipt:
        """Store an answer, once for each `key` however often it is sent. Raises LeaseExpired (the lease ended, even if
        nobody else took the item: `reclaim` it), AlreadyDecided, KeyReused, Closed, NotFound."""
        check_key(key)
        with self.database.write() as connection:
            self._person(connection, user)
            known = record.repeated(connection, user, item_id, key, lambda left: Statement.of(answer, left))
            if known is not None:
                return known
            now = self._clock()
            row = self._place(connection, user, item_id, now, token)
            done = {"state": DONE, "expires_at": None, "turn": None}
            standing.change(connection, row, done)
            left = record.left_for(row.seed, row.item_id, user)
            receipt = self._append(connection, user, row, left, Statement.of(answer, left), key, now)
            log(connection, now, "answered", user, row.batch, row.item)
            return receipt

    def skip(self, user: UserId, item_id: str, token: int, reason: str, key: str) -> Receipt:
        """Pass the item on to other people; this person does not get it again. Idempotent and refused as `submit`."""
        check_key(key)
        check_comment(reason)
        said = Statement(VerdictKind.SKIP, None, comment=reason)
        with self.database.write() as connection:
            self._person(connection, user)
            known = record.repeated(connection, user, item_id, key, lambda _: said)
            if known is not None:
                return known
            now = self._clock()
            row = self._place(connection, user, item_id, now, token)
            left = record.left_for(row.seed, row.item_id, user)
            receipt = self._append(connection, user, row, left, said, key, now)
            standing.bar(connection, user, row.item)
            log(connection, now, "skipped", user, row.batch, row.item)
            places.give_back(connection, row.slot_id)
            return receipt

    def release(self, user: UserId, item_id: str, token: int) -> None:
        """Give the item back unanswered; anybody may get it, this person too. Releasing twice changes nothing."""
        with self.database.write() as connection:
            self._person(connection, user)
            now = self._clock()
            try:
                row = self._place(connection, user, item_id, now, token)
            except LeaseExpired:
                return
            log(connection, now, "released", user, row.batch, row.item)
            places.give_back(connection, row.slot_id)

    def release_all(self, user: UserId) -> int:
        """Give back all that a person holds (at logout); gives how many."""
        with self.database.write() as connection:
            self._person(connection, user)
            now = self._clock()
            rows = self._held(connection, user, now)
            for row in rows:
                log(connection, now, "released", user, row.batch, row.item)
                places.give_back(connection, row.slot_id)
            return len(rows)

    def undo(self, user: UserId, key: str, item_id: str | None = None) -> Claim:
        """Take back the last answer or skip, or the one on `item_id`: a row is appended that supersedes it, and the
        item is the person's again, first in line, with `previous`. Again with another key goes one further back.
        Raises NothingToUndo (in quarantine too), AlreadyDecided (a lead settled it, or others have a skipped item by
        now), Closed."""
        check_key(key)
        places.expire(self.database, self._clock())
        with self.database.write() as connection:
            person, now = self._person(connection, user), self._clock()
            known = standing.undone(connection, user, key)
            if known is not None:
                return self._lent(connection, user, self._place(connection, user, known, now))
            if person.quarantined is not None:
                raise NothingToUndo("You have no answer that could be taken back.")
            verdict = standing.last(connection, user, item_id)
            item = self._item(connection, verdict.item_public_id)
            if places.batch_is_closed(connection, item.batch):
                raise Closed("The batch of your last answer is closed: it cannot be taken back any more.")
            if disputes.decision(connection, item.item) is not None:
                raise AlreadyDecided(_SETTLED)
            lease = self._lease(now, undone=True)
            slot = standing.take_back(connection, user, verdict, lease)
            record.append(
                connection,
                user,
                item.item,
                verdict.shown_left,
                Statement(VerdictKind.WITHDRAWN, None),
                key,
                now,
                now,
                verdict.id,
            )
            log(connection, now, "taken back", user, item.batch, item.item)
            return self._claim(connection, user, slot)

    def progress(self, user: UserId) -> Progress:
        """Of one person. Only reads."""
        now = self._clock()
        midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
        with self.database.read() as connection:
            self._person(connection, user, lock=False)
            counts = standing.counts(connection, user, midnight)
            held = len(self._held(connection, user, now))
            return Progress(*counts, held, self._count_open(connection, now))

    # a lead's calls; NotAllowed for an auditor

    def requeue(self, lead: UserId, item_id: str, more: int = 1) -> None:
        """Ask `more` (0..100) further people, and let those who skipped the item have it again. Raises Closed."""
        if not 0 <= more <= MAX_OVERLAP:
            raise BadInput(f"The number of further people {more!r} is not 0 to {MAX_OVERLAP}: correct it.")
        with self.database.write() as connection:
            self._person(connection, lead, Role.LEAD)
            now = self._clock()
            item = self._item(connection, item_id)
            if places.batch_is_closed(connection, item.batch):
                raise Closed("The batch of this item is closed: add it to a new batch instead.")
            disputes.ask_more(connection, item.item, item.batch, more)
            log(connection, now, "requeued", lead, item.batch, item.item)

    def case(self, lead: UserId, item_id: str) -> Case:
        """An item with all opinions in force on it, on sides drawn for this lead. `Insight.disputes` lists them. Raises
        NotAllowed while the lead holds the item: who sees the others' answers can give none of their own."""
        with self.database.read() as connection:
            self._person(connection, lead, Role.LEAD, lock=False)
            item = self._item(connection, item_id)
            if standing.holds(connection, lead, item.item, HELD):
                raise NotAllowed("You have this item before you as an auditor: answer it or give it back first.")
            left = record.left_for(item.seed, item.item_id, lead)
            opinions, decision = disputes.opinions(connection, item.item, left)
            return Case(self._view(connection, lead, item), opinions, decision)

    def adjudicate(self, lead: UserId, item_id: str, answer: Answer, key: str) -> Receipt:
        """Settle an item: a verdict of the lead's own, of kind adjudication. A second one supersedes the lead's first.
        Raises AlreadyDecided after another lead's, NotAllowed on an item that the lead answered or holds."""
        check_key(key)

        def said(left: str) -> Statement:
            return Statement.of(answer, left, VerdictKind.ADJUDICATION)

        with self.database.write() as connection:
            self._person(connection, lead, Role.LEAD)
            known = record.repeated(connection, lead, item_id, key, said)
            if known is not None:
                return known
            now = self._clock()
            item = self._item(connection, item_id, lock=True)
            if standing.holds(connection, lead, item.item, HELD, DONE, ASIDE):
                raise NotAllowed("You answered this item or have it before you: another lead must settle it.")
            earlier = disputes.decision(connection, item.item)
            if earlier is not None and earlier.user_id != lead:
                raise AlreadyDecided("Another lead settled this item by now: their decision stands.")
            left = record.left_for(item.seed, item.item_id, lead)
            supersedes = None if earlier is None else earlier.id
            verdict = record.append(connection, lead, item.item, left, said(left), key, now, now, supersedes)
            standing.bar(connection, lead, item.item)
            log(connection, now, "adjudicated", lead, item.batch, item.item)
            return Receipt(verdict, item_id, now)

    # housekeeping

    def expire(self) -> int:
        """Return items whose lease ended to the queue; gives how many. Claims do it too, so a timer is optional."""
        return places.expire(self.database, self._clock())

    # parts

    def _sweep(self) -> None:
        """`expire`, at most once a second: a claim need not look each time for what hardly ever is there."""
        now = self._clock()
        if self._swept is None or not timedelta(0) <= now - self._swept < _SWEEP_EVERY:
            places.expire(self.database, now)
            self._swept = now

    def _person(self, connection: sa.Connection, user: UserId, role: Role = Role.AUDITOR, lock: bool = True) -> Any:
        """The person's row. Locked, so that calls of one person, from two tabs, say, take turns."""
        found = sa.select(users).where(users.c.id == user)
        person = connection.execute(found.with_for_update(key_share=True) if lock else found).first()
        if person is None or person.disabled_at is not None:
            raise NotAllowed("Your account does not exist any more or is disabled: ask an admin.")
        if not Role(person.role).at_least(role):
            raise NotAllowed(f"This is for the role {role} and above, yours is {person.role}: ask an admin.")
        return person

    def _lease(self, now: datetime, undone: bool = False) -> Lease:
        turn = round(now.timestamp() * 1e6)
        return Lease(now, now + timedelta(seconds=self._rules.lease_s), -turn if undone else turn)

    def _claim_new(self, connection: sa.Connection, person: Any, now: datetime) -> Claim | None:
        if person.quarantined is not None:
            return None
        slot = places.claim_next(connection, person.id, self._lease(now))
        if slot is None:
            return None
        row = connection.execute(standing.places_held().where(slots.c.id == slot)).one()
        log(connection, now, "claimed", person.id, row.batch, row.item)
        return self._lent(connection, person.id, row)

    def _held(self, connection: sa.Connection, user: UserId, now: datetime) -> list[Any]:
        found = standing.places_held().where(slots.c.user_id == user, state_is(HELD), slots.c.expires_at > now)
        return list(connection.execute(found.order_by(slots.c.turn, slots.c.id)).all())

    def _place(
        self, connection: sa.Connection, user: UserId, item_id: str, now: datetime, token: int | None = None
    ) -> Any:
        """The person's place in an item, held now; else the refusal that fits."""
        row = connection.execute(
            standing.places_held().where(items.c.public_id == item_id, slots.c.user_id == user)
        ).first()
        if row is None:
            item = connection.execute(sa.select(items.c.id).where(items.c.public_id == item_id)).scalar()
            if item is None or not standing.had(connection, user, item):
                raise NotFound(_NO_ITEM)
        elif row.state in (DONE, ASIDE):
            raise AlreadyDecided(_ANSWERED)
        elif row.expires_at > now and token in (None, row.token):
            return row
        raise LeaseExpired(standing.EXPIRED)

    def _item(self, connection: sa.Connection, item_id: str, lock: bool = False) -> Any:
        found = (
            sa.select(*standing.OF_ITEM)
            .join(batches, batches.c.id == items.c.batch_id)
            .where(items.c.public_id == item_id)
        )
        if lock:
            found = found.with_for_update(of=items, key_share=True)
        row = connection.execute(found).first()
        if row is None:
            raise NotFound(_NO_ITEM)
        return row

    def _claim(self, connection: sa.Connection, user: UserId, slot: int) -> Claim:
        return self._lent(connection, user, connection.execute(standing.places_held().where(slots.c.id == slot)).one())

    def _lent(self, connection: sa.Connection, user: UserId, row: Any, expires_at: datetime | None = None) -> Claim:
        left = record.left_for(row.seed, row.item_id, user)
        previous = record.previous_answer(connection, user, row.item, left)
        return Claim(self._view(connection, user, row), row.token, expires_at or row.expires_at, previous)

    def _view(self, connection: sa.Connection, user: UserId, item: Any) -> ItemView:
        text = connection.execute(sa.select(texts).where(texts.c.item_id == item.item)).first()
        if text is None:
            raise Closed("The texts of this item were deleted, as the batch was closed long ago.")
        sides = (text.response_a, text.response_b)
        if record.left_for(item.seed, item.item_id, user) == "b":
            sides = (text.response_b, text.response_a)
        return ItemView(
            item.item_id,
            item.batch_id,
            text.prompt,
            *sides,
            guidelines_version=item.guidelines_version,
            constitution_version=item.constitution_version,
        )

    def _renew(self, connection: sa.Connection, row: Any, now: datetime) -> datetime:
        latest = row.claimed_at + timedelta(seconds=self._rules.longest_hold_s)
        # Never earlier than it was: a clock that jumped back must not cut a lease short.
        until: datetime = max(row.expires_at, min(now + timedelta(seconds=self._rules.lease_s), latest))
        standing.change(connection, row, {"expires_at": until})
        return until

    def _append(
        self, connection: sa.Connection, user: UserId, row: Any, left: str, said: Statement, key: str, now: datetime
    ) -> Receipt:
        earlier = record.latest(connection, user, row.item)
        supersedes = None if earlier is None else earlier.id
        verdict = record.append(connection, user, row.item, left, said, key, now, row.claimed_at, supersedes)
        return Receipt(verdict, row.item_id, now)

    def _count_open(self, connection: sa.Connection, now: datetime) -> int:
        # Counting reads the whole index of open slots, too much for every page; a clock may jump either way.
        if self._open_count is None or abs((now - self._open_count[0]).total_seconds()) > _COUNT_FOR_S:
            count = connection.execute(sa.select(sa.func.count()).select_from(slots).where(state_is(OPEN))).scalar_one()
            self._open_count = (now, count)
        return self._open_count[1]
